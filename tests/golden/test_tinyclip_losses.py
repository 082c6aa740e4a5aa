"""TinyCLIP's affinity loss equals the released code in value and gradient, on pairs and on unpaired
rows.

``tinyclip_affinity.npz`` is a cut of the released code's golden vectors: student rows of 16 and
teacher rows of 24 dimensions, three pairs of scales, float64. Gradients are with respect to the
student's rows, un-normalised and unit, and the logarithm of its scale. The release's ``alpha`` and
``weight`` are weights of two terms here. ``aff2rank`` is case a on two processes of four rows each.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from dimefm.losses import Features, LossConfig, Objective
from dimefm.losses._primitives import info_nce, logits, similarity_kl, soft_cross_entropy

GOLDEN = np.load(Path(__file__).parent / "tinyclip_affinity.npz", allow_pickle=False)
GIVEN = frozenset({"teacher", "pairs"})
DTYPES = {"float64": torch.float64, "float32": torch.float32}
CASES = "abc"


def sides(stem, student_scale, teacher_scale, dtype):
    """Return (student, teacher, leaves) of a golden input; the leaves are image rows, text rows and
    the log of the scale.
    """
    arrays = GOLDEN[f"{stem}/raw_si"], GOLDEN[f"{stem}/raw_st"], np.log(student_scale)
    leaves = image, text, log = [
        torch.tensor(array, dtype=dtype).requires_grad_() for array in arrays
    ]
    rows = (torch.tensor(GOLDEN[f"{stem}/raw_{side}"], dtype=dtype) for side in ("ti", "tt"))
    return (
        Features.from_rows(image, text, log.exp()),
        Features.from_rows(*rows, float(teacher_scale)),
        leaves,
    )


def close(found, wanted, dtype):
    largest = max(1, np.abs(wanted).max())
    rtol, atol = (1e-9, 1e-12 * largest) if dtype == "float64" else (2e-4, 2e-6 * largest)
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_affinity_equals_the_released_code(case, dtype):
    stem = f"aff/f64_{case}"
    student, teacher, leaves = sides(
        "aff", GOLDEN[f"{stem}/student_scale"], GOLDEN[f"{stem}/teacher_scale"], DTYPES[dtype]
    )
    value = Objective([LossConfig("tinyclip.affinity", 1.0)])(student, teacher)["total"]
    value.backward()
    close(value.item(), GOLDEN[f"{stem}/loss_avg"], dtype)
    for leaf, name in zip(leaves, ("raw_image", "raw_text", "log_scale"), strict=True):
        close(leaf.grad.double().numpy(), GOLDEN[f"{stem}/grad_{name}"], dtype)


def similarities(*sides):
    """Return the similarities of images to sentences, as they are, of each side."""
    return [logits(side.image, side.text, side.logit_scale) for side in sides]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_each_direction_and_the_gradients_of_unit_rows_equal_the_released_code(case, dtype):
    stem = f"aff/f64_{case}"
    student, teacher, _ = sides(
        "aff", GOLDEN[f"{stem}/student_scale"], GOLDEN[f"{stem}/teacher_scale"], DTYPES[dtype]
    )
    rows = [rows.detach().requires_grad_() for rows in (student.image, student.text)]
    s, t = similarities(dataclasses.replace(student, image=rows[0], text=rows[1]), teacher)
    ways = [soft_cross_entropy(s, t, 1.0), soft_cross_entropy(s.T, t.T, 1.0)]
    for value, name in zip(ways, ("i2t", "t2i"), strict=True):
        close(value.item(), GOLDEN[f"{stem}/loss_{name}"], dtype)
    (sum(ways) / 2).backward()
    for found, name in zip(rows, ("image", "text"), strict=True):
        close(found.grad.double().numpy(), GOLDEN[f"{stem}/grad_norm_{name}"], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_the_teachers_shares_and_their_entropy_equal_the_released_code(case, dtype):
    """The release's cross-entropy is the divergence, which other papers take, plus this entropy."""
    stem = f"aff/f64_{case}"
    student, teacher, _ = sides(
        "aff", GOLDEN[f"{stem}/student_scale"], GOLDEN[f"{stem}/teacher_scale"], DTYPES[dtype]
    )
    s, t = similarities(student, teacher)
    for number, (ours, theirs, name) in enumerate(((s, t, "i2t"), (s.T, t.T, "t2i"))):
        entropy = soft_cross_entropy(ours, theirs, 1.0) - similarity_kl(ours, theirs, 1.0)
        largest = GOLDEN[f"{stem}/loss_{name}"]  # of the two that differ by it
        atol = 1e-12 if dtype == "float64" else 2e-6 * max(1, largest)
        np.testing.assert_allclose(
            entropy.item(), GOLDEN[f"{stem}/teacher_entropy"][number], rtol=1e-9, atol=atol
        )
        close(
            theirs.block(slice(None)).softmax(1).numpy(),
            GOLDEN[f"{stem}/teacher_prob_{name}"],
            dtype,
        )


