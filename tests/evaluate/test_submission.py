"""The submission file: its form, the server's checks, the order of images and classes, seeds."""

import json
import math
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from dimefm.cache.manifest import EncoderCard
from dimefm.cli import main
from dimefm.errors import DataError
from dimefm.evaluate.benchmark import load
from dimefm.evaluate.kept_predictions import KeptPredictions, keep
from dimefm.evaluate.submission import MEMBER, check, entry_of, parameter_efficiency
from tests.evaluate.datasets import write

KITTI = load("kitti-distance")
MEMES = load("hateful-memes")
SIZES = {"image_parameters": 3000, "text_parameters": 2000, "dim": 16}


def kept(card, *, seeds=(0,), task="zero-shot", shots=0, missing=(), order=None, draw=0):
    """Return predictions of all test images of a card but ``missing`` ones."""
    rng = np.random.default_rng(draw)
    n_classes = len(card.classes)
    whole = rng.dirichlet(np.ones(n_classes), (len(seeds), card.test)).astype(np.float32)
    labels = np.arange(card.test) % n_classes
    places = np.arange(card.test) if order is None else np.asarray(order)
    readable = np.array([row for row in range(card.test) if row not in missing])
    return KeptPredictions(
        dataset=card.name,
        task=task,
        metric=card.metric,
        shots=shots,
        seeds=np.array(seeds),
        trainable_parameters=np.full(len(seeds), 68 if shots else 0),
        classes=list(card.classes),
        probabilities=whole[:, places][:, readable],
        labels=labels[places][readable],
        keys=[f"there/{place:04}.png" for place in places[readable]],
        sources=["test"] * len(readable),
        readable=readable,
        images=card.test,
    )


def folder_of(path, *predictions, weights="ab" * 32):
    """Write a folder as ``eval elevater`` does."""
    path.mkdir(parents=True, exist_ok=True)
    scores = {"model": "runs/first", "encoder": SIZES, **SIZES, "scores": []}
    (path / "scores.json").write_text(json.dumps(scores))
    for prediction in predictions:
        keep(path, prediction, EncoderCard("runs/first", weights, 16, 100.0))
    return path


def submit(tmp_path, *words):
    words = ["eval", "submission", *words, "--out", tmp_path / "all.zip"]
    return CliRunner().invoke(main, [str(word) for word in words])


