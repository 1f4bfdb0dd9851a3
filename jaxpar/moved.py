"""Deprecated module paths of version 0.1, which work until 0.3."""

import importlib
import importlib.abc
import importlib.machinery
import types
import warnings
from collections.abc import Sequence
from typing import Any

MOVED: dict[str, tuple[str, ...]] = {
    "jaxpar.checkpoint.lock": ("jaxpar.guard.lock",),
    "jaxpar.checkpoint.opened": ("jaxpar.run.opening",),
    "jaxpar.checkpoint.run": (
        "jaxpar.run.directory",
        "jaxpar.metrics.metrics_file",
        "jaxpar.run.receipt",
    ),
    "jaxpar.checkpoint.session": (
        "jaxpar.run.training",
        "jaxpar.run.session",
        "jaxpar.run.outcome",
        "jaxpar.run.saving",
    ),
    "jaxpar.cli.main": ("jaxpar.cli",),
    "jaxpar.data.cache": ("jaxpar.cache",),
    "jaxpar.data.layout": ("jaxpar.data.token_files", "jaxpar.sources.corpus"),
    "jaxpar.data.pipeline": ("jaxpar.data.loader",),
    "jaxpar.data.split": ("jaxpar.files.split",),
    "jaxpar.generate.sample": ("jaxpar.generate.sampling",),
    "jaxpar.metrics.sink": ("jaxpar.metrics.sinks",),
    "jaxpar.nn.dense": ("jaxpar.nn.linear", "jaxpar.nn.embed"),
    "jaxpar.nn.kernel": ("jaxpar.nn.flash_attention",),
    "jaxpar.partition.place": (
        "jaxpar.partition.precision",
        "jaxpar.partition.sharding",
        "jaxpar.partition.collectives",
        "jaxpar.nn.sequence",
    ),
    "jaxpar.partition.sequence": (
        "jaxpar.nn.attention_kernel",
        "jaxpar.nn.context_parallel",
    ),
    "jaxpar.train.evaluate": ("jaxpar.train.scoring",),
    "jaxpar.verify.ahead": ("jaxpar.verify.compiling",),
    "jaxpar.verify.report": ("jaxpar.verify.proof",),
    "jaxpar.verify.rows": ("jaxpar.verify.packed_rows",),
}
"""Old module to the modules that hold its names now."""

RENAMED: dict[str, str] = {
    "jaxpar.checkpoint.opened.Opened": "OpenRun",
    "jaxpar.checkpoint.session.Ended": "Outcome",
    "jaxpar.data.cache.built": "build_once",
    "jaxpar.data.layout.Item": "Example",
    "jaxpar.data.layout.lay_out": "write_token_files",
    "jaxpar.nn.dense.Product": "ShardedProduct",
    "jaxpar.nn.dense.plus": "add_bias",
    "jaxpar.nn.kernel.Tiled": "FlashAttention",
    "jaxpar.nn.kernel.may_look": "attention_mask",
    "jaxpar.partition.place.Frame": "Context",
    "jaxpar.partition.place.Together": "Collectives",
    "jaxpar.partition.place.alone": "single_device",
    "jaxpar.partition.place.as_rows": "matmul_rows",
    "jaxpar.partition.place.current": "current_context",
    "jaxpar.partition.place.fetch": "gather_value",
    "jaxpar.partition.place.names_of": "axis_names",
    "jaxpar.partition.place.order": "token_numbers",
    "jaxpar.partition.place.precision": "current_precision",
    "jaxpar.partition.place.share_out": "distribute",
    "jaxpar.partition.place.spread": "reduce_gradient",
    "jaxpar.partition.place.under": "use_layout",
    "jaxpar.partition.place.ways": "pieces_along",
    "jaxpar.partition.sequence.Found": "Partial",
    "jaxpar.train.evaluate.evaluate": "total_loss",
    "jaxpar.train.evaluate.summary": "per_token_and_byte",
    "jaxpar.verify.ahead.Ahead": "CompiledAhead",
}
"""Names of these modules that have another name now."""


class OldPaths(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the old modules, whose names are looked up where they are now."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def exec_module(self, module: types.ModuleType) -> None:
        old = module.__name__

        def forward(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return find(old, name)

        vars(module)["__getattr__"] = forward


def find(old: str, name: str) -> Any:
    """What an old module's name stands for now; warns that it has moved."""
    new = RENAMED.get(f"{old}.{name}", name)
    for path in MOVED[old]:
        module = importlib.import_module(path)
        if hasattr(module, new):
            warnings.warn(
                f"{old}.{name} is {path}.{new} now; the old path goes in jaxpar 0.3.",
                DeprecationWarning,
                stacklevel=3,  # Above the module's own __getattr__.
            )
            return getattr(module, new)
    raise AttributeError(f"module {old!r} has no attribute {name!r}")
