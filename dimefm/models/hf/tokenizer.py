"""The tokenizer of a folder of transformers: tokens of one length, and the lengths of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dimefm.errors import ModelError
from dimefm.models.folder_tokenizer import has_vocabulary, safe_copy
from dimefm.models.hf.config import FolderConfig
from dimefm.models.open_clip import quiet, reason_of

TRIAL = ("a photo of a cat", "two trees")
MOST_CONTEXT = 4096
POSITIONS_OF_PADDING = ("altclip", "roberta", "xlm-roberta")
"""Types whose positions begin behind that of padding."""
LONG_TEXT = 1 << 16  # characters of a text that are read


class FolderTokenizer:
    """Tokens of texts by a tokenizer of transformers, filled up to ``context_length``."""

    def __init__(self, tokenizer: Any, context_length: int, pad: int, known: int):
        """``known`` is how many tokens the text tower has embeddings for."""
        self._tokenizer = tokenizer
        self._known = known
        self._fills_left = tokenizer.padding_side == "left"
        self.context_length = context_length
        self.pad = pad
        self.vocab_size = len(tokenizer)

    @property
    def name(self) -> str:
        """The class and the number of tokens, for a card."""
        return f"{type(self._tokenizer).__name__}({self.vocab_size})"

    def __call__(self, texts: list[str]) -> Tensor:
        """Return the tokens int64 [N, L] of texts."""
        tokens, _ = self.tokenize(texts)
        return tokens

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into a folder."""
        self._tokenizer.save_pretrained(folder)

    def tokenize(self, texts: list[str]) -> tuple[Tensor, list[int]]:
        """Return (tokens int64 [N, L], lengths [N]); a length above L says that a text was cut.

        Of a very long text only the beginning is read, and its length is that of the beginning.
        Raises ModelError for a token that the text tower does not know.
        """
        context = self.context_length
        tokens = torch.full((len(texts), context), self.pad, dtype=torch.long)
        lengths = []
        for number, text in enumerate(texts):
            text = text[:LONG_TEXT]
            ids = self._tokenizer(text, verbose=False)["input_ids"]
            lengths.append(len(ids))
            if len(ids) > context:
                ids = self._tokenizer(text, truncation=True, max_length=context)["input_ids"]
            place = slice(context - len(ids), None) if self._fills_left else slice(len(ids))
            tokens[number, place] = torch.tensor(ids, dtype=torch.long)
        if len(texts) and int(tokens.max()) >= self._known:
            raise ModelError(
                f"{self.name}: gives the token {int(tokens.max()):,}, but the text tower has"
                f" embeddings for {self._known:,} ('text_config.vocab_size'). Fix: fetch the"
                " tokenizer and the config of one model"
            )
        return tokens, lengths


def tokenizer_of(config: FolderConfig, folder: Path) -> FolderTokenizer:
    """Return the tokenizer of a folder; raise ModelError when it cannot be had from its files."""
    if not has_vocabulary(folder):
        raise ModelError(
            f"{folder}: has no tokenizer. Fix: put tokenizer.json and tokenizer_config.json next"
            " to its config"
        )
    tokenizer = _load(folder)
    context = _context_length(config, tokenizer)
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = getattr(config.text, "pad_token_id", None) or 0
    known = int(getattr(config.text, "vocab_size", len(tokenizer)))
    made = FolderTokenizer(tokenizer, context, pad, known)
    _refuse_useless(made, folder)
    return made


def _load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet(), safe_copy(folder, str(folder)) as copy:
            return AutoTokenizer.from_pretrained(
                copy, use_fast=True, trust_remote_code=False, local_files_only=True
            )
    except ModelError:
        raise
    except Exception as error:  # transformers raises whatever odd files lead to
        raise ModelError(
            f"{folder}: its tokenizer cannot be loaded: {reason_of(error)}. Fix: put"
            " tokenizer.json and tokenizer_config.json into the folder"
        ) from error


def _refuse_useless(tokenizer: FolderTokenizer, folder: Path) -> None:
    """Raise ModelError for a tokenizer without words.

    transformers makes an empty one of incomplete files and says nothing.
    """
    tokens, lengths = tokenizer.tokenize(list(TRIAL))
    if min(lengths) < 2 or torch.equal(tokens[0], tokens[1]):
        raise ModelError(
            f"{folder}: its tokenizer gives '{TRIAL[0]}' and '{TRIAL[1]}' the same tokens, expected"
            " words of their own. Fix: fetch the tokenizer's files again"
        )


def _context_length(config: FolderConfig, tokenizer: Any) -> int:
    """Return how many tokens of a text the tower reads."""
    places = getattr(config.text, "max_position_embeddings", MOST_CONTEXT)
    kinds = (config.model_type, getattr(config.text, "model_type", ""))
    if any(kind in POSITIONS_OF_PADDING for kind in kinds):
        padding = config.text.pad_token_id
        if padding is None:
            raise ModelError(
                "config.json: 'pad_token_id' of the text tower is null, expected a whole number."
                " Fix: restore the file"
            )
        places -= padding + 1
    lengths = [MOST_CONTEXT, places]
    if config.family.context is not None:
        lengths.append(config.family.context)
    if config.family.masks_padding:  # others fill all places
        lengths.append(int(min(tokenizer.model_max_length, MOST_CONTEXT)))
    return max(1, min(lengths))
