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
# # Pre-training, live
# A small Llama learns Python from the standard library that this notebook runs on, over
# eight devices that a laptop simulates; where there are eight accelerators, over those.
#
# ## The data at a glance
# The quickstart's experiment, made smaller. Its documents become tokens once; a row of
# training is a window of them. Colours only separate one token from the next.

# %%
import jax

jax.config.update("jax_num_cpu_devices", 8)  # a laptop pretending to be a pod

from dataclasses import replace

from experiments.quickstart import experiment
from jaxpar import BPE, Layout, Text, show_data

experiment = replace(
    experiment,
    model=replace(
        experiment.model, vocab_size=1024, n_layers=2, d_embed=128, max_positions=128
    ),
    data=Text("stdlib", tokenizer=BPE(1024), seq_len=128, batch_size=16),
    optim=replace(experiment.optim, decay_steps=130),
    layout=Layout.parse("fsdp=4,tensor=2"),
    num_steps=150,
    eval_every=75,
    save_every=75,
)
show_data(experiment)

# %% [markdown]
# ## The model, and where everything lives
# `fsdp=4,tensor=2` is a mesh of 4 x 2 devices. Nothing is allocated to say what each of
# them will hold.

# %%
from jaxpar import show

show(experiment)

# %% [markdown]
# The same as a picture. Each parameter is drawn once, as the mesh of 4 x 2 devices:
# devices of one colour hold the same piece of it, whose indices stand in the cells.

# %%
show(experiment).plot()

# %% [markdown]
# ## Training, and stopping
# `pretrain.main` is what `jaxpar pretrain` calls. Two events watch: `LiveLosses` draws
# both losses while they fall, and `Sample`, an event of one's own in
# `experiments/own_event.py`, lets the model of the moment go on from `def `.
#
# Press the stop button whenever you like: the step that is running ends, the state is
# saved, and the call returns 75, "stopped on request". (Here a hidden cell presses it
# at step 90.)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import os
import shutil
import signal
import threading
import time
from pathlib import Path

run = Path("runs/notebook_01")
shutil.rmtree(run, ignore_errors=True)  # This notebook starts anew.


def press_stop(step, file=run / "metrics.jsonl"):
    while not (file.exists() and f'"step": {step},' in file.read_text()):
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)


threading.Thread(target=press_stop, args=(90,), daemon=True).start()

# %%
from experiments.own_event import Sample
from jaxpar import LiveLosses, pretrain

status = pretrain.main(
    experiment,
    run_dir="runs/notebook_01",
    events=[LiveLosses(every=10), Sample],
)

# %% [markdown]
# Nothing is lost: the same call goes on from there, today or tomorrow, bit for bit as if
# it had never stopped. (On another layout it goes on, too, equal up to rounding.)

# %%
status = pretrain.main(
    experiment,
    run_dir="runs/notebook_01",
    events=[LiveLosses(every=10), Sample],
)

# %% [markdown]
# ## What it learned
# One curve over both sessions, from `metrics.jsonl`:

# %%
from jaxpar import plot_losses

plot_losses("runs/notebook_01")

# %% [markdown]
# And what the model wrote at each stage. After a minute it has the look of Python, not
# its sense; the quickstart itself trains four times as long, on a model twice as wide.

# %%
from jaxpar import read_metrics

for row in read_metrics("runs/notebook_01/metrics.jsonl"):
    if row.get("split") == "sample":
        print(f"— step {row['step']}", row["text"], "", sep="\n")
