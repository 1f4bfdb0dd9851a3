"""How many tokens a second does the loader put on a device?

Rows of 256 tokens of the standard library, in batches of 512 and of 8 rows, by turns;
then 8 rows whose making waits for 20 ms each, as on a slow network, where threads join.
Beside the rate, the processor's time for a batch tells what an idle machine could do.

    python experiments/bench/loading.py
"""

import itertools
import statistics
import sys
import time

import jax

from jaxpar.data.loader import batches
from jaxpar.data.source import Text
from jaxpar.data.task import causal
from jaxpar.partition.layout import Layout

T, SECONDS, ROUNDS = 256, 2.0, 5


def rate(windows, rows, row=causal, seconds=SECONDS):
    """Tokens a second, and microseconds of the processor for a batch."""
    placed = Layout.parse("data=1").on(jax.devices()[:1])
    found = batches(
        windows, row, batch_size=rows, seed=0, placed=placed, vocab_size=260
    )
    for _ in itertools.islice(found, 3):
        pass
    n, start, spent = 0, time.perf_counter(), time.process_time()
    while (seconds_so_far := time.perf_counter() - start) < seconds:
        next(found)
        n += 1
    spent = time.process_time() - spent
    found.close()
    return n * rows * T / seconds_so_far, spent / n * 1e6


def slow(window):
    time.sleep(0.02)
    return causal(window)


def main() -> None:
    windows = Text("stdlib", seq_len=T, batch_size=512).prepare(progress=False).train
    found = {512: [], 8: []}
    for _ in range(ROUNDS):
        for rows, rates in found.items():
            rates.append(rate(windows, rows))
    for rows, rates in found.items():
        tokens, spent = map(statistics.median, zip(*rates, strict=True))
        best = max(each for each, _ in rates)
        print(f"{rows:4} rows: {tokens / 1e6:.2f} million tokens/s, at best "
              f"{best / 1e6:.2f}; {spent:,.0f} us of processor a batch")  # fmt: skip
    tokens, _ = rate(windows, 8, slow, seconds=12)
    alone = T / 0.02
    print(f"   8 rows that wait 20 ms each: {tokens:,.0f} tokens/s, "
          f"{tokens / alone:.1f} x what one thread could")  # fmt: skip
    print(f"jax {jax.__version__}, Python {sys.version.split()[0]}, {ROUNDS} rounds")


if __name__ == "__main__":
    main()
