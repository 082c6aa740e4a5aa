"""Benchmark: one evaluation dataset as data: class names, prompt templates, metric, split sizes.

A card is one TOML file in ``benchmarks/``; its file name is the benchmark's name. What lies next to
the user's images wins over the card: ``classnames.txt`` (one name per line, line number = label)
and ``templates.txt`` or clip_benchmark's ``zeroshot_classification_templates.txt`` (one per line,
``{}`` or ``{c}`` where the class name goes).
"""

from __future__ import annotations

import functools
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeGuard

from dimefm import plugins
from dimefm.data.folders import CLASS_FILE, TEMPLATE_FILES
from dimefm.errors import DataError, did_you_mean
from dimefm.evaluate.datasets import class_folders, class_names
from dimefm.evaluate.datasets.text_files import text_lines
from dimefm.evaluate.metrics import METRICS
from dimefm.runtime.printable import shown
from dimefm.runtime.text import file_key
from dimefm.storage.small_files import Unreadable, read_toml

PLAIN_TEMPLATE = "a photo of a {}."
VERSION = re.compile(r"-(\d{8}|v\d+(\.\d+)*)$")
WORDNET_ID = re.compile(r"n\d{8}( n\d{8})*")
ELEVATER_SETS = 20
FOLDER_NAMES = "names of the class folders"
GIVEN_NAMES = "class names given for the evaluation"
EXPECTED = {  # key of a card -> what its value is; aliases are checked after classes
    "title": "a string",
    "suite": "a string",
    "metric": f"{', '.join(sorted(METRICS)[:-1])} or {max(METRICS)}",
    "train": "a number of images above 0",
    "val": "a number of images above 0",
    "test": "a number of images above 0",
    "source": "a string",
    "crop": "true or false",
    "multilabel": "true or false",
    "split": "test or val",
    "inner": "a list of folders inside the dataset's folder",
    "other_folders": "true or false",
    "borders": "a table of inner folders, each with a number of pixels above 0",
    "folders": "a list of strings",
    "classes": "a list of strings",
    "templates": "a list of strings with {} where the class name goes",
    "aliases": "a table of other names, each with a name of classes",
    "within": "the name of a card with wnids that is within no other",
    "wnids": "a list with a WordNet id, like n01440764, for each class, or several with blanks",
    "renamed": "a table of WordNet ids in wnids, each with a name",
}
REQUIRED = ("title", "metric", "classes", "templates", "source")
SHARED = ("classes", "templates")
"""Keys that a card within another one may take from it."""


