"""What DeCLIP's terms keep beyond the released values: options that mend, forms on cached features,
and their rings.
"""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dimefm.errors import RecipeError
from dimefm.losses import (
    FeatureDims,
    Features,
    LossConfig,
    Objective,
    TextTokenStates,
    _chunked,
    _late_interaction,
    resolve,
)
from dimefm.losses._late_interaction import TokenEmbeddings, late_similarity
from dimefm.losses._modules import Scale
from dimefm.losses._primitives import cross_entropy, info_nce, nt_xent
from dimefm.losses._queue import Bank

B, D, P, L = 6, 8, 5, 7


def rows(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def term(name):
    return resolve(f"declip.{name}", {})


def student(views=2, captions=2):
    """Return features of a student with all that terms ask for."""
    lengths = torch.tensor([3, 7, 2, 5, 4, 6])
    words = TextTokenStates(rows(B, L, D, seed=3), lengths)
    image, text = rows(B, views, D, seed=1), rows(B, captions, D, seed=2)
    return Features.from_rows(
        image, text, 10.0, patches=rows(B, P, D, seed=4), words=words, hidden=image
    )


def ring(content):
    """Return a ring of unit rows [size, D]."""
    found = Bank(*content.shape).double()
    found.rows.copy_(F.normalize(content, dim=1))
    return found


def image_to(neighbours, image, scale=10.0):
    """Return InfoNCE of each view against neighbours, by the book."""
    losses = [
        F.cross_entropy(scale * F.normalize(view, dim=1) @ neighbours.T, torch.arange(B))
        for view in image.unbind(1)
    ]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("ways", ["one", "both"])
@pytest.mark.parametrize("repeated", ["counted", "left out"])
def test_a_graph_and_a_ring_with_the_same_neighbours_are_one_loss(ways, repeated):
    """Sentences 1 and 4, nearly alike, share a neighbour."""
    side = student(captions=1)
    text = side.text.clone()
    text[4] = F.normalize(text[1] + 1e-6, dim=0)
    side = dataclasses.replace(side, text=text, captions=None)
    known = ring(rows(32, D, seed=9))
    near = known.nearest(text)
    assert torch.equal(near[1], near[4])
    teacher = Features(side.image, text, 20.0, neighbor_text=near)
    options = {"ways": ways, "repeated": repeated}
    graph = term("nns_graph")(side, teacher, image_projection=nn.Identity(), **options)
    cached = term("nns_cached")(
        side, teacher, teacher_bank=ring(known.rows), image_projection=nn.Identity(), **options
    )
    own = term("nns")(side, None, bank=ring(known.rows), **options)
    torch.testing.assert_close(graph, cached, rtol=1e-12, atol=0)
    torch.testing.assert_close(graph, own, rtol=1e-12, atol=0)
    if repeated == "counted":
        back = [
            F.cross_entropy(10 * near @ F.normalize(view, dim=1).T, torch.arange(B))
            for view in side.views.unbind(1)
        ]
        forth = image_to(near, side.views)
        torch.testing.assert_close(graph, forth if ways == "one" else (forth + sum(back) / 2) / 2)


@pytest.mark.parametrize("chunk", [None, 2])
def test_twins_are_no_negatives(monkeypatch, chunk):
    if chunk:
        monkeypatch.setattr(_chunked, "CHUNK", 1)
        monkeypatch.setattr(_chunked, "LEAST", chunk)
    queries = F.normalize(rows(B, D), dim=1).requires_grad_()
    keys = F.normalize(rows(B, D, seed=1), dim=1)
    duplicate_ids = torch.tensor([0, 1, 0, 2, 1, 0])
    found = 10 * queries @ keys.T
    same = (duplicate_ids[:, None] == duplicate_ids) & ~torch.eye(B, dtype=torch.bool)
    masked = found.masked_fill(same, -math.inf)
    wanted = F.cross_entropy(masked, torch.arange(B)) + F.cross_entropy(masked.T, torch.arange(B))
    value = info_nce(queries, keys, 10.0, both_ways=True, duplicate_ids=duplicate_ids)
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(loss, queries)[0] for loss in (value, wanted)))


