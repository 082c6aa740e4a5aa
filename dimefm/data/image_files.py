"""Tell which files of a folder are images, and which belong to other programs."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dimefm.data.skipped import Skipped
from dimefm.errors import DataError
from dimefm.storage.reading import patiently

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".jfi",
    ".jif",
    ".png",
    ".apng",
    ".webp",
    ".gif",
    ".bmp",
    ".dib",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".avif",
    ".heic",
    ".heif",
    ".jp2",
    ".j2k",
    ".j2c",
    ".jpx",
    ".jpf",
    ".jxl",
)
OTHER_SUFFIXES = frozenset(  # endings of files that are not opened to see whether they are images
    ".text .token .json .jsonl .csv .tsv .xml .yaml .yml .toml .ini .md .rst .html .htm .pdf"
    " .doc .docx .xls .xlsx .py .ipynb .sh .log .lst .list .lineidx .linelist .npy .npz .pt .pth"
    " .pkl .mat .h5 .hdf5 .db .sqlite .parquet .arrow .feather .tar .gz .tgz .bz2 .xz .zst .zip"
    " .rar .7z .mp4 .mov .avi .mkv .webm .mp3 .wav .svg .bak .tmp .part .crdownload .torrent .aae"
    " .xmp .thm .lock .sha256 .md5".split()
)
LITTER = frozenset(  # names, in lower case, of files and folders that programs leave among photos
    {
        "__macosx",
        "@eadir",
        "@tmp",
        "#recycle",
        "@recycle",
        "@recently-snapshot",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "found.000",
        "__pycache__",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
    }
)
COPY_MARKS = (".seal", ".part", ".lock")  # end the hidden files next to copies of remote files
HEAD = 16  # bytes that tell an image
SIGNATURES = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\0",  # TIFF
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"\0\0\0\x0cjP  \r\n\x87\n",  # JPEG 2000
    b"\xff\x4f\xff\x51",
    b"\0\0\0\x0cJXL \r\n\x87\n",
    b"qoif",
)
BRANDS = frozenset(  # of AVIF and HEIF; films have the same box with others
    {b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
)
OF_OTHER_PROGRAMS = "hidden or of other programs"
NO_FILE = "pipes, sockets, devices or dangling links"
TEXT_SUFFIX = ".txt"


def is_litter(name: str) -> bool:
    """Tell whether a file or folder is hidden, or one that a program leaves among photos."""
    return name.startswith(".") or name.casefold() in LITTER


def has_litter(path: str) -> bool:
    """Tell whether a part of a path with forward slashes is litter."""
    return any(is_litter(part) for part in path.split("/"))


def is_named_as_image(name: str) -> bool:
    """Tell whether a file name has the ending of an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def begins_as_image(head: bytes) -> bool:
    """Tell whether the first ``HEAD`` bytes of a file are those of an image."""
    if head.startswith(SIGNATURES):
        return True
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return True
    if head[4:8] == b"ftyp" and head[8:12] in BRANDS:
        return True
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return True
    is_netpbm = head[:1] == b"P" and head[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6")
    return is_netpbm and head[2:3] == b"\n"


def is_image(path: str, name: str) -> bool:
    """Tell by its ending, or by its first bytes, whether the file at ``path`` is an image."""
    if is_named_as_image(name):
        return True
    if PurePosixPath(name).suffix.lower() in OTHER_SUFFIXES:
        return False
    return begins_as_image(_head(path))


def _head(path: str) -> bytes:
    """Return the first bytes of a file, none when there is no such file.

    Raises DataError when the machine fails to read it.
    """
    try:
        return patiently(lambda: _read_head(path), path)
    except OSError:
        return b""


def _read_head(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return os.read(descriptor, HEAD) if is_file else b""
    finally:
        os.close(descriptor)


@dataclass
class FoundFiles:
    """The files of a folder by their paths relative to it, sorted, and what is neither.

    ``texts`` are files ending in ``.txt``.
    """

    images: list[str]
    texts: list[str]
    skipped: Skipped


def find_files(root: Path) -> FoundFiles:
    """Find the image files and text files in a folder, at any depth.

    Raises DataError for a link to a folder, and for a folder that cannot be read.
    """
    found = FoundFiles([], [], Skipped())
    for entry, key in _walk(root, found.skipped):
        if is_named_as_image(entry.name):
            found.images.append(key)  # if it is no file, reading the row says so
        elif not asks(entry.is_file):
            found.skipped.add(NO_FILE, key)
        elif entry.name.lower().endswith(TEXT_SUFFIX):
            found.texts.append(key)
        elif is_image(entry.path, entry.name):
            found.images.append(key)
        else:
            found.skipped.add(reason_of(entry.name), key)
    found.images.sort()
    found.texts.sort()
    return found


def reason_of(name: str) -> str:
    """Return why a file of this name is no row."""
    ending = PurePosixPath(name).suffix.lower()
    return f"ending in {ending}" if ending else "without an ending"


def holds_image(root: Path) -> bool:
    """Tell whether there is an image file in a folder, at any depth."""
    return any(is_image(entry.path, entry.name) for entry, _ in _walk(root, Skipped()))


def _walk(root: Path, skipped: Skipped) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Yield (entry, path relative to ``root``) of everything in a folder but folders and litter."""
    folders = [""]
    while folders:
        prefix = folders.pop()
        for entry in entries_of(os.path.join(root, prefix)):
            key = f"{prefix}{entry.name}"
            if is_litter(entry.name):
                if not entry.name.endswith(COPY_MARKS):
                    mark = "/" if asks(entry.is_dir) else ""
                    skipped.add(OF_OTHER_PROGRAMS, key + mark)
            elif not asks(entry.is_dir):
                yield entry, key
            elif entry.is_symlink():
                raise DataError(
                    f"{entry.path}: is a link to a folder, which is not followed. Fix: name the"
                    " folder that it leads to as a source of its own"
                )
            else:
                folders.append(f"{key}/")


def asks(question: Callable[[], bool]) -> bool:
    """Return the answer of a directory entry, False for a link to itself."""
    try:
        return question()
    except OSError:
        return False


def entries_of(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds; raise DataError when it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(
            f"{folder}: this folder cannot be read ({error.strerror}). Fix: change its permissions"
        ) from error
