"""One process of a run, which writes down the rows that it made and was fed.

Also the experiment that it trains:

    python tests/one_process.py FED.jsonl pretrain tests/one_process.py ...
"""

import hashlib
import json
import os
import sys

import numpy as np

from jaxpar.data import loader
from jaxpar.data.source import Text
from jaxpar.experiment import Pretrain
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition import cluster
from jaxpar.partition.layout import Layout
from jaxpar.run import training

# Over two processes the batch is split; over four, two at a time need the same rows.
experiment = Pretrain(
    model=sizes.llama(
        vocab_size=260, n_layers=1, d_embed=16, n_heads=4, n_kv_heads=4, d_mlp=32,
        max_positions=512,
    ),
    data=Text("synthetic", seq_len=512, batch_size=16),
    optim=AdamW(peak_lr=1e-2, warmup_steps=2, decay_steps=8),
    layout=Layout.parse("fsdp=2,tensor=4"),
    num_steps=6,
    eval_every=3,
    save_every=3,
    log_every=2,
)  # fmt: skip


def written(path, feed, row):
    """`batches` and `_row` that note step, rows made so far, hash of each row fed."""
    made = set()

    def noted_row(windows, make_row, step, i, window):
        made.add(i)
        return row(windows, make_row, step, i, window)

    def noted(*args, start, **rest):
        for step, batch in enumerate(feed(*args, start=start, **rest), start):
            rows = {}
            for shard in batch["tokens"].addressable_shards:
                first = shard.index[0].start or 0
                for i, tokens in enumerate(np.asarray(shard.data), first):
                    rows[i] = hashlib.sha256(tokens.tobytes()).hexdigest()
            with open(path, "a") as file:
                line = {"step": step, "made": sorted(made), "rows": rows}
                file.write(json.dumps(line) + "\n")
            yield batch

    return noted, noted_row


if __name__ == "__main__":
    from jaxpar.cli import main

    training.batches, loader._row = written(sys.argv[1], training.batches, loader._row)
    cluster.LEAVE_SECONDS = int(os.environ.get("LEAVE_SECONDS", cluster.LEAVE_SECONDS))
    sys.exit(main(sys.argv[2:]))
