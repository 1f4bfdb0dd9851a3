"""Pictures of parallelism: what is drawn is what the layout says, and what JAX does.

pytest tests/look/test_parallelism.py
"""

import collections
import dataclasses
import functools
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.bench.least_bytes import least
from experiments.moe import experiment as moe
from experiments.quickstart import experiment as quickstart
from jaxpar.cli import main
from jaxpar.errors import UserError
from jaxpar.look import figures, show
from jaxpar.look.held import held
from jaxpar.look.sent import EXCHANGED, GATHERED, PASSED, REDUCED, sent
from jaxpar.models import sizes
from jaxpar.partition.layout import Layout
from jaxpar.pipeline.layer_order import layer_order
from tests.look.test_show import experiment
from tests.outside.own_model import experiment as own

pytest.importorskip("matplotlib")
from matplotlib.colors import to_rgba  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402

from jaxpar.look import parallelism  # noqa: E402

PICTURES = Path(__file__).parent.parent.parent / ".github" / "pictures"
DENSE = dataclasses.replace(
    quickstart, model=dataclasses.replace(quickstart.model, n_layers=8)
)
LAYOUTS = (
    "data=8", "zero1=8", "fsdp=8", "replica=2,fsdp=4", "fsdp=4,tensor=2",
    "data=2,tensor=4+sp", "ring=8", "data=2,context=4", "fsdp=2,ulysses=4",
    "zero1=2,ring=2,tensor=2+sp", "stage=4x2,data=2", "stage=2,fsdp=2,ring=2",
)  # fmt: skip
OF_EXPERTS = (
    "expert=8", "fsdp=2,expert=4", "stage=2x2,expert=4", "data=2,expert=2,tensor=2",
    "zero1=4,expert=2",
)  # fmt: skip
every_layout = pytest.mark.parametrize("layout", LAYOUTS + OF_EXPERTS)
TOKENS, BATCH = ("batch", "seq", "embed"), (8, 256, 1)


@functools.cache
def table_of(layout):
    return show(moe if "expert" in layout else DENSE, layout)


@functools.cache
def figure_of(layout):
    return parallelism.draw(table_of(layout), *BATCH[:2])


def in_colour(axes, color):
    return [
        patch
        for patch in axes.patches
        if isinstance(patch, Rectangle) and patch.get_facecolor() == to_rgba(color)
    ]


def cards_of(figure):
    return [axes for axes in figure.axes if axes.get_title().startswith("device ")]


def devices_with(layout, names, shape, which):
    """As `held`, from JAX's own sharding of an array."""
    placed = Layout.parse(layout).on(jax.devices())
    sharding = placed.sharding(names, which)
    slices = sharding.devices_indices_map(tuple(shape))
    orders = [np.arange(size) for size in shape]
    for i, (name, size) in enumerate(zip(names, shape, strict=True)):
        if name == "layers":
            orders[i] = layer_order(placed.layout, size)
        if name == "seq":
            orders[i] = placed.layout.token_numbers(size)
    return [
        [np.sort(order[cut]) for order, cut in zip(orders, slices[device], strict=True)]
        for device in placed.mesh.devices.flat
    ]


@every_layout
def test_a_device_holds_what_jax_puts_there(layout):
    parsed = Layout.parse(layout)
    arrays = [(row.axes, row.shape, "stored") for row in table_of(layout).rows]
    arrays += [(*array[:2], "optimizer") for array in arrays]
    for names, shape, which in [*arrays, (TOKENS[:2], BATCH[:2], "computed")]:
        found = held(parsed, names, shape, which)
        wanted = devices_with(layout, names, shape, which)
        for ours, theirs in zip(found, wanted, strict=True):
            assert [list(x) for x in ours] == [list(x) for x in theirs], names
            assert tuple(map(len, ours)) == parsed.piece(shape, names, which)


