"""Small pictures of examples, read again from the datasets in a folder.

An image is found by its source and row, and only taken when its key is the one that was scored.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dimefm.data import Rows
from dimefm.data.images.decode import decode
from dimefm.data.rows import Shard
from dimefm.errors import BadRow, DataError
from dimefm.evaluate.datasets.layouts import find
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


class Thumbnails:
    """Thumbnails of the images in a folder of datasets, None without a folder.

    ``unread`` maps the reason why images could not be shown to their number.
    """

    def __init__(self, root: Path | None):
        self.root = root
        self.unread: dict[str, int] = {}
        self._shards: dict[str, dict[str, Shard]] = {}
        self._keys: dict[tuple[str, str], list[str]] = {}

    def of(self, place: Place) -> Thumbnail | None:
        """Return the thumbnail of an image; None when it cannot be read, which is counted."""
        if self.root is None:
            return None
        try:
            return self._read(place)
        except (DataError, OSError) as error:
            reason = str(error).partition(". Fix:")[0]
            self.unread[reason] = self.unread.get(reason, 0) + 1
            return None

    def _read(self, place: Place) -> Thumbnail:
        shards = self._shards_of(place.dataset)
        shard = shards.get(place.source)
        if shard is None:
            raise BadRow(f"{place.dataset} has no source {place.source} in {self.root}")
        keys = self._keys_of(place, shard)
        if place.row >= len(keys) or keys[place.row] != place.key:
            raise BadRow(f"{place.dataset} in {self.root} has other images than were scored")
        image = shard[place.row].image
        if image is None:
            raise BadRow(f"{place.dataset} has a row without an image")
        return _thumbnail(image)

    def _shards_of(self, dataset: str) -> dict[str, Shard]:
        """Return the sources of a dataset by their names; {} when the folder lacks it."""
        if dataset not in self._shards:
            self._shards[dataset] = {}
            datasets, _ = find(self.root, [dataset], every_card=True)
            for one in datasets:
                rows: Rows = one.rows("test")[0]
                for shard in rows.shards:
                    self._shards[dataset].setdefault(shard.name, shard)
        return self._shards[dataset]

    def _keys_of(self, place: Place, shard: Shard) -> list[str]:
        name = (place.dataset, place.source)
        if name not in self._keys:
            self._keys[name] = list(shard.keys())
        return self._keys[name]


def _thumbnail(data: bytes) -> Thumbnail:
    image = decode(data)
    is_small = max(image.size) <= SMALL
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    quality = 92 if is_small else QUALITY
    image.save(file, "JPEG", quality=quality, optimize=True)
    return Thumbnail(file.getvalue(), is_small)