@dataclass(frozen=True)
class Benchmark:
    """One evaluation dataset.

    ``classes`` stand in label order; ``templates`` hold ``{}`` once or more; ``metric`` is a name
    of :data:`dimefm.evaluate.metrics.METRICS`; ``train``, ``val`` and ``test`` are the published
    numbers of images (None: unknown, or no such split). ``crop`` says that images are cropped to
    the centre after resizing (else the whole image is squeezed to a square). ``multilabel`` rows
    have any number of classes.
    ``aliases`` maps other names of a class to the one in the card; ``folders`` are other names of
    the dataset's folder; ``suite`` is the collection whose average it counts in.

    ``split`` is the split that is scored, ``"test"`` or ``"val"``. ``wnids`` are the WordNet ids of
    each class, () where they are unknown; those of a card ``within`` another one are among its.
    ``inner`` are folders inside the dataset's folder that may hold it; ``borders`` says how many
    pixels are cropped from the PNG files in some of them. With ``other_folders``, class folders of
    unknown names are left out. ``added`` are the texts that follow the filled templates of each
    class, one after another; () for plain prompts.
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
    split: str = "test"
    inner: tuple[str, ...] = ()
    other_folders: bool = False
    borders: Mapping[str, int] = field(default_factory=dict)
    within: str = ""
    wnids: tuple[tuple[str, ...], ...] = ()
    val: int | None = None
    added: tuple[tuple[str, ...], ...] = ()


def load(name: str) -> Benchmark:
    """Return the benchmark of card ``name``; raise DataError when there is none, or the card has a
    fault. No other card is read in full, so a fault in one stops only what needs that card.
    """
    return _read_card(plugins.path("benchmarks", name, DataError))


def suite(name: str = "elevater") -> list[str]:
    """Return the names of the cards that belong to a suite, sorted.

    A card with a fault belongs to the suite that it names; one that is not TOML belongs to none.
    """
    return [card for card in plugins.names("benchmarks") if _unchecked(card).get("suite") == name]


def prompts(benchmark: Benchmark) -> list[list[str]]:
    """Return C lists of prompts: every template filled with each class name, in class and template
    order.
    """
    return [prompts_of(benchmark, number) for number in range(len(benchmark.classes))]


def prompts_of(benchmark: Benchmark, number: int) -> list[str]:
    """Return the prompts of one class: each text of ``added`` behind every filled template."""
    name = benchmark.classes[number]
    filled = [template.replace("{}", name) for template in benchmark.templates]
    added = benchmark.added[number] if benchmark.added else ()
    if not added:
        return filled
    return [f"{text}{suffix}" for suffix in added for text in filled]


def card_for(folder_name: str) -> str | None:
    """Return the card that claims a folder of this name, or None; see :class:`CardIndex`."""
    return CardIndex().of(folder_name)


class CardIndex:
    """Cards by the folder names that they claim.

    Case is ignored, ``-``, ``_`` and blanks are one, and so is a date or version at the end
    (``cifar-10_20211007``). A card may have a fault, which :func:`load` reports.
    """

    def __init__(self):
        self._by_name: dict[str, str] = {}
        self._by_folder: dict[str, str] = {}
        for card in plugins.names("benchmarks"):
            self._by_name.setdefault(fold(card), card)
            folders = _unchecked(card).get("folders", [])
            if _is_strings(folders):
                for folder in folders:
                    self._by_folder.setdefault(fold(folder), card)

    def of(self, folder_name: str) -> str | None:
        """Return the card that claims a folder of this name, or None."""
        folded = fold(folder_name)
        wanted = (folded, VERSION.sub("", folded))
        for cards in (self._by_name, self._by_folder):
            for name in wanted:
                if name in cards:
                    return cards[name]
        return None


def for_folder(folder: Path) -> Benchmark:
    """Return the benchmark of a dataset folder: its card, with the class names and templates that
    lie next to the data.

    A folder that no card claims is scored by accuracy under its own name; its class names are those
    of its ``classnames.txt``, else of its class folders. Raises DataError when there is neither, or
    one of the files cannot be used.
    """
    name = card_for(folder.name)
    classes = lines_of(folder / CLASS_FILE)
    templates = templates_beside(folder)
    if name is not None:
        card = _with_templates(load(name), templates)
        return card if classes is None else _with_names(card, classes, folder / CLASS_FILE)
    source = f"{CLASS_FILE} next to the data"
    known = plugins.names("benchmarks")
    unreadable = [card for card in known if not _unchecked(card)]
    if classes is None and not unreadable:
        classes = class_folders.names(folder)
        source = FOLDER_NAMES
    if not classes:
        near = did_you_mean(folder.name, known)
        if not near.startswith("did you mean"):
            near = "dimefm prompts lists the cards"
        correct = f", or correct the card {', '.join(unreadable)}" if unreadable else ""
        raise DataError(
            f"{folder}: no benchmark card claims a folder of this name ({near}) and there is no"
            f" {CLASS_FILE}. Fix: rename the folder, or add {CLASS_FILE} with one class name per"
            f" line in label order{correct}"
        )
    return Benchmark(
        name=file_key(folder.name),
        title=file_key(folder.name),
        folders=(),
        metric="accuracy",
        classes=classes,
        templates=templates or (PLAIN_TEMPLATE,),
        train=None,
        test=None,
        source=source,
    )


def _with_templates(card: Benchmark, templates: tuple[str, ...] | None) -> Benchmark:
    """Return the card with other templates, itself for None."""
    return card if templates is None else replace(card, templates=templates)


def _with_names(card: Benchmark, names: tuple[str, ...], path: Path) -> Benchmark:
    """Return the card with the class names that lie next to the data.

    Where these stand for classes with WordNet ids, the card's names stay: the file then only says
    which class each label is.
    """
    if card.wnids:
        try:
            class_names.numbers(
                names, card.classes, card.aliases, str(path), positional=True, ids=card.wnids
            )
        except DataError:
            return replace(card, classes=names, wnids=(), within="", aliases={})
        return card
    return replace(card, classes=names)


def templates_beside(folder: Path) -> tuple[str, ...] | None:
    """Return the templates next to the data, None when there are none."""
    for file in TEMPLATE_FILES:
        lines = lines_of(folder / file)
        if lines is not None:
            return tuple(template_of(line, folder / file) for line in lines)
    return None


def fold(name: str) -> str:
    """Return a benchmark's or folder's name without case, and with one kind of separator."""
    return re.sub(r"[-_ ]+", "-", name.strip().casefold())


@functools.cache
def _read_card(path: Path) -> Benchmark:
    card = dict(_toml(path))
    for key in card:
        if key not in EXPECTED:
            raise DataError(
                f"{path}: key '{key}' is unknown; expected {', '.join(EXPECTED)}. Fix: rename it"
                f" ({did_you_mean(key, EXPECTED)}) or remove it"
            )
    for key in REQUIRED:
        if key not in card and not (key in SHARED and "within" in card):
            raise DataError(
                f"{path}: key '{key}' is missing; expected {EXPECTED[key]}. Fix: add {key}"
            )
    for key, expected in EXPECTED.items():
        if key in card and not _fits(key, card[key], card):
            got = textwrap.shorten(repr(card[key]), 80)
            raise DataError(f"{path}: {key} is {got}; expected {expected}. Fix: correct {key}")
    return _resolved(path, card)


def _resolved(path: Path, card: dict) -> Benchmark:
    """Return the benchmark of a card whose values are right, with what it shares with another.

    Raises DataError when its classes and WordNet ids do not fit together.
    """
    wnids = [tuple(ids.split()) for ids in card.pop("wnids", ())]
    renamed = card.pop("renamed", {})
    parent = load(card["within"]) if "within" in card else None
    if parent is not None:
        wnids = wnids or list(parent.wnids)
        known = {identity for ids in parent.wnids for identity in ids}
        unknown = [identity for ids in wnids for identity in ids if identity not in known]
        if unknown:
            raise DataError(
                f"{path}: wnids has {unknown[0]}, expected WordNet ids of the card {parent.name}."
                " Fix: correct wnids"
            )
        card.setdefault("templates", list(parent.templates))
        if "classes" not in card:
            card["classes"] = _names_of(wnids, parent, renamed)
            card["aliases"] = _former_names(wnids, parent, renamed) | card.get("aliases", {})
    if wnids and len(wnids) != len(card["classes"]):
        raise DataError(
            f"{path}: {len(wnids)} wnids for {len(card['classes'])} classes; expected one for each"
            " class. Fix: correct wnids"
        )
    lists: dict = {
        key: tuple(card.pop(key, ())) for key in ("folders", "classes", "templates", "inner")
    }
    sizes = {key: card.pop(key, None) for key in ("train", "val", "test")}
    return Benchmark(name=path.stem, wnids=tuple(wnids), **lists, **sizes, **card)


def names_by_wnid(card: Benchmark) -> dict[str, str]:
    """Return WordNet id -> class name of a card."""
    names: dict[str, str] = {}
    for ids, name in zip(card.wnids, card.classes, strict=True):
        for identity in ids:
            names[identity] = name
    return names


def _names_of(
    wnids: list[tuple[str, ...]], parent: Benchmark, renamed: Mapping[str, str]
) -> list[str]:
    """Return the name of each class: the one that a card gives itself, or its parent's."""
    names = names_by_wnid(parent)
    return [renamed.get(ids[0], names[ids[0]]) for ids in wnids]


