"""What data holds is shown: counts, and windows as tokens with borders and weights.

pytest tests/look/test_show_data.py
"""

import contextvars
import dataclasses
import io
import json

import pytest

from jaxpar.cli.data_verbs import show as verb
from jaxpar.data.source import Pairs, Text
from jaxpar.data.tokenizer import BPE, ByteTokenizer
from jaxpar.experiment import Finetune, Pretrain
from jaxpar.look.show_data import BEGIN, END, show_data
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.sources import patterns

OPTIM = AdamW(peak_lr=1e-3, warmup_steps=0, decay_steps=1)


def pretrain(source, **how):
    return Pretrain(
        model=sizes.llama(
            vocab_size=300, n_layers=1, d_embed=8, n_heads=2, n_kv_heads=2, d_mlp=8,
            max_positions=32,
        ),
        data=Text(source, seq_len=32, batch_size=2, **how),
        optim=OPTIM, num_steps=1, layout=Layout.parse("data=1"),
    )  # fmt: skip


@pytest.fixture
def experiment(tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"<i>{i}</i>\nÖl\n")
    return pretrain(f"files:{tmp_path}/*.txt", tokenizer=BPE(300))


def drawn(report, **how):
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=80, force_terminal=True, **how).print(report)
    return out.getvalue()


def test_the_counts_are_those_of_the_receipt(experiment):
    shown, found = show_data(experiment), experiment.data.prepare(progress=False)
    assert shown.description == found.description
    n = found.description["train"]["tokens"]
    assert f"{n:,}" in str(shown) and "held out (whole files" in str(shown)
    per_token = found.description["train"]["bytes"] / n
    assert f"{per_token:.3f}" in shown._repr_html_()


def test_windows_are_the_first_rows_and_their_texts_are_the_documents(experiment):
    shown = show_data(experiment)
    assert len(shown.windows) == 3
    for tokens in shown.windows.values():
        text = "".join(token.text for token in tokens)
        assert len(tokens) == 33 and f"{END}{BEGIN}<i>" in text and "</i>↵\n" in text


def test_every_form_says_where_documents_begin_and_what_is_scored(
    experiment, monkeypatch
):
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = show_data(experiment)
    text, page = str(shown), shown._repr_html_()
    assert f"‹{BEGIN}›" in text and "\x1b" not in text
    bos = experiment.data.prepare(progress=False).tokenizer.bos_id
    assert f'opacity:.6" title="{bos}">{BEGIN}</span>' in page
    assert "&lt;" in page and "<i>" not in page.replace("</i>", "")
    assert "\x1b[30;48;2;166;206;227m" in drawn(shown, color_system="truecolor")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in drawn(shown) and f"‹{BEGIN}›" in drawn(shown)


def test_the_prompts_of_pairs_have_weight_0_and_padding_is_not_shown(tmp_path):
    line = '{"prompt": "1 + 1 =", "answer": " 2"}\n'
    (tmp_path / "a.jsonl").write_text(line * 60)
    ByteTokenizer().save(tmp_path / "run" / "tokenizer")
    (tmp_path / "run" / "config.json").write_text("{}")
    data = Pairs(f"files:{tmp_path}/a.jsonl", seq_len=32, batch_size=2)
    experiment = Finetune(
        start_from=str(tmp_path / "run"), data=data, optim=OPTIM, num_steps=1,
        layout=Layout.parse("data=1"),
    )  # fmt: skip
    shown = show_data(experiment, progress=False)
    assert f"‹{BEGIN}|1| |+| |1| |=› |2|{END}\n" in str(shown)
    (window, *_) = shown.to_json()["shown"]
    assert window["weights"] == [0] * 8 + [1] * 3


def test_the_verb_prints_plain_text_or_one_object(
    tmp_path, experiment, capsys, monkeypatch
):
    source = dataclasses.replace(experiment).data.source
    file = tmp_path / "own.py"
    file.write_text(
        "from tests.look.test_show_data import BPE, pretrain\n"
        f"experiment = pretrain({source!r}, tokenizer=BPE(300))\n"
    )
    monkeypatch.setattr(
        patterns, "EXPERIMENT_FOLDER", contextvars.ContextVar("x", default=None)
    )
    verb([str(file)])
    assert capsys.readouterr().out == f"{show_data(experiment)}\n"
    verb([str(file), "--json"])
    assert json.loads(capsys.readouterr().out)["train"]["documents"] > 30
