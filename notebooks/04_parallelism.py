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
# # Every kind of parallelism, drawn and proven
# One tiny model on four or eight simulated devices, under one layout after another: what
# each device holds, what devices send to each other, and the proof that nothing of it
# changes the numbers.

# %%
import jax

jax.config.update("jax_num_cpu_devices", 8)  # a laptop pretending to be a pod
jax.config.update("jax_enable_x64", True)  # proofs are in float64
jax.config.update("jax_disable_most_optimizations", True)  # programs that run once

from dataclasses import replace

from jaxpar import AdamW, Pretrain, Text, plot_layout
from jaxpar.models import sizes
from jaxpar.verify import Reference
from jaxpar.verify.prove import prove

experiment = Pretrain(
    model=sizes.llama(
        vocab_size=96,
        n_layers=8,
        d_embed=32,
        n_heads=8,
        n_kv_heads=8,
        d_mlp=64,
        max_positions=32,
    ),
    data=Text("synthetic", seq_len=32, batch_size=16),
    optim=AdamW(peak_lr=1e-3, warmup_steps=1, decay_steps=9),
    num_steps=10,
)

# %% [markdown]
# ## The batch: `data`, `zero1`, `fsdp`
# The blue field is the batch: its rows downwards, the tokens of a row to the right. Below
# it are one matrix outside the layers, the embedding, and two in each of the eight layers;
# what a device holds of them has a colour, on the left as parameters, on the right as the
# state of the optimizer. In the circles an arrow goes from who sends to who receives.
#
# `data` splits the rows alone. Every device has all parameters, and they add up their
# gradients.

# %%
plot_layout(experiment, "data=4")

# %% [markdown]
# The proof is one step on one device and on the layout, in float64, with every gradient
# and every number of the optimizer's state. `jaxpar.verify(experiment, "data=4")` does
# this; here one device is computed once for all layouts.

# %%
one_device = Reference(experiment)
prove(one_device, "data=4")

# %% [markdown]
# `zero1` also splits the optimizer's state: each device updates its slices of the
# parameters, and they gather the updates.

# %%
print(prove(one_device, "zero1=4").verdict)
plot_layout(experiment, "zero1=4")

# %% [markdown]
# `fsdp` stores the parameters in slices, too. They are gathered layer by layer when they
# are used, in both passes.

# %%
print(prove(one_device, "fsdp=4").verdict)
plot_layout(experiment, "fsdp=4")

# %% [markdown]
# ## Inside a layer: `tensor`
# Every device sees all rows, and has a part of the heads, of the MLP's hidden units and of
# the vocabulary. What they compute is added up twice a layer. With `+sp` they also share
# the tokens between the blocks, so that a sum becomes a scatter and a gather.

# %%
print(prove(one_device, "tensor=4+sp").verdict)
plot_layout(experiment, "tensor=4+sp")

# %% [markdown]
# ## The sequence: `ring`, `ulysses`
# Devices share each row. With causal attention late tokens have more to look at than early
# ones, so in a `ring` each device has an early and a late part: a zigzag. Keys and values
# go round, until each has met all queries. (`context` gathers them instead.)

# %%
print(prove(one_device, "ring=4").verdict)
plot_layout(experiment, "ring=4")

# %% [markdown]
# `ulysses` keeps the tokens in order. For attention the devices exchange them: each gets
# whole rows of some of the heads, and afterwards its own tokens again.

# %%
print(prove(one_device, "ulysses=4").verdict)
plot_layout(experiment, "ulysses=4")

# %% [markdown]
# ## The layers: `stage`
# Each device has two of the eight layers and hands activations on to the next stage. The
# clock below shows when: a microbatch goes down the stages, a tick for each. In the white
# cells a stage has nothing to do.

# %%
print(prove(one_device, "stage=4").verdict)
plot_layout(experiment, "stage=4")

# %% [markdown]
# With `stage=4x2` each stage has two chunks of one layer, and a microbatch goes round
# twice. A tick is half as long, so that less time is lost; more is sent.

# %%
print(prove(one_device, "stage=4x2").verdict)
plot_layout(experiment, "stage=4x2")

# %% [markdown]
# ## Experts: `expert`
# The same model with a mixture of eight experts in the place of each MLP. Tokens are sent
# to the devices that have their two experts, and back. Everything else is on each device,
# whose gradients are added up as with `data`.

# %%
from jaxpar.experts.block import MoEConfig
from jaxpar.experts.router import RouterConfig
from jaxpar.nn.mlp import MLPConfig

experts = MoEConfig(8, MLPConfig(32), RouterConfig(top_k=2))
mixture = replace(experiment, model=replace(experiment.model, experts=experts))
print(prove(Reference(mixture), "expert=4").verdict)
plot_layout(mixture, "expert=4")

# %% [markdown]
# ## Several at once
# Words are combined with commas. Of eight devices each has here a part of the rows, of the
# tokens, and of each matrix in both directions.

# %%
print(prove(one_device, "fsdp=2,ring=2,tensor=2").verdict)
plot_layout(experiment, "fsdp=2,ring=2,tensor=2")

# %% [markdown]
# `jaxpar show EXPERIMENT --layout LAYOUT --plot-layout FILE.png` draws the same of any
# experiment, and `jaxpar verify EXPERIMENT --layout LAYOUT` proves it.
