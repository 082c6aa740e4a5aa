"""What open_clip's table of pretrained tags says: how published weights see images, and compute.

A weights file does not say how its model prepares images. The preprocessing belongs to the weights,
not to the architecture: of open_clip's 196 tags, 58 need another mean, interpolation or resize mode
than OpenAI's CLIP. Where all tags of an architecture agree, the architecture decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import open_clip as upstream
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from dimefm.errors import ModelError, did_you_mean
from dimefm.models import config_check, open_clip
from dimefm.runtime.text import first_few
from dimefm.storage.small_files import Unreadable, read_json

FEW_TAGS = 2  # in a message
SHOWN = ("resize_mode", "interpolation", "mean", "std")  # what tags differ in


@dataclass(frozen=True)
class Preparation:
    """How the weights of a file see images.

    ``preprocess`` holds open_clip's keys without the size, which the architecture decides.
    ``quick_gelu`` says that the weights belong to that activation, whatever the architecture says.
    ``source`` names where both are from, and ``warning`` what is doubtful, for people.
    """

    preprocess: dict
    source: str
    quick_gelu: bool = False
    warning: str = ""


def preparation_of(architecture: str, file: Path, chosen: str | None) -> Preparation:
    """Return the preparation of images for the weights ``file`` of an architecture.

    ``chosen`` is what the user says with --preprocess: a tag whose preparation is used, or a JSON
    file. Without it, all tags of the architecture must agree. Raises ModelError when they do not,
    or when ``chosen`` is neither.
    """
    if chosen is not None:
        return _chosen(architecture, chosen)
    tags = open_clip.tags_of(architecture)
    if not tags:
        default = preprocess_of_tag(architecture, "")
        return Preparation(default, f"open_clip's default, as {architecture} has no tags")
    different = _differences(architecture, tags)
    if different:
        raise ModelError(
            f"{architecture}/{file}: the tags of {architecture} need different preprocessing"
            f" ({different}). Fix: name the tag that the file holds with --preprocess TAG, or its"
            " open_clip_config.json with --preprocess FILE"
        )
    source = f"as {tags[0]}"
    if len(tags) > 1:
        source = f"as all {len(tags)} tags of {architecture}"
    preprocess = preprocess_of_tag(architecture, tags[0])
    return Preparation(preprocess, source, warning=_doubt(architecture))


def _config_file(chosen: str) -> Path:
    """Return the path of a JSON file that is named itself or by its folder."""
    path = Path(chosen)
    return path / open_clip.CONFIG if path.is_dir() else path


def preparation_of_file(chosen: str) -> Preparation:
    """Return the preparation of images that a JSON file states, its size included.

    Raises ModelError when there is no such file, or it does not state all.
    """
    path = _config_file(chosen)
    if not path.is_file():
        raise ModelError(
            f"--preprocess {chosen}: there is no such file. Fix: name an open_clip_config.json"
        )
    stated = _stated(path)
    if "size" not in stated:
        raise ModelError(
            f"--preprocess {path}: states no 'size'. Fix: add the pixels of a side to its"
            " preprocess_cfg"
        )
    return Preparation({**_completed(stated), "size": stated["size"]}, f"as {path} says")


def preprocess_of_tag(architecture: str, tag: str) -> dict:
    """Return the preprocessing of a tag, open_clip's default for an unknown one; without size."""
    return _completed(upstream.get_pretrained_cfg(architecture, tag) or {})


def describe(preprocess: dict) -> str:
    """Return a preprocessing in few words: "224 pixels, squash, bicubic, mean 0.5, std 0.5"."""
    words = []
    size = preprocess.get("size")
    if size is not None:
        sides = [size] if isinstance(size, int) else dict.fromkeys(size)
        words.append(f"{'x'.join(str(side) for side in sides)} pixels")
    words += [_setting(preprocess, key) for key in SHOWN]
    sides = preprocess.get("resize_to")
    if sides is not None:
        shown = f"{sides} pixels" if isinstance(sides, int) else "x".join(map(str, sides))
        words.insert(1, f"cropped from {shown}")
    return ", ".join(words)


