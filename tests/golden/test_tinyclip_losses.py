"""TinyCLIP's affinity loss equals the released code in value and gradient, on pairs and on unpaired rows.

``tinyclip_affinity.npz`` is a cut of the released code's golden vectors: student rows of 16 and teacher rows of 24
dimensions, three pairs of scales, float64. Gradients are with respect to the student's un-normalised rows and the logarithm
of its scale. The release's ``alpha`` and ``weight`` are weights of two terms here.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from dimefm.losses import Features, Objective, Weighted

GOLDEN = np.load(Path(__file__).parent / "tinyclip_affinity.npz", allow_pickle=False)
GIVEN = frozenset({"teacher", "pairs"})
DTYPES = {"float64": torch.float64, "float32": torch.float32}
CASES = "abc"


def sides(stem, student_scale, teacher_scale, dtype):
    """Return (student, teacher, leaves) of a golden input; the leaves are image rows, text rows and the log of the scale."""
    arrays = GOLDEN[f"{stem}/raw_si"], GOLDEN[f"{stem}/raw_st"], np.log(student_scale)
    leaves = image, text, log = [torch.tensor(array, dtype=dtype).requires_grad_() for array in arrays]
    rows = (torch.tensor(GOLDEN[f"{stem}/raw_{side}"], dtype=dtype) for side in ("ti", "tt"))
    return Features.of(image, text, log.exp()), Features.of(*rows, float(teacher_scale)), leaves


def close(found, wanted, dtype):
    largest = max(1, np.abs(wanted).max())
    rtol, atol = (1e-9, 1e-12 * largest) if dtype == "float64" else (2e-4, 2e-6 * largest)
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_affinity_equals_the_released_code(case, dtype):
    stem = f"aff/f64_{case}"
    student, teacher, leaves = sides("aff", GOLDEN[f"{stem}/student_scale"], GOLDEN[f"{stem}/teacher_scale"], DTYPES[dtype])
    value = Objective([Weighted("tinyclip.affinity", 1.0)])(student, teacher)["total"]
    value.backward()
    close(value.item(), GOLDEN[f"{stem}/loss_avg"], dtype)
    for leaf, name in zip(leaves, ("raw_image", "raw_text", "log_scale"), strict=True):
        close(leaf.grad.double().numpy(), GOLDEN[f"{stem}/grad_{name}"], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_affinity_of_unpaired_rows_equals_the_released_code(dtype):
    scale = GOLDEN["affunp/scale"]
    student, teacher, leaves = sides("affunp", scale, scale, DTYPES[dtype])
    value = Objective([Weighted("tinyclip.affinity", 1.0)])(student, teacher)["total"]
    value.backward()
    close(value.item(), (GOLDEN["affunp/loss_i2t"] + GOLDEN["affunp/loss_t2i"]) / 2, dtype)
    for leaf, name in zip(leaves, ("raw_image", "raw_text"), strict=False):
        close(leaf.grad.double().numpy(), GOLDEN[f"affunp/grad_{name}"], dtype)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("alpha", "weight"), [(1.0, 1.0), (0.5, 1.0), (0.25, 2.0), (0.0, 1.0)])
def test_alpha_is_a_matter_of_weights(case, alpha, weight):
    stem = f"aff/f64_{case}"
    student, teacher, _ = sides("aff", GOLDEN[f"{stem}/student_scale"], GOLDEN[f"{stem}/teacher_scale"], torch.float64)
    shares = {"tinyclip.affinity": alpha * weight, "clip.contrastive": (1 - alpha) * weight}
    values = Objective([Weighted(name, share) for name, share in shares.items() if share], GIVEN)(student, teacher)
    close(values["total"].item(), GOLDEN[f"{stem}/total_alpha{alpha}_w{weight}"], "float64")
    if "clip.contrastive" in values:
        close(values["clip.contrastive"].item(), GOLDEN[f"{stem}/hard_loss"], "float64")


def test_scales_of_a_recipe_stand_in_for_both():
    """Case b has 50 on both sides, as the released scripts."""
    student, teacher, leaves = sides("aff", 7.0, 3.0, torch.float64)
    options = {"teacher_scale": 50, "student_scale": 50.0}
    value = Objective([Weighted("tinyclip.affinity", 1.0, options)])(student, teacher)["total"]
    value.backward()
    close(value.item(), GOLDEN["aff/f64_b/loss_avg"], "float64")
    close(leaves[0].grad.numpy(), GOLDEN["aff/f64_b/grad_raw_image"], "float64")
    assert leaves[2].grad is None