def check_two_ranks(value, leaves, kind, gathered):
    """Compare with two ranks: the value is the mean of theirs, and each has the gradient of its
    rows twice.
    """
    value.backward()
    ranks = [f"aff2rank/rank{rank}/gwg{gathered}" for rank in (0, 1)]
    close(value.item(), np.mean([GOLDEN[f"{rank}/{kind}"] for rank in ranks]), "float64")
    for leaf, name in zip(leaves, ("gi", "gt"), strict=False):
        whole = np.concatenate(
            [GOLDEN[f"{rank}/{'h' if kind == 'hard' else ''}{name}"] for rank in ranks]
        )
        close(leaf.grad.numpy(), whole / 2, "float64")


@pytest.mark.parametrize(
    ("kind", "term"), [("soft", "tinyclip.affinity"), ("hard", "clip.contrastive")]
)
def test_a_batch_on_two_processes_equals_the_released_code_with_gradients_gathered(kind, term):
    student, teacher, leaves = sides("aff", 1 / 0.07, 50.0, torch.float64)
    check_two_ranks(
        Objective([LossConfig(term, 1.0)], GIVEN)(student, teacher)["total"], leaves, kind, 1
    )


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_without_gradients_gathered_the_release_has_another_loss(kind):
    """Its value is the same, but the rows that a rank compares its own with are constants. No term
    of ours is like that.
    """
    student, teacher, leaves = sides("aff", 1 / 0.07, 50.0, torch.float64)
    asked = (student.image, student.text.detach()), (student.text, student.image.detach())
    if kind == "soft":
        (t,) = similarities(teacher)
        ways = [
            soft_cross_entropy(logits(*rows, 1 / 0.07), way, 1.0)
            for rows, way in zip(asked, (t, t.T), strict=True)
        ]
    else:
        ways = [info_nce(*rows, 1 / 0.07) for rows in asked]
    check_two_ranks(sum(ways) / 2, leaves, kind, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_affinity_of_unpaired_rows_equals_the_released_code(dtype):
    scale = GOLDEN["affunp/scale"]
    student, teacher, leaves = sides("affunp", scale, scale, DTYPES[dtype])
    value = Objective([LossConfig("tinyclip.affinity", 1.0)])(student, teacher)["total"]
    value.backward()
    close(value.item(), (GOLDEN["affunp/loss_i2t"] + GOLDEN["affunp/loss_t2i"]) / 2, dtype)
    s, t = similarities(student, teacher)
    close(soft_cross_entropy(s, t, 1.0).item(), GOLDEN["affunp/loss_i2t"], dtype)
    close(soft_cross_entropy(s.T, t.T, 1.0).item(), GOLDEN["affunp/loss_t2i"], dtype)
    for leaf, name in zip(leaves, ("raw_image", "raw_text"), strict=False):
        close(leaf.grad.double().numpy(), GOLDEN[f"affunp/grad_{name}"], dtype)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("alpha", "weight"), [(1.0, 1.0), (0.5, 1.0), (0.25, 2.0), (0.0, 1.0)])
def test_alpha_is_a_matter_of_weights(case, alpha, weight):
    stem = f"aff/f64_{case}"
    student, teacher, _ = sides(
        "aff", GOLDEN[f"{stem}/student_scale"], GOLDEN[f"{stem}/teacher_scale"], torch.float64
    )
    shares = {"tinyclip.affinity": alpha * weight, "clip.contrastive": (1 - alpha) * weight}
    values = Objective([LossConfig(name, share) for name, share in shares.items() if share], GIVEN)(
        student, teacher
    )
    close(values["total"].item(), GOLDEN[f"{stem}/total_alpha{alpha}_w{weight}"], "float64")
    if "clip.contrastive" in values:
        close(values["clip.contrastive"].item(), GOLDEN[f"{stem}/hard_loss"], "float64")


def test_scales_of_a_recipe_stand_in_for_both():
    """Case b has 50 on both sides, as the released scripts."""
    student, teacher, leaves = sides("aff", 7.0, 3.0, torch.float64)
    options = {"teacher_scale": 50, "student_scale": 50.0}
    value = Objective([LossConfig("tinyclip.affinity", 1.0, options)])(student, teacher)["total"]
    value.backward()
    close(value.item(), GOLDEN["aff/f64_b/loss_avg"], "float64")
    close(leaves[0].grad.numpy(), GOLDEN["aff/f64_b/grad_raw_image"], "float64")
    assert leaves[2].grad is None
