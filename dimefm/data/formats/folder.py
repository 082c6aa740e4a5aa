"""A folder of image files, searched to any depth, and of text files next to them.

The first folder level is the label when there is one. ``NAME.txt`` next to ``NAME.jpg`` holds the
captions of the image, one a line.

Keys are paths of images relative to the folder, also the keys of texts. Files are sorted by path;
every :data:`ROWS_PER_SHARD` images form one shard, so that a long extraction has units of work to
resume at.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from dimefm.data.folders import describes
from dimefm.data.image_files import FoundFiles, find_files
from dimefm.data.lines import LONGEST_TEXT
from dimefm.data.rows import Columns, Row, Shard, inside
from dimefm.errors import BadRow, DataError
from dimefm.runtime.text import file_key, utf8_name
from dimefm.storage.files import sha256_keys
from dimefm.storage.reading import is_row_fault, patiently, read_file

SUFFIXES: tuple[str, ...] = ()
KINDS = frozenset({"image", "text"})
ROWS_PER_SHARD = 10_000
LINE_END = re.compile(r"[\r\n]")  # of texts; Unicode's further ones are characters of a caption


def claims(path: Path) -> bool:
    """A folder is claimed by being one; see ``sources._format_of``."""
    return path.is_dir()


def open_shards(path: Path, name: str, kind: str, columns: Columns) -> list[Shard]:
    """Open a folder as shards of at most ROWS_PER_SHARD images.

    Raises DataError when there are no images, or of texts no text of an image.
    """
    found = find_files(path)
    if not found.images:
        raise _no_images(path, found)
    text_of = _texts_of_images(found)
    if kind == "image":
        for text in found.texts:
            if not describes(text):
                found.skipped.add("ending in .txt", text)
    else:
        _skip_texts_alone(found, text_of)
    if kind == "text" and not text_of:
        raise DataError(
            f"{path}: holds {len(found.images):,} images and no NAME.txt next to any NAME.jpg. Fix:"
            " name the file that holds the texts"
        )
    keys = found.images
    shards: list[Shard] = []
    for number, start in enumerate(range(0, len(keys), ROWS_PER_SHARD)):
        part = keys[start : start + ROWS_PER_SHARD]
        part_name = name if len(keys) <= ROWS_PER_SHARD else f"{name}/{number:05d}"
        shard = FolderShard(path, part_name, part, kind, text_of, columns.root)
        shard.folder_name = name
        shards.append(shard)
    shards[0].skipped = found.skipped
    return shards


def _no_images(path: Path, found: FoundFiles) -> DataError:
    holds = ""
    if found.skipped:
        holds = f"; it holds {found.skipped.describe()[:200]}"
    return DataError(
        f"{path}: no image files (.jpg, .png, .webp, ...) and no shards in this folder{holds}. Fix:"
        " name the folder that holds them"
    )


def _texts_of_images(found: FoundFiles) -> dict[str, str]:
    """Return image -> the text file of its name next to it."""
    texts = {_without_ending(text): text for text in found.texts}
    text_of: dict[str, str] = {}
    for image in found.images:
        text = texts.get(image) or texts.get(_without_ending(image))
        if text is not None:
            text_of[image] = text
    return text_of


def _without_ending(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _skip_texts_alone(found: FoundFiles, text_of: dict[str, str]) -> None:
    """Count the text files that belong to no image."""
    used = set(text_of.values())
    for text in found.texts:
        if text not in used and not describes(text):
            found.skipped.add("text files without an image of their name", text)


class FolderShard(Shard):
    """Some of the image files of one folder, by relative path.

    ``files`` are their paths, ``text_of`` has the text files of images, and ``folder_name`` is the
    name of all shards of the folder together. Links may lead to any place in the folder, and in
    ``root`` when the folder is inside it.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        files: list[str],
        kind: str = "image",
        text_of: dict[str, str] | None = None,
        root: Path | None = None,
    ):
        super().__init__(path, name)
        self.files = files
        self.folder_name = name
        self._kind = kind
        self._text_of = text_of or {}
        is_inside = root is not None and path.resolve().is_relative_to(root.resolve())
        self._root = root if is_inside else None

    def part(self, name: str, files: list[str]) -> FolderShard:
        """Return a shard of other files of the same folder."""
        part = FolderShard(self.path, name, files, self._kind, self._text_of, self._root)
        part.folder_name = self.folder_name
        part.entry = self.entry
        part.weight = self.weight
        return part

    def file_of(self) -> dict[str, str]:
        """Return key -> file."""
        return dict(zip(self.keys(), self.files, strict=True))

    def __len__(self) -> int:
        return len(self.files)

    def digest(self) -> str:
        """Return a digest of the names and sizes of the files."""
        if self._kind == "text":
            text_of = self._text_of
            sizes = [self._text_size(text_of.get(file)) for file in self.files]
        else:
            sizes = [_size(self.path / file) for file in self.files]
        names = [utf8_name(file) for file in self.files]
        return sha256_keys(f"{name}:{size}" for name, size in zip(names, sizes, strict=True))

    def _text_size(self, text: str | None) -> int:
        return -1 if text is None else _size(self.path / text)

    def keys(self) -> list[str]:
        return [file_key(key) for key in self.files]

    def __getitem__(self, index: int) -> Row:
        key = self.files[index]
        image: bytes | None = None
        texts: tuple[str, ...] = ()
        if self._kind != "text":
            image = read_file(self._path_of(key))
        if self._kind == "text" or (self._kind == "pair" and key in self._text_of):
            texts = self._texts(key)
        folder, slash, _ = key.partition("/")
        label = file_key(folder) if slash else None
        return Row(file_key(key), image=image, texts=texts, label=label)

    def _texts(self, key: str) -> tuple[str, ...]:
        """Return the captions of an image: the lines of its text file."""
        file = self._text_of.get(key)
        if file is None:
            raise BadRow("has no text file of its name next to it")
        try:
            text = read_file(self._path_of(file), LONGEST_TEXT).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadRow(
                f"its text file is not UTF-8: {error.reason} at byte {error.start}"
            ) from error
        return tuple(line.strip() for line in LINE_END.split(text) if line.strip())

    def _path_of(self, key: str) -> Path:
        """Return the path of a file; raise BadRow for a link to itself or out of the folder."""
        try:
            if self._root is None:
                return inside(self.path, key)
            return inside(self._root, (self.path / key).as_posix())
        except DataError as error:
            raise BadRow(
                f"is a link that leads outside {self._root or self.path}; put the file itself"
                " there, or give the folder that holds both with --dataroot"
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
