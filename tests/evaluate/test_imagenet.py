"""ImageNet and its variants scored: the two conventions, and robustness."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from dimefm.cli import main
from dimefm.errors import DataError
from dimefm.evaluate.benchmark import load
from dimefm.evaluate.imagenet import job, report
from dimefm.evaluate.imagenet.conventions import CONVENTIONS, naming
from dimefm.evaluate.imagenet.robustness import (
    IMAGENET,
    MEAN,
    VARIANTS,
    baseline,
    logits,
    robustness,
)
from dimefm.evaluate.preparing import settings_of
from dimefm.models.loading import load_encoder
from tests.evaluate.datasets import write

TEACHER = Path(__file__).parents[1] / "data/teacher"
TEMPLATE = "a photo of a {}."
OBJECTS = ("backpack", "bicycle", "chair", "wok")
SHARED_IDS = ("n02123045", "n02129165", "n07753592", "n02701002")  # in ImageNet-R, some in -A


def photo(seed):
    """Return a picture of a few colored rectangles as the bytes of a PNG."""
    generator = np.random.default_rng(seed)
    pixels = np.zeros((32, 32, 3), np.uint8)
    for _ in range(4):
        top, left = generator.integers(0, 24, 2)
        pixels[top : top + 12, left : left + 12] = generator.integers(0, 256, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(str(TEACHER), "cpu", "fp32", None, None)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All six datasets in their published layouts, with one template, so that it is quick."""
    root = tmp_path_factory.mktemp("imagenets")
    ids = [identity for (identity,) in load(IMAGENET).wnids]
    of_objects = dict(zip(load("objectnet").classes, load("objectnet").wnids, strict=True))
    in_imagenet = [*SHARED_IDS, *(of_objects[name][-1] for name in OBJECTS)]
    for seed, identity in enumerate(in_imagenet * 3):
        write(root / f"imagenet/val/{identity}/{seed}.png", photo(seed))
    in_a = {identity for (identity,) in load("imagenet-a").wnids}
    for seed, identity in enumerate(SHARED_IDS * 2, start=100):
        write(root / f"imagenet-r/{identity}/{seed}.png", photo(seed))
        write(root / f"imagenet-sketch/sketch/{identity}/{seed}.png", photo(seed + 10))
        number = ids.index(identity)
        write(root / f"imagenetv2-matched-frequency-format-val/{number}/x.png", photo(seed + 20))
        if identity in in_a:
            write(root / f"imagenet-a/{identity}/{seed}.png", photo(seed + 30))
    for seed, name in enumerate(OBJECTS * 2, start=200):
        write(root / f"objectnet/images/{name}/{seed}.png", photo(seed))
    for folder in root.iterdir():
        write(folder / "templates.txt", TEMPLATE)
    return root


def scored(encoder, root, out, names=None, convention="own"):
    settings = settings_of(64, 1, "pil")
    return job.evaluate(encoder, root, out, names, convention=convention, settings=settings)


def by_hand(encoder, images, names):
    """Return the cosines [n, M] of images with one prompt for each name."""
    pixels = np.stack([encoder.preprocess(image) for image in images])
    tokens, _ = encoder.tokenize([TEMPLATE.replace("{}", name) for name in names])
    rows = encoder.encode_image(torch.from_numpy(pixels))
    return (rows @ encoder.encode_text(tokens).T).numpy()


def test_a_masked_classifier_has_the_names_of_the_1000_classes():
    imagenet = load(IMAGENET)
    name_of = dict(zip(imagenet.wnids, imagenet.classes, strict=True))
    for name in ("imagenet-r", "imagenet-a"):
        card = load(name)
        assert naming(card, "masked").names == tuple(name_of[ids] for ids in card.wnids)
        assert naming(card, "own").names == card.classes != naming(card, "masked").names
    for name in (IMAGENET, "imagenet-v2", "imagenet-sketch"):
        assert {naming(load(name), each).names for each in CONVENTIONS} == {imagenet.classes}


