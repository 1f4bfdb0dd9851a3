"""Many processes as one program: starting them, and what they have to agree on.

Agreement goes through JAX's coordination service on process 0, never through a device:
it works before a backend starts, and cannot come between two steps that are running.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

# Counts, client and preemption manager have no public door that starts no backend.
from jax._src import distributed
from jax.experimental import multihost_utils

from jaxpar.errors import OtherProcessFailed, UserError, exit_status, one_line

# A process is taken for dead once it has not been heard of for so long.
HEARTBEAT_SECONDS = 100
# How long one that ends, well or not, waits for the others to end, too.
LEAVE_SECONDS = 30
# Preparing a corpus may take a day; a dead process ends every wait sooner.
WAIT_MS = 48 * 3600 * 1000
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
T = TypeVar("T")
_rounds = itertools.count()


def count() -> int:
    """How many processes there are; starts no backend."""
    return distributed.global_state.num_processes


def index() -> int:
    """Which of them this is; starts no backend."""
    return distributed.global_state.process_id


def is_first() -> bool:
    """Whether this process writes, locks and prints for all."""
    return index() == 0


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Makes this process one of many, where flags or the environment say so.

    Slurm, Open MPI, an indexed Kubernetes job and TPU pods are asked by JAX itself.
    Anywhere else all three have to be given, as arguments or as
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Comes before
    anything that starts a backend.

    Raises:
      UserError: what was given contradicts itself, or something is missing.
    """
    if distributed.global_state.client is not None:
        return
    given = _given(coordinator, num_processes, process_id)
    missing = [name for name, value in given.items() if value is None]
    found = _environment()
    if len(missing) == len(given) and not found:
        _perhaps_a_pod()
        return
    if missing and not found:
        raise UserError(
            "--coordinator, --num-processes and --process-id go together; "
            f"missing: {', '.join(missing)}, which no cluster's environment says."
        )
    address, n, i = given.values()
    _check(address, n, i)
    if n == 1:
        return
    try:
        _initialize(
            coordinator_address=address,
            num_processes=n,
            process_id=i,
            # With everything given, no environment is asked for the local devices.
            cluster_detection_method=None if missing else "deactivate",
        )
    except ValueError as error:
        raise UserError(
            f"{found or 'JAX'} does not say how the processes find each other "
            f"({error}); give --coordinator, --num-processes and --process-id."
        ) from error


def require_single_process(what: str, instead: str) -> None:
    """Refuses what only one process can do, where it was started as one of many."""
    if found := _environment() or (count() > 1 and "JAX"):
        raise UserError(
            f"{what} runs in one process, and {found} says that this is one of "
            f"several; start it once, without the launcher ({instead})."
        )


def require_same(**facts: Any) -> None:
    """Refuses to go on where a process was given something else than process 0."""
    if count() == 1:
        return
    theirs = broadcast(facts)
    with synchronized():
        for name, mine in facts.items():
            if mine != theirs[name]:
                raise UserError(
                    f"Another {name} ({mine}) than that of process 0 ({theirs[name]}); "
                    "every process needs the same command and data."
                )


def broadcast(value: T) -> T:
    """What process 0 has, in every process: JSON, floats to the last bit."""
    if count() == 1:
        return value
    client, key = _client(), f"jaxpar/{next(_rounds)}"
    if is_first():
        client.key_value_set(key, json.dumps(value))
    return json.loads(client.blocking_key_value_get(key, WAIT_MS))


@contextlib.contextmanager
def synchronized() -> Iterator[None]:
    """Every process waits here for all, and what fails in one fails in all."""
    if count() == 1:
        yield
        return
    failed = None
    try:
        yield
    except Exception as error:  # Whatever it is, the others must hear of it.
        failed = error
    client, here = _client(), f"jaxpar/{next(_rounds)}"
    if failed is not None:
        report = json.dumps([one_line(failed), exit_status(failed)])
        client.key_value_set(f"{here}/{index()}", report)
    client.wait_at_barrier(here, WAIT_MS)
    if failed is not None:
        raise failed
    for key, found in client.key_value_dir_get(here):
        message, status = json.loads(found)
        process = key.rpartition("/")[2]
        raise OtherProcessFailed(f"Process {process}: {message}", status)


