"""Writes local documents as ArrayRecord files, with TFDS, and opens them."""

import contextlib
import io
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

from jaxpar.sources.files import Piece

Examples = Iterator[tuple[int, dict[str, Any]]]

with registered.skip_registration():

    class LocalText(tfds.core.GeneratorBasedBuilder):
        """A document for each piece of a local file, in their order."""

        VERSION = tfds.core.Version("1.0.0")
        # Nothing is downloaded. TFDS would look for checksums next to this file, with
        # `importlib_resources`, which it does not declare as a dependency.
        code_path = None

        def __init__(self, *, splits: Mapping[str, Sequence[Piece]], **settings):
            self._splits = splits
            super().__init__(**settings)

        def _info(self) -> tfds.core.DatasetInfo:
            text, number = tfds.features.Text(), tfds.features.Scalar(np.int64)
            return tfds.core.DatasetInfo(
                builder=self,
                description="Local documents, in the order of their paths.",
                features=tfds.features.FeaturesDict(
                    {"text": text, "path": tfds.features.Text(), "line": number}
                ),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Examples]:
            return {
                name: self._generate_examples(pieces)
                for name, pieces in self._splits.items()
            }

        def _generate_examples(self, pieces: Iterable[Piece]) -> Examples:
            for number, piece in enumerate(pieces):
                example = {"text": piece.read(), "path": piece.name, "line": piece.line}
                yield number, example


def write(directory: pathlib.Path, splits: Mapping[str, Sequence[Piece]]) -> None:
    """Prepares the pieces below `directory` as ArrayRecord files."""
    tfds.disable_progress_bar()
    builder = LocalText(splits=splits, data_dir=directory, file_format="array_record")
    # It prints to stdout, which is reserved for the output of --json.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()


def read(directory: pathlib.Path, split: str) -> Sequence[Mapping[str, Any]]:
    """Random access to the examples of a split that `write` wrote."""
    path = directory / LocalText.name / str(LocalText.VERSION)
    builder = tfds.builder_from_directory(path)
    # TFDS's decorator hides the method's parameters.
    return builder.as_data_source(split)  # pyright: ignore[reportCallIssue]
