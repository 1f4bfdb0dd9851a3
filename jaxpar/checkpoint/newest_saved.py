"""What a message says of the newest checkpoint."""

from jaxpar.checkpoint.manager import Checkpoints
from jaxpar.errors import SaveFailed, one_line


def what_is_saved(checkpoints: Checkpoints) -> str:
    """A sentence on the newest checkpoint, once every save has ended."""
    try:
        checkpoints.wait()
    except SaveFailed as error:
        return one_line(error)
    newest = checkpoints.newest()
    if newest is None:
        return "No checkpoint has been saved."
    return f"The newest checkpoint is step {newest}."
