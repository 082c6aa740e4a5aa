"""The tokenizer in the folder of a model that came with data, as files that are safe to load.

transformers reads a tokenizer from the files of a folder, and from settings in two of them. Some
settings name code to run, or other files and hubs to read. So it gets a copy of the folder: the
vocabularies as they are, and of the settings only those below.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dimefm.errors import ModelError
from dimefm.storage.files import to_json
from dimefm.storage.small_files import Unreadable, read_json

VOCABULARIES = (
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)
MOST_BYTES = 256 << 20  # of one of these files
MOST_MERGES = 16 << 20  # bytes of the vocabulary of open_clip's own tokenizer, unpacked
SETTINGS = "tokenizer_config.json"
MODEL_SETTINGS = "config.json"
CLASS = re.compile(r"[A-Za-z0-9]{1,99}")  # of transformers
MODEL_TYPE = re.compile(r"[a-z0-9_-]{1,99}")
SAFE_SETTINGS = (
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "added_tokens_decoder",
    "additional_special_tokens",
    "bos_token",
    "clean_up_tokenization_spaces",
    "cls_token",
    "do_lower_case",
    "eos_token",
    "extra_ids",
    "extra_special_tokens",
    "legacy",
    "mask_token",
    "model_max_length",
    "pad_token",
    "padding_side",
    "sep_token",
    "spaces_between_special_tokens",
    "src_lang",
    "strip_accents",
    "tgt_lang",
    "tokenize_chinese_chars",
    "truncation_side",
    "unk_token",
)


def has_vocabulary(folder: Path) -> bool:
    """Tell whether a folder has the files of a tokenizer."""
    return any((folder / item).is_file() for item in VOCABULARIES)


@contextlib.contextmanager
def safe_copy(folder: Path, name: str) -> Iterator[Path]:
    """Make a folder with the tokenizer of ``folder`` that is safe to load, for the block's time.

    ``name`` is what the config calls the tokenizer. Raises ModelError, naming the key, when the
    folder has no vocabulary, or the tokenizer needs code of its own.
    """
    names = [item for item in VOCABULARIES if (folder / item).is_file()]
    if not names:
        raise ModelError(
            f"{folder}: 'model_cfg.text_cfg.hf_tokenizer_name' is '{name[:100]}', and the"
            " tokenizer's files are not in the folder; nothing is downloaded that a config asks"
            " for. Fix: put tokenizer.json and tokenizer_config.json into the folder"
        )
    with tempfile.TemporaryDirectory() as made:
        copy = Path(made)
        for item in names:
            _copy(folder / item, copy / item)
        settings = _settings(folder / SETTINGS)
        (copy / SETTINGS).write_text(to_json(settings), encoding="utf-8")
        model = _model_settings(folder / MODEL_SETTINGS)
        (copy / MODEL_SETTINGS).write_text(to_json(model), encoding="utf-8")
        yield copy


def check_vocabulary(settings: Mapping[str, Any]) -> None:
    """Raise ModelError when the file ``bpe_path`` is no gzip file of a vocabulary's size."""
    name = settings.get("bpe_path")
    if name is None:
        return
    fault = "it is no regular file in the current folder"
    try:
        if Path(name).is_file():
            with gzip.open(name) as file:
                size = len(file.read(MOST_MERGES + 1))
            fault = "it is too large" if size > MOST_MERGES else ""
    except (OSError, EOFError, zlib.error) as error:
        fault = str(error)
    if fault:
        raise ModelError(
            f"{name}: cannot be read as the vocabulary of a tokenizer ('bpe_path'): {fault}. Fix:"
            " restore the file"
        )


def _copy(source: Path, target: Path) -> None:
    size = source.stat().st_size
    if size > MOST_BYTES:
        raise ModelError(
            f"{source}: has {size:,} bytes, expected at most {MOST_BYTES:,}. Fix: fetch it again"
        )
    shutil.copyfile(source, target)


def _settings(path: Path) -> dict[str, Any]:
    """Return the safe settings of a tokenizer."""
    given = _read(path)
    if given.get("auto_map"):
        raise ModelError(
            f"{path}: 'auto_map' asks for code that comes with the tokenizer, and such code is not"
            " run. Fix: use a model whose tokenizer is one of transformers"
        )
    settings = {key: given[key] for key in SAFE_SETTINGS if key in given}
    kind = given.get("tokenizer_class")
    if isinstance(kind, str) and CLASS.fullmatch(kind):
        settings["tokenizer_class"] = kind
    return settings


def _model_settings(path: Path) -> dict[str, Any]:
    """Return the type of the model, by which transformers picks a tokenizer that has no class."""
    kind = _read(path).get("model_type")
    if isinstance(kind, str) and MODEL_TYPE.fullmatch(kind):
        return {"model_type": kind}
    return {}


def _read(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file, an empty one when there is no such file."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, Unreadable) as error:
        raise ModelError(f"{path}: cannot be read: {error}. Fix: restore the file") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: is no JSON object. Fix: restore the file")
    return content
