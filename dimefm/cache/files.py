"""Writing files so that they are either whole or absent, and hashing them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path


def commit(part: Path, final: Path) -> None:
    """Make a finished temporary file durable under its final name: fsync file, rename, fsync folder."""
    descriptor = os.open(part, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(part, final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, atomically."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    commit(part, path)


def to_json(value: object) -> str:
    """Return ``value`` as indented JSON that ends in a newline; the same value gives the same bytes."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def companions_sha256(paths: Iterable[Path]) -> str:
    """Return one digest over the SHA-256 of each file, or "" when there is no file."""
    digests = [sha256_file(path) for path in paths]
    return sha256_keys(digests) if digests else ""


BLOCK, BLOCKS = 16_384, 256  # a file of up to BLOCK * BLOCKS = 4 MiB is read whole


def sampled_sha256(path: Path) -> str:
    """Return a digest that tells a file from another or an edited one without reading terabytes.

    SHA-256 over its size in decimal, a colon, and its bytes; of a file above 4 MiB only 256 blocks of 16 KiB, evenly
    spaced from its start to its end.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(b"%d:" % size)
    with path.open("rb") as file:
        if size <= BLOCK * BLOCKS:
            digest.update(file.read())
        else:
            for number in range(BLOCKS):
                file.seek((size - BLOCK) * number // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()


def sha256_keys(keys: Iterable[str]) -> str:
    """Return the digest of a sequence of keys: SHA-256 over ``LENGTH:KEY`` of each, LENGTH in bytes of UTF-8."""
    digest = hashlib.sha256()
    for key in keys:
        raw = key.encode("utf-8", "surrogatepass")
        digest.update(b"%d:%b" % (len(raw), raw))
    return digest.hexdigest()
