"""An evaluation reports cross-entropy, whatever the objective, and its own mean beside.

pytest tests/train/test_own_objective.py
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpar.data import task
from jaxpar.errors import UserError
from jaxpar.models import sizes
from jaxpar.nn.places import Places
from jaxpar.optim.optimizer import AdamW
from jaxpar.optim.schedule import NEVER, Schedule
from jaxpar.partition.layout import Layout
from jaxpar.train.converge import Converged, Never, StopRule, Verdict
from jaxpar.train.events import Decide, Evaluate, require_watched
from jaxpar.train.loop import History
from jaxpar.train.loss import token_losses
from jaxpar.train.objective import CausalLM, Objective, Sums
from jaxpar.train.scoring import per_token_and_byte, total_loss
from jaxpar.train.state import Recipe, TrainState, create
from jaxpar.train.step import make_eval_step, make_forward

B, T, V = 8, 16, 50
MODEL = sizes.llama(
    vocab_size=V, n_layers=1, d_embed=16, n_heads=2, n_kv_heads=2, d_mlp=16,
    max_positions=T,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Smoothed(Objective):
    """Label smoothing with a z-loss; its weight is not the tokens'."""

    share: float = 0.1

    def row(self, window):
        return task.causal(window)

    def __call__(self, model, batch, keys):
        where = Places(batch["positions"], batch["segments"])
        logits = model.unembed(model(batch["tokens"], where, keys)[0])
        targets, weights = batch["targets"], batch["weights"]
        even = token_losses(logits, jnp.zeros_like(targets))
        losses = (1 - self.share) * token_losses(logits, targets) + self.share * even
        losses += 1e-2 * jax.nn.logsumexp(logits, axis=-1) ** 2
        return Sums(jnp.sum(losses * weights), 2 * jnp.sum(weights), {})


class Untargeted(Smoothed):
    """One whose rows name their targets otherwise."""

    def __call__(self, model, batch, keys):
        return super().__call__(model, {**batch, "targets": batch["next"]}, keys)


class Valued(Untargeted):
    """The same, which says that its tokens have no cross-entropy."""

    def cross_entropy(self, model, batch):
        return None


def batch_of(targets="targets"):
    random = np.random.default_rng(0)
    ids = random.integers(0, V, (B, T + 1))
    return {
        "tokens": jnp.asarray(ids[:, :-1], jnp.int32),
        targets: jnp.asarray(ids[:, 1:], jnp.int32),
        "positions": jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T)),
        "segments": jnp.ones((B, T), jnp.int32),
        "weights": jnp.asarray(random.integers(0, 2, (B, T)), jnp.float32),
    }


def scores_of(objective, batch, layout="data=1"):
    layout = Layout.parse(layout)
    placed = layout.on(jax.devices()[: layout.n_devices])
    optim = AdamW(peak_lr=1e-3, warmup_steps=1, decay_steps=3)
    recipe = Recipe(MODEL, objective, optim)
    params = create(recipe, placed, seed=0).params
    batch = jax.device_put(batch, placed.sharding(("batch", "seq")))
    totals = total_loss(make_eval_step(recipe, placed), params, [batch, batch])
    return per_token_and_byte(totals, 100, type(objective).__name__)


@pytest.mark.parametrize("layout", ["data=1", "fsdp=2,tensor=2"])
def test_a_smoothed_objective_is_scored_by_the_cross_entropy_of_a_plain_one(layout):
    plain = scores_of(CausalLM(), batch_of(), layout)
    assert list(plain) == ["nats_per_token", "nats_per_byte"]
    found = scores_of(Smoothed(), batch_of(), layout)
    for name, value in plain.items():
        assert found.pop(name) == pytest.approx(value, abs=1e-6)
    assert found.pop("objective_name") == "Smoothed"
    # The weights are doubled; smoothing and the z-loss make the sum larger.
    assert plain["nats_per_token"] / 2 < found.pop("objective") and not found


