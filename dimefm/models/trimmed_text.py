"""Text towers on the tokens they read. Knows how open_clip computes them; written against
open_clip_torch 3.x.

Under a causal mask place p of a sentence sees places 0..p alone. A tower that pools at its
end-of-text token therefore never looks at what stands behind it, and tokens cut behind the last
pooled place of a batch give the same rows. ``encode_text`` of open_clip refuses them (it adds all
positions), so ``Trimmed`` runs the parts of the tower with the first L positions and the L x L
corner of the mask.
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
"""How far the unit rows of the check on first use may lie from ``encode_text``'s."""


@dataclass(frozen=True)
class Trimmed:
    """A text tower that may be run on cut tokens: its parts and where it pools.

    ``eos`` None pools at the first place of the largest token of a row (open_clip's "argmax"), a
    number at its first place.
    """

    parts: nn.Module
    eos: int | None

    def lengths(self, tokens: Tensor) -> Tensor:
        """Return how many places of each row of tokens [N, L] the tower reads: int64 [N], at least
        1.
        """
        return 1 + (tokens if self.eos is None else (tokens == self.eos).int()).argmax(dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return rows [N, D], not normalised, of tokens [N, L] that hold all places that
        ``lengths`` counts.

        It is ``CLIP.encode_text`` and ``TextTransformer.forward`` of open_clip, but for L positions
        instead of all, and with the final norm on the pooled places only.
        """
        parts, n = self.parts, tokens.shape[1]
        dtype = parts.transformer.get_cast_dtype()
        x = parts.token_embedding(tokens).to(dtype) + parts.positional_embedding[:n].to(dtype)
        x = parts.transformer(x, attn_mask=parts.attn_mask[:n, :n])
        x = parts.ln_final(x[torch.arange(len(x), device=x.device), self.lengths(tokens) - 1])
        if parts.text_projection is None:
            return x
        return (
            parts.text_projection(x)
            if isinstance(parts.text_projection, nn.Linear)
            else x @ parts.text_projection
        )


def places_first(model: nn.Module) -> nn.Module:
    """Let the masked text tower that ``model`` has or is keep its places as the first axis, [L, N,
    D]; return ``model``.

    Its rows stay the same. Under a mask torch's attention computes so anyway; of [N, L, D] it takes
    a transposed view, which torch 2.15 multiplies by a copy of the weights for each place. To round
    all copies takes longer than the product itself.
    """
    text = getattr(model, "text", model)
    transformer = getattr(text, "transformer", None)
    if getattr(text, "attn_mask", None) is None or not isinstance(transformer, Transformer):
        return model
    if all(type(block) is ResidualAttentionBlock for block in transformer.resblocks):
        for module in (transformer, *(block.attn for block in transformer.resblocks)):
            module.batch_first = False
    return model


def trimmed(model: nn.Module) -> Trimmed | None:
    """Return how to run a model's text tower on cut tokens, or None when its rows depend on the
    padding.

    None for towers that are not open_clip's own (Hugging Face), add a class token (CoCa), look at
    all places (no causal mask: SigLIP, CLIPA, most MobileCLIP) or pool elsewhere than at a token.
    What is left is tried on a few tokens against ``encode_text`` as well; a tower that disagrees
    gives a RuntimeWarning and None.
    """
    if isinstance(model, CLIP) and type(model).encode_text is CLIP.encode_text:
        parts, pool, eos = model, model.text_pool_type, model.text_eos_id
    elif isinstance(model, CustomTextCLIP | TextTower) and _is_plain(model.text):
        parts, pool, eos = model.text, model.text.pool_type, model.text.eos_id
    else:
        return None
    if pool not in ("argmax", "eos") or not _is_causal(parts.attn_mask):
        return None
    tower = Trimmed(parts, eos if pool == "eos" else None)
    difference = _difference(tower, model)
    if not difference <= TOLERANCE:
        warnings.warn(
            "sentences are encoded at full length, which is slower: rows of cut tokens differ by"
            f" {difference:.1e}, expected at most {TOLERANCE:.0e}; the installed open_clip computes"
            " the tower in another way than this package",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return tower


def _is_plain(text: nn.Module) -> bool:
    """Tell whether a text tower is open_clip's own without a class token."""
    return type(text) is TextTransformer and text.cls_emb is None


def _is_causal(mask: Tensor | None) -> bool:
    """Tell whether an additive mask hides from each place everything behind it."""
    if mask is None or mask.ndim != 2:
        return False
    return bool((mask[torch.ones_like(mask, dtype=torch.bool).triu(1)] == float("-inf")).all())


@torch.inference_mode()
def _difference(tower: Trimmed, model: nn.Module) -> float:
    """Return the largest difference of unit rows, whole against cut, of sentences with noise behind
    their end.
    """
    embedding = tower.parts.token_embedding
    end = embedding.num_embeddings - 1 if tower.eos is None else tower.eos
    length, noise = len(tower.parts.positional_embedding), torch.Generator().manual_seed(0)
    tokens = torch.randint(embedding.num_embeddings - 1, (4, length), generator=noise)
    tokens[torch.arange(4), torch.arange(4).clamp(max=length - 1)] = end
    tokens = tokens.to(embedding.weight.device)
    with computing("fp32", tokens.device):
        whole, cut = (
            model.encode_text(tokens),
            tower.encode_text(tokens[:, : int(tower.lengths(tokens).max())]),
        )
    unit = nn.functional.normalize
    return float((unit(whole.float(), dim=-1) - unit(cut.float(), dim=-1)).abs().max())
