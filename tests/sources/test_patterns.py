"""What `files:` names: globs, folders, lists and braces, here or beside the experiment.

pytest tests/sources/test_patterns.py
"""

import pytest

from jaxpar.data.source import Text
from jaxpar.errors import UserError
from jaxpar.sources import patterns
from jaxpar.sources.patterns import EXPERIMENT_FOLDER, matching
from jaxpar.sources.registry import open_source


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """A working directory with texts in two folders, and another one beside it."""
    for name in ("a/1.txt", "a/2.txt", "b/1.txt", "c.txt", "../there/a/9.txt"):
        path = tmp_path / "here" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n" * 60)
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path
    EXPERIMENT_FOLDER.set(None)


@pytest.mark.parametrize(
    "spelling, names",
    [
        ("a", ["1.txt", "2.txt"]),
        ("a/", ["1.txt", "2.txt"]),
        ("c.txt", ["c.txt"]),
        ("c.txt,a/1.txt", ["a/1.txt", "c.txt"]),
        ("a/1.txt, files:a/2.txt", ["1.txt", "2.txt"]),
        ("{a,b}/*.txt", ["a/1.txt", "a/2.txt", "b/1.txt"]),
        ("{a/{1,2},b/1}.txt", ["a/1.txt", "a/2.txt", "b/1.txt"]),
        ("a,b,c.txt", ["a/1.txt", "a/2.txt", "b/1.txt", "c.txt"]),
    ],
)
def test_folders_lists_and_braces_are_looked_up(texts, spelling, names):
    found = matching(spelling)
    assert sorted(found) == names
    assert all(
        path.read_text().split("/")[-1][:1] == path.name[:1] for path in found.values()
    )


def test_the_names_do_not_depend_on_how_or_from_where_files_are_named(texts):
    ways = ("{a,b}/*.txt", "a/*.txt,b/*.txt", f"{texts}/here/a,{texts}/here/b", "b,a")
    prints = {open_source(f"files:{way}").fingerprint() for way in ways}
    assert len(prints) == 1


def test_several_sources_of_files_are_one(texts):
    sizes = {"seq_len": 8, "batch_size": 2}
    both = Text(("files:a/*.txt", "files:b/*.txt"), **sizes).prepare(progress=False)
    assert both.description["train"]["documents"] == 3
    with pytest.raises(UserError, match="must be files: each"):
        Text(("files:a/*.txt", "stdlib"), **sizes).prepare()


def test_a_name_that_has_a_comma_or_braces_is_a_name(texts):
    for name in ("x,y.txt", "{x,y}.txt"):
        (texts / "here" / name).write_text("z")
        assert [*matching(name)] == [name]


@pytest.mark.parametrize("spelling", ["nothing/*", "a,nothing", "{a,nothing}/*"])
def test_a_pattern_of_a_list_that_finds_nothing_is_refused(texts, spelling):
    with pytest.raises(UserError, match=r"files:nothing(/\*)? matches no file"):
        matching(spelling)


def test_what_the_working_directory_lacks_is_found_beside_the_experiment(texts):
    with pytest.raises(UserError, match="matches no file"):
        matching("a/9*")
    EXPERIMENT_FOLDER.set(texts / "there")
    assert [*matching("a/9*")] == ["9.txt"]
    assert [*matching("c*")] == ["c.txt"]
    with pytest.raises(UserError, match="matches no file .*here, or from .*there"):
        matching("nothing")


def test_what_is_in_both_places_is_refused_unless_it_is_the_same(texts):
    EXPERIMENT_FOLDER.set(texts / "there")
    for spelling in ("a", "a/*.txt"):
        with pytest.raises(UserError, match="directory and .*/there/.* only beside"):
            matching(spelling)
    assert len(matching(f"{texts}/there/a")) == 1
    EXPERIMENT_FOLDER.set(texts / "here")
    assert len(matching("a")) == 2
    (texts / "link").symlink_to(texts / "here")
    EXPERIMENT_FOLDER.set(texts / "link")
    assert len(matching("a/*.txt")) == 2
    assert patterns.located("a/1.txt") is not None and patterns.located("z") is None


@pytest.mark.parametrize("has, lacks", [("here", "there"), ("there", "here")])
def test_a_file_that_only_one_of_the_places_has_is_named_with_that_place(
    texts, has, lacks
):
    for name in ("a/1.txt", "a/2.txt", "a/9.txt"):
        (texts / has / name).write_text("x")
    (texts / lacks / "a").rename(texts / lacks / "removed")
    (texts / lacks / "a").mkdir()
    (texts / lacks / "a/1.txt").symlink_to(texts / has / "a/1.txt")
    EXPERIMENT_FOLDER.set(texts / "there")
    side = {
        "here": "from the working directory",
        "there": "beside the experiment's file",
    }
    match = rf"a/\*\.txt finds \S*/{has}/a/2.txt only {side[has]}; write"
    with pytest.raises(UserError, match=match):
        matching("a/*.txt")


@pytest.mark.parametrize("spelling", [",", " ", "{,}", " , files:"])
def test_a_list_that_holds_no_pattern_is_refused(texts, spelling):
    with pytest.raises(UserError, match="names no file"):
        open_source(f"files:{spelling}")


@pytest.mark.parametrize(
    "spelling, folder, n", [("**/1.txt", "here", 1), ("**/1.txt", "there", 2)]
)
def test_each_place_is_walked_once(texts, monkeypatch, spelling, folder, n):
    walks, glob = [], patterns.glob.glob

    def counted(*args, **how):
        walks.append(args)
        return glob(*args, **how)

    monkeypatch.setattr(patterns.glob, "glob", counted)
    EXPERIMENT_FOLDER.set(texts / folder)
    assert len(matching(spelling)) == 2
    assert len(walks) == n


def test_a_path_without_its_word_is_answered_with_the_word(tmp_path):
    (tmp_path / "texts").mkdir()
    with pytest.raises(UserError, match=r"did you mean files:.*texts\?"):
        open_source(str(tmp_path / "texts"))
    with pytest.raises(UserError, match=r"tfds:NAME\.$"):
        open_source(str(tmp_path / "nothing"))
