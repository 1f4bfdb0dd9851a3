"""A fine-tune says what it takes from its source, and a vocabulary grows in place.

pytest tests/run/test_adoption.py -k old_ids
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxpar import evaluate, finetune, pretrain
from jaxpar.data import tokenizer
from jaxpar.data.source import Text
from jaxpar.data.tokenizer import ByteTokenizer
from jaxpar.errors import UserError
from jaxpar.experiment import FromSource
from jaxpar.generate.logits import logits_of
from jaxpar.partition.layout import Layout
from jaxpar.run.adoption import transfer_of, with_added_tokens
from jaxpar.run.directory import RunDir
from jaxpar.train.source_shapes import stored_params
from jaxpar.train.state import create
from jaxpar.tree import flatten
from tests.outside.own_model import BagConfig
from tests.run.test_origin import BASE, TUNE

TOKENS = np.arange(96, dtype=np.int32).reshape(8, 12) * 2
MODELS = {
    "tied": BASE.model,
    # Its table has no padding, and no mesh axis divides it.
    "untied": dataclasses.replace(
        BASE.model, tied=False, vocab_size=259, vocab_multiple=1
    ),
    "own": BagConfig(vocab_size=260, d_embed=16, max_positions=16),
}
LAYOUTS = ("data=8", "fsdp=4,tensor=2")


def tuned(base, **fields):
    """A fine-tune of the run of an experiment, with its model."""
    experiment = dataclasses.replace(TUNE, **fields)
    return experiment.with_model_of(lambda: base)


@pytest.fixture(scope="module", params=MODELS)
def source(request, tmp_path_factory):
    """A run with random parameters, and its experiment."""
    run = RunDir(tmp_path_factory.mktemp("source") / "run")
    base = dataclasses.replace(BASE, model=MODELS[request.param])
    run.claim(base)
    ByteTokenizer().save(run.tokenizer_dir)
    placed = Layout.parse("data=1").on(jax.devices()[:1])
    checkpoints = run.checkpoints(read_only=False)
    checkpoints.save(1, create(base.recipe(), placed, seed=7), memory={})
    checkpoints.close()
    return run, base


def state_of(experiment, source, layout):
    run, base = source
    placed = Layout.parse(layout).on(jax.devices())
    return placed, finetune.start_from(experiment, run, base, placed, 1).params


def learned_by(source, placed):
    run, base = source
    checkpoints = run.checkpoints()
    params = checkpoints.restore_params(1, stored_params(base.recipe(), placed))
    checkpoints.close()
    return params


# 270 ids fit into the padding of 260; 400 ids do not.
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [270, 400])
def test_logits_of_the_old_ids_are_as_they_were(source, layout, size):
    run, base = source
    experiment = tuned(base, grow_vocab=size)
    placed, params = state_of(experiment, source, layout)
    old = learned_by(source, placed)
    fresh = create(experiment.recipe(), placed, seed=experiment.seed).params
    transfer = transfer_of(experiment, base)
    n = base.model.vocab_size
    names = flatten(experiment.recipe().anatomy.names)
    assert set(transfer.grown) == {p for p in names if "vocab" in names[p]}
    for path, value in flatten(params).items():
        ours, theirs = flatten(fresh)[path], flatten(old)[path]
        if path not in transfer.grown:
            np.testing.assert_array_equal(value, theirs)
            continue
        value, ours, theirs = (
            np.moveaxis(np.asarray(x), names[path].index("vocab"), 0)
            for x in (value, ours, theirs)
        )
        np.testing.assert_array_equal(value[:n], theirs[:n])
        np.testing.assert_array_equal(value[n:], ours[n:])
    one = Layout.parse("data=1").on(jax.devices()[:1])
    before, after = (
        logits_of(recipe, one, jax.device_put(jax.device_get(tree)), TOKENS)
        for recipe, tree in ((base.recipe(), old), (experiment.recipe(), params))
    )
    # Not bit-equal: a product of another shape may be summed in another order.
    np.testing.assert_allclose(after[..., :n], before[..., :n], rtol=1e-6, atol=1e-6)
    assert np.isfinite(after[..., n:size]).all()


def test_a_vocabulary_does_not_grow_by_the_way(source):
    _, base = source
    larger = dataclasses.replace(base.model, vocab_size=270)
    with pytest.raises(UserError, match="of 270 ids here, .*Write grow_vocab=270"):
        transfer_of(tuned(base, model=larger), base)
    smaller = dataclasses.replace(base.model, vocab_size=258)
    with pytest.raises(UserError, match="cannot shrink"):
        transfer_of(tuned(base, model=smaller), base)
    assert transfer_of(tuned(base, model=larger, grow_vocab=270), base).grown


@pytest.mark.parametrize(
    ("size", "words"), [(258, "would shrink"), (260, "would not grow"), (270, "equal")]
)
def test_a_size_to_which_it_cannot_grow_is_refused(size, words):
    model = dataclasses.replace(BASE.model, vocab_size=size + 10 * (size == 270))
    with pytest.raises(UserError, match=f"grow_vocab={size}.*{words}"):
        transfer_of(tuned(BASE, model=model, grow_vocab=size), BASE)


@dataclasses.dataclass(frozen=True)
class OneSize(FromSource):
    """A model whose vocabulary is no field."""

    @property
    def vocab_size(self):
        return 260


def test_a_model_whose_vocabulary_is_no_field_is_to_be_given():
    base = dataclasses.replace(BASE, model=OneSize())
    with pytest.raises(UserError, match="OneSize has no field vocab_size"):
        tuned(base, grow_vocab=270)


@pytest.mark.parametrize("fields", [{"learned_positions": True}, {}])
def test_more_positions_are_refused_where_they_are_learned(fields):
    model = dataclasses.replace(BASE.model, **{"learned_positions": False, **fields})
    base = dataclasses.replace(BASE, model=model)
    longer = dataclasses.replace(model, max_positions=32)
    if not fields:
        assert not str(transfer_of(tuned(base, model=longer), base))
        return
    with pytest.raises(UserError, match=r"positions \(32, 16\).*\(16, 16\).*max_pos"):
        transfer_of(tuned(base, model=longer), base)


# The others have a head already.
@pytest.mark.parametrize("source", ["tied"], indirect=True)
def test_a_fine_tune_may_freeze_what_its_source_does_not_have(source):
    _, base = source
    experiment = tuned(
        base,
        model=dataclasses.replace(base.model, tied=False),
        optim=dataclasses.replace(TUNE.optim, freeze=("unembedding",)),
        keep_fresh=("unembedding",),
    )
    _, params = state_of(experiment, source, "data=8")
    assert "unembedding" in params


def test_more_tokens_than_the_model_has_ids_are_refused():
    experiment = tuned(BASE, add_tokens=("<a>", "<b>"))
    with pytest.raises(UserError, match="has 261 ids, the model 260; .*grow_vocab=261"):
        with_added_tokens(experiment, ByteTokenizer())
    grown = tuned(BASE, add_tokens=("<a>", "<b>"), grow_vocab=261)
    assert with_added_tokens(grown, ByteTokenizer()).vocab_size == 261


@pytest.mark.slow
def test_what_stays_fresh_is_said_and_in_the_receipt(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert pretrain.main(BASE, run_dir="base") == 0
    tune = dataclasses.replace(TUNE, grow_vocab=300, keep_fresh=("pos*",))
    assert finetune.main(tune, run_dir="tuned") == 0
    said = capsys.readouterr().out
    assert "Stays newly initialised: positions (16, 16)" in said
    assert (
        "Grows from 260 to 300 ids, new ones initialised: embedding (384, 16)" in said
    )
    (session,) = RunDir("tuned").receipt.sessions()
    assert session["parameters"]["fresh"] == {"positions": [16, 16]}
    assert session["parameters"]["grown"] == {"embedding": [384, 16]}
    assert RunDir("tuned").open().model.vocab_size == 300
    assert finetune.main(dataclasses.replace(tune, num_steps=3), run_dir="tuned") == 0
    said = capsys.readouterr().out
    assert "Resuming" in said and "Grows" not in said
    assert finetune.main(TUNE, run_dir="plain") == 0
    assert "parameters" not in RunDir("plain").receipt.sessions()[0]


@pytest.mark.slow
def test_a_fine_tune_with_added_tokens_is_a_whole_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pretrain.main(BASE, run_dir="base") == 0
    lines = "".join(f"<user> number {i} <model> is {i * i}\n" for i in range(400))
    (tmp_path / "chat.txt").write_text(lines)
    tune = dataclasses.replace(
        TUNE,
        data=Text(f"files:{tmp_path}/chat.txt", seq_len=16, batch_size=8),
        grow_vocab=270,
        add_tokens=("<user>", "<model>"),
    )
    assert finetune.main(tune, stem="tune") == 0
    assert finetune.main(dataclasses.replace(tune, num_steps=3), stem="tune") == 0
    ((path),) = (tmp_path / "runs").iterdir()
    tokens = tokenizer.load(path / "tokenizer")
    assert tokens.encode(b"<user>a<model>").tolist() == [259, 97, 260]
    first, second = RunDir(path).receipt.sessions()
    assert first["data"]["tokenizer"] == tokens.fingerprint
    assert second["data"]["tokenizer"] == tokens.fingerprint
    assert evaluate.main(path, layout="data=1")["step"] == 3
    # A fine-tune of the fine-tune has these tokens, too.
    again = dataclasses.replace(
        tune, start_from=str(path), grow_vocab=271, add_tokens=("is",)
    )
    assert finetune.main(again, run_dir="again") == 0
    assert tokenizer.load("again/tokenizer").encode(b"is<user>").tolist() == [261, 259]
    assert json.loads((tmp_path / "again/config.json").read_text())["grow_vocab"] == 271
