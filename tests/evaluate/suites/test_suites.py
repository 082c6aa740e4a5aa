"""clip-benchmark's folders and DataComp's tasks: names, scores, lines for others, and bad folders,
each of which is one line while the others are scored.
"""

import csv
import dataclasses
import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from dimefm.errors import DataError
from dimefm.evaluate.guards import dataset_guard
from dimefm.evaluate.preparing import refuse_unscored
from dimefm.evaluate.suites import datacomp
from dimefm.evaluate.suites.classification import score_labeled
from dimefm.evaluate.suites.folders import find_sets, full_name, plain_name, tars_of
from dimefm.evaluate.suites.job import open_suite, score_suite
from dimefm.evaluate.suites.lines import model_names
from dimefm.evaluate.suites.retrieval import score_captions
from dimefm.extract.extract import Settings
from dimefm.runs.scores import Result, read_results
from tests.evaluate.datasets import parquet, write
from tests.evaluate.suites.written import CLASSES, captions, folder, label, marks, npy, photo

SETTINGS = Settings(dtype="float32", batch_size=8, progress=False, decoder="pil")


def scored(encoder, root, out, name="wds", names=None):
    suite = open_suite(root, name, names)
    return suite, score_suite(encoder, suite, out, SETTINGS)


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_teacher):
    """Folders of all kinds, two of them damaged, and the scores of an encoder in ``out``."""
    home = tmp_path_factory.mktemp("home")
    root = home / "root"
    folder(root, "wds_vtab-cifar10", {"cls": label})
    folder(root, "wds_two", {"cls": lambda n: str(n % 2).encode()}, classes=2, seed=1)
    folder(root, "wds_voc2007_multilabel", {"npy": marks}, kind="multilabel", seed=2)
    folder(root, "wds_flickr8k", {"txt": captions}, kind="retrieval", seed=3)
    folder(root, "wds_cut", {"cls": label}, seed=4)
    cut = root / "wds_cut/test/1.tar"
    cut.write_bytes(cut.read_bytes()[:3000])
    write(root / ".DS_Store", b"x")
    (root / "__MACOSX").mkdir()
    suite, scores = scored(tiny_teacher, root, home / "out")
    with pytest.raises(DataError, match="1 of 5 datasets could not be scored: cut"):
        refuse_unscored(scores, suite.root, None)
    return home


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def logits_of(encoder, place, templates=("a photo of a {}.", "an image of {}")):
    """Logits as clip-benchmark computes them: one class and one image after the other."""
    weights = []
    with torch.no_grad():
        for name in (place / "classnames.txt").read_text().splitlines():
            tokens, _ = encoder.tokenize([template.format(name) for template in templates])
            rows = torch.nn.functional.normalize(encoder.encode_text(tokens), dim=-1)
            weights.append(torch.nn.functional.normalize(rows.mean(dim=0), dim=-1))
        images = []
        for path in tars_of(place):
            with tarfile.open(path) as file:
                for member in file:
                    if member.name.endswith(".png"):
                        picture = Image.open(io.BytesIO(file.extractfile(member).read()))
                        images.append(encoder.preprocess(picture.convert("RGB")))
        embeddings = encoder.encode_image(torch.stack(images))
    embeddings = torch.nn.functional.normalize(embeddings, dim=-1)
    return (100 * embeddings @ torch.stack(weights).T).numpy()


def test_classification_is_that_of_clip_benchmark(home, tiny_teacher):
    logits = logits_of(tiny_teacher, home / "root/wds_vtab-cifar10")
    labels = np.arange(12) % CLASSES
    entry = next(e for e in lines(home / "out/clip_benchmark.jsonl") if "cifar10" in e["dataset"])
    top5 = np.argsort(-logits, axis=1)[:, :5]
    assert entry == {
        "dataset": "wds/vtab/cifar10",
        "model": "ResNet-mini-64",
        "pretrained": "random:0",
        "task": "zeroshot_classification",
        "metrics": {
            "acc1": pytest.approx((logits.argmax(axis=1) == labels).mean()),
            "acc5": pytest.approx((top5 == labels[:, None]).any(axis=1).mean()),
            "mean_per_class_recall": pytest.approx((logits.argmax(axis=1) == labels).mean()),
        },
        "language": "en",
    }


