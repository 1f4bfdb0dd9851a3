"""Pre-training and fine-tuning of language models over many devices, in JAX."""

import importlib
import sys
from typing import Any

from jaxpar.moved import OldPaths

__version__ = "0.2.0"

NOUNS = {
    "AdamW": "jaxpar.optim.optimizer",
    "BPE": "jaxpar.data.tokenizer",
    "Bytes": "jaxpar.data.tokenizer",
    "CausalLM": "jaxpar.train.objective",
    "Converged": "jaxpar.train.converge",
    "Experiment": "jaxpar.experiment",
    "Finetune": "jaxpar.experiment",
    "History": "jaxpar.train.loop",
    "Layout": "jaxpar.partition.layout",
    "LiveLosses": "jaxpar.look.curves",
    "Muon": "jaxpar.optim.optimizer",
    "Never": "jaxpar.train.converge",
    "Pairs": "jaxpar.data.source",
    "Precision": "jaxpar.partition.precision",
    "Pretrain": "jaxpar.experiment",
    "Recipe": "jaxpar.train.state",
    "Rewind": "jaxpar.train.spikes",
    "RunDir": "jaxpar.run.directory",
    "Sampling": "jaxpar.generate.sampling",
    "StartDecay": "jaxpar.train.actions",
    "Stop": "jaxpar.train.actions",
    "Text": "jaxpar.data.source",
    "TokenizerFile": "jaxpar.data.tokenizer_file",
    "UserError": "jaxpar.errors",
    "Warn": "jaxpar.train.spikes",
    "account_of": "jaxpar.run.time_file",
    "answer": "jaxpar.generate.answer",
    "assert_same": "jaxpar.verify.prove",
    "auto": "jaxpar.partition.auto_layout",
    "batches": "jaxpar.data.loader",
    "compare_answers": "jaxpar.look.answers",
    "create": "jaxpar.train.state",
    "fit": "jaxpar.train.loop",
    "logits": "jaxpar.generate.answer",
    "make_train_step": "jaxpar.train.step",
    "open_run": "jaxpar.run.opening",
    "place": "jaxpar.run.placing",
    "plot_layout": "jaxpar.look.parallelism",
    "plot_losses": "jaxpar.look.curves",
    "read_metrics": "jaxpar.metrics.metrics_file",
    "show": "jaxpar.look.show",
    "show_data": "jaxpar.look.show_data",
}
"""What `import jaxpar` gives, and where it stands; imported when it is first used."""
CALLED = {"verify": "jaxpar.verify"}
"""Packages that are called like the function that they are named after."""

if not any(isinstance(finder, OldPaths) for finder in sys.meta_path):
    sys.meta_path.append(OldPaths())


def __getattr__(name: str) -> Any:
    if name in NOUNS:
        return getattr(importlib.import_module(NOUNS[name]), name)
    if name in CALLED:
        return importlib.import_module(CALLED[name])
    raise AttributeError(f"module 'jaxpar' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *NOUNS, *CALLED})
