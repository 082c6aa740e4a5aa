"""Reports: what is read, what the page holds, and that names from data stay text."""

import base64
import csv
import html.parser
import io
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from dimefm.cli import main
from dimefm.errors import DataError
from dimefm.evaluate.report.build import build
from dimefm.evaluate.report.collect import collect
from dimefm.evaluate.report.published import published
from dimefm.runs.scores import Result, Scores, write_scores
from tests.evaluate.report import written
from tests.evaluate.report.written import result, zero_shot

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u202e\x07"
VOID = {"meta", "img", "br", "input", "link", "hr"}


class Page(html.parser.HTMLParser):
    """The elements of a page with their attributes, and its visible text."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.words = []
        self.open = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self):
        return " ".join(self.words)


@pytest.fixture
def pair(tmp_path):
    """Return a run folder with scores of a student, and the folder of its teacher's scores."""
    return written.pair(tmp_path)


def made(paths, tmp_path, **options):
    """Return (page, its text, summary) of a report."""
    summary = build(paths, tmp_path / "out/report.html", **options)
    text = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    return Page(text), text, summary


def test_the_student_finds_its_teacher_and_the_share_is_kept(pair, tmp_path):
    page, _, summary = made(pair, tmp_path)
    assert summary["models"] == ["small", "ARCH/large"]
    assert summary["teachers"] == {"small": "ARCH/large"}
    words = page.text()
    assert "62.5 %" in words  # (0.4 + 0.6) / (0.8 + 0.8)
    assert "4.0×" in words
    assert "ResNet-mini-32" in words and "losses.dime.vl" in words and "c" * 12 in words
    assert "50 of 100 images" in words


def test_a_teacher_can_be_named(tmp_path):
    one = zero_shot(tmp_path / "one", "a/one", "1" * 64, [result("digits", 0.4)])
    two = zero_shot(tmp_path / "two", "a/two", "2" * 64, [result("digits", 0.5)])
    assert made([one, two], tmp_path)[2]["teachers"] == {}
    page, _, summary = made([one, two], tmp_path, teacher="a/two")
    assert summary["teachers"] == {"a/one": "a/two"}
    assert "80.0 %" in page.text()
    with pytest.raises(DataError, match=r"--teacher too: .* Fix: "):
        build([one, two], tmp_path / "x.html", teacher="too")


