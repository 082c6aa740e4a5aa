"""CLIP-KD's losses and open_clip's distillation equal the released code in value and gradient.

``clip_kd_losses.npz`` is a cut of the released code's golden vectors (7 cases, float64): values,
gradients of scalars, and gradients of matrices, of the larger cases every so many columns with the
norm of the whole; and ``ddp``, a batch on two processes. Gradients are with respect to the
student's un-normalised rows, its scale and the learnt parts. ``gd_fixed`` is the released function
at 1 / scale, and the release can run ``afd`` at equal widths only. The same released code in
float32 is within the tolerances of float32 here.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dimefm.losses import FeatureDims, Features, LossConfig, Objective, _chunked, clip_kd
from dimefm.losses._modules import project_to_teacher

GOLDEN = np.load(Path(__file__).parent / "clip_kd_losses.npz", allow_pickle=False)
WHOLE = Path(__file__).parents[3] / "shared" / "golden" / "clip_kd_losses.npz"
META = json.loads(str(GOLDEN["meta_json"]))
CASES = META["cases"]
GIVEN = frozenset({"teacher", "pairs"})
MIX = (
    ("clip.contrastive", 1.0),
    ("clip_kd.crd", 1.0),
    ("clip_kd.icl", 1.0),
    ("clip_kd.fd", 2000.0),
)
LOSSES = {
    "task": [LossConfig("clip.contrastive", 1.0)],
    "crd": [LossConfig("clip_kd.crd", 1.0)],
    "icl": [LossConfig("clip_kd.icl", 1.0)],
    "cross_kd": [LossConfig("clip_kd.cross_kd", 1.0)],
    "fd": [LossConfig("clip_kd.fd", 1.0)],
    "gd": [LossConfig("clip_kd.gd", 1.0)],
    "gd_fixed": [LossConfig("clip_kd.gd", 1.0, {"temperature": "paper"})],
    "afd": [LossConfig("clip_kd.afd", 1.0)],
    "clipkd": [LossConfig(name, weight) for name, weight in MIX],
    "oc_contrastive": [LossConfig("clip.contrastive", 1.0)],
    "oc_distill": [LossConfig("open_clip.distill", 1.0)],
    "oc_total": [LossConfig("clip.contrastive", 1.0), LossConfig("open_clip.distill", 1.0)],
}
PARTS = {  # the release's names of learnt parts, and ours
    "visual_proj": "image_projection",
    "text_proj": "text_projection",
    "visual_fusion_proj": "image_fusion",
    "text_fusion_proj": "text_fusion",
    "cross_logit_scale": "cross_scale.value",
    "fusion_logit_scale": "fusion_scale.value",
}
DTYPES = {"float64": torch.float64, "float32": torch.float32}


def ours(name):
    """Return our name of a learnt parameter of the release."""
    module, _, leaf = name.partition(".")
    return PARTS[module] + (f".{leaf}" if leaf else "")


def prepared(golden, case, name, dtype):
    """Return (leaves by the release's names, student, teacher, objective, learnt parts) of one
    golden quantity.
    """
    rows = {
        k: torch.tensor(golden[f"{case}/in/{k}"], dtype=dtype)
        for k in ("img", "txt", "t_img", "t_txt", "s_scale")
    }
    leaves = {k: rows[k].requires_grad_() for k in ("img", "txt", "s_scale")}
    objective = Objective(LOSSES[name], GIVEN)
    found = objective.loss_modules(
        [FeatureDims(rows["img"].shape[1], rows["t_img"].shape[1])], seed=0
    )
    parts = found[0].to(dtype) if len(found) else None
    if parts is not None:
        weights = {
            ours(k.split("/w/")[1]): golden[k] for k in golden.files if k.startswith(f"{case}/w/")
        }
        parts.load_state_dict(
            {key: torch.tensor(weights[key], dtype=dtype) for key in parts.state_dict()}
        )
    teacher = Features.from_rows(rows["t_img"], rows["t_txt"], float(golden[f"{case}/in/t_scale"]))
    return leaves, Features.from_rows(*leaves.values()), teacher, objective, parts


def run(golden, case, name, dtype):
    """Return (value, {leaf: gradient}) of one golden quantity by our code; leaves have the
    release's names.
    """
    leaves, student, teacher, objective, parts = prepared(golden, case, name, dtype)
    total = objective(student, teacher, parts)["total"]
    total.backward()
    loss_modules = {} if parts is None else dict(parts.named_parameters())
    theirs = {
        ours(k): k
        for k in (*PARTS, *(f"{m}.{p}" for m in PARTS for p in ("weight", "bias")))
        if ours(k) in loss_modules
    }
    leaves |= {theirs[key]: parameter for key, parameter in loss_modules.items()}
    return total.item(), {
        key: np.zeros(x.shape) if x.grad is None else x.grad.double().numpy()
        for key, x in leaves.items()
    }


def compare(found, wanted, dtype):
    largest = np.abs(wanted).max()
    rtol, atol = (
        (1e-9, 1e-12 * max(1, largest)) if dtype == "float64" else (2e-4, 2e-6 * max(1, largest))
    )
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol)


def compare_cut(whole, golden, key, dtype, step):
    """Compare an array with a golden one that has every ``step``th column, and the norm of the
    whole beside it.
    """
    compare(whole[:, ::step] if whole.ndim == 2 else whole, golden[key], dtype)
    if whole.ndim == 2 and step > 1:
        compare(np.linalg.norm(whole), golden[f"{key}/norm"], dtype)


def check(golden, case, name, dtype, step=1):
    """Compare a value and all its gradients; the gradients that the release has are those that we
    have.
    """
    stem = f"{case}/f64/{name}"
    value, gradients = run(golden, case, name, DTYPES[dtype])
    compare(value, golden[stem], dtype)
    wanted = {
        k.split("/g_")[1]
        for k in golden.files
        if k.startswith(f"{stem}/g_") and not k.endswith("/norm")
    }
    assert wanted <= set(gradients)
    assert all(not gradients[key].any() for key in set(gradients) - wanted)
    for key in wanted:
        compare_cut(gradients[key], golden, f"{stem}/g_{key}", dtype, step)


HELD = [(case, name) for case in CASES for name in LOSSES if f"{case}/f64/{name}" in GOLDEN.files]


def test_every_loss_and_every_case_is_held():
    assert {case for case, _ in HELD} == set(CASES)
    assert {name for _, name in HELD} == set(LOSSES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("case", "name"), HELD)
def test_equals_the_released_code(case, name, dtype):
    check(GOLDEN, case, name, dtype, META["steps"].get(case, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_released_code_in_chunks(monkeypatch, case, dtype):
    monkeypatch.setattr(_chunked, "CHUNK", 1)
    monkeypatch.setattr(_chunked, "LEAST", 3)
    for name in (name for held, name in HELD if held == case):
        check(GOLDEN, case, name, dtype, META["steps"].get(case, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_gradients_that_gd_compares_equal_the_released_ones(case, dtype):
    """Of InfoNCE by queries ("p") and keys ("k"), at 1 / scale as released, of the teacher and of
    the student.
    """
    _, student, teacher, _, parts = prepared(GOLDEN, case, "gd", DTYPES[dtype])
    given = {
        "t": (teacher.image, teacher.text, teacher),
        "s": (*project_to_teacher(student, **parts), student),
    }
    for side, (image, text, features) in given.items():
        for (p, rows), (k, others) in itertools.permutations((("img", image), ("txt", text))):
            slopes = clip_kd._slopes(rows, others, 1 / features.logit_scale)
            for name, found in zip((f"p_{p}", f"k_{k}"), slopes, strict=True):
                stem = f"{case}/f64/get_grad/{side}_{name}"
                compare_cut(
                    found.detach().double().numpy(), GOLDEN, stem, dtype, META["steps"].get(case, 1)
                )


def test_a_batch_on_two_processes_equals_the_released_code():
    """With --gather-with-grad ("gwg1") each of two ranks has the gradient of its rows twice; the
    average of both is ours.

    Without it each rank has the gradient of its own rows, once, and of scales and maps: averaged,
    half of ours by the rows.
    """
    golden = {key: GOLDEN[key] for key in GOLDEN.files if key.startswith("ddp/")}
    scales = {"ddp/in/s_scale": np.array(1 / 0.07), "ddp/in/t_scale": np.array(100.0)}
    value, gradients = run(Held(golden | scales), "ddp", "clipkd", torch.float64)
    compare(value, golden["ddp/single/clipkd"], "float64")
    for key in (k.split("/g_")[1] for k in golden if k.startswith("ddp/single/g_")):
        compare(gradients[key], golden[f"ddp/single/g_{key}"], "float64")
        for gathered in (0, 1):
            ranks = [golden[f"ddp/gwg{gathered}/rank{rank}/g_{key}"] for rank in (0, 1)]
            whole = (
                np.concatenate(ranks) / (1 + gathered) if key in ("img", "txt") else sum(ranks) / 2
            )
            compare(gradients[key], whole, "float64")
    for gathered, rank in itertools.product((0, 1), (0, 1)):
        compare(value, golden[f"ddp/gwg{gathered}/rank{rank}/clipkd"], "float64")


@pytest.mark.skipif(
    not WHOLE.exists(),
    reason="the whole golden file (../shared/golden) is not beside this checkout",
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_released_code_in_every_column(case, dtype):
    with np.load(WHOLE, allow_pickle=False) as file:
        golden = Held({key: file[key] for key in file.files if key.startswith(f"{case}/")})
    for name in LOSSES:
        if f"{case}/f64/{name}" in golden.files:
            check(golden, case, name, dtype)


class Held(dict):
    """Arrays by key, with the names that a file of arrays has."""

    @property
    def files(self):
        return list(self)
