"""One process of a distributed run, which logs the rows that it makes and is fed.

This file is also the experiment that it trains:

    python tests/one_process.py ROWS.jsonl pretrain tests/one_process.py ...
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
from jaxpar.run import fitting

# Two processes split the batch; of four, each two need the same rows.
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


def logged(path, batches, make):
    """`batches` and `_row` that also write a line for each batch to a file.

    A line has the step, the rows made so far, and a hash of each row in the batch.
    """
    made = set()

    def logged_row(windows, make_row, step, i, *more):
        made.add(i)
        return make(windows, make_row, step, i, *more)

    def logged_batches(*args, start, **options):
        for step, batch in enumerate(batches(*args, start=start, **options), start):
            rows = {}
            for shard in batch["tokens"].addressable_shards:
                first = shard.index[0].start or 0
                for i, tokens in enumerate(np.asarray(shard.data), first):
                    rows[i] = hashlib.sha256(tokens.tobytes()).hexdigest()
            with open(path, "a") as file:
                line = {"step": step, "made": sorted(made), "rows": rows}
                file.write(json.dumps(line) + "\n")
            yield batch

    return logged_batches, logged_row


if __name__ == "__main__":
    from jaxpar.cli import main

    fitting.batches, loader._row = logged(sys.argv[1], fitting.batches, loader._row)
    cluster.LEAVE_SECONDS = int(os.environ.get("LEAVE_SECONDS", cluster.LEAVE_SECONDS))
    seconds = os.environ.get("HEARTBEAT_SECONDS", cluster.HEARTBEAT_SECONDS)
    cluster.HEARTBEAT_SECONDS = int(seconds)
    sys.exit(main(sys.argv[2:]))
