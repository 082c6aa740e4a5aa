"""Captions in one JSON file: Karpathy's splits of COCO and Flickr, and COCO's own annotations.

Karpathy's file has ``images``, each with ``filename``, ``split``, ``sentences`` (with ``raw``) and,
for COCO, ``filepath``. COCO's has ``images`` with ``id`` and ``file_name``, and ``annotations``
with ``image_id`` and ``caption``; a file of COCO is one split.

Source: Karpathy and Fei-Fei, Deep Visual-Semantic Alignments, 2015, and the COCO data format.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dimefm.errors import DataError
from dimefm.evaluate.datasets.captions.pair_set import (
    CaptionLists,
    ImageFolder,
    PairSet,
    refuse_empty,
    split_named,
)
from dimefm.storage.small_files import Unreadable, read_json

MOST_BYTES = 1 << 30  # dataset_coco.json has 144 MB


def read(path: Path, split: str, root: Path, name: str) -> PairSet:
    """Return the pairs of a JSON file of either kind.

    Raises DataError when it is of neither, has no image of the split, or no image is found.
    """
    content = _content(path)
    if isinstance(content.get("annotations"), list):
        return _coco(content, path, root, name)
    return _karpathy(content["images"], path, split, root, name)


def _content(path: Path) -> dict[str, Any]:
    """Return what a JSON file of pairs holds."""
    try:
        content = read_json(path, MOST_BYTES)
    except (OSError, Unreadable) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path}: cannot be read as JSON ({reason}). Fix: fetch the file again"
        ) from error
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise DataError(
            f"{path}: no list 'images', expected Karpathy's JSON (images with sentences) or COCO's"
            " (images and annotations). Fix: name such a file"
        )
    return content


def _karpathy(images: list, path: Path, split: str, root: Path, name: str) -> PairSet:
    lists = CaptionLists()
    names: dict[str, tuple[str, ...]] = {}
    splits = set()
    for entry in images:
        file = entry.get("filename") if isinstance(entry, dict) else None
        sentences = entry.get("sentences") if isinstance(entry, dict) else None
        if not isinstance(file, str) or not isinstance(sentences, list):
            lists.faulty += 1
            continue
        stated = split_named(entry.get("split"))
        splits.add(stated or str(entry.get("split")))
        if stated != split:
            continue
        folder = entry.get("filepath")
        likely = f"{folder}/{file}" if isinstance(folder, str) and folder else file
        names[likely] = (likely, file)
        lists.add(likely, [_raw(sentence) for sentence in sentences])
    refuse_empty(path, split, len(names), splits)
    rows = ImageFolder(root, path).rows(list(names.values()), name)
    captions = [lists.captions[key] for key in names]
    return PairSet(name, rows, captions, "; ".join(lists.remarks()), "karpathy")


def _raw(sentence: object) -> object:
    return sentence.get("raw") if isinstance(sentence, dict) else None


def _coco(content: dict[str, Any], path: Path, root: Path, name: str) -> PairSet:
    lists = CaptionLists()
    names: dict[object, str] = {}
    for entry in content["images"]:
        file = entry.get("file_name") if isinstance(entry, dict) else None
        if not isinstance(file, str):
            lists.faulty += 1
            continue
        names[str(entry.get("id"))] = file
        lists.add(file, [])
    for entry in content["annotations"]:
        image = names.get(str(entry.get("image_id"))) if isinstance(entry, dict) else None
        if image is None:
            lists.faulty += 1
            continue
        lists.add(image, [entry.get("caption")])
    files = list(lists.captions)
    refuse_empty(path, "any", len(files), ())
    rows = ImageFolder(root, path).rows(files, name)
    remarks = ["the file is one split: all its images are taken", *lists.remarks()]
    return PairSet(name, rows, list(lists.captions.values()), "; ".join(remarks), "coco")