def test_an_object_that_is_several_classes_is_as_probable_as_the_best_of_them():
    names = naming(load("objectnet"), "masked")
    assert len(names.names) == 125 and len(names.starts) == 113
    clock = load("objectnet").classes.index("alarm clock")
    first = names.starts[clock]
    assert names.names[first : first + 2] == ("analog clock", "digital clock")
    scores = np.random.default_rng(0).dirichlet(np.ones(125), size=20)
    of_classes = names.of_classes(scores)
    edges = [*names.starts, 125]
    for row, found in zip(scores, of_classes, strict=True):
        best = [row[start:end].max() for start, end in zip(edges, edges[1:], strict=False)]
        assert np.allclose(found, np.array(best) / np.sum(best)) and np.isclose(found.sum(), 1)


@pytest.fixture(scope="module")
def own(encoder, root, tmp_path_factory):
    out = tmp_path_factory.mktemp("own")
    return "own", out, scored(encoder, root, out)


@pytest.fixture(scope="module")
def masked(encoder, root, tmp_path_factory):
    out = tmp_path_factory.mktemp("masked")
    return "masked", out, scored(encoder, root, out, convention="masked")


@pytest.fixture(params=CONVENTIONS)
def both(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def features(own):
    """The embeddings of all datasets and names, for tests that score again."""
    return own[1] / "features"


def test_all_six_are_scored_and_named(both):
    convention, out, scores = both
    assert [result.dataset for result in scores.results] == [IMAGENET, *sorted(VARIANTS)]
    assert all(result.details["convention"] == convention for result in scores.results)
    assert scores.settings == {"convention": convention} and convention in scores.protocol
    values = [result.value for result in scores.results[1:]]
    assert scores.summary == {"average robustness": pytest.approx(np.mean(values))}
    kept = json.loads((out / "scores.json").read_text())
    assert kept["summary"] == scores.summary and not kept["pending"] and not kept["failed"]
    classes = {entry["dataset"]: entry["details"]["classes"] for entry in kept["results"]}
    assert classes["imagenet-r"] == classes["imagenet-a"] == 200 and classes["objectnet"] == 113
    for result in scores.results:
        assert result.value <= result.metrics["top_5"] <= 1 and result.details["templates"] == 1


def test_scores_are_those_of_a_computation_by_hand(both, encoder, root):
    convention, _, scores = both
    result_of = {result.dataset: result for result in scores.results}
    imagenet = load(IMAGENET)
    for name, place in (
        ("imagenet-r", "imagenet-r"),
        ("imagenet-sketch", "imagenet-sketch/sketch"),
    ):
        card = load(name)
        paths = sorted((root / place).glob("*/*.png"))
        labels = [card.wnids.index((path.parent.name,)) for path in paths]
        images = [Image.open(path).convert("RGB") for path in paths]
        if convention == "own":
            predicted = by_hand(encoder, images, card.classes).argmax(axis=1)
        else:
            cosines = by_hand(encoder, images, imagenet.classes)
            inside = [imagenet.wnids.index(ids) for ids in card.wnids]
            predicted = cosines[:, inside].argmax(axis=1)
        assert result_of[name].value == pytest.approx(np.mean(predicted == labels))


def test_objects_are_cropped_before_they_are_scored(both, encoder, root):
    convention, _, scores = both
    card = load("objectnet")
    paths = sorted((root / "objectnet/images").glob("*/*.png"))
    labels = [card.classes.index(path.parent.name) for path in paths]
    images = [Image.open(path).convert("RGB").crop((2, 2, 30, 30)) for path in paths]
    if convention == "own":
        predicted = by_hand(encoder, images, card.classes).argmax(axis=1)
    else:
        names = naming(card, "masked")
        best = np.maximum.reduceat(by_hand(encoder, images, names.names), names.starts, axis=1)
        predicted = best.argmax(axis=1)
    (result,) = [result for result in scores.results if result.dataset == "objectnet"]
    assert result.value == pytest.approx(np.mean(predicted == labels))
    assert "border of 2 pixels cropped" in result.note


def test_the_1000_names_are_encoded_once(both):
    convention, out, _ = both
    sizes = sorted(len(np.load(path)) for path in out.glob("features/*/prompts-*.npy"))
    of_own_names = [10, 44, 53]  # in ImageNet-A, -R and ObjectNet, by the letter
    assert sizes == {"own": [*of_own_names, 1000], "masked": [1000]}[convention]


def test_robustness_is_the_distance_from_the_line(both, encoder, root):
    _, out, scores = both
    places = report.places_of(scores.results)
    assert list(places) == [*VARIANTS, MEAN]
    for result in scores.results[1:]:
        kept = result.details["robustness"]
        line = baseline(result.dataset)
        assert kept["expected"] == pytest.approx(float(line.at(kept["imagenet"])))
        assert kept["effective_robustness"] == pytest.approx(result.value - kept["expected"])
    imagenet = scores.results[0].value
    assert scores.results[-2].dataset == "imagenet-v2"
    assert places["imagenet-v2"].imagenet == places["imagenet-sketch"].imagenet == imagenet
    with Image.open(out / "robustness.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 500
    page = (out / "report.md").read_text()
    assert "## Effective robustness" in page and "](robustness.png)" in page


def test_imagenet_is_counted_among_the_classes_of_the_variant(both, encoder, root):
    convention, _, scores = both
    (result,) = [result for result in scores.results if result.dataset == "imagenet-r"]
    card = load("imagenet-r")
    paths = [
        path
        for path in sorted((root / "imagenet/val").glob("*/*.png"))
        if (path.parent.name,) in card.wnids
    ]
    labels = [card.wnids.index((path.parent.name,)) for path in paths]
    images = [Image.open(path).convert("RGB") for path in paths]
    names = naming(card, convention).names
    predicted = by_hand(encoder, images, names).argmax(axis=1)
    assert 0 < len(paths) < 24
    assert result.details["robustness"]["imagenet"] == pytest.approx(np.mean(predicted == labels))


@pytest.mark.parametrize("without", [IMAGENET, "objectnet"])
def test_what_is_missing_is_not_made_up(encoder, root, tmp_path, features, without):
    shutil.copytree(features, tmp_path / "out/features")
    names = [name for name in (IMAGENET, *VARIANTS) if name != without]
    scores = scored(encoder, root, tmp_path / "out", names)
    text = report.terminal(scores, report.places_of(scores.results))
    if without == IMAGENET:
        assert list(scores.summary) == ["average robustness"]
        assert "needs ImageNet-1k" in text and not (tmp_path / "out/robustness.png").exists()
        assert not any("robustness" in result.details for result in scores.results)
    else:
        assert list(scores.summary) == ["mean of 4 of 5 variants"]
        assert MEAN not in report.places_of(scores.results)
        assert "average robustness" not in text
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("variant", [*VARIANTS, MEAN])
def test_the_line_is_fitted_to_published_points_on_the_logit_scale(variant):
    line = baseline(variant)
    assert len(line.x) == len(line.y) == len(set(line.models)) == 16
    residuals = logits(line.y) - (line.slope * logits(line.x) + line.intercept)
    assert np.mean(residuals) == pytest.approx(0, abs=1e-9) and line.r2 > 0.8
    assert np.dot(residuals, logits(line.x)) == pytest.approx(0, abs=1e-9)
    on_it = robustness(variant, 0.75, float(line.at(0.75)))
    assert on_it.effective == pytest.approx(0)
    assert on_it.is_extrapolated != line.covers(0.75)
    above = robustness(variant, line.x[3], float(line.at(line.x[3])) + 0.05)
    assert above.effective == pytest.approx(0.05) and not above.is_extrapolated
    assert robustness(variant, 0.3, 0.1).is_extrapolated


def test_extreme_accuracies_have_a_place_on_the_line():
    for imagenet in (0.0, 1.0):
        assert 0 <= robustness("imagenet-v2", imagenet, 0.5).expected <= 1


def run(*words):
    result = CliRunner().invoke(main, ["eval", "imagenet", *map(str, words)])
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


MODEL = ("--model", TEACHER, "--device", "cpu")


def test_the_command_prints_what_it_writes(root, tmp_path, features):
    out = tmp_path / "out"
    shutil.copytree(features, out / "features")
    names = ("imagenet-1k", "imagenet-r")
    done = run(*MODEL, "--root", root, "--out", out, "--datasets", *names)
    assert done.exit_code == 0, done.output
    for words in ("imagenet-r       ", "effective robustness", "convention own", "mean of 1 of 5"):
        assert words.strip() in done.output
    again = run(*MODEL, "--root", root, "--out", out, "--datasets", ",".join(names))
    assert again.exit_code == 0
    for output in (done.output, again.output):  # speeds, which stand before, are measured anew
        assert output.partition("variant  ")[2] == done.output.partition("variant  ")[2] != ""


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ({}, "holds none of imagenet-1k, imagenet-a"),
        ({".DS_Store": b"", "__MACOSX/x.png": photo(0)}, "holds none of"),
        ({"imagenet-r/n99999999/x.png": photo(0)}, "'n99999999'; expected names like"),
        ({"imagenet/train/n01440764/x.png": photo(0)}, "no test split"),
        (
            {"imagenet/val/n01440764/x.png": b"\xff\xd8\xff no image"},
            "no dataset could be scored: imagenet-1k",
        ),
        (
            {"imagenet/val/tench/x.png": photo(0), "imagenet/classnames.txt": b"tench\npike\n"},
            "classnames.txt lists other classes than those of imagenet-1k",
        ),
    ],
    ids=["empty", "litter", "extra class", "no split", "unreadable", "other classes"],
)
def test_what_cannot_be_scored_is_one_line(tmp_path, layout, words):
    root = tmp_path / "sets"
    root.mkdir()
    for name, data in layout.items():
        write(root / name, data)
    done = run(*MODEL, "--root", root, "--out", tmp_path / "out")
    assert done.exit_code == 1
    (line,) = [line for line in done.output.splitlines() if line.startswith("Error: ")]
    assert words in line and len(line) <= 600


