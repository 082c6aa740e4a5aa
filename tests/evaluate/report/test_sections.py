"""Sections of a report that need certain scores: few images, robustness, retrieval."""

import json

import pytest

from dimefm.evaluate.imagenet import robustness as imagenet_robustness
from dimefm.evaluate.probe.confidence import over_seeds
from dimefm.evaluate.report.build import build
from dimefm.evaluate.report.collect import collect
from dimefm.evaluate.report.sections import agreement, retrieval, robustness, shots
from dimefm.evaluate.report.thumbnails import Thumbnails
from dimefm.runs.scores import Result, Scores, write_scores
from tests.evaluate.report import written
from tests.evaluate.report.written import result, zero_shot

FIVE = ("imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch", "objectnet")


def cells(table):
    """Return the rows of a table, by their first two cells where the second is text, too."""
    width = len(table.left) if 1 in table.left else 1
    return {tuple(row[:width]): list(row[width:]) for row in table.rows}


def test_curves_have_zero_shot_before_and_all_images_after(tmp_path):
    values = {5: (0.5, 0.6, 0.7), 20: (0.7, 0.7, 0.73)}
    tables = [("zero-shot", name, [0.4]) for name in ("digits", "shapes")]
    for count, seeds in values.items():
        tables += [(f"linear probe, {count}-shot", name, seeds) for name in ("digits", "shapes")]
    tables += [("linear probe", "digits", [0.9])]
    folder = written.probes(tmp_path / "a", "runs/one", "1" * 64, tables)
    section = shots.section(collect([folder]))
    (table,) = section.tables
    assert table.head[2:] == ["zero-shot", "5 a class", "20 a class", "all images"]
    assert cells(table)["digits", "runs/one"] == ["40.00", "60.00", "71.00", "90.00"]
    assert cells(table)["shapes", "runs/one"] == ["40.00", "60.00", "71.00", "–"]
    assert [figure.title for figure in section.figures] == [
        "Linear probe: digits",
        "Linear probe: shapes",
    ]
    interval = over_seeds(values[5])
    words = f"60.00 % ({100 * interval.low:.2f} to {100 * interval.high:.2f})"
    assert words in section.figures[0].wide


def test_the_mean_over_datasets_has_the_interval_of_its_seeds(tmp_path):
    one = (0.5, 0.6, 0.7)
    two = (0.3, 0.4, 0.2)
    tables = [("linear probe, 5-shot", "digits", one), ("linear probe, 5-shot", "shapes", two)]
    folder = written.probes(tmp_path / "a", "runs/one", "1" * 64, tables)
    section = shots.section(collect([folder]))
    interval = over_seeds([(a + b) / 2 for a, b in zip(one, two, strict=True)])
    assert section.figures[0].title == "Linear probe: mean of 2 datasets"
    words = f"45.00 % ({100 * interval.low:.2f} to {100 * interval.high:.2f})"
    assert words in section.figures[0].wide


def test_a_stated_interval_is_the_one_that_is_drawn():
    details = {"interval": {"low": 0.4, "high": 0.65}, "seeds": [{"seed": 0, "value": 0.5}]}
    stated = Result("linear probe", "digits", {"accuracy": 0.5}, "accuracy", 9, details=details)
    assert shots.interval_of(stated) == (40, 65)
    odd = {"interval": {"low": "0.4"}, "seeds": [{"seed": 0}, 3, {"value": "x"}]}
    silent = Result("linear probe", "digits", {"accuracy": 0.5}, "accuracy", 9, details=odd)
    assert shots.interval_of(silent) is None


def test_robustness_stands_beside_published_models_where_it_is_complete(tmp_path):
    scores = [result("imagenet-1k", 0.7)]
    scores += [result(name, 0.1 * place) for place, name in enumerate(FIVE, start=1)]
    section = robustness.section(collect([zero_shot(tmp_path / "a", "a/b", "1" * 64, scores)]))
    place = imagenet_robustness.robustness(imagenet_robustness.MEAN, 0.7, 0.3)
    assert cells(section.tables[0])["a/b",] == [
        "70.00",
        "10.00",
        "20.00",
        "30.00",
        "40.00",
        "50.00",
        "30.00",
        f"{100 * place.effective:+.2f}",
    ]
    assert "CLIP ViT-B/32" in section.figures[0].wide
    folder = zero_shot(tmp_path / "c", "c/d", "2" * 64, scores[:3])
    section = robustness.section(collect([folder]))
    assert section.text == ["Zero-shot accuracy on 2 variants of ImageNet: V2 and A."]
    assert "CLIP ViT-B/32" not in section.figures[0].wide
    digits = zero_shot(tmp_path / "e", "e/f", "3" * 64, [result("digits", 0.4)])
    assert robustness.section(collect([digits])) is None


@pytest.fixture
def searched(tmp_path):
    """Return (folder of retrieval scores with finds, folder of the datasets, keys of images)."""
    root = tmp_path / "data"
    (root / "photos").mkdir(parents=True)
    keys = []
    lines = ["image,caption"]
    for number in range(4):
        (root / f"photos/{number}.png").write_bytes(written.png(number))
        keys.append(f"{number}.png")
        lines.append(f"{number}.png,photo number {number}")
    (root / "photos/captions.csv").write_text("\n".join(lines) + "\n")
    name = "text to image R@1"
    found = Result("retrieval", "photos", {name: 0.25}, name, 4, note="a note")
    scores = Scores(
        "runs/one", "1" * 64, "p", [found], settings={"data": "elsewhere/photos", "split": "test"}
    )
    folder = tmp_path / "scores"
    folder.mkdir()
    write_scores(folder, scores, "# Scores\n")
    images = [{"source": "photos", "row": row, "key": key} for row, key in enumerate(keys)]
    finds = []
    for row, image in enumerate(images):
        finds.append({**image, "cosine": 0.9 - row / 10, "is_right": row == 2})
    caption = {**images[2], "caption": "<i>photo</i> number 2"}
    entries = [
        {"direction": "text to image", "query": caption, "candidates": finds, "rank": 3},
        {"direction": "image to text", "query": images[1], "candidates": [caption], "rank": 1},
        {"direction": "image to text", "query": images[1], "candidates": []},
    ]
    lines = [json.dumps({"dataset": "photos", **entry}) + "\n" for entry in entries]
    (folder / "retrieved.jsonl").write_text("".join(lines))
    return folder, root, keys


