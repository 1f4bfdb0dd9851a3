"""Does preparing much text take bounded memory, and does it survive kill -9?

    python -m experiments.bench.streaming make ../big --gb 5
    python -m experiments.bench.streaming prepare ../big/big.txt --kill-at 60 150
    python -m experiments.bench.streaming prepare ../big/big.jsonl --kill-at 60 150
    python -m experiments.bench.streaming small-files ../small --count 200000
    python -m experiments.bench.streaming prepare "../small/**/*.txt"

`make` writes big.txt and big.jsonl of the same paragraphs. `prepare` prints MB/s, the
most anonymous memory of all processes together, and one hash of all that was written,
which is the same whatever was killed.

Needs   a Linux machine with room for three times the text.
Expect  see experiments/LOG.md.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

from jaxpar import cache
from jaxpar.sources import stdlib

SEED, SAMPLE_SECONDS, NEW_WORD_EVERY = 20_260_101, 0.25, 300
CHILD = """
import sys
from jaxpar.data.source import Text
from jaxpar.data.tokenizer import BPE, Bytes

tokenizer = BPE(int(sys.argv[2])) if int(sys.argv[2]) else Bytes()
text = Text(sys.argv[1], seq_len=1024, batch_size=8, tokenizer=tokenizer)
print(text.prepare().fingerprint)
"""


def paragraphs(folder: str):
    """Endless paragraphs of real text, none of them twice the same."""
    paths = (
        [*pathlib.Path(folder).glob("*.txt")] if folder else stdlib.modules().values()
    )
    texts = (path.read_text("utf-8", "ignore") for path in paths)
    real = [p for text in texts for p in re.split(r"\n\s*\n", text) if p.strip()]
    rng = random.Random(SEED)
    while True:
        lines = rng.choice(real).splitlines()
        rng.shuffle(lines)
        words = " ".join(lines).split(" ")
        for _ in range(len(words) // NEW_WORD_EVERY):
            new = "".join(rng.choices("etaoinshrdlu", k=rng.randrange(3, 9)))
            words[rng.randrange(len(words))] = new
        yield f"{rng.randrange(10**4)} {' '.join(words)}"


def make(folder: str, gb: float, text: str) -> None:
    """Writes one file of text, and one with the same paragraphs as JSON lines."""
    out = pathlib.Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    size, limit = 0, int(gb * 1e9)
    with open(out / "big.txt", "w") as plain, open(out / "big.jsonl", "w") as records:
        for paragraph in paragraphs(text):
            plain.write(paragraph + "\n\n")
            records.write(json.dumps({"text": paragraph}) + "\n")
            size += len(paragraph) + 2
            if size >= limit:
                return


def small_files(folder: str, count: int, text: str) -> None:
    """Writes files of one paragraph each, a thousand in a folder."""
    for i, paragraph in zip(range(count), paragraphs(text), strict=False):
        path = pathlib.Path(folder, f"{i // 1000:04}", f"{i % 1000:03}.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(paragraph)


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory of a process and all below it."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        below = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # It has ended.
        return 0
    own = re.search(r"RssAnon:\s+(\d+) kB", status)
    return (int(own[1]) * 1024 if own else 0) + sum(anonymous(int(p)) for p in below)


def run(source: str, vocab_size: int, home: str, seconds: float | None) -> dict:
    """One process that prepares; killed after so many seconds, unless None."""
    command = [sys.executable, "-c", CHILD, f"files:{source}", str(vocab_size)]
    started, most = time.monotonic(), 0
    environment = {**os.environ, "JAXPAR_CACHE": home}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        while process.poll() is None:
            most = max(most, anonymous(process.pid))
            if seconds is not None and time.monotonic() - started > seconds:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(SAMPLE_SECONDS)
        printed = process.stdout.read().decode().strip() if process.stdout else ""
    took = round(time.monotonic() - started, 1)
    mib = most // 2**20
    return {"status": process.returncode, "seconds": took, "mib": mib, "key": printed}


def prepare(source: str, vocab_size: int, kill_at: list[float]) -> None:
    """Prepares a source in a cache of its own, and prints what it took."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/tmp")) as home:
        runs = [run(source, vocab_size, home, each) for each in [*kill_at, None]]
        found = pathlib.Path(home, "windows", runs[-1]["key"])
        digest = hashlib.sha256()
        for path in sorted(p for p in found.rglob("*") if p.is_file()):
            digest.update(f"{path.relative_to(found)} {cache.sha256(path)}\n".encode())
        meta = [json.loads(path.read_text()) for path in found.glob("*/meta.json")]
    n_bytes, seconds = sum(m["bytes"] for m in meta), sum(r["seconds"] for r in runs)
    counts = {name: sum(m[name] for m in meta) for name in ("items", "bytes", "tokens")}
    print(
        json.dumps(
            {
                "source": source,
                **counts,
                "runs": runs,
                "seconds": round(seconds, 1),
                "mb_per_second": round(n_bytes / seconds / 1e6, 1),
                "most_mib": max(r["mib"] for r in runs),
                "sha256": digest.hexdigest(),
            }
        )
    )


def main() -> None:
    """Parses the arguments; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("make", "small-files", "prepare"):
        each = verbs.add_parser(verb)
        each.add_argument("where")
        each.add_argument("--text", default="", help="a folder of .txt to take text of")
        each.add_argument("--gb", type=float, default=0.2)
        each.add_argument("--count", type=int, default=200_000)
        each.add_argument("--vocab-size", type=int, default=32_768, help="0: bytes")
        each.add_argument("--kill-at", type=float, nargs="*", default=[])
    asked = parser.parse_args()
    if asked.verb == "make":
        make(asked.where, asked.gb, asked.text)
    elif asked.verb == "small-files":
        small_files(asked.where, asked.count, asked.text)
    else:
        prepare(asked.where, asked.vocab_size, asked.kill_at)


if __name__ == "__main__":
    main()
