"""Prompts with knowledge of the classes: definitions of Wiktionary and WordNet, texts of GPT-3.

The files are those of ELEVATER's toolkit: JSON in files that end in ``.tsv``. A list has an object
for each class: ``classname`` with ``def_wiki``, ``def_wn`` and ``path_wn`` (a list of words), or
``classname`` with ``gpt3`` (a list of five texts). A class of the dataset has the knowledge of the
entry of its name, matched as class folders are.

A prompt is a filled template, a blank, and the tokens of `` ; NAME , TEXT`` with blanks between
them. All prompts of a class, each text in each template, are averaged. A prompt that is too long
keeps its end token: the toolkit cuts it off, so all of its long prompts have the same embedding.

Source: Elevater_Toolkit_IC ``evaluation/feature.py``, ``extract_text_features``, and
``config/default.py`` (``_C.KNOWLEDGE``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dimefm.data.image_files import is_litter
from dimefm.errors import DataError
from dimefm.evaluate.benchmark import CardIndex, fold
from dimefm.evaluate.datasets.class_names import normalize
from dimefm.evaluate.datasets.layouts import Dataset
from dimefm.evaluate.word_tokens import word_tokenize
from dimefm.runtime.printable import shown
from dimefm.storage.small_files import read_json

GPT3 = "gpt3"
WIKTIONARY = "wiktionary"
FIELDS = {WIKTIONARY: "def_wiki", "wordnet": "def_wn", "wordnet-path": "path_wn", GPT3: GPT3}
"""Kind of knowledge -> the key of an entry that holds it."""

AND = "wiki-and-gpt3"
THEN = "wiki-then-gpt3"
DEFINED_THEN = "definition-then-gpt3"

ENDINGS = (".tsv", ".json")
BEGINNING = "gpt3_"
END = "_knowledge"
WORDS_OF_PATH = 3
"""Nodes of a WordNet path that become a text, as in the toolkit."""

Texts = tuple[str, ...]


@dataclass(frozen=True)
class KnowledgeFile:
    """The knowledge of one kind in one file: class name -> its texts, () for a class without any.

    ``dataset`` is the dataset in the file's name, folded: ``dtd`` of ``GPT3_dtd.tsv``.
    """

    path: Path
    kind: str
    dataset: str
    texts: Mapping[str, Texts]


@dataclass(frozen=True)
class Knowledge:
    """The files of an evaluation, and how definitions and texts of GPT-3 go together.

    The first ``items`` texts of GPT-3 are used: with ``wiki-and-gpt3`` beside the definition, with
    ``wiki-then-gpt3`` for classes that have no entry in the file of definitions (an entry without a
    definition counts, as in the toolkit), with ``definition-then-gpt3`` for classes without a
    definition.
    """

    files: Sequence[KnowledgeFile]
    method: str = AND
    items: int = 1

    def describe(self) -> str:
        """Return what the protocol of scores says of the knowledge."""
        kinds = list(dict.fromkeys(file.kind for file in self.files))
        text = f"knowledge: {', '.join(kinds)}"
        if GPT3 in kinds:
            text += f", first {self.items} of GPT-3"
        if len(kinds) > 1:
            text += f", {self.method}"
        return text


def read_knowledge(
    paths: Sequence[str | Path], kind: str | None = None, method: str = AND, items: int = 1
) -> Knowledge:
    """Return the knowledge in files, or in the ``.tsv`` and ``.json`` files of folders.

    A file with texts of GPT-3 is told by its content. ``kind`` says what is taken from a file of
    definitions, those of Wiktionary without it. Raises DataError for a file that cannot be read or
    holds something else.
    """
    files = []
    for path in paths:
        for file in _files_at(Path(path)):
            files.append(read_file(file, kind))
    return Knowledge(files, method, items)


def _files_at(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = [
        inner
        for inner in sorted(path.iterdir())
        if inner.suffix in ENDINGS and not is_litter(inner.name)
    ]
    if not files:
        raise DataError(
            f"{path}: no file of knowledge; expected *_knowledge.tsv or GPT3_*.tsv. Fix: name the"
            " files, or their folder"
        )
    return files


def read_file(path: Path, kind: str | None = None) -> KnowledgeFile:
    """Return the knowledge of one kind in a file, see :func:`read_knowledge`."""
    try:
        entries = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read as JSON ({shown(error, 120)}). Fix: give a file of ELEVATER's"
            " resources/knowledge"
        ) from error
    if not isinstance(entries, list) or not entries:
        raise DataError(
            f"{path}: expected a list of classes, found {shown(entries)}. Fix: give a file of"
            " ELEVATER's resources/knowledge"
        )
    first = entries[0] if isinstance(entries[0], dict) else {}
    kind = GPT3 if GPT3 in first else kind or WIKTIONARY
    key = FIELDS[kind]
    texts: dict[str, Texts] = {}
    for number, entry in enumerate(entries, start=1):
        name = entry.get("classname") if isinstance(entry, dict) else None
        if not isinstance(name, str) or key not in entry:
            keys = list(entry) if isinstance(entry, dict) else entry
            raise DataError(
                f"{path}, entry {number}: expected classname and {key}, found {shown(keys)}. Fix:"
                " correct the file, or choose another --knowledge-kind"
            )
        try:
            texts[name] = READERS[kind](entry[key])
        except TypeError as error:
            raise DataError(
                f"{path}, entry {number}: {key} is {shown(entry[key])}, expected {error}. Fix:"
                " correct the file"
            ) from error
    return KnowledgeFile(path, kind, _dataset_in(path), texts)


def _definition(value: Any) -> Texts:
    if value is None or value == "":
        return ()
    if not isinstance(value, str):
        raise TypeError("a text or null")
    return (value,)


def _path(value: Any) -> Texts:
    """Return the first words of a WordNet path as one text."""
    nodes = value or []
    if not isinstance(nodes, list) or not all(isinstance(node, str) for node in nodes):
        raise TypeError("a list of words, or null")
    return (" ".join(nodes[:WORDS_OF_PATH]),) if nodes else ()


def _generated(value: Any) -> Texts:
    texts = value or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError("a list of texts")
    return tuple(texts)


READERS: dict[str, Callable[[Any], Texts]] = {
    WIKTIONARY: _definition,
    "wordnet": _definition,
    "wordnet-path": _path,
    GPT3: _generated,
}


def _dataset_in(path: Path) -> str:
    """Return the dataset in the name of a file, folded."""
    name = path.stem
    if name.lower().startswith(BEGINNING):
        name = name[len(BEGINNING) :]
    if name.lower().endswith(END):
        name = name[: -len(END)]
    return fold(name)


def with_knowledge(dataset: Dataset, knowledge: Knowledge | None) -> Dataset:
    """Return a dataset whose prompts have the knowledge of its classes, and a note on it.

    A file belongs to the dataset or card in its name; one whose name is neither belongs to every
    dataset. Raises DataError when two files of one kind belong to the dataset.
    """
    if knowledge is None:
        return dataset
    files = _files_of(dataset, knowledge.files)
    definitions = _entries_of(dataset, files, is_generated=False)
    generated = _entries_of(dataset, files, is_generated=True)
    added = []
    for number, name in enumerate(dataset.benchmark.classes):
        texts = _texts(definitions.get(number), generated.get(number, ()), knowledge)
        added.append(tuple(suffix(name, text) for text in texts))
    parts = [dataset.note] if dataset.note else []
    parts.append(_coverage(dataset, files))
    benchmark = dataclasses.replace(dataset.benchmark, added=tuple(added))
    return dataclasses.replace(dataset, benchmark=benchmark, note="; ".join(parts))


def _files_of(dataset: Dataset, files: Sequence[KnowledgeFile]) -> list[KnowledgeFile]:
    """Return the files that belong to a dataset."""
    cards = CardIndex()
    names = {fold(dataset.benchmark.name), fold(dataset.folder.name)}
    own = []
    for file in files:
        card = cards.of(file.dataset)
        if file.dataset in names or card is None or card == dataset.card:
            own.append(file)
    kinds: dict[bool, KnowledgeFile] = {}
    for file in own:
        other = kinds.setdefault(file.kind == GPT3, file)
        if other is not file:
            raise DataError(
                f"{file.path}: knowledge of {dataset.benchmark.name}, and so is {other.path}."
                " Fix: give one file of definitions and one of GPT-3 for a dataset"
            )
    return own


def _entries_of(
    dataset: Dataset, files: Sequence[KnowledgeFile], *, is_generated: bool
) -> dict[int, Texts]:
    """Return class number -> the texts of its entry, for the classes that have an entry."""
    entries: dict[int, Texts] = {}
    for file in files:
        if (file.kind == GPT3) == is_generated:
            entries = matched(file.texts, dataset.benchmark.classes, dataset.benchmark.aliases)
    return entries


def matched(
    texts: Mapping[str, Texts], classes: Sequence[str], aliases: Mapping[str, str]
) -> dict[int, Texts]:
    """Return class number -> the texts of the entry of its name.

    An entry of the very name comes first; else the one entry whose name is equal without case,
    blanks and punctuation, or an alias of the class. Several such entries are none.
    """
    usual = {normalize(alias): normalize(name) for alias, name in aliases.items()}
    by_sound: dict[str, list[str]] = {}
    for name in texts:
        sound = normalize(name)
        by_sound.setdefault(usual.get(sound, sound), []).append(name)
    entries = {}
    for number, name in enumerate(classes):
        near = by_sound.get(normalize(name), [])
        if name in texts:
            entries[number] = texts[name]
        elif len(near) == 1:
            entries[number] = texts[near[0]]
    return entries


def _texts(definition: Texts | None, generated: Texts, knowledge: Knowledge) -> Texts:
    """Return the texts of a class; "" is a plain prompt among the others.

    ``definition`` is None for a class without an entry, and () for an entry without a text. Such an
    entry gives a plain prompt, as in the toolkit.
    """
    texts: list[str] = []
    if definition is not None:
        texts += definition or ("",)
    takes_generated = knowledge.method == AND
    if knowledge.method == THEN:
        takes_generated = definition is None
    elif knowledge.method == DEFINED_THEN:
        takes_generated = not definition
    if takes_generated and generated:
        if knowledge.method == DEFINED_THEN:
            texts = []
        texts += generated[: knowledge.items]
    return tuple(texts)


def suffix(name: str, text: str) -> str:
    """Return what follows a filled template: a blank and the tokens, "" for no text."""
    if not text:
        return ""
    return " " + " ".join(word_tokenize(f" ; {name} , {text}"))


def _coverage(dataset: Dataset, files: Sequence[KnowledgeFile]) -> str:
    """Return how many classes have knowledge of each kind."""
    if not files:
        return "no knowledge file: plain prompts"
    benchmark = dataset.benchmark
    parts = []
    for file in files:
        entries = matched(file.texts, benchmark.classes, benchmark.aliases)
        covered = sum(1 for texts in entries.values() if texts)
        parts.append(f"{file.kind} for {covered} of {len(benchmark.classes)} classes")
    return f"knowledge: {', '.join(parts)}"
