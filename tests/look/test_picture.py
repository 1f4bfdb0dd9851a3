"""Pictures: true to JAX's own shardings, small, and drawn for any rank and mesh.

pytest tests/look/test_picture.py
"""

import io
import json
import types

import jax
import numpy as np
import pytest

from jaxpar.errors import UserError
from jaxpar.look import answers, curves, figures, picture, show
from jaxpar.look.answers import Answers
from jaxpar.models import sizes
from jaxpar.partition.layout import Layout
from jaxpar.pipeline.ticks import Schedule
from jaxpar.train.loop import Evaluation, History
from tests.look.test_show import experiment

pytest.importorskip("matplotlib")
from PIL import Image  # noqa: E402


@pytest.mark.parametrize(
    "layout",
    ["fsdp=4,tensor=2", "data=8", "replica=2,fsdp=2,tensor=2", "stage=2,fsdp=4"],
)
def test_devices_of_one_number_hold_the_same_indices(layout):
    placed = Layout.parse(layout).on(jax.devices())
    for row in show(experiment(), layout).rows:
        sharding = placed.sharding(row.axes, "stored")
        held = sharding.devices_indices_map(row.shape)
        numbers = picture.pieces(placed.layout, row.axes)
        indices = [str(held[device]) for device in placed.mesh.devices.flat]
        pairs = set(zip(numbers.flat, indices, strict=True))
        assert len(pairs) == len(set(indices)) == len(set(numbers.flat)), row.path


def test_a_label_says_which_indices_a_device_holds():
    (row,) = [r for r in show(experiment()).rows if r.path == "layers/attn/w_q"]
    ways, layout = [1, 4, 2, 1], Layout.parse("fsdp=4,tensor=2")
    assert picture._range(row, ways, 0, layout) == "0:192\n0:6"
    assert picture._range(row, ways, 7, layout) == "576:768\n6:12"
    layout = Layout.parse("stage=2x3")
    assert picture._range(row, [2, 1, 1, 1], 0, layout) == "0:2 4:6 8:10"
    assert picture._range(row, [2, 1, 1, 1], 1, layout) == "2:4 6:8 10:12"


@pytest.mark.parametrize(
    "layout", ["data=1", "fsdp=4,tensor=2", "replica=2,fsdp=2,tensor=2"]
)
def test_the_picture_is_a_small_file(layout, tmp_path):
    file = tmp_path / "picture.png"
    figure = show(experiment(), layout).plot(file)
    assert file.stat().st_size < 100_000
    assert np.asarray(Image.open(file).convert("RGB")).std() > 10
    # A panel for each of the 16 largest parameters, and the bars.
    assert len(figure.axes) == picture.MOST_PANELS + 1
    assert "4 smaller parameters are not drawn" in figure.get_suptitle()


@pytest.mark.parametrize("n_rounds", [1, 3])
def test_a_pipelines_clock_has_every_microbatch_once_in_each_round(n_rounds):
    microbatches, rounds = picture.clock(Schedule(4, 2, n_rounds))
    assert microbatches.shape == rounds.shape == (4, 8 * n_rounds + 3)
    for stage in range(4):
        turns = slice(stage, stage + 8 * n_rounds)
        done = [*zip(rounds[stage, turns], microbatches[stage, turns], strict=True)]
        assert sorted(done) == [(r, m) for r in range(n_rounds) for m in range(8)]
        assert np.sum(microbatches[stage] < 0) == 3


def test_a_circular_pipelines_clock_is_drawn(tmp_path):
    table = show(experiment(), "stage=2x3,tensor=2")
    figure = table.plot(tmp_path / "picture.png")
    assert "in 3 rounds, each paler than the last" in figure.axes[-1].get_title()
    assert (tmp_path / "picture.png").stat().st_size < 100_000


