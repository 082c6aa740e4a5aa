"""What an evaluation keeps is checked before it is used, and made again when it is damaged."""

import errno
import io
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from dimefm.cache.plan import write_lock
from dimefm.errors import DataError
from dimefm.evaluate import zero_shot
from dimefm.evaluate.features import prompt_weights
from dimefm.extract.stages.base import Settings
from dimefm.models.loading import load_encoder
from dimefm.storage.files import write_text
from dimefm.storage.npy import array_of
from dimefm.storage.stores import Store
from tests.evaluate.datasets import image, write

SETTINGS = Settings(dtype="float32", batch_size=7, progress=False)


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("ResNet-mini-64/random:0", "cpu")


@pytest.fixture
def root(tmp_path):
    for number in range(4):
        name = ("cat", "dog")[number % 2]
        write(tmp_path / f"sets/trip/test/{name}/{number}.png", image(60 * number))
    return tmp_path


def score(encoder, root, **options):
    zero_shot.elevater(encoder, root / "sets", root / "scores", ["trip"], **options)
    return json.loads((root / "scores/scores.json").read_text())["scores"][0]


def flipped(data, place):
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


def saved(weights):
    file = io.BytesIO()
    np.save(file, weights)
    return file.getvalue()


DAMAGED_PROMPTS = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "one-bit": lambda data: flipped(data, 400),
    "nan": lambda data: saved(np.full_like(array_of(data)[0], np.nan)),
    "all-zero": lambda data: saved(np.zeros_like(array_of(data)[0])),
    "other-shape": lambda data: saved(array_of(data)[0][:1]),
    "other-type": lambda data: saved(array_of(data)[0].astype(np.float64)),
    "text": lambda data: b"<html>",
}


@pytest.mark.parametrize("kind", DAMAGED_PROMPTS)
def test_damaged_prompts_are_encoded_again(encoder, root, kind):
    first = score(encoder, root)
    [path] = (root / "scores/features").glob("*/prompts-*.npy")
    good = path.read_bytes()
    path.write_bytes(DAMAGED_PROMPTS[kind](good))
    assert score(encoder, root) == first
    assert path.read_bytes() == good
    assert not list(path.parent.glob("*.part"))


def test_prompts_that_an_earlier_version_kept_are_used(encoder, root, monkeypatch):
    score(encoder, root)
    [path] = (root / "scores/features").glob("*/prompts-*.npy")
    weights, _ = array_of(path.read_bytes())
    path.write_bytes(saved(weights))
    before = path.stat().st_mtime_ns
    score(encoder, root)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("kind", ["cut", "one-bit", "no-manifest", "manifest-empty"])
