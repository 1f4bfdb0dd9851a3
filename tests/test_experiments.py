"""Every experiment that the repository offers fits its layout, at any size."""

import importlib
from pathlib import Path

import pytest

from jaxpar.config import fingerprint, from_json, is_free, to_json
from jaxpar.experiment import CLASSES, Finetune, Pretrain
from jaxpar.look import show
from jaxpar.run.placing import layout_for
from jaxpar.tree import flatten

FOLDER = Path(__file__).parent.parent / "experiments"
COUNTS = {
    "quickstart": (4.2e6, 4.6e6),
    "stdlib": (6.0e6, 6.4e6),
    "converged": (38e3, 40e3),
    "own_model": (107e3, 108e3),
    "own_event": (150e3, 160e3),
    "gpt2_124m": (124.0e6, 124.6e6),
    "llama_7b": (6.6e9, 6.9e9),
    "gpt3_175b": (174e9, 175e9),
    "moe": (10.7e6, 10.8e6),
    "mixtral_8x7b": (46.7e9, 46.8e9),
    "deepseek_16b": (16.8e9, 16.9e9),
}


def of(name):
    return importlib.import_module(f"experiments.{name}").experiment


def test_every_experiment_is_known_to_this_test():
    names = {path.stem for path in FOLDER.glob("*.py")}
    assert names == {*COUNTS, "quickstart_finetune"}


@pytest.mark.parametrize("name", COUNTS)
def test_an_experiment_costs_nothing_to_describe(name):
    run = of(name)
    state = run.recipe().abstract(layout_for(run))
    least, most = COUNTS[name]
    assert least < sum(leaf.size for leaf in flatten(state.params).values()) < most
    assert str(show(run))


@pytest.mark.parametrize("name", [*COUNTS, "quickstart_finetune"])
def test_an_experiment_is_written_and_read_as_json(name):
    run = of(name)
    own = {type(run.model).__name__: type(run.model)}
    again = from_json(to_json(run), {**CLASSES, **own})
    assert again == run
    assert fingerprint(again) == fingerprint(run)


def test_the_quickstart_divides_for_every_later_layout():
    run = of("quickstart")
    assert (run.model.attention.n_heads, run.model.attention.n_kv_heads) == (8, 8)
    assert run.model.n_layers % 4 == 0 and run.data.seq_len % 16 == 0


@pytest.mark.parametrize("kind", [Pretrain, Finetune])
def test_only_these_fields_leave_the_numbers_as_they_are(kind):
    free = {f.name for f in kind.__dataclass_fields__.values() if is_free(f)}
    # A path is none of them: the receipt says which run and step it led to.
    assert free - {"start_from"} == {
        "num_steps", "layout", "microbatches", "save_every", "log_every", "keep",
        "on_save_error", "check_replicas", "fsdp_gathers",
    }  # fmt: skip
