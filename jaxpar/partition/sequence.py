"""Attention kernels over the sequence axis: whole on every device."""

from collections.abc import Callable

import jax

from jaxpar.partition.place import constrain


def over_seq(kernel: Callable, q, k, v, where, where_k=None) -> jax.Array:
    """Runs kernel(q, k, v, where, where_k) -> out, as the layout splits `seq`.

    q [B, T, N, H]; k, v [B, S, K, H]; `where_k` are the places of the keys, those of
    the queries unless given (a cache, an encoder).
    """
    q = constrain(q, "batch", "seq", "heads", "head_dim")
    k = constrain(k, "batch", "seq", "kv_heads", "head_dim")
    v = constrain(v, "batch", "seq", "kv_heads", "head_dim")
    out = kernel(q, k, v, where, where if where_k is None else where_k)
    return constrain(out, "batch", "seq", "heads", "head_dim")