def _former_names(
    wnids: list[tuple[str, ...]], parent: Benchmark, renamed: Mapping[str, str]
) -> dict[str, str]:
    """Return the parent's names of renamed classes, each with the new name."""
    names = names_by_wnid(parent)
    own = set(_names_of(wnids, parent, renamed))
    return {
        names[ids[0]]: renamed[ids[0]]
        for ids in wnids
        if ids[0] in renamed and names[ids[0]] not in own
    }


def _fits(key: str, value: object, card: Mapping) -> bool:
    """Say whether a value of a card is what ``EXPECTED`` says of its key."""
    if key == "metric":
        return isinstance(value, str) and value in METRICS
    if key in ("train", "val", "test"):
        return type(value) is int and value > 0
    if key in ("crop", "multilabel", "other_folders"):
        return isinstance(value, bool)
    if key in ("folders", "classes", "inner"):
        return _is_strings(value) and (bool(value) or key not in REQUIRED)
    if key == "templates":
        return _is_strings(value) and bool(value) and all("{}" in template for template in value)
    if key == "aliases":
        classes = card.get("classes", ())
        return isinstance(value, dict) and all(name in classes for name in value.values())
    if key == "borders":
        return _is_table(value) and all(
            type(pixels) is int and pixels > 0 for pixels in value.values()
        )
    if key in ("split", "within", "wnids", "renamed"):
        return _fits_imagenet(key, value, card)
    return isinstance(value, str) and (bool(value) or key not in REQUIRED)


