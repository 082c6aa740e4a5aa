"""The files beside the weights: CLIP's tokenizer and the image processor, as JSON.

They are written without transformers, and read by transformers, ``tokenizers`` and transformers.js.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

from open_clip.tokenizer import SimpleTokenizer, get_clean_fn

from dimefm.export.hf_blocks import NotExpressible
from dimefm.storage.files import to_json

START, END = "<|startoftext|>", "<|endoftext|>"
SPLIT = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
PUNCTUATION = f"[{re.escape(string.punctuation)}]"
RESAMPLING = {"bicubic": 3, "bilinear": 2}  # by Pillow's numbers
PROCESSOR = "preprocessor_config.json"


def write_clip_tokenizer(tokenizer: SimpleTokenizer, folder: Path, context_length: int) -> None:
    """Write CLIP's tokenizer: ``tokenizer.json``, its settings, ``vocab.json``, ``merges.txt``.

    Token ids are those of open_clip for cleaned texts.
    """
    names = {tokenizer.sot_token_id: START, tokenizer.eot_token_id: END}
    vocabulary = {}
    for token, number in sorted(tokenizer.encoder.items(), key=lambda item: item[1]):
        vocabulary[names.get(number, token)] = number
    ranks = sorted(tokenizer.bpe_ranks.items(), key=lambda item: item[1])
    merges = [f"{first} {second}" for (first, second), _ in ranks]
    ids = {START: tokenizer.sot_token_id, END: tokenizer.eot_token_id}
    (folder / "vocab.json").write_text(
        json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8"
    )
    fast = _fast_tokenizer(vocabulary, merges, ids)
    (folder / "tokenizer.json").write_text(
        json.dumps(fast, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "special_tokens_map.json").write_text(to_json(special), encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        **special,
        "model_max_length": context_length,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "clean_up_tokenization_spaces": True,
    }
    (folder / "tokenizer_config.json").write_text(to_json(settings), encoding="utf-8")


def check_clip_tokenizer(tokenizer: Any) -> None:
    """Raise NotExpressible for a tokenizer other than CLIP's own with its usual cleaning."""
    if not isinstance(tokenizer, SimpleTokenizer):
        raise NotExpressible("a tokenizer that is not CLIP's own")
    if getattr(tokenizer, "reduction_fn", None) is not None:
        raise NotExpressible("a tokenizer that drops tokens")
    if tokenizer.clean_fn is not get_clean_fn("lower"):
        raise NotExpressible("a tokenizer that cleans texts in another way than CLIP's")


def write_other_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer of transformers, with open_clip's cleaning as a part of it."""
    content = tokenizer_json(tokenizer)
    (folder / "tokenizer.json").write_text(
        json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    inner = tokenizer.tokenizer
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # reads tokenizer.json as it is
        "model_max_length": tokenizer.context_length,
        "padding_side": inner.padding_side,
        "truncation_side": inner.truncation_side,
    }
    for name, token in inner.special_tokens_map.items():
        if isinstance(token, str):
            settings[name] = token
    (folder / "tokenizer_config.json").write_text(to_json(settings), encoding="utf-8")


def tokenizer_json(tokenizer: Any) -> dict[str, Any]:
    """Return ``tokenizer.json`` of a tokenizer of transformers, as open_clip uses it.

    Raises NotExpressible for one that cannot be written as such a file.
    """
    backend = getattr(getattr(tokenizer, "tokenizer", None), "backend_tokenizer", None)
    if backend is None:
        raise NotExpressible("a tokenizer that has no tokenizer.json")
    if tokenizer.strip_sep_token or tokenizer.tokenizer_mode:
        raise NotExpressible("a tokenizer whose tokens open_clip changes")
    content = json.loads(backend.to_str())
    steps = _cleaning(tokenizer.clean_fn)
    if content.get("normalizer") is not None:
        steps.append(content["normalizer"])
    content["normalizer"] = {"type": "Sequence", "normalizers": steps}
    content["truncation"] = None
    content["padding"] = None
    return content


def _cleaning(clean: Callable) -> list[dict[str, Any]]:
    """Return what open_clip does to a text before a tokenizer sees it, without ftfy and HTML."""
    white = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    stripped = {"type": "Strip", "strip_left": True, "strip_right": True}
    lower = {"type": "Lowercase"}
    if clean is get_clean_fn("whitespace"):
        return [white, stripped]
    if clean is get_clean_fn("lower"):
        return [white, stripped, lower]
    if clean is not get_clean_fn("canonicalize"):
        raise NotExpressible("a tokenizer with a cleaning of its own")
    no_lines = {"type": "Replace", "pattern": {"String": "_"}, "content": " "}
    signs = {"type": "Replace", "pattern": {"Regex": PUNCTUATION}, "content": ""}
    return [no_lines, signs, lower, white, stripped]


def _fast_tokenizer(
    vocabulary: dict[str, int], merges: list[str], ids: dict[str, int]
) -> dict[str, Any]:
    """Return ``tokenizer.json`` as the library ``tokenizers`` reads it."""
    added = []
    for content, number in ids.items():
        added.append(
            {
                "id": number,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        )
    bytes_of_words = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    normalizers = [
        {"type": "NFC"},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Lowercase"},
    ]
    split = {
        "type": "Split",
        "pattern": {"Regex": SPLIT},
        "behavior": "Removed",
        "invert": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_of_words]},
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [END, ids[END]],
            "cls": [START, ids[START]],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": bytes_of_words,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def write_processor(preprocess: dict, folder: Path, image_class: str, whole_class: str) -> None:
    """Write ``preprocessor_config.json`` for a preprocessing of open_clip.

    ``image_class`` and ``whole_class`` name the processors. Raises NotExpressible for a
    preprocessing that they do not have.
    """
    settings = processor_settings(preprocess)
    content = {"image_processor_type": image_class, "processor_class": whole_class, **settings}
    (folder / PROCESSOR).write_text(to_json(content), encoding="utf-8")


def processor_settings(preprocess: dict) -> dict[str, Any]:
    """Return a preprocessing of open_clip as settings of transformers' ``CLIPImageProcessor``.

    Raises NotExpressible for one that it does not have.
    """
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    mode = preprocess["resize_mode"]
    interpolation = preprocess["interpolation"]
    if preprocess.get("resize_to") is not None:
        raise NotExpressible("images that are resized to other sides than they are cropped to")
    if interpolation not in RESAMPLING:
        raise NotExpressible(f"images that are resized by '{interpolation}' interpolation")
    settings: dict[str, Any] = {
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": RESAMPLING[interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess["mean"]),
        "image_std": list(preprocess["std"]),
    }
    if mode == "squash":
        settings["size"] = {"height": height, "width": width}
        settings["do_center_crop"] = False
    elif mode == "shortest" and height == width:
        settings["size"] = {"shortest_edge": height}
        settings["do_center_crop"] = True
    else:
        raise NotExpressible(f"images of {height}x{width} pixels that are resized by '{mode}'")
    settings["crop_size"] = {"height": height, "width": width}
    return settings
