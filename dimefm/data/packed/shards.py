"""Packed shards: webdataset tars of small JPEGs that stand for a shard of a source, row by row.

A packed shard has the name, the rows and the keys of the shard that it was made from, in the same
order; a row that had no usable image is still there and says why. So features of the original match
it, by the digest that it keeps of the original. Its members are ``NUMBER.jpg`` and, where a row has
sentences or a label, ``NUMBER.json``; the last is :data:`INDEX`. Other readers of webdataset tars
pass over that one.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dimefm.data.rows import Row, Shard
from dimefm.errors import BadRow, DataError
from dimefm.storage.small_files import parse_json

INDEX = ".dimefm-pack.json"


@dataclass(frozen=True)
class PackIndex:
    """What a packed shard says of itself.

    It stands for the shard ``source`` with its ``digests`` and all its ``keys``, ``labels`` (None:
    it has none) and ``bad`` rows with reasons; ``size`` is the most that a shorter side has, in
    pixels, ``quality`` that of the JPEGs.
    """

    source: str
    digests: tuple[str, ...]
    size: int
    quality: int
    keys: list[str]
    labels: list | None
    bad: dict[int, str]

    def to_json(self) -> bytes:
        """Return the index as the bytes of its member."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @staticmethod
    def from_json(raw: bytes, path: Path) -> PackIndex:
        """Return the index that :meth:`to_json` made; raise DataError naming the file when it is
        damaged.
        """
        try:
            fields = parse_json(raw.decode())
            bad = {int(row): str(reason) for row, reason in fields.pop("bad").items()}
            found = PackIndex(bad=bad, digests=tuple(fields.pop("digests")), **fields)
            whole = all(isinstance(key, str) for key in found.keys) and bad.keys() <= set(
                range(len(found.keys))
            )
            if whole and (found.labels is None or len(found.labels) == len(found.keys)):
                return found
            raise ValueError("keys, labels and bad rows do not fit each other")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{path}: its {INDEX} cannot be read ({error}). Fix: pack the source again"
            ) from error


class Members(Protocol):
    """What a packed shard needs of the tar that it lies in."""

    path: Path

    def keys(self) -> list[str]:
        """Return the names of its groups of members."""

    def __getitem__(self, index: int) -> Row:
        """Return group ``index`` as a row."""


class PackedShard(Shard):
    """The rows of the shard that a packed one stands for."""

    def __init__(self, members: Members, index: PackIndex):
        """Raises DataError when a row lacks its member, or a member belongs to no row."""
        super().__init__(members.path, index.source)
        self.index = index
        self._members = members
        self._places: dict[int, int] = {}
        places = {name: place for place, name in enumerate(members.keys())}
        for row in range(len(self)):
            place = places.pop(name_of(row), None)
            if place is not None:
                self._places[row] = place
            elif row not in index.bad:
                raise DataError(
                    f"{self.path}: its member {name_of(row)} is not there. Fix: pack the source"
                    " again"
                )
        if places:
            raise DataError(
                f"{self.path}: its member {min(places)} belongs to none of its {len(self)} rows."
                " Fix: pack the source again"
            )

    def __len__(self) -> int:
        return len(self.index.keys)

    def keys(self) -> list[str]:
        return list(self.index.keys)

    def labels(self) -> list:
        """Return the label of every row, or None."""
        return [None] * len(self) if self.index.labels is None else list(self.index.labels)

    def digests(self) -> tuple[str, ...]:
        """Return its own digest, and those of what it was packed from."""
        return (self.digest(), *self.index.digests)

    def __getitem__(self, index: int) -> Row:
        if index in self.index.bad:
            raise BadRow(self.index.bad[index])
        row = self._members[self._places[index]]
        label = None if self.index.labels is None else self.index.labels[index]
        return Row(self.index.keys[index], row.image, row.texts, label)


def name_of(row: int) -> str:
    """Return what the members of a row are called, without their endings."""
    return f"{row:08d}"
