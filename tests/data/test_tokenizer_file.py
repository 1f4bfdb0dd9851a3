"""A tokenizer of one's own is a file, whose content and special ids count.

pytest tests/data/test_tokenizer_file.py
"""

import json
import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, processors
from tokenizers import pre_tokenizers as pre

from jaxpar.data import tokenizer, tokenizer_file
from jaxpar.data.added_tokens import AddedTokens
from jaxpar.data.source import Text
from jaxpar.data.tokenizer_file import TokenizerFile, content_of
from jaxpar.errors import UserError
from jaxpar.sources import patterns

TEXT = "naïve Öl → \U0001f600 def f(x):\n    return x\n"


def written(folder, *special, between=None, beside=None):
    """A byte-level tokenizer.json with special tokens first, and files beside it.

    between: what the post-processor puts a text between.
    """
    alphabet = sorted(pre.ByteLevel.alphabet())
    model = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    model.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens([AddedToken(text, special=True) for text in special])
    if between:
        ids = [
            (text, model.token_to_id(text)) for text in between.split() if text != "$A"
        ]
        model.post_processor = processors.TemplateProcessing(
            single=between, special_tokens=ids
        )
    model.enable_truncation(4)  # As files from elsewhere often have it.
    model.enable_padding(length=8)
    folder.mkdir(parents=True, exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    for name, content in (beside or {}).items():
        (folder / name).write_text(json.dumps(content))
    return str(folder / "tokenizer.json")


def specials(tokens):
    """The texts of padding, begin and end."""
    return [tokens.model.id_to_token(i) for i in tokens.special]


def test_text_comes_back_and_holds_no_special_id(tmp_path):
    tokens = TokenizerFile(written(tmp_path, "<|endoftext|>")).build([])
    text = TEXT * 9 + "<|endoftext|>"
    ids = tokens.encode(text.encode())
    assert tokens.decode(ids) == text
    assert tokens.eos_id not in ids and max(ids) < tokens.vocab_size == 257
    assert tokens.decode([tokens.bos_id, *ids[:4], tokens.eos_id, 10**6]) == text[:3]


NAMED = {"tokenizer_config.json": {"eos_token": {"content": "<b>"}, "pad_token": "<c>"}}
MAPPED = {"special_tokens_map.json": {"bos_token": "<c>", "eos_token": "<b>"}}
BOTH = {
    "tokenizer_config.json": {"eos_token": "<b>"},
    "special_tokens_map.json": {"eos_token": "<c>"},
}


@pytest.mark.parametrize(
    "special, between, beside, expected",
    [
        (("<|endoftext|>",), None, None, ["<|endoftext|>"] * 3),
        (("<s>", "</s>", "<unk>"), None, None, ["</s>", "<s>", "</s>"]),
        (("<a>", "<b>"), "<a> $A <b>", None, ["<b>", "<a>", "<b>"]),
        (("<a>", "<b>", "<c>"), "<a> $A", NAMED, ["<c>", "<a>", "<b>"]),
        (("<b>", "<c>"), None, MAPPED, ["<b>", "<c>", "<b>"]),
        (("<b>", "<c>"), None, BOTH, ["<b>", "<b>", "<b>"]),
    ],
)
def test_begin_and_end_are_those_of_the_file(
    tmp_path, special, between, beside, expected
):
    path = written(tmp_path, *special, between=between, beside=beside)
    assert specials(TokenizerFile(path).build([])) == expected
    assert specials(TokenizerFile(str(tmp_path)).build([])) == expected


def test_an_end_that_cannot_be_found_is_asked_for(tmp_path):
    path = written(tmp_path, "<x>", "<y>")
    with pytest.raises(UserError, match=r"--data.tokenizer.eos.*\['<x>', '<y>'\]"):
        TokenizerFile(path).build([])
    tokens = TokenizerFile(path, eos="<y>", bos="<x>").build([])
    assert specials(tokens) == ["<y>", "<x>", "<y>"]
    with pytest.raises(UserError, match="has no token '<z>'"):
        TokenizerFile(path, eos="<z>").build([])


@pytest.mark.parametrize("name", ["nothing.json", "other.json"])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, name):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match=f"(no|not a) tokenizer|{name} is not a token"):
        TokenizerFile(str(tmp_path / name)).build([])


def test_a_file_without_a_token_is_refused_and_named(tmp_path):
    Tokenizer(models.BPE()).save(str(tmp_path / "empty.json"))
    with pytest.raises(UserError, match=r"/empty\.json is not .* no tokens"):
        TokenizerFile(str(tmp_path / "empty.json")).build([])


