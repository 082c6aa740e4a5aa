"""DeCLIP: Supervision Exists Everywhere (Li et al., ICLR 2022), with SLIP's and FILIP's terms as
its release has them.

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

from dimefm.losses._features import Features, full, needs
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
from dimefm.losses._late_interaction import Padding, TokenEmbeddings, late, present
from dimefm.losses._modules import Scale, projection, scale, uses_modules
from dimefm.losses._primitives import cross_entropy, info_nce, nt_xent
from dimefm.losses._queue import Bank, Wrap, bank, teacher_bank

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


@needs("views", whole=True)
@uses_modules(projector=projector, predictor=predictor)
def simsiam(
    student: Features,
    teacher: Features | None = None,
    *,
    projector: nn.Module,
    predictor: nn.Module,
    width: int = 1024,
) -> Tensor:
    """SimSiam: from one view of an image the student predicts what it says of another.

    Minus the cosine of a predicted view and a projected one, without gradient through the latter;
    the mean over B and both directions, and over the pairs of views of [B, V, D]. Heads see the
    rows before they are made unit rows. No pairs needed. Source: DeCLIP, released
    model/declip.py:33-130; loss_functions/loss.py:49-55, 65-81.
    """
    projected = [projector(view) for view in _views(student).unbind(1)]
    predicted = [predictor(rows) for rows in projected]
    pairs = list(itertools.permutations(range(len(projected)), 2))
    return -sum(
        F.cosine_similarity(predicted[a], projected[b].detach()).mean() for a, b in pairs
    ) / len(pairs)


@needs("views", "hidden", whole=True)
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
    """SimCLR as in SLIP: the two last views of an image find each other among all views of the
    batch.

    NT-Xent of 2 B rows behind a head on the features before the last projection, ``hidden`` [B, V,
    W]. With three views the first is left to the other terms, as in SLIP; with two both are seen by
    all. No pairs needed. Source: SLIP, as released with DeCLIP: model/slip.py:50-109, 214-215;
    loss_functions/nt_xent.py:47-97.
    """
    rows = torch.cat([simclr_head(view) for view in full(student.hidden)[:, -2:].unbind(1)])
    return nt_xent(F.normalize(rows, dim=1), 1 / temperature)


@needs("words", "masked", whole=True)
@uses_modules(word_head=word_head)
def mlm(student: Features, teacher: Features | None = None, *, word_head: nn.Linear) -> Tensor:
    """Masked language modelling: the text tower tells which words of the first caption were hidden
    from it.

    Mean cross-entropy over the hidden words of the batch, of a linear map of states [B, L, W] to
    the vocabulary; 0 when none is hidden, where the release has no number. A tower with a causal
    mask guesses from the words before only, as released. Logits are computed in chunks. No pairs
    needed. Source: DeCLIP, released model/declip.py:170-171, 326-334.
    """
    hidden = student.words.labels >= 0
    states, labels = full(student.words.states)[hidden], student.words.labels[hidden]
    if not len(labels):
        return 0 * (
            student.words.states.float().sum() + word_head.weight.sum() + word_head.bias.sum()
        )
    return cross_entropy(states, word_head.weight, word_head.bias, labels)


@needs("pairs", whole=True)
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
    """Nearest-neighbour supervision: each image finds the nearest neighbour of its caption among
    those of the batch.

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
    return _looked_up(views, _captions(student), bank, student.logit_scale, (ways, wrap, repeated))


@needs("teacher", "pairs", whole=True)
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
    return _looked_up(
        views, _captions(teacher), teacher_bank, student.logit_scale, (ways, wrap, repeated)
    )


@needs("teacher", "pairs", "neighbours", whole=True)
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
    return _towards(
        views,
        [F.normalize(full(teacher.neighbor_text), dim=-1)],
        student.logit_scale,
        ways,
        repeated,
    )


@needs("patches", "words", "pairs", whole=True)
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
    words = student.words
    image = TokenEmbeddings.from_rows(image_mapping(full(student.patches)))
    text = TokenEmbeddings.from_rows(text_mapping(full(words.states)), present(words, padding))
    found = late(image, text.most(image, tokens)), late(text, image.most(text, tokens))
    return _told_apart(found, dense_scale("exp"))


@needs("teacher", "patches", whole=True)
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
    image = TokenEmbeddings.from_rows(patch_projection(full(student.patches)))
    factor = teacher.logit_scale / temperature
    found = factor * late(image, TokenEmbeddings(teacher.text[:, None]), pool="max")
    wanted = factor * teacher.image @ teacher.text.T
    return (_divergence(found, wanted) + _divergence(found.T, wanted.T)) / 2


@needs("teacher", "patches", "words", "pairs", "tokens", whole=True)
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
    words, cached = student.words, teacher.words
    image = TokenEmbeddings.from_rows(patch_projection(full(student.patches)))
    text = TokenEmbeddings.from_rows(word_projection(full(words.states)), present(words, padding))
    theirs = (
        TokenEmbeddings.from_rows(teacher.patches),
        TokenEmbeddings.from_rows(cached.states, present(cached, "left out")),
    )
    return _told_apart((late(image, theirs[1]), late(text, theirs[0])), token_scale("exp"))


def _views(side: Features) -> Tensor:
    """Return all views [B, V, D] before they were made unit rows."""
    return (side.raw or (side.image,))[0][:, None] if side.views is None else full(side.views)


def _captions(side: Features) -> list[Tensor]:
    """Return unit rows [B, D] of each caption."""
    return (
        [side.text]
        if side.captions is None
        else list(F.normalize(full(side.captions), dim=-1).unbind(1))
    )


def _looked_up(
    views: Tensor,
    captions: list[Tensor],
    ring: Bank,
    scale: Tensor | float,
    options: tuple[Ways, Wrap, Repeated],
) -> Tensor:
    """Return the loss of unit views [B, V, D] towards the neighbours of captions in a ring, which
    then takes them in.
    """
    ways, wrap, repeated = options
    loss = _towards(views, [ring.nearest(rows) for rows in captions], scale, ways, repeated)
    if ring.training:
        for rows in reversed(captions):
            ring.push(rows, wrap)
    return loss


def _towards(
    views: Tensor, neighbours: list[Tensor], scale: Tensor | float, ways: Ways, repeated: Repeated
) -> Tensor:
    """Return InfoNCE of unit views [B, V, D] against unit neighbours [B, D] of each caption, the
    mean.
    """
    both = ways == "both"
    found = []
    for neighbor in neighbours:
        duplicate_ids = (
            torch.unique(neighbor, dim=0, return_inverse=True)[1]
            if repeated == "left out"
            else None
        )
        found += [
            info_nce(view, neighbor, scale, both_ways=both, duplicate_ids=duplicate_ids)
            for view in views.unbind(1)
        ]
    return sum(found, start=views.new_zeros(())) / (len(found) * (2 if both else 1))


def _told_apart(cosines: tuple[Tensor, Tensor], factor: Tensor) -> Tensor:
    """Return the cross-entropy of item i under each of two matrices [B, B] of cosines, averaged."""
    labels = torch.arange(len(cosines[0]), device=factor.device)
    return (
        F.cross_entropy(factor * cosines[0], labels) + F.cross_entropy(factor * cosines[1], labels)
    ) / 2


def _divergence(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean over rows of KL(softmax(wanted) || softmax(found))."""
    return F.kl_div(
        found.log_softmax(1), wanted.detach().log_softmax(1), reduction="batchmean", log_target=True
    )