def written(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert archive.namelist() == [MEMBER] == ["all_predictions.json"]
        return json.loads(archive.read(MEMBER))["data"]


def test_a_submission_has_the_form_of_the_toolkit(tmp_path):
    folder = folder_of(tmp_path / "scores", kept(MEMES), kept(KITTI))
    done = submit(tmp_path, folder, "--files", tmp_path / "files")
    assert done.exit_code == 0, done.output
    memes, kitti = written(tmp_path)
    predictions = kitti.pop("predictions")
    assert kitti == {
        "model_name": "first",
        "dataset_name": "kitti-distance",
        "num_trainable_params": 0.0,
        "num_params": 5000,
        "num_visual_params": 3000,
        "num_backbone_params": 5000,
        "n_shot": 0,
        "rnd_seeds": [0],
    }
    assert np.shape(predictions) == (1, 711, 4)
    assert np.shape(memes["predictions"]) == (1, 500, 2)
    np.testing.assert_allclose(predictions, kept(KITTI).probabilities, atol=5e-7)
    assert all(round(value, 6) == value for row in predictions[0] for value in row)
    one = json.loads((tmp_path / "files/kitti-distance.json").read_text())
    assert one == {**kitti, "predictions": predictions}
    said = " ".join(done.stdout.split())
    assert "mean over 2 of 20 datasets" in said
    assert "missing, so the server gives no average: caltech-101" in said
    assert "order cannot be proved" in said
    assert max(map(len, done.stdout.split("\nwritten:")[0].splitlines())) <= 80


def test_seeds_of_one_or_several_folders_are_merged(tmp_path):
    probe = {"task": "linear probe, 5-shot", "shots": 5}
    first = folder_of(tmp_path / "a", kept(KITTI, seeds=(0, 1), **probe), kept(KITTI))
    second = folder_of(tmp_path / "b", kept(KITTI, seeds=(2,), draw=1, **probe))
    done = submit(tmp_path, first, second, "--task", probe["task"])
    assert done.exit_code == 0, done.output
    [entry] = written(tmp_path)
    assert (entry["rnd_seeds"], entry["n_shot"]) == ([0, 1, 2], 5)
    assert np.shape(entry["predictions"]) == (3, 711, 4)
    assert entry["num_trainable_params"] == 68
    assert entry["num_params"] == 5000 + round(16 * 57.55)


def test_the_result_is_one_document(tmp_path):
    done = submit(tmp_path, folder_of(tmp_path / "scores", kept(KITTI)), "--json")
    facts = json.loads(done.stdout)
    assert facts["mean"] == facts["parameter_efficiency"] == facts["datasets"][0]["value"]
    assert len(facts["missing"]) == 19


@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_images_are_put_into_the_official_order_by_name(tmp_path, ending):
    order = np.random.default_rng(3).permutation(711)
    folder = folder_of(tmp_path / "scores", kept(KITTI, order=order))
    lines = [f"test.zip@images/{row:04}{ending} 0\n" for row in range(711)]
    write(tmp_path / "index/kitti-distance/test.txt", "".join(lines))
    done = submit(tmp_path, folder, "--index", tmp_path / "index")
    assert done.exit_code == 0, done.output
    assert "cannot be proved" not in done.stdout
    [entry] = written(tmp_path)
    np.testing.assert_allclose(entry["predictions"], kept(KITTI).probabilities, atol=5e-7)


def test_images_named_as_in_the_official_index_are_in_its_order():
    keys = [f"test.zip@{row:04}.png" for row in range(711)]
    assert entry_of([replace(kept(KITTI), keys=keys)], None).order == "official"
    assert entry_of([kept(KITTI)], None).order == "unproven"


def test_classes_are_put_into_the_order_of_the_card():
    backwards = replace(
        kept(KITTI),
        classes=list(KITTI.classes[::-1]),
        probabilities=kept(KITTI).probabilities[:, :, ::-1],
    )
    np.testing.assert_array_equal(
        entry_of([backwards], None).probabilities, entry_of([kept(KITTI)], None).probabilities
    )


def test_unreadable_images_have_equal_probabilities_and_are_counted(tmp_path):
    folder = folder_of(tmp_path / "scores", kept(KITTI, missing=(3, 5)))
    done = submit(tmp_path, folder)
    [entry] = written(tmp_path)
    predictions = np.array(entry["predictions"][0])
    assert predictions[[3, 5]].tolist() == [[0.25] * 4] * 2
    np.testing.assert_allclose(predictions[4], kept(KITTI).probabilities[0, 4], atol=5e-7)
    assert "2 unreadable images have equal probabilities" in done.stdout


def logits(found):
    return replace(found, probabilities=found.probabilities * 3)


def sums(found):
    return replace(found, probabilities=found.probabilities / 2)


def negative(found):
    probabilities = found.probabilities.copy()
    probabilities[0, 7, :2] = (-0.5, 1)
    return replace(found, probabilities=probabilities)


def fewer_images(found):
    return replace(found, images=found.images - 1)


def other_classes(found):
    return replace(found, classes=["a", "b", "c", "d"])


def fewer_classes(found):
    return replace(found, classes=found.classes[:3], probabilities=found.probabilities[:, :, :3])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (logits, "expected 0 to 1"),
        (sums, "image 0: its probabilities add up to 0.5000, expected 1"),
        (negative, "predictions from -0.5"),
        (fewer_images, "predictions of 710 test images, and the server expects 711"),
        (other_classes, "4 class names are not among the 4 known"),
        (fewer_classes, "predictions of 3 classes, expected 4"),
    ],
)
def test_what_the_server_would_refuse_is_refused_here(tmp_path, change, words):
    labels = kept(KITTI).labels % 3
    folder = folder_of(tmp_path / "scores", change(replace(kept(KITTI), labels=labels)))
    done = submit(tmp_path, folder)
    assert done.exit_code == 1
    last = done.stderr.rstrip("\n").split("\n")[-1]
    assert words in last and last.startswith("Error: ") and len(last) <= 507
    assert not (tmp_path / "all.zip").exists()


