"""A text that stays in its file is read as the bytes that it is."""

import gc
import random
import sys

import pytest

from jaxpar.errors import UserError
from jaxpar.files import scanned, split
from jaxpar.files.file_text import FileText
from jaxpar.files.scanned import Piece, scan, tail_of_file


def test_slices_are_those_of_the_bytes(tmp_path):
    raw = bytes(range(256)) * 3
    (tmp_path / "a").write_bytes(b"before" + raw + b"after")
    text = FileText(tmp_path / "a", 6, 6 + len(raw))
    assert len(text) == len(raw) and text[:] == raw
    rng = random.Random(0)
    for _ in range(200):
        where = slice(*(rng.choice([None, rng.randrange(-900, 900)]) for _ in "ab"))
        assert text[where] == raw[where]


def test_a_file_that_is_cut_short_meanwhile_is_an_error(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 1_000)
    text = FileText(tmp_path / "a", 0, 1_000)
    (tmp_path / "a").write_bytes(b"x" * 10)
    with pytest.raises(UserError, match="has become shorter .* ends at byte 10"):
        text[5:20]


def test_only_a_long_text_stays_in_its_file(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x" * 1_000)
    piece = Piece(tmp_path / "a", "a", 10, 900)
    assert piece.read() == b"x" * 890
    monkeypatch.setattr(scanned, "LONG_BYTES", 890)
    assert isinstance(piece.read(), FileText)


def old_tail(text):
    """The definition: every started run hangs on it."""
    mark = len(text) - len(text) // 20
    stop = len(text) - (text[-1:] == b"\n")
    if (newline := text.find(b"\n", max(mark - 1, 0), stop)) >= 0:
        return newline + 1
    newline = text.rfind(b"\n", 0, stop)
    return newline + 1 if newline >= 0 else len(text)


@pytest.mark.parametrize("block_bytes", [1, 5, 1 << 20])
def test_the_held_out_end_starts_where_it_always_did(
    tmp_path, monkeypatch, block_bytes
):
    monkeypatch.setattr(split, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(scanned, "BLOCK_BYTES", block_bytes)
    rng = random.Random(0)
    for n in [1, 2, 19, 20, 21, 40, 99, 200, 401] * 20:
        raw = bytes(rng.choices(b"ab\n", weights=[9, 9, rng.choice([0, 0.1, 3])], k=n))
        (tmp_path / "a").write_bytes(raw)
        start = old_tail(raw)
        assert split.tail(raw) == start
        assert tail_of_file(tmp_path / "a") == (start, 1 + raw[:start].count(b"\n"))


def bytes_held(root):
    """What would be freed with an object, if nothing else held what it refers to.

    What tracemalloc says of a call has the interpreter's own tables in it: that of
    interned strings is made anew, with a megabyte, while some file or other is read.
    """
    seen, todo = {}, [root]
    while todo:
        each = todo.pop()
        if id(each) not in seen and not isinstance(each, type):
            seen[id(each)] = each
            todo += gc.get_referents(each)
    return sum(map(sys.getsizeof, seen.values()))


def test_many_files_take_little_memory_each(tmp_path):
    def taken(n):
        for i in range(n):
            (tmp_path / f"{i:04}.txt").write_bytes(b"text")
        files = scan({p.name: p for p in tmp_path.iterdir()})
        assert len(files) == n
        return bytes_held(files)

    less = taken(1_000)
    assert 50 < (taken(2_000) - less) / 1_000 < 400
