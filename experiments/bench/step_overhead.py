"""What does the framework cost, beside the same step written by hand?

A Llama of about the quickstart's size with AdamW, once through jaxpar and once in plain
JAX: no names, no layouts, no modules, the same scan, the same chunked loss (jaxpar's
own), the faster of einsum and flattened operands. One CPU device, both in one process,
alternating.

    python experiments/bench/step_overhead.py
"""

import functools
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpar.models import sizes
from jaxpar.nn.norm import RMSNorm
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.train.loss import chunked_loss
from jaxpar.train.objective import CausalLM
from jaxpar.train.state import Recipe, create
from jaxpar.train.step import make_train_step

L, D, N, H, F, V = 4, 256, 8, 32, 768, 4096
B, T, CHUNK = 16, 256, 256
OPTIM = AdamW(peak_lr=1e-3, warmup_steps=20, decay_steps=1000)


def project(x, w, flat):
    """x [B, T, ...] times w, the last axes of x with the first of w."""
    n = x.ndim - 2
    if not flat:
        return jnp.tensordot(x, w, n)
    y = x.reshape(B * T, -1) @ w.reshape(-1, int(np.prod(w.shape[n:])))
    return y.reshape(B, T, *w.shape[n:])


def rms(x, scale):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * scale


def rotate(x, positions):
    half = x.shape[-1] // 2
    angle = positions[:, :, None, None] * 10_000.0 ** (-jnp.arange(half) / half)
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attend(q, k, v, batch):
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) / H**0.5
    p, s = batch["positions"], batch["segments"]
    seen = (s[:, :, None] == s[:, None]) & (p[:, None] <= p[:, :, None])
    scores = jnp.where(seen[:, None], scores, jnp.finfo(jnp.float32).min)
    return jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(scores, -1), v)


def hand_loss(params, batch, flat):
    x = params["embedding"][batch["tokens"]]
    at = batch["positions"].astype(jnp.float32)

    def block(x, w):
        y = rms(x, w["attn_norm"])
        q = rotate(rms(project(y, w["q"], flat), w["q_norm"]), at)
        k = rotate(rms(project(y, w["k"], flat), w["k_norm"]), at)
        mixed = attend(q, k, project(y, w["v"], flat), batch)
        x = x + project(mixed, w["o"], flat)
        y = rms(x, w["mlp_norm"])
        hidden = jax.nn.silu(project(y, w["gate"], flat)) * project(y, w["up"], flat)
        return x + project(hidden, w["down"], flat), None

    x, _ = jax.lax.scan(block, x, params["layers"])
    x = rms(x, params["norm"])

    def unembed(x):
        return (x.reshape(-1, D) @ params["embedding"].T).reshape(*x.shape[:2], V)

    targets, weights = batch["targets"], batch["weights"]
    loss = chunked_loss(unembed, x, targets, weights, chunk=CHUNK)
    return loss / jnp.sum(weights)


def by_hand(flat):
    """A jitted step in plain JAX, and its first state."""
    keys = iter(jax.random.split(jax.random.key(0), 16))

    def normal(*shape):
        return 0.02 * jax.random.normal(next(keys), shape)

    params = {
        "embedding": normal(V, D),
        "norm": jnp.ones(D),
        "layers": {
            "q": normal(L, D, N, H), "k": normal(L, D, N, H), "v": normal(L, D, N, H),
            "o": normal(L, N, H, D), "up": normal(L, D, F), "gate": normal(L, D, F),
            "down": normal(L, F, D), "attn_norm": jnp.ones((L, D)),
            "mlp_norm": jnp.ones((L, D)), "q_norm": jnp.ones((L, H)),
            "k_norm": jnp.ones((L, H)),
        },
    }  # fmt: skip
    optimizer = optax.chain(
        optax.clip_by_global_norm(OPTIM.clip_norm),
        optax.adamw(1e-3, b1=0.9, b2=0.95, weight_decay=OPTIM.weight_decay),
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        params, opt_state = state
        loss, grads = jax.value_and_grad(hand_loss)(params, batch, flat)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        norm = optax.tree.norm(grads)
        state = optax.apply_updates(params, updates), opt_state
        return state, {"loss": loss, "grad_norm": norm}

    return step, (params, optimizer.init(params))


def by_jaxpar():
    model = sizes.llama(
        vocab_size=V, n_layers=L, d_embed=D, n_heads=N, n_kv_heads=N, d_mlp=F,
        max_positions=T, qk_norm=RMSNorm(), tied=True,
    )  # fmt: skip
    recipe = Recipe(model, CausalLM(chunk=CHUNK), OPTIM)
    placed = Layout.parse("data=1").on(jax.devices()[:1])
    return make_train_step(recipe, placed), create(recipe, placed, seed=0)


def main(rounds: int = 12) -> None:
    random = np.random.default_rng(0)
    tokens = random.integers(0, V, (B, T + 1), dtype=np.int32)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": np.tile(np.arange(T, dtype=np.int32), (B, 1)),
        "segments": np.zeros((B, T), np.int32),
        "weights": np.ones((B, T), np.float32),
    }
    steps = {
        "einsum": by_hand(False),
        "flattened": by_hand(True),
        "jaxpar": by_jaxpar(),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    states = {name: state for name, (_, state) in steps.items()}
    for i in range(rounds + 2):
        for name, (step, _) in steps.items():
            start = time.perf_counter()
            states[name], metrics = step(states[name], batch)
            jax.block_until_ready((states[name], metrics))
            if i >= 2:
                times[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(found) for name, found in times.items()}
    for name, seconds in middle.items():
        low, high = min(times[name]), max(times[name])
        print(f"{name:10} {seconds:.3f} s   ({low:.3f} to {high:.3f})")
    best = min(middle["einsum"], middle["flattened"])
    pairs = zip(
        times["jaxpar"], *(times[n] for n in ("einsum", "flattened")), strict=True
    )
    ratio = statistics.median(ours / min(a, b) for ours, a, b in pairs)
    print(f"jaxpar / faster by hand: {middle['jaxpar'] / best:.3f} of medians, "
          f"{ratio:.3f} median of rounds")  # fmt: skip
    print(f"jax {jax.__version__}, Python {sys.version.split()[0]}, {rounds} rounds")


if __name__ == "__main__":
    main()
