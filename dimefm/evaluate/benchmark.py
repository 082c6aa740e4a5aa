"""Benchmark: one evaluation dataset as data: class names, prompt templates, metric, split sizes.

A card is one TOML file in ``benchmarks/``; its file name is the benchmark's name. What lies beside
the user's images wins over the card: ``classnames.txt`` (one name per line, line number = label)
and ``templates.txt`` or clip_benchmark's ``zeroshot_classification_templates.txt`` (one per line,
``{}`` or ``{c}`` where the class name goes).
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from dimefm import plugins
from dimefm.errors import DataError, did_you_mean
from dimefm.evaluate.metrics import METRICS

CLASS_FILE = "classnames.txt"
TEMPLATE_FILES = ("templates.txt", "zeroshot_classification_templates.txt")
PLAIN_TEMPLATE = "a photo of a {}."
VERSION = re.compile(r"-(\d{8}|v\d+(\.\d+)*)$")


@dataclass(frozen=True)
class Benchmark:
    """One evaluation dataset.

    ``classes`` stand in label order; ``templates`` hold ``{}`` once or more; ``metric`` is a name
    of :data:`dimefm.evaluate.metrics.METRICS`; ``train`` and ``test`` are the published numbers of
    images (None: unknown). ``crop`` says that images are cropped to the centre after resizing (else
    the whole image is squeezed to a square). ``multilabel`` rows have any number of classes.
    ``aliases`` maps other names of a class to the one in the card; ``folders`` are other names of
    the dataset's folder; ``suite`` is the collection whose average it counts in.
    """

    name: str
    title: str
    folders: tuple[str, ...]
    metric: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    train: int | None
    test: int | None
    crop: bool = True
    multilabel: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    suite: str = ""


def load(name: str) -> Benchmark:
    """Return the benchmark of card ``name``; raise DataError when there is none, or it is written
    wrongly.
    """
    return _read_card(plugins.path("benchmarks", name, DataError))


def suite(name: str = "elevater") -> list[str]:
    """Return the names of the cards that belong to a suite, sorted."""
    return [card for card in plugins.names("benchmarks") if load(card).suite == name]


def prompts(benchmark: Benchmark) -> list[list[str]]:
    """Return C lists of prompts: every template filled with each class name, in class and template
    order.
    """
    return [
        [template.replace("{}", name) for template in benchmark.templates]
        for name in benchmark.classes
    ]


def card_for(folder_name: str) -> str | None:
    """Return the card that claims a folder of this name, or None.

    Case is ignored, ``-``, ``_`` and blanks are one, and so is a date or version at the end
    (``cifar-10_20211007``).
    """
    folded = _fold(folder_name)
    wanted = {folded, VERSION.sub("", folded)}
    for name in plugins.names("benchmarks"):
        if not wanted.isdisjoint(map(_fold, (name, *load(name).folders))):
            return name
    return None


def for_folder(folder: Path) -> Benchmark:
    """Return the benchmark of a dataset folder: its card, with the class names and templates that
    lie beside the data.

    A folder that no card claims needs a ``classnames.txt``; it is then scored by accuracy under its
    own name. Raises DataError when there is neither, or one of the files cannot be used.
    """
    name = card_for(folder.name)
    classes = _lines(folder / CLASS_FILE)
    templates = next(
        (found for found in map(_lines, (folder / file for file in TEMPLATE_FILES)) if found), None
    )
    if templates is not None:
        templates = tuple(_template(line, folder) for line in templates)
    if name is not None:
        card = load(name)
        return replace(card, classes=classes or card.classes, templates=templates or card.templates)
    if classes is None:
        known = plugins.names("benchmarks")
        raise DataError(
            f"{folder}: no benchmark card claims a folder of this name"
            f" ({did_you_mean(folder.name, known)}) and there is no {CLASS_FILE}; rename the"
            f" folder, or add {CLASS_FILE} with one class name per line in label order"
        )
    return Benchmark(
        name=folder.name,
        title=folder.name,
        folders=(),
        metric="accuracy",
        classes=classes,
        templates=templates or (PLAIN_TEMPLATE,),
        train=None,
        test=None,
        source=f"{CLASS_FILE} beside the data",
    )


def _fold(name: str) -> str:
    return re.sub(r"[-_ ]+", "-", name.strip().casefold())


@functools.cache
def _read_card(path: Path) -> Benchmark:
    try:
        card = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a TOML card ({error}); correct it") from error
    known = [item.name for item in fields(Benchmark) if item.name != "name"]
    for key in card:
        if key not in known:
            raise DataError(f"{path}: unknown key '{key}': {did_you_mean(key, known)}")
    missing = [
        key for key in ("title", "metric", "classes", "templates", "source") if not card.get(key)
    ]
    if missing:
        raise DataError(f"{path}: the card lacks {', '.join(missing)}; add them")
    if card["metric"] not in METRICS:
        raise DataError(
            f"{path}: unknown metric '{card['metric']}': {did_you_mean(card['metric'], METRICS)}"
        )
    lists: dict = {key: tuple(card.pop(key, ())) for key in ("folders", "classes", "templates")}
    sizes = {key: card.pop(key, None) for key in ("train", "test")}
    return Benchmark(name=path.stem, **lists, **sizes, **card)


def _lines(path: Path) -> tuple[str, ...] | None:
    """Return the lines of a text file without trailing blank ones, or None when it is absent."""
    if not path.is_file():
        return None
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if "" in lines:
        raise DataError(
            f"{path}, line {lines.index('') + 1}: blank, but each line stands for a label; fill or"
            " remove it"
        )
    return tuple(lines)


def _template(line: str, folder: Path) -> str:
    filled = line.replace("{c}", "{}")
    if "{}" not in filled:
        raise DataError(
            f"{folder}: template '{line}' has no place for the class name; write {{}} there"
        )
    return filled
