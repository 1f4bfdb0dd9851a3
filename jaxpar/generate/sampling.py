"""Decoding: sampling tokens with a sharded key/value cache (prefill, then decode)."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpar.errors import UserError
from jaxpar.generate.logits import TokenRows, require_in_vocabulary
from jaxpar.models.base import CachingModel, Model
from jaxpar.nn.places import NO_DOCUMENT, Places
from jaxpar.partition import cluster
from jaxpar.partition.layout import Placed
from jaxpar.partition.sharding import use_layout
from jaxpar.train.state import Recipe

COLDEST, HOTTEST = 1e-30, 1e30
"""Temperatures beyond these overflow in float32, they or their inverse; a lower one is
0 in effect, a higher one makes all tokens equally likely."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How many tokens are generated, and how each is drawn from its distribution."""

    max_new_tokens: int = 128
    """Tokens generated for each prompt, at most."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the most likely token."""
    top_k: int = 0
    """Draws from this many most likely tokens only; 0 means from all."""
    top_p: float = 1.0
    """Draws from the fewest most likely tokens whose probability reaches this."""
    seed: int = 0
    """Where the randomness of the draws starts."""

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


def choose(
    logits: Float[Array, "B V"], key: jax.Array, how: Sampling
) -> Int[Array, "B"]:
    """One token id for each row, drawn with the row's own key [B].

    top_p is nucleus sampling (Holtzman et al., 2020).
    """
    if how.temperature < COLDEST:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / min(how.temperature, HOTTEST)
    if how.top_k:
        k = min(how.top_k, logits.shape[-1])
        descending = jax.lax.top_k(logits, k)[0]
        logits = _only_likeliest(logits, descending)
    if how.top_p < 1:
        descending = jnp.sort(logits, axis=-1, descending=True)
        probability = jax.nn.softmax(descending, axis=-1)
        mass_before = jnp.cumsum(probability, axis=-1) - probability
        # The likeliest is always kept: a tiny top_p is 0 in float32.
        is_first = (jnp.arange(logits.shape[-1]) == 0)[None]
        is_kept = (mass_before < how.top_p) | is_first
        logits = _only_likeliest(logits, jnp.where(is_kept, descending, jnp.inf))
    return jax.vmap(jax.random.categorical)(key, logits).astype(jnp.int32)


def _only_likeliest(
    logits: Float[Array, "B V"], kept: Float[Array, "B K"]
) -> Float[Array, "B V"]:
    """The logits, but -inf where they are not among the likeliest, which `kept` holds.

    kept: their logits; inf stands for none. Of equal logits, the first ones count.
    """
    least = jnp.min(kept, axis=-1, keepdims=True)
    n_equal = jnp.sum(kept == least, axis=-1, keepdims=True)
    is_equal = logits == least
    is_early = jnp.cumsum(is_equal, axis=-1) <= n_equal
    return jnp.where((logits > least) | (is_equal & is_early), logits, -jnp.inf)