def _setting(preprocess: dict, key: str) -> str:
    value = preprocess[key]
    return value if isinstance(value, str) else f"{key} {_numbers(value)}"


def notes_on(preprocess: dict, preparation: Preparation | None) -> tuple[str, ...]:
    """Return what the user should know about a model that prepares images in this way."""
    line = f"images: {describe(preprocess)}"
    if preparation is None:
        return (line,)
    notes = [f"{line} ({preparation.source})"]
    if preparation.warning:
        notes.append(f"note: {preparation.warning}")
    return tuple(notes)


def _doubt(architecture: str) -> str:
    """Return what is doubtful about the activation of a file of this architecture, or ""."""
    if open_clip.config_of(architecture).get("quick_gelu", False):
        return ""
    tags = open_clip.tags_of(architecture)
    quick = [tag for tag in tags if open_clip.trained_with_quick_gelu(architecture, tag)]
    if not quick:
        return ""
    return (
        f"{architecture}/FILE computes with GELU, but the weights of {first_few(quick, FEW_TAGS)}"
        " need QuickGELU. Fix: if the file holds one of them, name it with --preprocess TAG"
    )


def _differences(architecture: str, tags: list[str]) -> str:
    """Return in which settings the tags of an architecture differ, "" where all agree."""
    of_tag = {tag: preprocess_of_tag(architecture, tag) for tag in tags}
    first = of_tag[tags[0]]
    keys = [key for key in first if any(other[key] != first[key] for other in of_tag.values())]
    groups: dict[str, list[str]] = {}
    for tag, preprocess in of_tag.items():
        settings = ", ".join(_setting(preprocess, key) for key in keys)
        groups.setdefault(settings, []).append(tag)
    if len(groups) < 2:
        return ""
    return "; ".join(f"{first_few(group, FEW_TAGS)}: {shown}" for shown, group in groups.items())


def _numbers(values: float | list[float]) -> str:
    """Return three numbers, or one where all three are equal."""
    if isinstance(values, int | float):
        return f"{values:g}"
    different = list(dict.fromkeys(values))
    shown = different if len(different) == 1 else values
    return "/".join(f"{value:.3g}" for value in shown)


def _chosen(architecture: str, chosen: str) -> Preparation:
    tag = chosen.removeprefix(f"{architecture}/")
    tags = open_clip.tags_of(architecture)
    if tag in tags:
        quick_gelu = open_clip.trained_with_quick_gelu(architecture, tag)
        return Preparation(preprocess_of_tag(architecture, tag), f"as {tag}", quick_gelu)
    path = _config_file(chosen)
    if not path.is_file():
        raise ModelError(
            f"--preprocess {chosen}: neither a tag of {architecture} nor a file;"
            f" {did_you_mean(tag, tags)} Fix: name a tag, or an open_clip_config.json"
        )
    return Preparation(_preprocess_of_file(path), f"as {path} says")


def _preprocess_of_file(path: Path) -> dict:
    """Return the preprocessing that a JSON file states, without its size."""
    return _completed(_stated(path))


def _stated(path: Path) -> dict:
    """Return the settings of a preprocessing that a JSON file states."""
    try:
        content = read_json(path)
    except (OSError, Unreadable) as error:
        reason = open_clip.reason_of(error)
        raise ModelError(
            f"--preprocess {path}: cannot be read as JSON ({reason}). Fix: restore the file"
        ) from error
    stated = content.get("preprocess_cfg", content) if isinstance(content, dict) else None
    if not isinstance(stated, dict) or not {"mean", "std"} <= set(stated):
        raise ModelError(
            f"--preprocess {path}: states no 'mean' and 'std'. Fix: name an open_clip_config.json"
            " with a preprocess_cfg, or its preprocess_cfg alone"
        )
    return config_check.preprocessing(stated, f"--preprocess {path}")


def _completed(stated: dict) -> dict:
    """Return a preprocessing with open_clip's defaults for what is not stated, without its size."""
    merged = merge_preprocess_dict(PreprocessCfg(), stated)
    del merged["size"]
    if stated.get("resize_to") is not None:
        merged["resize_to"] = stated["resize_to"]
    return open_clip.plain(merged)
