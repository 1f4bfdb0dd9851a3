"""A source's documents, in a part to learn from and a part held out."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from jaxpar.config import UserError
from jaxpar.data import cache, datasets, local, split, synthetic

STREAMED_BYTES = 1_000_000_000
"""Local files above this are read in place instead of through TFDS records."""


@dataclasses.dataclass(frozen=True)
class Document:
    """One document; its first line is line `line` of what is called `name`."""

    name: str
    text: bytes
    line: int = 1


class Documents(Sequence):
    """Documents read one at a time, when asked for."""

    def __init__(self, indices: Sequence[int], read: Callable[[int], Document]):
        self._indices, self._read = indices, read

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int) -> Document:
        return self._read(self._indices[i])


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The documents of each part; `fingerprint` changes with any byte of them."""

    source: str
    parts: Mapping[str, Sequence[Document]]
    fingerprint: str
    facts: Mapping[str, float] = dataclasses.field(default_factory=dict)


def divided(source: str) -> Corpus:
    """The source's documents in the parts `train` and `heldout`."""
    kind, name = _kind(source)
    if kind == "tfds":
        return _dataset_divided(source, name)
    if kind == "synthetic":
        return _synthetic_divided(source)
    files, empty = _scanned(kind, name)
    return _from_files(source, files, local.parts(files), empty)


def everything(source: str) -> Corpus:
    """All of the source's documents in the one part `every`."""
    kind, name = _kind(source)
    if kind == "tfds":
        path = datasets.directory(name)
        documents = list(_open_dataset(path).values())
        return Corpus(source, {"every": _Joined(documents)}, datasets.fingerprint(path))
    if kind == "synthetic":
        corpus = _synthetic_divided(source)
        joined = _Joined([corpus.parts["train"], corpus.parts["heldout"]])
        return dataclasses.replace(corpus, parts={"every": joined})
    files, empty = _scanned(kind, name)
    return _from_files(source, files, {"every": local.whole(files)}, empty)


class _Joined(Sequence):
    """Several sequences, one behind the other."""

    def __init__(self, parts: Sequence[Sequence[Document]]):
        self._parts = parts

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def __getitem__(self, i: int) -> Document:
        for part in self._parts:
            if i < len(part):
                return part[i]
            i -= len(part)
        raise IndexError(i)


def _kind(source: str) -> tuple[str, str]:
    kind, _, name = source.partition(":")
    plain = kind in ("stdlib", "synthetic") and not name
    if not plain and not (kind in ("files", "tfds") and name):
        raise UserError(
            f"Unknown source {source!r}; choose stdlib, synthetic, files:GLOB or "
            "tfds:NAME."
        )
    return kind, name


def _scanned(kind: str, name: str) -> tuple[list[local.File], int]:
    found = local.standard_library() if kind == "stdlib" else local.matching(name)
    files = local.scan(found)
    return files, len(found) - len(files)


def _from_files(
    source: str, files: Sequence[local.File], pieces: dict[str, list], empty: int
) -> Corpus:
    pieces = {name: part for name, part in pieces.items() if part}
    fingerprint = cache.key(
        files=[[file.name, file.digest] for file in files],
        pieces={n: [[p.name, p.start, p.stop] for p in pieces[n]] for n in pieces},
        versions=cache.versions("tensorflow-datasets", "array-record"),
    )
    if sum(file.size for file in files) > STREAMED_BYTES:
        parts = {name: _in_place(part) for name, part in pieces.items()}
    else:
        parts = _through_records(fingerprint, pieces)
    return Corpus(source, parts, fingerprint, {"empty_files": empty})


def _in_place(pieces: Sequence[local.Piece]) -> Documents:
    def read(i: int) -> Document:
        piece = pieces[i]
        return Document(piece.name, piece.read(), piece.line)

    return Documents(range(len(pieces)), read)


def _through_records(fingerprint: str, pieces: dict[str, list]) -> dict:
    from jaxpar.data import builder

    path = cache.built(
        cache.root() / "records" / fingerprint,
        functools.partial(builder.write, splits=pieces),
    )
    return {
        name: _records(builder.read(path, name), f"{path}, split {name}")
        for name in pieces
    }


def _records(examples: Sequence, place: str) -> Documents:
    def read(i: int) -> Document:
        example = _example(examples, i, place)
        name = _bytes(example["path"]).decode()
        return Document(name, _bytes(example["text"]), int(example["line"]))

    return Documents(range(len(examples)), read)


def _example(examples: Sequence, i: int, place: str) -> Mapping:
    try:
        return examples[i]
    except Exception as error:  # The record reader's own types.
        raise UserError(
            f"{place}, example {i} cannot be read: {error} Copy the dataset again, or "
            "delete it and prepare it again."
        ) from error


def _bytes(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)


def _open_dataset(path) -> dict[str, Documents]:
    field = datasets.text_field(path)
    opened = {}
    for name, examples in datasets.open_splits(path).items():

        def read(i: int, name=name, examples=examples) -> Document:
            example = _example(examples, i, f"{path}, split {name}")
            return Document(f"{name}[{i}]", _bytes(example[field]))

        opened[name] = Documents(range(len(examples)), read)
    return opened


def _dataset_divided(source: str, name: str) -> Corpus:
    path = datasets.directory(name)
    splits = _open_dataset(path)
    if "train" not in splits:
        raise UserError(
            f"{source} has no examples to learn from: its splits are "
            f"{sorted(splits)}, and `train` is needed."
        )
    train = splits["train"]
    fingerprint = datasets.fingerprint(path)
    for other in ("validation", "test"):
        if other in splits:
            parts = {"train": train, "heldout": splits[other]}
            return Corpus(source, parts, fingerprint)
    return Corpus(source, _by_number(train), fingerprint)


def _by_number(documents: Sequence[Document]) -> dict[str, Sequence[Document]]:
    """The split of documents that have a number and no path."""
    held = [i for i in range(len(documents)) if split.held_out(str(i))]
    if len(documents) >= split.ONE_IN and held:
        out = set(held)
        rest = [i for i in range(len(documents)) if i not in out]
        read = documents.__getitem__
        return {"train": Documents(rest, read), "heldout": Documents(held, read)}
    every = range(len(documents))
    head = functools.partial(_cut, documents, keep_head=True)
    tail = functools.partial(_cut, documents, keep_head=False)
    return {"train": Documents(every, head), "heldout": Documents(every, tail)}


def _cut(documents: Sequence[Document], i: int, *, keep_head: bool) -> Document:
    document = documents[i]
    at = split.tail(document.text)
    kept = slice(0, at) if keep_head else slice(at, None)
    return dataclasses.replace(document, text=document.text[kept])


def _synthetic_divided(source: str) -> Corpus:
    texts = synthetic.documents()
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    entropy = synthetic.chain().entropy
    return Corpus(
        source,
        _by_number(documents),
        cache.key(version=1, texts=[text.decode() for text in texts]),
        {"entropy_nats_per_byte": entropy},
    )