class Generator:
    """The compiled prefill and decode of one model on one layout.

    They compile once for each batch size and length of the cache. Lengths are rounded
    up to multiples of `bucket`, so that prompts of similar lengths share a program.

    params: as a step on `placed` has them; they can be set again.
    """

    bucket = 16

    def __init__(self, recipe: Recipe, placed: Placed, params: Any, *, how: Sampling):
        self._from_step = functools.partial(recipe.to_natural, placed)
        self.params = params
        placed = placed.for_generation()
        self.placed, self.how = placed, how
        self.limit = recipe.model.max_positions
        self.vocab_size = recipe.model.vocab_size
        anatomy = recipe.anatomy

        def with_model(f: Callable) -> Callable:
            def run(params, *args):
                with use_layout(placed, recipe.precision):
                    return f(recipe.merge(anatomy, params), *args)

            return run

        def prefill(model: CachingModel, tokens, where: Places, cache_length, keys):
            cache = model.cache(tokens.shape[0], cache_length)
            x, aux = model(tokens, where, cache=cache)
            logits = model.unembed(x[:, -1:])[:, 0]
            return aux.cache, choose(logits, _keys_of_token(keys, 0), how)

        def decode(model: Model, cache, token, positions, keys, i):
            where = Places(positions[:, None], jnp.zeros_like(positions[:, None]))
            x, aux = model(token[:, None], where, cache=cache)
            logits = model.unembed(x)[:, 0]
            return aux.cache, choose(logits, _keys_of_token(keys, i), how)

        def recompute(model: Model, tokens, where: Places, last, keys, i):
            x, _ = model(tokens, where)
            x = jnp.take_along_axis(x, last[:, None, None], axis=1)
            return choose(model.unembed(x)[:, 0], _keys_of_token(keys, i), how)

        self._prefill = jax.jit(with_model(prefill), static_argnums=3)
        self._decode = jax.jit(with_model(decode), donate_argnums=1)
        self._recompute = jax.jit(with_model(recompute))
        self.has_cache = recipe.model.has_cache

    @property
    def params(self) -> Any:
        """The model's parameters, their layers in natural order."""
        return self._params

    @params.setter
    def params(self, params: Any) -> None:
        self._params = self._from_step(params)

    def __call__(
        self,
        prompts: TokenRows,
        *,
        stop_id: int | None = None,
        on_tokens: Callable[[np.ndarray], None] | None = None,
    ) -> list[list[int]]:
        """New token ids for each prompt of ids, up to `stop_id`, which is left out.

        They end at the model's last position; where that is before max_new_tokens, a
        line on stderr says so. The batch is padded with copies of the last prompt where
        the layout does not divide it. on_tokens: called with the ids [number of
        prompts] of each step.

        Raises:
          UserError: a prompt is empty, too long for the model's positions, or has an
            id that is not in its vocabulary.
        """
        n_prompts = len(prompts)
        rows = self._padded(prompts)
        keys = _row_keys(self.how.seed, len(rows))
        steps = self._with_cache if self.has_cache else self._without_cache
        room = self._room(rows)
        answers: list[list[int]] = [[] for _ in range(n_prompts)]
        unfinished = set(range(n_prompts))
        for token in steps(rows, keys, max(room)):
            ids = np.asarray(jax.device_get(token))[:n_prompts]
            if on_tokens is not None:
                on_tokens(ids)
            for row in sorted(unfinished):
                if ids[row] == stop_id:
                    unfinished.discard(row)
                    continue
                answers[row].append(int(ids[row]))
                if len(answers[row]) == room[row]:
                    unfinished.discard(row)
            if not unfinished:
                break
        return answers

    def _padded(self, prompts: TokenRows) -> list[list[int]]:
        """The prompts, checked, with copies of the last one up to a legal batch."""
        require_in_vocabulary(prompts, self.vocab_size)
        rows = [list(map(int, prompt)) for prompt in prompts]
        if not rows or not all(rows):
            raise UserError("Every prompt needs at least one token.")
        if (longest := max(map(len, rows))) >= self.limit:
            raise UserError(
                f"A prompt of {longest} tokens leaves no room for an answer: the model "
                f"has {self.limit} positions. Shorten the prompt."
            )
        missing = -len(rows) % self.placed.layout.batch_divisor
        return rows + [rows[-1]] * missing

    def _room(self, rows: Sequence[list[int]]) -> list[int]:
        """How many tokens each prompt gets at most; says so where it is fewer."""
        asked = self.how.max_new_tokens
        room = [min(asked, self.limit - len(row)) for row in rows]
        if (fewest := min(room)) < asked:
            cluster.print_once(
                f"The model has {self.limit} positions: answers end there, after "
                f"{fewest} tokens, not {asked}.",
                file=sys.stderr,
            )
        return room

    def _with_cache(
        self, prompts: Sequence[list[int]], keys: jax.Array, n_new: int
    ) -> Iterator[Int[Array, "B"]]:
        """Yields the ids of each step; the prefill aligns the prompts at their ends."""
        length = -(-max(map(len, prompts)) // self.bucket) * self.bucket
        total = length + -(-n_new // self.bucket) * self.bucket
        tokens, positions, segments = _right_aligned(prompts, length)
        where = Places(self._put(positions), self._put(segments))
        cache, token = self._prefill(self.params, self._put(tokens), where, total, keys)
        yield token
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        for i in range(1, n_new):
            # A row that has ended repeats its last position, which nobody reads.
            last = np.minimum(lengths + (i - 1), self.limit - 1)
            cache, token = self._decode(
                self.params, cache, token, last, keys, np.int32(i)
            )
            yield token

    def _without_cache(
        self, prompts: Sequence[list[int]], keys: jax.Array, n_new: int
    ) -> Iterator[Int[Array, "B"]]:
        """Yields the ids of each step; recomputes the whole prefix for every one."""
        total = min(max(map(len, prompts)) + n_new, self.limit)
        tokens = np.zeros((len(prompts), total), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        positions = np.broadcast_to(np.arange(total, dtype=np.int32), tokens.shape)
        where = Places(self._put(positions), self._put(np.zeros_like(tokens)))
        for i in range(n_new):
            last = np.minimum(lengths + (i - 1), total - 1)
            token = self._recompute(
                self.params, self._put(tokens), where, last, keys, np.int32(i)
            )
            yield token
            fits = lengths + i < total
            tokens[fits, lengths[fits] + i] = np.asarray(token)[fits]

    def _put(self, x: np.ndarray) -> jax.Array:
        return jax.device_put(x, self.placed.sharding(("batch", "seq")))


def _right_aligned(
    prompts: Sequence[list[int]], length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, positions and segments, [B, length]; each prompt ends its row."""
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
    """A key for each row, [rows]."""
    key = jax.random.key(seed)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))


def _keys_of_token(keys: jax.Array, i: int | np.int32 | jax.Array) -> jax.Array:
    """The rows' keys for the i-th new token."""
    return jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
