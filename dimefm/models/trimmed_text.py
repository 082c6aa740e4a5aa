"""Run text towers on the tokens that they read, without the padding behind the text.

Under a causal mask place p of a text sees places 0..p alone. A tower that pools at its end-of-text
token therefore never reads the places behind it, and tokens cut behind the last pooled place of a
batch give the same embeddings. ``encode_text`` of open_clip refuses them (it adds all positions),
so ``Trimmed`` runs the parts of the tower with the first L positions and the L x L corner of the
mask.

This module knows how open_clip computes text towers; written against open_clip_torch 3.x.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, Transformer
from torch import Tensor, nn

from dimefm.models.inference.precision import computing
from dimefm.models.towers import TextTower

TOLERANCE = 1e-4
"""How far the unit embeddings of the check on first use may be from ``encode_text``'s."""
CHECKED = 4  # texts of that check


@dataclass(frozen=True)
class Trimmed:
    """A text tower that may be run on cut tokens: its parts and where it pools.

    ``eos`` None pools at the first place of the largest token of a row (open_clip's "argmax"), a
    number at its first place.
    """

    parts: nn.Module
    eos: int | None

    def lengths(self, tokens: Tensor) -> Tensor:
        """Return how many places of each row of tokens [N, L] the tower reads: int64 [N], >= 1."""
        marks = tokens if self.eos is None else (tokens == self.eos).int()
        return 1 + marks.argmax(dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return embeddings [N, D], not normalized, of tokens [N, L].

        L is at least the largest of ``lengths``. It is ``CLIP.encode_text`` and
        ``TextTransformer.forward`` of open_clip, but for L positions instead of all, and with the
        final norm on the pooled places only.
        """
        parts = self.parts
        length = tokens.shape[1]
        dtype = parts.transformer.get_cast_dtype()
        positions = parts.positional_embedding[:length].to(dtype)
        x = parts.token_embedding(tokens).to(dtype) + positions
        x = parts.transformer(x, attn_mask=parts.attn_mask[:length, :length])
        texts = torch.arange(x.shape[0], device=x.device)  # len(x) would fix N in an export
        last_places = self.lengths(tokens) - 1
        pooled = parts.ln_final(x[texts, last_places])
        projection = parts.text_projection
        if projection is None:
            return pooled
        if isinstance(projection, nn.Linear):
            return projection(pooled)
        return pooled @ projection


def places_first(model: nn.Module) -> nn.Module:
    """Make a masked text tower keep its places as the first axis, [L, N, D]; return ``model``.

    The tower is ``model`` or a part of it; its embeddings stay the same. Under a mask torch's
    attention computes in this layout anyway; for [N, L, D] it takes a transposed view, which torch
    2.15 multiplies by a copy of the weights for each place. Rounding all copies takes longer than
    the product itself.
    """
    text = getattr(model, "text", model)
    mask = getattr(text, "attn_mask", None)
    transformer = getattr(text, "transformer", None)
    if mask is None or not isinstance(transformer, Transformer):
        return model
    blocks = transformer.resblocks
    if any(type(block) is not ResidualAttentionBlock for block in blocks):
        return model
    transformer.batch_first = False
    for block in blocks:
        block.attn.batch_first = False
    return model


def trimmed(model: nn.Module) -> Trimmed | None:
    """Return how to run a model's text tower on cut tokens, None when embeddings need the padding.

    None for towers that are not open_clip's own (Hugging Face), add a class token (CoCa), read all
    places (no causal mask: SigLIP, CLIPA, most MobileCLIP) or pool elsewhere than at a token. Other
    towers are compared with ``encode_text`` on a few tokens; a tower that disagrees gives a
    RuntimeWarning and None.
    """
    tower = _trimmed_tower(model)
    if tower is None:
        return None
    difference = _difference(tower, model)
    agrees = difference <= TOLERANCE  # False for NaN
    if not agrees:
        warnings.warn(
            "sentences are encoded at full length, which is slower: rows of cut tokens differ by"
            f" {difference:.1e}, expected at most {TOLERANCE:.0e}; the installed open_clip computes"
            " the tower in another way than this package",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return tower


def _trimmed_tower(model: nn.Module) -> Trimmed | None:
    """Return the trimmed tower of a model of a known family, None for other models."""
    if isinstance(model, CLIP) and type(model).encode_text is CLIP.encode_text:
        parts = model
        pool = model.text_pool_type
        eos = model.text_eos_id
    elif isinstance(model, CustomTextCLIP | TextTower) and _is_plain(model.text):
        parts = model.text
        pool = parts.pool_type
        eos = parts.eos_id
    else:
        return None
    if not _is_causal(parts.attn_mask):
        return None
    if pool == "argmax":
        return Trimmed(parts, eos=None)
    if pool == "eos":
        return Trimmed(parts, eos)
    return None


def _is_plain(text: nn.Module) -> bool:
    """Tell whether a text tower is open_clip's own without a class token."""
    return type(text) is TextTransformer and text.cls_emb is None


def _is_causal(mask: Tensor | None) -> bool:
    """Tell whether an additive mask hides from each place everything behind it."""
    if mask is None or mask.ndim != 2:
        return False
    is_behind = torch.ones_like(mask, dtype=torch.bool).triu(1)
    return bool(mask[is_behind].eq(float("-inf")).all())


@torch.inference_mode()
def _difference(tower: Trimmed, model: nn.Module) -> float:
    """Return the largest difference of unit embeddings, whole against cut tokens.

    The texts have noise behind their ends.
    """
    embedding = tower.parts.token_embedding
    largest = embedding.num_embeddings - 1
    end = largest if tower.eos is None else tower.eos
    length = len(tower.parts.positional_embedding)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(largest, (CHECKED, length), generator=generator)
    texts = torch.arange(CHECKED)
    tokens[texts, texts.clamp(max=length - 1)] = end
    tokens = tokens.to(embedding.weight.device)
    longest = int(tower.lengths(tokens).max())
    with computing("fp32", tokens.device):
        whole = model.encode_text(tokens)
        cut = tower.encode_text(tokens[:, :longest])
    difference = _unit(whole) - _unit(cut)
    return float(difference.abs().max())


def _unit(embeddings: Tensor) -> Tensor:
    """Return embeddings [N, D] in float32 and of length 1."""
    return nn.functional.normalize(embeddings.float(), dim=-1)
