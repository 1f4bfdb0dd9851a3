"""A corpus prepared: its tokenizer, its windows, and what they hold."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

from jaxpar.config import UserError
from jaxpar.data import cache, layout, pairs, tokenizer, windows
from jaxpar.data.corpus import Corpus, Document
from jaxpar.data.layout import Item
from jaxpar.data.tokenizer import Tokenizer, TokenizerConfig
from jaxpar.data.windows import Rows, Windows


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Windows to learn from and held out; `fingerprint` covers what made them."""

    tokenizer: Tokenizer
    train: Windows
    heldout: Windows
    fingerprint: str
    description: dict


class _Plain(Sequence):
    """Documents as items without a prompt."""

    def __init__(self, documents: Sequence[Document]):
        self._documents = documents

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, i: int) -> Item:
        return Item(self._documents[i].text)


def learned(config: TokenizerConfig, corpus: Corpus) -> Tokenizer:
    """The tokenizer that the training part gives, kept once made."""
    name = cache.key(
        config=[type(config).__name__, dataclasses.asdict(config)],
        content=corpus.fingerprint,
        versions=cache.versions("tokenizers"),
    )

    def build(aside) -> None:
        texts = (document.text for document in corpus.parts["train"])
        config.build(texts).save(aside)

    return tokenizer.load(cache.built(cache.root() / "tokenizers" / name, build))


def text(
    corpus: Corpus, tokens: Tokenizer, *, seq_len: int, batch_size: int, progress: bool
) -> Prepared:
    """Documents one behind the other, in windows of `seq_len` targets."""
    need_parts(corpus)
    path = _plain(corpus, tokens, progress=progress)
    train_laid = windows.open_laid(path / "train", tokens.pad_id)
    heldout_laid = windows.open_laid(path / "heldout", tokens.pad_id)
    train = windows.whole(train_laid, seq_len)
    heldout = windows.covering(heldout_laid, seq_len)
    if (have := len(heldout_laid.tokens)) < seq_len + 1:
        raise UserError(
            f"{corpus.source}: the held-out part has {have} tokens and does not fill "
            f"one window of seq_len + 1 = {seq_len + 1}; give more text, or a "
            f"seq_len of at most {max(have - 1, 0)}."
        )
    need_batch(corpus, train, batch_size, f"windows of {seq_len} tokens")
    facts = {"train": _laid_facts(train_laid), "heldout": _laid_facts(heldout_laid)}
    return _prepared(corpus, tokens, train, heldout, path.name, facts)


def answers(
    corpus: Corpus,
    tokens: Tokenizer,
    *,
    seq_len: int,
    batch_size: int,
    too_long: str,
    progress: bool,
) -> Prepared:
    """Prompts with answers, one to a row; only answers are scored."""
    need_parts(corpus)
    path = _paired(corpus, tokens, progress=progress)
    train = answer_rows(path / "train", corpus, tokens, seq_len, too_long)
    heldout = answer_rows(path / "heldout", corpus, tokens, seq_len, too_long)
    need_batch(corpus, heldout, 1, "held-out examples")
    need_batch(corpus, train, batch_size, "training examples")
    facts = {"train": _row_facts(train), "heldout": _row_facts(heldout)}
    return _prepared(corpus, tokens, train, heldout, path.name, facts)


def answer_rows(
    path: pathlib.Path, corpus: Corpus, tokens: Tokenizer, seq_len: int, too_long: str
) -> Rows:
    """One part's rows, or the refusal of those that are too long."""
    rows = Rows(windows.open_laid(path, tokens.pad_id), seq_len)
    if too_long == "refuse" and (n := rows.n_cut + rows.n_left_out):
        raise UserError(
            f"{corpus.source}: {n} of {len(rows) + rows.n_left_out} examples in "
            f"{path.name} are longer than seq_len + 1 = {seq_len + 1} tokens; raise "
            'seq_len, or say too_long="cut" to cut the middle of their prompts.'
        )
    return rows


def everything(corpus: Corpus, tokens: Tokenizer, *, seq_len: int) -> Windows:
    """All of a corpus as windows, the last one filled up with weight 0."""
    if pairs.holds_pairs(corpus.source):
        path = _paired(corpus, tokens, progress=True)
        return answer_rows(path / "every", corpus, tokens, seq_len, "refuse")
    path = _plain(corpus, tokens, progress=True)
    return windows.covering(windows.open_laid(path / "every", tokens.pad_id), seq_len)


def need_parts(corpus: Corpus) -> None:
    """Refuses a corpus of which nothing could be held out, or learnt from."""
    for name, meant in (("train", "to learn from"), ("heldout", "to hold out")):
        if not corpus.parts.get(name):
            raise UserError(
                f"{corpus.source} leaves nothing {meant}: its documents are too few "
                "or too short; give more text (several lines or files)."
            )


def need_batch(corpus: Corpus, found: Windows, least: int, what: str) -> None:
    """Refuses fewer windows than one batch."""
    if len(found) < least:
        raise UserError(
            f"{corpus.source} has {len(found)} {what}, and {least} are needed; give "
            "more text, or a smaller batch_size or seq_len."
        )


def _plain(corpus: Corpus, tokens: Tokenizer, *, progress: bool) -> pathlib.Path:
    content = cache.key(content=corpus.fingerprint, parts=[*corpus.parts])
    return layout.lay_out(
        corpus.parts,
        lambda name: _Plain(corpus.parts[name]),
        tokens,
        content=content,
        progress=progress,
    )


def _paired(corpus: Corpus, tokens: Tokenizer, *, progress: bool) -> pathlib.Path:
    content = cache.key(
        content=corpus.fingerprint, parts=[*corpus.parts], pairs=pairs.FORMAT
    )
    return layout.lay_out(
        corpus.parts,
        functools.partial(pairs.read, corpus),
        tokens,
        content=content,
        progress=progress,
    )


def _prepared(corpus, tokens, train, heldout, fingerprint, facts) -> Prepared:
    description = {
        "source": corpus.source,
        "content": corpus.fingerprint,
        "tokenizer": tokens.fingerprint,
        **corpus.facts,
    }
    for name, part in (("train", train), ("heldout", heldout)):
        counts = {"windows": len(part), "scored": part.n_tokens, "bytes": part.n_bytes}
        description[name] = {**counts, **facts[name]}
    return Prepared(tokens, train, heldout, fingerprint, description)


def _laid_facts(laid: windows.Laid) -> dict:
    return {"documents": len(laid.ends), "tokens": len(laid.tokens)}


def _row_facts(rows: Rows) -> dict:
    return {"cut": rows.n_cut, "left_out": rows.n_left_out}
