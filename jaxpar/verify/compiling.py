"""Programs compiled on threads of their own, while the next ones are being traced."""

from concurrent.futures import ThreadPoolExecutor

_COMPILERS = ThreadPoolExecutor(4, thread_name_prefix="compiler")


class CompiledAhead:
    """A jitted function, compiled for arguments like these before it is called.

    Tracing needs the interpreter's lock, XLA's compiler does not. Calls come from one
    thread: programs that wait for each other's devices must not run side by side.
    """

    def __init__(self, jitted, *arguments):
        self._compiled = _COMPILERS.submit(jitted.lower(*arguments).compile)

    def __call__(self, *arguments):
        return self._compiled.result()(*arguments)
