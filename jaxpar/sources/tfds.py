"""Datasets that TFDS has prepared as ArrayRecord, by name or by directory."""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxpar import atomic
from jaxpar.errors import UserError
from jaxpar.sources import fields
from jaxpar.sources.corpus import Corpus, Document, Lazy, parts_of, split_by_number

NAME = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*(:\d+\.\d+\.\d+)?")
VERSION = re.compile(r"\d+\.\d+\.\d+")
EDGE_BYTES = 1 << 20
CLASS_KEYS = ("pythonClassName", "python_class_name", "type")


class PreparedDataset(Corpus):
    """A dataset of TFDS; its split `validation` is held out, or else `test`.

    With neither of these, the hash of a document's number decides.
    """

    @classmethod
    def fetch(cls, name: str) -> None:
        fetch(name)

    def documents(self) -> Mapping[str, Sequence[Document]]:
        return parts_of(self._splits, self.parts, self.source, split_by_number)

    def fingerprint(self) -> str:
        """A hash of the files' names, sizes, first and last EDGE_BYTES."""
        digest = hashlib.sha256()
        for file in sorted(self._path.iterdir()):
            if not file.is_file() or file.name.startswith("."):
                continue
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode())
            with open(file, "rb") as stream:
                digest.update(stream.read(EDGE_BYTES))
                stream.seek(max(size - EDGE_BYTES, 0))
                digest.update(stream.read(EDGE_BYTES))
        if (field := self._field) != _usual_field(self._path):
            digest.update(f"field {field}\n".encode())
        return digest.hexdigest()[:16]

    @functools.cached_property
    def _path(self) -> pathlib.Path:
        return directory(self.name)

    @functools.cached_property
    def _field(self) -> str:
        return text_field(self._path, self.text_field)

    @functools.cached_property
    def _splits(self) -> dict[str, Lazy[Document]]:
        opened = open_splits(self._path)
        return {name: self._documents(name, data) for name, data in opened.items()}

    def _documents(
        self, split: str, examples: Sequence[Mapping[str, Any]]
    ) -> Lazy[Document]:
        def read(i: int) -> Document:
            example = _read_record(examples, i, f"{self._path}, split {split}")
            return Document(f"{split}[{i}]", bytes(example[self._field]))

        return Lazy(range(len(examples)), read)


def _read_record(
    examples: Sequence[Mapping[str, Any]], i: int, place: str
) -> Mapping[str, Any]:
    """One example of a TFDS data source; `place` names it in messages.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return examples[i]
    except Exception as error:  # The record reader's own types.
        raise UserError(
            f"{place}, example {i} cannot be read: {error} Copy the dataset again, or "
            "delete it and prepare it again."
        ) from error


def directory(name: str) -> pathlib.Path:
    """Where `tfds:NAME` was prepared, or the directory itself; needs no network.

    Raises:
      UserError: it is not there, is no name, or is not stored as ArrayRecord.
    """
    folder, top = pathlib.Path(name).expanduser(), data_dir()
    if folder.is_dir() and (path := _newest(folder)):
        return _checked(path)
    if not NAME.fullmatch(name) or ".." in name:
        raise UserError(
            f"tfds:{name} is neither a prepared directory nor a TFDS name such as "
            "wiki40b/en or wiki40b/en:1.3.0."
        )
    stem, _, version = name.partition(":")
    path = top / stem / version if version else _newest(top / stem)
    if path is None or not (path / "dataset_info.json").is_file():
        raise UserError(
            f"tfds:{name} is not prepared under {top}. Where there is a network, run "
            f"`jaxpar data prepare EXPERIMENT --data.source tfds:{name}`, copy the "
            "directory here, and set TFDS_DATA_DIR to it."
        )
    return _checked(path)


def data_dir() -> pathlib.Path:
    """`$TFDS_DATA_DIR`, else where TFDS keeps its datasets."""
    chosen = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return pathlib.Path(chosen).expanduser()


def fetch(name: str) -> pathlib.Path:
    """Downloads and prepares `name` as ArrayRecord, unless it is there already.

    What a killed process left is not taken for it: TFDS prepares into a directory with
    a random name, which it renames at the end.

    Raises:
      UserError: TFDS does not know the name, cannot reach its source, or needs
        libraries that are not installed.
    """
    try:
        return directory(name)
    except UserError:
        if pathlib.Path(name).expanduser().is_dir() or not NAME.fullmatch(name):
            raise
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    # With the default, a machine without a network waits for minutes.
    downloader.MAX_RETRIES = 1
    try:
        import tensorflow_datasets.text  # noqa: F401  It registers old names.

        top = str(data_dir())
        builder = tfds.builder(name, file_format="array_record", data_dir=top)
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare()
    except Exception as error:  # Builders raise whatever their sources do.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"tfds:{name} could not be prepared: {reason[0]} {_remedy(name, error)}"
        ) from error
    path = directory(name)
    # TFDS renames its directory when it is complete, but does not wait for the disk.
    atomic.sync_tree(path)
    return path


def _remedy(name: str, error: Exception) -> str:
    """What to do about an error of a builder: what to install, where that is it."""
    missing = (getattr(error, "name", None) or "").partition(".")[0]
    if missing == "apache_beam":
        return (
            "Apache Beam needs an older NumPy than jaxpar: in an environment of its "
            "own, `pip install tensorflow-datasets apache-beam importlib_resources`, "
            f"then `tfds build {name} --file_format=array_record "
            f"--data_dir={data_dir()}`."
        )
    if "tensorflow" in (missing, str(error).lower().partition(" has not been ")[0]):
        return 'Its builder needs TensorFlow: `pip install -e ".[tfds-full]"`.'
    if isinstance(error, ModuleNotFoundError):
        return f"Its builder needs it: `pip install {missing}`."
    return "Check the name and the network."


def open_splits(path: pathlib.Path) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """Random access to the examples of each split that has any."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(path)
        filled = [n for n, split in builder.info.splits.items() if split.num_examples]
        # TFDS's decorator hides the method's parameters.
        open_split = builder.as_data_source
        return {
            name: open_split(name)  # pyright: ignore[reportCallIssue]
            for name in filled
        }
    except Exception as error:  # TFDS raises many types for a damaged directory.
        raise UserError(
            f"{path} cannot be opened as a TFDS dataset: {error} Copy it again, or "
            "prepare it again with file_format=array_record."
        ) from error


