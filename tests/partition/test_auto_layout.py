"""The layout that is chosen for the devices that there are."""

import dataclasses

import pytest

from jaxpar.config import fingerprint, from_json, to_json
from jaxpar.errors import UserError
from jaxpar.experiment import CLASSES
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.auto_layout import (
    AutoLayout,
    Demand,
    auto,
    choose_layout,
    devices_per_host,
    memory_of,
    parse_layout,
)
from jaxpar.partition.layout import Layout
from jaxpar.train.objective import CausalLM
from jaxpar.train.state import Recipe
from jaxpar.train.state_bytes import state_bytes

GIB = 1 << 30
GPT_124M = sizes.GPT_124M
LLAMA_7B = sizes.LLAMA_7B


@dataclasses.dataclass(frozen=True)
class StandIn:
    """A GPU that is not there."""

    process_index: int = 0
    memory: int | None = 80 * GIB

    def memory_stats(self):
        return self.memory and {"bytes_limit": self.memory}


def demand_of(model, batch_size, microbatches=1):
    recipe = Recipe(
        model, CausalLM(), AdamW(peak_lr=1e-3, warmup_steps=1, decay_steps=1)
    )
    return Demand(
        batch_size,
        microbatches,
        check=recipe.abstract,
        state_bytes=lambda layout: sum(state_bytes(recipe, layout)),
    )


@pytest.mark.parametrize(
    ("model", "n_gpus", "batch_size", "chosen"),
    [
        (GPT_124M, 1, 8, "data=1"),
        (GPT_124M, 4, 8, "data=4"),
        (GPT_124M, 8, 8, "data=8"),
        (GPT_124M, 8, 4, "data=4,tensor=2"),
        # 12 heads: no tensor=8.
        (GPT_124M, 8, 2, "data=2,tensor=4"),
        (LLAMA_7B, 1, 8, "data=1"),
        (LLAMA_7B, 4, 8, "fsdp=4"),
        (LLAMA_7B, 8, 8, "fsdp=8"),
        (LLAMA_7B, 8, 4, "data=4,tensor=2"),
        (LLAMA_7B, 8, 1, "tensor=8"),
        (LLAMA_7B, 64, 64, "fsdp=64"),
        (LLAMA_7B, 64, 32, "data=32,tensor=2"),
    ],
)
def test_on_gpus_the_model_and_the_batch_choose(model, n_gpus, batch_size, chosen):
    demand = demand_of(model, batch_size)
    layout = choose_layout(
        n_gpus, demand, per_host=8 if n_gpus > 8 else n_gpus, memory=80 * GIB
    )
    assert layout.spelling == chosen


def test_where_nothing_leaves_room_the_least_is_on_each_device():
    def no_fsdp(layout):
        if "fsdp" in layout.spelling:
            raise UserError("cannot be sliced")

    whole = demand_of(LLAMA_7B, 8)
    demand = dataclasses.replace(whole, check=no_fsdp)
    layout = choose_layout(8, demand, per_host=8, memory=1 * GIB)
    assert layout.spelling == "tensor=8"
    assert choose_layout(8, demand, per_host=8).spelling == "data=8"


def test_every_choice_uses_all_devices_and_divides_the_batch():
    for n in (1, 2, 3, 4, 6, 8, 16, 24):
        for rows in (1, 2, 3, 6, 8, 12):
            try:
                layout = choose_layout(n, demand_of(GPT_124M, rows), per_host=8)
            except UserError:
                continue
            assert layout.n_devices == n
            assert rows % layout.batch_divisor == 0


def test_a_batch_that_cannot_be_divided_is_refused_with_sizes_that_can():
    demand = demand_of(GPT_124M, 10, microbatches=2)
    with pytest.raises(UserError, match="nearest legal sizes are 8 and 12"):
        choose_layout(8, demand, per_host=8)
    for near in (8, 12):
        assert choose_layout(8, demand_of(GPT_124M, near, 2), per_host=8).n_devices == 8


def test_tensor_parallelism_stays_within_a_host():
    with pytest.raises(UserError, match=r"nearest legal sizes are 2\."):
        choose_layout(4, demand_of(GPT_124M, 1), per_host=2)
    hosts = ["a", "a", "b", "b"]
    devices = [StandIn(process) for process in (0, 1, 2, 3)]
    assert devices_per_host(devices, hosts) == 2


def test_memory_that_one_device_does_not_tell_is_not_known():
    assert memory_of([StandIn(), StandIn(memory=40 * GIB)]) == 40 * GIB
    assert memory_of([StandIn(), StandIn(memory=None)]) is None


@pytest.mark.parametrize("text", ["auto", 'auto(cpu="data=4,tensor=2")'])
def test_a_request_for_a_layout_is_written_and_read(text):
    request = parse_layout(text)
    assert request.spelling == text
    assert parse_layout(text.replace('"', "")) == request
    assert from_json(to_json(request), CLASSES) == request


@pytest.mark.parametrize("text", ["auto()", "auto(gpu=data=8)", "auto=8", "automatic"])
def test_what_spells_no_request_is_refused(text):
    with pytest.raises(UserError, match="write auto"):
        parse_layout(text)


def test_a_request_with_a_layout_that_there_is_not_is_refused():
    with pytest.raises(UserError, match="unknown mesh axis 'tensors'"):
        auto(cpu="tensors=2")


def test_the_layout_is_no_part_of_what_a_run_is():
    from experiments.quickstart import experiment

    fixed = dataclasses.replace(experiment, layout=Layout.parse("data=4,tensor=2"))
    assert isinstance(experiment.layout, AutoLayout)
    assert fingerprint(experiment) == fingerprint(fixed)