def test_every_kind_has_its_metrics(home):
    entries = {entry["dataset"]: entry for entry in lines(home / "out/clip_benchmark.jsonl")}
    assert set(entries) == {
        "wds/vtab/cifar10",
        "wds/two",
        "wds/voc2007_multilabel",
        "wds/flickr8k",
    }
    assert set(entries["wds/voc2007_multilabel"]["metrics"]) == {"mean_average_precision"}
    assert entries["wds/two"]["metrics"]["acc5"] is None
    captioned = entries["wds/flickr8k"]
    assert captioned["task"] == "zeroshot_retrieval"
    assert {"image_retrieval_recall@5", "text_retrieval_recall@5"} <= set(captioned["metrics"])
    with (home / "out/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        entry = entries[row["dataset"]]
        assert row["model_fullname"] == f"{entry['model']} {entry['pretrained']}"
        for name, value in entry["metrics"].items():
            assert row[name] == ("" if value is None else str(value))


def test_a_second_evaluation_reads_the_kept_embeddings(home, tiny_teacher):
    class Blind(torch.nn.Module):
        def forward(self, *_, **__):
            raise AssertionError("an image or text was encoded again")

    blind = dataclasses.replace(tiny_teacher)
    for tower in ("encode_image", "encode_text"):
        object.__setattr__(blind, tower, Blind())
    before = {result.dataset: result for result in read_results(home / "out/scores.json")}
    sets, _ = find_sets(home / "root", list(before))
    for suite_set in sets:
        score = score_captions if suite_set.name == "flickr8k" else score_labeled
        again = score(blind, suite_set, home / "out/features", SETTINGS)
        assert again.metrics == before[suite_set.name].metrics
    with pytest.raises(DataError, match="encoded again"), dataset_guard(home):
        score_labeled(blind, sets[-1], home / "other", SETTINGS)


@pytest.mark.parametrize(
    "word",
    [
        "vtab/cifar10",
        "wds/vtab/cifar10",
        "wds_vtab-cifar10",
        "wds_vtab-cifar10_test",
        "VTAB-CIFAR10",
    ],
)
@pytest.mark.parametrize("on_disk", ["wds_vtab-cifar10", "wds_vtab-cifar10_test", "vtab-cifar10"])
def test_a_set_is_found_by_each_of_its_names(tmp_path, word, on_disk):
    (tmp_path / on_disk).mkdir()
    [suite_set], missing = find_sets(tmp_path, [word])
    assert (suite_set.name, suite_set.folder.name, missing) == ("vtab/cifar10", on_disk, [])


def test_names_with_dashes_keep_them():
    assert full_name(plain_name("wds_imagenet-a")) == "imagenet-a"
    assert full_name(plain_name("wds_wilds-fmow_test")) == "wilds/fmow"


def test_model_and_tag_are_two_names():
    assert model_names("ViT-B-32/openai") == ("ViT-B-32", "openai")
    assert model_names("runs/first") == ("runs/first", "")


def _without_split(place):
    for path in (place / "test").iterdir():
        path.unlink()
    (place / "test").rmdir()


BAD = {
    "no shards": (_without_split, "no tars, expected nshards.txt"),
    "no count": (lambda p: (p / "test/nshards.txt").unlink(), "nshards.txt: not found"),
    "more tars": (lambda p: write(p / "test/nshards.txt", "1"), "says 1 tars, found 2; beyond it"),
    "fewer tars": (lambda p: write(p / "test/nshards.txt", "3"), "missing: 2.tar"),
    "odd count": (lambda p: write(p / "test/nshards.txt", "two"), "holds 'two', expected a number"),
    "classes": (lambda p: write(p / "classnames.txt", "one\ntwo\n"), "lies outside 0..1"),
    "no classes": (lambda p: (p / "classnames.txt").unlink(), "classnames.txt: not found"),
    "kind": (lambda p: write(p / "dataset_type.txt", "captioning"), "says 'captioning', expected"),
    "several labels": (lambda p: folder(p.parent, p.name, {"npy": marks}), "several labels"),
    "one label": (lambda p: write(p / "dataset_type.txt", "multilabel"), "no .npy label"),
    "cut tar": (lambda p: (p / "test/0.tar").write_bytes(b"s" * 700), "not a whole, uncompressed"),
    "template": (
        lambda p: write(p / "zeroshot_classification_templates.txt", "a photo"),
        "has no place for the class name",
    ),
}


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory, tiny_teacher):
    """The scores of a root with one good folder, and a bad one for each fault."""
    home = tmp_path_factory.mktemp("spoiled")
    folder(home / "root", "wds_good", {"cls": label}, images=4)
    for fault, (spoil, _) in BAD.items():
        spoil(folder(home / "root", f"wds_{fault}", {"cls": label}))
    suite, scores = scored(tiny_teacher, home / "root", home / "out")
    with pytest.raises(DataError, match=f"{len(BAD)} of {len(BAD) + 1} datasets"):
        refuse_unscored(scores, suite.root, None)
    return scores


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_folder_is_one_line_and_the_others_are_scored(spoiled, fault):
    _, words = BAD[fault]
    assert [result.dataset for result in spoiled.results] == ["good"]
    [reason] = [failure.reason for failure in spoiled.failed if failure.dataset == fault]
    assert words in reason and ". Fix: " in reason
    assert "\n" not in reason and len(reason) <= 500


