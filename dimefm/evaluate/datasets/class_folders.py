"""Class folders: ``<split>/<class>/<image>``, or ``<class>/<image>`` directly.

Folders that programs leave next to pictures are no classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dimefm.data.image_files import holds_image, is_litter
from dimefm.runtime.text import file_key

SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")


def locate(folder: Path, words: Sequence[str]) -> list[Path]:
    """Return ``<split>/`` when it holds class folders.

    For the test split, a dataset folder without split folders counts too.
    """
    for word in words:
        if class_folders(folder / word):
            return [folder / word]
    if "test" in words and not _splits_of(folder) and class_folders(folder):
        return [folder]
    return []


def names(folder: Path) -> tuple[str, ...]:
    """Return the class names that the class folders of all splits state, sorted; () without any.

    Underscores become blanks, unless two names were equal then.
    """
    parents = _splits_of(folder) or [folder]
    folder_names = sorted({path.name for parent in parents for path in class_folders(parent)})
    folder_names = [file_key(name) for name in folder_names]
    class_names = [name.replace("_", " ").strip() or name for name in folder_names]
    if len(set(class_names)) < len(class_names):
        return tuple(folder_names)
    return tuple(class_names)


def class_folders(folder: Path) -> list[Path]:
    """Return the subfolders that hold an image at any depth, [] when there is no such folder."""
    if not folder.is_dir():
        return []
    return [inner for inner in sorted(folder.iterdir()) if inner.is_dir() and _is_class(inner)]


def without_images(folder: Path) -> list[str]:
    """Return the names of class folders, in any split, that hold no image; sorted."""
    names_of_empty = set()
    for parent in _splits_of(folder) or [folder]:
        filled = set(class_folders(parent))
        for inner in parent.iterdir():
            if inner.is_dir() and inner not in filled and not is_litter(inner.name):
                names_of_empty.add(file_key(inner.name))
    return sorted(names_of_empty)


def _splits_of(folder: Path) -> list[Path]:
    """Return the folders of splits in a dataset folder.

    Folders called like splits are classes, such as trains, where all of them hold images and no
    class folders, and other class folders lie beside them.
    """
    splits = [folder / word for word in SPLIT_FOLDERS if (folder / word).is_dir()]
    if not splits:
        return []
    are_classes = all(_is_class(split) and not class_folders(split) for split in splits)
    if are_classes and set(class_folders(folder)) - set(splits):
        return []
    return splits


def _is_class(folder: Path) -> bool:
    """Tell whether a folder holds an image at any depth."""
    return not is_litter(folder.name) and holds_image(folder)
