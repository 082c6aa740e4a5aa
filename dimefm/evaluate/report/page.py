"""A report as one HTML page that needs no other file and asks no server for anything.

The content security policy of the page forbids all requests; its style sheet and its script are
known by their digests. Everything that came with data is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dimefm.evaluate.report.parts import Figure, Gallery, Picture, Section, Table, Tile
from dimefm.runtime.printable import one_line

FOLDER = Path(__file__).parent
GENERATOR = '<meta name="generator" content="dimefm eval report">'
FOLDED_ROWS = 16
"""Rows from which a table is folded away."""


def page(sections: Sequence[Section], downloads: Mapping[str, tuple[str, str]]) -> str:
    """Return the page.

    ``downloads`` maps names of files to (MIME type, content); they are links at the end.
    """
    style = (FOLDER / "style.css").read_text(encoding="utf-8")
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(style, script)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<meta name="referrer" content="no-referrer">',
        GENERATOR,
        f"<title>{_safe(sections[0].title)}</title>",
        f"<style>{style}</style>",
        "</head>",
        "<body>",
        '<div class="page">',
        "<header>",
        '<p class="eyebrow">Evaluation report</p>',
        f"<h1>{_safe(sections[0].title)}</h1>",
        *[f'<p class="lead">{_safe(line)}</p>' for line in sections[0].text],
        *_navigation(sections[1:]),
        "</header>",
        "<main>",
        f'<section id="{sections[0].name}" aria-label="Main numbers">',
        *_contents(sections[0]),
        "</section>",
    ]
    for section in sections[1:]:
        lines += _section(section)
    lines += [
        "</main>",
        *_footer(downloads),
        "</div>",
        f"<script>{script}</script>",
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def _policy(style: str, script: str) -> str:
    """Return the content security policy: nothing from elsewhere, only this style and script."""
    rules = (
        "default-src 'none'",
        "img-src data:",
        f"style-src '{_digest(style)}'",
        f"script-src '{_digest(script)}'",
        "base-uri 'none'",
        "form-action 'none'",
    )
    return "; ".join(rules)


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _safe(text: str) -> str:
    """Return a text so that a browser shows it as it is."""
    return html.escape(one_line(text), quote=True)


def _navigation(sections: Sequence[Section]) -> Iterator[str]:
    yield '<nav aria-label="Sections">'
    for section in sections:
        yield f'<a href="#{section.name}">{_safe(section.title)}</a>'
    yield "</nav>"


def _section(section: Section) -> Iterator[str]:
    yield f'<section id="{section.name}">'
    yield f"<h2>{_safe(section.title)}</h2>"
    for line in section.text:
        yield f"<p>{_safe(line)}</p>"
    yield from _contents(section)
    yield "</section>"


def _contents(section: Section) -> Iterator[str]:
    """Yield what a section has below its title."""
    if section.tiles:
        yield '<ul class="tiles">'
        for tile in section.tiles:
            yield _tile(tile)
        yield "</ul>"
    for figure in section.figures:
        if not figure.is_small:
            yield from _figure(figure)
    small = [figure for figure in section.figures if figure.is_small]
    if small:
        yield '<div class="pair">'
        for figure in small:
            yield from _figure(figure)
        yield "</div>"
    for gallery in section.galleries:
        yield from _gallery(gallery)
    for table in section.tables:
        yield from _table(table)


def _tile(tile: Tile) -> str:
    parts = [
        f'<span class="label">{_safe(tile.label)}</span>',
        f'<span class="value">{_safe(tile.value)}</span>',
        f'<span class="detail">{_safe(tile.detail)}</span>',
    ]
    return f"<li>{''.join(parts)}</li>"


def _figure(figure: Figure) -> Iterator[str]:
    yield "<figure>"
    yield f"<figcaption><h3>{_safe(figure.title)}</h3></figcaption>"
    if figure.keys:
        yield '<ul class="legend">'
        for key in figure.keys:
            yield f'<li><i class="{key.style}"></i>{_safe(key.label)}</li>'
        yield "</ul>"
    # the drawings come from a library that escapes texts, and were read again as XML
    if figure.is_small:
        yield f'<div class="drawing">{figure.narrow}</div>'
    else:
        yield f'<div class="drawing wide">{figure.wide}</div>'
        yield f'<div class="drawing narrow">{figure.narrow}</div>'
    if figure.note:
        yield f'<p class="note">{_safe(figure.note)}</p>'
    if figure.table is not None:
        yield "<details>"
        yield "<summary>Table of this figure</summary>"
        yield from _plain_table(figure.table)
        yield "</details>"
    yield "</figure>"


def _table(table: Table) -> Iterator[str]:
    """Yield a table; a long one is folded away."""
    if len(table.rows) < FOLDED_ROWS:
        yield from _plain_table(table)
        return
    yield '<details class="table">'
    yield f"<summary>{_safe(table.caption)}: {len(table.rows)} rows</summary>"
    yield from _plain_table(table)
    yield "</details>"


def _plain_table(table: Table) -> Iterator[str]:
    name = _safe(table.caption)
    yield '<div class="table">'
    yield f'<div class="bar"><p class="name">{name}</p></div>'
    yield f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">'
    yield "<table>"
    yield f"<thead>{_row(table.head, table.left, is_head=True)}</thead>"
    yield "<tbody>"
    for cells in table.rows:
        yield _row(cells, table.left)
    yield "</tbody>"
    yield "</table>"
    yield "</div>"
    if table.note:
        yield f'<p class="note">{_safe(table.note)}</p>'
    yield "</div>"


def _row(cells: Sequence[str], left: Sequence[int], is_head: bool = False) -> str:
    parts = []
    for number, cell in enumerate(cells):
        kind = ' class="words"' if number in left else ""
        if is_head:
            parts.append(f'<th scope="col"{kind}>{_safe(cell)}</th>')
        elif number == 0:
            parts.append(f'<th scope="row"{kind}>{_safe(cell)}</th>')
        else:
            parts.append(f"<td{kind}>{_safe(cell)}</td>")
    return f"<tr>{''.join(parts)}</tr>"


def _gallery(gallery: Gallery) -> Iterator[str]:
    yield f'<h3 class="words">{_safe(gallery.title)}</h3>'
    if gallery.note:
        yield f'<p class="note">{_safe(gallery.note)}</p>'
    yield '<ul class="gallery">'
    for picture in gallery.pictures:
        yield _picture(picture)
    yield "</ul>"


def _picture(picture: Picture) -> str:
    mark = {True: ' class="is-right"', False: ' class="is-wrong"', None: ""}[picture.is_right]
    parts = []
    if picture.jpeg is not None:
        data = base64.b64encode(picture.jpeg).decode("ascii")
        kind = ' class="small"' if picture.is_small else ""
        parts.append(f'<img{kind} src="data:image/jpeg;base64,{data}" alt="{_safe(picture.alt)}">')
    parts.append(f"<b>{_safe(picture.title)}</b>")
    parts += [f"<span>{_safe(line)}</span>" for line in picture.lines]
    return f"<li{mark}>{''.join(parts)}</li>"


def _footer(downloads: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    yield "<footer>"
    yield "<p>This page holds all of its data and asks no server for anything.</p>"
    yield '<div class="downloads">'
    for name, (kind, content) in downloads.items():
        data = base64.b64encode(content.encode("utf-8")).decode("ascii")
        address = f"data:{kind};base64,{data}"
        yield f'<a class="button" download="{_safe(name)}" href="{address}">{_safe(name)}</a>'
    yield "</div>"
    yield "</footer>"
