"""Multi-host: several processes as one SPMD program, and what they agree on.

Agreement goes through JAX's coordination service on process 0, never through a device:
so it works before a backend starts, and adds no collective between training steps.
"""

import contextlib
import functools
import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, TypeVar

import jax

# JAX's public functions for these would start a backend.
from jax._src import distributed

from jaxpar.errors import OtherProcessFailed, UserError, exit_status, one_line
from jaxpar.partition import launchers, waiting
from jaxpar.tables import for_messages

HEARTBEAT_SECONDS = 100
"""A process counts as dead once it has sent no heartbeat for this long."""
LEAVE_SECONDS = 30
"""How long a process that ends, successfully or not, waits for the others to end."""
# Preparing a corpus may take a day; the death of a process ends every wait sooner.
WAIT_MS = 48 * 3600 * 1000
T = TypeVar("T")
_rounds, _keys = itertools.count(), itertools.count()


def count() -> int:
    """The number of processes; does not start a backend."""
    return distributed.global_state.num_processes


def index() -> int:
    """The number of this process, from 0; does not start a backend."""
    return distributed.global_state.process_id


def is_first() -> bool:
    """Whether this is process 0, which writes files, takes locks and prints for all."""
    return index() == 0


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Makes this process one of several, where flags or the environment say so.

    JAX itself recognises Slurm, Open MPI, indexed Kubernetes jobs and TPU pods.
    Anywhere else all three values have to be set, as arguments or as
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Must be called
    before anything that starts a backend.

    Raises:
      UserError: the values contradict each other, or one of them is missing.
    """
    if distributed.global_state.client is not None:
        return
    flags = launchers.flag_values(coordinator, num_processes, process_id)
    missing = [flag for flag, value in flags.items() if value is None]
    launcher = launchers.detected()
    if len(missing) == len(flags) and not launcher:
        _initialize_on_tpu_pod()
        return
    if missing and not launcher:
        raise UserError(
            "--coordinator, --num-processes and --process-id must be set together; "
            f"missing: {', '.join(missing)}, and no launcher's environment sets it."
        )
    address, n, i = flags.values()
    launchers.check(address, n, i)
    if n == 1:
        return
    try:
        _initialize(
            coordinator_address=address,
            num_processes=n,
            process_id=i,
            # With all three set, JAX must not ask an environment for local devices.
            cluster_detection_method=None if missing else "deactivate",
        )
    except ValueError as error:
        raise UserError(
            f"{launcher or 'JAX'} does not say how the processes find each other "
            f"({error}); set --coordinator, --num-processes and --process-id."
        ) from error


def require_single_process(what: str, instead: str) -> None:
    """Refuses a command (`what`) that needs a single process, where there are several.

    instead: what the message recommends for several processes.
    """
    if launcher := launchers.detected() or (count() > 1 and "JAX"):
        raise UserError(
            f"{what} runs in one process, and {launcher} says that this is one of "
            f"several; start it once, without the launcher ({instead})."
        )


def require_same(**facts: Any) -> None:
    """Stops all processes where one has other values than process 0.

    facts: values that JSON can hold, by the names that an error message gives them.

    Raises:
      UserError: this process has another value than process 0.
      OtherProcessFailed: another process has.
    """
    if count() == 1:
        return
    expected = broadcast(facts)
    with synchronized():
        for name, value in facts.items():
            if value != expected[name]:
                raise UserError(
                    f"The {name} here ({value}) differs from that of process 0 "
                    f"({expected[name]}); every process needs the same command and "
                    "data."
                )


def broadcast(value: T) -> T:
    """Process 0's value, in every process; sent as JSON, which keeps floats exactly."""
    if count() == 1:
        return value
    client, key = _client(), f"jaxpar/{next(_rounds)}"
    if is_first():
        client.key_value_set(key, json.dumps(value))
    with _waiting(key):
        return json.loads(client.blocking_key_value_get(key, WAIT_MS))


