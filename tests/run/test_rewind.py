"""A run goes back from a loss spike, and never meets the windows of its batch again.

pytest tests/run/test_rewind.py
"""

import dataclasses
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpar import pretrain
from jaxpar.checkpoint.verified import Check
from jaxpar.data.order import order
from jaxpar.data.source import Text
from jaxpar.errors import Diverged, NoUsableCheckpoint
from jaxpar.metrics.metrics_file import read_metrics
from jaxpar.run import fitting, rewind
from jaxpar.run.directory import RunDir
from jaxpar.run.rewind import go_back, skipped_at
from jaxpar.train.objective import CausalLM
from jaxpar.train.spikes import GoBack, Rewind, Spike, Warn
from jaxpar.train.step import make_train_step
from tests.run.test_resumed_metrics import RUN

SPIKE = 12
"""The step whose batch has the poisoned window first, once losses are known."""
LAST = 60
"""So many steps are more than two epochs."""


@dataclasses.dataclass(frozen=True)
class Poisoned(CausalLM):
    """Its loss is ten times as high where a row begins with the mark."""

    mark: tuple[int, ...] = ()

    def __call__(self, model, batch, keys):
        sums = super().__call__(model, batch, keys)
        begins = batch["tokens"][:, : len(self.mark)] == jnp.array(self.mark)[None]
        is_there = begins.all(axis=1).any()
        return sums._replace(loss=sums.loss * jnp.where(is_there, 10.0, 1.0))


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """A run on a small corpus, of which one window is poisoned; without a policy."""
    folder = tmp_path_factory.mktemp("texts")
    source = random.Random(0)
    for i in range(40):
        letters = source.choices("abcdefgh ", k=160)
        (folder / f"{i}.txt").write_text("".join(letters))
    data = Text(f"files:{folder}/*.txt", seq_len=32, batch_size=8)
    run = dataclasses.replace(
        RUN, data=data, num_steps=LAST, save_every=4, keep=3, eval_every=1_000
    )
    windows = data.prepare(progress=False).train
    assert 8 * SPIKE < len(windows) < 8 * LAST // 2
    at = order(run.seed, SPIKE - 1, 8, len(windows))[3]
    tokens = CausalLM().row(windows[int(at)])["tokens"]
    objective = Poisoned(mark=tuple(map(int, tokens[:24])))
    return dataclasses.replace(run, objective=objective)


REWIND = Rewind(window=6, min_rise=3.0, factor=3.0, steps=3, max_rewinds=2)
WARN = Warn(window=6, min_rise=3.0, factor=3.0)


class Killed(BaseException):
    """What no code catches, as a process that is killed runs none."""


@pytest.fixture
def seen(monkeypatch):
    """The tokens of each batch by step, in order; `seen.kill_at` kills a later time."""

    class Seen(list):
        def __init__(self):
            self.kill_at, self.compiled, self.went_back = None, [], False

    seen = Seen()

    def make(*args, **kwargs):
        step = make_train_step(*args, **kwargs)
        seen.compiled.append(step)

        def train_step(state, batch):
            number = int(state.step) + 1
            seen.went_back |= bool(seen) and number <= seen[-1][0]
            if number == seen.kill_at and seen.went_back:
                seen.kill_at = None
                raise Killed
            seen.append((number, np.asarray(batch["tokens"])))
            return step(state, batch)

        return train_step

    monkeypatch.setattr(fitting, "make_train_step", make)
    return seen


def windows_of_the_spike(run):
    n = len(run.data.prepare(progress=False).train)
    return sorted(set(order(run.seed, SPIKE - 1, run.data.batch_size, n).tolist()))


def require_never_again(run, seen, since):
    """None of the spike's windows is in a batch after the rewind."""
    windows = run.data.prepare(progress=False).train
    gone = {
        CausalLM().row(windows[i])["tokens"].tobytes()
        for i in windows_of_the_spike(run)
    }
    rows = [row.tobytes() for _, batch in seen[since:] for row in batch]
    assert rows and not gone & set(rows)


def result(home):
    """The losses of all steps, and everything that the newest checkpoint holds."""
    rows = read_metrics(home / "metrics.jsonl")
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    run = RunDir(home)
    checkpoints = run.checkpoints()
    newest = checkpoints.newest()
    experiment = run.open(Poisoned)
    target = experiment.recipe().target(experiment.layout.on(jax.devices()))
    state, memory = checkpoints.restore(newest, target)
    checkpoints.close()
    return losses, jax.device_get(state), memory


def require_same(found, expected):
    assert found[0] == expected[0] and found[2] == expected[2]
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])


