"""Formats of config.json: how older ones are upgraded, what a resumed run keeps."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from jaxpar.data.source import Pairs, Text
from jaxpar.errors import UserError
from jaxpar.experiment import Experiment
from jaxpar.sources.registry import AS_PLAIN_TEXT, FILES, Spelling, named_as_records

FORMAT = 4
"""The format in which new runs are started; a run keeps the number it began with."""
Config = dict[str, Any]
E = TypeVar("E", bound=Experiment)


def read_config(stored: Config) -> tuple[int, Config]:
    """The format that a config.json was started in, and its experiment as of today.

    Raises:
      KeyError: the format is newer than this version of jaxpar.
    """
    config = {key: value for key, value in stored.items() if key != "format"}
    started_in = stored.get("format", 1)
    for number in range(started_in, FORMAT):
        config = UPGRADES[number](config)
    if not 1 <= started_in <= FORMAT:
        raise KeyError(started_in)
    return started_in, config


def keep_reading(experiment: E, stored: Experiment, started_in: int) -> E:
    """The experiment, which reads its files as the run that it resumes began to.

    A run that was started before its kind of file was known as records reads it as
    plain text, whatever the experiment's file would mean today.
    """
    ours, theirs = experiment.data, stored.data
    if started_in >= FORMAT or type(ours) is not type(theirs):
        return experiment
    if not isinstance(ours, Text | Pairs) or not isinstance(theirs, Text | Pairs):
        return experiment
    reading = theirs.text_field
    was_records = reading != AS_PLAIN_TEXT or _was_records(theirs.source, started_in)
    if started_in > 1 and was_records:
        return experiment
    data = dataclasses.replace(ours, text_field=reading)
    return dataclasses.replace(experiment, data=data)


def _from_1(config: Config) -> Config:
    """Format 1 read every file as plain text, but for the examples of a .jsonl."""

    def was_records(source: str, kind: str) -> bool:
        had_examples = kind == "Pairs" and source.endswith(".jsonl")
        return had_examples or not source.startswith(FILES)

    config = _as_plain_text(config, unless=was_records)
    if isinstance(keep := config.get("keep"), int):
        # It was taken for 1 where it was less.
        config = {**config, "keep": max(keep, 1)}
    return config


def _from_2(config: Config) -> Config:
    """Format 2 knew records by .jsonl and .parquet alone; other files were text."""
    return _as_plain_text(config, unless=lambda source, kind: _was_records(source, 2))


def _from_3(config: Config) -> Config:
    """Format 3 knew no tables: .csv and .tsv were text."""
    return _as_plain_text(config, unless=lambda source, kind: _was_records(source, 3))


def _as_plain_text(config: Config, *, unless: Callable[[str, str], bool]) -> Config:
    """Data that reads its files as text; unless: of a source and the data's type."""
    data = config.get("data")
    if not isinstance(data, dict) or data.get("type") not in ("Text", "Pairs"):
        return config
    if unless(str(data.get("source", "stdlib")), data["type"]):
        return config
    return {**config, "data": {**data, "text_field": AS_PLAIN_TEXT}}


def _was_records(source: Spelling, number: int) -> bool:
    """Whether a format read a source as today does, or it is of no files at all."""
    if not isinstance(source, str) or not source.startswith(FILES):
        return True
    try:
        return named_as_records(source, number)
    except UserError:  # Whoever reads the files says that they are gone.
        return True


UPGRADES: dict[int, Callable[[Config], Config]] = {1: _from_1, 2: _from_2, 3: _from_3}
"""From each older format to the next one."""
