"""``dimefm cache adopt`` and ``dimefm eval retrieval`` as a user calls them."""

import base64
import json

import numpy as np
import pytest
from click.testing import CliRunner

from dimefm.cache import FeatureCache
from dimefm.cli import main
from dimefm.data import open_rows
from dimefm.data.alignment import align

TEACHER = "ResNet-mini-64/random:0"


def dimefm(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def refusal(*words, code=1):
    """Return the last line of a command that is expected to end with ``code``, without a
    traceback.
    """
    result = dimefm(*words, code=code)
    assert isinstance(result.exception, SystemExit) and "Traceback" not in result.output
    last = result.stderr.rstrip("\n").split("\n")[-1]
    assert last.startswith("Error: "), result.stderr
    return last


def unit(n, dim=8, seed=0):
    rows = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def features(tmp_path):
    """Three photos, and as many vectors as an array, with keys beside it."""
    np.save(tmp_path / "photos.npy", unit(3))
    (tmp_path / "keys.txt").write_text("a.png\nb.png\nc.png\n")
    return tmp_path


def test_adopted_described_and_left_alone(features, digests):
    words = (
        "cache",
        "adopt",
        features / "photos.npy",
        "--kind",
        "image",
        "--keys",
        features / "keys.txt",
    )
    words += (
        "--encoder-name",
        "ViT-B-32/openai",
        "--logit-scale",
        50,
        "--preprocess",
        '{"size": 224}',
    )
    words += (
        "--weights-sha256",
        "ab" * 32,
        "--tokenizer",
        "bpe",
        "--logit-bias",
        -10,
        "--out",
        features / "out",
    )
    said = dimefm(*words).stdout
    assert "3 rows in = 3 rows out + 0 quarantined" in said and ": unit length" in said
    assert (
        "ViT-B-32/openai (weights abababababab), logit scale 50" in said
        and "keys: keys.txt" in said
    )
    card = FeatureCache(features / "out").manifest.encoder
    assert (card.dim, card.logit_bias, card.preprocess, card.tokenizer) == (
        8,
        -10,
        {"size": 224},
        "bpe",
    )
    before = digests(features / "out")
    assert "finished already, 3 rows; nothing to do" in dimefm(*words).stdout
    assert digests(features / "out") == before
    assert "unit length" in dimefm("cache", "info", features / "out").stdout
    assert "made otherwise (dtype" in refusal(*words, "--dtype", "float16")


def test_what_nobody_stated_is_unknown(features):
    dimefm("cache", "adopt", features / "photos.npy", "--kind", "image", "--out", features / "out")
    said = dimefm("cache", "info", features / "out").stdout
    assert "unknown (weights unknown), logit scale 100" in said
    card = FeatureCache(features / "out").manifest.encoder
    assert (card.weights_sha256, card.preprocess, card.tokenizer, card.activation) == (
        None,
        {},
        None,
        None,
    )


def test_patterns_lists_and_equal_names_in_two_folders(features):
    for part in ("x", "y"):
        (features / part).mkdir()
        np.save(features / part / "0.npy", unit(2, seed=ord(part)))
    (features / "all.list").write_text("# both\ny/0.npy\nx/0.npy\n")
    dimefm(
        "cache",
        "adopt",
        "*/0.npy",
        "--dataroot",
        features,
        "--kind",
        "text",
        "--out",
        features / "pattern",
    )
    dimefm("cache", "adopt", features / "all.list", "--kind", "text", "--out", features / "list")
    assert [s.source for s in FeatureCache(features / "pattern").manifest.shards] == [
        "x/0.npy",
        "y/0.npy",
    ]
    assert [s.source for s in FeatureCache(features / "list").manifest.shards] == [
        "y/0.npy",
        "x/0.npy",
    ]


def test_feature_tsvs_are_measured_like_anything_else(features):
    lines = [f"k{i}\t{base64.b64encode(row.tobytes()).decode()}\n" for i, row in enumerate(unit(4))]
    (features / "t.feat.tsv").write_text("".join(lines))
    said = dimefm(
        "cache", "adopt", features / "t.feat.tsv", "--kind", "text", "--out", features / "out"
    ).stdout
    assert "dime-fm tsv files" in said and ": unit length" in said
    np.testing.assert_array_equal(FeatureCache(features / "out")[:], unit(4))


@pytest.fixture
def photos(features, picture):
    (features / "photos").mkdir()
    for i, name in enumerate(("a.png", "b.png", "c.png")):
        (features / "photos" / name).write_bytes(picture(i))
    return features / "photos"


def test_with_the_raw_rows_named_the_cache_is_theirs(features, photos):
    words = ("cache", "adopt", features / "photos.npy", "--kind", "image", "--rows-of", photos)
    dimefm(*words, "--keys", features / "keys.txt", "--out", features / "out")
    cache = FeatureCache(features / "out")
    rows = open_rows([photos], "image")
    assert len(align(rows, cache)) == 3
    assert cache.manifest.shards[0].source_digest == rows.shards[0].digest()
    (features / "keys.txt").write_text("a.png\nc.png\nb.png\n")
    line = refusal(*words, "--keys", features / "keys.txt", "--out", features / "other")
    assert "row 1: the raw row has key 'b.png'" in line and "'c.png'" in line
    (photos / "d.png").write_bytes((photos / "a.png").read_bytes())
    assert "3 rows, but photos has 4; expected one feature row for each raw row" in refusal(
        *words, "--out", features / "x"
    )


def test_the_columns_are_those_of_the_raw_rows(features):
    (features / "captions.csv").write_text("id,title\np,a dog\nq,a cat\nr,\n")
    words = (
        "cache",
        "adopt",
        features / "photos.npy",
        "--kind",
        "text",
        "--rows-of",
        features / "captions.csv",
    )
    dimefm(*words, "--key-column", "id", "--text-column", "title", "--out", features / "out")
    cache = FeatureCache(features / "out")
    assert cache.manifest.shards[0].source == "captions.csv"
    assert cache.read(cache.manifest.shards[0])[0] == ["p", "q", "r"]


def test_the_identity_of_the_teacher_is_taken_as_a_whole(features, tiny_teacher):
    np.save(features / "wide.npy", unit(2, tiny_teacher.card.dim))
    words = ("cache", "adopt", "--kind", "image", "--teacher", TEACHER, "--out", features / "out")
    dimefm(*words, features / "wide.npy")
    assert FeatureCache(features / "out").manifest.encoder == tiny_teacher.card
    assert "vectors of 8 numbers, but the encoder" in refusal(*words, features / "photos.npy")
    assert "leave --logit-scale out" in refusal(
        *words, "--logit-scale", 3, features / "wide.npy", code=2
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--weights-sha256", "abc"), "expected 64 hexadecimal digits"),
        (("--preprocess", "224"), "expected a JSON object"),
        (("--preprocess", "{"), "not JSON"),
        (("--logit-scale", 0), "--logit-scale"),
        (("--dtype", "int4"), "--dtype"),
        (("--format", "npy"), "--format"),
    ],
)
def test_bad_usage_ends_with_2(features, more, message):
    words = (
        "cache",
        "adopt",
        features / "photos.npy",
        "--kind",
        "image",
        "--out",
        features / "out",
    )
    assert message in refusal(*words, *more, code=2)
    assert not (features / "out").exists()