def test_views_and_labels_do_not_depend_on_chunks(monkeypatch):
    one, labels = F.normalize(rows(2 * B, D), dim=1).requires_grad_(), torch.arange(2 * B) % 5
    weights, bias = rows(5, D, seed=1), rows(5, seed=2)

    def values():
        losses = nt_xent(one, 4.0), cross_entropy(one, weights, bias, labels)
        return losses + tuple(torch.autograd.grad(loss, one)[0] for loss in losses)

    whole = values()
    torch.testing.assert_close(whole[1], F.cross_entropy(one @ weights.T + bias, labels))
    monkeypatch.setattr(_chunked, "CHUNK", 1)
    monkeypatch.setattr(_chunked, "LEAST", 5)
    torch.testing.assert_close(values(), whole)


def test_a_ring_is_filled_after_it_was_asked_the_last_caption_first():
    known, side = ring(rows(32, D, seed=9)), student()
    before = known.rows.clone()
    wanted = [
        image_to(known.nearest(caption), side.views)
        for caption in F.normalize(side.captions, dim=-1).unbind(1)
    ]
    value = term("nns")(side, None, bank=known)
    torch.testing.assert_close(value, sum(wanted) / 2)
    torch.testing.assert_close(
        known.rows[: 2 * B], F.normalize(side.captions.flip(1).transpose(0, 1).flatten(0, 1), dim=1)
    )
    assert torch.equal(known.rows[2 * B :], before[2 * B :])
    assert known.place == 2 * B


def test_a_ring_takes_nothing_in_when_it_is_not_trained():
    known = ring(rows(32, D, seed=9)).eval()
    before = known.rows.clone()
    term("nns")(student(), None, bank=known)
    assert torch.equal(known.rows, before)
    assert known.place == 0


def test_a_ring_of_the_teacher_holds_its_sentences():
    known, side = ring(rows(16, 12, seed=9)), student(captions=1)
    teacher = Features.from_rows(rows(B, 12, seed=5), rows(B, 12, seed=6), 20.0)
    mapping = nn.Linear(D, 12).double()
    value = term("nns_cached")(side, teacher, teacher_bank=known, image_projection=mapping)
    near = ring(rows(16, 12, seed=9)).nearest(teacher.text)
    torch.testing.assert_close(value, image_to(near, mapping(side.views)))
    torch.testing.assert_close(known.rows[:B], teacher.text)


@pytest.mark.parametrize(("wrap", "place"), [("whole", 8), ("released", 0)])
def test_more_rows_than_a_ring_has_places(wrap, place):
    known, many = Bank(10, D).double(), F.normalize(rows(18, D), dim=1)
    known.push(many, wrap)
    assert known.place == place
    torch.testing.assert_close(
        known.rows, many[:10] if wrap == "released" else torch.cat([many[10:], many[8:10]])
    )


def test_a_ring_comes_back_from_a_checkpoint():
    objective = Objective([LossConfig("declip.nns", 1.0, {"size": 16})], frozenset({"pairs"}))
    first, again = (
        objective.loss_modules([FeatureDims(D, D)], seed)[0].double() for seed in (1, 2)
    )
    objective(student(), None, first)
    again.load_state_dict(first.state_dict())
    side = student(captions=1)
    torch.testing.assert_close(
        objective(side, None, again), objective(side, None, first), rtol=0, atol=0
    )
    assert first["bank"].rows.shape == (16, D)


def test_three_views_are_three_pairs_of_simsiam():
    side = student(views=3)
    parts = {"projector": nn.Linear(D, 4).double(), "predictor": nn.Linear(4, 4).double()}
    pairs = [
        dataclasses.replace(side, views=side.views[:, list(pair)])
        for pair in ((0, 1), (0, 2), (1, 2))
    ]
    wanted = sum(term("simsiam")(pair, None, **parts) for pair in pairs) / 3
    torch.testing.assert_close(term("simsiam")(side, None, **parts), wanted)


def test_simclr_compares_the_two_last_views():
    side = student(views=3)
    last = dataclasses.replace(side, hidden=side.hidden[:, 1:])
    head = nn.Identity()
    value = term("simclr")(side, None, simclr_head=head)
    torch.testing.assert_close(value, term("simclr")(last, None, simclr_head=head), rtol=0, atol=0)
    assert value != term("simclr")(
        dataclasses.replace(side, hidden=side.hidden[:, :2]), None, simclr_head=head
    )


