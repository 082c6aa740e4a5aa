"""What is printed, and what reports hold: no control characters, no HTML, no secrets of URLs."""

import io
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimefm.runtime import console
from dimefm.runtime.printable import (
    LONGEST_MESSAGE,
    masked,
    message,
    printable,
    report,
    without_secrets,
)
from dimefm.runtime.tables import markdown_table
from dimefm.storage.files import write_report

CONTROLS = ("\x1b[31m", "\x07", "\x9b2J", "\x7f", "\r", "\x00", "\u202e", "\u2066", "\u2028")


EVERY_CHARACTER = "".join(map(chr, range(sys.maxunicode + 1)))
TURNS = set("\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def test_no_character_that_moves_a_cursor_is_left():
    text = printable(EVERY_CHARACTER)
    text.encode("utf-8")
    assert TURNS.isdisjoint(text)
    controls = {one for one in set(text) if unicodedata.category(one) in ("Cc", "Cs")}
    assert controls == {"\t", "\n"}


def test_plain_text_stays_as_it_is():
    kept = set(printable(EVERY_CHARACTER))
    changed = {one for one in EVERY_CHARACTER if one not in kept}
    assert {unicodedata.category(one) for one in changed} <= {"Cc", "Cs", "Cf", "Cn", "Zl", "Zp"}
    assert (
        printable("Größe: 3 × 4, \N{GRINNING FACE}\u200d")
        == "Größe: 3 × 4, \N{GRINNING FACE}\u200d"
    )


WORDS = st.text("ab \n\x1b\u202e. Fix:", max_size=900)


@given(WORDS, WORDS)
def test_a_message_is_one_line_of_bounded_length(body, remedy):
    line = message(f"{body}. Fix: {remedy}")
    assert len(line) <= LONGEST_MESSAGE
    assert "\n" not in line


def test_a_long_message_keeps_its_remedy():
    line = message("x" * 9000 + ". Fix: name another folder")
    assert line.endswith("x.... Fix: name another folder")
    assert len(line) == LONGEST_MESSAGE


URLS = {
    "https://me:pass@host/a.tar": ("https://***@host/a.tar", "https://host/a.tar"),
    "s3://KEY:SECRET@bucket/a": ("s3://***@bucket/a", "s3://bucket/a"),
    "https://p@ss:w@host/a": ("https://***@host/a", "https://host/a"),
    "https://h/a.tar?X-Amz-Signature=ab&X-Amz-Credential=c%2F": (
        "https://h/a.tar?X-Amz-Signature=***&X-Amz-Credential=***",
        "https://h/a.tar",
    ),
    "https://h/a?v=2&sig=ab&part=3": ("https://h/a?v=2&sig=***&part=3", "https://h/a?v=2&part=3"),
    "https://h/a?access_token=ab": ("https://h/a?access_token=***", "https://h/a"),
    "gs://b/a?GoogleAccessId=x&Expires=1&Signature=y": (
        "gs://b/a?GoogleAccessId=***&Expires=***&Signature=***",
        "gs://b/a",
    ),
    "https://h/a?page=1#b": ("https://h/a?page=1#b", "https://h/a?page=1#b"),
    "hf://datasets/org/name@main/x": ("hf://datasets/org/name@main/x",) * 2,
    "mail me@host.org": ("mail me@host.org",) * 2,
}


@pytest.mark.parametrize("url", URLS)
def test_secrets_of_urls_are_masked(url):
    assert masked(url) == URLS[url][0]
    assert without_secrets(url) == URLS[url][1]
    assert masked(masked(url)) == masked(url)
    assert message(f"{url}: no such file. Fix: check the URL").startswith(URLS[url][0])


def test_everything_that_is_printed_is_printable(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", out)
    with console.printable_streams():
        for control in CONTROLS:
            print(f"a{control}b")
            console.note(f"a{control}b")
        print("\r 3 of 4", end="")
    assert sys.stdout is out
    text = out.getvalue().removesuffix("\r 3 of 4")
    assert text != out.getvalue()
    assert [character for character in text if character < " " and character != "\n"] == []
    assert text.count("\n") == 2 * len(CONTROLS)


def test_a_report_has_no_html_and_no_broken_rows(tmp_path):
    rows = [("dataset", "score"), ("<script>|\n\x1b[2J", "1")]
    write_report(tmp_path / "r.md", "\n".join(markdown_table(rows)) + "\n")
    text = (tmp_path / "r.md").read_text()
    assert text.splitlines()[2] == "| &lt;script>\\| \\u001b[2J | 1 |"
    assert report("a < b") == "a &lt; b"
