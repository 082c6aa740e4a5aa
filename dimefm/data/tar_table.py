"""The member table of a tar: what each member is called, and where its bytes are.

Tars that were joined with ``cat`` are read to the last one. A link leads to the member that it
names. Nothing is unpacked.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dimefm.errors import DataError, DimefmError
from dimefm.storage.reading import is_row_fault

LONGEST_HEADER = 1 << 16  # bytes of names and attributes of one member
LONG_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
MOST_LINKS = 8  # from a member to the member with the bytes
ZEROS = 1 << 20  # bytes that are looked at at once behind an end mark


class _Member(tarfile.TarInfo):
    """A member whose header is checked before it is parsed."""

    def _proc_member(self, tar):
        if self.size < 0:
            raise tarfile.ReadError(f"member {self.name[:80]!r} has a negative size")
        if self.type in LONG_HEADERS and self.size > LONGEST_HEADER:
            raise tarfile.ReadError(
                f"the header at byte {self.offset} has {self.size:,} bytes of attributes, the limit"
                f" is {LONGEST_HEADER:,}"
            )
        return super()._proc_member(tar)  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a tar: ``size`` bytes from ``offset`` on, or ``fault``, why it has none."""

    name: str
    offset: int
    size: int
    fault: str = ""


def read_table(path: Path) -> tuple[list[Member], list[str]]:
    """Return the files in a tar, in order, and the names of further members that are no files.

    Folders are left out. Raises DataError when the tar is compressed, damaged or cut short.
    """
    members: list[Member] = []
    others: list[str] = []
    try:
        size = path.stat().st_size
        places: dict[str, Member] = {}
        links: list[tuple[int, str]] = []  # (place in ``members``, target)
        for entry in _entries(path, size):
            if entry.isdir():
                continue
            member = _member(entry)
            if member is None:
                others.append(entry.name)
                continue
            if entry.islnk() or entry.issym():
                links.append((len(members), _target(entry)))
            else:
                places[_normal(entry.name)] = member
            members.append(member)
        targets = {_normal(members[place].name): target for place, target in links}
        for place, target in links:
            members[place] = _followed(members[place], target, places, targets)
    except (DimefmError, MemoryError):
        raise
    except Exception as error:  # tarfile raises what its parsers raise
        if not isinstance(error, tarfile.TarError) and not is_row_fault(error):
            raise
        raise DataError(
            f"{path}: not a whole, uncompressed tar ({str(error)[:200]}). Fix: fetch or write it"
            " again"
        ) from error
    return members, others


def _entries(path: Path, size: int) -> Iterator[tarfile.TarInfo]:
    """Yield the entries of all tars that follow one another in a file of ``size`` bytes."""
    start = 0
    with path.open("rb") as file:
        while start is not None and start < size:
            file.seek(start)
            with tarfile.TarFile(fileobj=file, tarinfo=_Member, encoding="utf-8") as tar:
                entry = tar.next()
                while entry is not None:
                    # the table of a large tar is kept once
                    tar.members.clear()  # type: ignore[attr-defined]
                    _check_entry(entry, tar.offset, size)
                    yield entry
                    entry = tar.next()
                end = tar.offset
            _check_end(file, end)
            start = _next_tar(file, end)


def _check_entry(entry: tarfile.TarInfo, next_offset: int, size: int) -> None:
    """Raise ReadError unless an entry lies inside a file of ``size`` bytes."""
    if entry.size < 0 or next_offset <= entry.offset:
        raise tarfile.ReadError(f"member {entry.name[:80]!r} has a negative size")
    has_bytes = not (entry.islnk() or entry.issym())
    if has_bytes and entry.offset_data + entry.size > size:
        raise tarfile.ReadError(f"member {entry.name[:80]} reaches beyond the end of the file")


def _check_end(file: BinaryIO, offset: int) -> None:
    """Raise ReadError unless an end mark is at ``offset``.

    tarfile does not complain about a cut or damaged header.
    """
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"no end mark at byte {offset}: cut short or damaged there")


def _next_tar(file: BinaryIO, end: int) -> int | None:
    """Return where the next tar begins behind an end mark, None when only padding follows."""
    file.seek(end)
    offset = end
    while block := file.read(ZEROS):
        rest = block.lstrip(b"\0")
        if rest:
            first = offset + len(block) - len(rest)
            return first - (first - end) % tarfile.BLOCKSIZE
        offset += len(block)
    return None


def _member(entry: tarfile.TarInfo) -> Member | None:
    """Return the member of an entry, None when it is neither a file nor a link."""
    if entry.issparse():
        return Member(entry.name, 0, 0, "is stored as a sparse file. Fix: pack the tar without -S")
    if entry.isfile():
        return Member(entry.name, entry.offset_data, entry.size)
    if entry.islnk() or entry.issym():
        return Member(entry.name, 0, 0)
    return None


def _normal(name: str) -> str:
    return posixpath.normpath(name)


def _target(entry: tarfile.TarInfo) -> str:
    """Return the name of the member that a link leads to."""
    if entry.islnk():
        return _normal(entry.linkname)
    return _normal(posixpath.join(posixpath.dirname(entry.name), entry.linkname))


def _followed(
    link: Member, target: str, places: dict[str, Member], targets: dict[str, str]
) -> Member:
    """Return the member of a link, with the bytes of the member that it leads to.

    ``targets`` are those of all links by name.
    """
    for _ in range(MOST_LINKS):
        member = places.get(target)
        if member is not None:
            return Member(link.name, member.offset, member.size, member.fault)
        if target not in targets:
            break
        target = targets[target]
    return Member(link.name, 0, 0, f"is a link to {target[:80]}, which is no file in this tar")
