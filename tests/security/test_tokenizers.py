"""transformers reads the tokenizer in a model folder without code, other files or network."""

import json

import pytest

from dimefm.errors import ModelError
from dimefm.models import folder_tokenizer, open_clip
from dimefm.models.loading import load_encoder
from tests.security.conftest import ARCH, write_config

WORDS = {"[UNK]": 0, "[PAD]": 1, "a": 2, "dog": 3}
SETTINGS = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}


@pytest.fixture
def folder(planted):
    """Return a model folder with a tokenizer of four words beside hostile code."""
    folder, _ = planted
    config = open_clip.config_of(ARCH)
    config["text_cfg"]["hf_tokenizer_name"] = "org/name"
    write_config(folder, config)
    model = {"type": "WordLevel", "vocab": WORDS, "unk_token": "[UNK]"}
    tokenizer = {"version": "1.0", "model": model, "pre_tokenizer": {"type": "Whitespace"}}
    missing = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    tokenizer = {**missing, "added_tokens": [], **tokenizer}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    return folder


def outside(folder):
    return str(folder.parent / "outside/tokenizer.json")


HOSTILE = {
    "another vocabulary": lambda folder: {"vocab_file": outside(folder)},
    "another tokenizer": lambda folder: {"tokenizer_file": outside(folder)},
    "special tokens": lambda folder: {"special_tokens_map_file": outside(folder)},
    "a hub": lambda folder: {"name_or_path": "evil/model", "_commit_hash": "main"},
    "a path as class": lambda folder: {"tokenizer_class": "../tokenization_own.X"},
    "a template": lambda folder: {"chat_template": "{{ cycler.__init__.__globals__ }}"},
    "sentencepiece": lambda folder: {"sp_model_kwargs": {"model_file": outside(folder)}},
    "nested code": lambda folder: {"init_kwargs": {"trust_remote_code": True}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_settings_that_lead_elsewhere_are_left_out(folder, name):
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS | HOSTILE[name](folder)))
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "own.X"}}))
    with folder_tokenizer.safe_copy(folder, "org/name") as copy:
        given = json.loads((copy / "tokenizer_config.json").read_text())
        assert given.items() <= SETTINGS.items()
        assert json.loads((copy / "config.json").read_text()) == {}
        assert not list(copy.glob("*.py"))
        assert (copy / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_a_tokenizer_that_needs_its_own_code_is_refused_by_the_key(folder):
    hostile = SETTINGS | {"auto_map": {"AutoTokenizer": ["tokenization_own.X", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(hostile))
    with pytest.raises(ModelError, match="'auto_map' asks for code"):
        with folder_tokenizer.safe_copy(folder, "org/name"):
            pass


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "\x00", '{"a": 1' + "0" * 9999 + "}"])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json"])
def test_damaged_settings_are_refused_in_one_line(folder, name, text):
    (folder / name).write_text(text)
    with pytest.raises(ModelError) as caught:
        with folder_tokenizer.safe_copy(folder, "org/name"):
            pass
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["plain", *HOSTILE])
def test_transformers_itself_reads_the_vocabulary_and_nothing_else(planted, folder, name):
    pytest.importorskip("transformers")
    _, canary = planted
    if name in HOSTILE:
        hostile = SETTINGS | HOSTILE[name](folder)
        (folder / "tokenizer_config.json").write_text(json.dumps(hostile))
    encoder = load_encoder(str(folder), "cpu")
    tokens, _ = encoder.tokenize(["a dog barks"])
    assert tokens[0, :4].tolist() == [2, 3, 0, 1]
    assert encoder.card.tokenizer == f"HFTokenizer({folder})"
    assert not canary.exists()
