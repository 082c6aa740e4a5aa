"""``dimefm eval elevater``: what is refused, in which words and with which exit code, and what is
listed.
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dimefm.cli import main

MODEL = "ResNet-mini-64/random:0"


def dimefm(*words):
    return CliRunner().invoke(main, ["eval", "elevater", "--device", "cpu", *map(str, words)])


def refusal(*words, code=1):
    """Return the last line of a command that is expected to end with ``code``, without a
    traceback.
    """
    result = dimefm(*words)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    last = result.stderr.rstrip("\n").split("\n")[-1]
    assert last.startswith("Error: "), result.stderr
    return last


@pytest.fixture
def root(tmp_path):
    """One dataset of our own and one that a card claims, a few images each."""
    draw = np.random.default_rng(0)
    for dataset, classes in (("shapes", ("disc", "star")), ("mnist", ("0", "7"))):
        for name in classes:
            folder = tmp_path / "sets" / dataset / "test" / name
            folder.mkdir(parents=True)
            for n in range(3):
                Image.fromarray(draw.integers(0, 256, (28, 28, 3), dtype=np.uint8)).save(
                    folder / f"{n}.png"
                )
    (tmp_path / "sets/shapes/classnames.txt").write_text("disc\nstar\n")
    return tmp_path


def words(root, *more):
    return ["--model", MODEL, "--root", root / "sets", "--out", root / "scores", *more]


def scores(root, *more):
    result = dimefm(*words(root, *more))
    assert result.exit_code == 0, result.output
    return json.loads((root / "scores/scores.json").read_text()), result.stdout


def test_without_names_the_sets_of_the_suite_that_are_here_are_scored_and_the_others_listed(root):
    found, said = scores(root)
    assert [score["dataset"] for score in found["scores"]] == ["mnist"]
    assert len(found["missing"]) == 19
    assert "mnist" not in found["missing"]
    assert not found["is_elevater_average"]
    assert "not here: caltech-101, cifar-10" in said
    assert "not the ELEVATER average" in said
    assert "6 of 10000 test images: split differs" in said


@pytest.mark.parametrize("asked", [("shapes,cifar-10",), ("shapes", "cifar-10")])
def test_a_dataset_that_is_asked_for_and_absent_is_listed_and_the_rest_scored(root, asked):
    result = dimefm(*words(root, "--datasets", *asked))
    assert result.exit_code == 1
    assert "1 of 2 datasets could not be scored: cifar-10 not found in" in result.stderr
    found = json.loads((root / "scores/scores.json").read_text())
    assert [score["dataset"] for score in found["scores"]] == ["shapes"]
    assert found["missing"] == ["cifar-10"]
    assert "not here: cifar-10" in result.stdout
    assert "Not here: cifar-10." in (root / "scores/report.md").read_text()


def test_a_folder_that_is_asked_for_by_name_keeps_its_name(root):
    shutil.move(root / "sets/mnist", root / "sets/MNIST-test_20210101")
    shutil.copytree(root / "sets/MNIST-test_20210101", root / "sets/cifar10")
    for number, name in ((0, "cat"), (7, "dog")):
        (root / f"sets/cifar10/test/{number}").rename(root / f"sets/cifar10/test/{name}")
    found, said = scores(root, "--datasets", "cifar10")
    assert [score["dataset"] for score in found["scores"]] == ["cifar10"]
    assert "split differs" not in said
    assert "prompts and metric of the card cifar-10; 2 of 10 classes; 6 test images" in " ".join(
        said.split()
    )
    found, said = scores(root)
    assert [score["dataset"] for score in found["scores"]] == ["cifar-10"]
    assert "6 of 10000 test images: split differs" in said


def test_a_metric_and_a_decoder_may_be_chosen(root):
    found, said = scores(root, "--datasets", "shapes", "--metric", "mean_per_class")
    assert (found["metric"], found["scores"][0]["metric"]) == ("mean_per_class",) * 2
    assert "which has the metrics of the cards" in " ".join(said.split())
    found, said = scores(root, "--datasets", "mnist", "--metric", "mean_per_class")
    assert "--metric mean_per_class in place of the card's accuracy" in " ".join(said.split())
    scores(root, "--datasets", "shapes", "--decoder", "pil")
    manifests = (root / "scores/features").glob("*/shapes-*-pil/manifest.json")
    assert [json.loads(path.read_text())["how"]["decoder"] for path in manifests] == ["pil"]


def test_tables_fit_into_80_columns(root):
    longest = "a-dataset-whose-name-" + "is-very-long-" * 8
    (root / "sets/shapes").rename(root / "sets" / longest)
    _, said = scores(root, "--datasets", f"{longest},mnist", "--metric", "mean_per_class")
    for line in said.splitlines():
        assert len(line) <= 80 or longest in line or "written:" in line
    assert said.splitlines()[2].startswith("a-dataset-") and "..." in said.splitlines()[2]


def test_names_do_not_reach_the_terminal_or_the_report_as_they_are(root):
    name = "<b>|\x1b[31m`x`"
    (root / "sets/shapes").rename(root / "sets" / name)
    (root / "sets" / name / "classnames.txt").write_text("disc\nstar\x1b[5m\n")
    (root / "sets" / name / "test/star").rename(root / "sets" / name / "test/star\x1b[5m")
    found, said = scores(root, "--datasets", name)
    assert [score["dataset"] for score in found["scores"]] == [name]
    for text in (said, (root / "scores/report.md").read_text()):
        assert "\x1b" not in text and "\\u001b[31m" in text
    report = (root / "scores/report.md").read_text()
    assert "<b>" not in report and "&lt;b&gt;\\|" in report
    assert "\x1b" not in (root / "scores/per_class.csv").read_text()
    assert "\x1b" not in (root / "scores/wrong.jsonl").read_text()


def test_scores_are_one_json_document_also_when_a_dataset_is_absent(root):
    for asked, code in (("shapes", 0), ("shapes,cifar-10", 1)):
        result = dimefm(*words(root, "--datasets", asked, "--json"))
        assert result.exit_code == code
        assert json.loads(result.stdout)["scores"][0]["dataset"] == "shapes"


@pytest.fixture
def spoilt(root):
    """Four more datasets of the suite, none of which can be scored, and what is said of each."""
    sets = root / "sets"
    (sets / "cifar-10/train/cat").mkdir(parents=True)
    shutil.copy(sets / "mnist/test/0/0.png", sets / "cifar-10/train/cat/0.png")
    (sets / "dtd").mkdir()
    (sets / "dtd/test.parquet").write_bytes(b"<html>")
    (sets / "gtsrb/test/0").mkdir(parents=True)
    (sets / "gtsrb/test/0/0.png").write_bytes(b"no image")
    for copy in ("fer2013", "fer-2013_20210816"):
        (sets / copy).mkdir()
    return {
        "cifar-10": "no test split",
        "dtd": "not a readable Parquet file",
        "fer-2013": "is here 2 times",
        "gtsrb": "none of the 1 rows could be used",
    }


def test_a_dataset_that_cannot_be_read_is_listed_as_failed_and_the_others_are_scored(root, spoilt):
    result = dimefm(*words(root))
    assert result.exit_code == 1
    last = result.stderr.rstrip("\n").split("\n")[-1]
    assert last.startswith("Error: 4 of 5 datasets could not be scored: ")
    found = json.loads((root / "scores/scores.json").read_text())
    assert [score["dataset"] for score in found["scores"]] == ["mnist"]
    assert found["mean"] == found["scores"][0]["value"]
    assert (found["is_elevater_average"], found["pending"]) == (False, [])
    failed = {each["dataset"]: each["reason"] for each in found["failed"]}
    assert set(failed) == set(spoilt)
    report = (root / "scores/report.md").read_text()
    for name, reason in spoilt.items():
        assert reason in failed[name]
        assert name in last
        assert f"failed: {name}: {failed[name]}" in result.stdout
        assert f"Failed: {name}: " in report


def test_when_nothing_can_be_scored_each_reason_is_told(root, spoilt):
    line = refusal(*words(root, "--datasets", ",".join(spoilt)))
    assert "none of the 4 datasets here could be scored" in line
    assert all(f"{name}: " in line and reason in line for name, reason in spoilt.items())
    assert not (root / "scores/scores.json").exists()


def test_an_evaluation_that_is_broken_off_leaves_the_scores_that_it_has(root, monkeypatch):
    from dimefm.evaluate import zero_shot

    def once(*rest, found=zero_shot.zero_shot, seen=[]):  # noqa: B006
        seen.append(rest)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return found(*rest)

    monkeypatch.setattr(zero_shot, "zero_shot", once)
    assert dimefm(*words(root, "--datasets", "shapes,mnist")).exit_code == 130
    found = json.loads((root / "scores/scores.json").read_text())
    assert [score["dataset"] for score in found["scores"]] == ["shapes"]
    assert found["pending"] == ["mnist"]
    assert "Still to come: mnist." in (root / "scores/report.md").read_text()


def test_an_unreadable_image_is_left_out_and_told(root):
    (root / "sets/shapes/test/disc/1.png").write_bytes(b"no image")
    found, said = scores(root, "--datasets", "shapes")
    assert (found["scores"][0]["images"], found["scores"][0]["unreadable"]) == (5, 1)
    assert "1 unreadable image" in said


def test_changed_data_are_not_scored_from_old_features(root):
    before, _ = scores(root, "--datasets", "shapes")
    Image.new("RGB", (9, 9)).save(root / "sets/shapes/test/disc/new.png")
    after, _ = scores(root, "--datasets", "shapes")
    assert (before["scores"][0]["images"], after["scores"][0]["images"]) == (6, 7)


def test_changed_templates_are_not_scored_from_old_prompts(root):
    scores(root, "--datasets", "shapes")
    before = set((root / "scores/features").rglob("*.npy"))
    (root / "sets/shapes/templates.txt").write_text("the {}\nmy {}\n")
    found, _ = scores(root, "--datasets", "shapes")
    assert found["scores"][0]["templates"] == 2
    assert len(set((root / "scores/features").rglob("*.npy")) - before) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--datasets", "mnits"), "'mnits' is neither a benchmark nor a folder in"),
        (("--datasets", "mnits"), "did you mean 'mnist'?"),
        (("--datasets", "cifar-10,dtd"), "none of the datasets asked for is here"),
        (("--datasets", ","), "none of the datasets asked for is here"),
        (("--layout", "tarball"), "unknown layout 'tarball'"),
        (
            ("--datasets", "shapes", "--layout", "parquet"),
            "shapes: no test split in layout parquet",
        ),
        (("--root", "nowhere"), "nowhere: there is no such folder"),
        (("--model", "ResNet-mini-64"), "an architecture without weights"),
        (("--model", "ResNet-mini-46/random:0"), "did you mean 'ResNet-mini-64'?"),
        (("--model", "runs/none"), "unknown architecture 'runs'"),
        (("--device", "cuda:99"), "--device cuda:99: this machine has"),
    ],
)
def test_refused_in_one_line(root, more, message):
    assert message in refusal(*words(root, *more))
    assert not (root / "scores/scores.json").exists()


def test_folders_without_a_card_are_named(root):
    for name in ("mine", ".git", "__MACOSX"):
        (root / f"sets/{name}").mkdir()
    result = dimefm(*words(root))
    assert result.exit_code == 0
    assert "not scored, without a card: mine, shapes (--datasets" in result.stderr
    shutil.rmtree(root / "sets/mnist")
    assert "its folders have no card (mine, shapes). Fix: name those" in refusal(*words(root))


def test_an_empty_root_is_refused(root):
    shutil.rmtree(root / "sets/mnist")
    assert "none of the datasets" in refusal(*words(root))


def test_class_folders_name_their_classes(root):
    shapes = root / "sets/shapes"
    by_list, _ = scores(root, "--datasets", "shapes")
    (shapes / "classnames.txt").unlink()
    by_folders, said = scores(root, "--datasets", "shapes")
    assert by_folders["scores"][0]["value"] == by_list["scores"][0]["value"]
    assert "class names are those of the folders" in said


def test_a_folder_without_class_names_is_refused(root):
    shutil.rmtree(root / "sets/shapes")
    (root / "sets/shapes").mkdir()
    line = refusal(*words(root, "--datasets", "shapes"))
    assert "there is no classnames.txt" in line


def test_a_class_that_the_names_do_not_hold_is_refused(root):
    (root / "sets/shapes/classnames.txt").write_text("disc\nmoon\n")
    assert "star" in refusal(*words(root, "--datasets", "shapes"))


def test_an_out_that_cannot_be_written_is_refused(root):
    (root / "file").write_text("not a folder")
    assert "cannot be written" in refusal(
        *words(root, "--datasets", "shapes", "--out", root / "file/scores")
    )


@pytest.mark.parametrize("more", [("--precision", "fp8"), ("--batch-size", 0), ("--modle", "x")])
def test_bad_usage_ends_with_2(root, more):
    assert more[0] in refusal(*words(root, *more), code=2)


def test_a_missing_model_is_bad_usage(root):
    assert "--model" in refusal("--root", root, "--out", root / "scores", code=2)


@pytest.mark.slow
def test_names_are_the_same_in_a_locale_without_letters_beyond_ascii(root):
    (root / "sets/shapes").rename(root / "sets/Größe")
    (root / "sets/Größe/classnames.txt").unlink()
    (root / "sets/Größe/test/disc").rename(root / "sets/Größe/test/Scheibe_ä")
    by_this_locale, _ = scores(root, "--datasets", "Größe")
    command = [sys.executable, "-m", "dimefm", "eval", "elevater", "--device", "cpu"]
    command += [str(word) for word in words(root, "--datasets", "Größe")]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, env={**os.environ, **ascii_only}, capture_output=True)
    assert done.returncode == 0, done.stderr
    again = json.loads((root / "scores/scores.json").read_text(encoding="utf-8"))
    assert again["scores"] == by_this_locale["scores"]
    assert "Größe,Scheibe ä," in (root / "scores/per_class.csv").read_text(encoding="utf-8")
