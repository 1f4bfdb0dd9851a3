"""A corpus prepared for training: tokenizer, windows, and counts for the receipt."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxpar import cache
from jaxpar.data import token_files, windows
from jaxpar.data.stored_tokens import open_token_file, read_meta
from jaxpar.data.tokenizer import BPE, ByteTokenizer, Tokenizer, TokenizerConfig
from jaxpar.data.tokenizer import load as load_tokenizer
from jaxpar.data.windows import Rows, TokenFile, Windows
from jaxpar.errors import UserError
from jaxpar.sources import own_source
from jaxpar.sources.corpus import Corpus, Document, Example, Lazy
from jaxpar.tokens.block_checksums import damaged
from jaxpar.tokens.pieces import LongText
from jaxpar.tokens.sample import texts_to_learn

EXAMPLES_FORMAT = 1
CONTENT_DEFINITION = 2
"""Of the hash in receipts; in the first one, versions of libraries took part."""
PURPOSE = {"train": "to train on", "heldout": "to hold out", "every": "to score"}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Windows to train on, and held-out windows."""

    tokenizer: Tokenizer
    train: Windows
    heldout: Windows
    fingerprint: str
    """Changes with the documents, the tokenizer and the libraries that were used."""
    description: dict[str, Any]
    """Source, hashes and counts, for the receipt."""
    older_content: Callable[[Mapping[str, str]], str] | None = None
    """The content's hash as jaxpar 0.1 defined it, for its receipts; see Corpus."""


def learned(config: TokenizerConfig, corpus: Corpus) -> Tokenizer:
    """The tokenizer learned from the training part; it is kept in the cache.

    Raises:
      DataWentBad: the one in the cache has changed since it was learned.
    """
    name = cache.key(
        config=[type(config).__name__, config.identity()],
        content=corpus.versioned_fingerprint(),
        versions=cache.versions("tokenizers"),
    )

    def build(directory: pathlib.Path) -> None:
        documents = corpus.by_part["train"]

        def text(i: int) -> LongText:
            return own_source.text_of(corpus, "train", documents, i, must_be_utf8=True)

        n = len(documents)
        if isinstance(config, BPE):
            found = config.build(texts_to_learn(n, text, most=config.train_bytes))
        else:
            found = config.build(text(i)[:] for i in range(n))
        found.save(directory)

    path = cache.build_once(cache.root() / "tokenizers" / name, build)
    try:
        return load_tokenizer(path)
    except UserError as error:
        if isinstance(error.__cause__, PermissionError):
            raise
        what = f"holds no good tokenizer ({error})"
        raise damaged(path, what, preparation=path) from error


def text(
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    batch_size: int,
    progress: bool,
) -> Prepared:
    """Documents one after another, in windows of `seq_len` targets."""
    need_documents(corpus)
    path = _write_documents(corpus, tokenizer, progress=progress)
    train_file = open_token_file(path / "train", tokenizer)
    heldout_file = open_token_file(path / "heldout", tokenizer)
    train = windows.full_windows(train_file, seq_len)
    heldout = windows.all_windows(heldout_file, seq_len)
    if (have := len(heldout_file.tokens)) < seq_len + 1:
        raise UserError(
            f"{corpus.source}: the held-out part has {have} tokens and does not fill "
            f"one window of seq_len + 1 = {seq_len + 1}; give more text, or a "
            f"seq_len of at most {max(have - 1, 0)}."
        )
    need_windows(corpus, train, batch_size, f"windows of {seq_len} tokens")
    counts = {"train": _file_counts(train_file), "heldout": _file_counts(heldout_file)}
    return _prepared(corpus, tokenizer, train, heldout, path.name, counts)


def answers(
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    batch_size: int,
    too_long: str,
    progress: bool,
) -> Prepared:
    """Prompts with answers, one in each row; only answers are scored.

    too_long: "refuse" or "cut" examples that do not fit into a row.
    """
    need_parts(corpus)
    path = _write(corpus, corpus.examples, tokenizer, progress, pairs=EXAMPLES_FORMAT)
    train = answer_rows(path / "train", corpus, tokenizer, seq_len, too_long)
    heldout = answer_rows(path / "heldout", corpus, tokenizer, seq_len, too_long)
    need_windows(corpus, heldout, 1, "held-out examples")
    need_windows(corpus, train, batch_size, "training examples")
    counts = {"train": _row_counts(train), "heldout": _row_counts(heldout)}
    return _prepared(corpus, tokenizer, train, heldout, path.name, counts)


def answer_rows(
    path: pathlib.Path,
    corpus: Corpus,
    tokenizer: Tokenizer,
    seq_len: int,
    too_long: str,
) -> Rows:
    """One part's rows, from its folder of token files; see `answers`."""
    rows = Rows(open_token_file(path, tokenizer), seq_len)
    if too_long == "refuse" and (n := rows.n_cut + rows.n_left_out):
        raise UserError(
            f"{corpus.source}: {n} of {len(rows) + rows.n_left_out} examples in "
            f"{path.name} are longer than seq_len + 1 = {seq_len + 1} tokens; raise "
            'seq_len, or say too_long="cut" to cut the middle of their prompts.'
        )
    return rows


