"""What the study learns from: pairs with frozen captions, sentences, and a text tower's real
features, as ordinary files.

Everything is drawn from real sets with one seed, so that it is the same wherever it is made. The
caches of it are made by ``dimefm extract-features`` and its neighbours, see ``[[prepare]]`` in
``pipelines/study/study.toml``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dimefm.data import Rows, open_rows
from dimefm.data.selection import parse_split, within
from dimefm.errors import BadRow
from dimefm.evaluate.benchmark import for_folder, prompts
from dimefm.runtime.seeding import seed_of
from dimefm.storage.files import write_text
from dimefm.train.inputs.captions import Captions

SEED = 7
CAPTIONS = 4  # of an image at most, all different
GROUP = 1000  # rows of a group of a Parquet file
IMAGES = {
    "classification/cifar10/train.parquet": 6_000,
    "classification/mnist/train.parquet": 1_500,
    "classification/caltech101/train.parquet": 505,
    "classification/scene15/train.parquet": 225,
    "classification/sign_digits/train.tar": 400,
    "captions/fsac/train.parquet": 1_215,
    "captions/ucm/train.parquet": 735,
}
"""Sets of images and how many of each; those with class labels only get prompts for captions."""
SENTENCES = "sentences/multi30k_en.parquet"
FEATURES, CLASSES = "features/flickr8k_clip_vitb32", "features/class_text_clip_vitb32"
PHRASES = (100, 400, 1587)  # sentences with a real teacher's rows that text towers learn from
LOSS_MODULES, HELD_OUT = (
    "0:0.8",
    "0.8:1",
)  # photos that text towers learn from and are scored on, by the hash of their key
NEEDED = (*IMAGES, SENTENCES, FEATURES, CLASSES)


def missing(data: Path) -> list[str]:
    """Return what the study needs and the folder ``data`` lacks."""
    return [name for name in NEEDED if not (data / name).exists()]


def pairs(data: Path, share: float) -> pa.Table:
    """Return ``key, image, captions`` of a ``share`` (0 to 1) of the study's images, in random
    order.
    """
    rows = open_rows(list(IMAGES), "pair", dataroot=data)
    captions = Captions(rows, "label")
    numbers = [number for number in _drawn(rows, share) if _usable(rows, number)]
    return pa.table(
        {
            "key": [
                f"{rows.shards[rows.locate(n)[0]].path.parent.name}/{rows[n].key}" for n in numbers
            ],
            "image": [rows[number].image for number in numbers],
            "captions": [_captions(captions, rows, number) for number in numbers],
        }
    )


def _drawn(rows: Rows, share: float) -> list[int]:
    """Return as many random rows of each shard as IMAGES says, times ``share``, all shuffled
    together.
    """
    random, found, start = np.random.default_rng(SEED), [], 0
    for shard, count in zip(rows.shards, IMAGES.values(), strict=True):
        some = random.permutation(len(shard))[: max(1, round(min(count, len(shard)) * share))]
        found += [start + int(number) for number in some]
        start += len(shard)
    return [found[place] for place in random.permutation(len(found))]


def _usable(rows: Rows, number: int) -> bool:
    try:
        return bool(rows[number].image)
    except BadRow:
        return False


def _captions(captions: Captions, rows: Rows, number: int) -> list[str]:
    """Return the first different ones of some draws from a row's own sentences, or from the prompts
    of its class.
    """
    draws = (
        captions(number, rows[number], seed_of(SEED, "study", number, draw))
        for draw in range(2 * CAPTIONS)
    )
    return list(dict.fromkeys(draw for draw in draws if draw))[:CAPTIONS]


def sentences(data: Path, templates: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (class prompts and captions, these and all descriptions of photos), each shuffled and
    without repeats.
    """
    own = dict.fromkeys([*templates, *_own_captions(data)])
    described = pq.read_table(data / SENTENCES, columns=["text"])["text"].to_pylist()
    return _shuffled(list(own)), _shuffled(list(dict.fromkeys([*own, *described])))


def _own_captions(data: Path) -> Iterator[str]:
    """Yield all sentences of the sets that have captions of their own."""
    for name in (name for name in IMAGES if name.startswith("captions/")):
        for texts in pq.read_table(data / name, columns=["captions"])["captions"].to_pylist():
            yield from texts


def _shuffled(lines: Sequence[str]) -> list[str]:
    return [lines[place] for place in np.random.default_rng(SEED).permutation(len(lines))]


def phrases(data: Path) -> tuple[list[str], np.ndarray]:
    """Return sentences with a real teacher's rows of them, float32 [n, 512] of unit length,
    shuffled.

    They are class names and the captions of photos that no text tower is scored on.
    """
    texts, rows = [], []
    for name in ("lvis1203", "coco80"):
        texts += [
            f"a {line}"
            for line in (data / CLASSES / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        ]
        rows.append(np.load(data / CLASSES / f"{name}.npy").astype(np.float32))
    described = [
        line.split("\t")
        for line in (data / FEATURES / "paired.tsv").read_text(encoding="utf-8").splitlines()
    ]
    kept = [
        number
        for number, (photo, _) in enumerate(described)
        if within(photo, parse_split(LOSS_MODULES))
    ]
    texts += [described[number][1] for number in kept]
    rows.append(np.load(data / FEATURES / "paired_text_features.npy")[kept])
    found = np.concatenate(rows)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    _, first = np.unique(texts, return_index=True)
    order = np.random.default_rng(SEED).permutation(first)
    return [texts[number] for number in order], found[order]


def _first(count: int, lines: list[str], rows: np.ndarray) -> tuple[list[str], np.ndarray]:
    return lines[:count], rows[:count]


def photos(data: Path) -> tuple[list[str], np.ndarray]:
    """Return (names, rows float32 [n, 512]) of the photos that text towers learn from."""
    names = (data / FEATURES / "image_keys.txt").read_text(encoding="utf-8").splitlines()
    kept = [number for number, name in enumerate(names) if within(name, parse_split(LOSS_MODULES))]
    return [names[number] for number in kept], np.load(data / FEATURES / "image_features.npy")[kept]


def write(data: Path, out: Path, share: float = 1.0) -> None:
    """Write the study's files into ``out``: of its images a ``share`` (0 to 1), of the rest all.

    ``pairs.parquet``; ``captions.tsv`` of the photos; ``prompts.txt``, ``own.txt`` (prompts and
    captions), ``all.txt`` (and descriptions of photos) and ``described.txt``, a sentence a line;
    ``photos.npy`` with ``photos.txt``, ``phrases-N.npy`` with ``phrases-N.txt``.
    """
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pairs(data, share), out / "pairs.parquet", row_group_size=GROUP)
    folders = [data / name for name in IMAGES if name.startswith("classification/")]
    templates = [
        prompt
        for folder in folders
        for of_class in prompts(for_folder(folder.parent))
        for prompt in of_class
    ]
    own, everything = sentences(data, templates)
    known = set(own)
    described = [line for line in everything if line not in known]
    listed = {"prompts": _shuffled(list(dict.fromkeys(templates))), "own": own, "all": everything}
    for name, lines in (listed | {"described": described[: len(own)]}).items():
        write_text(out / f"{name}.txt", "\n".join(lines) + "\n")
    shutil.copyfile(data / FEATURES / "captions.tsv", out / "captions.tsv")
    named = {"photos": photos(data)} | {
        f"phrases-{count}": _first(count, *phrases(data)) for count in PHRASES
    }
    for name, (lines, rows) in named.items():
        write_text(out / f"{name}.txt", "\n".join(lines) + "\n")
        np.save(out / f"{name}.npy", rows)