def test_without_smoothing_the_objective_is_the_cross_entropy():
    @dataclasses.dataclass(frozen=True)
    class Plain(CausalLM):
        """Another class, the same value."""

    found = scores_of(Plain(), batch_of())
    assert found["objective"] == found["nats_per_token"]


def test_rows_without_targets_are_refused_with_what_to_define():
    words = r"rows of Untargeted have .*'next'.* Define Untargeted.cross_entropy\("
    with pytest.raises(UserError, match=words):
        scores_of(Untargeted(), batch_of("next"))


def test_an_objective_without_cross_entropy_is_scored_by_its_own_mean():
    found = scores_of(Valued(), batch_of("next"))
    assert found["nats_per_token"] is None and found["nats_per_byte"] is None
    assert found["objective"] == scores_of(Smoothed(), batch_of())["objective"]


@dataclasses.dataclass(frozen=True)
class Recording(StopRule):
    """A rule that remembers the losses that it is given."""

    def start(self):
        return {"seen": []}

    def observe(self, memory, step, loss, phase):
        return Verdict({"seen": [*memory["seen"], loss]}, None, False)


@pytest.mark.parametrize(
    ("watch", "expected"), [("nats_per_token", 2.0), ("objective", 5.0)]
)
def test_the_stopping_rule_sees_what_it_watches(watch, expected):
    sums = {"loss": 8, "weight": 4, "objective": 15, "objective_weight": 3}
    sums = {name: jnp.float32(value) for name, value in sums.items()}
    schedule, rows, history = Schedule(1.0, 0, 0, 9, 0.0, "linear"), [], History()
    evaluate = Evaluate(
        lambda params, batch: sums,
        [0],
        rows.append,
        every=1,
        schedule=schedule,
        n_bytes=8,
        objective="Mine",
    )
    decide = Decide(Recording(watch=watch), evaluate, schedule)
    state = TrainState(jnp.int32(0), {}, (), jnp.int32(NEVER))
    for event in (evaluate, decide):
        event.run(0, state, history)
    assert decide.memory["rule"] == {"seen": [expected]}
    assert rows[0]["objective"] == 5.0 and rows[0]["objective_name"] == "Mine"


def test_what_no_rule_can_watch_is_refused():
    rule = Converged()
    # Past the tests' own check of types.
    object.__setattr__(rule, "watch", "perplexity")
    with pytest.raises(UserError, match="watch='perplexity': it must be nats_per_tok"):
        rule.__post_init__()
    scored = {"weight", "objective", "objective_weight"}
    with pytest.raises(UserError, match="Valued has no cross-entropy.*watch=objective"):
        require_watched(Converged(), Valued(), scored)
    require_watched(Converged(watch="objective"), Valued(), scored)
    require_watched(Never(), Valued(), scored)
    require_watched(Converged(), Smoothed(), {"loss", *scored})


class Wrong(Smoothed):
    """Objectives that break the contract, each in its way."""


class Number(Wrong):
    def __call__(self, model, batch, keys):
        return super().__call__(model, batch, keys).loss


class Vectors(Wrong):
    def __call__(self, model, batch, keys):
        found = super().__call__(model, batch, keys)
        return found._replace(loss=batch["weights"])


class Misspelled(Wrong):
    def __call__(self, model, batch, keys):
        return batch["weight"]


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (Number, r"^Number returns \(\); it must return .*Sums"),
        (Vectors, r"^Vectors returns Sums\(loss=\(8, 16\), .* as scalars"),
        (
            Misspelled,
            r"^Misspelled of rows with .* KeyError: .*test_own_objective.py, ",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_objective_that_breaks_the_contract_is_refused_with_its_class(
    kind, complaint
):
    optim = AdamW(peak_lr=1e-3, warmup_steps=1, decay_steps=1)
    recipe = Recipe(MODEL, kind(), optim)
    placed = Layout.parse("data=8").on(jax.devices())
    with pytest.raises(UserError, match=complaint):
        jax.eval_shape(make_forward(recipe, placed), recipe.anatomy.shapes, batch_of())
