"""The verbs, each of which loads no more than it needs."""

import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxpar.cli import options
from jaxpar.cli.begin import begun, start_processes, use_compile_cache
from jaxpar.cli.flags import classes_in, load_experiment, parse, split_first
from jaxpar.errors import UserError


def pretrain(args: list[str]) -> int:
    """Trains from random weights, or resumes the same run."""
    prog = "jaxpar pretrain"
    file, rest = split_first(args, options.Train, prog=prog, what="EXPERIMENT")
    from jaxpar.experiment import Pretrain

    asked = _with_flags(options.Train, rest, prog, file, Pretrain)
    from jaxpar import pretrain

    with begun(asked):
        return pretrain.main(
            asked.experiment,
            source_file=Path(file),
            run_dir=asked.run_dir,
            devices=asked.devices,
            check=_check(asked),
        )


def finetune(args: list[str]) -> int:
    """Trains from another run's checkpoint, or resumes the same run."""
    prog = "jaxpar finetune"
    file, rest = split_first(args, options.FinetuneRun, prog=prog, what="EXPERIMENT")
    from jaxpar.experiment import Finetune

    asked = _with_flags(options.FinetuneRun, rest, prog, file, Finetune)
    from jaxpar import finetune

    with begun(asked):
        return finetune.main(
            asked.experiment,
            source_file=Path(file),
            run_dir=asked.run_dir,
            devices=asked.devices,
            step=_step(asked.step),
            classes=classes_in(asked.imports),
            check=_check(asked),
        )


def evaluate(args: list[str]) -> None:
    """Prints the loss of a run on its held-out data, or on any source."""
    prog = "jaxpar evaluate"
    run, rest = split_first(args, options.Evaluate, prog=prog, what="RUN")
    asked = parse(options.Evaluate, rest, prog=f"{prog} {run}")
    start_processes(asked)
    from jaxpar import evaluate

    found = evaluate.main(
        run,
        step=_step(asked.step),
        layout=asked.layout,
        devices=asked.devices,
        source=asked.source,
        text_field=asked.text_field,
        classes=classes_in(asked.imports),
        check=_check(asked),
    )
    if not asked.json:
        from jaxpar.train.scoring import perplexity

        found["perplexity"] = perplexity(found["nats_per_token"])
    _print_items(found, asked.json)


def generate(args: list[str]) -> None:
    """Continues prompts with a run's model."""
    prog = "jaxpar generate"
    run, rest = split_first(args, options.Generate, prog=prog, what="RUN")
    asked = parse(options.Generate, rest, prog=f"{prog} {run}")
    prompts = tuple(itertools.chain.from_iterable(asked.prompt))
    if bool(prompts) == (asked.token_ids is not None):
        raise UserError(f"{prog} needs either --prompt or --token-ids.")
    from jaxpar.partition import cluster

    cluster.require_single_process(
        "jaxpar generate", "jaxpar evaluate works on several"
    )
    from jaxpar.generate.answer import main as answer
    from jaxpar.generate.sampling import Sampling

    drawn = {f.name: getattr(asked, f.name) for f in dataclasses.fields(Sampling)}
    stream = len(prompts) == 1 and not asked.json
    found = answer(
        run,
        prompts=prompts,
        token_ids=_numbers(asked.token_ids),
        how=Sampling(**drawn),
        step=_step(asked.step),
        layout=asked.layout,
        devices=asked.devices,
        classes=classes_in(asked.imports),
        check=_check(asked),
        stream=stream,
    )
    _print_items({"step": found["step"]} if stream else found, asked.json)


def check(args: list[str]) -> int:
    """Verifies every checkpoint of a run against its manifest."""
    prog = "jaxpar check"
    run, rest = split_first(args, options.CheckRun, prog=prog, what="RUN")
    asked = parse(options.CheckRun, rest, prog=f"{prog} {run}")
    from jaxpar.errors import NoUsableCheckpoint
    from jaxpar.run.directory import RunDir

    good, bad = RunDir(run).check(_check(asked))
    damaged = [
        {"step": step, "file": file} for step, files in bad.items() for file in files
    ]
    if asked.json:
        print(json.dumps({"good": good, "bad": damaged}))
    else:
        for step in sorted([*good, *bad]):
            print(f"step {step}: {', '.join(bad[step]) if step in bad else 'good'}")
    return NoUsableCheckpoint.exit_status if damaged or not good else 0


