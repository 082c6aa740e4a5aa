"""VL and its directions, P-VL, UDIST and their totals equal DIME-FM's released code in value and
gradient.

``dimefm_losses.npz`` is a cut of the released code's golden vectors (10 cases): values, sizes of
gradients, and the gradients in every 16th column, all float64; of two cases the similarities too.
The inputs are drawn again from each case's seed, as the golden file's own maker drew them; their
sums are stored so that a generator that draws otherwise is told apart from a wrong loss. Gradients
are with respect to the student's un-normalised rows, through ``Features.from_rows``.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dimefm.losses import Features, LossConfig, Objective, _chunked
from dimefm.losses._primitives import logits, similarity_kl

GOLDEN = np.load(Path(__file__).parent / "dimefm_losses.npz", allow_pickle=False)
WHOLE = Path(__file__).parents[3] / "shared" / "golden" / "dimefm_losses.npz"
CASES = json.loads(str(GOLDEN["meta_json"]))["cases"]
STEP = 16
TERMS = ("i2t", "t2i", "vl", "pvl", "udist", "total", "total_vl_only")
DTYPES = {"float64": torch.float64, "float32": torch.float32}


def _unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def draw(case):
    """Return (student [B, D], teacher images [B, D], teacher sentences [N, D]) of a case,
    float64.
    """
    b, n, d, kind = case["B"], case["N"], case["D"], case["kind"]
    rng = np.random.default_rng(case["seed"])
    if kind == "gauss":
        return rng.standard_normal((b, d)), rng.standard_normal((b, d)), rng.standard_normal((n, d))
    shared, noise = {"tight": (0.95, 12), "clip": (0.55, 4), "same": (0.55, 0)}[kind]
    image_mean, text_mean = _unit(rng.standard_normal(d)), _unit(rng.standard_normal(d))
    own, length = _unit(rng.standard_normal((b, d))), rng.uniform(8, 12, (b, 1))
    image = length * (np.sqrt(shared) * image_mean + np.sqrt(1 - shared) * own)
    own, length = _unit(rng.standard_normal((n, d))), rng.uniform(6.4, 9.6, (n, 1))
    centre = 0.35 * image_mean + np.sqrt(1 - 0.35**2) * text_mean
    text = length * (np.sqrt(0.6) * centre + np.sqrt(0.4) * own)
    if kind == "same":
        return image.copy(), image, text
    return (
        rng.uniform(0.5, 2, (b, 1)) * image + noise * _unit(rng.standard_normal((b, d))),
        image,
        text,
    )


def objective(case, name):
    weights = {term: case[f"w_{term}"] for term in ("vl", "pvl", "udist")}
    if name == "total_vl_only":
        weights = {"vl": weights["vl"]}
    elif name != "total":
        weights = {name: 1.0}
    terms = [
        LossConfig(f"dime.{term}", weight, {"temperature": case[f"t_{term}"]})
        for term, weight in weights.items()
        if weight
    ]
    return Objective(terms)


def one_way(case, name, *sides):
    """Return the half of VL that compares images ("i2t") or sentences."""
    found = [logits(side.image, side.text, side.logit_scale) for side in sides]
    return similarity_kl(*(found if name == "i2t" else [side.T for side in found]), case["t_vl"])


def run(case, name, dtype, rows=None):
    """Return (value, gradient [B, D]) of one golden quantity by our code."""
    student, image, text = (torch.tensor(a, dtype=dtype) for a in rows or draw(case))
    student.requires_grad_()
    teacher = Features.from_rows(image, text, float(case["logit_scale"]))
    sides = teacher.with_image(student), teacher
    total = (
        one_way(case, name, *sides)
        if name in ("i2t", "t2i")
        else objective(case, name)(*sides)["total"]
    )
    total.backward()
    return total.detach().double().numpy(), student.grad.double().numpy()


def compare(dtype, value, gradient, golden_value, golden_gradient, largest):
    if dtype == "float64":
        np.testing.assert_allclose(value, golden_value, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(gradient, golden_gradient, rtol=1e-9, atol=1e-12)
    else:
        np.testing.assert_allclose(value, golden_value, rtol=0, atol=1e-5)
        np.testing.assert_allclose(gradient, golden_gradient, rtol=0, atol=1e-4 * largest + 1e-7)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case['case']}")
def test_the_inputs_are_the_ones_that_the_released_code_saw(case):
    sums = [array.sum() for array in draw(case)]
    np.testing.assert_allclose(sums, GOLDEN[f"c{case['case']:02d}__inputs"], rtol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case['case']}")
def test_equals_the_released_code(case, name, dtype):
    prefix = f"c{case['case']:02d}__{name}__"
    value, gradient = run(case, name, DTYPES[dtype])
    size, largest = GOLDEN[prefix + "size"]
    compare(
        dtype, value, gradient[:, ::STEP], GOLDEN[prefix + "loss"], GOLDEN[prefix + "grad"], largest
    )
    np.testing.assert_allclose(
        np.linalg.norm(gradient), size, rtol=1e-9 if dtype == "float64" else 1e-3, atol=2e-5
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case['case']}")
def test_equals_the_released_code_in_chunks(monkeypatch, case, dtype):
    monkeypatch.setattr(_chunked, "CHUNK", 1)
    monkeypatch.setattr(_chunked, "LEAST", 7)
    for name in TERMS:
        value, gradient = run(case, name, DTYPES[dtype])
        prefix = f"c{case['case']:02d}__{name}__"
        _, largest = GOLDEN[prefix + "size"]
        compare(
            dtype,
            value,
            gradient[:, ::STEP],
            GOLDEN[prefix + "loss"],
            GOLDEN[prefix + "grad"],
            largest,
        )


@pytest.mark.skipif(
    not WHOLE.exists(),
    reason="the whole golden file (../shared/golden) is not beside this checkout",
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case['case']}")
def test_equals_the_released_code_in_every_column(case, dtype):
    with np.load(WHOLE, allow_pickle=False) as whole:
        stem = f"c{case['case']:02d}__"
        rows = [
            whole[f"{stem}{dtype}__{what}"] for what in ("student", "teacher_image", "teacher_text")
        ]
        for ours, theirs in zip(draw(case), rows, strict=True):
            np.testing.assert_allclose(
                ours.astype(dtype), theirs, rtol=1e-6 if dtype == "float32" else 1e-12, atol=1e-13
            )
        for name in TERMS:
            value, gradient = run(case, name, DTYPES[dtype], rows)
            golden = whole[f"{stem}float64__grad_{name}"]
            compare(
                dtype,
                value,
                gradient,
                whole[f"{stem}float64__loss_{name}"],
                golden,
                abs(golden).max(),
            )


@pytest.mark.parametrize("number", [0, 2])
def test_similarities_equal_the_released_ones(number):
    student, image, text = map(torch.tensor, draw(CASES[number]))
    for side, rows in (("student", student), ("teacher", image)):
        given = Features.from_rows(rows, text, float(CASES[number]["logit_scale"]))
        found = logits(given.image, given.text, given.logit_scale)
        for way, similarity in (("i2t", found), ("t2i", found.T)):
            golden = GOLDEN[f"c{number:02d}__logits_{side}_{way}"]
            np.testing.assert_allclose(
                similarity.block(slice(None)).numpy(), golden, rtol=1e-9, atol=1e-12
            )


@pytest.mark.parametrize(
    ("case", "names"), [(4, ("t2i", "pvl", "udist")), (6, TERMS), (8, ("i2t",))]
)
def test_degenerate_cases_are_exactly_zero(case, names):
    for name in names:
        value, gradient = run(CASES[case], name, torch.float64)
        assert abs(value) < 1e-12
        assert abs(gradient).max() < 1e-12
