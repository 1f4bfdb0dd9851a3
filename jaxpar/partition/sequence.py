"""Attention kernels over the sequence axis: whole on every device."""

from collections.abc import Callable

import jax

from jaxpar.partition.place import local


def over_seq(kernel: Callable, q, k, v, where, where_k=None) -> jax.Array:
    """Runs kernel(q, k, v, where, where_k) -> out on each device's rows and heads.

    q [B, T, N, H]; k, v [B, S, K, H]; `where_k` are the places of the keys, those of
    the queries unless given (a cache, an encoder). The kernel sees one device's piece,
    so it may go through its rows one by one, which no partitioner could split.
    """
    queries = ("batch", "seq", "heads", "head_dim")
    keys = ("batch", "seq", "kv_heads", "head_dim")
    tokens = ("batch", "seq")
    kind = type(where)

    def piece(_, q, k, v, *places):
        return kernel(q, k, v, kind(*places[:2]), kind(*places[2:]))

    run = local(
        piece,
        in_axes=(queries, keys, keys, tokens, tokens, tokens, tokens),
        out_axes=queries,
        over="seq",
    )
    return run(q, k, v, *where, *(where if where_k is None else where_k))
