"""Prompts with knowledge: the files and the texts of ELEVATER's toolkit, and long prompts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dimefm.cli import main
from dimefm.errors import DataError
from dimefm.evaluate.benchmark import prompts
from dimefm.evaluate.datasets.layouts import find
from dimefm.evaluate.features import prompt_weights
from dimefm.evaluate.knowledge import (
    AND,
    DEFINED_THEN,
    THEN,
    matched,
    read_file,
    read_knowledge,
    with_knowledge,
)
from dimefm.evaluate.preparing import settings_of
from dimefm.evaluate.word_tokens import sentences, word_tokenize
from dimefm.models.loading import load_encoder
from tests.evaluate.datasets import image, write

TEACHER = Path(__file__).parents[1] / "data/teacher"

WIKI = [
    {
        "classname": "banded",
        "def_wiki": "Having bands; striped.",
        "def_wn": "identified with a band",
        "path_wn": ["banded", "patterned", "adj", "more"],
    },
    {"classname": "polka_dotted", "def_wiki": None, "def_wn": None, "path_wn": None},
]
GPT3 = [
    {"classname": "banded", "gpt3": [f"a texture with {word} bands." for word in "12345"]},
    {"classname": "blotchy", "gpt3": ["a texture with blotches."] * 5},
    {"classname": "polka_dotted", "gpt3": ["round dots."] * 5},
]


@pytest.fixture
def home(tmp_path):
    """Files of knowledge for dtd, and a dtd with an image of three classes."""
    write(tmp_path / "files/dtd_knowledge.tsv", json.dumps(WIKI))
    write(tmp_path / "files/GPT3_dtd.tsv", json.dumps(GPT3))
    for number, name in enumerate(("banded", "blotchy", "polka-dotted")):
        write(tmp_path / "sets/dtd/test" / name / "0.png", image(60 * number))
    return tmp_path


def dtd(home, *paths, **settings):
    """Return dtd with the knowledge of some files, and its prompts by class name."""
    [dataset], _ = find(home / "sets", ["dtd"])
    files = [home / "files" / path for path in paths]
    dataset = with_knowledge(dataset, read_knowledge(files, **settings))
    return dataset, dict(zip(dataset.benchmark.classes, prompts(dataset.benchmark), strict=True))


def endings(texts):
    """Return what follows the first template in some prompts, in order."""
    beginning = texts[0].partition(" texture.")[0] + " texture."
    return [text.removeprefix(beginning) for text in texts if text.startswith(beginning)]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (None, " ; banded , Having bands ; striped ."),
        ("wiktionary", " ; banded , Having bands ; striped ."),
        ("wordnet", " ; banded , identified with a band"),
        ("wordnet-path", " ; banded , banded patterned adj"),
    ],
)
def test_a_definition_follows_every_template(home, kind, expected):
    dataset, found = dtd(home, "dtd_knowledge.tsv", kind=kind)
    plain = prompts(find(home / "sets", ["dtd"])[0][0].benchmark)
    assert found["banded"] == [text + expected for text in plain[0]]
    assert found["polka-dotted"] == plain[dataset.benchmark.classes.index("polka-dotted")]
    assert found["blotchy"] == plain[1]
    assert f"knowledge: {kind or 'wiktionary'} for 1 of 47 classes" in dataset.note


@pytest.mark.parametrize("items", [1, 3, 5, 9])
def test_the_first_texts_of_gpt3_are_used(home, items):
    dataset, found = dtd(home, "GPT3_dtd.tsv", items=items)
    texts = endings(found["banded"])
    assert len(texts) == min(items, 5) == len(found["banded"]) / 8
    assert texts[0] == " ; banded , a texture with 1 bands ."
    assert "knowledge: gpt3 for 3 of 47 classes" in dataset.note


@pytest.mark.parametrize(
    ("method", "banded", "blotchy", "polka_dotted"),
    [
        (AND, 3, 2, 3),  # an entry without a definition gives a plain prompt
        (THEN, 1, 2, 1),  # and stands in the way of GPT-3, as in the toolkit
        (DEFINED_THEN, 1, 2, 2),
    ],
)
def test_definitions_and_texts_go_together(home, method, banded, blotchy, polka_dotted):
    _, found = dtd(home, "dtd_knowledge.tsv", "GPT3_dtd.tsv", method=method, items=2)
    counts = [len(found[name]) / 8 for name in ("banded", "blotchy", "polka-dotted")]
    assert counts == [banded, blotchy, polka_dotted]
    assert ("" in endings(found["polka-dotted"])) == (method != DEFINED_THEN)


def test_a_folder_of_files_is_taken_and_files_of_other_datasets_are_not(home):
    write(home / "files/GPT3_cifar-10.tsv", json.dumps(GPT3))
    write(home / "files/.GPT3_dtd.tsv", "litter")
    dataset, found = dtd(home, "")
    assert len(found["banded"]) == 16
    assert "knowledge: gpt3 for 3 of 47 classes, wiktionary for 1 of 47 classes" in dataset.note


def test_a_dataset_without_a_file_has_plain_prompts(home):
    write(home / "files/GPT3_cifar-10.tsv", json.dumps(GPT3))
    dataset, found = dtd(home, "GPT3_cifar-10.tsv")
    assert "no knowledge file: plain prompts" in dataset.note
    assert len(found["banded"]) == 8


def test_a_file_of_any_name_is_taken(home):
    write(home / "files/mine.json", json.dumps(GPT3))
    assert len(dtd(home, "mine.json")[1]["banded"]) == 8


def test_names_are_matched_as_those_of_classes():
    texts = {"Sea_Side": ("a",), "air plane": ("b",), "A": ("c",), "a": ("d",), "car": ("e",)}
    classes = ["sea side", "airplane", "a", "A", "automobile", "AA"]
    assert matched(texts, classes, {"car": "automobile"}) == {
        0: ("a",),
        1: ("b",),
        2: ("d",),
        3: ("c",),
        4: ("e",),
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"{}", "expected a list of classes"),
        (b"[]", "expected a list of classes"),
        (b"[3]", "entry 1: expected classname and def_wiki, found 3"),
        (b'[{"classname": "a"}]', "entry 1: expected classname and def_wiki"),
        (b'[{"classname": 3, "gpt3": []}]', "entry 1: expected classname and gpt3"),
        (b'[{"classname": "a", "def_wiki": 3}]', "def_wiki is 3, expected a text or null"),
        (b'[{"classname": "a", "gpt3": "x"}]', "gpt3 is x, expected a list of texts"),
        (b'[{"classname": "a", "gpt3": []}, {"classname": "b"}]', "entry 2: expected"),
    ],
)
def test_what_is_no_knowledge_is_one_line(tmp_path, content, words):
    write(tmp_path / "x.tsv", content)
    with pytest.raises(DataError, match=words) as caught:
        read_file(tmp_path / "x.tsv")
    assert "Fix: " in str(caught.value) and len(str(caught.value)) <= 500


def test_absent_files_empty_folders_and_two_files_of_a_kind_are_refused(home):
    with pytest.raises(DataError, match="none.tsv: cannot be read"):
        read_knowledge([home / "none.tsv"])
    with pytest.raises(DataError, match="no file of knowledge"):
        read_knowledge([home / "sets"])
    write(home / "files/again.tsv", json.dumps(GPT3))
    with pytest.raises(DataError, match="GPT3_dtd.tsv: knowledge of dtd, and so is"):
        dtd(home, "again.tsv", "GPT3_dtd.tsv")


# the tokens of NLTK 3.10.4, NLTKWordTokenizer().tokenize(text)
TOKENS = {
    " ; cat , a small animal (Felis catus), often kept as a pet; it can't bark.": [
        *("; cat , a small animal ( Felis catus ) , often kept as a pet ; it ca n't bark .").split()
    ],
    "They'll save and invest more.": "They 'll save and invest more .".split(),
    "hi, my name can't hello,": "hi , my name ca n't hello ,".split(),
    "Good muffins cost $3.88 (roughly 3,36 euros)": (
        "Good muffins cost $ 3.88 ( roughly 3,36 euros )".split()
    ),
    'He said "no" ("yes") and left...': "He said `` no '' ( `` yes '' ) and left ...".split(),
    "cats' toys; dogs' 'bones'": "cats ' toys ; dogs ' ' bones '".split(),
    "a well-known fruit -- the apple: red, green": (
        "a well-known fruit -- the apple : red , green".split()
    ),
    "it's 10:30, isn't it?": "it 's 10:30 , is n't it ?".split(),
    "cannot (see [1]) 50% of A&B": "can not ( see [ 1 ] ) 50 % of A & B".split(),
    "a, b,c 1,000": "a , b , c 1,000".split(),
    "“quoted” text’s": "“ quoted ” text ’ s".split(),
    "etc. and more": "etc. and more".split(),
}


@pytest.mark.parametrize("text", TOKENS)
def test_tokens_of_a_sentence_are_those_of_nltk(text):
    assert word_tokenize(text) == TOKENS[text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One end. Another end? Yes!", ["One end.", "Another end?", "Yes!"]),
        ("It has 3.5 legs. and no more", ["It has 3.5 legs. and no more"]),
        ("Mr. Smith of the U.S. Army, e.g. Bob.", ["Mr. Smith of the U.S. Army, e.g. Bob."]),
        ('He left ("fine.") Then came.', ['He left ("fine.")', "Then came."]),
        ("", []),
    ],
)
def test_sentences_end_before_capitals_and_not_behind_abbreviations(text, expected):
    assert sentences(text) == expected


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(str(TEACHER), "cpu", "fp32")


def test_a_long_prompt_keeps_its_end_and_its_meaning(encoder):
    texts = [f"a photo of a {name} ; " + "a very long text , " * 40 for name in ("cat", "ship")]
    tokens, lengths = encoder.tokenize(texts)
    end = int(encoder.tokenize(["cat"])[0].max())
    assert min(lengths) > tokens.shape[1]
    assert tokens[:, -1].tolist() == [end, end]
    ours = encoder.encode_text(tokens).numpy()
    assert np.abs(ours[0] - ours[1]).max() > 1e-3

    without_end = tokens.clone()  # as the toolkit cuts: the first tokens, and no end
    without_end[:, -1] = without_end[:, -2]
    constant = encoder.encode_text(without_end).numpy()
    assert torch.equal(without_end.argmax(dim=1), torch.zeros(2, dtype=torch.long))
    np.testing.assert_allclose(constant[0], constant[1], atol=1e-5)


def test_weights_are_the_mean_over_all_prompts_and_kept_by_their_texts(encoder, home):
    settings = settings_of(3, 1, "turbo")
    plain, _ = dtd(home, "dtd_knowledge.tsv", kind="wordnet")
    rich, found = dtd(home, "dtd_knowledge.tsv", "GPT3_dtd.tsv", items=5)
    store = home / "store"
    weights = prompt_weights(encoder, rich.benchmark, store, settings)
    others = prompt_weights(encoder, plain.benchmark, store, settings)
    assert len(list(store.rglob("prompts-*.npy"))) == 2
    tokens, _ = encoder.tokenize(found["banded"])
    embeddings = encoder.encode_text(tokens).numpy()
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    mean = unit.mean(axis=0)
    np.testing.assert_allclose(weights[0], mean / np.linalg.norm(mean), atol=1e-5)
    assert np.abs(weights[0] - others[0]).max() > 1e-4
    again = prompt_weights(encoder, rich.benchmark, store, settings)
    np.testing.assert_array_equal(again, weights)


def elevater(home, *more):
    words = ["--model", TEACHER, "--device", "cpu", "--root", home / "sets", "--out", home / "out"]
    return CliRunner().invoke(main, ["eval", "elevater", *map(str, [*words, *more])])


def test_the_command_takes_files_and_says_what_they_cover(home):
    done = elevater(home, "--knowledge", home / "files", "--knowledge-items", 5)
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert "knowledge: gpt3 for 3 of 47 classes, wiktionary for 1 of 47 classes" in said
    scores = json.loads((home / "out/scores.json").read_text())
    assert scores["protocol"].endswith(
        "knowledge: gpt3, wiktionary, first 5 of GPT-3, wiki-and-gpt3"
    )


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (("--knowledge", "nowhere.tsv"), 1, "nowhere.tsv: cannot be read"),
        (("--knowledge", "{files}", "--by", "tokens"), 1, "--by tokens compares prompts of equal"),
        (("--knowledge", "{files}", "--knowledge-method", "or"), 2, "--knowledge-method"),
        (("--knowledge", "{files}/dtd_knowledge.tsv", "--knowledge-kind", "gpt3"), 1, "and gpt3"),
    ],
)
def test_refused_in_one_line(home, more, code, words):
    more = [word.replace("{files}", str(home / "files")) for word in more]
    done = elevater(home, *more)
    assert done.exit_code == code
    assert words in done.stderr.rstrip("\n").split("\n")[-1]
    assert not (home / "out/scores.json").exists()