@pytest.mark.parametrize("name", tokenizer_file.SPECIAL_TOKEN_FILES)
@pytest.mark.parametrize(
    "content, why",
    [
        ([], "not a JSON object"),
        (None, "not a JSON object"),
        ({"eos_token": 5}, "eos_token is 5; it must be a text"),
        ({"bos_token": {"content": ["<s>"]}}, r"bos_token is \['<s>'\]; it must be"),
    ],
)
def test_a_damaged_file_beside_it_is_refused_and_named(tmp_path, name, content, why):
    file = TokenizerFile(written(tmp_path, "</s>", beside={name: content}))
    for use in (lambda: file.build([]), file.identity):
        with pytest.raises(UserError, match=f"/{name}.*{why}"):
            use()


def test_a_saved_one_loads_as_the_same_wherever_it_came_from(tmp_path):
    tokens = TokenizerFile(written(tmp_path / "a", "</s>", "<s>")).build([])
    tokens.save(tmp_path / "kept")
    loaded = tokenizer.load(tmp_path / "kept")
    assert loaded.fingerprint == tokens.fingerprint and loaded.special == tokens.special
    assert (loaded.encode(TEXT.encode()) == tokens.encode(TEXT.encode())).all()
    elsewhere = TokenizerFile(written(tmp_path / "b", "</s>", "<s>"))
    assert elsewhere.build([]).fingerprint == tokens.fingerprint
    assert elsewhere.identity() == [content_of(str(tmp_path / "a")), "", ""]
    other = TokenizerFile(written(tmp_path / "b", "</s>", "<s>", "<more>"))
    assert other.build([]).fingerprint != tokens.fingerprint


def test_a_flipped_bit_in_a_saved_one_is_refused(tmp_path):
    draw = random.Random(0)
    TokenizerFile(written(tmp_path / "a", "</s>")).build([]).save(tmp_path / "kept")
    for path in sorted((tmp_path / "kept").iterdir()):
        good = path.read_bytes()
        for place in draw.sample(range(len(good)), 40):
            raw = bytearray(good)
            raw[place] ^= 1 << draw.randrange(8)
            path.write_bytes(raw)
            with pytest.raises(UserError):
                tokenizer.load(tmp_path / "kept")
        path.write_bytes(good)


def test_tokens_can_be_added_to_it(tmp_path):
    base = TokenizerFile(written(tmp_path, "</s>", "<s>")).build([])
    tokens = AddedTokens(base, ["<|user|>"])
    assert tokens.special == base.special
    assert tokens.encode(b"<|user|>").tolist() == [base.vocab_size]


def test_data_is_prepared_again_when_the_file_has_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPAR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text(TEXT * 99)
    path = written(tmp_path / "tokens", "</s>")
    data = Text(
        f"files:{tmp_path}/a.txt",
        tokenizer=TokenizerFile(path),
        seq_len=8,
        batch_size=2,
    )
    first = data.prepare(progress=False)
    assert data.prepare(progress=False).fingerprint == first.fingerprint
    written(tmp_path / "tokens", "</s>", "<s>")
    assert data.prepare(progress=False).fingerprint != first.fingerprint


def test_a_tokenizer_that_loses_text_says_so(tmp_path, capsys):
    model = Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "?": 2}, unk_token="?"))
    model.pre_tokenizer = pre.Whitespace()
    model.add_special_tokens(["</s>"])
    model.save(str(tmp_path / "tokenizer.json"))
    TokenizerFile(str(tmp_path)).build([b"a  a b"])
    assert "does not give back every text" in capsys.readouterr().err


def test_a_relative_path_is_found_beside_the_experiment(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    written(tmp_path / "there", "</s>")
    patterns.EXPERIMENT_FOLDER.set(tmp_path / "there")
    try:
        assert specials(TokenizerFile("tokenizer.json").build([]))[0] == "</s>"
    finally:
        patterns.EXPERIMENT_FOLDER.set(None)


def test_a_run_with_the_same_file_is_the_same_run_wherever_the_file_is(tmp_path):
    from jaxpar.config import differences, fingerprint

    ours = TokenizerFile(written(tmp_path / "a", "</s>", "<s>"))
    theirs = TokenizerFile(written(tmp_path / "b", "</s>", "<s>"))
    assert fingerprint(ours) == fingerprint(theirs)
    assert all(each.free for each in differences(ours, theirs))
    before = fingerprint(theirs)
    written(tmp_path / "b", "</s>", "<s>", "<more>")
    assert fingerprint(theirs) != before
