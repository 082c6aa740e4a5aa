"""WinoGAViL: which of several images belong to a word, by DataComp's metric.

The data are Parquet files as ``datasets`` writes them of ``nlphuji/winogavil``, with the images in
them: ``cue`` (a word), ``candidates`` and ``associations`` (names of images, all and the right
ones), and ``candidate_images`` (of each candidate a file as ``bytes``).

Source: DataComp, eval_utils/wino_eval.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dimefm.data import Row, Rows, Shard
from dimefm.errors import BadRow, DataError
from dimefm.evaluate.datasets.layouts import refuse_link_outside
from dimefm.evaluate.datasets.plain_layouts import locate_parquet
from dimefm.evaluate.features import caption_features, row_features
from dimefm.evaluate.suites.folders import SuiteSet
from dimefm.extract.extract import Settings
from dimefm.models.encoder import Encoder
from dimefm.runs.scores import ZERO_SHOT, Result
from dimefm.runtime.printable import shown

COLUMNS = ("cue", "candidates", "associations", "candidate_images")
JACCARD = "jaccard_score"
AVERAGE = "avg_jaccard_score"
RANGES = {
    "5": (5, 5),
    "6": (6, 6),
    "10": (10, 10),
    "12": (12, 12),
    "5-6": (0, 6),
    "10-12": (10, 99),
}
"""Ending of a metric -> the lowest and the highest number of candidates of its riddles."""

AT_ONCE = 64
"""Riddles that are read at once."""

VOWELS = "aeiou"


@dataclass(frozen=True)
class Riddle:
    """A word, the images to choose from by number, and which of these are right."""

    cue: str
    candidates: Sequence[int]
    is_right: np.ndarray

    @property
    def prompt(self) -> str:
        """Return the text that the images are compared with."""
        word = self.cue.lower()
        article = "An" if word[0] in VOWELS else "A"
        return f"{article} {word}"


class CandidateImages(Shard):
    """The images of all riddles, each name once; None stands for one that has no bytes."""

    def __init__(self, path: Path):
        super().__init__(path, path.name)
        self.number_of: dict[str, int] = {}
        self._images: list[bytes | None] = []
        self._names: list[str] = []

    def add(self, name: str, image: bytes | None) -> int:
        """Keep an image unless there is one of this name, and return its number."""
        number = self.number_of.setdefault(name, len(self._images))
        if number == len(self._images):
            self._images.append(image)
            self._names.append(name)
        elif self._images[number] is None:
            self._images[number] = image
        return number

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Row:
        image = self._images[index]
        if image is None:
            raise BadRow("has no bytes")
        return Row(self._names[index], image=image)

    def keys(self) -> list[str]:
        return list(self._names)


def score_winogavil(
    encoder: Encoder, suite_set: SuiteSet, store: Path, settings: Settings
) -> Result:
    """Return the mean Jaccard index, of all riddles and by their numbers of candidates, 0 to 1.

    As many images are chosen as are right. Riddles with an image that cannot be read are left out
    and counted as unreadable. Embeddings are kept in the folder ``store``.

    Raises DataError when the files cannot be read, or no riddle of 10 or 12 candidates is left.
    """
    paths = locate_parquet(suite_set.folder, ("test",)) or sorted(
        suite_set.folder.glob("*.parquet")
    )
    if not paths:
        raise DataError(
            f"{suite_set.folder}: no Parquet files with {', '.join(COLUMNS)}. Fix: save the dataset"
            " with to_parquet of the library datasets"
        )
    shards: list[Shard] = []
    riddles: list[Riddle] = []
    for path in paths:
        refuse_link_outside(suite_set.folder, path)
        shard = CandidateImages(path)
        first = sum(len(before) for before in shards)
        riddles += _riddles(path, shard, first)
        shards.append(shard)
    images, readable = row_features(encoder, suite_set.key, Rows(shards), store, settings)
    place_of = {number: place for place, number in enumerate(readable.tolist())}
    whole = [riddle for riddle in riddles if all(n in place_of for n in riddle.candidates)]
    texts, _ = caption_features(encoder, [riddle.prompt for riddle in whole], store, settings)
    scores = []
    for riddle, text in zip(whole, texts, strict=True):
        places = [place_of[number] for number in riddle.candidates]
        scores.append(jaccard(images[places] @ text, riddle.is_right))
    metrics = _means(np.array(scores), np.array([len(riddle.candidates) for riddle in whole]))
    task = suite_set.task
    main = AVERAGE if task is None else task.metric
    if main not in metrics:
        raise DataError(
            f"{suite_set.folder}: no riddle for {main} among {len(whole):,}. Fix: fetch the test"
            " split again"
        )
    is_part = task is not None and task.size != len(riddles)
    return Result(
        task=ZERO_SHOT,
        dataset=suite_set.name,
        metrics=metrics,
        main_metric=main,
        samples=len(whole),
        unreadable=len(riddles) - len(whole),
        chance=None if task is None else task.chance,
        note=f"{len(riddles):,} of {task.size:,} riddles" if task is not None and is_part else "",
        details={"images": len(images)},
    )


def jaccard(scores: np.ndarray, is_right: np.ndarray) -> float:
    """Return the Jaccard index of the best images and the right ones, equal in number."""
    n_right = int(is_right.sum())
    chosen = np.zeros(len(scores), dtype=bool)
    chosen[np.argsort(scores, kind="stable")[-n_right:]] = True
    return float((chosen & is_right).sum() / (chosen | is_right).sum())


def _means(scores: np.ndarray, sizes: np.ndarray) -> dict[str, float]:
    """Return the mean of all scores, and of those of each range of sizes that has any."""
    means = {}
    if len(scores):
        means[AVERAGE] = float(scores.mean())
    for name, (lowest, highest) in RANGES.items():
        is_inside = (sizes >= lowest) & (sizes <= highest)
        if is_inside.any():
            means[f"{JACCARD}_{name}"] = float(scores[is_inside].mean())
    return means


def _riddles(path: Path, shard: CandidateImages, first: int) -> Iterator[Riddle]:
    """Yield the riddles of a file, and put their images into ``shard``, numbered from ``first``."""
    with pq.ParquetFile(path) as file:
        absent = [name for name in COLUMNS if name not in file.schema_arrow.names]
        if absent:
            raise DataError(
                f"{path}: no column {absent[0]}; expected {', '.join(COLUMNS)}. Fix: save the"
                " dataset again"
            )
        row = 0
        for batch in file.iter_batches(AT_ONCE, columns=list(COLUMNS)):
            for entry in batch.to_pylist():
                yield _riddle(entry, f"{path}, row {row}", shard, first)
                row += 1


def _riddle(entry: dict[str, Any], where: str, shard: CandidateImages, first: int) -> Riddle:
    """Return one riddle; raise DataError when its fields do not fit together."""
    cue, names, right, images = (entry[name] for name in COLUMNS)
    are_lists = all(isinstance(value, list) for value in (names, right, images))
    is_word = isinstance(cue, str) and bool(cue.strip())
    if not is_word or not are_lists or len(names) != len(images) or not set(right) & set(names):
        raise DataError(
            f"{where}: expected a cue, candidates with an image each, and associations among them;"
            f" found cue {shown(cue)}. Fix: fetch the file again"
        )
    numbers = []
    for name, image in zip(names, images, strict=True):
        content = image.get("bytes") if isinstance(image, dict) else None
        numbers.append(first + shard.add(str(name), content))
    return Riddle(cue.strip(), numbers, np.isin(names, right))
