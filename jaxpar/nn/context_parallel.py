"""Attention kernels over the sequence axis: whole, gathered, in a ring, all-to-all."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxpar.errors import UserError
from jaxpar.partition.notes import note
from jaxpar.partition.sharding import Collectives, current_context, local

QUERIES = ("batch", "seq", "heads", "head_dim")
KEYS = ("batch", "seq", "kv_heads", "head_dim")
TOKENS = ("batch", "seq")


class Partial(NamedTuple):
    """Attention over some of the keys: out [B, T, N, H] is normalised over them.

    lse [B, T, N] is the logarithm of the sum of the exponentials of the scores, from
    which pieces are put together; the lowest number where a query sees none of them.
    """

    out: jax.Array
    lse: jax.Array


class Kernel(Protocol):
    """Attention over some of the keys, on one device: see nn.kernel.Tiled."""

    def forward(self, q, k, v, where, where_k) -> Partial:
        """What these keys give, in no less than single precision."""
        ...

    def backward(self, q, k, v, where, where_k, found: Partial, grad) -> tuple:
        """Wide (dq, dk, dv) of these keys, given what was found over all keys."""
        ...


def over_seq(kernel: Kernel, q, k, v, where, where_k=None) -> jax.Array:
    """Runs a one-device kernel over the sequence, as the layout says.

    q [B, T, N, H]; k, v [B, S, K, H]; `where_k` are the places of the keys, those of
    the queries unless given (a cache, an encoder). The kernel sees one device's rows
    and heads. Of a split sequence it sees this device's queries, and all keys at once
    (context), or one device's keys after another's (ring: Liu et al., 2023), or all of
    the sequence and a part of the heads (ulysses: Jacobs et al., 2023).

    Raises:
      UserError: ulysses cannot divide the heads.
    """
    layout = current_context().layout
    form = layout.attention if layout else ""
    if form == "ulysses":
        _check_heads(layout, q.shape[2], k.shape[2])
    run = FORMS[form](kernel, type(where))

    def piece(seq: Collectives, q, k, v, *places):
        return run(seq, q, k, v, *places).astype(v.dtype)

    whole = local(
        piece,
        in_axes=(QUERIES, KEYS, KEYS, *(TOKENS,) * 4),
        out_axes=QUERIES,
        over="seq",
    )
    return whole(q, k, v, *where, *(where if where_k is None else where_k))


def _check_heads(layout, *heads: int) -> None:
    ways = layout.sizes["context"] * layout.sizes.get("tensor", 1)
    for n in heads:
        if n % ways:
            below = n - n % ways
            near = f"numbers are {below} and {below + ways}" if below else f"is {ways}"
            raise UserError(
                f"Layout {layout.spelling}: ulysses splits heads, and {n} heads are "
                f"not divisible by {ways}; the nearest legal {near}. ring and context "
                "split no heads."
            )


def _whole(kernel: Kernel, kind: type) -> Callable:
    """One device has all keys; places are two of the queries, two of the keys."""

    @jax.custom_vjp
    def run(q, k, v, *places):
        return forward(q, k, v, *places)[0]

    def forward(q, k, v, *places):
        found = kernel.forward(q, k, v, kind(*places[:2]), kind(*places[2:]))
        found = _named(found)
        return found.out, (q, k, v, places, found)

    def backward(kept, grad):
        q, k, v, places, found = kept
        at, at_k = kind(*places[:2]), kind(*places[2:])
        grads = kernel.backward(q, k, v, at, at_k, found, grad)
        return (*_like(grads, (q, k, v)), None, None, None, None)

    run.defvjp(forward, backward)
    return lambda _, *args: run(*args)


def _gathered(kernel: Kernel, kind: type) -> Callable:
    """Every device gets all keys; their gradients go back, and are summed."""
    run = _whole(kernel, kind)

    def piece(seq: Collectives, q, k, v, *places):
        k, v = (seq.all_gather(x, axis=1) for x in (k, v))
        where_k = (seq.all_gather(x, axis=1) for x in places[2:])
        return run(seq, q, k, v, *places[:2], *where_k)

    return piece


def _all_to_all(kernel: Kernel, kind: type) -> Callable:
    """Heads are split instead of the sequence, and back."""
    run = _whole(kernel, kind)

    def piece(seq: Collectives, q, k, v, *places):
        q, k, v = (seq.all_to_all(x, split=2, join=1) for x in (q, k, v))
        places = [seq.all_gather(x, axis=1) for x in places]
        out = run(seq, q, k, v, *places)
        return seq.all_to_all(out, split=1, join=2)

    return piece


def _ring(kernel: Kernel, kind: type) -> Callable:
    """Keys go round; each device adds up what its queries find in them.

    Backward they go round again, and their gradients with them, one turn more, so that
    these end where the keys began.
    """

    def piece(seq: Collectives, *args):
        @jax.custom_vjp
        def run(q, k, v, *places):
            return forward(q, k, v, *places)[0]

        def forward(q, k, v, *places):
            at = kind(*places[:2])

            def look(keys):
                k, v, *where_k = keys
                return kernel.forward(q, k, v, at, kind(*where_k))

            def turn(carry, _):
                keys, found = carry
                keys = seq.permute(keys)
                return (keys, _merged(found, look(keys))), None

            keys = (k, v, *places[2:])
            (_, found), _ = jax.lax.scan(turn, (keys, look(keys)), length=seq.size - 1)
            found = _named(found)
            return found.out, (q, k, v, places, found)

        def backward(kept, grad):
            q, k, v, places, found = kept
            at = kind(*places[:2])

            def look(keys):
                k, v, *where_k = keys
                return kernel.backward(q, k, v, at, kind(*where_k), found, grad)

            def turn(carry, _):
                keys, dq, dkv = carry
                keys, dkv = seq.permute((keys, dkv))
                more, *others = look(keys)
                return (keys, dq + more, jax.tree.map(jnp.add, dkv, others)), None

            keys = (k, v, *places[2:])
            dq, *dkv = look(keys)
            (_, dq, dkv), _ = jax.lax.scan(turn, (keys, dq, dkv), length=seq.size - 1)
            grads = dq, *seq.permute(dkv)
            return (*_like(grads, (q, k, v)), None, None, None, None)

        run.defvjp(forward, backward)
        return run(*args)

    return piece


def _merged(one: Partial, two: Partial) -> Partial:
    """What the keys of both give together."""
    lse = jnp.logaddexp(one.lse, two.lse)
    shares = [jnp.exp(part.lse - lse)[..., None] for part in (one, two)]
    return Partial(shares[0] * one.out + shares[1] * two.out, lse)


def _named(found: Partial) -> Partial:
    """What attention's gradient needs, under a name that rematerialisation can keep."""
    return Partial(*(note("attn/found", x) for x in found))


def _like(grads, values) -> tuple:
    return tuple(g.astype(x.dtype) for g, x in zip(grads, values, strict=True))


FORMS = {"": _whole, "context": _gathered, "ring": _ring, "ulysses": _all_to_all}
