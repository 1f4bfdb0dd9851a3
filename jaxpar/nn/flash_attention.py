"""Softmax attention on one device, a tile of its scores at a time."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxpar.nn.context_parallel import Partial
from jaxpar.nn.places import Places
from jaxpar.partition.precision import wide

# A query with this segment sees nothing, not even what fills up the keys.
BLIND = -2


@dataclasses.dataclass(frozen=True)
class FlashAttention:
    """Softmax attention in tiles, exact in float64 (Dao et al., 2022, algorithms 1, 4).

    At most `tile` scores exist at once; 0 is 2**20 on a CPU, whose cache holds them,
    and 2**27 elsewhere. Tiles in which no query sees a key are passed over. Sums are
    never narrower than single precision.
    """

    window: int = 0
    tile: int = 0

    def forward(self, q, k, v, where: Places, where_k: Places) -> Partial:
        """q [B, T, N, H] over k, v [B, S, K, H]; both results wide."""
        cut = self._cut(q, k)

        def of_rows(rows):
            queries, keys = rows
            return jax.lax.map(lambda part: of_queries(part, keys), queries)

        def of_queries(queries, keys):
            q, at = queries

            def look(found, part):
                k, v, at_k = part
                seen = attention_mask(at, at_k, self.window)
                return _when_any(seen, _look, found, q, k, v, seen), None

            shape = q.shape[:-1]
            kind = wide(q).dtype
            nothing = (
                jnp.zeros((*shape, v.shape[-1]), kind),
                jnp.full(shape, jnp.finfo(kind).min, kind),
                jnp.zeros(shape, kind),
            )
            (out, top, total), _ = jax.lax.scan(look, nothing, keys)
            some = total > 0
            total = jnp.where(some, total, 1)
            lse = jnp.where(some, top + jnp.log(total), jnp.finfo(kind).min)
            return out / total[..., None], lse

        at, at_k = cut.places(where, where_k)
        queries, keys = (cut.queries(q), at), (cut.keys(k), cut.keys(v), at_k)
        out, lse = jax.lax.map(of_rows, (queries, keys))
        return Partial(
            cut.whole_queries(out), cut.whole_queries(lse[..., None])[..., 0]
        )

    def backward(self, q, k, v, where, where_k, found: Partial, grad):
        """The wide gradients (dq, dk, dv) of these keys' share, found over all keys."""
        cut = self._cut(q, k)
        grad = wide(grad)
        inner = jnp.sum(grad * found.out, axis=-1, keepdims=True)

        def of_rows(rows):
            queries, keys = rows

            def of_keys(dq, keys):
                def look(dkv, part):
                    *queries, dq = part
                    seen = attention_mask(queries[-1], keys[-1], self.window)
                    given = (dq, *dkv)
                    dq, *dkv = _when_any(seen, _look_back, given, queries, keys, seen)
                    return tuple(dkv), dq

                nothing = tuple(jnp.zeros_like(wide(x)) for x in keys[:2])
                dkv, dq = jax.lax.scan(look, nothing, (*queries, dq))
                return dq, dkv

            return jax.lax.scan(of_keys, jnp.zeros_like(wide(queries[0])), keys)

        at, at_k = cut.places(where, where_k)
        lse = cut.queries(found.lse[..., None])
        queries = (*map(cut.queries, (q, grad)), lse, cut.queries(inner), at)
        keys = (cut.keys(k), cut.keys(v), at_k)
        dq, (dk, dv) = jax.lax.map(of_rows, (queries, keys))
        return cut.whole_queries(dq), cut.whole_keys(dk), cut.whole_keys(dv)

    def _cut(self, q, k) -> "Tiling":
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
    """How arrays are cut: rows at a time, then queries, then keys.

    Heads stand before tokens in a tile: [rows, K, G, T, H] and [rows, K, S, H].
    """

    B: int
    T: int
    S: int
    N: int
    K: int
    rows: int
    n_queries: int
    n_keys: int

    def queries(self, x: jax.Array) -> jax.Array:
        """[B, T, N, H] as [rows, queries] tiles."""
        x = _filled(x, self.n_queries)
        x = x.reshape(
            self.B // self.rows, self.rows, -1, self.n_queries,
            self.K, self.N // self.K, x.shape[-1],
        )  # fmt: skip
        return x.transpose(0, 2, 1, 4, 5, 3, 6)

    def whole_queries(self, x: jax.Array) -> jax.Array:
        x = x.transpose(0, 2, 1, 5, 3, 4, 6).reshape(self.B, -1, self.N, x.shape[-1])
        return x[:, : self.T]

    def keys(self, x: jax.Array) -> jax.Array:
        """[B, S, K, H] as [rows, keys] tiles."""
        x = _filled(x, self.n_keys)
        x = x.reshape(
            self.B // self.rows, self.rows, -1, self.n_keys, self.K, x.shape[-1]
        )
        return x.transpose(0, 2, 1, 4, 3, 5)

    def whole_keys(self, x: jax.Array) -> jax.Array:
        x = x.transpose(0, 2, 1, 4, 3, 5).reshape(self.B, -1, self.K, x.shape[-1])
        return x[:, : self.S]

    def places(self, where: Places, where_k: Places) -> tuple[Places, Places]:
        """Those of queries and keys, cut alike; what fills them up sees nothing."""

        def cut(places: Places, size: int, empty: int) -> Places:
            return Places(
                *(
                    _filled(x, size, fill)
                    .reshape(self.B // self.rows, self.rows, -1, size)
                    .transpose(0, 2, 1, 3)
                    for x, fill in zip(places, (0, empty), strict=True)
                )
            )

        return cut(where, self.n_queries, BLIND), cut(where_k, self.n_keys, BLIND - 1)


def attention_mask(where: Places, where_k: Places, window: int = 0) -> jax.Array:
    """True [B, T, S] where a query may look: not ahead, in its own document."""
    query, key = where.positions[:, :, None], where_k.positions[:, None, :]
    same = where.segments[:, :, None] == where_k.segments[:, None, :]
    seen = same & (key <= query)
    return seen & (query - key < window) if window else seen


def _filled(x: jax.Array, size: int, value=0) -> jax.Array:
    """The second axis filled up to a multiple of a size."""
    more = -x.shape[1] % size
    if not more:
        return x
    return jnp.pad(
        x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2), constant_values=value
    )


