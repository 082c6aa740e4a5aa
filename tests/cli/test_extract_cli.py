"""dimefm extract-features as users meet it: what it writes and says."""

import base64
import json

import open_clip as upstream
import pytest
import torch
from click.testing import CliRunner

from dimefm.cache import FeatureCache
from dimefm.cli import main
from dimefm.models import open_clip
from tests.cli.conftest import TEACHER, refused, run, tsv


def test_images_and_sentences_go_to_folders_of_their_own(raw):
    code, output = run("--images", raw / "photos", "--texts", raw / "s.txt", "--out", raw / "out")
    assert code == 0
    images, texts = FeatureCache(raw / "out/images"), FeatureCache(raw / "out/texts")
    assert (images.manifest.kind, len(images), texts.manifest.kind, len(texts)) == (
        "image",
        4,
        "text",
        3,
    )
    assert (
        "4 rows in = 4 rows out + 0 quarantined" in output
        and "3 rows in = 3 rows out + 0 quarantined" in output
    )
    assert "rows/s" in output and "bytes/row" in output and "ResNet-mini-64/random:0" in output


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_neither_kind_needs_the_other(raw, kind):
    source = raw / ("photos" if kind == "images" else "s.txt")
    assert run(f"--{kind}", source, "--out", raw / "out")[0] == 0
    assert [path.name for path in (raw / "out").iterdir()] == [kind]


def test_several_sources_after_one_flag_or_after_many_are_the_same(raw, digests):
    (raw / "t.txt").write_text("a green tree\n")
    assert run("--texts", raw / "s.txt", raw / "t.txt", "--out", raw / "one")[0] == 0
    assert run("--texts", raw / "s.txt", "--texts", raw / "t.txt", "--out", raw / "two")[0] == 0
    assert digests(raw / "one") == digests(raw / "two")
    assert len(FeatureCache(raw / "one/texts")) == 4


def test_lists_below_a_dataroot_in_dime_fms_way(golden_tsv, tmp_path):
    code, output = run(
        *(
            "--images",
            "image.list",
            "--texts",
            "text.list",
            "--dataroot",
            golden_tsv,
            "--out",
            tmp_path,
            "--format",
            "tsv",
        )
    )
    assert code == 0, output
    assert [info.file for info in FeatureCache(tmp_path / "images").manifest.shards] == [
        "GCC-3M/tsv/image_00.feat.tsv",
        "GCC-3M/tsv/image_01.feat.tsv",
    ]
    assert FeatureCache(tmp_path / "texts").manifest.dtype == "float32"
    assert (tmp_path / "images/GCC-3M/tsv/image_00.feat.lineidx").read_text().startswith("0\n")


@pytest.mark.parametrize("separator", ["\\t", "tab", "\t"])
def test_a_tab_can_be_named_as_separator(raw, separator):
    (raw / "x.csv").write_text("filepath\ttitle\nphotos/0.png\ta cat\n")
    assert run("--texts", raw / "x.csv", "--separator", separator, "--out", raw / "o")[0] == 0


def test_every_cache_format_can_be_chosen():
    from dimefm import plugins
    from dimefm.cli.extract_features import command

    (option,) = (parameter for parameter in command.params if "--format" in parameter.opts)
    assert list(option.type.choices) == plugins.names("caches")


def test_float16_tsv_says_that_dime_fm_cannot_read_it(raw):
    _, output = run(
        "--texts", raw / "s.txt", "--out", raw / "out", "--format", "tsv", "--dtype", "float16"
    )
    assert "DIME-FM's own loader reads float32 only" in output


def test_the_same_command_twice_is_finished_already(raw, digests):
    command = ("--images", raw / "photos", "--out", raw / "out")
    run(*command)
    before = digests(raw / "out")
    code, output = run(*command)
    assert code == 0 and "finished already, 4 rows; nothing to do" in output
    assert digests(raw / "out") == before


