"""Attention over a sequence that several devices share: gathered, ring, all-to-all."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpar.errors import UserError
from jaxpar.nn.attention_kernel import Gradients, Kernel, Partial
from jaxpar.nn.places import Places
from jaxpar.partition.collectives import Collectives, local
from jaxpar.partition.layout import Layout
from jaxpar.partition.notes import note
from jaxpar.partition.sharding import current_context

QUERIES = ("batch", "seq", "heads", "head_dim")
KEYS = ("batch", "seq", "kv_heads", "head_dim")
TOKENS = ("batch", "seq")


class KeyBlock(NamedTuple):
    """One device's keys and values [B, S, K, H], with their places."""

    k: jax.Array
    v: jax.Array
    where: Places


Attend = Callable[..., jax.Array]
"""(collectives, q, k, v, where, where_k, heads) -> out, on each device's own pieces."""


def over_seq(
    kernel: Kernel,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    where: Places,
    where_k: Places | None = None,
) -> Float[Array, "B T N H"]:
    """Runs a one-device kernel over the sequence, as the layout says.

    `where_k` are the places of the keys; without it (no cache, no encoder) they are
    those of the queries. The kernel runs on one device's rows and heads. Where the
    sequence is split, it runs on the device's own queries and on all keys at once
    (context), or on one device's keys after another's (ring: Liu et al., 2023), or on
    the whole sequence and a part of the heads (ulysses: Jacobs et al., 2023).

    Raises:
      UserError: ulysses cannot divide the heads.
    """
    layout = current_context().layout
    form = layout.attention if layout else ""
    if layout is not None and form == "ulysses":
        _check_heads(layout, q.shape[2], k.shape[2])
    attend = FORMS[form](kernel)

    def piece(seq: Collectives, q, k, v, *others):
        return attend(seq, q, k, v, *others).astype(v.dtype)

    whole = local(
        piece,
        in_axes=(QUERIES, KEYS, KEYS, TOKENS, TOKENS, ("heads",)),
        out_axes=QUERIES,
        over="seq",
    )
    where_k = where if where_k is None else where_k
    return whole(q, k, v, where, where_k, jnp.arange(q.shape[2]))


def _check_heads(layout: Layout, *n_heads: int) -> None:
    ways = layout.sizes["context"] * layout.sizes.get("tensor", 1)
    for n in n_heads:
        if n % ways:
            below = n - n % ways
            near = f"numbers are {below} and {below + ways}" if below else f"is {ways}"
            raise UserError(
                f"Layout {layout.spelling}: ulysses splits heads, and {n} heads are "
                f"not divisible by {ways}; the nearest legal {near}. ring and context "
                "split no heads."
            )


def _whole(kernel: Kernel) -> Attend:
    """One device has all keys."""

    @jax.custom_vjp
    def run(*args):
        return forward(*args)[0]

    def forward(*args):
        result = _noted(kernel.forward(*args))
        return result.out, (args, result)

    def backward(residuals, grad):
        args, result = residuals
        grads = kernel.backward(*args, result=result, grad=grad)
        return (*_cast_like(grads, args[:3]), None, None, None)

    run.defvjp(forward, backward)
    return lambda _, *args: run(*args)


def _gathered(kernel: Kernel) -> Attend:
    """Every device gathers all keys; their gradients are reduce-scattered."""
    run = _whole(kernel)

    def piece(seq: Collectives, q, k, v, where, where_k, heads):
        k, v = (seq.all_gather(x, axis=1) for x in (k, v))
        return run(seq, q, k, v, where, _gathered_places(seq, where_k), heads)

    return piece


def _all_to_all(kernel: Kernel) -> Attend:
    """An all-to-all splits heads instead of the sequence; another one undoes it."""
    run = _whole(kernel)

    def piece(seq: Collectives, q, k, v, where, where_k, heads):
        q, k, v = (seq.all_to_all(x, split=2, join=1) for x in (q, k, v))
        n = q.shape[2]
        heads = jax.lax.dynamic_slice_in_dim(heads, seq.index() * n, n)
        where = _gathered_places(seq, where)
        where_k = _gathered_places(seq, where_k)
        out = run(seq, q, k, v, where, where_k, heads).astype(v.dtype)
        return seq.all_to_all(out, split=1, join=2)

    return piece


def _ring(kernel: Kernel) -> Attend:
    """Blocks of keys pass from device to device; each merges what they contribute.

    In the backward pass they do so again, with their gradients, which take one step
    more, so that they end on the device that owns the keys.
    """

    def piece(seq: Collectives, *args):
        @jax.custom_vjp
        def run(*args):
            return forward(*args)[0]

        def forward(q, k, v, where, where_k, heads):
            def attend(block: KeyBlock) -> Partial:
                return kernel.forward(q, block.k, block.v, where, block.where, heads)

            def next_block(carry, _):
                block, result = carry
                block = seq.permute(block)
                return (block, _merged(result, attend(block))), None

            block = KeyBlock(k, v, where_k)
            first = (block, attend(block))
            (_, result), _ = jax.lax.scan(next_block, first, length=seq.size - 1)
            result = _noted(result)
            return result.out, (q, k, v, where, where_k, heads, result)

        def backward(residuals, grad):
            q, k, v, where, where_k, heads, result = residuals

            def gradients(block: KeyBlock) -> Gradients:
                return kernel.backward(
                    q, block.k, block.v, where, block.where, heads, result, grad
                )

            def next_block(carry, _):
                block, grads = carry
                block, (dk, dv) = seq.permute((block, (grads.k, grads.v)))
                more = gradients(block)
                return (
                    block,
                    Gradients(grads.q + more.q, dk + more.k, dv + more.v),
                ), None

            block = KeyBlock(k, v, where_k)
            first = (block, gradients(block))
            (_, grads), _ = jax.lax.scan(next_block, first, length=seq.size - 1)
            dk, dv = seq.permute((grads.k, grads.v))
            return (*_cast_like((grads.q, dk, dv), (q, k, v)), None, None, None)

        run.defvjp(forward, backward)
        return run(*args)

    return piece


def _gathered_places(seq: Collectives, where: Places) -> Places:
    return Places(*(seq.all_gather(x, axis=1) for x in where))


def _merged(one: Partial, two: Partial) -> Partial:
    """Attention over the keys of both."""
    lse = jnp.logaddexp(one.lse, two.lse)
    weights = [jnp.exp(part.lse - lse)[..., None] for part in (one, two)]
    return Partial(weights[0] * one.out + weights[1] * two.out, lse)


def _noted(result: Partial) -> Partial:
    """The residuals of attention, named for rematerialisation policies."""
    return Partial(*(note("attn/found", x) for x in result))


def _cast_like(grads, values) -> tuple:
    return tuple(g.astype(x.dtype) for g, x in zip(grads, values, strict=True))


FORMS = {"": _whole, "context": _gathered, "ring": _ring, "ulysses": _all_to_all}
