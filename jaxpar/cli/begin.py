"""What a verb does before its work: processes, signals, compiled programs, watchdog."""

import contextlib
import threading
from collections.abc import Iterator

from jaxpar.cli import options
from jaxpar.errors import UserError
from jaxpar.guard import stopping


def start_processes(asked: options.Many) -> None:
    """Joins the other processes of this run, if there are any, and shares stops."""
    from jaxpar.partition import cluster

    cluster.start(asked.coordinator, asked.num_processes, asked.process_id)
    if request := stopping.current():
        request.grace = getattr(asked, "grace", request.grace)
        if cluster.count() > 1:
            from jaxpar.guard.shared_stop import SharedStop

            SharedStop(request).start()


def use_compile_cache(wanted: bool) -> None:
    """Keeps compiled programs for the next command, if that is wanted."""
    import jax

    from jaxpar import cache

    # `main` turns the cache on, too, but for where JAX may not use one.
    jax.config.update("jax_enable_compilation_cache", wanted)
    if wanted:
        cache.keep_programs()


@contextlib.contextmanager
def begun(asked: options.Train) -> Iterator[None]:
    """A block that trains: watched, with its compile cache and the other processes."""
    from jaxpar.guard import limits, watchdog

    if not 0 <= asked.grace < threading.TIMEOUT_MAX:
        raise UserError(f"--grace {asked.grace}: it must be seconds, 0 or more.")
    with watchdog.watching(limits.parse(asked.watchdog)):
        use_compile_cache(asked.compile_cache)
        start_processes(asked)
        yield
