"""FlashAttention on one device: exact softmax attention, a tile of scores at a time."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxpar.nn.attention_kernel import Gradients, Partial
from jaxpar.nn.places import Places
from jaxpar.partition.precision import wide

# Segments of the tokens that fill up a last tile: no query has that of a key.
PADDED_QUERY = -2
PADDED_KEY = -3

QueryTiles = Float[Array, "row_tiles query_tiles rows K G tile H"]
KeyTiles = Float[Array, "row_tiles key_tiles rows K tile H"]


class QueryTile(NamedTuple):
    """Queries [rows, K, G, T, H] and their places [rows, T]; tiles may be stacked."""

    q: jax.Array
    where: Places


class QueryGradientTile(NamedTuple):
    """What the backward pass needs of queries, in tiles like those of the queries.

    grad is the gradient of their output, lse [..., 1] their logsumexp over all keys,
    inner [..., 1] the inner product of output and gradient.
    """

    q: jax.Array
    grad: jax.Array
    lse: jax.Array
    inner: jax.Array
    where: Places


class KeyTile(NamedTuple):
    """Keys and values [rows, K, S, H] and their places [rows, S]; may be stacked."""

    k: jax.Array
    v: jax.Array
    where: Places


class Running(NamedTuple):
    """Running softmax: sum of exp(score - top) v, top score, sum of the exp alone."""

    out: jax.Array
    top: jax.Array
    total: jax.Array


@dataclasses.dataclass(frozen=True)
class FlashAttention:
    """Softmax attention in tiles, exact in float64 (Dao et al., 2022, algorithms 1, 4).

    Tiles in which no query sees a key are skipped. Sums are never narrower than
    float32.
    """

    window: int = 0
    """Tokens that a query sees, itself included; 0 is the whole document."""
    tile: int = 0
    """Scores that exist at once, at most; 0 is 2**20 on a CPU (they fit in its cache)
    and 2**27 elsewhere."""

    def forward(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K H"],
        where: Places,
        where_k: Places,
    ) -> Partial:
        """Attention over these keys; output and logsumexp are at least float32."""
        tiling = self._tiling(q, k)

        def attend_rows(rows):
            queries, keys = rows
            return jax.lax.map(lambda tile: attend_queries(tile, keys), queries)

        def attend_queries(queries: QueryTile, keys: KeyTile) -> Partial:
            def attend_keys(running: Running, keys: KeyTile):
                mask = attention_mask(queries.where, keys.where, self.window)
                return _if_any(mask, _attend_tile, running, queries.q, keys, mask), None

            shape, dtype = queries.q.shape[:-1], wide(queries.q).dtype
            lowest = jnp.finfo(dtype).min
            start = Running(
                jnp.zeros((*shape, keys.v.shape[-1]), dtype),
                jnp.full(shape, lowest, dtype),
                jnp.zeros(shape, dtype),
            )
            (out, top, total), _ = jax.lax.scan(attend_keys, start, keys)
            sees_any = total > 0
            total = jnp.where(sees_any, total, 1)
            lse = jnp.where(sees_any, top + jnp.log(total), lowest)
            return Partial(out / total[..., None], lse)

        where, where_k = tiling.cut_places(where, where_k)
        queries = QueryTile(tiling.cut_queries(q), where)
        keys = KeyTile(tiling.cut_keys(k), tiling.cut_keys(v), where_k)
        out, lse = jax.lax.map(attend_rows, (queries, keys))
        out = tiling.join_queries(out)
        return Partial(out, tiling.join_queries(lse[..., None])[..., 0])

    def backward(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K H"],
        where: Places,
        where_k: Places,
        result: Partial,
        grad: Float[Array, "B T N H"],
    ) -> Gradients:
        """Gradients from these keys, at least float32; `result` is over all keys."""
        tiling = self._tiling(q, k)
        grad = wide(grad)
        inner = jnp.sum(grad * result.out, axis=-1, keepdims=True)

        def rows_gradients(rows):
            queries, keys = rows

            def keys_gradients(dq, keys: KeyTile):
                def add_queries(dkv, tile):
                    queries, dq = tile
                    mask = attention_mask(queries.where, keys.where, self.window)
                    grads = Gradients(dq, *dkv)
                    grads = _if_any(mask, _add_gradients, grads, queries, keys, mask)
                    return (grads.k, grads.v), grads.q

                zeros = jnp.zeros_like(wide(keys.k)), jnp.zeros_like(wide(keys.v))
                dkv, dq = jax.lax.scan(add_queries, zeros, (queries, dq))
                return dq, dkv

            return jax.lax.scan(keys_gradients, jnp.zeros_like(wide(queries.q)), keys)

        where, where_k = tiling.cut_places(where, where_k)
        lse = tiling.cut_queries(result.lse[..., None])
        q, grad, inner = map(tiling.cut_queries, (q, grad, inner))
        queries = QueryGradientTile(q, grad, lse, inner, where)
        keys = KeyTile(tiling.cut_keys(k), tiling.cut_keys(v), where_k)
        dq, dkv = jax.lax.map(rows_gradients, (queries, keys))
        return Gradients(tiling.join_queries(dq), *map(tiling.join_keys, dkv))

    def _tiling(self, q: jax.Array, k: jax.Array) -> "Tiling":
        (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
        tile = self.tile or (2**20 if jax.default_backend() == "cpu" else 2**27)
        side = max(1, math.isqrt(tile // N))
        keys = min(S, side if N * T * S > tile else S)
        queries = min(T, max(1, tile // (N * keys)))
        most = max(1, tile // (N * queries * keys))
        rows = max(n for n in range(1, min(B, most) + 1) if B % n == 0)
        return Tiling(B, T, S, N, K, rows, queries, keys)


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How arrays are cut into tiles: `rows` at a time, then queries, then keys.

    Heads come before tokens in a tile: [rows, K, G, T, H] and [rows, K, S, H].
    """

    B: int
    T: int
    S: int
    N: int
    K: int
    rows: int
    n_queries: int
    n_keys: int

    def cut_queries(self, x: Float[Array, "B T N H"]) -> QueryTiles:
        """Tiles of queries, or of anything else that each query and head has."""
        x = _padded(x, self.n_queries)
        x = x.reshape(
            self.B // self.rows, self.rows, -1, self.n_queries,
            self.K, self.N // self.K, x.shape[-1],
        )  # fmt: skip
        return x.transpose(0, 2, 1, 4, 5, 3, 6)

    def join_queries(self, x: QueryTiles) -> Float[Array, "B T N H"]:
        """The inverse of `cut_queries`."""
        x = x.transpose(0, 2, 1, 5, 3, 4, 6).reshape(self.B, -1, self.N, x.shape[-1])
        return x[:, : self.T]

    def cut_keys(self, x: Float[Array, "B S K H"]) -> KeyTiles:
        """Tiles of keys or values."""
        x = _padded(x, self.n_keys)
        shape = self.B // self.rows, self.rows, -1, self.n_keys, self.K
        x = x.reshape(*shape, x.shape[-1])
        return x.transpose(0, 2, 1, 4, 3, 5)

    def join_keys(self, x: KeyTiles) -> Float[Array, "B S K H"]:
        """The inverse of `cut_keys`."""
        x = x.transpose(0, 2, 1, 4, 3, 5).reshape(self.B, -1, self.K, x.shape[-1])
        return x[:, : self.S]

    def cut_places(self, where: Places, where_k: Places) -> tuple[Places, Places]:
        """Places of queries and of keys, cut like them; the padding sees nothing."""

        def cut(x: jax.Array, size: int, fill: int) -> jax.Array:
            x = _padded(x, size, fill).reshape(self.B // self.rows, self.rows, -1, size)
            return x.transpose(0, 2, 1, 3)

        where = Places(
            cut(where.positions, self.n_queries, 0),
            cut(where.segments, self.n_queries, PADDED_QUERY),
        )
        where_k = Places(
            cut(where_k.positions, self.n_keys, 0),
            cut(where_k.segments, self.n_keys, PADDED_KEY),
        )
        return where, where_k


def attention_mask(
    where: Places, where_k: Places, window: int = 0
) -> Bool[Array, "B T S"]:
    """True where a query sees a key: not after it, in its document and its window."""
    query, key = where.positions[:, :, None], where_k.positions[:, None, :]
    same = where.segments[:, :, None] == where_k.segments[:, None, :]
    mask = same & (key <= query)
    return mask & (query - key < window) if window else mask


def _padded(x: jax.Array, size: int, value: int = 0) -> jax.Array:
    """The second axis filled up to a multiple of a size."""
    more = -x.shape[1] % size
    if not more:
        return x
    widths = [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, widths, constant_values=value)


def _if_any(mask: jax.Array, update: Callable, state: Any, *args: Any) -> Any:
    """update(state, *args), or the state itself where no query sees a key."""
    return jax.lax.cond(jnp.any(mask), lambda: update(state, *args), lambda: state)


def _scores(q: jax.Array, k: jax.Array, mask: jax.Array) -> jax.Array:
    """Scaled scores [rows, K, G, T, S]; -inf where a query does not see a key."""
    dtype = wide(q).dtype
    scores = jnp.einsum("bkgth,bksh->bkgts", q, k, preferred_element_type=dtype)
    scores = scores * q.shape[-1] ** -0.5
    return jnp.where(mask[:, None, None], scores, -jnp.inf)


def _attend_tile(
    running: Running, q: jax.Array, keys: KeyTile, mask: jax.Array
) -> Running:
    """The running softmax with one more tile of keys."""
    out, top, total = running
    scores = _scores(q, keys.k, mask)
    # Never below the lowest finite number, so that exp gives 0 for what is masked.
    new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
    exp_scores = jnp.exp(scores - new_top[..., None])
    scale = jnp.exp(top - new_top)
    more = jnp.einsum(
        "bkgts,bksh->bkgth", exp_scores.astype(keys.v.dtype), keys.v,
        preferred_element_type=out.dtype,
    )  # fmt: skip
    out = out * scale[..., None] + more
    return Running(out, new_top, total * scale + jnp.sum(exp_scores, axis=-1))


def _add_gradients(
    grads: Gradients, queries: QueryGradientTile, keys: KeyTile, mask: jax.Array
) -> Gradients:
    """The gradients with what one tile of scores adds."""
    (dq, dk, dv), (q, grad, lse, inner, _), (k, v, _) = grads, queries, keys
    dtype, scale = dq.dtype, q.shape[-1] ** -0.5
    weights = jnp.exp(_scores(q, k, mask) - lse)

    def product(spec, a, b):
        return jnp.einsum(spec, a, b, preferred_element_type=dtype)

    def key_product(tile, x):
        if tile.dtype != dtype:  # XLA for CPU cannot do the other one in bfloat16.
            return product("bkgts,bkgth->bksh", tile, x)
        # This order of operands transposes x, which is small, rather than the tile.
        return product("bkgth,bkgts->bkhs", x, tile).swapaxes(-1, -2)

    narrow = grad.astype(v.dtype)
    dv = dv + key_product(weights.astype(v.dtype), narrow)
    dscores = weights * (product("bkgth,bksh->bkgts", narrow, v) - inner)
    dscores = dscores.astype(q.dtype)
    dq = dq + product("bkgts,bksh->bkgth", dscores, k) * scale
    dk = dk + key_product(dscores, q) * scale
    return Gradients(dq, dk, dv)
