"""Reports: what is read, what the page holds, and that names from data stay text."""

import base64
import csv
import html.parser
import json
import re

import pytest

from dimefm.errors import DataError
from dimefm.evaluate.report.build import build
from dimefm.evaluate.report.collect import collect
from dimefm.evaluate.report.published import published
from dimefm.runs.record import RunRecord
from dimefm.runs.scores import Result, Scores, ZeroShotScores, write_scores

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


def result(dataset, value, chance=0.1, samples=100, note=""):
    """Return a result of zero-shot classification."""
    return Result(
        task="zero-shot",
        dataset=dataset,
        metrics={"accuracy": value},
        main_metric="accuracy",
        samples=samples,
        chance=chance,
        note=note,
        details={"classes": 10, "templates": 1},
    )


def zero_shot(folder, model, weights, results, image_parameters=1_000_000):
    """Write the scores of a zero-shot evaluation; return their folder."""
    scores = ZeroShotScores(
        model=model,
        weights_sha256=weights,
        image_parameters=image_parameters,
        text_parameters=2_000_000,
        by_tokens=False,
        protocol="a protocol",
        results=results,
        mean=0.5,
        not_in_mean=[],
        is_elevater_average=False,
        missing=[],
        failed=[],
        pending=[],
        seconds=1.0,
    )
    folder.mkdir(parents=True)
    write_scores(folder, scores, "# Zero-shot scores\n")
    return folder


@pytest.fixture
def pair(tmp_path):
    """Return a run folder with scores of a student, and the folder of its teacher's scores."""
    run = tmp_path / "runs/small"
    scores = zero_shot(
        run / "scores",
        "runs/small",
        "5" * 64,
        [result("digits", 0.4), result("shapes", 0.6)],
        image_parameters=250_000,
    )
    assert scores.is_dir()
    card = {"name": "large", "weights_sha256": "7" * 64}
    record = RunRecord("image-tower", teacher=card, fingerprints={"image_cache": ["c" * 64]})
    (run / "run.json").write_text(record.to_json())
    (run / "recipe.toml").write_text('student = "ResNet-mini-32"\n[losses]\n"dime.vl" = 0.7\n')
    large = zero_shot(
        tmp_path / "large",
        "ARCH/large",
        "7" * 64,
        [result("digits", 0.8), result("shapes", 0.8, note="50 of 100 images")],
    )
    return run, large


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
