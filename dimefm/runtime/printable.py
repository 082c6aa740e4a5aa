"""Text of files, sources and models as it may be shown: on a terminal, in a report, in a message.

Names that come with data may hold control characters, which move the cursor of a terminal or forge
lines, and URLs may hold passwords and signatures. Everything that is printed, and every report that
is written, goes through this module.
"""

from __future__ import annotations

import re
from typing import TextIO

LONGEST_MESSAGE = 500  # characters
LONGEST_SHOWN = 60  # characters of a value in a message
FIX = ". Fix: "  # what follows tells the user what to do
CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]"
)
"""Characters that move a cursor, change the direction of writing, or cannot be written; no tab and
no new line.
"""
URL_OWNER = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]+://)[^\s/?#'\"<>|]*@")
SECRET_SETTING = re.compile(
    r"([?&](?:x-amz-[a-z-]+|x-goog-[a-z-]+|awsaccesskeyid|googleaccessid|expires|key-pair-id|policy"
    r"|signature|sig|se|sp|sr|sv|st|spr|skoid|sktid|skt|ske|sks|skv|[a-z_-]*token|auth|jwt|key"
    r"|api_?-?key|password|passwd|pwd|[a-z_-]*secret|credentials?)=)[^\s&#'\"<>|*][^\s&#'\"<>|]*",
    re.IGNORECASE,
)
"""A setting in a URL's query that lets its reader in, or that is new with every signature."""
MASK = "***"


def masked(text: str) -> str:
    """Return a text whose URLs show no user, password, token or signature."""
    if "://" not in text:
        return text
    return SECRET_SETTING.sub(rf"\1{MASK}", URL_OWNER.sub(rf"\1{MASK}@", text))


def without_secrets(url: str) -> str:
    """Return a URL without its user, password, tokens and signatures, for names of copies."""
    path, question, query = URL_OWNER.sub(r"\1", url).partition("?")
    settings = []
    for setting in query.split("&"):
        if not SECRET_SETTING.match(f"?{setting}"):
            settings.append(setting)
    kept = "&".join(settings)
    return f"{path}?{kept}" if question and kept else path


def printable(text: str) -> str:
    """Return a text with visible codes in place of control characters, and with masked URLs.

    Tabs and ends of lines stay.
    """
    return CONTROLS.sub(_code, masked(text))


def one_line(text: str) -> str:
    """Return a text as a cell of a table shows it: in one line, without control characters."""
    return printable(text.replace("\n", "\\n").replace("\t", "\\t"))


def shown(value: object, longest: int = LONGEST_SHOWN) -> str:
    """Return a value as a message shows it: one line of printable characters, cut at a length."""
    try:
        text = str(value)
    except ValueError:  # a whole number with more digits than Python writes
        text = "of thousands of digits"
    words = one_line(" ".join(text[: 2 * longest].split()))
    return words if len(words) <= longest else f"{words[:longest]} ..."


def message(text: str) -> str:
    """Return one printable line of at most 500 characters; its remedy stays when it is cut."""
    line = one_line(text)
    if len(line) <= LONGEST_MESSAGE:
        return line
    body, fix, remedy = line.rpartition(FIX)
    end = f"{fix}{remedy}"
    if not body or len(end) > LONGEST_MESSAGE // 2:
        return f"{line[: LONGEST_MESSAGE - 3]}..."
    return f"{body[: LONGEST_MESSAGE - len(end) - 3]}...{end}"


def report(text: str) -> str:
    """Return a Markdown report in which names from data are no HTML and no control characters."""
    return printable(text).replace("<", "&lt;")


def _code(match: re.Match) -> str:
    """Return the code of a character as JSON writes it, e.g. \\u001b for an escape."""
    return f"\\u{ord(match.group()):04x}"


class PrintableStream:
    """A text stream that shows what is written to it as :func:`printable` does.

    A carriage return at the start of what is written stays: progress bars begin with one.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, and return its length."""
        start = "\r" if text.startswith("\r") else ""
        self._stream.write(start + printable(text.removeprefix(start)))
        return len(text)

    def writelines(self, lines) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)
