"""What the command line makes of words, and what it says when they are wrong.

pytest tests/test_cli.py -k nearest
"""

import dataclasses
import importlib
import json
import math
import operator
import os
import re
import subprocess
import sys
import textwrap

import pytest

import jaxpar
from jaxpar.cli import main, options, verbs
from jaxpar.cli.flags import classes_in, events_of, load_experiment, parse, with_flags
from jaxpar.cli.printing import print_answers, print_items
from jaxpar.data.source import Pairs
from jaxpar.data.tokenizer import BPE
from jaxpar.data.tokenizer_file import TokenizerFile
from jaxpar.errors import (
    DataWentBad,
    Diverged,
    NoUsableCheckpoint,
    OtherProcessFailed,
    UserError,
)
from jaxpar.experiment import CLASSES, Pretrain
from jaxpar.generate.sampling import Sampling
from jaxpar.nn.norm import NoNorm
from jaxpar.optim.optimizer import Muon
from jaxpar.partition.layout import Layout
from jaxpar.train.converge import Converged
from jaxpar.train.spikes import Rewind

TINY = """
    from jaxpar.data.source import Text
    from jaxpar.data.tokenizer import Bytes
    from jaxpar.experiment import Pretrain
    from jaxpar.models import sizes
    from jaxpar.optim.optimizer import AdamW
    from jaxpar.partition.layout import Layout

    experiment = Pretrain(
        model=sizes.gpt(
            vocab_size=259, n_layers=2, d_embed=32, n_heads=4, max_positions=16
        ),
        data=Text("synthetic", tokenizer=Bytes(), seq_len=16, batch_size=8),
        optim=AdamW(peak_lr=1e-3, warmup_steps=1, decay_steps=3),
        layout=Layout.parse("fsdp=4,tensor=2"),
        num_steps=3,
    )
"""
OWN_OBJECTIVE = """
    import dataclasses

    from jaxpar.train.objective import CausalLM


    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Smoothed(CausalLM):
        amount: float
        chunk: int = 64
"""
OWN_MODEL = """
    import dataclasses

    from jaxpar.models.base import ModelConfig


    @dataclasses.dataclass(frozen=True)
    class Mine(ModelConfig):
        width: int = 7
        vocab_size: int = 259
        max_positions: int = 16

        def build(self, rngs):
            raise AssertionError("It is only described.")
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="tiny.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


@pytest.fixture
def tiny(write):
    return write(TINY)


def over(path, *flags):
    """The experiment as these flags change it."""
    kind = options.Train
    return with_flags(kind, flags, "jaxpar pretrain", path, Pretrain).experiment


def refusal(capsys, *args):
    """The one line that a wrong request is answered with."""
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


def test_windows_is_pointed_to_wsl_before_anything_is_imported(monkeypatch, capsys):
    monkeypatch.setattr("sys.platform", "win32")
    assert main(["--help"]) == 2
    assert "in WSL" in capsys.readouterr().err


def test_help_names_every_verb_and_loads_no_jax():
    code = (
        "import sys; from jaxpar.cli import main; status = main(['--help']); "
        "sys.exit(status or 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"  {verb} " in done.stdout for verb in verbs.VERBS)


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_every_verb_has_help_without_an_experiment(capsys, verb):
    assert main([*verb.split(), "--help"]) == 0
    assert "--debug" in capsys.readouterr().out


def test_help_with_an_experiment_lists_its_fields(capsys, tiny):
    assert main(["pretrain", tiny, "--help"]) == 0
    out = capsys.readouterr().out
    for flag in ("--optim.peak-lr", "--layout LAYOUT", "--run-dir", "--data.source"):
        assert flag in out


def test_a_flag_replaces_the_field_at_its_path_and_nothing_else(tiny):
    plain = over(tiny)
    assert plain == load_experiment(tiny, Pretrain)
    changed = over(
        tiny, "--optim.peak-lr", "3e-4", "--layout", "data=2", "--num-steps", "9",
        "--data.source", "files:*.txt", "--model.attention.rope-theta", "5",
    )  # fmt: skip
    assert changed.optim.peak_lr == 3e-4
    assert changed.layout == Layout.parse("data=2")
    assert changed.num_steps == 9
    assert changed.data.source == "files:*.txt"
    assert changed.model.attention.rope_theta == 5
    assert changed.model.mlp == plain.model.mlp
    assert changed.data.tokenizer == plain.data.tokenizer


def test_the_options_stand_beside_the_fields(tiny):
    value = load_experiment(tiny, Pretrain)
    flags = ["--run-dir", "here", "--devices", "8", "--no-compile-cache", "--seed", "5"]
    asked = parse(options.Train, flags, prog="jaxpar pretrain", experiment=value)
    assert (str(asked.run_dir), asked.devices, asked.compile_cache) == (
        "here",
        8,
        False,
    )
    assert asked.experiment.seed == 5


def test_a_class_of_ones_own_gives_its_flags(write):
    path = write(
        TINY
        + OWN_MODEL
        + "\n    experiment = dataclasses.replace(experiment, model=Mine())\n"
    )
    assert over(path, "--model.width", "9").model.width == 9


MUON = ["--optim", "muon", "--optim.peak-lr", "3e-4"]


@pytest.mark.parametrize("words", [MUON, MUON[2:] + MUON[:2], ["--optim=Muon"]])
def test_a_class_is_chosen_by_its_name_and_keeps_equal_fields(tiny, words):
    before, after = over(tiny), over(tiny, *words)
    lr = 3e-4 if len(words) > 1 else 1e-3
    assert after.optim == Muon(peak_lr=lr, warmup_steps=1, decay_steps=3)
    assert dataclasses.replace(after, optim=before.optim) == before


@pytest.mark.parametrize(
    "words, path, value",
    [
        (
            ["--stop", "converged", "--stop.patience", "3"],
            "stop",
            Converged(patience=3),
        ),
        (["--on-spike", "rewind"], "on_spike", Rewind()),
        (["--on_spike=rewind"], "on_spike", Rewind()),
        (["--model.norm", "nonorm"], "model.norm", NoNorm()),
        (
            ["--data.tokenizer.vocab-size", "300", "--data.tokenizer", "bpe"],
            "data.tokenizer",
            BPE(300),
        ),
        (
            ["--data.seq-len", "8", "--data", "pairs", "--data.too-long", "cut"],
            "data",
            Pairs("synthetic", seq_len=8, batch_size=8, too_long="cut"),
        ),
        (["--optim", "adamw"], "optim.warmup_steps", 1),
    ],
)
def test_every_field_of_several_classes_is_a_choice(tiny, words, path, value):
    assert operator.attrgetter(path)(over(tiny, *words)) == value


def test_a_tokenizer_is_chosen_by_its_file(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(CLASSES, "TokenizerFile", TokenizerFile)
    for path in (tmp_path / "tokenizer.json", tmp_path):  # One that is there, too.
        chosen = over(tiny, "--data.tokenizer", str(path), "--data.tokenizer.eos", "E")
        assert chosen.data.tokenizer == TokenizerFile(str(path), eos="E")


def test_a_class_of_ones_own_is_chosen_by_its_name(write):
    path = write(TINY + OWN_OBJECTIVE)
    chosen = over(path, "--objective", "smoothed", "--objective.amount", "0.1")
    assert type(chosen.objective).__name__ == "Smoothed"
    # The chunk that the objective before it had, not the default of the new one.
    assert (chosen.objective.amount, chosen.objective.chunk) == (0.1, 256)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--optim", "moun"], "--optim moun.*adamw, muon; did you mean muon"),
        (["--optim", "sgd"], "--optim sgd.*adamw, muon[.]$"),
        (["--optim"], "--optim without a name.*adamw, muon"),
        (["--data.tokenizer", "bpe"], "--data.tokenizer.vocab-size is missing"),
        (["--objective", "smoothed"], "--objective.amount is missing"),
        (["--data.tokenizer", "bpe", "--data.tokenizer.vocab-size", "3"], "no room"),
    ],
)
def test_a_choice_that_cannot_be_says_what_can(capsys, write, words, said):
    path = write(TINY + OWN_OBJECTIVE)
    assert re.search(said, refusal(capsys, "show", path, *words))


def test_help_lists_the_choices_and_the_fields_of_what_is_chosen(capsys, tiny):
    assert main(["pretrain", tiny, "--help"]) == 0
    plain = capsys.readouterr().out
    assert "--optim adamw|muon" in plain and "--data.tokenizer bpe|bytes" in plain
    assert "--optim.adam-ratio" not in plain
    words = ["--optim", "muon", "--data.tokenizer", "bpe", "--help"]
    assert main(["pretrain", tiny, *words]) == 0
    chosen = capsys.readouterr().out
    assert "--optim.adam-ratio" in chosen and "--data.tokenizer.vocab-size" in chosen


def test_an_option_called_like_a_field_stays_an_option(write):
    # Two classes of precision could be chosen from; `verify` has a switch --precision.
    path = write(
        TINY
        + """
    import dataclasses
    from jaxpar.partition.precision import Precision

    @dataclasses.dataclass(frozen=True)
    class Narrow(Precision):
        pass
    """
    )
    words = ["--precision", "--full"]
    asked = with_flags(options.Verify, words, "jaxpar verify", path, Pretrain)
    assert asked.precision and asked.full


def test_the_versions_are_printed_without_loading_jax(capsys):
    assert main(["--version"]) == 0
    version = re.escape(jaxpar.__version__)
    said = rf"jaxpar {version} \(jax \d[.\w]+, Python \d[.\w]+\)\n"
    assert re.fullmatch(said, capsys.readouterr().out)


def test_every_exit_status_is_in_the_help(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out.partition("exit status:")[2]
    assert re.findall(r"\d+", text) == "0 1 2 3 4 42 43 44 75 130 143".split()


def test_an_experiment_in_the_place_of_a_run_is_explained(
    capsys, tiny, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for words in (["evaluate", tiny], ["check", tiny], ["pretrain", tiny, "--run-dir"]):
        words = [*words, tiny] if len(words) > 2 else words
        assert "is an experiment; a run is" in refusal(capsys, *words)
    (tmp_path / "runs" / "tiny-0123").mkdir(parents=True)
    (tmp_path / "runs" / "tiny-0123" / "config.json").touch()
    line = refusal(capsys, "generate", tiny, "--prompt", "a")
    assert line.endswith("here are runs/tiny-0123.")
    assert "is a directory" in refusal(capsys, "pretrain", "runs")


def test_import_finds_what_an_experiment_is_made_of(write):
    write(OWN_OBJECTIVE, "of_a_neighbour.py")
    path = write(
        TINY
        + """
    import of_a_neighbour
    objective = of_a_neighbour.Smoothed(amount=0.5)
    experiment = dataclasses.replace(experiment, objective=objective)
    """.replace("    import", "    import dataclasses\n    import", 1),
        "made_of.py",
    )
    assert "Smoothed" in [kind.__name__ for kind in classes_in([path])]


def test_token_ids_are_answered_with_text_or_else_with_ids(capsys):
    found = {"text": "yes", "tokens": [1, 2]}
    print_answers(["5,6"], found)
    print_answers(["5,6"], {**found, "text": ""})
    assert capsys.readouterr().out == "> 5,6\nyes\n\n> 5,6\n1,2\n\n"


def test_a_report_has_four_digits_and_its_json_all_of_them(capsys):
    found = {"step": 3, "loss": 1.23456789, "xz": None, "bad": math.inf}
    print_items(found, False)
    text = capsys.readouterr().out
    assert text == "step: 3\nloss: 1.2346\nxz: None\nbad: inf\n"
    print_items(found, True)
    expected = {**found, "bad": None}
    assert json.loads(capsys.readouterr().out) == expected


def test_a_new_token_is_drawn_as_the_library_draws_it():
    defaults = dataclasses.asdict(Sampling())
    asked = dataclasses.asdict(options.Generate())
    assert defaults.items() <= asked.items()


def test_import_finds_the_classes_that_a_file_defines(write):
    found = classes_in([write(OWN_MODEL, "mine.py")])
    assert "Mine" in [kind.__name__ for kind in found]


def test_an_unknown_field_suggests_the_nearest(capsys, tiny):
    line = refusal(capsys, "show", tiny, "--optim.peak-lt", "1")
    assert "--optim.peak-lt" in line and "--optim.peak-lr" in line


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--optim.peak-lr", "fast"], "--optim.peak-lr.*fast"),
        (["--num-steps", "1.5"], "--num-steps.*1.5"),
        (["--num-steps", "0"], "num_steps=0"),
        (["--layout", "fsdq=4"], "--layout.*fsdq"),
        (["--layout", "fsdp=3"], "batch_size=8 is not divisible by 3"),
        (["--layout"], "--layout"),
        (["--model.attention.n-heads", "3"], "n_heads=3"),
    ],
)
def test_a_wrong_value_is_one_line_and_status_2(capsys, tiny, flags, words):
    assert re.search(words, refusal(capsys, "show", tiny, *flags))


@pytest.mark.parametrize(
    "text, words",
    [
        ("x = 1", "defines no `experiment`; it must be a Pretrain or Finetune value"),
        ("experiment = 3", "`experiment` is a int"),
        ("run = 3", "`run` is a int"),
        ("def", "SyntaxError"),
        ("import no_such_module", "no_such_module"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_file_that_is_no_experiment_is_refused(capsys, write, text, words):
    assert words in refusal(capsys, "show", write(text))


def test_what_is_not_there_is_named(capsys, tmp_path):
    assert "no file" in refusal(capsys, "show", str(tmp_path / "gone.py"))
    assert "EXPERIMENT first" in refusal(capsys, "pretrain")
    assert "'trian'" in refusal(capsys, "trian")
    assert "did you mean `jaxpar pretrain`" in refusal(capsys, "pretrian", "x.py")
    assert "did you mean `jaxpar data prepare`" in refusal(capsys, "prepare", "x.py")
    assert "RUN first" in refusal(capsys, "evaluate", "--json")
    assert str(tmp_path) in refusal(capsys, "evaluate", str(tmp_path))
    assert "--prompt or --token-ids" in refusal(capsys, "generate", str(tmp_path))
    line = refusal(capsys, "generate", str(tmp_path), "--token-ids", "1,b")
    assert "1,b" in line
    assert "--step last" in refusal(capsys, "evaluate", "r", "--step", "last")


def test_an_experiment_is_a_module_that_may_import_its_neighbours(write):
    write("width = 96", "a_neighbour_of_tiny.py")
    path = write(TINY + "\n    from a_neighbour_of_tiny import width\n")
    run = load_experiment(path, Pretrain)
    assert run.num_steps == 3


def test_files_of_one_name_in_two_folders_are_two_modules(write, tmp_path):
    """As of `jaxpar finetune model.py --import other/model.py`."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(f"{TINY}\n    events = ({folder!r},)\n", f"{folder}/model.py")
    paths = [tmp_path / folder / "model.py" for folder in ("a", "b")]
    classes_in(paths)
    assert [events_of(path) for path in paths] == [("a",), ("b",)]
    assert events_of(tmp_path / "b" / ".." / "a" / "model.py") == ("a",)