def first_then_others(work: Callable[[], T]) -> T:
    """What `work` gives here; process 0 does it first, and the others find it done."""
    if count() == 1:
        return work()
    done = []
    for turn in (True, False):
        with synchronized():
            if turn == is_first():
                done.append(work())
    return done[0]


def print_once(*text: str, **where: Any) -> None:
    """Prints, on process 0 alone."""
    if is_first():
        print(*text, **where)


def leave(status: int) -> int:
    """The exit status of a process that failed; ends it at once if it failed alone.

    JAX would wait at exit for the others, who wait for this one in a step; and would
    then abort, and the status be lost.
    """
    if count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            _client().wait_at_barrier("jaxpar/leave", LEAVE_SECONDS * 1000)
        except Exception:  # The others are gone, whatever the client calls that.
            os._exit(status)
    return status


def share_signals(step: int) -> None:
    """From here on, SIGTERM in any process is a wish that all stop at the same step."""
    state = distributed.global_state
    if state.preemption_sync_manager is None:
        jax.config.update("jax_enable_preemption_service", True)
        state.initialize_preemption_sync_manager()
    stop_requested(step)


def stop_requested(step: int) -> bool:
    """Whether this is the step at which all processes stop, since a signal came.

    Every process asks after each of its steps. The answer is at hand without waiting,
    but for the moment in which the steps are compared: the latest plus one is taken.
    """
    return multihost_utils.reached_preemption_sync_point(step)


def _given(coordinator, num_processes, process_id) -> dict[str, Any]:
    """Flag to value: the argument, else JAX's variable of that meaning."""
    env = os.environ
    return {
        "--coordinator": coordinator or env.get("JAX_COORDINATOR_ADDRESS"),
        "--num-processes": _number(num_processes, "JAX_NUM_PROCESSES"),
        "--process-id": _number(process_id, "JAX_PROCESS_ID"),
    }


def _number(value: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    if value is not None or text is None:
        return value
    if not text.isdigit():
        raise UserError(f"{variable}={text} is no number.")
    return int(text)


def _check(address: str | None, n: int | None, i: int | None) -> None:
    if address is not None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise UserError(f"--coordinator {address}: it must be HOST:PORT.")
    if n is not None and n < 1:
        raise UserError(f"--num-processes {n} must be 1 or more.")
    if i is not None and (i < 0 or (n is not None and i >= n)):
        top = "" if n is None else f" to {n - 1}, since --num-processes is {n}"
        raise UserError(f"--process-id {i} is out of range; it runs from 0{top}.")


def _environment() -> str:
    """The environment of several processes that JAX can ask, or nothing."""
    env = os.environ
    if all(name in env for name in SLURM):
        return "Slurm" if env.get("SLURM_NTASKS", "1") != "1" else ""
    if "OMPI_MCA_orte_hnp_uri" in env:
        return "Open MPI" if env.get("OMPI_COMM_WORLD_SIZE", "1") != "1" else ""
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES", "")
    if "," in hosts:
        return "The TPU pod"
    # A pod of any other kind has no number of its own.
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return "Kubernetes"
    return ""


def _perhaps_a_pod() -> None:
    """On a TPU, JAX asks the machine's metadata whether it is one of several."""
    platforms = getattr(jax.config, "jax_platforms", None) or "tpu"
    seen = any(os.path.exists(path) for path in ("/dev/accel0", "/dev/vfio/0"))
    if seen and "tpu" in platforms and importlib.util.find_spec("libtpu"):
        # "coordinator_address should be defined": it is not.
        with contextlib.suppress(ValueError):
            _initialize()


def _initialize(**given: Any) -> None:
    # Its handler of SIGTERM would swallow the signal wherever no training heeds it.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=LEAVE_SECONDS,
        **given,
    )


def _client() -> Any:
    return distributed.global_state.client
