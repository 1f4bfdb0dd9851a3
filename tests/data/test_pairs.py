"""Of prompts with answers, only answers are scored; every line must be an example."""

import json
import textwrap

import pytest

from jaxpar.data.source import Pairs, score
from jaxpar.data.task import causal
from jaxpar.data.tokenizer import ByteTokenizer
from jaxpar.errors import UserError
from jaxpar.sources import docstrings
from jaxpar.sources.corpus import Document

TOKENS = ByteTokenizer()


def jsonl(path, n=60, **more):
    lines = [{"prompt": f"{i} + 1 =", "answer": f" {i + 1}", **more} for i in range(n)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"files:{path}"


def scored(window):
    row = causal(window)
    return row["targets"][row["weights"] > 0].tolist()


def test_the_answer_and_the_end_are_scored_and_nothing_else(tmp_path):
    source = jsonl(tmp_path / "sums.jsonl")
    prepared = Pairs(source, seq_len=20, batch_size=4).prepare(TOKENS)
    assert len(prepared.train) + len(prepared.heldout) == 60
    assert scored(prepared.train[4]) == [*b" 5", TOKENS.eos_id]
    window = prepared.train[4]
    assert TOKENS.decode(window.tokens) == "4 + 1 = 5"
    assert window.tokens[0] == TOKENS.bos_id


def test_bytes_are_those_of_the_answers(tmp_path):
    source = jsonl(tmp_path / "sums.jsonl")
    windows = score(source, TOKENS, 20)
    assert windows.n_bytes == sum(len(f" {i + 1}") for i in range(60))
    assert windows.n_tokens == windows.n_bytes + 60


def test_a_function_asks_for_the_first_line_of_its_docstring():
    source = textwrap.dedent('''
        class C:
            def method(self):
                """Say hällo.

                More.
                """
                return "ö"

            async def empty(self): "Do nothing."

            def plain(self):
                return 1
    ''')
    found = list(docstrings.examples(Document("c.py", source.encode())))
    asked = {item.answer.decode(): item.prompt.decode() for item in found}
    mark = docstrings.SEPARATOR.decode()
    assert asked == {
        "Say hällo.": f'def method(self):\n    return "ö"{mark}',
        "Do nothing.": f"async def empty(self):{mark}",
    }


def test_long_prompts_are_refused_unless_cutting_was_asked_for(tmp_path):
    source = jsonl(tmp_path / "long.jsonl", prompt="x" * 50)
    with pytest.raises(UserError, match='longer than seq_len.*too_long="cut"'):
        Pairs(source, seq_len=20, batch_size=4).prepare(TOKENS)
    kept = Pairs(source, seq_len=20, batch_size=4, too_long="cut").prepare(TOKENS)
    cut = kept.description["train"]["cut"] + kept.description["heldout"]["cut"]
    assert cut == 60
    assert scored(kept.train[0]) == [*b" 1", TOKENS.eos_id]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("[1, 2]", "is not an object, but list"),
        ("{bad", "is not JSON"),
        ('{"prompt": "a"}', "has no text 'answer'"),
        ('{"prompt": 1, "answer": "a"}', "has no text 'prompt'"),
    ],
)
def test_a_line_that_is_not_an_example_is_named(tmp_path, line, fault):
    source = jsonl(tmp_path / "bad.jsonl")
    lines = (tmp_path / "bad.jsonl").read_text().splitlines()
    # Line 60 is in the held-out end: its number counts from the start of the file.
    for number in (3, 60):
        changed = [*lines[: number - 1], line, *lines[number:]]
        (tmp_path / "bad.jsonl").write_text("\n".join(changed) + "\n")
        with pytest.raises(UserError, match=f"bad.jsonl, line {number}: {fault}"):
            Pairs(source, seq_len=20, batch_size=4).prepare(TOKENS)


def test_fewer_examples_than_one_batch_are_refused(tmp_path):
    source = jsonl(tmp_path / "few.jsonl", n=5)
    with pytest.raises(UserError, match="4 training examples, and 8 are needed"):
        Pairs(source, seq_len=20, batch_size=8).prepare(TOKENS)


def test_pairs_without_a_tokenizer_are_refused():
    with pytest.raises(UserError, match="tokenizer of the run"):
        Pairs(seq_len=20, batch_size=8).prepare()


def test_an_unknown_way_with_long_pairs_is_refused():
    with pytest.raises(UserError, match="too_long='drop'"):
        Pairs(seq_len=20, batch_size=8, too_long="drop")
