"""``dimefm eval elevater`` with tasks: results, files, and what is refused in one line."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dimefm.cli import main
from dimefm.evaluate.kept_predictions import read
from dimefm.evaluate.metrics import METRICS
from dimefm.evaluate.probe.protocols import DEFAULT, PROTOCOLS
from dimefm.recipe.schema.evaluation import Eval

MODEL = "ResNet-mini-64/random:0"
COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


def dimefm(*words):
    return CliRunner().invoke(main, ["eval", "elevater", "--device", "cpu", *map(str, words)])


def paint(folder, color, count, draw):
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.clip(draw.normal(color, 40, size=(16, 16, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two datasets of three colors, whose train split has an image that cannot be read, and one
    without a train split.
    """
    root = tmp_path_factory.mktemp("sets")
    draw = np.random.default_rng(0)
    for dataset in ("colors", "paints"):
        for name, color in COLORS.items():
            paint(root / dataset / "train" / name, color, 6, draw)
            paint(root / dataset / "test" / name, color, 4, draw)
    (root / "colors/train/red/0.png").write_bytes(b"no image")
    shutil.copytree(root / "paints/test", root / "plain/test")
    return root


def words(sets, out, *more):
    return ["--model", MODEL, "--root", sets, "--out", out, *more]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_task_has_a_result_and_predictions_that_give_its_score(sets, tmp_path, protocol):
    tasks = ("--zero-shot", "--linear-probe", "--few-shot", "2,4", "--seeds", "0,5")
    tasks = (*tasks, "--protocol", protocol)
    result = dimefm(*words(sets, tmp_path, "--datasets", "colors,paints", *tasks))
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "scores.json").read_text())
    names = ["zero-shot", "linear probe, 2-shot", "linear probe, 4-shot", "linear probe"]
    results = content["results"]
    assert [entry["task"] for entry in results] == 2 * names
    assert [entry["dataset"] for entry in results] == 4 * ["colors"] + 4 * ["paints"]
    assert content["settings"]["seeds"] == [0, 5]
    assert list(content["summary"]) == [f"{name}, mean of 2" for name in names]
    assert (tmp_path / "per_class.csv").read_text().count("colors") == 3

    files = [read(path) for path in (tmp_path / "predictions").iterdir()]
    kept = {(one.dataset, one.task): one for one in files}
    assert len(kept) == 8
    for entry in results:
        predictions = kept[entry["dataset"], entry["task"]]
        values = [METRICS["accuracy"](p, predictions.labels) for p in predictions.probabilities]
        assert np.mean(values) == pytest.approx(entry["metrics"]["accuracy"])
        np.testing.assert_allclose(predictions.probabilities.sum(axis=2), 1, atol=1e-5)
        assert predictions.probabilities.dtype == np.float32
        assert sorted(predictions.classes) == sorted(COLORS)
        for key, label in zip(predictions.keys, predictions.labels, strict=True):
            assert predictions.classes[label] in key
    for entry in results:
        is_few_shot = "shot" in entry["task"] and entry["task"] != "zero-shot"
        seeds = entry["details"].get("seeds", [])
        assert [one["seed"] for one in seeds] == ([0, 5] if is_few_shot else [0])[: len(seeds)]
        if entry["task"] != "zero-shot":
            unreadable = 1 if entry["dataset"] == "colors" else 0
            assert entry["details"]["unreadable_train_images"] == unreadable
            assert entry["metrics"]["accuracy"] > 0.8
            assert ("accuracy, last epoch" in entry["metrics"]) == (protocol == "elevater")
            assert all(one["protocol"] == protocol for one in seeds)
            interval = entry["details"]["interval"]
            assert interval["over"] == ("seeds" if is_few_shot else "test images")
            assert interval["low"] <= interval["value"] <= interval["high"]
    few = kept["paints", "linear probe, 2-shot"]
    assert few.shots == 2
    assert few.seeds.tolist() == [0, 5]
    n_parameters = few.trainable_parameters[0]
    assert n_parameters > 3 and few.trainable_parameters.tolist() == [n_parameters] * 2