def test_probabilities_must_be_finite():
    probabilities = np.full((1, 711, 4), 0.25)
    check(probabilities, KITTI)
    probabilities[0, 3, 1] = np.nan
    with pytest.raises(DataError, match="not finite"):
        check(probabilities, KITTI)
    with pytest.raises(DataError, match="of the shape"):
        check(probabilities[:, :5], KITTI)


def test_several_labels_need_not_add_up_to_1():
    voc = load("voc-2007-classification")
    check(np.full((1, 4952, 20), 0.9), voc)


def test_folders_that_do_not_fit_are_one_line(tmp_path):
    probe = {"task": "linear probe", "shots": -1}
    both = folder_of(tmp_path / "both", kept(KITTI), kept(KITTI, **probe))
    own = folder_of(tmp_path / "own", replace(kept(KITTI), dataset="holiday"))
    (tmp_path / "empty").mkdir()
    without_size = folder_of(tmp_path / "size", kept(KITTI))
    (without_size / "scores.json").write_text("{}")
    (tmp_path / "broken/predictions").mkdir(parents=True)
    (tmp_path / "broken/predictions/x.npz").write_bytes(b"PK\x03\x04 and no more")
    for words, expected in (
        ((both,), "predictions of 2 tasks (linear probe, zero-shot)"),
        ((both, "--task", "zeroshot"), "no predictions of 'zeroshot'"),
        ((both, both, "--task", "zero-shot"), "seeds 0, 0 are not all different"),
        ((own,), "no predictions of ELEVATER's datasets, found holiday"),
        ((tmp_path / "empty",), "no predictions/*.npz"),
        ((without_size,), "does not say how large the model is"),
        ((tmp_path / "broken",), "cannot be read as predictions"),
    ):
        done = submit(tmp_path, *words)
        assert done.exit_code == 1, words
        assert expected in done.stderr.rstrip("\n").split("\n")[-1]
        assert "Traceback" not in done.output
    assert not (tmp_path / "all.zip").exists()


def test_datasets_may_be_named(tmp_path):
    folder = folder_of(tmp_path / "scores", kept(KITTI), fewer_images(kept(MEMES)))
    assert submit(tmp_path, folder).exit_code == 1
    assert submit(tmp_path, folder, "--datasets", "kitti-distance").exit_code == 0
    assert [entry["dataset_name"] for entry in written(tmp_path)] == ["kitti-distance"]
    done = submit(tmp_path, folder, "--datasets", "kitti-distance", "dtd")
    assert "no predictions of dtd. Fix:" in done.stderr


def test_one_model_is_submitted(tmp_path):
    first = folder_of(tmp_path / "a", kept(KITTI))
    second = folder_of(tmp_path / "b", kept(MEMES), weights="cd" * 32)
    done = submit(tmp_path, first, second)
    assert done.exit_code == 1
    assert "Fix: give folders of one model and protocol" in done.stderr


def test_names_that_the_index_lacks_are_refused(tmp_path):
    folder = folder_of(tmp_path / "scores", kept(KITTI))
    lines = [f"test.zip@images/x{row:04}.png 0\n" for row in range(711)]
    write(tmp_path / "index/kitti-distance/test.txt", "".join(lines))
    done = submit(tmp_path, folder, "--index", tmp_path / "index")
    assert "711 of 711 images have no name of the official index" in done.stderr
    write(tmp_path / "index/kitti-distance/test.txt", "".join(lines[:5]))
    done = submit(tmp_path, folder, "--index", tmp_path / "index")
    assert "the index lists 5 images, expected 711" in done.stderr


@pytest.mark.parametrize(("trainable", "factor"), [(0, 1.0), (9e8, math.exp(-1)), (1e8, 0.74004)])
def test_parameter_efficiency(trainable, factor):
    assert parameter_efficiency(0.5, trainable) == pytest.approx(0.5 * factor, abs=1e-5)
