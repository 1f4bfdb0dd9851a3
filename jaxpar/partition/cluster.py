"""Multi-host: several processes as one SPMD program, and what they agree on.

Agreement goes through JAX's coordination service on process 0, never through a device:
so it works before a backend starts, and adds no collective between training steps.
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

# JAX's public functions for these would start a backend.
from jax._src import distributed
from jax.experimental import multihost_utils

from jaxpar.errors import OtherProcessFailed, UserError, exit_status, one_line

HEARTBEAT_SECONDS = 100
"""A process counts as dead once it has sent no heartbeat for this long."""
LEAVE_SECONDS = 30
"""How long a process that ends, successfully or not, waits for the others to end."""
# Preparing a corpus may take a day; the death of a process ends every wait sooner.
WAIT_MS = 48 * 3600 * 1000
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
T = TypeVar("T")
_rounds = itertools.count()


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
    flags = _flags(coordinator, num_processes, process_id)
    missing = [flag for flag, value in flags.items() if value is None]
    launcher = _launcher()
    if len(missing) == len(flags) and not launcher:
        _initialize_on_tpu_pod()
        return
    if missing and not launcher:
        raise UserError(
            "--coordinator, --num-processes and --process-id must be set together; "
            f"missing: {', '.join(missing)}, and no launcher's environment sets it."
        )
    address, n, i = flags.values()
    _check(address, n, i)
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
    if launcher := _launcher() or (count() > 1 and "JAX"):
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
    return json.loads(client.blocking_key_value_get(key, WAIT_MS))


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
    client.wait_at_barrier(barrier, WAIT_MS)
    if failure is not None:
        raise failure
    for key, report in client.key_value_dir_get(barrier):
        message, status = json.loads(report)
        process = key.rpartition("/")[2]
        raise OtherProcessFailed(f"Process {process}: {message}", status)


def first_then_others(work: Callable[[], T]) -> T:
    """The result of `work`, which process 0 finishes before the others begin."""
    if count() == 1:
        return work()
    results = []
    for first in (True, False):
        with synchronized():
            if first == is_first():
                results.append(work())
    return results[0]


def print_once(*text: str, **options: Any) -> None:
    """Prints on process 0 only; takes what `print` takes."""
    if is_first():
        print(*text, **options)


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


def share_signals(step: int) -> None:
    """From now on, SIGTERM in any process makes all processes stop at the same step."""
    state = distributed.global_state
    if state.preemption_sync_manager is None:
        jax.config.update("jax_enable_preemption_service", True)
        state.initialize_preemption_sync_manager()
    stop_requested(step)


def stop_requested(step: int) -> bool:
    """Whether all processes stop after this step, because one of them got a signal.

    Every process calls this after each step. It does not wait, except once after a
    signal, when the processes agree on the step after the latest that any has reached.
    """
    return multihost_utils.reached_preemption_sync_point(step)


def _flags(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> dict[str, Any]:
    """Flag to value: the argument, or else JAX's environment variable for it."""
    return {
        "--coordinator": coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        "--num-processes": _whole_number(num_processes, "JAX_NUM_PROCESSES"),
        "--process-id": _whole_number(process_id, "JAX_PROCESS_ID"),
    }


def _whole_number(value: int | None, variable: str) -> int | None:
    """The value, or else that of an environment variable."""
    text = os.environ.get(variable)
    if value is not None or text is None:
        return value
    if not text.isdigit():
        raise UserError(f"{variable}={text} is not a whole number.")
    return int(text)


def _check(address: str | None, n: int | None, i: int | None) -> None:
    """Refuses an impossible address, number of processes or process number."""
    if address is not None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise UserError(f"--coordinator {address}: it must be HOST:PORT.")
    if n is not None and n < 1:
        raise UserError(f"--num-processes {n} must be 1 or more.")
    if i is not None and (i < 0 or (n is not None and i >= n)):
        top = "" if n is None else f" to {n - 1}, since --num-processes is {n}"
        raise UserError(f"--process-id {i} is out of range; it runs from 0{top}.")


def _launcher() -> str:
    """What has started several processes in a way that JAX recognises, or ""."""
    env = os.environ
    if all(name in env for name in SLURM):
        return "Slurm" if env.get("SLURM_NTASKS", "1") != "1" else ""
    if "OMPI_MCA_orte_hnp_uri" in env:
        return "Open MPI" if env.get("OMPI_COMM_WORLD_SIZE", "1") != "1" else ""
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES", "")
    if "," in hosts:
        return "The TPU pod"
    # Only the pods of an indexed job are numbered.
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return "Kubernetes"
    return ""


def _initialize_on_tpu_pod() -> None:
    """On a TPU, lets JAX ask the machine's metadata whether it is one of several."""
    platforms = getattr(jax.config, "jax_platforms", None) or "tpu"
    has_tpu = any(os.path.exists(path) for path in ("/dev/accel0", "/dev/vfio/0"))
    if has_tpu and "tpu" in platforms and importlib.util.find_spec("libtpu"):
        # On a single machine: "coordinator_address should be defined".
        with contextlib.suppress(ValueError):
            _initialize()


def _initialize(**options: Any) -> None:
    # Its SIGTERM handler would swallow the signal outside the training loop, where
    # nothing calls stop_requested.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=LEAVE_SECONDS,
        **options,
    )


def _client() -> Any:
    return distributed.global_state.client