def test_a_damaged_dataset_fails_by_itself(root, tmp_path):
    sets = tmp_path / "sets"
    sets.mkdir()
    (sets / "imagenet-r").symlink_to(root / "imagenet-r")
    write(sets / "imagenet-a/n00000000/x.png", photo(0))
    done = run(*MODEL, "--root", sets, "--out", tmp_path / "out")
    assert done.exit_code == 1 and "failed: imagenet-a" in done.output
    kept = json.loads((tmp_path / "out/scores.json").read_text())
    assert [entry["dataset"] for entry in kept["results"]] == ["imagenet-r"]
    assert kept["failed"][0]["dataset"] == "imagenet-a"
    assert set(kept["missing"]) == {IMAGENET, "imagenet-v2", "imagenet-sketch", "objectnet"}


def test_a_dataset_given_as_the_root_is_told_from_the_folder_above(encoder, root, tmp_path):
    with pytest.raises(DataError, match="give the folder above this one, which is a dataset"):
        scored(encoder, root / "imagenet", tmp_path / "out")


def test_datasets_of_other_suites_are_refused(root, tmp_path, encoder):
    write(tmp_path / "mnist/test/7/x.png", photo(0))
    with pytest.raises(DataError, match="is none of imagenet-1k.*dimefm eval elevater"):
        scored(encoder, tmp_path, tmp_path / "out", ["mnist"])
    asked = run(*MODEL, "--root", root, "--out", tmp_path / "x", "--datasets", "imagenet-z")
    assert asked.exit_code == 1 and "did you mean 'imagenet-" in asked.output
