"""Webdataset tar: members of one key stand together, ``KEY.jpg``, ``KEY.txt``, ``KEY.cls``,
``KEY.json``.

The member table is read once; rows are then read in any order at their byte offset. Compressed tars
have no random access and are refused. A tar that ``dimefm pack`` made gives the rows of the shard
that it stands for.
"""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

from dimefm.data.columns import USUAL, sentences
from dimefm.data.packed.shards import INDEX, PackedShard, PackIndex
from dimefm.data.rows import Columns, Row, Shard, readable
from dimefm.errors import BadRow, DataError

SUFFIXES = (".tar",)
KINDS = frozenset({"image", "text"})
IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "ppm")


def claims(path: Path) -> bool:
    """Every ``.tar`` file is a webdataset tar."""
    return True


def open_shards(path: Path, name: str, kind: str, columns: Columns) -> list[Shard]:
    """Open one tar; raise DataError when it is damaged or holds no member of the kind that is
    wanted.
    """
    shard = TarShard(path, name, kind, columns)
    if shard.index is not None:
        return [PackedShard(shard, shard.index)]
    wanted = shard.image_endings if kind != "text" else shard.text_endings
    if not any(ending in members for members in shard.members for ending in wanted):
        found = sorted({ending for members in shard.members for ending in members})
        raise DataError(
            f"{path}: no member ends in {', '.join(wanted)}; endings found:"
            f" {', '.join(found) or 'none'}"
        )
    return [shard]


class TarShard(Shard):
    """One tar file: for each key, its members as ending -> (offset, size)."""

    def __init__(self, path: Path, name: str, kind: str, columns: Columns):
        super().__init__(path, name)
        self.kind = kind
        self.image_endings = (columns.image,) if columns.image else IMAGES
        self.text_endings = (columns.text,) if columns.text else ("txt", "json")
        self._keys: list[str] = []
        self.members: list[dict[str, tuple[int, int]]] = []
        self.index: PackIndex | None = None
        self._handle: tuple[int, int] | None = None
        self._read_table()

    def _read_table(self) -> None:
        size = self.path.stat().st_size
        try:
            with tarfile.open(self.path, "r:") as tar:
                for member in tar:
                    if member.isfile():
                        self._add(member.name, member.offset_data, member.size)
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError(
                            f"member {member.name} reaches beyond the end of the file"
                        )
                    if member.name == INDEX:
                        self.index = PackIndex.from_json(
                            self._read(member.offset_data, member.size), self.path
                        )
                with self.path.open(
                    "rb"
                ) as file:  # tarfile ends in silence at a cut or damaged header
                    file.seek(tar.offset)
                    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                        raise tarfile.ReadError(
                            f"no end mark at byte {tar.offset}: cut short or damaged there"
                        )
        except tarfile.TarError as error:
            raise DataError(
                f"{self.path}: not a whole, uncompressed tar ({error}); fetch or write it again"
            ) from error

    def _add(self, name: str, offset: int, size: int) -> None:
        folder, _, file = name.rpartition("/")
        stem, _, ending = file.partition(".")
        if not stem or not ending:
            return
        key = readable(f"{folder}/{stem}" if folder else stem)
        if not self._keys or self._keys[-1] != key:
            self._keys.append(key)
            self.members.append({})
        self.members[-1][ending.lower()] = (offset, size)

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self) -> list[str]:
        return list(self._keys)

    def labels(self) -> list:
        """Return the label of every row: its ``.cls`` member, or None."""
        return [self._label(members) for members in self.members]

    def __getitem__(self, index: int) -> Row:
        members = self.members[index]
        image = self._first(members, self.image_endings) if self.kind != "text" else None
        if image is None and self.kind != "text":
            raise BadRow(f"has no image member; endings found: {', '.join(members)}")
        texts = self._texts(members) if self.kind != "image" else ()
        if self.kind == "text" and not texts:
            raise BadRow(f"has no text member; endings found: {', '.join(members)}")
        return Row(self._keys[index], image=image, texts=texts, label=self._label(members))

    def _first(self, members: dict, endings: tuple[str, ...]) -> bytes | None:
        return next((self._read(*members[ending]) for ending in endings if ending in members), None)

    def _read(self, offset: int, size: int) -> bytes:
        process = os.getpid()
        if self._handle is None or self._handle[0] != process:
            self._handle = (process, os.open(self.path, os.O_RDONLY))
        return os.pread(self._handle[1], size, offset)

    def _texts(self, members: dict) -> tuple[str, ...]:
        raw = self._first(members, self.text_endings)
        if raw is None:
            return ()
        try:
            text = raw.decode("utf-8")
            if "txt" in members or self.text_endings != ("txt", "json"):
                return (text.strip(),)
            fields = json.loads(text)
        except (UnicodeDecodeError, ValueError) as error:
            raise BadRow(f"its text member cannot be read: {error}") from error
        found = next(
            (fields[name] for name in USUAL["text"] if isinstance(fields, dict) and name in fields),
            None,
        )
        return () if found is None else sentences(found)

    def _label(self, members: dict) -> int | str | None:
        if "cls" not in members:
            return None
        text = self._read(*members["cls"]).decode("utf-8", "replace").strip()
        return int(text) if text.isdecimal() else text

    def __getstate__(self):
        return {**self.__dict__, "_handle": None}

    def __del__(self):
        handle = getattr(self, "_handle", None)
        if handle is not None and handle[0] == os.getpid():
            os.close(handle[1])
