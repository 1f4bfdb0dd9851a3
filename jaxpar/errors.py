"""Every error of jaxpar's own, with the exit status that a command ends with."""

FAILED = 1
HANGS = 42
"""The watchdog ended a process that made no progress."""
STOPPED_ON_REQUEST = 75


class JaxparError(Exception):
    """An error whose message is written for the person at the command line."""

    exit_status = FAILED


class UserError(JaxparError, ValueError):
    """The request was wrong, or data that was looked at before compiling."""

    exit_status = 2


class DataWentBad(JaxparError, ValueError):
    """Data that was good when it was prepared is damaged, or cannot be read."""

    exit_status = 3


class NoUsableCheckpoint(JaxparError, ValueError):
    """A run has checkpoints, and none of them can be opened."""

    exit_status = 4


class OutOfMemory(JaxparError, RuntimeError):
    """A device has no memory left for the state or the step."""


class SaveFailed(JaxparError, RuntimeError):
    """A checkpoint was not saved."""


class Diverged(JaxparError, RuntimeError):
    """A value is not finite, and nothing of it is saved; or spikes came too often."""

    exit_status = 43


class ReplicasDiffer(JaxparError, RuntimeError):
    """Copies of one array on several devices are not bit-equal; nothing is saved."""

    exit_status = 44


class OtherProcessFailed(JaxparError):
    """Another process of this run failed; this one ends with the same exit status."""

    def __init__(self, message: str, exit_status: int):
        super().__init__(message)
        self.exit_status = exit_status


def one_line(error: BaseException) -> str:
    """The message of an error of ours; of any other, its class and first line."""
    if isinstance(error, JaxparError):
        return " ".join(str(error).split()) or type(error).__name__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def exit_status(error: BaseException) -> int:
    """The exit status of a command that this error ended."""
    return error.exit_status if isinstance(error, JaxparError) else FAILED