def test_unreadable_images_are_counted(tmp_path, tiny_teacher):
    place = folder(tmp_path / "root", "wds_x", {"cls": label}, shards=1)
    raw = bytearray((place / "test/0.tar").read_bytes())
    start = raw.index(b"\x89PNG")
    raw[start : start + 8] = b"no image"
    (place / "test/0.tar").write_bytes(raw)
    _, scores = scored(tiny_teacher, tmp_path / "root", tmp_path / "out")
    [result] = scores.results
    assert (result.samples, result.unreadable) == (11, 1)
    assert result.details["unreadable_as_wrong"] == pytest.approx(result.value * 11 / 12)


def test_the_root_may_be_one_set(tmp_path):
    place = folder(tmp_path, "wds_x", {"cls": label})
    assert [one.name for one in open_suite(place).sets] == ["x"]


@pytest.mark.parametrize("root", ["absent", "empty"])
@pytest.mark.parametrize("name", ["wds", "datacomp"])
def test_a_root_without_sets_is_refused(tmp_path, root, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=". Fix: "):
        open_suite(tmp_path / root, name)


def test_the_task_list_is_datacomps():
    tasks = datacomp.tasks()
    assert (len(tasks), len(datacomp.counted_tasks())) == (40, 38)
    special = {task.name: task.metric for task in tasks if task.metric != "acc1"}
    assert special == {
        "Caltech-101": "mean_per_class_recall",
        "FGVC Aircraft": "mean_per_class_recall",
        "Oxford Flowers-102": "mean_per_class_recall",
        "Oxford-IIIT Pet": "mean_per_class_recall",
        "Flickr": "mean_recall@1",
        "MSCOCO": "mean_recall@1",
        "WinoGAViL": "jaccard_score_10-12",
        "iWildCam": "F1-macro_all",
        "FMoW": "acc_worst_region",
        "Dollar Street": "acc_top5_wg",
        "GeoDE": "acc_wg",
        "FairFace": "none",
        "UTKFace": "none",
    }


def test_the_average_has_its_name_only_when_it_is_whole():
    results = []
    for place, task in enumerate(datacomp.counted_tasks()):
        value = place / 100
        results.append(Result("zero-shot", task.key, {task.metric: value}, task.metric, 1))
    assert datacomp.average(results) == ("DataComp average", pytest.approx(0.185))
    name, _ = datacomp.average(results[1:])
    assert name == "mean over 37 of 38 DataComp tasks"