def test_no_hidden_word_is_no_loss_and_no_nan():
    states = rows(B, L, D).requires_grad_()
    head = nn.Linear(D, 11).double()
    words = TextTokenStates(states, torch.full((B,), L), torch.full((B, L), -100))
    value = term("mlm")(dataclasses.replace(student(), words=words), None, word_head=head)
    value.backward()
    assert value == 0
    assert not any(found.grad.any() for found in (states, head.weight, head.bias))


def filip(side, **options):
    parts = {
        "image_mapping": nn.Identity(),
        "text_mapping": nn.Identity(),
        "dense_scale": Scale().double(),
    }
    return term("filip")(side, None, **parts, **options)


def test_padding_that_is_left_out_does_nothing():
    side = student()
    there = torch.arange(L) < side.words.lengths[:, None]
    other = dataclasses.replace(
        side.words, states=side.words.states.where(there[..., None], rows(B, L, D, seed=8))
    )
    changed = dataclasses.replace(side, words=other)
    for tokens in (3, 1000):
        options = {"padding": "left out", "tokens": tokens}
        torch.testing.assert_close(
            filip(side, **options), filip(changed, **options), rtol=1e-12, atol=0
        )
        assert filip(side, tokens=tokens) != filip(changed, tokens=tokens)


@pytest.mark.parametrize("padding", ["counted", "left out"])
def test_chosen_tokens_from_a_cache_are_as_good_as_live_ones(padding):
    side = student()
    if padding == "counted":
        side = dataclasses.replace(
            side, words=dataclasses.replace(side.words, lengths=torch.full((B,), L))
        )
    there = torch.arange(L) < side.words.lengths[:, None]
    image, text = (
        TokenEmbeddings.from_rows(side.patches),
        TokenEmbeddings.from_rows(side.words.states, there),
    )
    patches, words = image.top(text, 3), text.top(image, 3)
    cached = TextTokenStates(words.rows, words.valid.sum(1))
    teacher = Features(side.image, side.text, 20.0, patches=patches.rows, words=cached)
    parts = {
        "patch_projection": nn.Identity(),
        "word_projection": nn.Identity(),
        "token_scale": Scale().double(),
    }
    value = term("filip_tokens")(side, teacher, **parts, padding=padding)
    torch.testing.assert_close(value, filip(side, padding=padding, tokens=3), rtol=1e-12, atol=0)


def test_pooled_rows_score_the_best_patch():
    side, mapping = student(), nn.Linear(D, 12).double()
    teacher = Features.from_rows(rows(B, 12, seed=5), rows(9, 12, seed=6), 20.0)
    patches = F.normalize(mapping(side.patches), dim=-1)
    found = 5.0 * torch.stack([(patches[i] @ teacher.text.T).amax(0) for i in range(B)])
    wanted = 5.0 * teacher.image @ teacher.text.T
    both = zip((found, found.T), (wanted, wanted.T), strict=True)
    kl = sum((t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1).mean() for s, t in both)
    value = term("filip_pooled")(side, teacher, patch_projection=mapping, temperature=4.0)
    torch.testing.assert_close(value, kl / 2)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_late_similarities_do_not_depend_on_chunks(monkeypatch, pool):
    queries = rows(B, P, D).requires_grad_()
    there = torch.arange(P) < torch.tensor([1, 5, 2, 4, 3, 5])[:, None]
    keys = TokenEmbeddings.from_rows(
        rows(4, 3, D, seed=1), torch.arange(3) < torch.tensor([1, 3, 2, 3])[:, None]
    )

    def values():
        found = late_similarity(TokenEmbeddings.from_rows(queries, there), keys, pool=pool)
        return found, torch.autograd.grad((found * rows(B, 4, seed=2)).sum(), queries)[0]

    whole = values()
    first = F.normalize(queries[2, :2], dim=1) @ keys.rows[2, :2].T
    best = first.amax(1)
    torch.testing.assert_close(whole[0][2, 2], best.max() if pool == "max" else best.mean())
    monkeypatch.setattr(_late_interaction, "CHUNK", 1)
    torch.testing.assert_close(values(), whole)


def test_a_count_is_whole():
    with pytest.raises(RecipeError, match=r"size is 8.5; expected a whole number, e.g. 65536"):
        resolve("declip.nns", {"size": 8.5})
