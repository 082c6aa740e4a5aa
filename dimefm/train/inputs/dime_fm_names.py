"""Which of DIME-FM's files hold images, texts and their features, as their names tell.

Source: DIME-FM, released Training/datasets/build.py:91-145, which sorts all files by these names.
Here names sort only TSV files that are listed one by one. Lists stand in a fixed order, which the
names of their files confirm.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dimefm.errors import CacheError, RecipeError

ROLES = ("image", "image_feat", "text", "text_feat")
ORDER = "image, image_feat, text, text_feat"
ORDER_OF_THREE = "image, image_feat, text_feat"
IMAGE_PARTS = ("image-", "images_", "img", "image_", "_image", "-image")
TEXT_PARTS = ("text-", "caption", "text_", "_text", "-text")
FEATURE_PART = "feat"


def role_of(path: str | Path) -> str | None:
    """Return the role of a file by its name, or None for a name that tells none or two."""
    name = Path(path).name
    is_image = any(part in name for part in IMAGE_PARTS)
    is_text = any(part in name for part in TEXT_PARTS)
    if is_image == is_text:
        return None
    role = "image" if is_image else "text"
    if FEATURE_PART in name:
        role += "_feat"
    return role


def by_role(entries: Sequence[str]) -> dict[str, list[str]]:
    """Return the entries of ``--tsv-file-list`` by their role; without raw texts, "text" is empty.

    Three or four entries stand in DIME-FM's order. TSV files may also stand in any order and any
    number: their names tell. Raises RecipeError for any other entries.
    """
    only_files = all(entry.endswith(".tsv") for entry in entries)
    if only_files:
        files = _by_names(entries)
        if files:
            return files
    if len(entries) == 4:
        return {role: [entry] for role, entry in zip(ROLES, entries, strict=True)}
    if len(entries) == 3:
        images, image_features, text_features = entries
        return {
            "image": [images],
            "image_feat": [image_features],
            "text": [],
            "text_feat": [text_features],
        }
    hint = "list them so"
    if only_files:
        hint = "name files as DIME-FM does (image_00.tsv, image_00.feat.tsv), or write .list files"
    raise RecipeError(
        f"--tsv-file-list has {len(entries)} entries; expected {ORDER} in this order (text only"
        f" checks text_feat and may be missing). Fix: {hint}"
    )


def _by_names(entries: Sequence[str]) -> dict[str, list[str]]:
    """Return TSV files by their role; nothing when a name tells no role, or a role has no file."""
    files: dict[str, list[str]] = {role: [] for role in ROLES}
    for entry in entries:
        role = role_of(entry)
        if role is None:
            return {}
        files[role].append(entry)
    needed = (files["image"], files["image_feat"], files["text_feat"])
    return files if all(needed) else {}


def confirm(role: str, entry: str, files: Sequence[Path], entries: Sequence[str]) -> None:
    """Raise CacheError when the names of all files of an entry tell another role than its own."""
    told = {role_of(path) for path in files}
    if len(told) != 1 or None in told or role in told:
        return
    (other,) = told
    held = _words(str(other))
    needed = _words(role)
    order = ORDER if len(entries) == 4 else ORDER_OF_THREE
    raise CacheError(
        f"--tsv-file-list: {entry} holds {held}, {needed} are needed in its place ({files[0].name}"
        f" is its first file). Fix: list {order} in this order"
    )


def _words(role: str) -> str:
    kind = role.removesuffix("_feat")
    return f"{kind} features" if role.endswith("_feat") else f"{kind}s"