@every_layout
def test_a_card_shows_the_rows_and_tokens_that_a_device_holds(layout):
    figure = figure_of(layout)
    wanted = held(Layout.parse(layout), TOKENS[:2], BATCH[:2], "computed")
    for card, (rows, tokens) in zip(cards_of(figure), wanted, strict=True):
        drawn = np.zeros(BATCH[:2], int)
        box = card.patches[0]
        for patch in in_colour(card, parallelism.OF_TOKENS):
            x, y = patch.get_x() / box.get_width(), patch.get_y() / box.get_height()
            right = x + patch.get_width() / box.get_width()
            below = y + patch.get_height() / box.get_height()
            top, bottom = round(y * BATCH[0]), round(below * BATCH[0])
            drawn[top:bottom, round(x * BATCH[1]) : round(right * BATCH[1])] += 1
        assert drawn[np.ix_(rows, tokens)].all() and drawn.max() == 1
        assert drawn.sum() == len(rows) * len(tokens)


@every_layout
@pytest.mark.parametrize("which", ["stored", "optimizer"])
def test_a_card_shows_as_much_of_each_parameter_as_the_layouts_piece(layout, which):
    table, parsed = table_of(layout), Layout.parse(layout)
    color = {
        "stored": parallelism.OF_PARAMETERS, "optimizer": parallelism.OF_OPTIMIZER
    }[which]  # fmt: skip
    wanted = collections.Counter()
    for row in parallelism.kinds(table):
        piece = dict(
            zip(row.axes, parsed.piece(row.shape, row.axes, which), strict=True)
        )
        whole = dict(zip(row.axes, row.shape, strict=True))
        cells = piece.pop("layers", 1) * piece.pop("experts", 1)
        part = math.prod(n / whole[name] for name, n in piece.items())
        wanted[round(part, 6)] += cells
    for card in cards_of(figure_of(layout)):
        drawn, frame = collections.Counter(), None
        for patch in card.patches:
            if patch.get_facecolor() == to_rgba(parallelism.ABSENT):
                frame = patch.get_width() * patch.get_height()
            if patch.get_facecolor() == to_rgba(color):
                area = patch.get_width() * patch.get_height()
                drawn[round(area / frame, 6)] += 1
        assert drawn == wanted


@pytest.mark.parametrize("layout", OF_EXPERTS)
def test_a_card_names_the_experts_and_layers_that_a_device_holds(layout):
    parsed = Layout.parse(layout)
    held_by = held(parsed, ("layers", "experts"), (4, 8))
    for card, (layers, experts) in zip(
        cards_of(figure_of(layout)), held_by, strict=True
    ):
        said = card.texts[-1].get_text()
        for name, size, has in (("layers", 4, layers), ("experts", 8, experts)):
            text = re.search(rf"(all )?{name}([ \d:]*)", said)
            found = set(range(size)) if text[1] else set()
            for first, end in re.findall(r"(\d+):(\d+)", text[2]):
                found |= set(range(int(first), int(end)))
            assert found == set(has), said


def messages(layout, kind, what=""):
    found = sent(Layout.parse(layout), table_of(layout).rows)
    return [each for each in found if each.kind == kind and what in each.what]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def pairs_where(relation):
    return {(i, j) for i in range(8) for j in range(8) if i != j and relation(i, j)}


def whole_rows(layout, which):
    """The largest parameters, and what each device holds of them."""
    return [
        held(Layout.parse(layout), row.axes, row.shape, which)
        for row in parallelism.kinds(table_of(layout))
    ]


def in_use(layout):
    """What each device computes with of each: of its stage's layers, once gathered."""
    found = []
    parsed = Layout.parse(layout)
    for row in parallelism.kinds(table_of(layout)):
        used = held(parsed, row.axes, row.shape, "computed")
        stored = held(parsed, row.axes, row.shape, "stored")
        depth = row.axes.index("layers") if "layers" in row.axes else None
        found.append(
            [
                [s[i] if i == depth else u[i] for i in range(len(row.axes))]
                for u, s in zip(used, stored, strict=True)
            ]
        )
    return found


