"""Datasets that the library `datasets` of Hugging Face has saved to the disk."""

import json
import pathlib
from collections.abc import Iterator, Sequence

from jaxpar.errors import UserError
from jaxpar.sources import patterns
from jaxpar.sources.parquet import ParquetFiles

STATE, SPLITS = "state.json", "dataset_dict.json"
"""What a saved Dataset has in its folder, and a saved DatasetDict."""


class SavedDataset(ParquetFiles):
    """What `save_to_disk` wrote; its split `validation` is held out, or else `test`.

    With neither of these, the hash of a row's number decides. It is read without that
    library: the files are streams of Arrow.
    """

    def find(self) -> list[tuple[str, pathlib.Path]]:
        return [*_files(folder_of(self.name) or pathlib.Path(self.name))]

    def splits(self) -> dict[str, Sequence[int]]:
        found: dict[str, range] = {}
        for group in self.groups:
            split = str(pathlib.PurePath(group.name).parent)
            first = found.get(split, range(group.first, group.first)).start
            found[split] = range(first, group.first + group.n_rows)
        return {"train": found["."]} if "." in found else {**found}


def folder_of(name: str) -> pathlib.Path | None:
    """The folder of a saved dataset; None where it is none."""
    folder = patterns.located(name)
    is_saved = folder and ((folder / STATE).is_file() or (folder / SPLITS).is_file())
    return folder if is_saved else None


def _files(folder: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
    """The files of all splits, with their names below the folder, in order.

    Raises:
      UserError: the folder is damaged, or has rows in another order than its files.
    """
    path = folder / (SPLITS if (folder / SPLITS).is_file() else STATE)
    try:
        content = json.loads(path.read_text("utf-8"))
        splits = content["splits"] if path.name == SPLITS else []
        names = [] if splits else [each["filename"] for each in content["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); save it again.") from error
    for split in splits:
        yield from ((f"{split}/{name}", path) for name, path in _files(folder / split))
    if not splits and content.get("_indices_data_files"):
        raise UserError(
            f"{folder} has its rows in an order of their own; save it again, after "
            "`load_from_disk` and `flatten_indices`."
        )
    yield from ((name, folder / name) for name in names)