@pytest.mark.slow
def test_a_warning_names_step_and_windows_and_changes_nothing(plan, tmp_path, capsys):
    run = dataclasses.replace(plan, on_spike=WARN, num_steps=16)
    assert pretrain.main(run, run_dir=tmp_path / "run") == 0
    flagged = [r for r in read_metrics(tmp_path / "run/metrics.jsonl") if "spike" in r]
    assert flagged[0]["step"] == SPIKE and flagged[0]["spike"] is True
    assert sorted(set(flagged[0]["windows"])) == windows_of_the_spike(run)
    assert f"The loss of step {SPIKE}, " in capsys.readouterr().err
    silent = dataclasses.replace(plan, on_spike=Warn(min_rise=1e6), num_steps=16)
    assert pretrain.main(silent, run_dir=tmp_path / "silent") == 0
    losses, state, _ = result(tmp_path / "run")
    same_losses, same_state, _ = result(tmp_path / "silent")
    assert losses == same_losses
    jax.tree.map(np.testing.assert_array_equal, state, same_state)


@pytest.fixture(scope="module")
def straight(plan, tmp_path_factory):
    """A run with a rewind that nothing disturbs, and what came of it."""
    home = tmp_path_factory.mktemp("straight") / "run"
    run = dataclasses.replace(plan, on_spike=REWIND)
    assert pretrain.main(run, run_dir=home) == 0
    return home, result(home)


@pytest.mark.slow
def test_the_windows_of_a_spike_never_come_again(plan, straight, tmp_path, seen):
    run = dataclasses.replace(plan, on_spike=REWIND)
    assert pretrain.main(run, run_dir=tmp_path / "run") == 0
    numbers = [number for number, _ in seen]
    # Step 8 is the newest that is three steps older than the spike.
    assert numbers == [*range(1, SPIKE + 1), *range(9, LAST + 1)]
    # What comes before the three steps is repeated as it was.
    np.testing.assert_array_equal(seen[8][1], seen[SPIKE][1])
    require_never_again(run, seen, SPIKE + 1)
    # One program, whatever was repeated.
    assert [step._program._cache_size() for step in seen.compiled] == [1]
    skipping = {"from_step": 9, "spike": SPIKE, "windows": windows_of_the_spike(run)}
    receipt = json.loads((tmp_path / "run/receipt.json").read_text())
    assert [s.get("skipped") for s in receipt["sessions"]] == [[skipping]]
    found = result(tmp_path / "run")
    assert found[2]["spikes"]["skipped"] == [skipping]
    assert [step for step, _ in found[0]] == list(range(1, LAST + 1))
    assert max(loss for _, loss in found[0]) < 10
    require_same(found, straight[1])
    # A later session knows of it, too.
    seen.clear()
    longer = dataclasses.replace(run, num_steps=2 * LAST)
    assert pretrain.main(longer, run_dir=tmp_path / "run") == 0
    assert seen[0][0] == LAST + 1 and len(seen) == LAST
    require_never_again(run, seen, 0)


@pytest.mark.slow
@pytest.mark.exact
@pytest.mark.parametrize("kill_at", [9, 12, 13, 40])
def test_a_run_that_is_killed_after_a_rewind_is_the_same_run(
    plan, straight, tmp_path, seen, kill_at
):
    run = dataclasses.replace(plan, on_spike=REWIND)
    seen.kill_at = kill_at
    with pytest.raises(Killed):
        pretrain.main(run, run_dir=tmp_path / "run")
    killed = len(seen)
    assert pretrain.main(run, run_dir=tmp_path / "run") == 0
    # Step 9 is repeated as it was; nothing had been saved after the rewind.
    require_never_again(run, seen, killed + (seen[killed][0] == 9))
    require_same(result(tmp_path / "run"), straight[1])


