"""Is a single flipped bit, in any file of a run or of its prepared data, ever silent?

    python -m experiments.drills.flips              # 200 bits, about 15 minutes

A small run is trained and copied, with its prepared data, for each bit. Half of the
bits are drawn by size over the run's files, a quarter over those of the prepared data,
and a quarter among all files of 4 kB or less, whatever their size. Then the copy is
evaluated, and resumed for two steps. Each ends in one of these ways:

* refused: with a status and a message;
* said: a message names the damage, and an older step, or an intact copy, is used;
* same: all numbers are bit-equal to those of the undamaged run, so nothing was lost;
* SILENT: other numbers without a word, which is what must never happen.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.drills.tiny import experiment
from jaxpar.errors import JaxparError

N_STEPS = 20
RUN, CACHE = "run", "cache"
SKIPPED = ("run.lock", "tensorboard", "metrics.jsonl", "experiment.py", "compiled")
"""What holds no state of the run: a log of it, or a copy for people to read."""


def main() -> int:
    """Prints how each flipped bit ended, and how many were silent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jaxpar-drill-") as name:
        home = Path(name)
        whole = home / "whole"
        whole.mkdir()
        os.environ["JAXPAR_COMPILED"] = str(home / "compiled")
        in_child(whole, lambda: train(whole, N_STEPS))
        truth = tried(home / "truth", whole)
        if truth != tried(home / "again", whole):
            print("two undamaged copies differ")
            return 1
        seen = drill(home, whole, truth, drawn(whole, asked.bits, asked.seed))
    print(f"{asked.bits} flipped bits: {dict(seen)}")
    return 1 if seen["SILENT"] else 0


def drill(home: Path, whole: Path, truth: dict, bits: list) -> collections.Counter:
    """How often each end was seen."""
    seen: collections.Counter = collections.Counter()
    for file, bit in bits:
        found = tried(home / "copy", whole, file, bit)
        ends = {name: ending(found[name], truth[name]) for name in truth}
        worst = next(e for e in ("SILENT", "refused", "said", "same")
                     if e in ends.values())  # fmt: skip
        seen[worst] += 1
        print(f"{worst:8} {file} bit {bit}: {ends} {said_of(found)}", flush=True)
    return seen


def drawn(whole: Path, n: int, seed: int) -> list[tuple[Path, int]]:
    """Files and bits of them, as the module says."""
    draw = random.Random(seed)
    files = sorted(
        file.relative_to(whole)
        for file in whole.rglob("*")
        if file.is_file()
        and file.stat().st_size
        and not any(part in SKIPPED for part in file.relative_to(whole).parts)
    )
    sizes = {file: (whole / file).stat().st_size for file in files}
    of_run, of_data = (
        [file for file in files if file.parts[0] == name] for name in (RUN, CACHE)
    )
    small = [file for file in files if sizes[file] <= 4096]
    chosen = [
        *draw.choices(of_run, [sizes[f] for f in of_run], k=n - 2 * (n // 4)),
        *draw.choices(of_data, [sizes[f] for f in of_data], k=n // 4),
        *draw.choices(small, k=n // 4),
    ]
    return [(f, draw.randrange((whole / f).stat().st_size * 8)) for f in chosen]


def tried(
    copy: Path, whole: Path, file: Path | None = None, bit: int = 0
) -> dict[str, Any]:
    """What evaluating and resuming a copy gives, with one bit flipped."""
    found = {}
    for name, act in (("evaluate", evaluate), ("resume", resume)):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy, symlinks=True)
        if file is not None:
            data = bytearray((copy / file).read_bytes())
            data[bit // 8] ^= 1 << bit % 8
            (copy / file).write_bytes(data)
        found[name] = in_child(copy, lambda act=act: act(copy))
    return found


def ending(found: dict[str, Any], truth: dict[str, Any]) -> str:
    """Which of the four ways it was."""
    if "error" in found:
        return "refused"
    if found["result"] == truth["result"]:
        return "same"
    return "said" if found["said"] else "SILENT"


def said_of(found: dict[str, Any]) -> str:
    """The first message of the two commands."""
    texts = (f.get("error") or f.get("said", "") for f in found.values())
    return next(filter(None, texts), "")[:160]


def in_child(home: Path, act) -> dict[str, Any]:
    """What `act` returns or raises in a forked process, whose caches are its own."""
    read, write = os.pipe()
    if pid := os.fork():
        os.close(write)
        with open(read) as pipe:
            text = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return json.loads(text) if text else {"error": f"died with {status}"}
    os.environ["JAXPAR_CACHE"] = str(home / CACHE)
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            found = {"result": act(), "said": words_of_damage(said.getvalue())}
        except JaxparError as error:
            found = {"error": f"status {error.exit_status}: {error}"}
        except BaseException as error:  # Not ours: reported as such.
            found = {"error": f"status 1: {type(error).__name__}: {error}"}
    with open(write, "w") as pipe:
        json.dump(found, pipe)
    os._exit(0)


def words_of_damage(said: str) -> str:
    """The lines on stderr that speak of damage, not of progress."""
    words = ("damaged", "going back", "changed", "manifest", "checksum", "unreadable")
    return " ".join(line for line in said.splitlines() if any(w in line for w in words))


def train(home: Path, n_steps: int) -> Any:
    """Trains up to a step; the losses and the newest state's digest."""
    import jax

    from jaxpar import pretrain

    jax.config.update("jax_compilation_cache_dir", os.environ["JAXPAR_COMPILED"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    asked = dataclasses.replace(experiment, num_steps=n_steps, eval_every=10)
    status = pretrain.main(asked, run_dir=home / RUN)
    rows = (home / RUN / "metrics.jsonl").read_text().splitlines()
    kept = ("step", "loss", "grad_norm", "nats_per_token")
    return [status, [{k: json.loads(r).get(k) for k in kept} for r in rows]]


def resume(home: Path) -> Any:
    """Trains two steps more."""
    return train(home, N_STEPS + 2)


def evaluate(home: Path) -> Any:
    """The score of the newest step."""
    from jaxpar import evaluate

    return evaluate.main(home / RUN, step="newest")


if __name__ == "__main__":
    sys.exit(main())
