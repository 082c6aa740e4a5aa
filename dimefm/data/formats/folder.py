"""A folder of image files, searched to any depth.

The first folder level is the label when there is one.

Keys are paths relative to the folder. Files are sorted by path; every :data:`ROWS_PER_SHARD` files
form one shard, so that a long extraction has units of work to resume at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from dimefm.data.rows import Columns, Row, Shard, inside, readable
from dimefm.errors import BadRow, DataError
from dimefm.storage.files import sha256_keys
from dimefm.storage.reading import is_row_fault, patiently, read_file

SUFFIXES: tuple[str, ...] = ()
KINDS = frozenset({"image"})
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
ROWS_PER_SHARD = 10_000


def claims(path: Path) -> bool:
    """A folder is claimed by being one; see ``sources._format_of``."""
    return path.is_dir()


def open_shards(path: Path, name: str, kind: str, columns: Columns) -> list[Shard]:
    """Open a folder as shards of at most ROWS_PER_SHARD images; raise DataError without images."""
    keys = sorted(_image_files(path))
    if not keys:
        raise DataError(
            f"{path}: no image files ({' '.join(IMAGE_SUFFIXES)}) and no shards in this folder"
        )
    if len(keys) <= ROWS_PER_SHARD:
        return [FolderShard(path, name, keys)]
    shards: list[Shard] = []
    for number, start in enumerate(range(0, len(keys), ROWS_PER_SHARD)):
        part = keys[start : start + ROWS_PER_SHARD]
        shards.append(FolderShard(path, f"{name}/{number:05d}", part))
    return shards


def _image_files(root: Path) -> Iterator[str]:
    """Yield the paths of image files in a folder, relative to it, in any order.

    Raises DataError for a link to a folder, and for a folder that cannot be read.
    """

    def stop(error: OSError):
        raise DataError(
            f"{error.filename}: this folder cannot be read ({error.strerror}). Fix: change its"
            " permissions"
        )

    for folder, inner, files in os.walk(root, onerror=stop):
        links = [name for name in inner if os.path.islink(os.path.join(folder, name))]
        if links:
            raise DataError(
                f"{os.path.join(folder, links[0])}: is a link to a folder, which is not followed."
                " Fix: name the folder that it leads to as a source of its own"
            )
        prefix = Path(folder).relative_to(root)
        for file in files:
            if file.lower().endswith(IMAGE_SUFFIXES):
                yield (prefix / file).as_posix()


class FolderShard(Shard):
    """Some of the image files of one folder, by relative path."""

    def __init__(self, path: Path, name: str, keys: list[str]):
        super().__init__(path, name)
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def digest(self) -> str:
        """Return a digest of the files' names and sizes."""
        return sha256_keys(f"{key}:{_size(self.path / key)}" for key in self._keys)

    def keys(self) -> list[str]:
        return [readable(key) for key in self._keys]

    def __getitem__(self, index: int) -> Row:
        key = self._keys[index]
        image = read_file(self._path_of(key))
        folder, slash, _ = key.partition("/")
        label = readable(folder) if slash else None
        return Row(readable(key), image=image, label=label)

    def _path_of(self, key: str) -> Path:
        """Return the path of a file; raise BadRow for a link to itself or out of the folder."""
        try:
            return inside(self.path, key)
        except DataError as error:
            raise BadRow(
                f"is a link that leads outside {self.path}; put the file itself there"
            ) from error
        except (OSError, RuntimeError) as error:  # RuntimeError: before Python 3.13
            if is_row_fault(error):
                raise BadRow(f"cannot be read: {error}") from error
            raise


def _size(path: Path) -> int:
    """Return the size of a file in bytes, -1 when there is none."""
    try:
        status = patiently(path.stat, path)
    except OSError:  # a dangling link; reading the row says so
        return -1
    return status.st_size
