"""Formats of config.json: how older ones are upgraded, what a resumed run keeps."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from jaxpar.data.source import Pairs, Text
from jaxpar.experiment import Experiment
from jaxpar.sources.registry import AS_PLAIN_TEXT, FILES

FORMAT = 2
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

    A run that was started before files of records were known reads them as plain text,
    whatever the experiment's file would mean today.
    """
    ours, theirs = experiment.data, stored.data
    if started_in > 1 or not isinstance(ours, Text | Pairs):
        return experiment
    reading = getattr(theirs, "text_field", ours.text_field)
    if ours.text_field == reading or type(ours) is not type(theirs):
        return experiment
    data = dataclasses.replace(ours, text_field=reading)
    return dataclasses.replace(experiment, data=data)


def _files_as_plain_text(config: Config) -> Config:
    """Format 1 read every file as plain text, but for the examples of a .jsonl."""
    data = config.get("data")
    if not isinstance(data, dict) or data.get("type") not in ("Text", "Pairs"):
        return config
    source = str(data.get("source", "stdlib"))
    had_examples = data["type"] == "Pairs" and source.endswith(".jsonl")
    if not source.startswith(FILES) or had_examples:
        return config
    return {**config, "data": {**data, "text_field": AS_PLAIN_TEXT}}


def _from_1(config: Config) -> Config:
    config = _files_as_plain_text(config)
    if isinstance(keep := config.get("keep"), int):
        # It was taken for 1 where it was less.
        config = {**config, "keep": max(keep, 1)}
    return config


UPGRADES: dict[int, Callable[[Config], Config]] = {1: _from_1}
"""From each older format to the next one."""
