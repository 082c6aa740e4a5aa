"""Tokens of classes and scores by tokens against plain loops, and the maps that a run keeps."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from dimefm.errors import ModelError
from dimefm.losses import (
    FeatureDims,
    LossConfig,
    Objective,
    TextTokenStates,
    TokenEmbeddings,
    late_similarity,
    word_mask,
)
from dimefm.models import filip
from dimefm.models.filip import class_tokens, joined
from dimefm.runs import folder

C, P, L, E = 4, 3, 6, 5
LENGTHS = torch.tensor([[2, 4, 3], [5, 5, 5], [6, 1, 2], [3, 3, 4]])
PAIRS = frozenset({"pairs", "patches", "words"})


def rows(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prompts(padding):
    """Return the unit tokens of C * P prompts."""
    states = rows(C * P, L, E, seed=1)
    return TokenEmbeddings.from_rows(
        states, word_mask(TextTokenStates(states, LENGTHS.flatten()), padding)
    )


def in_loops(images, words, padding):
    """Return scores [n, C] of unit patches [n, places, E] and unit words [C, P, L, E], one number
    at a time.
    """
    scores = np.zeros((len(images), C))
    for number, label in itertools.product(range(len(images)), range(C)):
        means = []
        for place in range(L):
            held = [p for p in range(P) if padding == "counted" or place < LENGTHS[label, p]]
            if held:
                means.append(sum(words[label, p, place] for p in held) / P)
        length = np.sqrt(sum((mean**2).sum() for mean in means))
        best = [max(float(patch @ mean) / length for mean in means) for patch in images[number]]
        scores[number, label] = sum(best) / len(best)
    return scores


@pytest.mark.parametrize("padding", ["counted", "left out"])
def test_scores_by_tokens_are_those_of_plain_loops(padding):
    images, words = TokenEmbeddings.from_rows(rows(7, 9, E, seed=2)), prompts(padding)
    found = late_similarity(images, class_tokens(words, P))
    expected = in_loops(images.rows.numpy(), words.rows.unflatten(0, (C, P)).numpy(), padding)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("padding", ["counted", "left out"])
def test_tokens_of_a_class_have_length_1_and_do_not_depend_on_the_others(padding):
    words = prompts(padding)
    whole = class_tokens(words, P)
    torch.testing.assert_close(
        whole.rows.flatten(1).norm(dim=1), torch.ones(C, dtype=torch.float64)
    )
    starts = [slice(0, P), slice(P, C * P)]
    there = words.valid
    cut = joined(
        [
            class_tokens(TokenEmbeddings(words.rows[s], None if there is None else there[s]), P)
            for s in starts
        ]
    )
    assert torch.equal(cut.rows, whole.rows)
    assert cut.valid is whole.valid is None or torch.equal(cut.valid, whole.valid)


def test_what_padding_holds_matters_only_where_it_counts():
    changed = {}
    for padding in ("counted", "left out"):
        words = prompts(padding)
        other = words.rows.clone()
        other[torch.arange(L) >= LENGTHS.flatten()[:, None]] *= -1
        images = TokenEmbeddings.from_rows(rows(3, 9, E))
        pair = [
            late_similarity(images, class_tokens(TokenEmbeddings(each, words.valid), P))
            for each in (words.rows, other)
        ]
        changed[padding] = not torch.equal(*pair)
    assert changed == {"counted": True, "left out": False}


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ({"clip.contrastive": {}}, None),
        ({"declip.filip": {"width": 3}}, {"width": 3, "padding": "counted"}),
        (
            {"clip.contrastive": {}, "declip.filip": {"padding": "left out"}},
            {"width": 256, "padding": "left out"},
        ),
    ],
)
def test_maps_are_kept_where_a_loss_learns_both(tmp_path, losses, said):
    objective = Objective(
        [LossConfig(name, 1.0, options) for name, options in losses.items()], PAIRS
    )
    loss_modules = objective.loss_modules(
        [FeatureDims(8, 8, patches=6, words=7), FeatureDims(8, 5, patches=6, words=7)], seed=0
    )
    assert filip.keep(loss_modules, objective, tmp_path) == said
    assert [path.name for path in tmp_path.iterdir()] == (
        [] if said is None else [folder.TOKEN_MAPS]
    )
    if said:
        kept = nn.ModuleDict(
            {
                "image_mapping": nn.Linear(6, said["width"]),
                "text_mapping": nn.Linear(7, said["width"]),
            }
        )
        folder.load_weights(kept, tmp_path / folder.TOKEN_MAPS)
        assert torch.equal(kept["image_mapping"].weight, loss_modules[0]["image_mapping"].weight)


def test_a_loss_on_cached_tokens_leaves_no_maps(tmp_path):
    given = PAIRS | {"teacher", "tokens"}
    objective = Objective(
        [LossConfig("declip.filip_tokens", 1.0), LossConfig("declip.filip_pooled", 1.0)], given
    )
    loss_modules = objective.loss_modules([FeatureDims(8, 5, patches=6, words=7)], seed=0)
    assert filip.keep(loss_modules, objective, tmp_path) is None


def test_an_encoder_that_is_no_run_is_refused(tiny_teacher):
    with pytest.raises(
        ModelError,
        match=r"^ResNet-mini-64/random:0: keeps no maps of tokens.*leave --by tokens out",
    ):
        filip.load(tiny_teacher.card.name, tiny_teacher)