def everything(corpus: Corpus, tokenizer: Tokenizer, *, seq_len: int) -> Windows:
    """All of a corpus as windows, the last one padded with weight 0."""
    (part,) = corpus.parts
    if corpus.has_only_examples:
        need_parts(corpus)
        path = _write(corpus, corpus.examples, tokenizer, True, pairs=EXAMPLES_FORMAT)
        return answer_rows(path / part, corpus, tokenizer, seq_len, "refuse")
    need_documents(corpus)
    path = _write_documents(corpus, tokenizer, progress=True)
    return windows.all_windows(open_token_file(path / part, tokenizer), seq_len)


def need_documents(corpus: Corpus) -> None:
    """Refuses a corpus whose records hold no text, or that has an empty part.

    Prepared windows are found by a hash of the files, which may have been read in
    another way before: only opening the documents tells whether they can be read so.
    """
    _need_records(corpus, lambda part: len(corpus.by_part.get(part, ())))


def need_parts(corpus: Corpus) -> None:
    """Refuses a corpus of which nothing could be held out, or trained on."""
    _need_records(corpus, corpus.n_records)


def _need_records(corpus: Corpus, n_records: Callable[[str], int]) -> None:
    for part in corpus.parts:
        with own_source.named(corpus, f"the part {part!r}"):
            n = n_records(part)
        if not n:
            raise UserError(
                f"{corpus.source} leaves nothing {PURPOSE[part]}: its documents are "
                "too few or too short; give more text (several lines or files)."
            )


def need_windows(corpus: Corpus, windows: Windows, least: int, what: str) -> None:
    """Refuses fewer windows than `least`; `what` they are is for the message."""
    if len(windows) < least:
        raise UserError(
            f"{corpus.source} has {len(windows)} {what}, and {least} are needed; give "
            "more text, or a smaller batch_size or seq_len."
        )


def _write_documents(
    corpus: Corpus, tokenizer: Tokenizer, *, progress: bool
) -> pathlib.Path:
    utf8 = not isinstance(tokenizer, ByteTokenizer)

    def read(part: str) -> Sequence[Example]:
        documents: Sequence[Document] = corpus.by_part[part]

        def document(i: int) -> Example:
            text = own_source.text_of(corpus, part, documents, i, must_be_utf8=utf8)
            return Example(text)

        return Lazy(range(len(documents)), document)

    return _write(corpus, read, tokenizer, progress)


def _write(
    corpus: Corpus,
    read: Callable[[str], Sequence[Example]],
    tokenizer: Tokenizer,
    progress: bool,
    **more: int,
) -> pathlib.Path:
    with own_source.named(corpus, "its fingerprint"):
        fingerprint = corpus.versioned_fingerprint()
    content = cache.key(content=fingerprint, parts=[*corpus.parts], **more)
    return token_files.write_token_files(
        corpus.parts, read, tokenizer, content=content, progress=progress
    )


def in_words(description: Mapping[str, Any]) -> str:
    """How much of a source is to train on and how much is held out, for stderr.

    description: as of Prepared.
    """
    train, held = (_sizes(description[part]) for part in ("train", "heldout"))
    how = description.get("held_out")
    text = (
        f"{description['source']}: {train} to train on, {held} held out"
        f"{f' ({how})' if how else ''}."
    )
    if n := description.get("in_both_parts"):
        text += (
            f" {n:,} of those held out are also to train on, byte by byte, and flatter "
            "the held-out loss: remove duplicates from the source."
        )
    if held.startswith("1 "):
        text += " One is held out: its loss says little of others."
    return text


def _sizes(part: Mapping[str, int]) -> str:
    n = part.get("documents")
    what = "document" if n is not None else "example"
    n = part["windows"] if n is None else n
    return f"{n:,} {what}{'' if n == 1 else 's'} ({part['bytes']:,} bytes)"


def _prepared(
    corpus: Corpus,
    tokenizer: Tokenizer,
    train: Windows,
    heldout: Windows,
    fingerprint: str,
    counts: dict[str, dict[str, int]],
) -> Prepared:
    description = {
        "source": corpus.source,
        "content": corpus.fingerprint(),
        "content_definition": CONTENT_DEFINITION,
        "tokenizer": tokenizer.fingerprint,
        **corpus.facts,
    }
    for name, part in (("train", train), ("heldout", heldout)):
        sizes = {"windows": len(part), "scored": part.n_tokens, "bytes": part.n_bytes}
        description[name] = {**sizes, **counts[name]}
    meta = read_meta(cache.root() / "windows" / fingerprint / "heldout")
    description["in_both_parts"] = meta.get("in_both_parts", 0)
    older = corpus.versioned_fingerprint
    return Prepared(tokenizer, train, heldout, fingerprint, description, older)


def _file_counts(file: TokenFile) -> dict[str, int]:
    return {"documents": len(file.ends), "tokens": len(file.tokens)}


def _row_counts(rows: Rows) -> dict[str, int]:
    return {"cut": rows.n_cut, "left_out": rows.n_left_out}
