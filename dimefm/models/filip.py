"""Images and sentences compared by their tokens, through maps that a run learned and keeps.

A loss on tokens of which both sides are the student's own (``declip.filip``) learns a linear map of
patches and one of states of words into a space of their own. A finished run keeps both next to its
towers, which alone know rows only.

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

MAPS = ("image_mapping", "text_mapping")
"""The trained maps that make tokens comparable, of images and of sentences, and their names in the
file of a run.
"""


@dataclass(frozen=True)
class TokenMaps:
    """Linear maps of an encoder's patches and states of words to E dimensions, and whether
    ``padding`` counts as words.
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
        return encoder.image_pieces.encode(
            lambda part: late_similarity(TokenEmbeddings(self._patches(encoder, part)), classes),
            pixels,
        )

    @torch.inference_mode()
    def words(self, encoder: Encoder, tokens: Tensor) -> TokenEmbeddings:
        """Return unit tokens [N, L, E] of tokens [N, L] of sentences; raise ModelError when there
        is no memory for one.
        """
        rows = encoder.text_pieces.encode(functools.partial(self._words, encoder), tokens)
        return TokenEmbeddings(
            rows,
            word_mask(
                TextTokenStates(rows, encoder.lengths_read(tokens).to(rows.device)), self.padding
            ),
        )

    def _patches(self, encoder: Encoder, pixels: Tensor) -> Tensor:
        pixels = pixels.to(encoder.device, non_blocking=True).contiguous(
            memory_format=encoder._layout
        )
        with computing(encoder.precision, encoder.device):
            found = intermediate.image(encoder.image_model, pixels)
        return F.normalize(self.image(found.patches.float()), dim=-1)

    def _words(self, encoder: Encoder, tokens: Tensor) -> Tensor:
        with computing(encoder.precision, encoder.device):
            found = intermediate.text(
                encoder.text_model, tokens.to(encoder.device, non_blocking=True)
            )
        return F.normalize(self.text(found.states.float()), dim=-1)


def class_tokens(words: TokenEmbeddings, prompts: int) -> TokenEmbeddings:
    """Return the tokens [C, L, E] of classes from unit tokens [C * prompts, L, E] of their prompts,
    class by class.

    At each place the mean over the prompts, all L x E numbers of a class then divided by their
    common length. A place that is padding in a prompt adds nothing to the mean, and counts when it
    is a word in another.
    """
    there = None if words.valid is None else words.valid.unflatten(0, (-1, prompts))
    rows = words.rows.unflatten(0, (-1, prompts))
    mean = (rows if there is None else rows * there[..., None]).mean(1)
    return TokenEmbeddings(
        mean / mean.flatten(1).norm(dim=1)[:, None, None], None if there is None else there.any(1)
    )


def joined(parts: Sequence[TokenEmbeddings]) -> TokenEmbeddings:
    """Return the tokens of all parts, of the same places and dimensions, as one."""
    there = None if parts[0].valid is None else torch.cat([part.valid for part in parts])
    return TokenEmbeddings(torch.cat([part.rows for part in parts]), there)


def keep(loss_modules: nn.ModuleList, objective: Objective, folder: Path) -> dict | None:
    """Write the maps among a student's ``loss_modules`` parts into its run folder; return what the
    run's record says of them.

    None, and nothing is written, where no loss learns them. Of several teachers, each of which has
    maps of its own, the first one's are kept.
    """
    having = [pair for pair in objective.terms if pair[1].uses_modules.keys() >= set(MAPS)]
    if not having:
        return None
    maps = nn.ModuleDict({name: loss_modules[0][name] for name in MAPS})
    runs.save_tensors(maps.state_dict(), folder / runs.TOKEN_MAPS)
    term, function = having[0]
    padding = {**options_of(function), **term.options}["padding"]
    return {"width": maps["image_mapping"].out_features, "padding": padding}


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
        if width < 1 or padding not in get_args(Padding):
            raise ValueError(f"width {width}, padding {padding!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{folder / runs.FILE}: 'token_maps' cannot be read ({error!r}). Fix: restore the file"
        ) from error
    found = intermediate.feature_dims(encoder.image_model)
    maps = nn.ModuleDict(
        zip(MAPS, (nn.Linear(found.patches, width), nn.Linear(found.words, width)), strict=True)
    )
    runs.load_weights(maps, folder / runs.TOKEN_MAPS)
    maps.to(encoder.device).eval().requires_grad_(False)
    return TokenMaps(maps[MAPS[0]], maps[MAPS[1]], cast("Padding", padding))
