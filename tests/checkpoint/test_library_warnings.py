"""Warnings of the checkpoint library pass, but for those of every call."""

import logging

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from absl import logging as absl_logging

from jaxpar.checkpoint import library_warnings


@pytest.fixture
def logged(caplog):
    """What the library's logger lets through, with the filter put there twice."""
    logger = logging.getLogger(library_warnings.LOGGER)
    before = logger.filters[:], logger.level
    logger.setLevel(logging.WARNING)
    library_warnings.shorten()
    library_warnings.shorten()
    with caplog.at_level(logging.WARNING, logger.name):
        yield lambda: [(r.levelno, r.getMessage()) for r in caplog.records]
    logger.filters[:], logger.level = before


def opened(directory, **options):
    settings = ocp.CheckpointManagerOptions(**options)
    return ocp.CheckpointManager(directory, options=settings)


def test_what_every_opening_says_is_dropped(tmp_path, logged):
    with opened(tmp_path / "a", create=True) as manager:
        manager.save(1, args=ocp.args.StandardSave({"a": jnp.zeros(3)}))
    assert logged() == []
    opened(tmp_path / "a", read_only=True, create=False).close()
    assert logged() == []


def test_a_save_that_cannot_be_read_is_warned_of(tmp_path, logged):
    # Orbax takes the brackets for a wildcard, and its only sign is this warning.
    with opened(tmp_path / "a[e]", create=True) as manager:
        manager.save(1, args=ocp.args.StandardSave({"a": jnp.zeros(3)}))
    assert any("Skipping merge of OCDBT" in message for _, message in logged())


def test_an_item_that_cannot_be_restored_is_warned_of(tmp_path, logged):
    with opened(tmp_path / "a", create=True) as manager:
        manager.save(1, args=ocp.args.StandardSave({"a": jnp.zeros(3)}))
    with opened(tmp_path / "a", read_only=True, create=False) as manager:
        manager.item_metadata(1)
    assert any("could not be restored" in message for _, message in logged())


@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR])
def test_a_warning_is_one_line_and_an_error_stays_as_it_is(logged, level):
    absl_logging.log(
        {logging.WARNING: absl_logging.WARNING, logging.ERROR: absl_logging.ERROR}[
            level
        ],
        "Metadata file does not exist: %s\n%s",
        "/a/1/_CHECKPOINT_METADATA",
        "x" * 1_000,
    )
    ((found, message),) = logged()
    assert found == level and message.startswith(
        "Metadata file does not exist: /a/1/_C"
    )
    is_short = "\n" not in message and len(message) <= library_warnings.MOST_CHARACTERS
    assert is_short == (level == logging.WARNING)


def test_a_traceback_does_not_follow_a_warning(logged, caplog):
    try:
        raise ValueError("gone")
    except ValueError:
        absl_logging.warning("Could not read %s", "it", exc_info=True)
    assert logged() == [(logging.WARNING, "Could not read it")]
    assert caplog.records[0].exc_info is None
