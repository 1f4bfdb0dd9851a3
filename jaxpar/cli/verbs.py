"""The verbs, each of which loads no more than it needs."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

from jaxpar.cli import options
from jaxpar.cli.request import classes, experiment, first, parse
from jaxpar.config import UserError


def pretrain(args: list[str]) -> int | None:
    """Trains from random weights, or resumes the same run."""
    prog = "jaxpar pretrain"
    file, rest = first(args, options.Train, prog=prog, what="EXPERIMENT")
    from jaxpar.experiment import Pretrain

    asked = _over(options.Train, rest, prog, file, Pretrain)
    _compile_cache(asked.compile_cache)
    _start(asked)
    from jaxpar import pretrain

    return pretrain.main(
        asked.run, experiment=Path(file), run_dir=asked.run_dir, devices=asked.devices
    )


def finetune(args: list[str]) -> int | None:
    """Trains from another run's checkpoint, or resumes the same run."""
    prog = "jaxpar finetune"
    file, rest = first(args, options.Finetune, prog=prog, what="EXPERIMENT")
    from jaxpar.experiment import Finetune

    asked = _over(options.Finetune, rest, prog, file, Finetune)
    _compile_cache(asked.compile_cache)
    _start(asked)
    from jaxpar import finetune

    return finetune.main(
        asked.run,
        experiment=Path(file),
        run_dir=asked.run_dir,
        devices=asked.devices,
        step=_step(asked.step),
        classes=classes(asked.imports),
    )


def evaluate(args: list[str]) -> None:
    """Prints the loss of a run on its held-out data, or on any source."""
    prog = "jaxpar evaluate"
    run, rest = first(args, options.Evaluate, prog=prog, what="RUN")
    asked = parse(options.Evaluate, rest, prog=f"{prog} {run}")
    _start(asked)
    from jaxpar import evaluate

    found = evaluate.main(
        run,
        step=_step(asked.step),
        layout=asked.layout,
        devices=asked.devices,
        source=asked.source,
        classes=classes(asked.imports),
    )
    if not asked.json:
        found["perplexity"] = math.exp(found["nats_per_token"])
    _tell(found, asked.json)


def generate(args: list[str]) -> None:
    """Continues prompts with a run's model."""
    prog = "jaxpar generate"
    run, rest = first(args, options.Generate, prog=prog, what="RUN")
    asked = parse(options.Generate, rest, prog=f"{prog} {run}")
    if bool(asked.prompt) == bool(asked.token_ids):
        raise UserError(f"{prog} needs either --prompt or --token-ids.")
    from jaxpar.partition import cluster

    cluster.refuse("jaxpar generate", "jaxpar evaluate works on several")
    from jaxpar.generate.answer import main as answer
    from jaxpar.generate.sample import Sampling

    drawn = {f.name: getattr(asked, f.name) for f in dataclasses.fields(Sampling)}
    stream = len(asked.prompt) == 1 and not asked.json
    found = answer(
        run,
        prompts=asked.prompt,
        token_ids=_numbers(asked.token_ids),
        how=Sampling(**drawn),
        step=_step(asked.step),
        layout=asked.layout,
        devices=asked.devices,
        classes=classes(asked.imports),
        stream=stream,
    )
    _tell({"step": found["step"]} if stream else found, asked.json)


def show(args: list[str]) -> None:
    """Prints every parameter's axes, shape, and piece on each device."""
    prog = "jaxpar show"
    file, rest = first(args, options.Show, prog=prog, what="EXPERIMENT")
    from jaxpar.experiment import Finetune, Pretrain
    from jaxpar.look import show

    asked = _over(options.Show, rest, prog, file, Pretrain, Finetune)
    table = show(asked.run, classes=classes(asked.imports))
    print(json.dumps(table.to_json()) if asked.json else table)


def verify(args: list[str]) -> int:
    """Proves that an experiment's layout computes what one device does."""
    prog = "jaxpar verify"
    file, rest = first(args, options.Verify, prog=prog, what="EXPERIMENT")
    from jaxpar.experiment import Finetune, Pretrain
    from jaxpar.verify import verify

    asked = _over(options.Verify, rest, prog, file, Pretrain, Finetune)
    _compile_cache(True)
    proof = verify(
        asked.run,
        full=asked.full,
        precision=asked.precision,
        devices=asked.devices,
        classes=classes(asked.imports),
    )
    print(json.dumps(proof.to_json()) if asked.json else proof)
    return 0 if proof.passed else 1


def prepare(args: list[str]) -> None:
    """Tokenises and lays out an experiment's data."""
    prog = "jaxpar data prepare"
    file, rest = first(args, options.Report, prog=prog, what="EXPERIMENT")
    from jaxpar.experiment import Finetune, Pretrain

    asked = _over(options.Report, rest, prog, file, Pretrain, Finetune)
    tokens = None
    if isinstance(asked.run, Finetune):
        from jaxpar.checkpoint.run import RunDir
        from jaxpar.data import tokenizer

        tokens = tokenizer.load(RunDir(asked.run.start_from).tokenizer_dir)
    # The one verb that may ask a network.
    asked.run.data.fetch()
    found = asked.run.data.prepare(tokens, progress=not asked.json)
    _tell(found.description, asked.json)


VERBS: dict[str, tuple[Callable[[list[str]], int | None], str]] = {
    "pretrain": (pretrain, "train an experiment's model, or resume the same run"),
    "finetune": (finetune, "train on from another run's checkpoint"),
    "evaluate": (evaluate, "loss and perplexity of a run, or of any text under it"),
    "generate": (generate, "continue a prompt with a run's model"),
    "show": (show, "what each device would hold of an experiment's model"),
    "verify": (verify, "prove that a layout computes what one device does"),
    "data prepare": (prepare, "tokenise and lay out an experiment's data"),
}


def _over(kind: type, rest: list[str], prog: str, file: str, *runs: type):
    """Options, with the experiment's value as the flags change it."""
    run = experiment(file, *runs)
    return parse(kind, rest, prog=f"{prog} {file}", run=run)


def _step(text: str | None) -> int | str | None:
    if text is None or text in ("best", "newest"):
        return text
    if not text.isdigit():
        raise UserError(f"--step {text}: it must be a number, best or newest.")
    return int(text)


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(
            f"--token-ids {text}: it must be numbers, as in 1,2,3."
        ) from None


def _start(asked: options.Many) -> None:
    from jaxpar.partition import cluster

    cluster.start(asked.coordinator, asked.num_processes, asked.process_id)


def _compile_cache(wanted: bool) -> None:
    if wanted:
        import jax

        from jaxpar.data.cache import root

        jax.config.update("jax_compilation_cache_dir", str(root() / "compiled"))


def _tell(found: dict, as_json: bool) -> None:
    """One JSON object on stdout, or a line for each of its items; by process 0."""
    from jaxpar.partition import cluster

    if not cluster.is_first():
        return
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name}: {value}")
