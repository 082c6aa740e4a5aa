"""Local copies of remote files (``s3://``, ``gs://``, every protocol of fsspec), fetched once.

A copy lies at ``SCRATCH/PROTOCOL/PATH`` and its seal, ``.NAME.seal``, in the same folder. The seal
has the URL, the size, and the store's identifier of the content. A copy is fetched again when its
size is not the sealed size, or the store's identifier has changed. Copies may be removed at any
time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from dimefm.errors import DataError, DimefmError, did_you_mean
from dimefm.runtime.os_errors import FULL
from dimefm.runtime.printable import masked, without_secrets
from dimefm.storage.files import sampled_sha256
from dimefm.storage.small_files import parse_json

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # at least two letters: C:// is a drive
REMEDIES = {
    "s3": "pip install 'dimefm[s3]'",
    "gs": "pip install 'dimefm[gs]'",
    "gcs": "pip install 'dimefm[gs]'",
}
# the stores' names for an identifier of the content, the most reliable first
VERSIONS = (
    "etag",
    "md5hash",
    "content-md5",
    "crc32c",
    "generation",
    "mtime",
    "lastmodified",
    "last-modified",
    "updated",
    "created",
)


def is_url(text: str | Path) -> bool:
    """Return whether ``text`` begins like a URL.

    Pass what the user wrote, not a Path: ``Path("s3://a")`` has lost a slash.
    """
    return URL.match(str(text)) is not None


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """Return the fsspec filesystem of ``url``, without cached listings, and the path in it.

    Raises DataError when the protocol is unknown, its package is not installed, or the store
    refuses the connection.
    """
    import fsspec

    protocol = url.partition("://")[0]
    if "::" in url:
        raise DataError(
            f"{masked(url)}: is a chain of URLs; expected a single one, PROTOCOL://PATH. Fix: copy"
            " the files first, and name their folder"
        )
    known = {*fsspec.available_protocols(), *fsspec.registry}
    if protocol not in known:
        raise DataError(
            f"{masked(url)}: unknown protocol '{protocol}': {did_you_mean(protocol, known)}"
        )
    with reported(url):
        try:
            fs, path = fsspec.core.url_to_fs(url)
        except ImportError as error:
            remedy = REMEDIES.get(protocol, "install the package that it names")
            raise DataError(
                f"{masked(url)}: the package for {protocol}:// is missing ({error}). Fix: {remedy}"
            ) from error
        fs.invalidate_cache()
    return fs, path


@contextlib.contextmanager
def reported(url: str) -> Iterator[None]:
    """Turn the errors of a store inside the block into a DataError of one line that names ``url``.

    Every backend has its own classes of errors, so all are caught. Errors of dimefm and of a full
    disk pass through.
    """
    try:
        yield
    except DimefmError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{masked(url)}: no such file or folder. Fix: check the URL") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:  # the folder for copies, not a store
            raise
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        remedy = "check the URL, the credentials and the network, and run again"
        raise DataError(
            f"{masked(url)}: cannot be read ({type(error).__name__}: {masked(reason)}). Fix:"
            f" {remedy}"
        ) from error


def scratch_folder(given: str | Path | None) -> Path:
    """Return the absolute folder for local copies.

    It is ``given``, else ``$XDG_CACHE_HOME/dimefm``, else ``~/.cache/dimefm``.
    """
    if given is not None:
        return Path(os.path.abspath(given))
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.path.abspath(Path(caches) / "dimefm"))


def stat(url: str) -> Mapping[str, Any] | None:
    """Return the store's facts of a file or folder (``type``, ``size``, ...), None if not found.

    Raises DataError when the store cannot be read.
    """
    fs, path = filesystem(url)
    with reported(url):
        try:
            return fs.info(path)
        except FileNotFoundError:
            return None


def local_path(url: str, scratch: Path) -> Path:
    """Return the path of the local copy of ``url``, whether it exists or not.

    A password or a signature in the URL is no part of it. Raises DataError when the URL has
    segments that a folder cannot hold, or that lead elsewhere.
    """
    protocol, _, path = without_secrets(url).partition("://")
    segments = path.strip("/").split("/")
    for segment in segments:
        if segment in ("", ".", "..") or "\0" in segment:
            raise DataError(
                f"{masked(url)}: expected a path without '..', '.' and empty segments, as it is"
                f" copied to {scratch}"
            )
    return scratch.joinpath(protocol, *segments)


def fetch(url: str, scratch: Path, info: Mapping[str, Any] | None = None) -> Path:
    """Return the local copy of one remote file; it is fetched unless the copy is up to date.

    ``info`` are the facts of the file in a listing, when the caller has one; else the store is
    asked. Processes that want the same file wait for one another. Raises DataError when the file is
    missing, cannot be read or cannot be stored.
    """
    copy = local_path(url, scratch)
    fs, path = filesystem(url)
    if info is None:
        with reported(url):
            info = fs.info(path)
    if info["type"] == "directory":
        raise DataError(f"{masked(url)}: is a folder; expected a file. Fix: name a file in it")
    size = info.get("size")
    version = _version(info)
    with _sealed(copy, scratch) as seal:
        if not _is_current(copy, seal, size, version):
            seal.seek(0)
            seal.truncate()
            size = _download(fs, path, url, copy, size)
            sealed = {"url": masked(url), "size": size, "version": version}
            json.dump({**sealed, **_content(copy)}, seal)
            seal.flush()
            os.fsync(seal.fileno())
    return copy


def forget(copy: Path) -> None:
    """Remove a local copy and its seal, if they exist."""
    copy.unlink(missing_ok=True)
    _seal_path(copy).unlink(missing_ok=True)


def _seal_path(copy: Path) -> Path:
    return copy.with_name(f".{copy.name}.seal")


@contextlib.contextmanager
def _sealed(copy: Path, scratch: Path) -> Iterator[TextIO]:
    """Open the seal of ``copy``, empty when it is new, for this caller alone; others wait.

    ``scratch`` may be shared: no link in it that another user has made is followed.
    """
    import fcntl

    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        _refuse_links(copy.parent, scratch)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(_seal_path(copy), flags, 0o666)
        seal = open(descriptor, "r+", encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{copy}: cannot be written ({error.strerror}). Fix: name another folder with --scratch"
        ) from error
    with seal:
        fcntl.flock(seal, fcntl.LOCK_EX)
        yield seal


def _refuse_links(folder: Path, scratch: Path) -> None:
    """Raise DataError when a folder of copies is a link that leads out of ``scratch``."""
    if not folder.resolve().is_relative_to(scratch.resolve()):
        raise DataError(
            f"{folder}: a link leads out of {scratch}. Fix: remove the link, or name another folder"
            " with --scratch"
        )


def _content(copy: Path) -> dict[str, int | str]:
    """Return what tells that a copy was changed: the time of its last change, and a digest."""
    return {"mtime_ns": copy.stat().st_mtime_ns, "digest": sampled_sha256(copy)}


def _has_content(copy: Path, sealed: Mapping[str, Any]) -> bool:
    """Return whether a copy has the sealed content, as far as the seal knows it.

    The digest is computed only when the time of the last change differs.
    """
    if sealed.get("digest") is None or copy.stat().st_mtime_ns == sealed.get("mtime_ns"):
        return True
    return sampled_sha256(copy) == sealed["digest"]


def _version(info: Mapping[str, Any]) -> str | None:
    """Return the most reliable identifier of the content among a store's facts, None without."""
    known = {}
    for name, value in info.items():
        if value is not None:
            known[name.lower().replace("_", "-")] = value
    for name in VERSIONS:
        if name in known:
            return str(known[name]).strip('"')
    return None


