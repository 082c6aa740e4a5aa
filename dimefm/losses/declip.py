"""DeCLIP: Supervision Exists Everywhere (Li et al., ICLR 2022), with its release's SLIP and FILIP.

The mixes of the release, for two views of each image and two captions:

* DeCLIP: ``clip.contrastive`` 0.4 + ``nns`` 0.2 + ``simsiam`` 0.2 + ``mlm`` 0.2. The mean of
  ``clip.contrastive`` over views and captions is its multi-view term.
* DeFILIP: these and ``filip`` 0.2. FILIP: ``filip`` 1. SLIP: ``clip.contrastive`` 1 (of its first
  view) + ``simclr`` 1.

``nns``, ``simsiam``, ``simclr``, ``mlm`` and ``filip`` are the release's, value and gradient, of a
batch on one process; options mend what was not meant. Of several processes, batch normalisation is
here by all rows, the mean of ``mlm`` is over all hidden words, and there is one ring of rows. The
other terms are their forms on cached features of a teacher, without a release. Between steps the
release also holds the logarithms of both scales within 3 and 6; here they learn freely, and the
factor of ``filip`` is at most 100.

Source of all: Sense-GVT/DeCLIP at 5d99a85; files below are under prototype/.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimefm.losses._features import Features, to_full_precision
from dimefm.losses._heads import (
    image_mapping,
    patch_projection,
    predictor,
    projector,
    simclr_head,
    text_mapping,
    word_head,
    word_projection,
)
from dimefm.losses._late_interaction import Padding, TokenEmbeddings, late_similarity, word_mask
from dimefm.losses._modules import Scale, projection, scale, uses_modules
from dimefm.losses._needs import Need
from dimefm.losses._primitives import cross_entropy, info_nce, nt_xent
from dimefm.losses._queue import Bank, Wrap, bank, teacher_bank
from dimefm.losses._terms import needs

__all__ = [
    "filip",
    "filip_pooled",
    "filip_tokens",
    "mlm",
    "nns",
    "nns_cached",
    "nns_graph",
    "simclr",
    "simsiam",
]

Ways = Literal["one", "both"]
Repeated = Literal["counted", "left out"]


@needs(Need.VIEWS, sees_all_views=True)
@uses_modules(projector=projector, predictor=predictor)
def simsiam(
    student: Features,
    teacher: Features | None = None,
    *,
    projector: nn.Module,
    predictor: nn.Module,
    width: int = 1024,
) -> Tensor:
    """SimSiam: the student predicts from one view of an image its projection of another view.

    Minus the cosine of a predicted view and a projected one, without gradient through the latter;
    the mean over B and both directions, and over the pairs of views of [B, V, D]. Heads see the
    rows before they are made unit rows. No pairs needed. Source: DeCLIP, released
    model/declip.py:33-130; loss_functions/loss.py:49-55, 65-81.
    """
    projected = [projector(view) for view in _views(student).unbind(1)]
    predicted = [predictor(rows) for rows in projected]
    cosines = []
    for view, other_view in itertools.permutations(range(len(projected)), 2):
        target = projected[other_view].detach()
        cosine = F.cosine_similarity(predicted[view], target)
        cosines.append(cosine.mean())
    return -sum(cosines) / len(cosines)


@needs(Need.VIEWS, Need.HIDDEN, sees_all_views=True)
@uses_modules(simclr_head=simclr_head)
def simclr(
    student: Features,
    teacher: Features | None = None,
    *,
    simclr_head: nn.Module,
    temperature: float = 0.1,
    width: int = 4096,
    dim: int = 256,
) -> Tensor:
    """SimCLR as in SLIP: the last two views of an image find each other among those of the batch.

    NT-Xent of 2 B rows behind a head on the features before the last projection, ``hidden`` [B, V,
    W]. With three views the first is left to the other terms, as in SLIP; with two both are seen by
    all. No pairs needed. Source: SLIP, as released with DeCLIP: model/slip.py:50-109, 214-215;
    loss_functions/nt_xent.py:47-97.
    """
    hidden = to_full_precision(student.hidden)
    last_two = hidden[:, -2:].unbind(1)
    rows = torch.cat([simclr_head(view) for view in last_two])
    return nt_xent(F.normalize(rows, dim=1), 1 / temperature)


@needs(Need.WORDS, Need.MASKED, sees_all_views=True)
@uses_modules(word_head=word_head)
def mlm(student: Features, teacher: Features | None = None, *, word_head: nn.Linear) -> Tensor:
    """Masked language modelling: the text tower predicts the hidden words of the first caption.

    Mean cross-entropy over the hidden words of the batch, of a linear map of states [B, L, W] to
    the vocabulary; 0 when none is hidden, where the release has no number. A tower with a causal
    mask guesses from the words before only, as released. Logits are computed in chunks. No pairs
    needed. Source: DeCLIP, released model/declip.py:170-171, 326-334.
    """
    words = student.words
    hidden = words.labels >= 0
    states = to_full_precision(words.states)[hidden]
    labels = words.labels[hidden]
    if not len(labels):  # all that trains still has a gradient
        everything = words.states.float().sum() + word_head.weight.sum() + word_head.bias.sum()
        return 0 * everything
    return cross_entropy(states, word_head.weight, word_head.bias, labels)


@needs(Need.PAIRS, sees_all_views=True)
@uses_modules(bank=bank)
def nns(
    student: Features,
    teacher: Features | None = None,
    *,
    bank: Bank,
    size: int = 2**16,
    ways: Ways = "one",
    wrap: Wrap = "released",
    repeated: Repeated = "counted",
) -> Tensor:
    """Nearest-neighbor supervision: each image finds its caption's neighbor among the batch's.

    InfoNCE at the student's scale of images [B, D] against neighbours [B, D], the mean over views
    and captions. Neighbours are looked up in a ring of the ``size`` sentences that the student saw
    last; the batch's own enter it afterwards, the last caption first, and only in training mode.
    Options mend the release: ``ways`` "both" adds neighbours → images and averages; ``wrap``
    "whole" keeps all of a batch at the ring's end, where the release throws away what goes beyond
    it; ``repeated`` "left out" takes captions with the very same neighbour out of each other's
    negatives. Source: DeCLIP, released model/declip.py:281-300; nn_memory_bank.py:10-65;
    memory_bank.py:54-87; loss.py:24-47.
    """
    views = F.normalize(_views(student), dim=-1)
    captions = _captions(student)
    neighbors = [bank.nearest(caption) for caption in captions]
    loss = _info_nce_with_neighbors(views, neighbors, student.logit_scale, ways, repeated)
    _remember(captions, bank, wrap)
    return loss


@needs(Need.TEACHER, Need.PAIRS, sees_all_views=True)
@uses_modules(teacher_bank=teacher_bank, image_projection=projection)
def nns_cached(
    student: Features,
    teacher: Features,
    *,
    teacher_bank: Bank,
    image_projection: nn.Module,
    size: int = 2**16,
    ways: Ways = "one",
    wrap: Wrap = "released",
    repeated: Repeated = "counted",
) -> Tensor:
    """Nearest-neighbour supervision by the teacher: ``nns`` with a ring of the teacher's sentences.

    Neighbours of the teacher's captions [B, E] are targets from the first round of the ring on, as
    the teacher does not change. The student's images are mapped to its dimension first, if theirs
    is another. Options as of ``nns``. Source: none released; DeCLIP's term
    (model/declip.py:281-300) on cached rows.
    """
    views = F.normalize(image_projection(_views(student)), dim=-1)
    captions = _captions(teacher)
    neighbors = [teacher_bank.nearest(caption) for caption in captions]
    loss = _info_nce_with_neighbors(views, neighbors, student.logit_scale, ways, repeated)
    _remember(captions, teacher_bank, wrap)
    return loss


@needs(Need.TEACHER, Need.PAIRS, Need.NEIGHBOURS, sees_all_views=True)
@uses_modules(image_projection=projection)
def nns_graph(
    student: Features,
    teacher: Features,
    *,
    image_projection: nn.Module,
    ways: Ways = "one",
    repeated: Repeated = "left out",
) -> Tensor:
    """Nearest-neighbour supervision by a graph: ``nns`` with neighbours that were found in the
    whole cache beforehand.

    ``project_to_teacher`` [B, E] of the teacher stands in for the rows looked up; where they are
    the same, so is the loss. Options as of ``nns``, but the same neighbour twice is no negative by
    default. Source: none released; DeCLIP's term (model/declip.py:281-300) on a graph of
    neighbours, as CLIP-PING (arXiv 2412.03871).
    """
    views = F.normalize(image_projection(_views(student)), dim=-1)
    neighbor = F.normalize(to_full_precision(teacher.neighbor_text), dim=-1)
    return _info_nce_with_neighbors(views, [neighbor], student.logit_scale, ways, repeated)


@needs(Need.PATCHES, Need.WORDS, Need.PAIRS, sees_all_views=True)
@uses_modules(image_mapping=image_mapping, text_mapping=text_mapping, dense_scale=scale)
def filip(
    student: Features,
    teacher: Features | None = None,
    *,
    image_mapping: nn.Module,
    text_mapping: nn.Module,
    dense_scale: Scale,
    width: int = 256,
    tokens: int = 16,
    padding: Padding = "counted",
) -> Tensor:
    """FILIP: images and sentences find each other by their tokens, patches of the first view and
    words of the first caption.

    InfoNCE over [B, B] both ways, averaged. An image's score for a sentence is the mean over its
    patches of the largest cosine to one of the sentence's chosen words, and likewise back; chosen
    are the ``tokens`` of an item with the largest sum of cosines to its own partner's (a large
    number means all, as the release had it before e47a5ff, when its figures were made). Tokens are
    mapped to ``width`` dimensions; their factor learns. As released padding counts as words;
    ``padding = "left out"`` is what FILIP's paper says (arXiv 2111.07783). Source: FILIP, as
    released with DeCLIP: model/filip.py:39-44, 71-106.
    """
    patches = image_mapping(to_full_precision(student.patches))
    image = TokenEmbeddings.from_rows(patches)
    words = text_mapping(to_full_precision(student.words.states))
    text = TokenEmbeddings.from_rows(words, word_mask(student.words, padding))
    image_to_text = late_similarity(image, text.top(image, tokens))
    text_to_image = late_similarity(text, image.top(text, tokens))
    return _contrast_both_ways(image_to_text, text_to_image, dense_scale("exp"))


@needs(Need.TEACHER, Need.SENTENCES, Need.PATCHES, sees_all_views=True)
@uses_modules(patch_projection=patch_projection)
def filip_pooled(
    student: Features, teacher: Features, *, patch_projection: nn.Module, temperature: float = 1.0
) -> Tensor:
    """FILIP on pooled rows of a teacher: the best patch of an image scores sentences as the teacher
    scores the image.

    An image's score for a sentence is the largest cosine of its patches [B, P, W], mapped to the
    teacher's dimension, to the teacher's row of it. KL of these scores [B, N] to the teacher's own,
    over rows and over columns, averaged, at its scale. No pairs and no cached tokens needed.
    Source: none released; FILIP's score (model/filip.py:71-106) with one token for a sentence,
    taught as ``clip_kd.crd``.
    """
    patches = patch_projection(to_full_precision(student.patches))
    image = TokenEmbeddings.from_rows(patches)
    captions = TokenEmbeddings(teacher.text[:, None])
    factor = teacher.logit_scale / temperature
    scores = factor * late_similarity(image, captions, pool="max")
    targets = factor * teacher.image @ teacher.text.T
    return (_divergence(scores, targets) + _divergence(scores.T, targets.T)) / 2


@needs(Need.TEACHER, Need.PATCHES, Need.WORDS, Need.PAIRS, Need.TOKENS, sees_all_views=True)
@uses_modules(patch_projection=patch_projection, word_projection=word_projection, token_scale=scale)
def filip_tokens(
    student: Features,
    teacher: Features,
    *,
    patch_projection: nn.Module,
    word_projection: nn.Module,
    token_scale: Scale,
    padding: Padding = "left out",
) -> Tensor:
    """FILIP on cached tokens of a teacher: ``filip`` with the teacher's chosen tokens on the other
    side.

    The student's patches look for the teacher's cached words [B, K, E], its words for cached
    patches [B, K, E]; InfoNCE over [B, B] both ways, averaged. Of cached words as many count as
    their ``lengths`` say. Source: none released; FILIP as released with DeCLIP,
    model/filip.py:71-106, whose other side is sixteen tokens too.
    """
    patches = patch_projection(to_full_precision(student.patches))
    image = TokenEmbeddings.from_rows(patches)
    words = word_projection(to_full_precision(student.words.states))
    text = TokenEmbeddings.from_rows(words, word_mask(student.words, padding))
    teacher_image = TokenEmbeddings.from_rows(teacher.patches)
    cached = teacher.words
    teacher_text = TokenEmbeddings.from_rows(cached.states, word_mask(cached, "left out"))
    image_to_text = late_similarity(image, teacher_text)
    text_to_image = late_similarity(text, teacher_image)
    return _contrast_both_ways(image_to_text, text_to_image, token_scale("exp"))


def _views(side: Features) -> Tensor:
    """Return all views [B, V, D] before normalization."""
    if side.views is not None:
        return to_full_precision(side.views)
    image = side.image if side.raw is None else side.raw[0]
    return image[:, None]


def _captions(side: Features) -> list[Tensor]:
    """Return unit rows [B, D] of each caption."""
    if side.captions is None:
        return [side.text]
    captions = F.normalize(to_full_precision(side.captions), dim=-1)
    return list(captions.unbind(1))


def _remember(captions: list[Tensor], ring: Bank, wrap: Wrap) -> None:
    """Put captions into a ring, the last caption first; only in training mode."""
    if not ring.training:
        return
    for rows in reversed(captions):
        ring.push(rows, wrap)


def _info_nce_with_neighbors(
    views: Tensor,
    neighbors: list[Tensor],
    scale: Tensor | float,
    ways: Ways,
    repeated: Repeated,
) -> Tensor:
    """Return the mean InfoNCE of unit views [B, V, D] and unit neighbors [B, D] of each caption."""
    both_ways = ways == "both"
    losses = []
    for neighbor in neighbors:
        ids = None
        if repeated == "left out":
            ids = torch.unique(neighbor, dim=0, return_inverse=True)[1]
        for view in views.unbind(1):
            loss = info_nce(view, neighbor, scale, both_ways=both_ways, duplicate_ids=ids)
            losses.append(loss)
    summed = sum(losses, start=views.new_zeros(()))
    directions = 2 if both_ways else 1
    return summed / (len(losses) * directions)


def _contrast_both_ways(image_to_text: Tensor, text_to_image: Tensor, factor: Tensor) -> Tensor:
    """Return the mean cross-entropy of item i in row i of two matrices [B, B] of cosines."""
    labels = torch.arange(len(image_to_text), device=factor.device)
    of_images = F.cross_entropy(factor * image_to_text, labels)
    of_captions = F.cross_entropy(factor * text_to_image, labels)
    return (of_images + of_captions) / 2


def _divergence(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over rows of KL(softmax(targets) || softmax(scores))."""
    return F.kl_div(
        scores.log_softmax(1),
        targets.detach().log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )
