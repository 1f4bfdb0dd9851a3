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
# Eight simulated devices, the quickstart's experiment in a smaller form, and the same
# functions that `jaxpar pretrain` calls.

# %%
import jax

jax.config.update("jax_num_cpu_devices", 8)  # a laptop pretending to be a pod

from dataclasses import replace

from jaxpar.look import show

small = replace(run.model, n_layers=2, d_embed=64)
run = replace(run, model=small, data=replace(run.data, seq_len=64))
show(run)

# %% [markdown]
# The data is laid out once; the state is born sharded.

# %%
from jaxpar.data.loader import batches
from jaxpar.train.state import create
from jaxpar.train.step import make_train_step

placed = run.layout.on(jax.devices())
prepared = run.data.prepare()
recipe = run.recipe()
state = create(recipe, placed, seed=run.seed)
train_step = make_train_step(recipe, placed)
jax.debug.visualize_array_sharding(state.params["embedding"])

# %% [markdown]
# `fit` takes a state and returns one. Its events run between steps; this one draws.

# %%
import matplotlib.pyplot as plt
from IPython.display import clear_output, display

from jaxpar.train.loop import History, fit


class Draw:
    """Draws the loss of every step, ten steps at a time."""

    def due(self, step, history):
        return step % 10 == 0 and step > 0

    def run(self, step, state, history):
        history.fetch()
        clear_output(wait=True)
        figure, axes = plt.subplots(figsize=(6, 3))
        axes.plot([r["step"] for r in history.rows], [r["loss"] for r in history.rows])
        axes.set(xlabel="step", ylabel="loss, nats/token")
        display(figure)
        plt.close(figure)


def feed(state):
    """Batches from the state's own step on."""
    sizes = {"batch_size": run.data.batch_size, "seed": run.seed, "placed": placed}
    return batches(prepared.train, run.objective.row, start=int(state.step), **sizes)


history = History()
state, history = fit(
    state, feed(state), train_step, num_steps=20, events=[Draw()], history=history
)

# %% [markdown]
# A second cell goes on where the first one ended.

# %%
state, history = fit(
    state, feed(state), train_step, num_steps=40, events=[Draw()], history=history
)

# %% [markdown]
# Interrupting is safe: `fit` notices between two steps, and returns the live state. Here
# the cell signals itself, as the stop button does.

# %%
import os
import signal
import threading

threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT)).start()
state, history = fit(
    state, feed(state), train_step, num_steps=100_000, events=[Draw()], history=history
)
print(f"interrupted: {history.interrupted}, at step {int(state.step)}")

# %%
until = int(state.step) + 5
state, history = fit(
    state, feed(state), train_step, num_steps=until, events=[Draw()], history=history
)
assert int(state.step) == until and not history.interrupted
