"""Configuration comes back from JSON, and knows what makes a run another run."""

import dataclasses
import json

import pytest

from jaxpar.config import (
    Spelled,
    added,
    differences,
    fingerprint,
    free,
    from_json,
    to_json,
)
from jaxpar.errors import NoUsableCheckpoint, UserError
from jaxpar.tree import flatten, unflatten


@dataclasses.dataclass(frozen=True)
class Word(Spelled):
    spelling: str

    @classmethod
    def parse(cls, text):
        return cls(text)


@dataclasses.dataclass(frozen=True)
class Inner:
    # As under `from __future__ import annotations`.
    rate: "float"
    names: "tuple[str, ...]" = ()
    every: "int" = free(10)


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    many: tuple[Inner, ...] = ()
    where: Word = free(Word("data=1"))
    seed: int = 0
    note: str | None = None


CLASSES = {kind.__name__: kind for kind in (Word, Inner, Outer)}
VALUE = Outer(Inner(0.1, ("a", "b")), (Inner(0.2), Inner(0.3, every=4)), Word("x=2"))


def test_a_configuration_comes_back_from_its_json():
    text = json.dumps(to_json(VALUE))
    assert from_json(json.loads(text), CLASSES) == VALUE
    assert json.loads(text)["where"] == {"type": "Word", "spelling": "x=2"}


def test_a_class_is_looked_up_and_never_imported():
    for name in ("os.system", "Spelt", None, ["Outer"]):
        with pytest.raises(UserError, match="RunDir.open.* --import"):
            from_json({"type": name}, CLASSES)


def test_fields_that_are_unknown_or_missing_are_named():
    with pytest.raises(UserError, match="no field 'rat'; did you mean 'rate'"):
        from_json({"type": "Inner", "rat": 1.0}, CLASSES)
    with pytest.raises(UserError, match="Inner cannot be read.*'rate'"):
        from_json({"type": "Inner"}, CLASSES)


def test_what_is_no_configuration_is_not_written():
    with pytest.raises(UserError, match="cannot stand in a configuration"):
        to_json(dataclasses.replace(VALUE, note=object()))


def test_only_what_changes_the_numbers_is_the_identity():
    calmer = dataclasses.replace(VALUE.inner, every=99)
    same = dataclasses.replace(VALUE, inner=calmer, where=Word("y=4"))
    assert fingerprint(same) == fingerprint(VALUE)
    faster = dataclasses.replace(VALUE.inner, rate=0.5)
    for other in (
        dataclasses.replace(VALUE, seed=1),
        dataclasses.replace(VALUE, inner=faster),
        dataclasses.replace(VALUE, many=()),
    ):
        assert fingerprint(other) != fingerprint(VALUE)
    assert len(fingerprint(VALUE)) == 8 and int(fingerprint(VALUE), 16) >= 0


@dataclasses.dataclass(frozen=True)
class Newer(Outer):
    """A class that has got a field since its first runs."""

    reading: str = added("text")


def test_a_field_that_was_added_counts_only_off_its_default():
    def of(**fields):
        value = Newer(**dict(vars(VALUE)), **fields)
        return fingerprint(value, type="Outer")

    assert of() == fingerprint(VALUE)
    assert of(reading="body") != of()
    assert not any(
        d.free
        for d in differences(Newer(VALUE.inner), Newer(VALUE.inner, reading="body"))
    )


def test_a_replaced_field_counts_as_what_replaces_it():
    by_path = [dataclasses.replace(VALUE, note=path) for path in ("a/run", "b/run")]
    one, other = (fingerprint(value, note="1f@3") for value in by_path)
    assert one == other != fingerprint(VALUE, note="1f@4")


def test_differences_are_listed_field_by_field():
    inner = dataclasses.replace(VALUE.inner, rate=0.5, every=99)
    found = differences(dataclasses.replace(VALUE, inner=inner, seed=1), VALUE)
    assert [(d.path, d.free) for d in found] == [
        ("inner.rate", False), ("inner.every", True), ("seed", False),
    ]  # fmt: skip
    assert str(found[0]) == "inner.rate: 0.5 here, 0.1 there"


def test_what_json_cannot_tell_apart_is_no_difference():
    odd = Outer(Inner(float("nan"), ["a"]))
    again = from_json(json.loads(json.dumps(to_json(odd))), CLASSES)
    assert differences(odd, again) == []
    assert differences(Outer(Inner(0.0, ["a"])), Outer(Inner(0.0, ("b",)))) != []


def test_paths_and_unpaths_are_inverse():
    tree = {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    assert flatten(tree) == {"a/b/c": 1, "a/d": 2, "e": 3}
    assert unflatten(flatten(tree)) == tree


def test_errors_say_how_a_command_ends():
    assert (UserError.exit_status, NoUsableCheckpoint.exit_status) == (2, 4)
