"""What a finished run says to type next works as it is printed.

pytest tests/run/test_next_commands.py
"""

import shlex
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxpar import pretrain
from jaxpar.cli import main
from jaxpar.cli.flags import load_experiment
from jaxpar.data.tokenizer import ByteTokenizer
from jaxpar.data.windows import Window
from jaxpar.experiment import Pretrain
from jaxpar.models import sizes
from jaxpar.partition.layout import Layout
from jaxpar.run import next_commands as module
from jaxpar.run.next_commands import next_commands

OWN = """
    import dataclasses

    from jaxpar import AdamW, Layout, Pretrain, Text
    from jaxpar.models import sizes
    from jaxpar.train.objective import CausalLM


    @dataclasses.dataclass(frozen=True)
    class Mine(CausalLM):
        pass


    experiment = Pretrain(
        model=sizes.gpt(
            vocab_size=259, n_layers=1, d_embed=8, n_heads=2, max_positions=32
        ),
        data=Text("files:*.txt", seq_len=32, batch_size=8),
        objective=Mine(),
        optim=AdamW(peak_lr=1e-3, warmup_steps=1, decay_steps=3),
        layout=Layout.parse("data=8"),
        num_steps=2,
    )
"""
TOKENS = ByteTokenizer()


def printed(out):
    """The lines below `Next:`."""
    return [line.strip() for line in out.partition("Next:\n")[2].splitlines()]


def test_the_next_commands_run_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "it's" / "my own.py"
    file.parent.mkdir()
    file.write_text(textwrap.dedent(OWN))
    for i in range(30):
        Path(f"{i}.txt").write_text(f'-- it\'s "{i}" in $HOME, `pwd` & *\n' * 9)
    value = load_experiment(file, Pretrain)
    assert pretrain.main(value, source_file=file, run_dir="a run's") == 0
    evaluate, generate, finetune = printed(capsys.readouterr().out)
    assert finetune.startswith("to fine-tune: ")  # The shipped one has longer rows.
    for command in (evaluate, generate):
        words = shlex.split(command)
        assert main(words[words.index("a run's") - 1 :]) == 0
        out = capsys.readouterr().out
    assert out.startswith("> -- it's")
    assert main(["evaluate", "a run's"]) == 2
    assert f"--import {shlex.quote(str(file))}" in capsys.readouterr().err


def window(text, *, answer="", seq_len=64):
    """The window of one document, or of a prompt and its answer."""
    ids = [TOKENS.bos_id, *text.encode(), *answer.encode(), TOKENS.eos_id]
    pad = seq_len + 1 - len(ids)
    weights = np.ones(seq_len + 1, np.float32)
    weights[: 1 + len(text.encode()) if answer else 1] = 0
    tokens = np.array(ids + [TOKENS.pad_id] * pad, np.int32)[: seq_len + 1]
    zeros = np.zeros_like(tokens)
    return Window(tokens, zeros, zeros, weights)


def session(*windows, positions=64, heads=2, layout="data=1"):
    model = sizes.gpt(
        vocab_size=259, n_layers=1, d_embed=4 * heads, n_heads=heads,
        max_positions=positions,
    )  # fmt: skip
    parsed = Layout.parse(layout)
    return SimpleNamespace(
        prepared=SimpleNamespace(heldout=windows, tokenizer=TOKENS),
        experiment=SimpleNamespace(model=model),
        placed=SimpleNamespace(layout=parsed),
    )


@pytest.mark.parametrize(
    "windows, option",
    [
        ([window("import os\nimport sys")], "--prompt 'import os'"),
        ([window("\n\n  x = 1")], "--prompt 'x = 1'"),
        ([window("a"), window("b")], "--prompt a"),
        ([window("--debug is")], "--prompt='--debug is'"),
        ([window("don't")], "--prompt 'don'\"'\"'t'"),
        ([window("2 + 2 =", answer=" 4")], "--prompt '2 + 2 ='"),
        ([window("\x1b[1m"), window("next")], "--prompt next"),
        ([window("\x00\x01")], "--token-ids 257,0,1,258,256,256,256,256"),
        ([], "--token-ids 0"),
    ],
)
def test_a_prompt_is_the_beginning_of_what_is_held_out(windows, option):
    assert module._prompt(session(*windows)) == option


def test_a_prompt_leaves_room_for_an_answer():
    words = window("one two three four five six seven eight nine ten eleven twelve")
    long = shlex.split(module._prompt(session(words)))[1]
    assert len(long) <= 32 and words.tokens.tobytes()
    short = shlex.split(module._prompt(session(words, positions=8)))[1]
    assert len(short) + 1 <= 4
    assert module._prompt(session(words, positions=2)) == "--token-ids 257"


@pytest.mark.parametrize(
    "sizes_, options",
    [
        ({"positions": 256}, ""),
        # Three heads cannot be split by the tensor=2 that the shipped file names.
        ({"positions": 256, "heads": 3, "layout": "data=4"}, " --layout data=4"),
    ],
)
def test_a_fine_tune_is_printed_with_what_makes_it_fit(monkeypatch, sizes_, options):
    monkeypatch.chdir(module.FINETUNE.parents[1])
    command = module._finetune(session(**sizes_), "--start-from RUN")
    expected = "experiments/quickstart_finetune.py --start-from RUN" + options
    assert command.partition(" finetune ")[2] == expected


def test_a_fine_tune_that_cannot_be_is_not_printed(monkeypatch):
    short = module._finetune(session(positions=255), "--start-from RUN")
    odd = session(positions=256, heads=3, layout="data=3")  # Of 16 rows.
    assert module._finetune(odd, "").startswith("to fine-tune: ")
    monkeypatch.setattr(module, "FINETUNE", Path("gone.py"))
    outside = module._finetune(session(positions=255), "--start-from RUN")
    assert short == outside
    assert short.startswith("to fine-tune: ") and "at most 255 tokens" in short


def test_what_is_printed_never_makes_a_run_fail():
    (line,) = next_commands(SimpleNamespace(), [])
    assert "not known" in line
