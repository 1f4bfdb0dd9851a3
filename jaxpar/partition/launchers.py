"""How processes find each other: by flags, JAX's variables, or a launcher."""

import os
from typing import Any

from jaxpar.errors import UserError

SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")
"""One of them is there where this machine has a TPU."""


def flag_values(
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


def check(address: str | None, n: int | None, i: int | None) -> None:
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


def has_tpu() -> bool:
    """Whether this machine has a TPU; starts no backend."""
    return any(map(os.path.exists, TPU_DEVICES))


def detected() -> str:
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