def _fits_imagenet(key: str, value: object, card: Mapping) -> bool:
    """Say whether a value of a card is right, of a key that ImageNet and its variants have."""
    if key == "split":
        return value in ("test", "val")
    if key == "within":
        parent = _unchecked(value) if isinstance(value, str) else {}
        return "wnids" in parent and "within" not in parent
    if key == "wnids":
        return _is_strings(value) and bool(value) and all(map(WORDNET_ID.fullmatch, value))
    if not _is_table(value) or not _is_strings(list(value.values())):
        return False
    return set(value) <= set(card.get("wnids", ()))


def _is_table(value: object) -> TypeGuard[dict]:
    return isinstance(value, dict)


def _is_strings(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


@functools.cache
def _toml(path: Path) -> dict:
    """Return what a card holds, unchecked; raise DataError when it is not TOML."""
    try:
        return read_toml(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); expected a TOML card. Fix: make it a file"
            " that can be read, or remove it"
        ) from error
    except Unreadable as error:
        raise DataError(
            f"{path}: not a TOML card ({error}). Fix: correct it, or remove the file"
        ) from error


def _unchecked(name: str) -> dict:
    """Return what the card ``name`` holds, unchecked; {} when it cannot be read."""
    try:
        return _toml(plugins.path("benchmarks", name, DataError))
    except DataError:
        return {}


def lines_of(path: Path) -> tuple[str, ...] | None:
    """Return the lines of a text file without trailing blank ones, or None when it is absent.

    Raises DataError for a blank line, or when the file has no line.
    """
    if not path.is_file():
        return None
    lines = [line.strip() for line in text_lines(path)]
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines or not lines:
        number = lines.index("") + 1 if lines else 1
        raise DataError(
            f"{path}, line {number}: blank, but each line stands for a label. Fix: fill it or"
            " remove it"
        )
    return tuple(lines)


def template_of(line: str, path: str | Path) -> str:
    """Return a template with ``{}`` where the class name goes; ``path`` is for the error."""
    filled = line.replace("{c}", "{}")
    if "{}" not in filled:
        raise DataError(
            f"{path}: template '{shown(line)}' has no place for the class name. Fix: write {{}} or"
            " {c} there"
        )
    return filled
