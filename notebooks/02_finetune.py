# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fine-tuning
# Pre-training and fine-tuning meet only on disk, in a run directory. Both are cut short
# here: the notebook shows how they fit together.

# %%
import jax

jax.config.update("jax_num_cpu_devices", 8)  # a laptop pretending to be a pod

import tempfile
from dataclasses import replace
from pathlib import Path

from experiments import quickstart, quickstart_finetune
from jaxpar import evaluate, finetune, pretrain

folder = Path(tempfile.mkdtemp())
base = quickstart.experiment
base = replace(base, model=replace(base.model, n_layers=2, d_embed=64), num_steps=30)
pretrain.main(base, run_dir=folder / "base")

# %% [markdown]
# The fine-tune takes model, tokenizer and parameters from the run; every parameter is
# accounted for. Only answers are scored; the first evaluation is that of the
# pre-trained model itself.

# %%
tuned = replace(
    quickstart_finetune.experiment, start_from=str(folder / "base"), num_steps=30
)
finetune.main(tuned, run_dir=folder / "tuned")

# %%
import matplotlib.pyplot as plt

from jaxpar import read_metrics

rows = read_metrics(folder / "tuned" / "metrics.jsonl")
steps = [row for row in rows if "split" not in row]
scores = [row for row in rows if "split" in row]
plt.plot([r["step"] for r in steps], [r["loss"] for r in steps], label="training")
plt.plot([r["step"] for r in scores], [r["nats_per_token"] for r in scores], "o-")
plt.xlabel("step")
plt.ylabel("answer loss, nats/token")

# %%
evaluate.main(folder / "tuned")

# %%
from jaxpar import Sampling, answer, open_run

run = open_run(folder / "tuned")
how = Sampling(max_new_tokens=16, temperature=0.0)
answer(run, ["def add(a, b):\n    return a + b\n"] * 4, how)[1][0]
