"""A manifest notices every accident that can befall a directory's files."""

import json
import os

import pytest

from jaxpar.guard import manifest
from jaxpar.guard.manifest import NAME, Damage

FILES = {"a": b"first", "d/b": bytes(range(256)) * 40, "d/e/c": b"", "z": b"\0" * 64}
BLOCK = 1_000


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "step"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    manifest.write(folder, block_bytes=BLOCK)
    return folder


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at // 8] ^= 1 << at % 8
    path.write_bytes(content)


def test_what_nothing_happened_to_is_good(folder):
    assert manifest.verify(folder) == manifest.verify(folder, sizes_only=True) == []
    assert manifest.exists(folder)


@pytest.mark.parametrize("name", ["a", "d/b", "z"])
def test_a_flipped_bit_is_noticed_wherever_it_is(folder, name):
    n_bits = 8 * len(FILES[name])
    for at in range(0, n_bits, max(1, n_bits // 40)):
        flip(folder / name, at)
        assert manifest.verify(folder) == [Damage(name, "content changed")]
        assert manifest.verify(folder, sizes_only=True) == []
        flip(folder / name, at)
    assert manifest.verify(folder) == []


@pytest.mark.slow
def test_a_flipped_bit_in_the_manifest_itself_is_noticed(folder):
    for at in range(8 * (folder / NAME).stat().st_size):
        flip(folder / NAME, at)
        (damage,) = manifest.verify(folder, sizes_only=True)
        assert damage.file == NAME, at
        flip(folder / NAME, at)
    assert manifest.verify(folder) == []


@pytest.mark.parametrize("sizes_only", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_short_long_emptied_and_missing_files_are_named(folder, name, sizes_only):
    path, size = folder / name, len(FILES[name])
    path.write_bytes(FILES[name] + b"x")
    (damage,) = manifest.verify(folder, sizes_only=sizes_only)
    assert damage == Damage(name, f"{size + 1} bytes, not {size}")
    if size:
        os.truncate(path, 0)
        (damage,) = manifest.verify(folder, sizes_only=sizes_only)
        assert damage == Damage(name, f"0 bytes, not {size}")
    path.unlink()
    assert manifest.verify(folder, sizes_only=sizes_only) == [Damage(name, "missing")]


def test_additional_files_and_a_missing_manifest_are_named(folder):
    (folder / "d" / "new").write_text("x")
    assert manifest.verify(folder) == [Damage("d/new", "not in the manifest")]
    (folder / "d" / "new").unlink()
    (folder / f"{NAME}.77.tmp").write_text("what a killed writer leaves")
    assert manifest.verify(folder) == []
    (folder / NAME).unlink()
    (damage,) = manifest.verify(folder)
    assert damage.file == NAME and "No such file" in damage.what


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "d/../../secret"])
def test_names_that_leave_the_directory_are_refused(folder, tmp_path, name):
    (tmp_path / "secret").write_text("secret")
    table = json.loads((folder / NAME).read_text())
    del table["table_sha256"]
    table["files"][name] = {"bytes": 6, "sha256": ["0" * 64]}
    (folder / NAME).write_text(manifest._text(table))
    assert manifest.verify(folder) == [Damage(name, "its name leaves the directory")]


def test_links_out_of_the_directory_are_refused(folder, tmp_path):
    (tmp_path / "same").write_bytes(FILES["a"])
    (folder / "a").unlink()
    (folder / "a").symlink_to(tmp_path / "same")
    (tmp_path / "other").mkdir()
    (folder / "more").symlink_to(tmp_path / "other")
    what = "a link that leaves the directory"
    assert manifest.verify(folder) == [Damage("a", what), Damage("more", what)]
    assert manifest.links_out(folder) == [Damage("more", what), Damage("a", what)]


def test_a_link_to_the_directory_is_none_out_of_it(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert manifest.verify(tmp_path / "link") == []


def test_a_part_of_the_directory_is_verified_alone(folder):
    flip(folder / "a", 3)
    assert manifest.verify(folder, below="d/") == []
    assert manifest.verify(folder, below="a") == [Damage("a", "content changed")]


def test_a_manifest_of_a_newer_format_is_refused_by_its_number(folder):
    table = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps({**table, "format": 2}))
    (damage,) = manifest.verify(folder)
    assert damage == Damage(NAME, "of format 2; this jaxpar reads format 1")


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"files": 3}', "\0\xff"])
def test_what_is_no_manifest_is_said_to_have_changed(folder, text):
    (folder / NAME).write_text(text)
    assert manifest.verify(folder) == [Damage(NAME, "content changed")]


def test_a_failure_while_writing_leaves_the_old_manifest(folder, monkeypatch):
    (folder / "a").write_bytes(b"other")

    def fail(*paths):
        raise OSError("disk full")

    before = (folder / NAME).read_bytes()
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        manifest.write(folder)
    assert (folder / NAME).read_bytes() == before


def test_every_block_is_hashed_once_by_one_of_the_processes(folder, monkeypatch):
    sizes = {name: len(content) for name, content in FILES.items()}
    alone = manifest._share(sizes, BLOCK)
    shares = []
    for index in range(3):
        monkeypatch.setattr(manifest.cluster, "count", lambda: 3)
        monkeypatch.setattr(manifest.cluster, "index", lambda index=index: index)
        shares.append(manifest._share(sizes, BLOCK))
    assert sorted(block for share in shares for block in share) == sorted(alone)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert len(alone) == 1 + 11 + 0 + 1
