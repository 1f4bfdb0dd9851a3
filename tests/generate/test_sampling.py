"""Generation equals the forward pass, however it is cached, batched or split."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpar.errors import UserError
from jaxpar.generate.logits import logits_of
from jaxpar.generate.sampling import Generator, Sampling, choose
from jaxpar.models import sizes
from jaxpar.nn.norm import RMSNorm
from jaxpar.nn.places import Places, one_document_per_row
from jaxpar.nn.score_bias import Alibi
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.partition.precision import Precision
from jaxpar.partition.sharding import use_layout
from jaxpar.train.objective import CausalLM
from jaxpar.train.state import Recipe, create

GPT = sizes.gpt(vocab_size=100, n_layers=2, d_embed=32, n_heads=4, max_positions=64)
LLAMA = dataclasses.replace(
    sizes.llama(
        vocab_size=100, n_layers=2, d_embed=32, n_heads=4, n_kv_heads=2, d_mlp=48,
        max_positions=64, qk_norm=RMSNorm(),
    ),
    windows=(0, 4),
)  # fmt: skip
ALIBI = dataclasses.replace(
    LLAMA,
    attention=dataclasses.replace(
        LLAMA.attention, rope_theta=0.0, score_bias=Alibi(), soft_cap=3.0
    ),
)
PROMPTS = [[5, 6, 7, 8, 9], [11, 12], [3] * 9]


def recipe_of(model, dtype="float32"):
    optim = AdamW(peak_lr=1e-3, warmup_steps=1, decay_steps=10)
    return Recipe(model, CausalLM(), optim, Precision(dtype, dtype, dtype))


def place(text):
    layout = Layout.parse(text)
    return layout.on(jax.devices()[: layout.n_devices])


def answers(model, layout, prompts=PROMPTS, **how):
    recipe, placed = recipe_of(model), place(layout)
    params = create(recipe, placed, seed=0).params
    how = Sampling(**{"max_new_tokens": 7, "temperature": 0.0, **how})
    return Generator(recipe, placed, params, how=how)(prompts)


@pytest.mark.parametrize("model", [GPT, LLAMA, ALIBI], ids=["gpt", "llama", "alibi"])
def test_cached_logits_are_those_of_the_whole_forward_pass(model):
    with jax.enable_x64(True):
        recipe, placed = recipe_of(model, "float64"), place("data=1")
        params = create(recipe, placed, seed=0).params
        anatomy = recipe.anatomy
        random = np.random.default_rng(0)
        tokens = jnp.asarray(random.integers(0, 100, (2, 12)), jnp.int32)

        def uncached(params):
            with use_layout(placed, recipe.precision):
                model = recipe.merge(anatomy, params)
                x, _ = model(tokens, one_document_per_row(tokens))
                return model.unembed(x)

        def cached(params):
            with use_layout(placed, recipe.precision):
                model = recipe.merge(anatomy, params)
                cache, logits, start = model.cache(2, 16), [], 0
                for n in (5, 1, 1, 3, 1, 1):
                    piece = tokens[:, start : start + n]
                    places = [
                        p[:, start : start + n] for p in one_document_per_row(tokens)
                    ]
                    x, aux = model(piece, Places(*places), cache=cache)
                    cache = aux.cache
                    logits.append(model.unembed(x))
                    start += n
                return jnp.concatenate(logits, axis=1)

        want, got = (jax.device_get(jax.jit(f)(params)) for f in (uncached, cached))
        want, got = want[..., :100], got[..., :100]
        assert np.max(np.abs(want - got)) < 1e-12 * np.max(np.abs(want))


def test_greedy_tokens_are_the_same_on_a_mesh_and_on_one_device():
    expected = answers(LLAMA, "data=1")
    assert answers(LLAMA, "fsdp=4,tensor=2") == expected
    assert [len(answer) for answer in expected] == [7, 7, 7]


def test_a_prompt_gets_the_same_answer_in_any_batch():
    assert answers(GPT, "data=1")[1:2] == answers(GPT, "data=1", PROMPTS[1:2])


def test_prompts_may_be_arrays():
    rows = np.arange(8).reshape(2, 4)
    expected = answers(GPT, "data=1", rows.tolist())
    assert answers(GPT, "data=1", rows) == expected
    assert answers(GPT, "data=1", list(rows)) == expected


def test_without_a_cache_the_tokens_are_the_same(monkeypatch):
    want = answers(GPT, "data=1")
    monkeypatch.setattr("jaxpar.models.decoder.DecoderConfig.has_cache", False)
    assert answers(GPT, "data=1") == want


def test_only_the_seed_decides_what_is_drawn():
    draw = [answers(GPT, "data=1", temperature=1.0, seed=s) for s in (1, 1, 2)]
    assert draw[0] == draw[1] != draw[2]


@pytest.mark.parametrize(
    "how, allowed",
    [
        (Sampling(temperature=1.0, top_k=2), {0, 1}),
        (Sampling(temperature=1.0, top_p=0.6), {0, 1}),
        (Sampling(temperature=0.0), {0}),
        (Sampling(temperature=1.0), {0, 1, 2, 3}),
    ],
)
def test_only_allowed_tokens_are_drawn(how, allowed):
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]]))
    keys = jax.random.split(jax.random.key(0), 400)
    drawn = choose(jnp.broadcast_to(logits, (400, 4)), keys, how)
    assert set(np.asarray(drawn).tolist()) == allowed


@pytest.mark.parametrize("has_cache", [True, False])
def test_an_answer_ends_at_the_last_position(monkeypatch, capsys, has_cache):
    if not has_cache:
        monkeypatch.setattr("jaxpar.models.decoder.DecoderConfig.has_cache", False)
    prompts = [[5] * 60, [7] * 62, [11] * 50]
    short = answers(GPT, "data=1", prompts, max_new_tokens=2)
    assert capsys.readouterr().err == ""
    # As many as fit for each prompt, whatever stands beside it; the same first ones.
    long = answers(GPT, "data=1", prompts, max_new_tokens=12)
    assert [len(answer) for answer in long] == [4, 2, 12]
    assert [answer[:2] for answer in long] == short
    assert long[2:] == answers(GPT, "data=1", prompts[2:], max_new_tokens=12)
    (line,) = capsys.readouterr().err.splitlines()
    assert "64 positions" in line and "2 tokens, not 12" in line


def test_a_prompt_that_leaves_no_position_is_refused():
    with pytest.raises(UserError, match="prompt of 64 tokens .* 64 positions"):
        answers(GPT, "data=1", [[5] * 64])


def drawn_from(probabilities, **how):
    logits = jnp.log(jnp.asarray([probabilities], jnp.float32))
    keys = jax.random.split(jax.random.key(0), 200)
    many = jnp.broadcast_to(logits, (200, logits.shape[-1]))
    return set(np.asarray(choose(many, keys, Sampling(**how))).tolist())


TIED = [0.1, 0.3, 0.3, 0.3, 0.0]
"""Several are the likeliest; the last one is padding, whose logit is -inf."""


@pytest.mark.parametrize(
    "how, allowed",
    [
        ({"temperature": 1.0, "top_k": 1}, {1}),
        ({"temperature": 1.0, "top_k": 2}, {1, 2}),
        ({"temperature": 1.0, "top_k": 99}, {0, 1, 2, 3}),
        ({"temperature": 1.0, "top_p": 1e-300}, {1}),
        ({"temperature": 1.0, "top_p": 1e-3}, {1}),
        ({"temperature": 1.0, "top_p": 0.5}, {1, 2}),
        ({"temperature": 1e300}, {0, 1, 2, 3}),
        ({"temperature": 1e300, "top_k": 1}, {1}),
        ({"temperature": 1e300, "top_p": 1e-300}, {1}),
        ({"temperature": 1e-300}, {1}),
        ({"temperature": 1e-38}, {1}),
    ],
)
def test_at_its_extremes_drawing_does_what_its_words_say(how, allowed):
    assert drawn_from(TIED, **how) == allowed


def test_with_top_k_of_one_the_answer_is_the_greedy_one():
    assert answers(GPT, "data=1", temperature=5.0, top_k=1) == answers(GPT, "data=1")


@pytest.mark.parametrize("wrong", [100, -1, 2**40, True])
def test_a_token_that_the_model_does_not_have_is_refused(wrong):
    said = f"Token id {wrong} .row 1, position 2. is not in .* 0 to 99"
    with pytest.raises(UserError, match=said):
        answers(GPT, "data=1", [[1, 2], [3, 4, wrong]])
    recipe, home = recipe_of(GPT), place("data=1")
    params = create(recipe, home, seed=0).params
    with pytest.raises(UserError, match=said):
        logits_of(recipe, home, params, [[1, 2, 3], [3, 4, wrong]])


def test_ids_that_are_no_whole_numbers_are_refused():
    with pytest.raises(UserError, match="Token id 1.0 .row 0, position 0. is not in"):
        answers(GPT, "data=1", np.array([[1, 1.5]]))