def test_thousands_of_devices_are_drawn_without_labels(tmp_path):
    table = show(experiment(sizes.GPT_175B, layout="fsdp=512,tensor=8"))
    figure = table.plot(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size < 100_000
    assert not figure.axes[0].texts


def test_the_background_is_opaque_so_that_it_is_legible_on_any_page():
    page = Image.open(io.BytesIO(show(experiment()).plot()._repr_png_()))
    corner = page.convert("RGBA").getpixel((0, 0))
    assert corner == (*bytes.fromhex(figures.PAPER[1:]), 255)


def test_a_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"\.\[notebook\]"):
        show(experiment()).plot()


def test_a_picture_that_cannot_be_written_is_an_error_of_the_user(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        figures.written(figures.new(1, 1), tmp_path / "missing" / "picture.png")


ROWS = [
    {"step": 0, "split": "heldout", "nats_per_token": 5.5},
    *({"step": i, "loss": 5 - i / 10} for i in range(1, 11)),
    {"step": 10, "split": "heldout", "nats_per_token": None},
    {"step": 10, "split": "sample", "nats_per_token": 0.1},  # Of a user's event.
]


def test_losses_of_training_and_held_out_stand_in_one_chart(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "metrics.jsonl").write_text(lines)
    figure = curves.plot_losses(tmp_path, tmp_path / "losses.png")
    training, heldout = figure.axes[0].lines
    assert training.get_label() == "training: 4.000"
    assert heldout.get_label() == "held out: 5.500"
    assert len(training.get_xdata()) == 10 and len(heldout.get_xdata()) == 1
    assert (tmp_path / "losses.png").stat().st_size < 30_000


def test_a_run_without_metrics_has_no_chart(tmp_path):
    with pytest.raises(UserError, match="no step of it was logged"):
        curves.plot_losses(tmp_path)


def test_live_losses_are_drawn_in_place_once_for_each_evaluation(monkeypatch):
    shown = []

    class Handle:
        def update(self, figure):
            shown.append(figure)

    def display(figure, display_id):
        shown.append(figure)
        return Handle()

    fake = types.SimpleNamespace(display=display)
    monkeypatch.setitem(__import__("sys").modules, "IPython.display", fake)
    monkeypatch.setattr(curves, "_in_notebook", lambda: True)
    event, history = curves.LiveLosses(every=5), History()
    history.num_steps = 7
    for step in range(8):
        if step in (0, 3):
            history.evaluation = Evaluation(step, 5.0 - step)
        if step:
            history.rows.append({"step": step, "loss": 5.0})
        if event.due(step, history):
            event.run(step, None, history)
    assert len(shown) == 4  # Steps 0, 3, 5 and 7.
    assert list(shown[-1].axes[0].lines[1].get_xdata()) == [0, 3]


def test_live_losses_do_nothing_outside_of_a_notebook():
    assert not curves.LiveLosses(every=1).due(1, History())


def test_answers_are_counted_and_keep_their_lines_in_a_notebook(monkeypatch):
    given = {"one": [" yes", "no", "filled"], "two": ["yes", "a\nb", "filled"]}
    layout = Layout.parse("data=3").on(jax.devices()[:3])

    def answer(opened, prompts, how):
        assert prompts == ("p", "q", "p") and how.temperature == 0
        return [], given[opened.name]

    monkeypatch.setattr(answers, "answer", answer)
    runs = [types.SimpleNamespace(name=n, placed=layout) for n in ("one", "two")]
    table = answers.compare_answers(*runs, [("p", "yes"), ("q", "a\nb")])
    assert table.rows == (("p", "yes", " yes", "yes"), ("q", "a\nb", "no", "a\nb"))
    assert "As expected, of 2: before 1, after 2" in str(table)
    assert "a\\nb" in str(table) and "<td>a\nb</td>" in table._repr_html_()
    assert "pre-wrap" in table._repr_html_()


def test_no_pairs_are_refused():
    with pytest.raises(UserError, match="at least one pair"):
        answers.compare_answers(None, None, [])
    assert Answers(()).hits == (0, 0)
