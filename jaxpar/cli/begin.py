"""What a verb does before its work: processes, signals, compiled programs, watchdog."""

import contextlib

from jaxpar.cli import options
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
    if wanted:
        import jax

        from jaxpar.cache import root

        jax.config.update("jax_compilation_cache_dir", str(root() / "compiled"))


def watched(asked: options.Train) -> contextlib.AbstractContextManager[None]:
    """A block that the watchdog watches as the flag says."""
    from jaxpar.guard import limits, watchdog

    return watchdog.watching(limits.parse(asked.watchdog))