def gather(value: Any) -> list[Any]:
    """What every process has, in their order, in every process; sent as JSON.

    Process 0 reads each value once and the others its list, so that a thousand
    processes send thousands of messages, not a million. What was sent is deleted, so
    that it may be called at every save.
    """
    if count() == 1:
        return [value]
    client, key = _client(), f"jaxpar/{next(_rounds)}"
    client.key_value_set(f"{key}/{index()}", json.dumps(value))
    with _waiting(key):
        if is_first():
            keys = [f"{key}/{i}" for i in range(count())]
            texts = [client.blocking_key_value_get(each, WAIT_MS) for each in keys]
            client.key_value_set(f"{key}/all", f"[{','.join(texts)}]")
        everything = client.blocking_key_value_get(f"{key}/all", WAIT_MS)
    client.wait_at_barrier(f"{key}/read", WAIT_MS)
    if is_first():
        client.key_value_delete(f"{key}/")
    return json.loads(everything)


@contextlib.contextmanager
def synchronized() -> Iterator[None]:
    """A block that all processes leave together: an error in one is raised in all.

    Raises:
      OtherProcessFailed: the block failed in another process.
    """
    if count() == 1:
        yield
        return
    failure = None
    try:
        yield
    except Exception as error:  # Whatever it is, the other processes must learn of it.
        failure = error
    client, barrier = _client(), f"jaxpar/{next(_rounds)}"
    if failure is not None:
        report = json.dumps([one_line(failure), exit_status(failure)])
        client.key_value_set(f"{barrier}/{index()}", report)
    with _waiting(barrier):
        client.wait_at_barrier(barrier, WAIT_MS)
    if failure is not None:
        raise failure
    for key, report in client.key_value_dir_get(barrier):
        message, status = json.loads(report)
        process = key.rpartition("/")[2]
        raise OtherProcessFailed(f"Process {process}: {message}", status)


def print_once(*text: str, **options: Any) -> None:
    """Prints on process 0 only; takes what `print` takes."""
    if is_first():
        if options.get("file") is sys.stderr:
            options["file"] = for_messages()
        # In a file that gets both streams, lines stand in their order.
        print(*text, **{"flush": True, **options})


def leave(status: int) -> int:
    """Returns the exit status if all processes end; else ends this one immediately.

    At exit, JAX would wait for the other processes, which wait for this one in a
    collective, and would then abort, which loses the exit status.
    """
    if count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            _client().wait_at_barrier("jaxpar/leave", LEAVE_SECONDS * 1000)
        except Exception:  # Its class varies: the others did not end, or died.
            os._exit(status)
    return status


def shared_key(name: str) -> str:
    """A new key below which processes `post`; the n-th call is the same in all."""
    return f"jaxpar/{name}/{next(_keys)}"


def post(key: str, value: Any) -> None:
    """Makes a value, which JSON can hold, visible to every process; waits for none."""
    _client().key_value_set(key, json.dumps(value), allow_overwrite=True)


def look(key: str) -> Any:
    """What a process has posted; None where none has yet. Waits for none."""
    try:
        return json.loads(_client().key_value_try_get(key))
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" in str(error):
            return None
        raise


def _initialize_on_tpu_pod() -> None:
    """On a TPU, lets JAX ask the machine's metadata whether it is one of several."""
    platforms = getattr(jax.config, "jax_platforms", None) or "tpu"
    has_tpu = "tpu" in platforms and launchers.has_tpu()
    if has_tpu and importlib.util.find_spec("libtpu"):
        # On a single machine: "coordinator_address should be defined".
        with contextlib.suppress(ValueError):
            _initialize()


def _initialize(**options: Any) -> None:
    # Its handler of SIGTERM would take the place of jaxpar's: guard/stopping.py.
    jax.config.update("jax_enable_preemption_service", False)
    state = distributed.global_state
    greetings = waiting.Greetings(
        lambda: (state.coordinator_address, state.num_processes, state.process_id)
    )
    with waiting.said(greetings.exchange, greetings.whom):
        jax.distributed.initialize(
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=LEAVE_SECONDS,
            **options,
        )


def _waiting(key: str) -> contextlib.AbstractContextManager[None]:
    """A block that waits for others at a key: the first that waits says for whom."""
    client, prefix = _client(), f"jaxpar/waiting/{key}/"

    @functools.cache
    def arrive() -> None:
        client.key_value_set(f"{prefix}{index()}", "1")

    def whom() -> str:
        keys = [each for each, _ in client.key_value_dir_get(prefix)]
        here = {int(each.rpartition("/")[2]) for each in keys}
        gone = waiting.missing(count(), here)
        says = gone and min(here) == index()
        return f"Process {index()} waits for process {gone}." if says else ""

    return waiting.said(arrive, whom)


def _client() -> Any:
    return distributed.global_state.client
