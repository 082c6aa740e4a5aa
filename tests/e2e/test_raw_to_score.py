"""From raw images and sentences to scores, all through the command line, on a tiny real encoder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dimefm.cache import FeatureCache
from dimefm.cli import main

ROOT = Path(__file__).parents[2]
TSV = next(
    path
    for path in (ROOT / "tests/golden/tsv_example", ROOT / "../shared/golden/tsv_example")
    if path.is_dir()
)
COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 200, 30),
    "blue": (20, 40, 230),
    "white": (245, 245, 245),
}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
TEACHER = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": TEXT,
}
STUDENT = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
}
SCRATCH = "pipelines/clip_from_scratch.toml"


def dimefm(*words):
    """Run the command line in this process; return its output, and fail with it when it did not end
    well.
    """
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, f"{' '.join(map(str, words))}\n{result.output}"
    return result.output


def square(path, colour, seed):
    """Write a noisy square of a colour on gray; each seed is another place and size."""
    draw = np.random.default_rng(seed)
    pixels = np.full((40, 40, 3), 120.0)
    size, left, top = draw.integers(22, 32), *draw.integers(0, 8, 2)
    pixels[top : top + size, left : left + size] = colour
    pixels = (pixels + draw.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def raw(root):
    """Write what a user would bring: images with captions, loose sentences, and a labelled test
    set.
    """
    captions = []
    for seed in range(32):
        name = list(COLOURS)[seed % 4]
        square(root / f"photos/{seed:02d}.png", COLOURS[name], seed)
        captions.append(f"photos/{seed:02d}.png,a {name} square on gray\n")
    (root / "pairs.csv").write_text("filepath,title\n" + "".join(captions))
    forms = (
        "a photo of a {} square",
        "{} paper",
        "something {}",
        "a {} box",
        "the {} door of a house",
    )
    (root / "sentences.txt").write_text(
        "".join(form.format(name) + "\n" for form in forms for name in COLOURS)
    )
    for seed in range(40):
        name = list(COLOURS)[seed % 4]
        square(root / f"sets/squares/test/{name} square/{seed}.png", COLOURS[name], 1000 + seed)
    (root / "sets/squares/classnames.txt").write_text(
        "".join(f"{name} square\n" for name in COLOURS)
    )
    (root / "sets/squares/templates.txt").write_text("a {} on gray\na photo of a {}\n")
    (root / "teacher.json").write_text(json.dumps(TEACHER))
    (root / "student.json").write_text(json.dumps(STUDENT))


def main_job(root, monkeypatch):
    """Run the four commands inside ``root``, with relative paths; return what each printed."""
    root.mkdir()
    raw(root)
    monkeypatch.chdir(root)
    scratch = ROOT / SCRATCH
    said = [
        dimefm(
            "train",
            "--recipe",
            scratch,
            "--images",
            "pairs.csv",
            "--captions",
            "text",
            "--student",
            "teacher.json",
            "--steps",
            60,
            "--batch-size",
            16,
            "--warmup",
            2,
            "--log-every",
            5,
            "--device",
            "cpu",
            "--out",
            "teacher",
        ),
        dimefm(
            "extract-features",
            "--teacher",
            "teacher",
            "--images",
            "photos",
            "--texts",
            "sentences.txt",
            "--device",
            "cpu",
            "--out",
            "cache",
        ),
        dimefm(
            "train",
            "--images",
            "photos",
            "--image-cache",
            "cache/images",
            "--text-cache",
            "cache/texts",
            "--student",
            "student.json",
            "--use-pvl-loss",
            "--steps",
            60,
            "--batch-size",
            16,
            "--lr",
            "3e-3",
            "--warmup",
            2,
            "--log-every",
            5,
            "--crops",
            "center",
            "--device",
            "cpu",
            "--out",
            "student",
        ),
        dimefm(
            "eval",
            "elevater",
            "--model",
            "student",
            "--root",
            "sets",
            "--datasets",
            "squares",
            "--device",
            "cpu",
            "--out",
            "scores",
        ),
    ]
    return said


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The main job, done once; (folder, outputs)."""
    root = tmp_path_factory.mktemp("e2e") / "one"
    with pytest.MonkeyPatch.context() as patch:
        return root, main_job(root, patch)


def log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_both_losses_fall(done):
    root, _ = done
    for run in ("teacher", "student"):
        losses = [line["total"] for line in log(root / run)]
        assert len(losses) == 12
        assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3]), run


def test_the_cache_holds_every_row_in_order(done):
    root, said = done
    images, texts = FeatureCache(root / "cache/images"), FeatureCache(root / "cache/texts")
    assert (len(images), len(texts)) == (32, 20)
    assert images.manifest.encoder == texts.manifest.encoder
    assert images.manifest.encoder.name == "teacher"
    keys, rows = images.read(images.manifest.shards[0])
    assert keys == [f"{n:02d}.png" for n in range(32)]
    np.testing.assert_allclose(np.linalg.norm(rows.astype(np.float32), axis=1), 1, atol=2e-3)
    assert "32 rows in = 32 rows out + 0 quarantined" in said[1]


def test_the_run_says_what_it_was_made_of(done):
    root, _ = done
    record = json.loads((root / "student/run.json").read_text())
    manifest = FeatureCache(root / "cache/images").manifest
    assert record["kind"] == "image-tower"
    assert record["teacher"]["weights_sha256"] == manifest.encoder.weights_sha256
    assert record["image_cache"] == [manifest.fingerprint]
    assert (
        record["parameters"]
        < json.loads((root / "teacher/run.json").read_text())["image_parameters"] / 3
    )


