"""The verbs that read a run: evaluate, generate and check."""

import dataclasses
import itertools
import json
import sys

from jaxpar.cli import options
from jaxpar.cli.begin import start_processes
from jaxpar.cli.flags import classes_in, parse, split_first
from jaxpar.cli.printing import print_answers, print_items
from jaxpar.errors import UserError


def evaluate(args: list[str]) -> None:
    """Prints the loss of a run on its held-out data, or on any source."""
    prog = "jaxpar evaluate"
    run, rest = split_first(args, options.Evaluate, prog=prog, what="RUN")
    asked = parse(options.Evaluate, rest, prog=f"{prog} {run}")
    start_processes(asked)
    from jaxpar import evaluate
    from jaxpar.partition import cluster
    from jaxpar.train.scoring import perplexity

    found = evaluate.main(
        run,
        step=asked.chosen_step(),
        layout=asked.layout,
        devices=asked.devices,
        source=asked.source,
        text_field=asked.text_field,
        classes=classes_in(asked.imports),
        check=asked.as_check(),
    )
    found.setdefault("perplexity", perplexity(found["nats_per_token"]))
    if found.get("windows") == 1:
        text = "What is scored is a single row, whose loss says little of other text."
        cluster.print_once(text, file=sys.stderr)
    print_items(found, asked.json)


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
        token_ids=asked.numbers(),
        how=Sampling(**drawn),
        step=asked.chosen_step(),
        layout=asked.layout,
        devices=asked.devices,
        classes=classes_in(asked.imports),
        check=asked.as_check(),
        stream=stream,
    )
    if asked.json:
        print_items(found, True)
        return
    if not stream:
        print_answers(prompts or (asked.token_ids,), found)
    print_items({"step": found["step"]}, False)


def check(args: list[str]) -> int:
    """Verifies every checkpoint of a run against its manifest."""
    prog = "jaxpar check"
    run, rest = split_first(args, options.CheckRun, prog=prog, what="RUN")
    asked = parse(options.CheckRun, rest, prog=f"{prog} {run}")
    from jaxpar.errors import NoUsableCheckpoint
    from jaxpar.run.directory import RunDir

    good, bad = RunDir(run).check(asked.as_check())
    damaged = [
        {"step": step, "file": file} for step, files in bad.items() for file in files
    ]
    if asked.json:
        print(json.dumps({"good": good, "bad": damaged}))
    else:
        for step in sorted([*good, *bad]):
            print(f"step {step}: {', '.join(bad[step]) if step in bad else 'good'}")
    return NoUsableCheckpoint.exit_status if damaged or not good else 0
