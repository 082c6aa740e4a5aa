"""Images and sentences compared token by token, through the two linear maps that a run trained.

The loss ``declip.filip`` trains a linear map of patches and a linear map of word states into one
space. A finished run keeps both maps next to its towers.

Source: FILIP, as released with DeCLIP (Sense-GVT/DeCLIP at 5d99a85,
prototype/solver/filip_solver.py:882-944).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimefm.errors import ModelError
from dimefm.losses import (
    Objective,
    Padding,
    TextTokenStates,
    TokenEmbeddings,
    late_similarity,
    options_of,
    word_mask,
)
from dimefm.models import intermediate
from dimefm.models.encoder import Encoder
from dimefm.models.inference.precision import computing
from dimefm.runs import folder as runs

MOST_WIDTH = 16_384  # of the maps of a run that came from elsewhere
MAPS = ("image_mapping", "text_mapping")
"""Names of the maps of images and of sentences, in the loss and in the run's file."""


@dataclass(frozen=True)
class TokenMaps:
    """Linear maps of an encoder's patches and word states to E dimensions.

    ``padding`` tells whether padding counts as words.
    """

    image: nn.Module
    text: nn.Module
    padding: Padding = "counted"

    @torch.inference_mode()
    def scores(self, encoder: Encoder, pixels: Tensor, classes: TokenEmbeddings) -> Tensor:
        """Return float32 scores [B, C] of pixels [B, 3, S, S] for classes: the mean over an image's
        patches of the largest product with one of a class's tokens. Raises ModelError when there is
        no memory for one image.
        """

        def score(part: Tensor) -> Tensor:
            patches = TokenEmbeddings(self._patches(encoder, part))
            return late_similarity(patches, classes)

        return encoder.image_pieces.encode(score, pixels)

    @torch.inference_mode()
    def words(self, encoder: Encoder, tokens: Tensor) -> TokenEmbeddings:
        """Return unit tokens [N, L, E] of tokens [N, L] of sentences; raise ModelError when there
        is no memory for one.
        """
        rows = encoder.text_pieces.encode(functools.partial(self._words, encoder), tokens)
        lengths = encoder.lengths_read(tokens).to(rows.device)
        mask = word_mask(TextTokenStates(rows, lengths), self.padding)
        return TokenEmbeddings(rows, mask)

    def _patches(self, encoder: Encoder, pixels: Tensor) -> Tensor:
        pixels = pixels.to(encoder.device, non_blocking=True).contiguous(
            memory_format=encoder._layout
        )
        with computing(encoder.precision, encoder.device):
            outputs = intermediate.image(encoder.image_model, pixels)
        tokens = self.image(outputs.patches.float())
        return F.normalize(tokens, dim=-1)

    def _words(self, encoder: Encoder, tokens: Tensor) -> Tensor:
        tokens = tokens.to(encoder.device, non_blocking=True)
        with computing(encoder.precision, encoder.device):
            outputs = intermediate.text(encoder.text_model, tokens)
        mapped = self.text(outputs.states.float())
        return F.normalize(mapped, dim=-1)


def class_tokens(words: TokenEmbeddings, prompts: int) -> TokenEmbeddings:
    """Return the tokens [C, L, E] of classes from unit tokens [C * prompts, L, E] of their prompts,
    class by class.

    At each place the mean over the prompts, all L x E numbers of a class then divided by their
    common length. A place that is padding in a prompt adds nothing to the mean, and counts when it
    is a word in another.
    """
    rows = words.rows.unflatten(0, (-1, prompts))
    class_mask = None
    if words.valid is not None:
        mask = words.valid.unflatten(0, (-1, prompts))
        rows = rows * mask[..., None]
        class_mask = mask.any(1)
    mean = rows.mean(1)
    lengths = mean.flatten(1).norm(dim=1)
    return TokenEmbeddings(mean / lengths[:, None, None], class_mask)


def joined(parts: Sequence[TokenEmbeddings]) -> TokenEmbeddings:
    """Return the tokens of all parts, each [N_i, L, E], as one."""
    rows = torch.cat([part.rows for part in parts])
    if parts[0].valid is None:
        return TokenEmbeddings(rows, None)
    mask = torch.cat([part.valid for part in parts])
    return TokenEmbeddings(rows, mask)


def keep(loss_modules: nn.ModuleList, objective: Objective, folder: Path) -> dict | None:
    """Write the maps among a student's ``loss_modules`` into its run folder.

    Returns the fields of the run's record, or None where no loss trains such maps; then nothing is
    written. With several teachers, the maps of the first are kept.
    """
    for term, function in objective.terms:
        if not function.uses_modules.keys() >= set(MAPS):
            continue
        maps = nn.ModuleDict({name: loss_modules[0][name] for name in MAPS})
        runs.save_tensors(maps.state_dict(), folder / runs.TOKEN_MAPS)
        options = {**options_of(function), **term.options}
        width = maps["image_mapping"].out_features
        return {"width": width, "padding": options["padding"]}
    return None


def load(spec: str, encoder: Encoder) -> TokenMaps:
    """Return the maps that the run folder ``spec`` keeps in addition to the towers of ``encoder``,
    on its device.

    Raises ModelError when it keeps none, or they are damaged or do not fit.
    """
    folder = Path(spec)
    kept = runs.read(folder).token_maps if (folder / runs.FILE).is_file() else None
    if kept is None:
        raise ModelError(
            f"{spec}: keeps no maps of tokens, so it can be compared by rows only. Fix: leave --by"
            " tokens out, or name a run that learned 'declip.filip'"
        )
    try:
        width, padding = int(kept["width"]), str(kept["padding"])
        if not 1 <= width <= MOST_WIDTH or padding not in get_args(Padding):
            raise ValueError(f"width {width}, padding {padding!r}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(
            f"{folder / runs.FILE}: 'token_maps' cannot be read ({error!r}). Fix: restore the file"
        ) from error
    dims = intermediate.feature_dims(encoder.image_model)
    maps = nn.ModuleDict()
    for name, tower_width in zip(MAPS, (dims.patches, dims.words), strict=True):
        maps[name] = nn.Linear(tower_width, width)
    runs.load_weights(maps, folder / runs.TOKEN_MAPS)
    maps.to(encoder.device).eval().requires_grad_(False)
    return TokenMaps(maps[MAPS[0]], maps[MAPS[1]], cast("Padding", padding))
