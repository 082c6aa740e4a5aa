"""Matplotlib's SVG made fit for a page: text stays text, and the page's style sheet has the colors.

A chart is drawn in the colors of ``INKS``. Each becomes a class, such as ``f-text`` for what is
filled and ``s-text`` for what is stroked, which the style sheet colors for light and for dark.
Nothing is left that a strict content security policy refuses: no styles in attributes.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any

from dimefm.runtime.printable import one_line

PIXELS = 72
"""Points of matplotlib to an inch: a point is a pixel of the page."""

TEXT = "#010101"
MUTED = "#020202"
GRID = "#030303"
PAPER = "#fdfdfd"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#040404")
"""Colors of models, as in plots of runs. Source: Okabe and Ito, 2008."""

INKS = {
    TEXT: "text",
    MUTED: "muted",
    GRID: "grid",
    PAPER: "paper",
    **{color: f"c{number}" for number, color in enumerate(SERIES)},
}

SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": False,
    "font.family": "DejaVu Sans",
}
COLORED = {"fill": "f", "stroke": "s"}
DROPPED = ("font-family", "stroke-linejoin", "-inkscape-font-specification")
FONT = re.compile(r"(?:(?P<weight>bold|[1-9]00)\s+)?(?P<size>[\d.]+px)\s")
DECIMALS = re.compile(r"-?\d+\.\d{2,}")
REFERENCE = re.compile(r"#([\w.-]+)")


def color(number: int) -> str:
    """Return the color of a model by its number."""
    return SERIES[number % len(SERIES)]


def style(number: int) -> str:
    """Return the class of a model's color by the model's number."""
    return INKS[color(number)]


def rendered(figure: Any, name: str, title: str, description: str, hints: Mapping[str, str]) -> str:
    """Return a figure of matplotlib as an ``svg`` element for a page.

    ``name`` differs from the names of all other drawings of the page. ``title`` and ``description``
    are read by programs that read pages aloud. ``hints`` maps the gid of an artist to a text that
    appears where a mouse rests on it.
    """
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    return _for_page(file.getvalue(), name, title, description, hints)


def _for_page(text: str, name: str, title: str, description: str, hints: Mapping[str, str]) -> str:
    root = ElementTree.fromstring(text)
    for element in root.iter():
        element.tag = _local(element.tag)
        _plain_attributes(element)
        if element.text is not None and not element.text.strip():
            element.text = None
        element.tail = None
    for child in list(root):
        is_style = child.tag == "defs" and child.find("style") is not None
        if child.tag == "metadata" or is_style:
            root.remove(child)
    _hint(root, hints)
    _name_apart(root, name)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-description")
    labels = []
    for kind, words in (("title", title), ("desc", description)):
        label = ElementTree.Element(kind)
        label.text = one_line(words)
        label.set("id", f"{name}-{'title' if kind == 'title' else 'description'}")
        labels.append(label)
    root[:0] = labels
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    """Return a name without its namespace."""
    return name.rpartition("}")[2]


def _plain_attributes(element: ElementTree.Element) -> None:
    """Turn the style of an element into attributes and classes, and shorten its numbers."""
    attributes = {_local(key): value for key, value in element.attrib.items()}
    style_text = attributes.pop("style", "")
    classes = []
    for declaration in style_text.split(";"):
        key, _, value = declaration.partition(":")
        key = key.strip()
        value = value.strip()
        if key in COLORED and value in INKS:
            classes.append(f"{COLORED[key]}-{INKS[value]}")
        elif key == "font":
            attributes.update(_font(value))
        elif key and key not in DROPPED:
            attributes[key] = value
    if classes:
        attributes["class"] = " ".join(classes)
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    for key in ("d", "x", "y", "transform", "points"):
        if key in attributes:
            attributes[key] = DECIMALS.sub(_rounded, " ".join(attributes[key].split()))
    element.attrib.clear()
    element.attrib.update(attributes)


def _font(value: str) -> dict[str, str]:
    """Return the attributes for size and weight that a ``font`` states."""
    match = FONT.search(f"{value} ")
    if match is None:
        return {}
    attributes = {"font-size": match["size"]}
    if match["weight"]:
        attributes["font-weight"] = match["weight"]
    return attributes


def _rounded(match: re.Match) -> str:
    return f"{float(match.group()):.1f}"


def _hint(root: ElementTree.Element, hints: Mapping[str, str]) -> None:
    """Add the texts that appear under a mouse."""
    for element in root.iter("g"):
        hint = hints.get(element.get("id", ""))
        if hint is not None:
            title = ElementTree.Element("title")
            title.text = one_line(hint)
            element.insert(0, title)


def _name_apart(root: ElementTree.Element, name: str) -> None:
    """Keep only the ids that the drawing refers to, each with the drawing's name before it."""
    referred: set[str] = set()
    for element in root.iter():
        for key in ("href", "clip-path"):
            referred.update(REFERENCE.findall(element.get(key, "")))
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in referred:
            element.set("id", f"{name}-{own}")
        for key in ("href", "clip-path"):
            if key in element.attrib:
                element.set(key, REFERENCE.sub(rf"#{name}-\1", element.attrib[key]))