def test_no_address_of_the_page_leads_anywhere(pair, tmp_path):
    page, text, _ = made(pair, tmp_path)
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster", "style"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
        assert not any(name.startswith("on") for name in attributes), tag
    assert page.all("link") == []
    assert "@import" not in text and "url(http" not in text
    policy = page.all("meta")[1]["content"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert policy.count("sha256-") == 2


def test_names_from_data_are_text(tmp_path):
    folder = zero_shot(tmp_path / "scores", HOSTILE, HOSTILE, [result(HOSTILE, 0.4, note=HOSTILE)])
    page, text, summary = made([folder], tmp_path)
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert page.all("img") == []
    assert "<script>alert" not in text and "\u202e" not in text and "\x07" not in text
    assert "alert(1)" in page.text()
    markdown = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown and "<img" not in markdown
    assert summary["models"]


def test_equal_scores_give_equal_files(pair, tmp_path):
    build(pair, tmp_path / "a/report.html")
    build(pair, tmp_path / "b/report.html")
    for name in ("report.html", "report.md", "report.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_downloads_hold_the_scores(pair, tmp_path):
    page, _, _ = made(pair, tmp_path)
    links = {a["download"]: a["href"] for a in page.all("a") if "download" in a}
    assert set(links) == {"scores.json", "report.csv", "report.md"}
    data = base64.b64decode(links["scores.json"].partition(",")[2])
    contents = json.loads(data)
    assert {content["model"] for content in contents.values()} == {"runs/small", "ARCH/large"}
    with (tmp_path / "out/report.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {(row["model"], row["dataset"], float(row["value"])) for row in rows} == {
        ("small", "digits", 0.4),
        ("small", "shapes", 0.6),
        ("ARCH/large", "digits", 0.8),
        ("ARCH/large", "shapes", 0.8),
    }


def test_unknown_tasks_have_a_table_and_bars(tmp_path):
    folder = tmp_path / "scores"
    folder.mkdir()
    strange = Result("juggling", "five balls", {"caught": 0.25, "thrown": 0.5}, "caught", 12)
    scores = Scores("any/model/here", None, "a protocol", [strange])
    write_scores(folder, scores, "# Scores\n")
    page, _, _ = made([folder], tmp_path)
    assert "Juggling in percent" in page.text()
    assert "25.00" in page.text()


def test_drawings_are_whole_and_described(pair, tmp_path):
    page, text, _ = made(pair, tmp_path)
    drawings = page.all("svg")
    assert len(drawings) >= 4
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for drawing in drawings:
        assert drawing["role"] == "img"
        for label in drawing["aria-labelledby"].split():
            assert label in ids
    for reference in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text):
        assert "".join(reference) in ids
    assert "digits" in text.partition("<svg")[2]  # text stays text


def test_published_models_stand_beside_imagenet_only(tmp_path):
    name = published()[0].name
    digits = zero_shot(tmp_path / "one", "a/one", "1" * 64, [result("digits", 0.4)])
    assert name not in made([digits], tmp_path)[0].text()
    imagenet = zero_shot(tmp_path / "two", "a/two", "2" * 64, [result("imagenet-1k", 0.4)])
    assert name in made([imagenet], tmp_path)[0].text()


def test_published_models_are_plausible():
    assert len(published()) > 20
    for model in published():
        assert 0.2 < model.imagenet < 0.9, model
        assert model.image_parameters < model.parameters, model
        assert model.robustness is None or 0.2 < model.robustness < model.imagenet, model
        assert len(model.source) > 10, model


def test_two_results_for_one_dataset_are_told(pair, tmp_path):
    run, large = pair
    again = zero_shot(run / "again", "runs/small", "5" * 64, [result("digits", 0.9)])
    collection = collect([run, large])
    assert len(collection.models) == 2
    assert len(collection.notes) == 1 and again.name not in collection.models[0].name
    values = {r.value for m, r in collection.results("zero-shot") if r.dataset == "digits"}
    assert len(values) == 2


@pytest.mark.parametrize("name", ["nothing", "empty", "text.json", "list.json", "wrong.json"])
def test_what_is_no_scores_is_one_line(name, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("no JSON")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "wrong.json").write_text('{"scores": [{"dataset": "a", "value": 7}]}')
    with pytest.raises(DataError, match=r"\. Fix: ") as caught:
        build([tmp_path / name], tmp_path / "out.html")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert not (tmp_path / "out.html").exists()


@pytest.mark.parametrize("name", ["report.html", "report.md", "report.csv"])
def test_no_other_file_is_replaced(name, pair, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(DataError, match=r"another file has this name"):
        build(pair, tmp_path / "report.html")
    assert (tmp_path / name).read_text() == "mine"


def test_a_report_replaces_a_former_one(pair, tmp_path):
    for _ in range(2):
        build(pair, tmp_path / "report.html")
    with pytest.raises(DataError, match=r"the report is an HTML page"):
        build(pair, tmp_path / "report.pdf")
    build(pair, tmp_path / "folder")
    assert (tmp_path / "folder/report.html").is_file()


@pytest.fixture
def pets(pair, tmp_path):
    """Return (paths of scores with mistakes on digits, folder of the dataset, its keys)."""
    run, large = pair
    keys = written.dataset(tmp_path / "data", "digits", ["one", "two"])
    both = [("digits", "test", row, key, "one", "two") for row, key in enumerate(keys)]
    written.mistakes(run / "scores", both)
    written.mistakes(large, both[:2])
    return pair, tmp_path / "data", keys


def test_mistakes_are_text_without_the_datasets(pets, tmp_path):
    paths, _, _ = pets
    page, _, _ = made(paths, tmp_path)
    assert page.all("img") == []
    assert "Most frequent confusions" in page.text()
    assert "small 6, ARCH/large 2" in page.text()


def test_mistakes_are_shown_where_the_teacher_is_right(pets, tmp_path):
    paths, root, keys = pets
    page, _, _ = made(paths, tmp_path, roots=[root])
    shown = [image["alt"] for image in page.all("img")]
    assert shown == [f"one, image {key}" for key in keys[2:]]
    for image in page.all("img"):
        data = base64.b64decode(image["src"].removeprefix("data:image/jpeg;base64,"))
        with Image.open(io.BytesIO(data)) as thumbnail:
            assert thumbnail.format == "JPEG" and max(thumbnail.size) <= 176
    assert len(made(paths, tmp_path, roots=[root], pictures=3)[0].all("img")) == 3
    assert made(paths, tmp_path, roots=[root], pictures=0)[0].all("img") == []


def test_mistakes_that_the_teacher_shares_are_shown_as_such(pets, tmp_path):
    (run, large), root, _ = pets
    (large / "wrong.jsonl").write_text((run / "scores/wrong.jsonl").read_text())
    page, _, _ = made([run, large], tmp_path, roots=[root])
    assert "wrong where ARCH/large is wrong, too" in page.text()
    assert len(page.all("img")) == 6


def test_pictures_that_cannot_be_read_are_told(pets, tmp_path):
    paths, root, keys = pets
    damaged = root / "digits/test" / keys[3]
    damaged.write_bytes(damaged.read_bytes()[:60])
    page, _, _ = made(paths, tmp_path, roots=[root])
    assert [image["alt"] for image in page.all("img")] == [
        f"one, image {key}" for key in (keys[2], *keys[4:])
    ]
    assert "1 picture not shown" in page.text()


def test_pictures_of_other_images_are_not_shown(pets, tmp_path):
    paths, root, keys = pets
    (root / "digits/test" / keys[0]).rename(root / "digits/test/two/9.png")
    page, _, _ = made(paths, tmp_path, roots=[root])
    assert page.all("img") == []
    assert "other images than were scored" in page.text()


@pytest.mark.parametrize(
    "line", ["no JSON", "[]", "{}", '{"dataset": "digits", "row": -1}', "\xff", "9" * 100_000]
)
def test_damaged_lines_of_examples_are_counted(line, pets, tmp_path):
    paths, _, _ = pets
    with (paths[0] / "scores/wrong.jsonl").open("a", encoding="latin-1") as file:
        file.write(line + "\n")
    page, _, _ = made(paths, tmp_path)
    assert re.search(r"\d lines? of wrong.jsonl could not be read", page.text())
    assert "small 6" in page.text()


def test_the_command_writes_three_files_and_tells_them(pair, tmp_path):
    arguments = ["eval", "report", *map(str, pair), "--out", str(tmp_path / "report.html")]
    outcome = CliRunner().invoke(main, [*arguments, "--json"])
    assert outcome.exit_code == 0, outcome.output
    summary = json.loads(outcome.stdout)
    for kind in ("page", "markdown", "csv"):
        assert Path(summary[kind]).is_file()
    assert CliRunner().invoke(main, arguments).stdout.startswith("written: ")
    wrong = CliRunner().invoke(main, [*arguments, "--root", str(tmp_path / "absent")])
    assert wrong.exit_code == 1 and "Fix: " in wrong.output