def test_quarantined_rows_do_not_fail_the_job_and_are_pointed_at(raw):
    (raw / "photos/9.png").write_bytes(b"")
    code, output = run("--images", raw / "photos", "--out", raw / "out")
    assert code == 0
    assert (
        f"5 rows in = 4 rows out + 1 quarantined (listed in {raw / 'out/images/quarantine.jsonl'})"
        in output
    )
    entry = json.loads((raw / "out/images/quarantine.jsonl").read_text())
    assert (entry["row"], entry["key"], entry["reason"]) == (4, "9.png", "image is empty (0 bytes)")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"k9\n", "has no second column; expected key, tab, value"),
        (b"k9\t@@\n", "second column is not base64"),
        (b"k9\t\n", "image is empty"),
        (
            b"k9\t" + base64.b64encode(b"<html>") + b"\n",
            "not an image: 6 bytes that begin with b'<html>'",
        ),
    ],
)
def test_a_bad_tsv_row_is_listed_with_its_reason(raw, line, reason):
    lines = [*(raw / "image_00.tsv").read_bytes().splitlines(keepends=True), line]
    tsv(raw, "image_00", lines)
    code, output = run("--images", raw / "image_00.tsv", "--out", raw / "out")
    assert code == 0 and "3 rows out + 1 quarantined" in output
    entry = json.loads((raw / "out/images/quarantine.jsonl").read_text())
    assert (entry["source"], entry["row"], entry["key"]) == ("image_00.tsv", 3, "k9")
    assert reason in entry["reason"]


def test_empty_and_over_long_sentences_are_listed(raw):
    (raw / "s.txt").write_text("fine\n\n" + "word " * 40 + "\n")
    code, output = run("--texts", raw / "s.txt", "--out", raw / "out")
    assert code == 0 and "3 rows in = 1 rows out + 2 quarantined" in output
    reasons = [
        json.loads(line)["reason"]
        for line in (raw / "out/texts/quarantine.jsonl").read_text().splitlines()
    ]
    assert reasons[0] == "sentence is empty" and "42 tokens, the encoder reads 32" in reasons[1]
    assert run("--texts", raw / "s.txt", "--out", raw / "cut", "--long-texts", "truncate")[0] == 0
    assert len(FeatureCache(raw / "cut/texts")) == 2


def test_debug_shows_the_traceback(raw):
    result = CliRunner().invoke(
        main, ["--debug", "extract-features", "--teacher", TEACHER, "--texts", "none", "--out", "o"]
    )
    assert type(result.exception).__name__ == "DataError"


def test_a_weights_file_is_prepared_as_published_and_the_command_says_how(raw, monkeypatch):
    """The manifest records it, ``cache verify`` and ``eval`` use it, and a choice is asked for."""
    squash = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash"}
    architecture = TEACHER.partition("/")[0]
    tags = {"first": squash, "second": {**squash, "resize_mode": "longest"}}
    monkeypatch.setitem(upstream.pretrained._PRETRAINED, architecture, tags)
    torch.save(open_clip.random(architecture, 0).state_dict(), raw / "weights.pt")
    spec = f"{architecture}/{raw / 'weights.pt'}"
    words = ("--images", raw / "photos", "--out", raw / "cache")
    assert "(first: squash; second: longest). Fix: name the tag" in refused(*words, teacher=spec)
    code, output = run(*words, "--preprocess", "second", teacher=spec)
    assert code == 0, output
    line = "images: 64 pixels, longest, bicubic, mean 0.5, std 0.5"
    assert f"{line} (as second)" in output
    preprocess = FeatureCache(raw / "cache/images").manifest.encoder.preprocess
    assert (preprocess["resize_mode"], preprocess["mean"]) == ("longest", [0.5] * 3)
    verified = CliRunner().invoke(
        main,
        [
            *("cache", "verify", str(raw / "cache/images"), "--against-teacher", "4"),
            *("--images", str(raw / "photos"), "--device", "cpu"),
        ],
    )
    assert verified.exit_code == 0, verified.output
    two = ("--teacher", TEACHER, "--preprocess", "second")
    assert "preprocessing of one teacher" in refused(*words, *two, teacher=spec)
