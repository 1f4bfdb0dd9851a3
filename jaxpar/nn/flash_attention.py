"""FlashAttention on one device: exact softmax attention, a tile of scores at a time."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxpar.nn.attention_kernel import Gradients, Partial
from jaxpar.nn.places import Places
from jaxpar.nn.score_bias import Bias
from jaxpar.nn.tiling import tiling_of
from jaxpar.partition.precision import wide


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
    soft_cap: float = 0.0
    """Scaled products s become soft_cap x tanh(s / soft_cap); 0: they stay."""
    bias: Bias | None = None
    """What is added to them then, by distance and head (jaxpar.nn.score_bias)."""

    def forward(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K H"],
        where: Places,
        where_k: Places,
        heads: Int[Array, "N"],
    ) -> Partial:
        """Attention over these keys; output and logsumexp are at least float32."""
        tiling = tiling_of(q, k, self.tile)
        attend = functools.partial(_attend_tile, self, heads)

        def attend_rows(rows):
            queries, keys = rows
            return jax.lax.map(lambda tile: attend_queries(tile, keys), queries)

        def attend_queries(queries: QueryTile, keys: KeyTile) -> Partial:
            def attend_keys(running: Running, keys: KeyTile):
                mask = attention_mask(queries.where, keys.where, self.window)
                return _if_any(mask, attend, running, queries, keys, mask), None

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
        heads: Int[Array, "N"],
        result: Partial,
        grad: Float[Array, "B T N H"],
    ) -> Gradients:
        """Gradients from these keys, at least float32; `result` is over all keys."""
        tiling = tiling_of(q, k, self.tile)
        add = functools.partial(_add_gradients, self, heads)
        grad = wide(grad)
        inner = jnp.sum(grad * result.out, axis=-1, keepdims=True)

        def rows_gradients(rows):
            queries, keys = rows

            def keys_gradients(dq, keys: KeyTile):
                def add_queries(dkv, tile):
                    queries, dq = tile
                    mask = attention_mask(queries.where, keys.where, self.window)
                    grads = Gradients(dq, *dkv)
                    grads = _if_any(mask, add, grads, queries, keys, mask)
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

    def products(self, q: jax.Array, k: jax.Array) -> jax.Array:
        """Scaled and capped products [rows, K, G, T, S] of a tile."""
        dtype = wide(q).dtype
        scores = jnp.einsum("bkgth,bksh->bkgts", q, k, preferred_element_type=dtype)
        scores = scores * q.shape[-1] ** -0.5
        if not self.soft_cap:
            return scores
        return self.soft_cap * jnp.tanh(scores / self.soft_cap)

    def scores(
        self,
        products: jax.Array,
        mask: jax.Array,
        where: Places,
        where_k: Places,
        heads: jax.Array,
    ) -> jax.Array:
        """Products with the bias; -inf where the mask hides a key from a query."""
        if self.bias is not None:
            distance = where.positions[:, :, None] - where_k.positions[:, None, :]
            distance = distance[:, None, None].astype(products.dtype)
            heads = heads.reshape(1, *products.shape[1:3], 1, 1)
            products = products + self.bias(distance, heads)
        return jnp.where(mask[:, None, None], products, -jnp.inf)


def attention_mask(
    where: Places, where_k: Places, window: int = 0
) -> Bool[Array, "B T S"]:
    """True where a query sees a key: not after it, in its document and its window."""
    query, key = where.positions[:, :, None], where_k.positions[:, None, :]
    same = where.segments[:, :, None] == where_k.segments[:, None, :]
    mask = same & (key <= query)
    return mask & (query - key < window) if window else mask


def _if_any(mask: jax.Array, update: Callable, state: Any, *args: Any) -> Any:
    """update(state, *args), or the state itself where no query sees a key."""
    return jax.lax.cond(jnp.any(mask), lambda: update(state, *args), lambda: state)


def _attend_tile(
    how: FlashAttention,
    heads: jax.Array,
    running: Running,
    queries: QueryTile,
    keys: KeyTile,
    mask: jax.Array,
) -> Running:
    """The running softmax with one more tile of keys."""
    out, top, total = running
    products = how.products(queries.q, keys.k)
    scores = how.scores(products, mask, queries.where, keys.where, heads)
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
    how: FlashAttention,
    heads: jax.Array,
    grads: Gradients,
    queries: QueryGradientTile,
    keys: KeyTile,
    mask: jax.Array,
) -> Gradients:
    """The gradients with what one tile of scores adds."""
    (dq, dk, dv), (q, grad, lse, inner, where), (k, v, where_k) = grads, queries, keys
    dtype, scale = dq.dtype, q.shape[-1] ** -0.5
    products = how.products(q, k)
    weights = jnp.exp(how.scores(products, mask, where, where_k, heads) - lse)

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
    if how.soft_cap:
        dscores = dscores * (1 - jnp.square(products / how.soft_cap))
    dscores = dscores.astype(q.dtype)
    dq = dq + product("bkgts,bksh->bkgth", dscores, k) * scale
    dk = dk + key_product(dscores, q) * scale
    return Gradients(dq, dk, dv)