def test_fine_tuning_has_a_result_for_all_images_and_for_each_shot(sets, tmp_path):
    asked = ("--few-shot", "4", "--fine-tune", "--fine-tune-epochs", "1", "--tower-rate", "0.2")
    result = dimefm(*words(sets, tmp_path, "--datasets", "colors", *asked, "--seeds", "0,1"))
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "scores.json").read_text())
    tasks = ["linear probe, 4-shot", "fine-tuning, 4-shot", "fine-tuning"]
    assert [entry["task"] for entry in content["results"]] == tasks
    for entry in content["results"][1:]:
        assert entry["metrics"]["accuracy"] > 0.8
        for one in entry["details"]["seeds"]:
            assert one["protocol"] == "fine-tuning"
            assert one["epochs_tried"] == 1
            assert one["tower_learning_rate"] == pytest.approx(0.2 * one["learning_rate"])
            assert one["trainable_parameters"] > 100_000
    table = (tmp_path / "report.md").read_text()
    [line] = [line for line in table.splitlines() if "fine-tuning, 4-shot |" in line]
    spread = content["results"][1]["details"]["interval"]["deviation"]
    assert f"± {100 * spread:.2f} |" in line
    [line] = [line for line in table.splitlines() if "fine-tuning |" in line]
    assert "±" not in line
    assert "±: standard deviation over the seeds" in table


def test_one_shot_splits_off_a_second_image(sets, tmp_path):
    asked = ("--few-shot", "1", "--protocol", "elevater")
    result = dimefm(*words(sets, tmp_path, "--datasets", "paints", *asked))
    assert result.exit_code == 0, result.output
    [entry] = json.loads((tmp_path / "scores.json").read_text())["results"]
    assert entry["task"] == "linear probe, 1-shot"
    assert [one["train_images"] for one in entry["details"]["seeds"]] == [3, 3, 3]


def test_without_a_train_split_zero_shot_is_scored_and_the_probes_are_listed(sets, tmp_path):
    asked = ("--datasets", "plain", "--zero-shot", "--few-shot", "2", "--linear-probe")
    result = dimefm(*words(sets, tmp_path, *asked))
    assert result.exit_code == 1
    assert "1 of 1 datasets could not be scored: plain" in result.stderr
    content = json.loads((tmp_path / "scores.json").read_text())
    assert [entry["task"] for entry in content["results"]] == ["zero-shot"]
    [failure] = content["failed"]
    assert failure["dataset"] == "plain"
    assert failure["reason"].startswith("linear probe, 2-shot, linear probe: ")
    assert "no train split" in failure["reason"]


def test_without_tasks_and_with_zero_shot_alone_the_file_is_that_of_zero_shot(sets, tmp_path):
    contents = []
    for number, tasks in enumerate(([], ["--zero-shot"])):
        out = tmp_path / str(number)
        result = dimefm(*words(sets, out, "--datasets", "paints", *tasks))
        assert result.exit_code == 0, result.output
        content = json.loads((out / "scores.json").read_text())
        assert "by" in content and "results" not in content
        del content["seconds"], content["encoder"]  # speeds differ from call to call
        contents.append(content)
        kept = read(out / "predictions/paints-zero-shot.npz")
        assert (kept.shots, kept.trainable_parameters.tolist()) == (0, [0])
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("options", "words_of_error"),
    [
        (["--few-shot", "5,x"], "'few_shot' is '5,x'; expected numbers above 0"),
        (["--few-shot", "0"], "'few_shot' is '0'; expected numbers above 0"),
        (["--few-shot", "2", "--seeds", "-1"], "'seeds' is '-1'; expected numbers of at least 0"),
        (["--linear-probe", "--by", "tokens"], "--by tokens compares images with prompts"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(sets, tmp_path, options, words_of_error):
    result = dimefm(*words(sets, tmp_path, "--datasets", "paints", *options))
    assert result.exit_code != 0
    [line] = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert words_of_error in line


def test_the_protocols_of_the_schema_are_those_that_exist():
    key = Eval.schema_keys()["protocol"]
    assert set(key.choices) == set(PROTOCOLS)
    assert key.default == DEFAULT


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_val_split_is_used_by_all_protocols_but_the_toolkit(sets, tmp_path, protocol):
    root = tmp_path / "sets"
    shutil.copytree(sets / "paints", root / "paints")
    shutil.copytree(root / "paints/test", root / "paints/val")
    out = tmp_path / "out"
    result = dimefm(
        *words(root, out, "--datasets", "paints", "--linear-probe"), "--protocol", protocol
    )
    assert result.exit_code == 0, result.output
    [entry] = json.loads((out / "scores.json").read_text())["results"]
    source = entry["details"]["seeds"][0].get("validation_source")
    assert source == (None if protocol == "elevater" else "val split of the dataset")