def test_tasks_of_datacomp_are_scored_by_their_metrics(tmp_path, tiny_teacher):
    root = tmp_path / "root"
    regions = {"cls": label, "npy": lambda n: npy([n % 3, 2015, 0], dtype=np.int64)}
    folder(root, "wds_wilds-fmow_test", regions)
    folder(root, "wds_geode_test", {"cls": label, "npy": lambda n: npy([{}], dtype=object)})
    folder(root, "wds_vtab-pets_test", {"cls": label})
    folder(root, "wds_wilds-iwildcam_test", {"cls": label})
    folder(root, "wds_flickr30k_test", {"txt": captions}, kind="retrieval")
    folder(root, "wds_unknown_test", {"cls": label})
    _, scores = scored(tiny_teacher, root, tmp_path / "out", "datacomp")
    by_key = {entry["key"]: entry for entry in lines(tmp_path / "out/datacomp.jsonl")}
    expected = {
        "wilds/fmow": ("FMoW", "acc_worst_region"),
        "vtab/pets": ("Oxford-IIIT Pet", "mean_per_class_recall"),
        "wilds/iwildcam": ("iWildCam", "F1-macro_all"),
        "retrieval/flickr_1k_test_image_text_retrieval": ("Flickr", "mean_recall@1"),
    }
    assert {key: entry["dataset"] for key, entry in by_key.items()} == {
        key: name for key, (name, _) in expected.items()
    }
    for key, (_, metric) in expected.items():
        metrics = by_key[key]["metrics"]
        assert metrics["main_metric"] == metrics[metric]
    logits = logits_of(tiny_teacher, root / "wds_wilds-fmow_test")
    is_right = logits.argmax(axis=1) == np.arange(12) % CLASSES
    worst = min(is_right[region::3].mean() for region in range(3))
    assert by_key["wilds/fmow"]["metrics"]["main_metric"] == pytest.approx(worst)
    [failure] = scores.failed
    assert failure.dataset == "fairness/geode" and "Python objects are not read" in failure.reason
    assert list(scores.summary) == ["mean over 4 of 38 DataComp tasks"]
    assert len(scores.missing) == 33
    assert all("12 of" in result.note for result in scores.results)


def test_when_no_set_can_be_scored_each_reason_is_a_note(tmp_path, tiny_teacher, capsys):
    for name in ("wds_a", "wds_b"):
        _without_split(folder(tmp_path / "root", name, {"cls": label}))
    with pytest.raises(DataError, match="none of the 2 datasets here could be scored: a: .*; b: "):
        scored(tiny_teacher, tmp_path / "root", tmp_path / "out")
    notes = capsys.readouterr().err
    assert notes.count("no tars, expected nshards.txt") == 2
    assert not (tmp_path / "out/scores.json").exists()


def winogavil(path, riddles):
    draw = np.random.default_rng(0)
    photos = {name: photo(draw) for riddle in riddles for name in riddle[1]}
    columns = {
        "cue": [cue for cue, _, _ in riddles],
        "candidates": [names for _, names, _ in riddles],
        "associations": [right for _, _, right in riddles],
        "candidate_images": [
            [{"bytes": photos[name], "path": None} for name in names] for _, names, _ in riddles
        ],
    }
    parquet(path, columns)
    return photos


def test_winogavil_is_scored_by_the_jaccard_index(tmp_path, tiny_teacher):
    names = [f"image {number}" for number in range(14)]
    riddles = [
        ("Owl", names[:10], names[2:5]),
        ("moon", names[2:14], names[3:8]),
        ("sea", names[:5], names[:2]),
    ]
    photos = winogavil(tmp_path / "root/winogavil/test.parquet", riddles)
    _, scores = scored(tiny_teacher, tmp_path / "root", tmp_path / "out", "datacomp")
    [result] = scores.results
    expected = []
    with torch.no_grad():
        for prompt, (_, candidates, right) in zip(
            ["An owl", "A moon", "A sea"], riddles, strict=True
        ):
            pictures = [Image.open(io.BytesIO(photos[name])) for name in candidates]
            pixels = torch.stack([tiny_teacher.preprocess(picture) for picture in pictures])
            tokens, _ = tiny_teacher.tokenize([prompt])
            images = torch.nn.functional.normalize(tiny_teacher.encode_image(pixels), dim=-1)
            cosines = (images @ tiny_teacher.encode_text(tokens)[0]).tolist()
            ranked = sorted(zip(cosines, candidates, strict=True), reverse=True)
            chosen = {name for _, name in ranked[: len(right)]}
            expected.append(len(chosen & set(right)) / len(chosen | set(right)))
    assert result.metrics["jaccard_score_10-12"] == pytest.approx(np.mean(expected[:2]))
    assert result.metrics["jaccard_score_5"] == pytest.approx(expected[2])
    assert result.metrics["avg_jaccard_score"] == pytest.approx(np.mean(expected))
    [entry] = lines(tmp_path / "out/datacomp.jsonl")
    assert entry["metrics"]["main_metric"] == result.value and entry["dataset"] == "WinoGAViL"


def test_a_riddle_without_a_right_image_is_refused(tmp_path, tiny_teacher):
    winogavil(tmp_path / "winogavil/test.parquet", [("owl", ["a", "b"], ["c"])])
    with pytest.raises(DataError, match="row 0: expected a cue, candidates with an image each"):
        scored(tiny_teacher, tmp_path, tmp_path / "out", "datacomp")