def source_of(root):
    """Return the name of the source of the images, as a reader of captions has it."""
    from dimefm.evaluate.datasets.captions import open_pairs

    return open_pairs(root / "photos").rows.shards[0].name


def test_finds_are_text_without_the_datasets(searched):
    folder, _, _ = searched
    section = retrieval.section(collect([folder]), Thumbnails([]), 48)
    first, second = section.galleries
    assert first.title == "“<i>photo</i> number 2”" and "place 3" in first.note
    assert second.pictures[1].lines[0] == "<i>photo</i> number 2"
    assert [picture.is_right for picture in first.pictures] == [False, False, True, False]
    assert [picture.jpeg for picture in (*first.pictures, *second.pictures)] == [None] * 6
    assert "1 line of retrieved.jsonl could not be read." in section.text


def test_finds_are_shown_from_the_datasets(searched, tmp_path):
    folder, root, _ = searched
    text = (folder / "retrieved.jsonl").read_text()
    text = text.replace('"source": "photos"', f'"source": "{source_of(root)}"')
    (folder / "retrieved.jsonl").write_text(text)
    section = retrieval.section(collect([folder]), Thumbnails([root]), 48)
    first, second = section.galleries
    assert all(picture.jpeg for picture in first.pictures)
    assert [picture.jpeg is None for picture in second.pictures] == [False, True]
    build([folder], tmp_path / "report.html", roots=[root])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == 5 and "<i>photo" not in page
    section = retrieval.section(collect([folder]), Thumbnails([root]), 3)
    shown = [picture for gallery in section.galleries for picture in gallery.pictures]
    assert sum(picture.jpeg is not None for picture in shown) == 3


def test_datasets_that_the_scores_name_elsewhere_are_not_opened(searched):
    folder, root, _ = searched
    empty = root / "empty"
    empty.mkdir()
    section = retrieval.section(collect([folder]), Thumbnails([empty]), 48)
    assert "has no photos" in " ".join(section.text)


def agreement_scores(folder, settings, **details):
    """Write scores of the agreement of a student with its teacher."""
    metrics = {"top-1 agreement": 0.75, "student accuracy": 0.5, "teacher accuracy": 0.7}
    found = Result("agreement", "digits", metrics, "top-1 agreement", 40, details=details)
    folder.mkdir()
    scores = Scores("runs/one", "1" * 64, "a protocol", [found], settings=settings)
    write_scores(folder, scores, "# Agreement\n")
    return folder


def test_agreement_names_the_teacher_and_what_was_forgotten(tmp_path):
    details = {
        "metric": "accuracy",
        "image": {"mean": 0.8, "low": 0.6},
        "difference": {"low": -0.3, "high": -0.1, "p_value": 0.01},
        "forgotten": [{"name": "seven", "teacher": 0.9, "student": 0.2, "images": 12}, "odd"],
    }
    teacher = {"model": "ARCH/large", "weights_sha256": "7" * 64}
    folder = agreement_scores(tmp_path / "a", {"teacher": teacher}, **details)
    large = zero_shot(tmp_path / "b", "ARCH/large", "7" * 64, [result("digits", 0.7)])
    collection = collect([folder, large])
    assert collection.teacher_of[0].name == "ARCH/large"
    section = agreement.section(collection)
    assert section.text == ["runs/one is compared with ARCH/large."]
    measures, both, forgotten = section.tables
    assert cells(measures)["runs/one", "digits"][:3] == ["75.00", "0.800", "0.600"]
    row = cells(both)["runs/one", "digits", "accuracy"]
    assert row[:4] == ["50.00", "70.00", "-30.0 to -10.0", "0.010"]
    assert cells(forgotten) == {("runs/one", "digits", "seven"): ["90.0", "20.0", "12"]}


def test_agreement_without_details_is_a_table(tmp_path):
    folder = agreement_scores(tmp_path / "a", {}, image=3, forgotten="x", difference=[])
    section = agreement.section(collect([folder]))
    assert [table.caption for table in section.tables] == ["Agreement"]
    assert cells(section.tables[0])["runs/one", "digits"] == ["75.00", *["–"] * 6]


def test_effective_robustness_is_what_the_scores_state(tmp_path):
    place = {"effective_robustness": 0.025, "imagenet": 0.6, "expected": 0.3, "extrapolated": True}
    details = {"robustness": place}
    variant = Result("zero-shot", "imagenet-a", {"accuracy": 0.325}, "accuracy", 9, details=details)
    (tmp_path / "a").mkdir()
    scores = Scores("runs/one", "1" * 64, "a protocol", [variant])
    write_scores(tmp_path / "a", scores, "# Scores\n")
    section = robustness.section(collect([tmp_path / "a"]))
    assert cells(section.tables[1])["runs/one", "A"] == ["60.00", "30.00 *", "32.50", "+2.50"]
    assert section.figures == []
