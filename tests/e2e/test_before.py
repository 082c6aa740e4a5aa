"""Caches, runs and checkpoints of an earlier version are read, evaluated and resumed.

``tests/data/before`` holds them, with the recipes and the results of that version. Its README.md
has the commands. The tests use the command line and the files only.
"""

import base64
import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import load_file

from dimefm.cli import main

DATA = Path(__file__).parents[1] / "data"
BEFORE, TEACHER = DATA / "before", DATA / "teacher"
CACHES = sorted(path.parent.relative_to(BEFORE) for path in BEFORE.glob("caches/*/*/manifest.json"))
RUNS = ("free", "image", "pairs", "text")
TIMINGS = ("rows_per_s", "data_share", "data_s", "compute_s", "eval_seconds")
WEIGHTS = ("image_tower.safetensors", "open_clip_model.safetensors", "text_tower.safetensors")
CPU = ("--device", "cpu")
TOLERANCE = 1e-5


def dimefm(*words):
    """Run a command in this process and return its output; fail with the output on an error."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, f"{' '.join(map(str, words))}\n{result.output}"
    return result.output


def load(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def log_of(path, after=0):
    """Return the lines of a log after a step, without timings."""
    lines = []
    for text in Path(path).read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if line["step"] > after:
            lines.append({key: value for key, value in line.items() if key not in TIMINGS})
    return lines


def assert_same_log(log, expected):
    assert len(log) == len(expected) > 0
    for line, expected_line in zip(log, expected, strict=True):
        assert line == pytest.approx(expected_line, rel=TOLERANCE)


def weights_of(run):
    """Return the weights of a finished run, name -> array, with zeros for attention's key biases.

    A key bias adds the same number to all scores of a query, and softmax cancels it. Its gradient
    is rounding noise, so its value differs from one kind of CPU to the next.
    """
    path = next(run / name for name in WEIGHTS if (run / name).exists())
    weights = load_file(path)
    for name, value in weights.items():
        if name.endswith("attn.in_proj_bias"):
            third = len(value) // 3
            value[third : 2 * third] = 0
    return weights


def assert_same_weights(run, expected_run):
    weights, expected = weights_of(run), weights_of(expected_run)
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        np.testing.assert_allclose(value, expected[name], TOLERANCE, TOLERANCE, err_msg=name)


def rows_of(cache):
    return sum(shard["rows"] for shard in load(cache / "manifest.json")["shards"])


def quarantined(cache):
    """Return (source, row) of every row that a cache lists as quarantined."""
    path = cache / "quarantine.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [(entry["source"], entry["row"]) for entry in map(json.loads, lines)]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return a copy of ``tests/data/before``, the current folder, with the teacher next to it."""
    shutil.copytree(BEFORE, tmp_path / "before")
    os.symlink(TEACHER, tmp_path / "teacher")
    monkeypatch.chdir(tmp_path / "before")
    return tmp_path / "before"


def test_the_files_are_there():
    assert len(CACHES) == 12
    for run in RUNS:
        saved = (BEFORE / "interrupted" / run / "recipe.toml").read_text(encoding="utf-8")
        assert saved == (BEFORE / "runs" / run / "recipe.toml").read_text(encoding="utf-8")
        assert not (BEFORE / "interrupted" / run / "run.json").exists()
    image = (BEFORE / "interrupted/image/recipe.toml").read_text(encoding="utf-8")
    pairs = (BEFORE / "interrupted/pairs/recipe.toml").read_text(encoding="utf-8")
    free = (BEFORE / "interrupted/free/recipe.toml").read_text(encoding="utf-8")
    for setting in ('bridge = "linear"', "mix = [0.7, 0.3]", 'view = "cached"'):
        assert setting in image
    assert 'masked = "apart"' in pairs
    assert 'view = "free"' in free


@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_a_cache_is_read(home, cache):
    manifest = load(cache / "manifest.json")
    described = dimefm("cache", "info", cache)
    assert str(rows_of(cache)) in described and manifest["kind"] in described
    assert manifest["fingerprint"][:12] in described
    dimefm("cache", "verify", cache, "--sha256")
    left_out = quarantined(cache)
    assert len(left_out) == sum(len(shard["bad"]) for shard in manifest["shards"]) > 0


@pytest.mark.parametrize("name", ["plain", "views", "int8"])
def test_the_teacher_still_gives_the_cached_features(home, name):
    sources = ("--images", "pairs.parquet", "more.tsv")
    dimefm("cache", "verify", f"caches/{name}/images", "--against-teacher", 8, *sources, *CPU)


def test_an_unfinished_extraction_is_finished(home):
    out, whole = home / "caches/unfinished", home / "caches/plain/images"
    finished_shard = (out / "images/pairs.feat.h5").stat().st_mtime_ns
    sources = ("--images", "pairs.parquet", "more.tsv")
    dimefm("extract-features", "--teacher", "../teacher", *sources, "--out", out, *CPU)
    assert (out / "images/pairs.feat.h5").stat().st_mtime_ns == finished_shard
    manifest, expected = load(out / "images/manifest.json"), load(whole / "manifest.json")
    assert manifest["fingerprint"] == expected["fingerprint"]
    dimefm("cache", "verify", out / "images", "--sha256")
    dimefm("cache", "verify", out / "images", "--against-teacher", 34, *sources, *CPU)


