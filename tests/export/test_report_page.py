"""A report in a real browser: it asks for nothing, and fits desktops and phones, light and dark."""

import pytest

from dimefm.evaluate.report.build import build
from tests.evaluate.report import written
from tests.export.browser import page_of

SCREENS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Return the page of a report with charts, long names, published models and pictures."""
    root = tmp_path_factory.mktemp("report")
    classes = ["cat", "dog"]
    keys = written.dataset(root / "data", "animals", classes)
    long_name = "a dataset with a very long name without end " * 3
    for model, weights, share in (("runs/small", "5", 0.5), ("ARCH/large", "7", 0.8)):
        results = [written.result(name, share) for name in ("animals", "imagenet-1k", long_name)]
        folder = written.zero_shot(root / weights, model, weights * 64, results)
        entries = []
        for row, key in enumerate(keys):
            entries.append(("animals", "test", row, key, "cat", "<b>dog</b>"))
        written.mistakes(folder, entries)
    paths = [root / "5", root / "7"]
    build(paths, root / "report.html", teacher="ARCH/large", roots=[root / "data"])
    return root / "report.html"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("screen", SCREENS)
def test_the_page_asks_for_nothing_and_fits(report, screen, scheme):
    settings = {"viewport": SCREENS[screen], "color_scheme": scheme}
    with page_of(report.as_uri(), **settings) as page:
        foreign = [address for address in page.requested if not address.startswith("data:")]
        assert foreign == [report.as_uri()]
        assert page.complaints == []
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= SCREENS[screen]["width"]
        assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
        shown = page.locator("figure svg:visible").count()
        assert shown == page.locator("figure").count() > 0
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        levels = [int(level) for level in background[4:-1].split(",")]
        assert (min(levels) > 200) if scheme == "light" else (max(levels) < 60)
        fills = page.evaluate(
            "[...document.querySelectorAll('svg .f-c0')].map((e) => getComputedStyle(e).fill)"
        )
        assert fills and "rgb(0, 0, 0)" not in fills
        assert page.locator("b", has_text="<b>dog</b>").count() > 0


def test_the_policy_stops_what_is_not_of_the_page(report):
    with page_of(report.as_uri()) as page:
        answer = page.evaluate(
            """async () => {
              const broken = [];
              document.addEventListener("securitypolicyviolation",
                (event) => broken.push(event.effectiveDirective));
              await fetch("http://127.0.0.1:9/").catch(() => {});
              const image = new Image();
              image.src = "http://127.0.0.1:9/x.png";
              const script = document.createElement("script");
              script.textContent = "window.ran = true";
              document.body.append(script, image);
              await new Promise((done) => setTimeout(done, 200));
              return [broken.sort(), window.ran === true];
            }"""
        )
        assert answer == [["connect-src", "img-src", "script-src-elem"], False]


def test_tables_are_copied(report):
    with page_of(report.as_uri(), permissions=["clipboard-read", "clipboard-write"]) as page:
        page.locator("button", has_text="Copy").first.click()
        page.locator("button", has_text="Copied").wait_for()
        text = page.evaluate("navigator.clipboard.readText()")
        assert text.startswith("model\timage tower\t")
        assert "\nARCH/large\t" in text


def test_the_scores_are_downloaded(report, tmp_path):
    with page_of(report.as_uri(), accept_downloads=True) as page:
        with page.expect_download() as download:
            page.locator("a[download='scores.json']").click()
        download.value.save_as(tmp_path / "scores.json")
        assert page.complaints == []
    assert "ARCH/large" in (tmp_path / "scores.json").read_text(encoding="utf-8")
