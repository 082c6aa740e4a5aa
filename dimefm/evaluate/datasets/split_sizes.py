"""The numbers of images in the splits of a dataset on disk, next to the published numbers.

The card of a benchmark states the published ones. ELEVATER's toolkit cuts its own validation part
from ``train`` and does not use ``val``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from dimefm.data import open_rows
from dimefm.errors import DataError
from dimefm.evaluate.benchmark import load
from dimefm.evaluate.datasets import vision_datasets
from dimefm.evaluate.datasets.layouts import LAYOUTS, SPLITS, Dataset
from dimefm.evaluate.guards import dataset_guard
from dimefm.runs.scores import SPLIT_SIZES, Result
from dimefm.runtime.text import shortened, without_remedy

INPUT_FORMATS = {"parquet": "parquet", "webdataset": "tar", "imagefolder": "folder"}
LONGEST_REASON = 100

SUITE = "elevater"
"""The suite whose splits are counted: the largest has 262,144 training images."""


@dataclass(frozen=True)
class SplitSize:
    """``images`` of a split, None when it cannot be read, ``published`` ones, None if unknown.

    ``fault`` says why the split cannot be read.
    """

    images: int | None
    published: int | None
    fault: str = ""

    def to_json(self) -> dict:
        """Return what ``scores.json`` says of the split."""
        entry: dict = {"images": self.images, "published": self.published}
        if self.fault:
            entry["fault"] = self.fault
        return entry


def split_sizes(dataset: Dataset) -> dict[str, SplitSize]:
    """Return the sizes of the splits that an ELEVATER dataset has; {} for any other dataset.

    No image is opened. A training split that is damaged stops nothing.
    """
    card = None if dataset.card is None else load(dataset.card)
    if card is None or card.suite != SUITE:
        return {}
    published = {"train": card.train, "val": card.val, "test": card.test}
    sizes = {}
    for split in SPLITS:
        if not LAYOUTS[dataset.layout].locate(dataset.folder, SPLITS[split]):
            continue
        try:
            with dataset_guard(dataset.folder):
                sizes[split] = SplitSize(_count(dataset, split), published[split])
        except DataError as error:
            reason = shortened(without_remedy(error), LONGEST_REASON)
            sizes[split] = SplitSize(None, published[split], reason)
    return sizes


def differences(sizes: Mapping[str, SplitSize]) -> str:
    """Return where the training and validation splits differ from the published ones; "" if not.

    The note of the dataset has the test split.
    """
    parts = []
    for split, size in sizes.items():
        if split == "test" or size.images == size.published:
            continue
        if size.images is None:
            parts.append(f"{split} split cannot be read: {size.fault}")
        elif size.published is not None:
            parts.append(f"{size.images} of {size.published} {split} images")
        elif split == "val":
            parts.append(f"{size.images} val images, none are published")
    return "; ".join(parts)


def with_split_sizes(result: Result, dataset: Dataset) -> Result:
    """Return a result with the sizes of all splits, and a note on those that differ."""
    sizes = split_sizes(dataset)
    if not sizes:
        return result
    parts = [part for part in (result.note, differences(sizes)) if part]
    splits = {name: size.to_json() for name, size in sizes.items()}
    details = {**result.details, SPLIT_SIZES: splits}
    return dataclasses.replace(result, note="; ".join(parts), details=details)


def _count(dataset: Dataset, split: str) -> int:
    """Return the number of images in a split, readable or not."""
    if split == "test" and dataset.test is not None:
        return len(dataset.test[1])
    folder = dataset.folder
    paths = LAYOUTS[dataset.layout].locate(folder, SPLITS[split])
    if dataset.layout == "vision-datasets":
        return vision_datasets.count(folder, paths[0])
    input_format = INPUT_FORMATS[dataset.layout]
    return len(open_rows(paths, "image", dataroot=folder, input_format=input_format))
