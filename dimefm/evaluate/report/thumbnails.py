"""Small pictures of examples, read again from the datasets in a folder.

An image is found by its source and row, and only taken when its key is the one that was scored.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from PIL import Image

from dimefm.data import Rows
from dimefm.data.images.decode import decode
from dimefm.data.rows import Shard
from dimefm.errors import BadRow, DataError
from dimefm.evaluate.datasets.captions import LAYOUTS, open_pairs
from dimefm.evaluate.datasets.layouts import SPLITS, find
from dimefm.evaluate.report.examples import Place

SIDE = 176
"""Pixels of the longer side of a thumbnail."""

SMALL = 64
"""Pixels of a side up to which the pixels of a picture are shown as squares."""

QUALITY = 82


@dataclass(frozen=True)
class Thumbnail:
    """A picture as JPEG; ``is_small`` says that it has few pixels."""

    jpeg: bytes
    is_small: bool


def captions_of(content: dict) -> Captions | None:
    """Return what a file of retrieval scores says of its images, None when it says nothing."""
    settings = content.get("settings")
    if not isinstance(settings, dict) or not isinstance(settings.get("data"), str):
        return None
    split = settings.get("split")
    layout = settings.get("layout")
    return Captions(
        file=PurePath(settings["data"].replace("\\", "/")).name,
        split=split if split in SPLITS else "test",
        layout=layout if layout in LAYOUTS else None,
    )


@dataclass(frozen=True)
class Captions:
    """What scores of retrieval state of their images: the name of the file or folder, the split,
    and the layout, None where it was detected.
    """

    file: str
    split: str
    layout: str | None


class Thumbnails:
    """Thumbnails of the images in folders of datasets; there are none without a folder.

    ``unread`` maps the reason why images could not be shown to their number.
    """

    def __init__(self, roots: Sequence[Path]):
        self.roots = roots
        self.unread: dict[str, int] = {}
        self._shards: dict[tuple[str, Captions | None], dict[str, Shard]] = {}
        self._keys: dict[Shard, list[str]] = {}

    def of(self, place: Place, captions: Captions | None = None) -> Thumbnail | None:
        """Return the thumbnail of an image; None when it cannot be read, which is counted.

        ``captions`` describe the images with captions that a dataset of retrieval is.
        """
        if not self.roots:
            return None
        try:
            return self._read(place, captions)
        except (DataError, OSError) as error:
            reason = str(error).partition(". Fix:")[0]
            self.unread[reason] = self.unread.get(reason, 0) + 1
            return None

    def _where(self) -> str:
        return ", ".join(str(root) for root in self.roots)

    def _opened(self, dataset: str, captions: Captions | None) -> list[Rows]:
        """Return the images of a dataset in all folders.

        Raises DataError, as the first folder did, when the dataset is in none of them.
        """
        opened = []
        reason = None
        for root in self.roots:
            try:
                rows = _opened(root, dataset, captions)
            except DataError as error:
                reason = reason or error
                continue
            if rows is not None:
                opened.append(rows)
        if reason is not None and not opened:
            raise reason
        return opened

    def remarks(self) -> list[str]:
        """Return a line for each reason why pictures are not shown; it is told once."""
        lines = []
        for reason, number in self.unread.items():
            lines.append(
                f"{number:,} {'picture' if number == 1 else 'pictures'} not shown: {reason}."
            )
        self.unread.clear()
        return lines

    def _read(self, place: Place, captions: Captions | None) -> Thumbnail:
        name = (place.dataset, captions)
        if name not in self._shards:
            self._shards[name] = {}
            for rows in self._opened(place.dataset, captions):
                for shard in rows.shards:
                    self._shards[name].setdefault(shard.name, shard)
        shard = self._shards[name].get(place.source)
        if shard is None:
            raise BadRow(f"{self._where()} has no {place.dataset} with a source {place.source}")
        if shard not in self._keys:
            self._keys[shard] = list(shard.keys())
        keys = self._keys[shard]
        if place.row >= len(keys) or keys[place.row] != place.key:
            raise BadRow(f"{place.dataset} in {self._where()} has other images than were scored")
        image = shard[place.row].image
        if image is None:
            raise BadRow(f"{place.dataset} has a row without an image")
        return _thumbnail(image)


def _opened(root: Path, dataset: str, captions: Captions | None) -> Rows | None:
    """Return the images of a dataset below ``root``, None when it is not found."""
    if captions is None:
        datasets, _ = find(root, [dataset], every_card=True)
        return datasets[0].rows("test")[0] if datasets else None
    for name in dict.fromkeys((captions.file, dataset)):
        path = root / name
        if name and path.exists():
            return open_pairs(path, captions.split, None, captions.layout).rows
    return None


def _thumbnail(data: bytes) -> Thumbnail:
    image = decode(data)
    is_small = max(image.size) <= SMALL
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    quality = 92 if is_small else QUALITY
    image.save(file, "JPEG", quality=quality, optimize=True)
    return Thumbnail(file.getvalue(), is_small)