@every_layout
def test_gradients_are_reduced_between_devices_that_use_a_parameter_for_other_tokens(
    layout,
):
    batch = held(Layout.parse(layout), TOKENS[:2], BATCH[:2], "computed")
    wanted = set()
    for use in in_use(layout):
        wanted |= pairs_where(
            lambda i, j, use=use: same(use[i], use[j]) and not same(batch[i], batch[j])
        )
    (found,) = messages(layout, REDUCED, "gradients") or [None]
    assert (found.pairs if found else set()) == wanted


@every_layout
@pytest.mark.parametrize(
    "which, what", [("stored", "parameters"), ("optimizer", "updates")]
)
def test_slices_are_gathered_between_devices_that_use_the_whole(layout, which, what):
    wanted = set()
    stored = whole_rows(layout, "stored")
    kinds = zip(in_use(layout), stored, whole_rows(layout, which), strict=True)
    for use, kept, slices in kinds:
        # Of zero1 those whose parameters are the same, and whose moments are not.
        alike = use if which == "stored" else kept
        wanted |= pairs_where(
            lambda i, j, alike=alike, use=use, slices=slices: (
                same(use[i], use[j])
                and same(alike[i], alike[j])
                and not same(slices[i], slices[j])
            )
        )
    found = messages(layout, GATHERED, what)
    # Copies of a slice (replica) need not send it to each other's devices.
    assert bool(found) == bool(wanted)
    assert all(each.pairs <= wanted for each in found)
    if found:
        senders = {receiver for _, receiver in found[0].pairs}
        assert senders == {receiver for _, receiver in wanted}


@pytest.mark.parametrize("layout", ["ring=8", "stage=2,fsdp=2,ring=2"])
def test_keys_are_passed_to_one_device_that_has_other_tokens_of_the_same_rows(layout):
    batch = held(Layout.parse(layout), TOKENS[:2], BATCH[:2], "computed")
    (found,) = messages(layout, PASSED, "keys and values")
    assert sorted(sender for sender, _ in found.pairs) == [*range(8)]
    assert sorted(receiver for _, receiver in found.pairs) == [*range(8)]
    for sender, receiver in found.pairs:
        assert np.array_equal(batch[sender][0], batch[receiver][0])
        assert not np.array_equal(batch[sender][1], batch[receiver][1])


@pytest.mark.parametrize("layout", ["stage=4x2,data=2", "stage=2x2,expert=4"])
def test_the_next_stage_has_the_next_layers(layout):
    parsed = Layout.parse(layout)
    n_layers = 4 if "expert" in layout else 8
    layers = [each[0] for each in held(parsed, ("layers",), (n_layers,))]
    chunk = n_layers // parsed.n_stages // parsed.n_rounds
    (found,) = messages(layout, PASSED, "to the next stage")
    (back,) = messages(layout, PASSED, "outputs home")
    assert back.pairs == {(receiver, sender) for sender, receiver in found.pairs}
    assert len(found.pairs) == 8
    for sender, receiver in found.pairs:
        ends = layers[sender].reshape(-1, chunk)[:, -1] + 1
        begins = layers[receiver].reshape(-1, chunk)[:, 0]
        assert set(ends % n_layers) == set(begins)


@pytest.mark.parametrize("layout", OF_EXPERTS)
def test_tokens_go_to_every_device_that_has_other_experts_of_the_same_layers(layout):
    row = next(r for r in parallelism.kinds(table_of(layout)) if "experts" in r.axes)
    mine = held(Layout.parse(layout), row.axes, row.shape)
    at = row.axes.index("experts")
    (found,) = messages(layout, EXCHANGED)
    n_others = collections.Counter(sender for sender, _ in found.pairs)
    assert set(n_others.values()) == {Layout.parse(layout).sizes["expert"] - 1}
    for sender, receiver in found.pairs:
        assert not np.array_equal(mine[sender][at], mine[receiver][at])