def text_field(path: pathlib.Path, wanted: str = fields.DEFAULT) -> str:
    """The feature to read: the wanted one, else the only one that holds text.

    Raises:
      UserError: there is neither.
    """
    features = _features(path)
    texts = _texts(features)
    others = sorted({*features} - {*texts})
    return fields.text_field_of(wanted, texts, str(path), others)


def _usual_field(path: pathlib.Path) -> str | None:
    """The field that is read by default; None where the default is refused."""
    try:
        return text_field(path)
    except UserError:
        return None


def _features(path: pathlib.Path) -> dict[str, dict]:
    return _json(path / "features.json").get("featuresDict", {}).get("features", {})


def _texts(features: Mapping[str, dict]) -> list[str]:
    return [name for name, feature in features.items() if "text" in feature]


def _newest(folder: pathlib.Path) -> pathlib.Path | None:
    """A dataset's directory, or that of its newest version; None if neither is here."""
    if (folder / "dataset_info.json").is_file():
        return folder
    if not folder.is_dir():
        return None
    versions = {
        tuple(int(n) for n in path.name.split(".")): path
        for path in folder.iterdir()
        if VERSION.fullmatch(path.name) and (path / "dataset_info.json").is_file()
    }
    return versions[max(versions)] if versions else None


def _checked(path: pathlib.Path) -> pathlib.Path:
    """The directory, if it is safe to open and stored as ArrayRecord."""
    file_format = _json(path / "dataset_info.json").get("fileFormat", "tfrecord")
    if file_format != "array_record":
        raise UserError(
            f"{path} was prepared as {file_format}; re-prepare it with "
            "file_format=array_record."
        )
    for name in _classes(_json(path / "features.json")):
        # TFDS imports the module that the file names, which may be anyone's code.
        if not name.startswith("tensorflow_datasets."):
            raise UserError(
                f"{path}/features.json names the class {name!r}, which is not part of "
                "TFDS; jaxpar does not run code that a dataset names."
            )
    return path


def _classes(content: Any) -> Iterator[str]:
    """Every class that a features.json names, at any depth."""
    if isinstance(content, list):
        for part in content:
            yield from _classes(part)
    if isinstance(content, dict):
        for key, part in content.items():
            if key in CLASS_KEYS and isinstance(part, str):
                yield part
            yield from _classes(part)


def _json(path: pathlib.Path) -> dict:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); the dataset is incomplete: copy it, or "
            "prepare it, again."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; prepare the dataset again.")
    return content