def show(args: list[str]) -> None:
    """Prints every parameter's axes, shape, and piece on each device."""
    prog = "jaxpar show"
    file, rest = split_first(args, options.Show, prog=prog, what="EXPERIMENT")
    from jaxpar.experiment import Experiment
    from jaxpar.look import show

    asked = _with_flags(options.Show, rest, prog, file, Experiment)
    table = show(asked.experiment, classes=classes_in(asked.imports))
    _print_report(table, asked.json)


def verify(args: list[str]) -> int:
    """Proves that an experiment's layout computes what one device does."""
    prog = "jaxpar verify"
    file, rest = split_first(args, options.Verify, prog=prog, what="EXPERIMENT")
    from jaxpar.experiment import Experiment
    from jaxpar.verify.prove import verify

    asked = _with_flags(options.Verify, rest, prog, file, Experiment)
    use_compile_cache(True)
    proof = verify(
        asked.experiment,
        full=asked.full,
        precision=asked.precision,
        devices=asked.devices,
        classes=classes_in(asked.imports),
    )
    _print_report(proof, asked.json)
    return 0 if proof.passed else 1


def prepare(args: list[str]) -> None:
    """Tokenises an experiment's data and writes it down as files of tokens."""
    prog = "jaxpar data prepare"
    file, rest = split_first(args, options.Answer, prog=prog, what="EXPERIMENT")
    from jaxpar.experiment import Experiment, Finetune

    asked = _with_flags(options.Answer, rest, prog, file, Experiment)
    tokens = None
    if isinstance(asked.experiment, Finetune):
        from jaxpar.data import tokenizer
        from jaxpar.run.directory import RunDir

        tokens = tokenizer.load(RunDir(asked.experiment.start_from).tokenizer_dir)
    # The one verb that may ask a network.
    asked.experiment.data.fetch()
    found = asked.experiment.data.prepare(tokens, progress=not asked.json)
    from jaxpar.data import both_parts

    print(both_parts.in_words(found.description), file=sys.stderr)
    _print_items(found.description, asked.json)


class Verb(NamedTuple):
    """What a verb does with its arguments, and its line in `jaxpar --help`."""

    run: Callable[[list[str]], int | None]
    summary: str


VERBS: dict[str, Verb] = {
    "pretrain": Verb(pretrain, "train an experiment's model, or resume the same run"),
    "finetune": Verb(finetune, "train on from another run's checkpoint"),
    "evaluate": Verb(evaluate, "loss and perplexity of a run on its data or any text"),
    "generate": Verb(generate, "continue a prompt with a run's model"),
    "check": Verb(check, "verify every checkpoint of a run"),
    "show": Verb(show, "what each device would hold of an experiment's state"),
    "verify": Verb(verify, "prove that a layout computes what one device does"),
    "data prepare": Verb(prepare, "tokenise an experiment's data into files"),
}


def _with_flags(
    kind: type, rest: list[str], prog: str, file: str, *experiments: type
) -> Any:
    """Options, with the experiment's value as the flags change it."""
    experiment = load_experiment(file, *experiments)
    return parse(kind, rest, prog=f"{prog} {file}", experiment=experiment)


def _check(asked: options.Checked) -> Any:
    """How checkpoints are verified, as jaxpar.checkpoint.verified.Check."""
    from jaxpar.checkpoint.verified import Check

    return Check(asked.verify, asked.strict)


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


def _print_report(report: Any, as_json: bool) -> None:
    """One JSON object, or a table."""
    from jaxpar.tables import print_report

    if as_json:
        print(json.dumps(report.to_json()))
    else:
        print_report(report)


def _finite_or_null(found: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: null, as in metrics.jsonl."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in found.items()
    }


def _print_items(found: dict[str, Any], as_json: bool) -> None:
    """One JSON object on stdout, or a line for each of its items; by process 0."""
    from jaxpar.partition import cluster

    if not cluster.is_first():
        return
    if as_json:
        print(json.dumps(_finite_or_null(found), allow_nan=False))
        return
    for name, value in found.items():
        print(f"{name}: {value}")
