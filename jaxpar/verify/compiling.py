"""Compilation on background threads, while the next programs are being traced."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

_COMPILERS = ThreadPoolExecutor(4, thread_name_prefix="compiler")


class CompiledAhead:
    """A function of jax.jit that is compiled in the background, before it is called.

    jitted: what jax.jit returned. arguments: arrays, or their shapes and shardings.

    Only XLA's compiler runs on the threads: tracing needs the interpreter's lock. The
    calls must come from one thread, since two programs with collectives that run at
    the same time can wait for each other's devices forever.
    """

    def __init__(self, jitted: Any, *arguments: Any):
        self._compiled = _COMPILERS.submit(jitted.lower(*arguments).compile)

    def __call__(self, *arguments: Any) -> Any:
        return self._compiled.result()(*arguments)
