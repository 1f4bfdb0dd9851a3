"""Is attention right on packed rows on this accelerator, and how fast is a step?

    python -m experiments.bench.accelerator
    python -m experiments.bench.accelerator --layout fsdp=4,tensor=2 --widths 7B
    python -m experiments.bench.accelerator --tiles     # the same without the kernel
    python -m experiments.bench.accelerator --toy       # tiny and interpreted: on a CPU

First the device's kernel is put beside the tiles, and given a wrong segment, which has
to show; the status is 1 if either fails. Then attention alone is timed, on NVIDIA
devices with several sizes of its blocks, and the training step at three widths, of as
many layers as fit: tokens per second, and model FLOPs as a part of the peak (MFU).

Needs jax, flax and optax; no data, no data libraries, no command line library.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import kernel_check
from experiments.bench.targets import abstract_batch
from jaxpar.metrics.flops import training_flops
from jaxpar.metrics.meter import meter_on
from jaxpar.models import sizes
from jaxpar.models.decoder import DecoderConfig
from jaxpar.nn.attention import attention_said
from jaxpar.nn.attention_kernel import Kernel
from jaxpar.nn.kernel_table import FUSED
from jaxpar.nn.splash_attention import SplashAttention
from jaxpar.nn.triton_attention import Blocks, TritonAttention
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout, Placed
from jaxpar.partition.precision import Precision
from jaxpar.partition.sharding import use_layout
from jaxpar.train.objective import CausalLM, sums_of
from jaxpar.train.state import Recipe, create
from jaxpar.train.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Width:
    """A model to time, and the batch of each device."""

    model: DecoderConfig
    rows: int
    T: int


def llama(D: int, L: int, N: int, F: int, *, vocab: int, remat: str) -> DecoderConfig:
    return sizes.llama(
        vocab_size=vocab, n_layers=L, d_embed=D, n_heads=N, n_kv_heads=N, d_mlp=F,
        max_positions=2048, remat=remat, tied=D < 4096,
    )  # fmt: skip


WIDTHS = {
    "0.1B": Width(llama(768, 12, 12, 2048, vocab=50_257, remat="dots"), 16, 2048),
    "1B": Width(llama(2048, 22, 16, 5632, vocab=32_000, remat="dots"), 8, 2048),
    "7B": Width(dataclasses.replace(sizes.LLAMA_7B, remat="full"), 8, 2048),
}
TOYS = {
    name: Width(llama(D, 2, 2, 2 * D, vocab=64, remat=width.model.remat), 2, 64)
    for (name, width), D in zip(WIDTHS.items(), (16, 32, 64), strict=True)
}
# Rows, tokens, heads of queries and of keys, width of a head.
CHECKED = [(2, 1024, 8, 8, 128), (2, 1000, 8, 2, 64)]
TOYS_CHECKED = [(2, 96, 2, 1, 16)]
BLOCKS = [
    Blocks(128, 64, 64, 64),
    Blocks(128, 64, 128, 32),
    Blocks(128, 64, 64, 32),
    Blocks(64, 64, 64, 32),
    Blocks(128, 128, 32, 32),
]
INTERPRETED = {
    "Triton": TritonAttention(interpret=True),
    "splash": SplashAttention(interpret=True),
}


def check(kernels: dict[str, Kernel], shapes: Sequence[Any], dtype: str) -> bool:
    """Prints the largest error of each kernel; whether all are right, and can fail."""
    good = True
    for name, kernel in kernels.items():
        for shape in shapes:
            arrays = kernel_check.random_arrays(*shape, dtype)
            where = kernel_check.packed_rows(*shape[:2])
            wrong = kernel_check.with_wrong_segment(where)
            error = kernel_check.largest_error(kernel, arrays, where)
            planted = kernel_check.largest_error(kernel, arrays, where, seen=wrong)
            most = kernel_check.MOST[dtype]
            good = good and error < most < planted
            print(
                f"{name} kernel on packed rows {shape}, {dtype}: largest error "
                f"{error:.1e} (at most {most:.1e}); with a wrong segment {planted:.1e}",
                flush=True,
            )
    return good


def seconds_of(run: Callable[[], Any], n: int) -> float:
    """The median of n runs, after one that compiles."""
    jax.block_until_ready(run())
    times = []
    for _ in range(n):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def time_attention(kernels: dict[str, Kernel], shape: Sequence[int], n: int) -> None:
    """Prints how long forward and backward take, of packed rows in bfloat16."""
    arrays = kernel_check.random_arrays(*shape, "bfloat16")
    where = kernel_check.packed_rows(*shape[:2])
    device = Layout.parse("data=1").on(jax.devices()[:1])
    for name, kernel in kernels.items():

        def run(q, k, v, grad, where, kernel=kernel):
            heads = jnp.arange(q.shape[2])
            with use_layout(device):
                result = kernel.forward(q, k, v, where, where, heads)
                return kernel.backward(q, k, v, where, where, heads, result, grad)

        try:
            step = jax.jit(run)
            seconds = seconds_of(lambda step=step: step(*arrays, where), n)
            print(f"attention {tuple(shape)}, {name}: {1e3 * seconds:.2f} ms")
        except jax.errors.JaxRuntimeError as error:
            print(f"attention {tuple(shape)}, {name}: {str(error).splitlines()[0]}")


def packed_batch(placed: Placed, rows: int, T: int, vocab: int) -> dict[str, jax.Array]:
    """Random tokens in packed rows without padding, placed."""
    places = kernel_check.packed_rows(rows, T, part=T + 1)
    tokens = np.random.default_rng(0).integers(0, vocab, (rows, T), dtype=np.int32)
    batch = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "positions": np.asarray(places.positions),
        "segments": np.asarray(places.segments),
        "weights": np.ones((rows, T), np.float32),
    }
    return jax.device_put(batch, placed.sharding(("batch", "seq")))


def step_flops(recipe: Recipe, rows: int, T: int) -> int:
    """Model FLOPs of a step; counted with tiles, in which all products are seen."""
    layout, anatomy = Layout.parse("data=1"), recipe.anatomy

    def forward(params: Any, batch: Any) -> Any:
        with use_layout(layout, recipe.precision):
            model = recipe.merge(anatomy, params)
            return sums_of(recipe.objective, model, batch, None)

    fields = abstract_batch(layout.on(jax.devices()[:1]), rows, T)
    batch = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in fields.items()}
    return training_flops(forward, anatomy.shapes, batch)


def recipe_of(model: DecoderConfig, n_layers: int) -> Recipe:
    model = dataclasses.replace(model, n_layers=n_layers)
    optim = AdamW(3e-4, warmup_steps=100, decay_steps=900)
    return Recipe(model, CausalLM(), optim, Precision(compute="bfloat16"))


def layers_that_fit(need: Callable[[int], float], most: int, limit: float) -> int:
    """The most layers, up to `most`, whose step needs no more than `limit` bytes.

    need: bytes by the number of layers, which grow by the same for each one.
    """
    one, two = need(1), need(2)
    if one > limit:
        return 0
    return max(1, min(most, 1 + int((limit - one) / max(two - one, 1))))


def needs(width: Width, placed: Placed, rows: int) -> Callable[[int], float]:
    """A function from layers to the bytes that a step needs on each device."""

    def need(n_layers: int) -> float:
        recipe = recipe_of(width.model, n_layers)
        step = make_train_step(recipe, placed)
        batch = abstract_batch(placed, rows, width.T)
        found: Any = step.lower(recipe.target(placed), batch).compile()
        found = found.memory_analysis()
        # The state is donated: what the step returns lies where its arguments did.
        return found.argument_size_in_bytes + found.temp_size_in_bytes

    return need


def time_step(name: str, width: Width, placed: Placed, n: int) -> None:
    """Prints tokens per second and MFU of a training step."""
    layout = placed.layout
    pieces = layout.n_devices // layout.sizes.get("tensor", 1)
    rows = width.rows * pieces // layout.sizes.get("context", 1)
    stats = placed.mesh.devices.flat[0].memory_stats() or {}
    n_layers = width.model.n_layers
    if limit := stats.get("bytes_limit"):
        need = needs(width, placed, rows)
        n_layers = layers_that_fit(need, n_layers, 0.92 * limit)
        if not n_layers:
            print(f"{name}: not even one layer fits into {limit / 2**30:.0f} GiB")
            return
    recipe = recipe_of(width.model, n_layers)
    said = attention_said(
        width.model.attention, layout, placed.platform, recipe.precision
    )
    step = make_train_step(recipe, placed)
    state = create(recipe, placed, seed=0)
    batch = packed_batch(placed, rows, width.T, width.model.vocab_size)

    def run() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    seconds = seconds_of(run, n)
    if not np.isfinite(loss := float(run()["loss"])):
        raise SystemExit(f"{name}: the loss is {loss}")
    flops = step_flops(recipe, rows, width.T)
    meter = meter_on(placed.mesh.devices.flat, step_flops=flops)
    rates = meter({"tokens": rows * width.T, "seconds": seconds})
    params = sum(x.size for x in jax.tree.leaves(recipe.anatomy.shapes))
    mfu = "unknown here" if rates["mfu"] is None else f"{rates['mfu']:.1%}"
    print(
        f"{name} width {width.model.d_embed}, {n_layers} of {width.model.n_layers} "
        f"layers, {params / 1e6:,.1f} M parameters, {rows} rows of {width.T}, {said}: "
        f"{1e3 * seconds:,.1f} ms a step, {rates['tokens_per_second']:,.0f} tokens/s, "
        f"MFU {mfu}",
        flush=True,
    )


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--layout", help="of the steps; all devices split the batch if none is given")
    add("--widths", nargs="+", choices=[*WIDTHS], default=[*WIDTHS])
    add("--steps", type=int, default=10, help="how many are timed")
    add("--tiles", action="store_true", help="without the device's own kernel")
    add("--toy", action="store_true", help="tiny, interpreted; unasked on a CPU")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    asked = parsed(words)
    devices = jax.devices()
    layout = Layout.parse(asked.layout or f"fsdp={len(devices)}")
    placed = layout.on(devices[: layout.n_devices])
    platform, kind = placed.platform, devices[0].device_kind
    toy = asked.toy or platform == "cpu"
    print(
        f"jax {jax.__version__}, {layout.n_devices} x {kind}, layout {layout.spelling}"
    )
    if toy:
        FUSED[platform] = dataclasses.replace(
            FUSED["gpu"], make=lambda tiles: INTERPRETED["Triton"]
        )
    if asked.tiles:
        FUSED.pop(platform, None)
    kernels = {}
    if platform in FUSED:
        own = FUSED[platform]
        kernels = {own.name: own.make(kernel_check.TILES)}
    good = check(
        INTERPRETED if toy else kernels, TOYS_CHECKED if toy else CHECKED, "bfloat16"
    )
    if not good:
        print("The kernel is wrong here: nothing is timed.", file=sys.stderr)
        return 1
    if platform == "gpu" and kernels and not toy:
        kernels = {f"blocks {tuple(b)}": TritonAttention(b) for b in BLOCKS}
    shape = (2, 64, 2, 2, 16) if toy else (4, 2048, 16, 16, 128)
    time_attention({**kernels, "tiles": kernel_check.TILES}, shape, asked.steps)
    for name in asked.widths:
        time_step(name, (TOYS if toy else WIDTHS)[name], placed, asked.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