def test_a_source_that_is_not_there_is_refused(features):
    line = refusal(
        "cache", "adopt", features / "none*.npy", "--kind", "image", "--out", features / "out"
    )
    assert "none*.npy: no such file or folder" in line


def test_adopted_caches_are_searched(features):
    texts = unit(4)
    np.savez(
        features / "texts.npz", texts, keys=np.array(["a.png#0", "b.png#0", "c.png#0", "d.png#0"])
    )
    for name, kind, more in (
        ("photos.npy", "image", ("--keys", features / "keys.txt")),
        ("texts.npz", "text", ()),
    ):
        dimefm("cache", "adopt", features / name, "--kind", kind, *more, "--out", features / kind)
    words = ("eval", "retrieval", "--images", features / "image", "--texts", features / "text")
    said = dimefm(*words).stdout
    assert "text to image" in said and "image to text" in said and "written" not in said
    assert "1 of 4 texts have no image here and were left out." in said
    out = features / "deep/scores"
    assert (
        f"written: {out / 'scores.json'}, {out / 'report.md'}"
        in dimefm(*words, "--out", out).stdout
    )
    scores = json.loads((out / "scores.json").read_text())
    assert [score["queries"] for score in scores["scores"]] == [3, 3]
    assert (out / "report.md").read_text().startswith("# Retrieval with unknown")
    swapped = ("eval", "retrieval", "--images", features / "text", "--texts", features / "image")
    assert "holds text features, expected image features. Fix: swap the two" in refusal(*swapped)
