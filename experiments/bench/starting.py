"""How long does `pretrain` take from its start to its first step, by the corpus's size?

A file of words of each size, read byte by byte into a cache of its own: once cold, then
warm: new runs on the same data, and a run that is resumed. `heldout` names 1 MB: by
default 5 % are held out, and the evaluation before the first step goes over all that.
Beside the seconds stand the bytes that the process had read by then, also of Python's
files and of compiled programs.

    python experiments/bench/starting.py FOLDER 5 500 5000        # sizes in MB
"""

import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import time

EXPERIMENT = """
from jaxpar import AdamW, Layout, Pretrain, Text
from jaxpar.models import sizes

experiment = Pretrain(
    model=sizes.gpt(
        vocab_size=260, n_layers=2, d_embed=64, n_heads=2, max_positions=256
    ),
    data=Text(
        "files:{0}.txt", heldout="files:{0}-heldout.txt", seq_len=256, batch_size=8
    ),
    optim=AdamW(peak_lr=1e-3, warmup_steps=1, decay_steps=100),
    layout=Layout.parse("data=1"),
    num_steps=1,
)
"""
WARM = 3


def write_words(path: pathlib.Path, n_bytes: int, seed: int) -> None:
    """A text of lines of words; a million bytes that differ, again and again."""
    draw = random.Random(seed)
    letters = "etaoinshrdlu"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(5_000)]
    with open(path, "w") as file:
        for block in range(n_bytes // 1_000_000):
            lines = (" ".join(draw.choices(words, k=12)) for _ in range(14_000))
            text = f"block {block}\n" + "\n".join(lines)
            file.write(text[:999_999] + "\n")


def first_step(folder: pathlib.Path, file: pathlib.Path, run: pathlib.Path, steps: int):
    """Seconds and bytes read until the metrics have the last of some steps."""
    env = {**os.environ, "JAXPAR_CACHE": str(folder / f"cache {file.stem}")}
    words = ["pretrain", str(file), "--run-dir", str(run), "--num-steps", str(steps)]
    metrics, start = run / "metrics.jsonl", time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "jaxpar", *words],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        n_read = 0
        while process.poll() is None:
            io = pathlib.Path(f"/proc/{process.pid}/io")
            if io.exists():
                n_read = int(io.read_text().split()[1])
            rows = metrics.read_text().splitlines() if metrics.exists() else []
            if any(json.loads(r).get("step") == steps for r in rows if r.endswith("}")):
                break
            time.sleep(0.02)
        seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{words} ended with status {process.returncode}")
    return seconds, n_read / 1e6


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for size in map(int, sys.argv[2:] or ("5", "500")):
        at = folder / f"{size}"
        file = at.with_suffix(".py")
        file.write_text(EXPERIMENT.format(at))
        if not (text := at.with_suffix(".txt")).exists():
            write_words(text, size * 1_000_000, seed=size)
        write_words(folder / f"{size}-heldout.txt", 1_000_000, seed=0)
        for old in (folder / f"cache {size}", *folder.glob(f"run-{size}-*")):
            shutil.rmtree(old, ignore_errors=True)
        # As a file that has lain there for a while: see jaxpar.files.kept.
        time.sleep(2.5)
        runs = [folder / f"run-{size}-{i}" for i in range(1 + WARM)]
        cold, *warm = [first_step(folder, file, run, 1) for run in runs]
        resumed = first_step(folder, file, runs[0], 2)
        middle = statistics.median(seconds for seconds, _ in warm)
        print(
            f"{size:6,} MB: cold {cold[0]:.1f} s ({cold[1]:,.0f} MB read), warm "
            f"{middle:.1f} s ({warm[0][1]:,.0f} MB), resumed {resumed[0]:.1f} s "
            f"({resumed[1]:,.0f} MB)",
            flush=True,
        )


if __name__ == "__main__":
    main()
