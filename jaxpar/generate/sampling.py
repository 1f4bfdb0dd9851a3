"""Sampling with a sharded key/value cache: prefill once, then token by token."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxpar.errors import UserError
from jaxpar.nn.places import NO_DOCUMENT, Places
from jaxpar.partition.layout import Placed
from jaxpar.partition.sharding import use_layout
from jaxpar.train.state import Recipe


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a next token is drawn; temperature 0 takes the likeliest."""

    max_new_tokens: int = 128
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens={self.max_new_tokens} must be 1 or more.")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature={self.temperature} must be 0 or more.")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"top_k={self.top_k} must be 0 (all) or more, and top_p={self.top_p} "
                "above 0 and at most 1."
            )


def choose(logits: jax.Array, key: jax.Array, how: Sampling) -> jax.Array:
    """One token id [B] from logits [B, V]; row keys [B].

    top_p keeps the likeliest tokens whose mass reaches p (Holtzman et al., 2020).
    """
    if how.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / how.temperature
    if how.top_k:
        k = min(how.top_k, logits.shape[-1])
        least = jax.lax.top_k(logits, k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if how.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        share = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(share, axis=-1) - share
        least = jnp.min(
            jnp.where(before < how.top_p, ordered, jnp.inf), axis=-1, keepdims=True
        )
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(key, logits).astype(jnp.int32)


class Generator:
    """The compiled prefill and decode of one model on one layout.

    A function per shape is compiled once; a prompt of another length within the same
    multiple of `bucket` uses it again.
    """

    bucket = 16

    def __init__(self, recipe: Recipe, placed: Placed, params, *, how: Sampling):
        placed = placed.for_generation()
        self.placed, self.params, self.how = placed, params, how
        self.limit = recipe.model.max_positions
        anatomy = recipe.anatomy

        def framed(f):
            def run(params, *args):
                with use_layout(placed, recipe.precision):
                    return f(recipe.merge(anatomy, params), *args)

            return run

        def prefill(model, tokens, where, cache_length, keys):
            cache = model.cache(tokens.shape[0], cache_length)
            x, aux = model(tokens, where, cache=cache)
            logits = model.unembed(x[:, -1:])[:, 0]
            return aux.cache, choose(logits, _at(keys, 0), how)

        def decode(model, cache, token, positions, keys, i):
            where = Places(positions[:, None], jnp.zeros_like(positions[:, None]))
            x, aux = model(token[:, None], where, cache=cache)
            logits = model.unembed(x)[:, 0]
            return aux.cache, choose(logits, _at(keys, i), how)

        def rerun(model, tokens, where, last, keys, i):
            x, _ = model(tokens, where)
            at = jnp.take_along_axis(x, last[:, None, None], axis=1)
            return choose(model.unembed(at)[:, 0], _at(keys, i), how)

        self._prefill = jax.jit(framed(prefill), static_argnums=3)
        self._decode = jax.jit(framed(decode), donate_argnums=1)
        self._rerun = jax.jit(framed(rerun))
        with use_layout(placed, recipe.precision):
            self.cached = (
                jax.eval_shape(
                    lambda p: recipe.merge(anatomy, p).cache(1, 1), anatomy.shapes
                )
                is not None
            )

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        stop_id: int | None = None,
        on_tokens: Callable[[np.ndarray], None] | None = None,
    ) -> list[list[int]]:
        """New tokens for each prompt of ids, up to and without `stop_id`.

        The batch is filled up with copies of the last prompt where the layout does
        not divide it. on_tokens gets the ids [prompts] of each step as they come.
        """
        wanted = len(prompts)
        prompts = self._checked(prompts)
        keys = _row_keys(self.how.seed, len(prompts))
        steps = self._with_cache if self.cached else self._without_cache
        answers: list[list[int]] = [[] for _ in range(wanted)]
        open_rows = set(range(wanted))
        for token in steps(prompts, keys):
            ids = np.asarray(jax.device_get(token))[:wanted]
            if on_tokens is not None:
                on_tokens(ids)
            for row in sorted(open_rows):
                if ids[row] == stop_id:
                    open_rows.discard(row)
                else:
                    answers[row].append(int(ids[row]))
            if not open_rows:
                break
        return answers

    def _checked(self, prompts) -> list[list[int]]:
        rows = [list(map(int, prompt)) for prompt in prompts]
        if not rows or not all(rows):
            raise UserError("Every prompt needs at least one token.")
        longest = max(map(len, rows)) + self.how.max_new_tokens
        if longest > self.limit:
            raise UserError(
                f"Prompt and answer take up to {longest} tokens; the model has "
                f"{self.limit} positions. Shorten the prompt or --max-new-tokens."
            )
        missing = -len(rows) % self.placed.layout.batch_divisor
        return rows + [rows[-1]] * missing

    def _with_cache(self, prompts, keys):
        """Yields token ids [B], prefilling prompts aligned at their ends."""
        length = -(-max(map(len, prompts)) // self.bucket) * self.bucket
        total = length + -(-self.how.max_new_tokens // self.bucket) * self.bucket
        tokens, positions, segments = _aligned(prompts, length)
        where = Places(self._put(positions), self._put(segments))
        cache, token = self._prefill(self.params, self._put(tokens), where, total, keys)
        yield token
        at = np.array([len(prompt) for prompt in prompts], np.int32)
        for i in range(1, self.how.max_new_tokens):
            cache, token = self._decode(
                self.params, cache, token, at + (i - 1), keys, np.int32(i)
            )
            yield token

    def _without_cache(self, prompts, keys):
        """Yields token ids [B], running the whole prefix again for every one."""
        total = max(map(len, prompts)) + self.how.max_new_tokens
        tokens = np.zeros((len(prompts), total), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        at = np.array([len(prompt) for prompt in prompts], np.int32)
        places = np.broadcast_to(np.arange(total, dtype=np.int32), tokens.shape)
        where = Places(self._put(places), self._put(np.zeros_like(tokens)))
        for i in range(self.how.max_new_tokens):
            token = self._rerun(
                self.params, self._put(tokens), where, at + (i - 1), keys, np.int32(i)
            )
            yield token
            tokens[np.arange(len(prompts)), at + i] = np.asarray(token)

    def _put(self, x: np.ndarray) -> jax.Array:
        return jax.device_put(x, self.placed.sharding(("batch", "seq")))


def _aligned(prompts, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, positions and segments [B, length], each prompt at the right end."""
    shape = (len(prompts), length)
    tokens, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    segments = np.full(shape, NO_DOCUMENT, np.int32)
    for row, prompt in enumerate(prompts):
        start = length - len(prompt)
        tokens[row, start:] = prompt
        positions[row, start:] = np.arange(len(prompt))
        segments[row, start:] = 0
    return tokens, positions, segments


def _row_keys(seed: int, rows: int) -> jax.Array:
    key = jax.random.key(seed)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))


def _at(keys: jax.Array, i) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
