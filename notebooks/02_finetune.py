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
# # Fine-tuning: answers before and after
# A model that has read Python for a minute is taught, with 200 pairs made here, to say
# what kind of line it is looking at: `import os  # This is` → `an import`.
#
# ## A model to start from
# Pre-training and fine-tuning meet only on disk, in a run directory. This one is made by
# a small Llama on one device; any run will do.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import shutil

shutil.rmtree("runs/notebook_02", ignore_errors=True)  # This notebook starts anew.

# %%
from jaxpar import BPE, LiveLosses, Muon, Pretrain, Text, auto, pretrain
from jaxpar.models import sizes

base = Pretrain(
    model=sizes.llama(
        vocab_size=1024,
        n_layers=3,
        d_embed=128,
        n_heads=4,
        n_kv_heads=4,
        d_mlp=384,
        max_positions=128,
        tied=True,
    ),
    data=Text("stdlib", tokenizer=BPE(1024), seq_len=128, batch_size=16),
    optim=Muon(peak_lr=0.02, warmup_steps=20, decay_steps=180, final_lr=0.0),
    layout=auto(),
    num_steps=200,
    eval_every=100,
)
status = pretrain.main(
    base, run_dir="runs/notebook_02/base", events=[LiveLosses(every=10)]
)

# %% [markdown]
# ## 200 pairs
# Python's own parser says what the lines of jaxpar's source are: code that the model has
# not read. Of each of eight kinds 25 lines are to learn from, 10 others to be asked.

# %%
import ast
import json
import random
from pathlib import Path

import jaxpar

KINDS = {
    ast.Import: "an import", ast.ImportFrom: "an import", ast.FunctionDef: "a function",
    ast.ClassDef: "a class", ast.Assign: "an assignment", ast.Expr: "a call",
    ast.Return: "a return", ast.If: "a condition", ast.For: "a loop",
}  # fmt: skip
lines = {kind: set() for kind in KINDS.values()}
for file in Path(jaxpar.__file__).parent.rglob("*.py"):
    text = file.read_text().splitlines()
    for node in ast.walk(ast.parse("\n".join(text))):
        if type(node) in KINDS and '"""' not in (line := text[node.lineno - 1].strip()):
            lines[KINDS[type(node)]].add(line)

random.seed(0)
teach, ask = [], []
for kind, found in lines.items():
    short = sorted(line for line in found if 8 <= len(line) <= 50)
    chosen = [(f"{line}  # This is", f" {kind}") for line in random.sample(short, 35)]
    teach, ask = teach + chosen[:25], ask + chosen[25:]
random.shuffle(ask)


def write(path, pairs):
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in pairs]
    Path(path).write_text("\n".join(map(json.dumps, rows)))


write("runs/notebook_02/teach.jsonl", teach)
write("runs/notebook_02/ask.jsonl", ask)
print(*Path("runs/notebook_02/teach.jsonl").read_text().splitlines()[::40], sep="\n")

# %% [markdown]
# ## The fine-tune
# It takes model, tokenizer and parameters from the run, and accounts for each parameter.
# Only answers are scored; step 0 is the pre-trained model itself.

# %%
from jaxpar import AdamW, Finetune, Pairs, finetune

tuned = Finetune(
    start_from="runs/notebook_02/base",
    data=Pairs(
        "files:runs/notebook_02/teach.jsonl",
        heldout="files:runs/notebook_02/ask.jsonl",
        seq_len=64,
        batch_size=8,
    ),
    optim=AdamW(peak_lr=2e-3, warmup_steps=5, decay_steps=75, final_lr=0.0),
    layout=auto(),
    num_steps=80,
    eval_every=20,
)
status = finetune.main(
    tuned, run_dir="runs/notebook_02/tuned", events=[LiveLosses(every=10)]
)

# %% [markdown]
# ## Before and after
# Both runs are asked about the lines that were held out, and answer with the most likely
# words. Sixteen of the 80:

# %%
from dataclasses import replace

from jaxpar import Sampling, compare_answers, open_run

before, after = open_run("runs/notebook_02/base"), open_run("runs/notebook_02/tuned")
how = Sampling(max_new_tokens=6, temperature=0.0)
answers = compare_answers(before, after, ask, how)
replace(answers, rows=answers.rows[:16])

# %%
print("As expected, of all 80: before {}, after {}".format(*answers.hits))

# %% [markdown]
# ## What it cannot do
# Lines chosen to mislead it, and kinds that it was never taught. It looks at the words
# that its pairs had, and never says that it does not know:

# %%
traps = {
    "classes = []": "an assignment", "import_all(path)": "a call", "x += 1": "an assignment",
    "while True:": "a loop", "# import os": "a comment", "raise ValueError(name)": "an error",
    "the cat sat on the mat": "no code",
}  # fmt: skip
pairs = [(f"{line}  # This is", f" {kind}") for line, kind in traps.items()]
compare_answers(before, after, pairs, how)

# %% [markdown]
# And does the pre-training matter? For this task hardly. `keep_fresh=("*",)` runs the same
# fine-tune from fresh parameters: over three seeds (measured once, on two cores) that got
# 78 to 80 of the 80 right, at a loss of 0.11 to 0.13 nats/token; from the pre-trained ones
# it was 75 to 79, at 0.05 to 0.07. A task that needs what a minute of reading gives is
# another one; a control like this is how to know.