@pytest.mark.parametrize(
    "error, status, said",
    [
        (UserError("wrong"), 2, "wrong"),
        (DataWentBad("rotten"), 3, "rotten"),
        (NoUsableCheckpoint("none"), 4, "none"),
        (Diverged("the loss\nis inf"), 43, "the loss is inf"),
        (OtherProcessFailed("Process 1: rotten", 3), 3, "Process 1: rotten"),
        (ValueError("theirs"), 1, "ValueError: theirs (--debug shows where)"),
        (TypeError("theirs"), 1, "TypeError: theirs (--debug shows where)"),
        (RuntimeError("broke\nat"), 1, "RuntimeError: broke (--debug shows where)"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_error_of_ours_has_its_status_and_any_other_its_class(
    capsys, monkeypatch, error, status, said
):
    def do(args):
        raise error

    monkeypatch.setitem(verbs.VERBS, "pretrain", verbs.Verb(do, ""))
    assert main(["pretrain"]) == status
    assert capsys.readouterr().err == f"jaxpar: {said}\n"


def test_debug_shows_the_traceback(capsys):
    assert main(["show", "gone.py", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1].startswith("jaxpar: ")


def test_show_prints_one_json_object(capsys, tiny):
    assert main(["show", tiny, "--layout", "data=8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["layout"] == "data=8"
    # Embedding, positions, two blocks of attention and MLP, the last norm.
    block = 4 * 32 * 32 + 4 * 32 + 2 * 32 * 128 + 128 + 32 + 2 * 2 * 32
    assert found["count"] == 384 * 32 + 16 * 32 + 2 * block + 2 * 32


@pytest.mark.parametrize("scheme", ["gs", "s3", "az", "hdfs", "file", "abfss"])
def test_a_url_is_no_run_for_any_verb(capsys, tiny, tmp_path, monkeypatch, scheme):
    monkeypatch.chdir(tmp_path)
    # Importing an experiment may leave its bytecode beside it.
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    before = sorted(tmp_path.iterdir())
    url = f"{scheme}://bucket/run"
    for words in (["pretrain", tiny, "--run-dir", url], ["evaluate", url]):
        line = refusal(capsys, *words)
        assert f"{scheme}:/" in line and "is no local path" in line
    assert "is no local path" in refusal(capsys, "generate", url, "--prompt", "a")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "words, prompts",
    [
        (["--prompt", "a", "b"], ("a", "b")),
        (["--prompt", "a", "--prompt", "b"], ("a", "b")),
        (["--prompt", "a", "--prompt", "b", "c"], ("a", "b", "c")),
        (["--prompt=a"], ("a",)),
    ],
)
def test_every_prompt_is_answered(capsys, monkeypatch, words, prompts):
    def answer(run, **asked):
        assert asked["prompts"] == prompts
        assert asked["stream"] == (len(prompts) == 1)
        return {"step": 1, "text": ["yes", "no", "so"][: len(prompts)], "tokens": ids}

    ids = [[1, 2], [3], [4]][: len(prompts)]
    module = importlib.import_module("jaxpar.generate.answer")
    monkeypatch.setattr(module, "main", answer)
    assert main(["generate", "run", *words]) == 0
    out = capsys.readouterr().out
    if len(prompts) > 1:  # A single one is written while it is generated.
        assert out.startswith("> a\nyes\n\n> b\nno\n\n")
    assert out.endswith("step: 1\n")


def test_a_reader_that_has_enough_gets_no_error(tmp_path):
    code = (
        "import sys; from jaxpar.cli import main, verbs\n"
        "def run(args):\n"
        "    while True: print('x' * 1000)\n"
        "verbs.VERBS['show'] = verbs.VERBS['show']._replace(run=run)\n"
        "sys.exit(main(['show']))"
    )
    shell = f'{sys.executable} -c "$CODE" | head -c 1'
    done = subprocess.run(
        ["bash", "-c", shell], env={**os.environ, "CODE": code}, capture_output=True
    )
    assert (done.stdout, done.stderr) == (b"x", b"")
