"""Arrays of attention cut into tiles, and put together again."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpar.nn.places import Places
from jaxpar.partition.devices import without_accelerator
from jaxpar.partition.sharding import current_platform

# Segments of the tokens that fill up a last tile: no query has that of a key.
PADDED_QUERY = -2
PADDED_KEY = -3

QueryTiles = Float[Array, "row_tiles query_tiles row_tile K G query_tile H"]
KeyTiles = Float[Array, "row_tiles key_tiles row_tile K key_tile H"]


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How arrays are cut into tiles: by rows, then by queries, then by keys.

    Heads come before tokens in a tile of queries, [row_tile, K, G, query_tile, H], and
    in one of keys, [row_tile, K, key_tile, H].
    """

    B: int
    """Rows of the batch."""
    T: int
    """Queries of a row."""
    S: int
    """Keys of a row."""
    N: int
    """Heads of queries."""
    K: int
    """Heads of keys, each of which G = N / K heads of queries share."""
    row_tile: int
    """Rows of a tile."""
    query_tile: int
    """Queries of a tile."""
    key_tile: int
    """Keys of a tile."""

    def cut_queries(self, x: Float[Array, "B T N H"]) -> QueryTiles:
        """Tiles of queries, or of anything else that each query and head has."""
        x = padded(x, self.query_tile)
        x = x.reshape(
            self.B // self.row_tile, self.row_tile, -1, self.query_tile,
            self.K, self.N // self.K, x.shape[-1],
        )  # fmt: skip
        return x.transpose(0, 2, 1, 4, 5, 3, 6)

    def join_queries(self, x: QueryTiles) -> Float[Array, "B T N H"]:
        """The inverse of `cut_queries`."""
        x = x.transpose(0, 2, 1, 5, 3, 4, 6).reshape(self.B, -1, self.N, x.shape[-1])
        return x[:, : self.T]

    def cut_keys(self, x: Float[Array, "B S K H"]) -> KeyTiles:
        """Tiles of keys or values."""
        x = padded(x, self.key_tile)
        shape = self.B // self.row_tile, self.row_tile, -1, self.key_tile, self.K
        x = x.reshape(*shape, x.shape[-1])
        return x.transpose(0, 2, 1, 4, 3, 5)

    def join_keys(self, x: KeyTiles) -> Float[Array, "B S K H"]:
        """The inverse of `cut_keys`."""
        x = x.transpose(0, 2, 1, 4, 3, 5).reshape(self.B, -1, self.K, x.shape[-1])
        return x[:, : self.S]

    def cut_places(self, where: Places, where_k: Places) -> tuple[Places, Places]:
        """Places of queries and of keys, cut like them; the padding sees nothing."""

        def cut(x: jax.Array, size: int, fill: int) -> jax.Array:
            x = padded(x, size, fill)
            x = x.reshape(self.B // self.row_tile, self.row_tile, -1, size)
            return x.transpose(0, 2, 1, 3)

        where = Places(
            cut(where.positions, self.query_tile, 0),
            cut(where.segments, self.query_tile, PADDED_QUERY),
        )
        where_k = Places(
            cut(where_k.positions, self.key_tile, 0),
            cut(where_k.segments, self.key_tile, PADDED_KEY),
        )
        return where, where_k


def tiling_of(q: jax.Array, k: jax.Array, most: int) -> Tiling:
    """Tiles of at most so many scores; 0 is the default of the kind of device."""
    (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
    scores = most or (2**20 if _on_cpu() else 2**27)
    side = max(1, math.isqrt(scores // N))
    keys = min(S, side if N * T * S > scores else S)
    queries = min(T, max(1, scores // (N * keys)))
    fit = max(1, scores // (N * queries * keys))
    rows = max(n for n in range(1, min(B, fit) + 1) if B % n == 0)
    return Tiling(B, T, S, N, K, rows, queries, keys)


def _on_cpu() -> bool:
    """Whether the layout's devices are CPUs; without any, whether JAX would use one."""
    platform = current_platform()
    return platform == "cpu" if platform else without_accelerator()


def padded(x: jax.Array, size: int, value: int = 0) -> jax.Array:
    """The second axis filled up to a multiple of a size."""
    more = -x.shape[1] % size
    if not more:
        return x
    widths = [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, widths, constant_values=value)
