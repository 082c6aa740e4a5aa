"""Webdataset tar: members of one key follow one another, e.g. ``KEY.jpg`` and ``KEY.txt``.

Other members are ``KEY.cls`` and ``KEY.json``. The member table is read once; rows are then read in
any order at their byte offset. Compressed tars have no random access and are refused. A tar that
``dimefm pack`` made gives the rows of the shard that it stands for.
"""

from __future__ import annotations

import contextlib
import json
import tarfile
from pathlib import Path

from dimefm.data.columns import USUAL, sentences
from dimefm.data.packed.shards import INDEX, PackedShard, PackIndex
from dimefm.data.pread import PreadFile
from dimefm.data.rows import Columns, Row, Shard, label_of, readable, row_guard
from dimefm.errors import BadRow, DataError

SUFFIXES = (".tar",)
KINDS = frozenset({"image", "text"})
IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "ppm")
TEXTS = ("txt", "json")

Members = dict[str, tuple[int, int]]  # of one key: ending -> (offset, size)


def claims(path: Path) -> bool:
    """Every ``.tar`` file is a webdataset tar."""
    return True


def open_shards(path: Path, name: str, kind: str, columns: Columns) -> list[Shard]:
    """Open one tar; raise DataError when it is damaged or holds no member of the wanted kind."""
    shard = TarShard(path, name, kind, columns)
    if shard.index is not None:
        return [PackedShard(shard, shard.index)]
    wanted = shard.text_endings if kind == "text" else shard.image_endings
    endings = set().union(*shard.members)
    if endings.isdisjoint(wanted):
        present = ", ".join(sorted(endings)) or "none"
        raise DataError(f"{path}: no member ends in {', '.join(wanted)}; endings found: {present}")
    return [shard]


class TarShard(Shard):
    """One tar file: for each key, its members as ending -> (offset, size)."""

    def __init__(self, path: Path, name: str, kind: str, columns: Columns):
        super().__init__(path, name)
        self.kind = kind
        self.image_endings = (columns.image,) if columns.image else IMAGES
        self.text_endings = (columns.text,) if columns.text else TEXTS
        self._keys: list[str] = []
        self.members: list[Members] = []
        self.index: PackIndex | None = None
        self._file = PreadFile(path)
        self._read_table()

    def _read_table(self) -> None:
        """Read where the members of each key are; raise DataError for a damaged tar."""
        size = self.path.stat().st_size
        try:
            with tarfile.open(self.path, "r:") as tar:
                for member in tar:
                    self._take(member, size)
                self._check_end(tar.offset)
        except tarfile.TarError as error:
            raise DataError(
                f"{self.path}: not a whole, uncompressed tar ({error}). Fix: fetch or write it"
                " again"
            ) from error

    def _take(self, member: tarfile.TarInfo, size: int) -> None:
        """Note where a member of a tar of ``size`` bytes is, and read the index of a pack."""
        if member.isfile():
            self._add(member.name, member.offset_data, member.size)
        if member.offset_data + member.size > size:
            raise tarfile.ReadError(f"member {member.name} reaches beyond the end of the file")
        if member.name == INDEX:
            raw = self._file.read(member.offset_data, member.size)
            self.index = PackIndex.from_json(raw, self.path)

    def _check_end(self, offset: int) -> None:
        """Raise ReadError unless the end mark is at ``offset``.

        tarfile does not complain about a cut or damaged header.
        """
        with self.path.open("rb") as file:
            file.seek(offset)
            block = file.read(tarfile.BLOCKSIZE)
        if block != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"no end mark at byte {offset}: cut short or damaged there")

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
        labels: list = []
        for members in self.members:
            label = None
            with contextlib.suppress(BadRow), row_guard():
                label = self._label(members)
            labels.append(label)
        return labels

    def __getitem__(self, index: int) -> Row:
        members = self.members[index]
        image: bytes | None = None
        texts: tuple[str, ...] = ()
        if self.kind != "text":
            image = self._first(members, self.image_endings)
            if image is None:
                raise BadRow(f"has no image member; endings found: {', '.join(members)}")
        if self.kind != "image":
            texts = self._texts(members)
        if self.kind == "text" and not texts:
            raise BadRow(f"has no text member; endings found: {', '.join(members)}")
        return Row(self._keys[index], image=image, texts=texts, label=self._label(members))

    def _first(self, members: Members, endings: tuple[str, ...]) -> bytes | None:
        """Return the bytes of the member with the first of ``endings`` that there is, or None."""
        for ending in endings:
            if ending in members:
                return self._file.read(*members[ending])
        return None

    def _texts(self, members: Members) -> tuple[str, ...]:
        """Return the texts of a row, none when it has no text member."""
        raw = self._first(members, self.text_endings)
        if raw is None:
            return ()
        is_plain = "txt" in members or self.text_endings != TEXTS
        try:
            text = raw.decode("utf-8")
            if is_plain:
                return (text.strip(),)
            fields = json.loads(text)
        except (UnicodeDecodeError, ValueError) as error:
            raise BadRow(f"its text member cannot be read: {error}") from error
        if not isinstance(fields, dict):
            return ()
        for name in USUAL["text"]:
            if name in fields:
                value = fields[name]
                return () if value is None else sentences(value)
        return ()

    def _label(self, members: Members) -> int | str | None:
        if "cls" not in members:
            return None
        raw = self._file.read(*members["cls"])
        return label_of(raw.decode("utf-8", "replace").strip())
