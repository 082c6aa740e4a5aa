"""Webdataset tar: the members of one key are a row, e.g. ``KEY.jpg`` and ``KEY.txt``.

Other members are ``KEY.cls`` and ``KEY.json``. They need not follow one another. A member may have
an ending of two parts, ``KEY.input.jpg``; keys with dots are recognized. Of a name that stands
twice, the second is a row of its own, ``KEY~2``. The member table is read once; rows are then read
in any order at their byte offset. Compressed tars have no random access and are refused. A tar that
``dimefm pack`` made gives the rows of the shard that it stands for.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from pathlib import Path

from dimefm.data.columns import USUAL, sentences
from dimefm.data.image_files import (
    HEAD,
    IMAGE_SUFFIXES,
    OF_OTHER_PROGRAMS,
    OTHER_SUFFIXES,
    begins_as_image,
    is_litter,
)
from dimefm.data.lines import LONGEST_TEXT
from dimefm.data.packed.shards import INDEX, PackedShard, PackIndex
from dimefm.data.pread import PreadFile
from dimefm.data.rows import Columns, Row, Shard, label_of, row_guard
from dimefm.data.skipped import Skipped
from dimefm.data.tar_table import Member, read_table
from dimefm.errors import BadRow, DataError
from dimefm.runtime.text import first_few, readable
from dimefm.storage.reading import LARGEST_FILE

SUFFIXES = (".tar",)
KINDS = frozenset({"image", "text"})
FIRST_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "ppm")  # the first is a row's image
IMAGES = (*FIRST_IMAGES, *sorted({suffix[1:] for suffix in IMAGE_SUFFIXES} - {*FIRST_IMAGES}))
TEXTS = ("txt", "json")
LABELS = ("cls", "npy")
SNIFFED = "image"  # stands for the ending of a member without one that holds an image
MOST_SNIFFED = 16  # unknown endings of which a member is looked at
ENDINGS_NAMED = 12
PARTS_REPEAT = 2  # rows, at least, in which the endings of two parts occur on average

Members = dict[str, tuple[int, int]]  # of one key: ending -> (offset, size)


def claims(path: Path) -> bool:
    """Every ``.tar`` file is a webdataset tar."""
    return True


def open_shards(path: Path, name: str, kind: str, columns: Columns) -> list[Shard]:
    """Open one tar; raise DataError when it is damaged or holds no member of the wanted kind."""
    shard = TarShard(path, name, kind, columns)
    if shard.index is not None:
        return [PackedShard(shard, shard.index)]
    if len(shard):
        shard.check_kind()
    return [shard]


class TarShard(Shard):
    """One tar file: for each key, its members as ending -> (offset, size)."""

    def __init__(self, path: Path, name: str, kind: str, columns: Columns):
        super().__init__(path, name)
        self.kind = kind
        self.columns = columns
        self.image_endings = (columns.image,) if columns.image else IMAGES
        self.text_endings = (columns.text,) if columns.text else TEXTS
        self.members: list[Members] = []
        self.index: PackIndex | None = None
        self.skipped = Skipped()
        self._keys: list[str] = []
        self._faults: dict[int, str] = {}  # offset of a member -> why it cannot be read
        self._file = PreadFile(path)
        self._fill()

    def _fill(self) -> None:
        """Read the table, and put the members of each key together."""
        members, others = read_table(self.path)
        for other in others:
            self.skipped.add("members that are no files", other)
        if not members:
            self.skipped.add("tars without any file", self.path.name)
        usable = [member for member in members if self._is_usable(member)]
        at_last_dot = not self._names_parts() and has_dotted_keys(usable)
        rows_of_key: dict[str, list[int]] = {}
        seen: dict[tuple[str, str], int] = defaultdict(int)
        for number, member in enumerate(usable):
            key, ending = split_name(member.name, at_last_dot)
            ending = ending or self._sniffed(member)
            if not ending:
                self.skipped.add("members without an ending", member.name)
                continue
            key = readable(key)
            row = self._row_of(key, seen[key, ending], rows_of_key, member)
            seen[key, ending] += 1
            place = (member.offset, member.size)
            if member.fault:
                place = (-1 - number, 0)
                self._faults[place[0]] = member.fault
            self.members[row][ending] = place
        self._note_unknown_images()

    def _is_usable(self, member: Member) -> bool:
        """Tell whether a member may belong to a row; read the index of a pack."""
        if member.name == INDEX:
            raw = self._file.read(member.offset, member.size)
            self.index = PackIndex.from_json(raw, self.path)
            return False
        parts = [part for part in member.name.split("/") if part not in (".", "..")]
        if any(is_litter(part) for part in parts):
            self.skipped.add(OF_OTHER_PROGRAMS, member.name)
            return False
        return True

    def _names_parts(self) -> bool:
        """Tell whether the user names an ending of two parts."""
        asked = (self.columns.image or "", self.columns.text or "")
        return any("." in ending for ending in asked)

    def _sniffed(self, member: Member) -> str:
        """Return an ending for a member that has none but holds an image, else ""."""
        if member.fault:
            return ""
        head = self._file.read(member.offset, min(HEAD, member.size))
        return SNIFFED if begins_as_image(head) else ""

    def _row_of(
        self, key: str, before: int, rows_of_key: dict[str, list[int]], member: Member
    ) -> int:
        """Return the row that a member belongs to: the first of its key that lacks the ending.

        ``before`` members of the same key and ending went to the first rows of the key.
        """
        rows = rows_of_key.setdefault(key, [])
        if before < len(rows):
            return rows[before]
        row = len(self.members)
        row_key = key
        if rows:
            self.skipped.add("names that stand twice, each kept as a further row", member.name)
            number = len(rows) + 1
            row_key = f"{key}~{number}"
        rows.append(row)
        self._keys.append(row_key)
        self.members.append({})
        return row

    def _note_unknown_images(self) -> None:
        """Take further endings for those of images, where a member of each holds an image."""
        if self.columns.image or self.kind == "text":
            return
        examples: dict[str, tuple[int, int]] = {}
        for members in self.members:
            for ending, place in members.items():
                examples.setdefault(ending, place)
        sniffed: list[str] = []
        for ending, (offset, size) in examples.items():
            last = last_part(ending)
            is_known = last in (*IMAGES, *TEXTS, *LABELS) or f".{last}" in OTHER_SUFFIXES
            if is_known or offset < 0 or len(sniffed) >= MOST_SNIFFED:
                continue
            if begins_as_image(self._file.read(offset, min(HEAD, size))):
                sniffed.append(ending)
        self.image_endings = (*self.image_endings, *sniffed)

    def check_kind(self) -> None:
        """Raise DataError unless some row has what is wanted of it; count images not used."""
        wanted = self.text_endings if self.kind == "text" else self.image_endings
        asked = self.columns.text if self.kind == "text" else self.columns.image
        ambiguous: list[str] = []
        has_some = False
        for key, members in zip(self._keys, self.members, strict=True):
            candidates = _candidates(members, wanted, asked)
            has_some = has_some or len(candidates) == 1
            if len(candidates) > 1 and not ambiguous:
                ambiguous = candidates
            if self.kind != "text":
                self._note_further_images(key, members, candidates)
        if has_some:
            return
        option = "--text-column" if self.kind == "text" else "--image-column"
        if ambiguous:
            raise DataError(
                f"{self.path}: each row has several members that may be meant:"
                f" {first_few(ambiguous, ENDINGS_NAMED)}. Fix: name one with {option}"
                f" {ambiguous[0]}"
            )
        known = asked or f"{', '.join(wanted[:7])}{', ...' if len(wanted) > 7 else ''}"
        endings = sorted(set().union(*self.members))
        raise DataError(
            f"{self.path}: no member ends in {known}; endings found:"
            f" {first_few(endings, ENDINGS_NAMED)}. Fix: name the ending with {option}"
        )

    def _note_further_images(self, key: str, members: Members, candidates: list[str]) -> None:
        """Count the images of a row besides the one that is read."""
        images = [ending for ending in members if last_part(ending) in IMAGES]
        for ending in images:
            if ending not in candidates[:1] and len(images) > 1:
                self.skipped.add(f"further images of a row, ending in .{ending}", key)

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
            ending = self._chosen(members, self.image_endings, self.columns.image)
            if ending is None:
                raise BadRow(f"has no image member; endings found: {_few(members)}")
            image = self.member_bytes(members[ending])
        if self.kind != "image":
            texts = self._texts(members)
        if self.kind == "text" and not texts:
            raise BadRow(f"has no text member; endings found: {_few(members)}")
        return Row(self._keys[index], image=image, texts=texts, label=self._label(members))

    def _chosen(self, members: Members, wanted: tuple[str, ...], asked: str | None) -> str | None:
        """Return the ending of the member that is meant, None when there is none."""
        candidates = _candidates(members, wanted, asked)
        if len(candidates) > 1:
            raise BadRow(
                f"has several members that may be meant: {first_few(candidates, ENDINGS_NAMED)}"
            )
        return candidates[0] if candidates else None

    def member_bytes(self, place: tuple[int, int], most: int | None = None) -> bytes:
        """Return the bytes of a member; raise BadRow when it has none, or more than ``most``.

        The default is ``LARGEST_FILE``, the limit of an image.
        """
        limit = min(LARGEST_FILE, most or LARGEST_FILE)
        offset, size = place
        if offset in self._faults:
            raise BadRow(self._faults[offset])
        if size > limit:
            raise BadRow(f"has a member of {size:,} bytes, the limit is {limit:,}")
        return self._file.read(offset, size)

    def _texts(self, members: Members) -> tuple[str, ...]:
        """Return the texts of a row, none when it has no text member."""
        asked = self.columns.text
        ending = self._chosen(members, self.text_endings, asked)
        if ending is None:
            return ()
        raw = self.member_bytes(members[ending], LONGEST_TEXT)
        try:
            text = raw.decode("utf-8")
            if asked or last_part(ending) != "json":
                return (text.strip(),)
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadRow(f"its text member cannot be read: {str(error)[:200]}") from error
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
        return label_of(self.member_bytes(members["cls"]).decode("utf-8", "replace").strip())


def split_name(name: str, at_last_dot: bool) -> tuple[str, str]:
    """Return (key, ending in lower case) of a member; the ending is "" when there is none.

    The key is the name up to the first dot of the file, or to the last one.
    """
    folder, _, file = name.rpartition("/")
    if at_last_dot and "." in file:
        stem, _, ending = file.rpartition(".")
    else:
        stem, _, ending = file.partition(".")
    key = f"{folder}/{stem}" if folder else stem
    return key, ending.lower()


def has_dotted_keys(members: list[Member]) -> bool:
    """Tell whether keys have dots: members would share a row that are no parts of one.

    ``a.1.jpg`` and ``a.2.jpg`` are two rows. ``a.input.jpg`` and ``a.target.jpg`` are parts of one
    when ``b.input.jpg`` and ``b.target.jpg`` are there too.
    """
    keys_of_ending: dict[str, int] = defaultdict(int)
    parts_of_row: dict[tuple[str, str], set[str]] = {}
    for member in members:
        key, ending = split_name(member.name, at_last_dot=False)
        last = last_part(ending)
        if ending == last or last not in (*IMAGES, *TEXTS, *LABELS):
            continue
        parts = parts_of_row.setdefault((key, last), set())
        if ending not in parts:
            parts.add(ending)
            keys_of_ending[ending] += 1
    if all(len(parts) < 2 for parts in parts_of_row.values()):
        return False
    return sum(keys_of_ending.values()) < PARTS_REPEAT * len(keys_of_ending)


def last_part(ending: str) -> str:
    """Return what follows the last dot of an ending."""
    return ending.rpartition(".")[2]


def _candidates(members: Members, wanted: tuple[str, ...], asked: str | None) -> list[str]:
    """Return the endings of the members that may be meant: one, if there is one of one part."""
    for ending in wanted:
        if ending in members:
            return [ending]
    if asked:
        return []
    return [ending for ending in members if last_part(ending) in wanted]


def _few(members: Members) -> str:
    return first_few(list(members), ENDINGS_NAMED)