def _when_any(seen: jax.Array, f, given, *args):
    """f(given, *args), or `given` as it is where no query of the tile sees a key."""
    return jax.lax.cond(jnp.any(seen), lambda: f(given, *args), lambda: given)


def _scores(q, k, seen) -> jax.Array:
    """[rows, K, G, T, S]; -inf where a query may not look."""
    scores = jnp.einsum(
        "bkgth,bksh->bkgts", q, k, preferred_element_type=wide(q).dtype
    ) * _scale(q)
    return jnp.where(seen[:, None, None], scores, -jnp.inf)


def _scale(q) -> float:
    return q.shape[-1] ** -0.5


def _look(found, q, k, v, seen):
    """The running (out, highest score, total) with one more tile of keys."""
    out, top, total = found
    scores = _scores(q, k, seen)
    # Never below the lowest number, so that what is not seen has a share of 0.
    new = jnp.maximum(top, jnp.max(scores, axis=-1))
    share = jnp.exp(scores - new[..., None])
    scale = jnp.exp(top - new)
    more = jnp.einsum(
        "bkgts,bksh->bkgth", share.astype(v.dtype), v,
        preferred_element_type=out.dtype,
    )  # fmt: skip
    return (
        out * scale[..., None] + more,
        new,
        total * scale + jnp.sum(share, axis=-1),
    )


def _look_back(given, queries, keys, seen):
    """(dq, dk, dv) with what one tile adds."""
    (dq, dk, dv), (q, grad, lse, inner, _), (k, v, _) = given, queries, keys
    kind = dq.dtype
    share = jnp.exp(_scores(q, k, seen) - lse)

    def product(spec, a, b):
        return jnp.einsum(spec, a, b, preferred_element_type=kind)

    def of_keys(tile, x):
        if tile.dtype != kind:  # XLA for CPU cannot do the other one in bfloat16.
            return product("bkgts,bkgth->bksh", tile, x)
        # This order of operands transposes x, which is small, rather than the tile.
        return product("bkgth,bkgts->bkhs", x, tile).swapaxes(-1, -2)

    narrow = grad.astype(v.dtype)
    dv = dv + of_keys(share.astype(v.dtype), narrow)
    change = share * (product("bkgth,bksh->bkgts", narrow, v) - inner)
    change = change.astype(q.dtype)
    dq = dq + product("bkgts,bksh->bkgth", change, k) * _scale(q)
    dk = dk + of_keys(change, q) * _scale(q)
    return dq, dk, dv
