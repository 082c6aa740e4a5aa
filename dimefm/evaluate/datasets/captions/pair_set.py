"""Images with their captions, and what the readers of all layouts share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dimefm.data import Rows
from dimefm.data.formats.folder import FolderShard
from dimefm.data.image_files import IMAGE_SUFFIXES
from dimefm.data.pairing import SENTENCE
from dimefm.errors import DataError
from dimefm.evaluate.datasets.layouts import SPLITS
from dimefm.runtime.text import first_few

IMAGE_FOLDERS = (
    "images",
    "Images",
    "flickr30k-images",
    "flickr30k_images",
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
    "val2014",
    "train2014",
    "val2017",
    "train2017",
)
"""Usual folders of images, besides the root itself."""

SPLIT_WORDS = {word: split for split, words in SPLITS.items() for word in words}
SPLIT_WORDS |= {"restval": "train", "dev": "val"}
"""Words for splits that files state -> name of the split; Karpathy's restval is for training."""

SHOWN = 8
"""Names that a message lists at most."""


@dataclass(frozen=True)
class PairSet:
    """Images of one split and their captions.

    ``captions[i]`` are those of ``rows[i]``, in the order of the file; an image may have none.
    ``note`` says what was left out, and where the data differ from what was asked for.
    """

    name: str
    rows: Rows
    captions: list[list[str]]
    note: str = ""
    layout: str = ""

    def __len__(self) -> int:
        return len(self.captions)


class CaptionLists:
    """Captions by the name of their image, in the order in which the images come."""

    def __init__(self) -> None:
        self.captions: dict[str, list[str]] = {}
        self.blank = 0
        self.faulty = 0

    def add(self, name: str, captions: Iterable[object]) -> None:
        """Add captions of an image. Blank ones, and others than text, are counted instead."""
        of_image = self.captions.setdefault(name, [])
        for caption in captions:
            if not isinstance(caption, str):
                self.faulty += 1
            elif not caption.strip():
                self.blank += 1
            else:
                of_image.append(caption)

    def remarks(self) -> list[str]:
        """Return a part of the note for each kind of caption that was left out."""
        remarks = []
        if self.blank:
            remarks.append(f"{self.blank:,} blank captions left out")
        if self.faulty:
            remarks.append(f"{self.faulty:,} entries without an image or a text left out")
        return remarks


def image_of(key: str) -> str:
    """Return the name of the image that a caption of the key ``photo.jpg#0`` belongs to."""
    return SENTENCE.sub("", key)


def split_named(word: object) -> str | None:
    """Return the split that a word in a file means, None when it means none."""
    return SPLIT_WORDS.get(str(word).strip().lower())


def refuse_empty(source: Path, split: str, count: int, splits: Iterable[str]) -> None:
    """Raise DataError when a split has no image; ``splits`` are those that the source has."""
    if count:
        return
    known = sorted(set(splits))
    held = f"it has {first_few(known, SHOWN)}" if known else "it holds no captions"
    raise DataError(
        f"{source}: no images of the split '{split}'; {held}. Fix: choose another --split, or check"
        " the file"
    )


class ImageFolder:
    """The folder below which the images of a list lie, under the names that the list has."""

    def __init__(self, root: Path, source: Path):
        """Raises DataError when ``root``, in which images of ``source`` are to be, is no folder."""
        if not root.is_dir():
            raise DataError(f"--root {root}: there is no such folder. Fix: check the path")
        self.root = root
        self.source = source
        self._places = [""]
        for folder in IMAGE_FOLDERS:
            if (root / folder).is_dir():
                self._places.append(f"{folder}/")

    def rows(self, names: Sequence[str | tuple[str, ...]], name: str) -> Rows:
        """Return the images ``names`` as rows of one shard called ``name``.

        A tuple has several names of one image, the likeliest first. An image that is not found
        keeps its likeliest name, so it counts as unreadable.

        Raises DataError when no image is found.
        """
        files = []
        n_found = 0
        for one in names:
            file = self._file_of((one,) if isinstance(one, str) else one)
            n_found += file is not None
            files.append(file or (one if isinstance(one, str) else one[0]))
        if names and not n_found:
            raise DataError(
                f"{self.root}: holds none of the {len(names):,} images that {self.source.name}"
                f" names, for example {files[0]}. Fix: give the folder of the images with --root"
            )
        return Rows([FolderShard(self.root, name, files)])

    def _file_of(self, names: tuple[str, ...]) -> str | None:
        """Return the path of an image relative to the root, None when it is not found."""
        for number, place in enumerate(self._places):
            for name in names:
                for ending in self._endings(name):
                    file = f"{place}{name}{ending}"
                    if self._is_file(file):
                        self._places.insert(0, self._places.pop(number))  # likely the next one's
                        return file
        return None

    def _endings(self, name: str) -> tuple[str, ...]:
        """Return the endings to try: lists of numbers, as some of Flickr30k, leave ``.jpg`` out."""
        return ("",) if name.lower().endswith(IMAGE_SUFFIXES) else ("", ".jpg")

    def _is_file(self, file: str) -> bool:
        try:
            return (self.root / file).is_file()
        except (OSError, ValueError):  # a name that is too long, or holds a NUL
            return False