def test_the_scores_are_written_and_far_above_chance(done):
    root, said = done
    scores = json.loads((root / "scores/scores.json").read_text())
    (score,) = scores["scores"]
    assert (score["dataset"], score["metric"], score["images"], score["classes"]) == (
        "squares",
        "accuracy",
        40,
        4,
    )
    assert (score["templates"], score["chance"], score["unreadable"]) == (2, 0.25, 0)
    assert score["value"] == scores["mean"] > 0.5
    assert scores["model"] == "student"
    assert not scores["is_elevater_average"]
    assert f"{100 * score['value']:.2f}" in said[3]
    report = (root / "scores/report.md").read_text()
    assert "| squares | accuracy |" in report
    assert scores["weights_sha256"][:12] in report


def test_a_second_evaluation_reads_the_features_back(done, monkeypatch):
    root, _ = done
    monkeypatch.chdir(root)
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in (root / "scores/features").rglob("*.*")
    }
    first = json.loads((root / "scores/scores.json").read_text())
    dimefm(
        "eval",
        "elevater",
        "--model",
        "student",
        "--root",
        "sets",
        "--datasets",
        "squares",
        "--device",
        "cpu",
        "--out",
        "scores",
    )
    after = {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in (root / "scores/features").rglob("*.*")
    }
    assert before == after
    assert {path.suffix for path in before} >= {".h5", ".json", ".npy"}
    second = json.loads((root / "scores/scores.json").read_text())
    assert second["seconds"] != first["seconds"]
    for content in (first, second):
        del content["seconds"]
        del content["encoder"]  # it has the speed of this call
    assert second == first


def test_the_same_commands_give_the_same_bytes(done, tmp_path, monkeypatch):
    root, _ = done
    again = tmp_path / "two"
    main_job(again, monkeypatch)
    files = {path.relative_to(root) for path in root.rglob("*") if path.is_file()}
    assert files == {path.relative_to(again) for path in again.rglob("*") if path.is_file()}
    timed = {Path("teacher/log.jsonl"), Path("student/log.jsonl"), Path("scores/scores.json")}
    different = {
        file for file in files if (root / file).read_bytes() != (again / file).read_bytes()
    }
    assert different <= timed
    assert {file.suffix for file in files} >= {".safetensors", ".h5", ".json"}


def test_extraction_goes_on_where_it_ended(done, monkeypatch):
    root, _ = done
    monkeypatch.chdir(root)
    said = dimefm(
        "extract-features",
        "--teacher",
        "teacher",
        "--images",
        "photos",
        "--device",
        "cpu",
        "--out",
        "cache",
    )
    assert "finished already, 32 rows; nothing to do" in said


@pytest.fixture
def released(tmp_path):
    """DIME-FM's own files, copied, and a small student."""
    shutil.copytree(TSV, tmp_path / "data")
    student = {
        "embed_dim": 8,
        "vision_cfg": {
            "image_size": 64,
            "layers": 1,
            "width": 16,
            "head_width": 8,
            "patch_size": 16,
        },
    }
    (tmp_path / "tiny.json").write_text(json.dumps(student))
    return tmp_path


def lists(root, *words, out="run"):
    """Return DIME-FM's command in our spelling, for three steps."""
    return [
        "train",
        "--dataroot",
        str(root / "data"),
        "--tsv-file-list",
        "image.list",
        "image_feat.list",
        "text.list",
        "text_feat.list",
        "--batch-size",
        "4",
        "--use-pvl-loss",
        "--student",
        str(root / "tiny.json"),
        "--steps",
        "3",
        "--device",
        "cpu",
        "--out",
        str(root / out),
        *words,
    ]


def test_dime_fms_own_form_trains_on_its_own_files(released):
    dimefm(*lists(released))
    record = json.loads((released / "run/run.json").read_text())
    assert (record["rows"], record["teacher"]["dim"], record["teacher"]["logit_scale"]) == (
        7,
        768,
        100.0,
    )
    assert record["preprocess_cfg"]["size"] == 64
    line = log(released / "run")[-1]
    assert line["step"] == 3
    assert line["total"] == pytest.approx(0.7 * line["dime.vl"] + 0.3 * line["dime.pvl"], rel=1e-4)
    adopted = FeatureCache(next((released / "run/adopted").glob("images-*")))
    assert (len(adopted), adopted.dim) == (7, 768)


def test_dime_fms_own_form_refuses_features_of_other_rows(released):
    for name in ("image_00.tsv", "image_00.lineidx"):
        shutil.copy(released / "data/bad" / name, released / "data/GCC-3M/tsv" / name)
    for name in ("image_00.feat.tsv", "image_00.feat.lineidx"):
        shutil.copy(
            released / "data/bad" / name, released / "data/GCC-3M/vit_l_14_post_proj" / name
        )
    result = CliRunner().invoke(main, lists(released))
    assert result.exit_code == 1
    assert "the two are not the same rows" in result.output.replace("\n", " ")
    assert not (released / "run/run.json").exists()


def test_a_run_whose_teacher_nobody_knows_asks_for_it_when_it_is_evaluated(released):
    dimefm(*lists(released))
    (released / "sets").mkdir()
    words = [
        "eval",
        "elevater",
        "--model",
        str(released / "run"),
        "--root",
        str(released / "sets"),
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(main, [*words, "--out", str(released / "scores")])
    assert result.exit_code == 1
    assert "--text-model" in result.output