def test_a_cache_grows(home):
    (home / "further.txt").write_text("a further sentence\nand one more\n", encoding="utf-8")
    cache = home / "caches/sentences/texts"
    before, shard = rows_of(cache), (cache / "sentences.feat.h5").read_bytes()
    texts = ("--texts", "sentences.txt", "further.txt")
    out = ("--out", cache.parent, "--append")
    dimefm("extract-features", "--teacher", "../teacher", *texts, *out, *CPU)
    assert rows_of(cache) == before + 2
    assert (cache / "sentences.feat.h5").read_bytes() == shard
    dimefm("cache", "verify", cache, "--sha256")


@pytest.mark.parametrize("name", ["plain", "parquet", "tsv"])
def test_quarantined_rows_are_tried_again(home, name):
    cache = Path("caches", name, "images")
    assert ("more.tsv", 3) in quarantined(cache)
    image = io.BytesIO()
    Image.new("RGB", (28, 24), (200, 30, 30)).save(image, "png")
    lines = Path("more.tsv").read_text(encoding="utf-8").splitlines()
    lines[3] = f"{lines[3].split()[0]}\t{base64.b64encode(image.getvalue()).decode()}"
    Path("more.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    before = rows_of(cache)
    sources, format = {
        "plain": (("pairs.parquet", "more.tsv"), "hdf5"),
        "parquet": (("more.tsv",), "parquet"),
        "tsv": (("more.tsv",), "tsv"),
    }[name]
    images = ("--images", *sources, "--format", format)
    out = ("--out", cache.parent, "--retry-bad")
    dimefm("extract-features", "--teacher", "../teacher", *images, *out, *CPU)
    assert rows_of(cache) == before + 1
    assert ("more.tsv", 3) not in quarantined(cache)
    dimefm("cache", "verify", cache, "--sha256")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (("runs/free",), "runs/free/scores"),
        (("runs/image",), "runs/image/scores"),
        (("runs/pairs",), "runs/pairs/scores"),
        (("runs/image", "--text-model", "runs/text"), "scores/both"),
    ],
    ids=["free", "image", "pairs", "both"],
)
def test_a_finished_run_has_the_scores_of_before(home, model, expected):
    datasets = ("--root", "datasets", "--datasets", "colors")
    dimefm("eval", "elevater", "--model", *model, *datasets, "--out", "scored", *CPU)
    scores, recorded = load("scored/scores.json"), load(f"{expected}/scores.json")
    assert scores["scores"] == recorded["scores"]
    assert scores["weights_sha256"] == recorded["weights_sha256"]


def test_retrieval_has_the_scores_of_before(home):
    caches = ("--images", "caches/plain/images", "--texts", "caches/plain/texts")
    dimefm("eval", "retrieval", *caches, "--out", "scored")
    assert load("scored/scores.json")["scores"] == load("scores/retrieval/scores.json")["scores"]


@pytest.mark.parametrize("recipe", ["recipes", "saved"])
@pytest.mark.parametrize("run", RUNS)
def test_an_interrupted_run_is_resumed_to_the_outcome_of_before(home, run, recipe):
    """The recipe is the user's file, or the one that the interrupted run saved."""
    out, whole = home / "interrupted" / run, BEFORE / "runs" / run
    checkpoint = next(out.glob("checkpoints/[0-9]*"))
    step = int(checkpoint.name)
    path = Path("recipes", f"{run}.toml") if recipe == "recipes" else Path("saved.toml")
    shutil.copy(out / "recipe.toml", "saved.toml")
    log = out / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines()
    done = [line for line in lines if json.loads(line)["step"] <= step]
    dimefm("train", "--recipe", path, "--out", out, "--resume")
    assert log.read_text(encoding="utf-8").splitlines()[: len(done)] == done  # with its timings
    assert_same_log(log_of(log, step), log_of(whole / "log.jsonl", step))
    assert_same_weights(out, whole)
    record, recorded = load(out / "run.json"), load(whole / "run.json")
    for name in ("kind", "model_cfg", "steps", "rows", "parameters", "image_cache", "text_cache"):
        assert record[name] == recorded[name], name


def test_a_finished_run_is_left_as_it_is(home, digests):
    before = digests(home / "runs")
    for run in RUNS:
        dimefm("train", "--recipe", f"recipes/{run}.toml", "--out", f"runs/{run}", "--resume")
    assert digests(home / "runs") == before


@pytest.mark.parametrize("masked", ["apart", "contrast"])
def test_a_recipe_of_before_trains_with_the_losses_of_before(home, masked):
    name = f"masked_{masked}"
    dimefm("train", "--recipe", f"recipes/{name}.toml", "--out", "trained")
    assert_same_log(log_of("trained/log.jsonl"), log_of(f"losses/{name}.jsonl"))


def test_runs_of_before_are_compared(home):
    runs = [*(f"runs/{run}" for run in RUNS), *(f"interrupted/{run}" for run in RUNS)]
    dimefm("runs", "compare", *runs, "--out", "tables")
    figures = {}
    for name in ("compared", "tables"):
        with open(Path(name, "compare.csv"), encoding="utf-8", newline="") as file:
            table, *rows = csv.reader(file)
        assert table[2:] == runs
        figures[name] = [row[2:] for row in rows if row[0] == "score"]
    assert figures["tables"] == figures["compared"]
