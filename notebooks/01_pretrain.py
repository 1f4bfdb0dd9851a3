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

from experiments.quickstart import experiment
from jaxpar import show

experiment = replace(
    experiment,
    model=replace(experiment.model, n_layers=2, d_embed=64),
    data=replace(experiment.data, seq_len=64),
)
show(experiment)

# %% [markdown]
# The text is tokenised into files once. Each shard of the state is initialised on the
# device that owns it.

# %%
from jaxpar import batches, create, make_train_step

placed = experiment.layout.on(jax.devices())
prepared = experiment.data.prepare()
recipe = experiment.recipe()
state = create(recipe, placed, seed=experiment.seed)
train_step = make_train_step(recipe, placed)
jax.debug.visualize_array_sharding(state.params["embedding"])

# %% [markdown]
# `fit` takes a state and returns one. Its events run between steps; this one draws.

# %%
import matplotlib.pyplot as plt
from IPython.display import clear_output, display

from jaxpar import History, fit


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
    return batches(
        prepared.train,
        experiment.objective.row,
        batch_size=experiment.data.batch_size,
        seed=experiment.seed,
        placed=placed,
        start=int(state.step),
    )


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
