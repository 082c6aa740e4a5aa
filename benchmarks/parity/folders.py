"""Datasets as clip-benchmark's folders: tar files, class names and templates."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from dimefm.evaluate.datasets.layouts import Dataset

TEST = "test"
TRAIN = "train"
RETRIEVAL = "retrieval"


@dataclass(frozen=True)
class Sample:
    """An image file as it lies on the disk, and what belongs to it: its class or its captions."""

    image: bytes
    ending: str
    text: str


def classification_folder(dataset: Dataset, folder: Path, splits: Sequence[str]) -> None:
    """Write a classification dataset; images keep their bytes, and labels index the class names."""
    benchmark = dataset.benchmark
    folder.mkdir(parents=True, exist_ok=True)
    templates = [template.replace("{}", "{c}") for template in benchmark.templates]
    _write_lines(folder / "classnames.txt", benchmark.classes)
    _write_lines(folder / "zeroshot_classification_templates.txt", templates)
    for split in splits:
        rows, labels, _ = dataset.rows(split)
        _write_shard(folder / split, _samples(rows, labels.tolist()), "cls")


def _samples(rows: Iterable, labels: Sequence[int]) -> Iterator[Sample]:
    for row, label in zip(rows, labels, strict=True):
        yield Sample(row.image, _ending(row.image), str(label))


def retrieval_folder(path: Path, folder: Path, distinct: bool) -> None:
    """Write a Parquet file with the columns ``image`` and ``captions`` as a retrieval dataset.

    With ``distinct``, captions that several images share are left out, and so are images without
    another one: equal captions have equal embeddings, and the order of equal scores is no fact.
    """
    rows = pq.read_table(path, columns=["image", "captions"]).to_pylist()
    counts = Counter(caption for row in rows for caption in row["captions"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_type.txt").write_text(RETRIEVAL)
    samples = []
    for row in rows:
        captions = row["captions"]
        if distinct:
            captions = [caption for caption in captions if counts[caption] == 1]
        if captions:
            samples.append(Sample(row["image"], _ending(row["image"]), "\n".join(captions)))
    _write_shard(folder / TEST, samples, "txt")


def _write_shard(folder: Path, samples: Iterable[Sample], kind: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "0.tar", "w") as archive:
        for number, sample in enumerate(samples):
            key = f"{number:07d}"
            _add(archive, f"{key}.{sample.ending}", sample.image)
            _add(archive, f"{key}.{kind}", sample.text.encode())
    (folder / "nshards.txt").write_text("1\n")


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _ending(image: bytes) -> str:
    """Return the ending of an image file: clip-benchmark reads webp, png and jpg."""
    with Image.open(io.BytesIO(image)) as opened:
        kind = str(opened.format).lower()
    return {"jpeg": "jpg"}.get(kind, kind)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
