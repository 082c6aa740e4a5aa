"""What CLIP-KD's, open_clip's and SigLIP's terms promise beyond golden values: their corrections,
one tower, schedules.
"""

import itertools

import pytest
import torch
from open_clip.loss import SigLipLoss
from torch.nn import functional as F

from dimefm.losses import (
    FeatureDims,
    Features,
    LossConfig,
    Objective,
    _chunked,
    clip_kd,
    dime,
    siglip,
)
from dimefm.losses._modules import Scale, fusion, loss_modules, projection, scale

SAME = {"image_projection": torch.nn.Identity(), "text_projection": torch.nn.Identity()}


def rows(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def sides():
    """Return (student, teacher) of 6 pairs of 8 dimensions; the student's leaves require
    gradients.
    """
    student = Features.from_rows(
        rows(1, 6, 8).requires_grad_(), rows(2, 6, 8).requires_grad_(), torch.tensor(9.0).double()
    )
    return student, Features.from_rows(rows(3, 6, 8), rows(4, 6, 8), 30.0)


def test_gd_of_the_paper_compares_what_autograd_finds(sides):
    student, teacher = sides

    def slopes(side):
        image, text = (x.detach().requires_grad_() for x in (side.image, side.text))
        found = []
        for queries, keys in ((image, text), (text, image)):
            loss = F.cross_entropy(side.logit_scale * queries @ keys.T, torch.arange(6))
            found += torch.autograd.grad(loss, (queries, keys))
        return found

    wanted = sum(F.mse_loss(a, b) for a, b in zip(slopes(student), slopes(teacher), strict=True))
    torch.testing.assert_close(clip_kd.gd(student, teacher, temperature="paper", **SAME), wanted)
    assert clip_kd.gd(student, teacher, **SAME) != wanted


@pytest.mark.parametrize("name", ["icl", "cross_kd"])
def test_the_exponential_scale_is_that_of_clip(sides, name):
    part = Scale().double()
    term = getattr(clip_kd, name)
    found = term(*sides, cross_scale=part, scale="exp", **SAME)
    fixed = term(*sides, cross_scale=lambda kind: 1 / torch.tensor(0.07).double(), **SAME)
    torch.testing.assert_close(found, fixed, rtol=1e-6, atol=0)
    with torch.no_grad():
        part.value.fill_(9.0)
    assert part("exp") == 100
    assert part("raw") == 9


def test_a_student_of_one_tower_has_no_text_side(sides):
    """Its text rows are the teacher's: FD is the distance of images, CRD half of DIME-FM's VL, ICL
    half has no gradient.
    """
    _, teacher = sides
    image = rows(5, 6, 8).requires_grad_()
    student = teacher.with_image(image)
    torch.testing.assert_close(
        clip_kd.fd(student, teacher, **SAME), F.mse_loss(student.image, teacher.image)
    )
    torch.testing.assert_close(clip_kd.crd(student, teacher), dime.vl(student, teacher) / 2)
    part = Scale().double()
    clip_kd.icl(student, teacher, cross_scale=part, **SAME).backward()
    half = (
        F.cross_entropy(
            part.value.detach() * F.normalize(image, dim=1) @ teacher.text.T, torch.arange(6)
        )
        / 2
    )
    torch.testing.assert_close(image.grad, torch.autograd.grad(half, image)[0])


def test_projections_see_the_rows_before_they_are_made_unit(sides):
    """A bias makes the length of a row count, as in the release."""
    _, teacher = sides
    parts = {
        "image_projection": torch.nn.Linear(8, 8).double(),
        "text_projection": torch.nn.Identity(),
    }
    found = [
        clip_kd.fd(Features.from_rows(k * rows(1, 6, 8), rows(2, 6, 8), 9.0), teacher, **parts)
        for k in (1, 3)
    ]
    assert abs(found[0] - found[1]) > 1e-4


@pytest.mark.parametrize("chunk", [1, 12, 1000])
def test_the_sigmoid_loss_is_open_clips(sides, monkeypatch, chunk):
    monkeypatch.setattr(_chunked, "CHUNK", chunk)
    monkeypatch.setattr(_chunked, "LEAST", 1)
    image, text, scale, bias = rows(1, 6, 8), rows(2, 6, 8), torch.tensor(10.0), torch.tensor(-10.0)
    leaves = [x.double().requires_grad_() for x in (image, text, scale, bias)]
    ours = siglip.sigmoid(Features.from_rows(*leaves))
    theirs = SigLipLoss()(*(F.normalize(x, dim=1) for x in leaves[:2]), *leaves[2:])
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_the_sigmoid_loss_wants_pairs():
    with pytest.raises(ValueError, match="6 queries and 5 keys; expected pairs"):
        siglip.sigmoid(Features.from_rows(rows(1, 6, 8), rows(2, 5, 8), 10.0, -10.0))


def test_terms_share_parts_and_each_teacher_has_its_own():
    objective = Objective(
        [LossConfig("clip_kd.icl", 1.0), LossConfig("clip_kd.fd", 2000.0)],
        frozenset({"teacher", "pairs"}),
    )
    found = objective.loss_modules([FeatureDims(8, 12), FeatureDims(8, 8)], seed=0)
    assert [sorted(parts) for parts in found] == [
        ["cross_scale", "image_projection", "text_projection"]
    ] * 2
    assert tuple(found[0]["image_projection"].weight.shape) == (12, 8)
    assert not list(found[1]["image_projection"].parameters())
    assert fusion(FeatureDims(8, 12)).in_features == 24
    assert not list(
        Objective([LossConfig("dime.vl", 1.0)]).loss_modules([FeatureDims(8, 8)], seed=0)
    )


def test_a_part_is_made_in_one_way():
    def term():
        """Do nothing."""

    def other():
        """Do nothing."""

    term.uses_modules, other.uses_modules = {"cross_scale": scale}, {"cross_scale": projection}
    with pytest.raises(ValueError, match="'cross_scale' is made in two ways"):
        loss_modules([term, other], [FeatureDims(8, 8)], 0)


def test_weights_follow_their_schedule(sides):
    linear = LossConfig("dime.vl", 2.0, schedule="linear")
    cosine = LossConfig("dime.vl", 0.0, schedule="cosine", end=4.0)
    assert [linear.at(x) for x in (0, 0.25, 1)] == [2.0, 1.5, 0.0]
    assert [cosine.at(x) for x in (0, 0.5, 1)] == pytest.approx([0, 2, 4])
    way = [cosine.at(x / 8) for x in range(9)]
    assert all(a < b for a, b in itertools.pairwise(way))
    assert LossConfig("dime.vl", 3.0).at(0.7) == 3.0
    values = Objective(
        [
            LossConfig.from_settings(
                "dime.vl", {"weight": 2, "schedule": "linear", "end": 1, "temperature": 2.0}
            )
        ]
    )(*sides, progress=0.5)
    torch.testing.assert_close(values["total"], 1.5 * dime.vl(*sides, temperature=2.0))