@pytest.mark.slow
@pytest.mark.exact
def test_a_run_that_is_killed_within_a_rewind_decides_again(
    plan, straight, tmp_path, seen, monkeypatch
):
    def killed(*args):
        raise Killed

    run = dataclasses.replace(plan, on_spike=REWIND)
    with monkeypatch.context() as patch:
        patch.setattr(rewind, "_with_skipped", killed)
        with pytest.raises(Killed):
            pretrain.main(run, run_dir=tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(rewind, "_delete_after", killed)
        with pytest.raises(Killed):
            pretrain.main(run, run_dir=tmp_path / "run")
    assert pretrain.main(run, run_dir=tmp_path / "run") == 0
    require_same(result(tmp_path / "run"), straight[1])


@pytest.mark.slow
@pytest.mark.exact
@pytest.mark.parametrize(
    "free",
    [{"save_every": 5, "log_every": 7}, {"save_every": 100, "log_every": 3}],
    ids=["other saves", "no saves"],
)
def test_where_a_run_is_saved_does_not_change_what_a_rewind_does(
    plan, straight, tmp_path, free
):
    run = dataclasses.replace(plan, on_spike=REWIND, **free)
    assert pretrain.main(run, run_dir=tmp_path / "run") == 0
    require_same(result(tmp_path / "run"), straight[1])


@pytest.mark.slow
def test_a_run_without_an_old_enough_step_goes_back_to_its_oldest(
    plan, tmp_path, capsys, seen
):
    run = dataclasses.replace(plan, on_spike=REWIND, save_every=1, keep=2, num_steps=20)
    assert pretrain.main(run, run_dir=tmp_path / "run") == 0
    assert "Going back to step 10; from step 10 on the" in capsys.readouterr().err
    require_never_again(run, seen, SPIKE)


@pytest.mark.slow
def test_a_run_that_has_gone_back_often_enough_ends_as_diverged(plan, tmp_path):
    # A loss that no window is to blame for.
    eager = Rewind(window=4, factor=1e-6, min_rise=0.0, steps=2, max_rewinds=2)
    run = dataclasses.replace(plan, on_spike=eager)
    with pytest.raises(Diverged, match="the run has gone back 2 times"):
        pretrain.main(run, run_dir=tmp_path / "run")
    sessions = json.loads((tmp_path / "run/receipt.json").read_text())["sessions"]
    assert len(sessions[0]["skipped"]) == 2


def directory(tmp_path, *steps):
    """A run with steps that no manifest says anything of, and a receipt."""
    run = RunDir(tmp_path / "run")
    for step in steps:
        for item in ("params", "rest", "memory"):
            (run.checkpoints_dir / str(step) / item).mkdir(parents=True)
            (run.checkpoints_dir / str(step) / item / "file").write_text("x")
    run.path.mkdir(parents=True, exist_ok=True)
    run.receipt.path.write_text(json.dumps({"sessions": [{}, {"layout": "data=1"}]}))
    return run


def needed(from_step, *windows):
    skipping = {"from_step": from_step, "spike": 99, "windows": list(windows)}
    return GoBack(Spike(99, 9.0, 2.0, 3.0), skipping)


def names(run):
    return sorted(path.name for path in run.checkpoints_dir.iterdir())


def test_going_back_leaves_the_step_to_go_on_from_and_writes_the_receipt(tmp_path):
    run = directory(tmp_path, 10, 20, 30, 40)
    (run.checkpoints_dir / "superseded-50").mkdir()
    go_back(run, needed(25, 3, 4), Check("sizes"))
    assert names(run) == ["10", "20"]
    first = needed(25, 3, 4).skipping
    assert run.receipt.sessions() == [{}, {"layout": "data=1", "skipped": [first]}]
    assert skipped_at(run, 20, None) == [first]
    assert skipped_at(run, 26, None) == []
    assert skipped_at(run, 26, {"spikes": {"skipped": [first]}}) == [first]
    go_back(run, needed(15, 7), Check("sizes"))
    second = needed(15, 7).skipping
    assert names(run) == ["10"] and skipped_at(run, 10, None) == [first, second]


def test_a_damaged_step_is_passed_over(tmp_path):
    run = directory(tmp_path, 10, 20, 30)
    (run.checkpoints_dir / "20" / "params" / "file").write_text("")
    with pytest.raises(NoUsableCheckpoint, match="has to go back to step 25"):
        go_back(run, needed(25, 3), Check("full", strict=True))
    assert names(run) == ["10", "20", "30"]
    go_back(run, needed(25, 3), Check())
    assert names(run) == ["10"]
    (run.checkpoints_dir / "10" / "params" / "file").write_text("")
    with pytest.raises(NoUsableCheckpoint, match="is damaged"):
        go_back(run, needed(25, 3), Check())


def test_where_nothing_is_old_enough_the_oldest_is_taken_or_the_beginning(tmp_path):
    run = directory(tmp_path, 30, 40)
    go_back(run, needed(25, 3), Check())
    assert names(run) == ["30"]
    assert [s["from_step"] for s in skipped_at(run, 30, None)] == [30]
    empty = directory(tmp_path / "empty")
    go_back(empty, needed(25, 3), Check())
    assert skipped_at(empty, 0, None) == [needed(25, 3).skipping]