def test_damaged_image_features_are_made_again(encoder, root, kind):
    first = score(encoder, root)
    [folder] = [path.parent for path in (root / "scores/features").glob("*/*/manifest.json")]
    [shard] = folder.glob("*.h5")
    data = shard.read_bytes()
    if kind == "cut":
        shard.write_bytes(data[: len(data) // 2])
    elif kind == "one-bit":
        shard.write_bytes(flipped(data, len(data) - 9))
    elif kind == "no-manifest":
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_bytes(b"")
    assert score(encoder, root) == first


def test_an_unreadable_image_is_tried_again(encoder, root):
    path = root / "sets/trip/test/cat/0.png"
    good = path.read_bytes()
    path.write_bytes(bytes(len(good)))
    assert score(encoder, root)["unreadable"] == 1
    path.write_bytes(good)
    assert score(encoder, root)["unreadable"] == 0


@pytest.fixture
def kept(encoder, root):
    """The folder of kept features of a dataset, one of whose images can be read since."""
    path = root / "sets/trip/test/cat/0.png"
    good = path.read_bytes()
    path.write_bytes(bytes(len(good)))
    score(encoder, root)
    path.write_bytes(good)
    [manifest] = (root / "scores/features").glob("*/*/manifest.json")
    return manifest.parent


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("is_damaged", [False, True])
def test_features_that_another_process_writes_are_not_removed(encoder, root, kept, is_damaged):
    if is_damaged:
        (kept / "manifest.json").write_bytes(b"")
    before = contents(kept)
    with write_lock(kept, shared=False):
        with pytest.raises(DataError, match="another process is writing there"):
            score(encoder, root)
        assert contents(kept) == before
    assert score(encoder, root)["unreadable"] == 0
    assert not (kept / ".partial").exists()


def test_a_full_disk_does_not_remove_features(encoder, root, kept, monkeypatch):
    before = contents(kept)

    def fail(store, name, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", fail)
        with pytest.raises(DataError, match="No space left on device"):
            score(encoder, root)
    assert contents(kept) == before
    assert score(encoder, root)["unreadable"] == 0


def test_a_failing_disk_fails_the_dataset_and_nothing_of_it_is_kept(encoder, root, monkeypatch):
    from dimefm.data.formats import folder as folders

    monkeypatch.setattr("dimefm.storage.reading.PAUSES", ())
    write(root / "sets/other/test/cat/1.png", image(50))
    write(root / "sets/other/test/dog/2.png", image(90))
    read = folders.read_file

    def fail(path):
        if path.name == "3.png":
            from dimefm.storage.reading import _stop

            raise _stop(OSError(5, "Input/output error"), path, 1)
        return read(path)

    monkeypatch.setattr(folders, "read_file", fail)
    scores = zero_shot.elevater(encoder, root / "sets", root / "scores", ["trip", "other"])
    assert [result.dataset for result in scores.results] == ["other"]
    assert "Input/output error" in scores.failed[0].reason
    monkeypatch.setattr(folders, "read_file", read)
    again = score(encoder, root)
    assert (again["images"], again["unreadable"]) == (4, 0)


def test_class_weights_do_not_depend_on_how_prompts_fall_into_batches(encoder, tmp_path):
    from dimefm.evaluate.benchmark import load

    benchmark = load("cifar-10")
    weights = []
    for batch_size in (5, 16, 1000):
        settings = Settings(batch_size=batch_size, progress=False)
        store = tmp_path / str(batch_size)
        weights.append(prompt_weights(encoder, benchmark, store, settings))
    np.testing.assert_allclose(weights[0], weights[2], atol=1e-6)
    np.testing.assert_allclose(weights[1], weights[2], atol=1e-6)


def test_two_evaluations_with_one_folder_wait_for_each_other(encoder, root, capsys):
    errors = []

    def run():
        try:
            score(encoder, root)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert not list((root / "scores").glob("*.part")) + list((root / "scores").glob("*.lock"))
    assert "waiting for another evaluation" in capsys.readouterr().err


WRITE = """
import sys
from pathlib import Path
from dimefm.storage.files import write_text
for _ in range(60):
    write_text(Path(sys.argv[1]), sys.argv[2] * 50_000)
"""


def test_several_processes_may_write_one_file(tmp_path):
    path = tmp_path / "scores.json"
    command = [sys.executable, "-c", WRITE, os.fspath(path)]
    writers = [subprocess.Popen([*command, letter]) for letter in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert len(set(path.read_text())) == 1
    assert os.listdir(tmp_path) == ["scores.json"]


def test_a_text_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "x.json", "\udcff")
    with pytest.raises(OSError):
        write_text(tmp_path / "nowhere/x.json", "x")
    assert os.listdir(tmp_path) == []


def test_scores_of_classes_and_wrong_images_are_listed(encoder, root):
    result = score(encoder, root)
    table = (root / "scores/per_class.csv").read_text().splitlines()
    assert table[0] == "dataset,class,metric,score,images"
    rows = [line.split(",") for line in table[1:]]
    assert [row[:3] for row in rows] == [["trip", name, "accuracy"] for name in ("cat", "dog")]
    assert np.mean([float(row[3]) for row in rows]) == pytest.approx(result["value"])
    lines = (root / "scores/wrong.jsonl").read_text().splitlines()
    wrong = [json.loads(line) for line in lines]
    assert len(wrong) == round(4 * (1 - result["value"]))
    for entry in wrong:
        assert entry["key"].split("/")[0] == entry["label"] != entry["predicted"]
        assert 0.5 <= entry["probability"] <= 1


def test_a_metric_of_ones_own(encoder, root):
    write(root / "sets/trip/test/cat/9.png", image(200))
    by_image = score(encoder, root)
    by_class = score(encoder, root, metric="mean_per_class")
    assert (by_image["metric"], by_class["metric"]) == ("accuracy", "mean_per_class")
    right = [
        json.loads(line)["label"] for line in (root / "scores/wrong.jsonl").read_text().splitlines()
    ]
    cats, dogs = 1 - right.count("cat") / 3, 1 - right.count("dog") / 2
    assert by_class["value"] == pytest.approx((cats + dogs) / 2)
    with pytest.raises(DataError, match="have one label each, so map_11_point is no"):
        score(encoder, root, metric="map_11_point")
    with pytest.raises(DataError, match="did you mean 'accuracy'"):
        score(encoder, root, metric="acuracy")


def test_a_decoder_has_features_of_its_own(encoder, root):
    score(encoder, root)
    score(encoder, root, decoder="pil")
    folders = {path.parent.name for path in (root / "scores/features").glob("*/*/manifest.json")}
    assert len(folders) == 2
    assert len([name for name in folders if name.endswith("-pil")]) == 1