def _is_current(copy: Path, seal: TextIO, size: int | None, version: str | None) -> bool:
    """Return whether ``copy`` is as its seal says, and has the content that the store has now."""
    try:
        sealed = parse_json(seal.read())
        copied = copy.stat().st_size
        if copy.is_symlink() or not _has_content(copy, sealed):
            return False
    except (ValueError, AttributeError, OSError):
        return False
    if sealed.get("size") != copied or sealed.get("version") != version:
        return False
    return size is None or size == copied


def _download(fs: AbstractFileSystem, path: str, url: str, copy: Path, size: int | None) -> int:
    """Fetch the file to ``copy``, whole and flushed to disk; return its size in bytes."""
    part = copy.with_name(f".{copy.name[:100]}.{secrets.token_hex(8)}.part")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # no link of others
        with reported(url):
            fs.get_file(path, str(part))
        with part.open("rb+") as file:
            os.fsync(file.fileno())
            fetched = os.fstat(file.fileno()).st_size
        if size is not None and fetched != size:
            raise DataError(
                f"{masked(url)}: {fetched} bytes came of {size}; it was cut short or changed"
                " meanwhile. Fix: run again"
            )
        os.replace(part, copy)
    except OSError as error:
        raise DataError(
            f"{copy}: cannot be written ({error.strerror}). Fix: name another folder with --scratch"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return fetched
