"""``dimefm run``: one file from raw samples to scores; finished stages are skipped."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from dimefm.cli import main
from dimefm.experiment import stages

DATA = Path(__file__).parents[1] / "data"
PIPELINE = """
[extract]
teacher = "TEACHER"
images = ["pairs.parquet", "more.tsv"]
texts = ["sentences.txt"]

[train]
student = "ResNet-mini-32"
images = ["pairs.parquet", "more.tsv"]
crops = "free"
resize = 0
steps = 12
batch_size = 8
save_every = 4

[train.losses]
"dime.vl" = { weight = 0.7 }

[eval]
root = "datasets"
datasets = ["colors"]
text_model = "TEACHER"

[small.train]
steps = 4
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with raw samples, a dataset and a pipeline file."""
    folder = tmp_path_factory.mktemp("experiment")
    for name in ("pairs.parquet", "more.tsv", "sentences.txt"):
        shutil.copy(DATA / "before" / name, folder / name)
    shutil.copytree(DATA / "before" / "datasets", folder / "datasets")
    text = PIPELINE.replace("TEACHER", str(DATA / "teacher"))
    (folder / "pipeline.toml").write_text(text)
    return folder


def run(place, out, *words, pipeline="pipeline.toml"):
    words = ["run", place / pipeline, "--dataroot", place, "--out", out, *words]
    return CliRunner().invoke(main, [str(word) for word in words])


def done(place, out, *words, **settings):
    result = run(place, out, *words, **settings)
    assert result.exit_code == 0, result.output
    return result


def refused(place, out, *words, **settings):
    result = run(place, out, *words, **settings)
    assert result.exit_code == 1, result.output
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("Error: ")
    return lines[-1]


@pytest.fixture(scope="module")
def finished(place):
    """A finished run of the small form, and what the command printed."""
    out = place / "finished"
    return out, done(place, out, "--small").stdout


def test_from_raw_samples_to_a_table(finished):
    out, printed = finished
    assert (out / "cache/images/manifest.json").exists()
    assert (out / "cache/texts/manifest.json").exists()
    assert json.loads((out / "run/run.json").read_text())["steps"] == 4
    scores = json.loads((out / "scores/scores.json").read_text())
    assert f"mean {100 * scores['mean']:.2f} over 1 dataset" in printed
    assert "colors" in printed
    assert printed.split("\n\nwritten:")[0].strip() in (out / "report.md").read_text()


def test_finished_stages_are_not_run_again(place, finished):
    out, printed = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    again = done(place, out, "--small")
    assert again.stderr.count("done already, inputs unchanged") == 3
    assert again.stdout == printed
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.json")} == before


def test_an_interrupted_training_is_resumed(place, finished, tmp_path):
    out = tmp_path / "copy"
    done(place, out)
    lines = (out / "run/log.jsonl").read_text().splitlines()
    weights = (out / "run/image_tower.safetensors").read_bytes()
    newest = sorted((out / "run/checkpoints").glob("0*"))[-1]
    shutil.rmtree(newest)
    (out / "run/run.json").unlink()
    (out / "run/image_tower.safetensors").unlink()

    again = done(place, out)
    assert "1/3 extract: done already" in again.stderr
    assert "resumed after step" in again.stderr
    assert (out / "run/image_tower.safetensors").read_bytes() == weights
    assert len((out / "run/log.jsonl").read_text().splitlines()) == len(lines)


def test_an_interrupted_extraction_is_resumed(place, tmp_path):
    out = tmp_path / "out"
    done(place, out, "--small")
    manifest = (out / "cache/texts/manifest.json").read_bytes()
    shutil.rmtree(out / "cache/texts")
    again = done(place, out, "--small")
    assert "1/3 extract: done already" not in again.stderr
    assert "images: finished already" in again.stderr
    assert (out / "cache/texts/manifest.json").read_bytes() == manifest


def test_a_changed_training_is_refused_by_the_key_that_differs(place, finished):
    out, _printed = finished
    error = refused(place, out, "--small", "--set", "train.lr=0.5")
    assert "lr: 0.5 against 0.0008" in error and "Fix: use another --out" in error


def test_a_changed_dataset_is_scored_again(place, tmp_path):
    out, other = tmp_path / "out", tmp_path / "place"
    shutil.copytree(place, other, ignore=shutil.ignore_patterns("finished"))
    done(other, out, "--small")
    image = next((other / "datasets/colors").rglob("*.png"))
    image.unlink()
    again = done(other, out, "--small")
    assert again.stderr.count("done already") == 2
    assert json.loads((out / "scores/scores.json").read_text())["scores"][0]["images"] == 19


def test_a_dataset_that_cannot_be_scored_ends_the_experiment_with_1(place, finished):
    out, _printed = finished
    (place / "datasets/broken").mkdir(exist_ok=True)
    try:
        for asked in (["colors", "broken"], ["colors", "mnist"]):
            setting = f"eval.datasets={json.dumps(asked)}"
            result = run(place, out, "--small", "--set", setting)
            assert result.exit_code == 1
            assert f"1 of 2 datasets could not be scored: {asked[1]}" in result.stderr
            scores = json.loads((out / "scores/scores.json").read_text())["scores"]
            assert [score["dataset"] for score in scores] == ["colors"]
    finally:
        (place / "datasets/broken").rmdir()
    assert "eval: done already" not in done(place, out, "--small").stderr


def test_a_dry_run_prints_the_plan_and_writes_nothing(place, finished, tmp_path):
    out = tmp_path / "nothing"
    plan = done(place, out, "--dry-run").stdout
    assert not out.exists()
    assert [line.split(":")[0] for line in plan.splitlines() if not line.startswith(" ")] == [
        "1/3 extract",
        "2/3 train",
        "3/3 eval",
    ]
    assert "36 rows" in plan and "12 steps of 8 samples" in plan
    plan = done(place, finished[0], "--small", "--dry-run").stdout
    assert plan.count("done already") == 3


def test_train_takes_the_same_file(place, finished, tmp_path):
    out, _printed = finished
    words = ["train", "--recipe", place / "pipeline.toml", "--small", "--dataroot", place]
    words += ["--image-cache", out / "cache/images", "--text-cache", out / "cache/texts"]
    words += ["--out", tmp_path / "run"]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    weights = "image_tower.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (out / "run" / weights).read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[eval]", "[evaluate]", "unknown table 'evaluate': did you mean 'eval'?"),
        (
            "steps = 12",
            "stepps = 12",
            "[train]: unknown recipe key 'stepps': did you mean 'steps'?",
        ),
        ("teacher =", "techer =", "[extract]: unknown recipe key 'techer'"),
        ("batch_size = 8", 'batch_size = "8"', "[train]: 'batch_size' is '8'; expected"),
        ('root = "datasets"', "root = 3", "[eval]: 'root' is 3; expected"),
        ("[small.train]", "[small.trian]", "unknown table 'small.trian'"),
        ("[extract]\n", "[extract\n", "cannot be read as TOML"),
        ('texts = ["sentences.txt"]', 'texts = ["absent.txt"]', "absent.txt"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(place, tmp_path, old, new, message):
    text = (place / "pipeline.toml").read_text()
    assert old in text
    wrong = place / "wrong.toml"
    wrong.write_text(text.replace(old, new))
    error = refused(place, tmp_path / "out", "--small", pipeline="wrong.toml")
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("trian.steps=3", "unknown key: did you mean 'train'?"),
        ("train.stepps=3", "did you mean 'steps'?"),
        ("train=3", "expected TABLE.KEY=VALUE"),
        ("train.steps", "expected KEY=VALUE"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(place, tmp_path, setting, message):
    assert message in refused(place, tmp_path / "out", "--set", setting)


@pytest.mark.parametrize("spec", ["ViT-B-32/{}", "local-dir:{}", "{}"])
def test_other_weights_in_the_file_that_a_teacher_names_are_noticed(tmp_path, spec):
    place = tmp_path / "open_clip_model.safetensors"
    named = spec.format(tmp_path if spec.startswith("local-dir:") else place)
    digests = []
    for content in (b"first", b"other"):
        place.write_bytes(content)
        digests.append(stages._model_of(named))
    assert digests[0] != digests[1]