@every_layout
def test_what_is_sent_is_what_costs_bytes(layout):
    run = moe if "expert" in layout else DENSE
    run = dataclasses.replace(run, layout=Layout.parse(layout))
    needed = least(run.recipe(), run.layout, *BATCH[:2])
    every = " ".join(each.what for each in sent(run.layout, table_of(layout).rows))
    for what, said in {
        "gradients and parameters": "gradients",
        "tensor": "activations, (reduced|gathered)",
        "keys and values": "keys and values|heads for tokens",
        "stages": "to the next stage",
        "experts": "tokens to experts",
    }.items():
        # Rounding leaves a byte's part of nothing.
        assert bool(re.search(said, every)) == (needed[what] > 1e-6), what


@pytest.mark.parametrize("layout", ["stage=4,data=2", "stage=4x2,data=2"])
def test_the_clock_has_as_many_busy_cells_as_microbatches_in_all_rounds(layout):
    table = table_of(layout)
    clock = figure_of(layout).axes[-1]
    busy = collections.Counter(text.get_position()[1] for text in clock.texts)
    turns = table.microbatches * table.layout.n_rounds
    assert busy == dict.fromkeys(range(4), turns)
    width = clock.images[0].get_array().shape[1]
    assert width == turns + 3 and f"{3 / width:.0%}" in clock.get_title()


@pytest.mark.parametrize("layout", ["data=1", "fsdp=4,tensor=2"])
def test_only_a_pipeline_has_a_clock(layout):
    assert not any("bubble" in axes.get_title() for axes in figure_of(layout).axes)


def test_an_arrow_is_drawn_for_each_pair():
    figure = figure_of("ring=8")
    (ring,) = [axes for axes in figure.axes if "passed on" in axes.get_title()]
    (reduced,) = [axes for axes in figure.axes if "reduced" in axes.get_title()]
    arrows = [text for text in ring.texts if getattr(text, "arrow_patch", None)]
    assert len(arrows) == 8
    # Between two that send to each other there is one with two heads.
    arrows = [text for text in reduced.texts if getattr(text, "arrow_patch", None)]
    assert len(arrows) == 8 * 7 / 2


def test_every_picture_of_the_readme_is_small_and_says_what_it_shows():
    files = sorted(PICTURES.glob("*"))
    readme = (PICTURES.parent.parent / "README.md").read_text()
    shown = re.findall(r"!\[([^]]{20,})\]\(\.github/pictures/([^)]*)\)", readme)
    assert {name for _, name in shown} == {file.name for file in files}
    assert len({alt for alt, _ in shown}) == len(files)
    for file in files:
        assert file.suffix == ".png" and file.stat().st_size < 100_000, file.name


def test_thousands_of_devices_are_drawn_by_the_first_of_them():
    run = experiment(sizes.GPT_175B, layout="fsdp=512,tensor=8")
    figure = parallelism.plot_layout(run)
    assert len(cards_of(figure)) == parallelism.MOST_DEVICES
    assert "the first 16 are drawn" in figure.get_suptitle()
    assert len(figures.png(figure)) < 100_000


def test_a_model_of_ones_own_is_drawn():
    figure = parallelism.plot_layout(own, "data=2,tensor=2")
    assert len(cards_of(figure)) == 4


def test_the_command_line_writes_the_picture(tmp_path, capsys):
    file = tmp_path / "layout.png"
    words = ["experiments/quickstart.py", "--layout", "ring=4"]
    assert main(["show", *words, "--plot-layout", str(file)]) == 0
    assert 5_000 < file.stat().st_size < 100_000
    assert main(["show", "experiments/quickstart.py", "--help"]) == 0
    assert "--plot-layout" in capsys.readouterr().out


def test_a_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"\.\[notebook\]"):
        parallelism.plot_layout(quickstart, "ring=4")
