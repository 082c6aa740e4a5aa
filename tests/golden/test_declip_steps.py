"""Whole training steps of DeCLIP, DeFILIP, FILIP and SLIP equal DeCLIP's released code in value and
gradient.

In ``declip_losses.npz`` they are in float32, with stored features in place of towers, so that
gradients are with respect to these, the scales and the heads. ``rank0of2`` and ``rank1of2`` are
steps of two processes. There the release normalises each process's rows alone and looks up each in
a ring of its own; with heads and rings of that kind our loss of all rows is the mean of the
processes', and its gradient the sum of theirs.
"""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from dimefm.losses import (
    FeatureDims,
    Features,
    LossConfig,
    Objective,
    TextTokenStates,
    TokenEmbeddings,
)
from dimefm.losses._terms import resolve
from tests.golden.declip import DTYPES, GIVEN, GOLDEN, LAYERS, close, leaf, load, ring, scores

DECLIP = {"clip.contrastive": 0.4, "declip.nns": 0.2, "declip.simsiam": 0.2, "declip.mlm": 0.2}
STEPS = {
    "declip": DECLIP,
    "defilip": {**DECLIP, "declip.filip": 0.2},
    "filip": {"declip.filip": 1.0},
    "slip": {"clip.contrastive": 1.0, "declip.simclr": 1.0},
}
METERS = {
    "clip.contrastive": "clip_losses",
    "declip.nns": "clip_nn_text_losses",
    "declip.simsiam": "simsiam_losses",
    "declip.mlm": "text_mlm_losses",
    "declip.simclr": "simclr_losses",
    "total": "losses",
}
FILIP_METERS = {
    "defilip": "filip_losses",
    "defilip_aug": "filip_losses",
    "filip": "clip_dense_losses",
}
OPTIONS = {
    "declip.simsiam": {"width": 24},
    "declip.nns": {"size": 40},
    "declip.filip": {"width": 8},
    "declip.simclr": {"width": 24, "dim": 8},
}
PARTS = {
    "predictor_sim": "simclr_head",
    "text_label_predictor": "word_head",
    "logit_scale_dense": "dense_scale",
}


def theirs(stem, kind):
    """Return {our name of a learnt weight: golden array} of the ``kind`` "param" or "pgrad" under a
    stem.
    """
    found = {}
    start = f"{stem}/{kind}" + ("." if kind else "")
    for key in GOLDEN.files:
        module, *rest = key.removeprefix(start).split(".")
        if not key.startswith(start) or module in ("logit_scale", "visual"):
            continue
        if module in LAYERS and rest[0] not in LAYERS[module]:
            continue  # a layer that the release builds and does not use
        ours = [PARTS.get(module, module)]
        ours += (
            [str(LAYERS[module].index(rest[0])), rest[1]] if module in LAYERS else rest or ["value"]
        )
        found[".".join(ours)] = GOLDEN[key]
    return found


class Step:
    """Golden features of one training step, of one process or several, as leaves by the release's
    names.
    """

    def __init__(self, stems, dtype):
        self.stems, self.dtype = stems, dtype
        self.leaves = {}
        for stem in stems:
            keys = [
                key
                for key in GOLDEN.files
                if key.startswith(f"{stem}/") and f"{key}.grad" in GOLDEN.files
            ]
            self.leaves |= {key: leaf(key, dtype) for key in keys}
        self.log_scale = torch.tensor(
            GOLDEN[f"{stems[0]}/param.logit_scale"][0], dtype=DTYPES[dtype]
        ).requires_grad_()

    def rows(self, name):
        """Return the rows of all processes, or None where the step has no such features."""
        keys = [f"{stem}/{name}" for stem in self.stems]
        if keys[0] not in GOLDEN.files:
            return None
        return torch.cat(
            [
                self.leaves.get(key, torch.tensor(GOLDEN[key], dtype=DTYPES[self.dtype]))
                for key in keys
            ]
        )

    def words(self, name):
        states = self.rows(f"{name}.words")
        if states is None:
            return None
        labels = torch.cat([torch.tensor(GOLDEN[f"{stem}/{name}.labels"]) for stem in self.stems])
        return TextTokenStates(states, torch.full((len(states),), states.shape[1]), labels)

    def features(self, **other):
        """Return the student's features as the trainer makes them."""

        def grid(*names):
            rows = [rows for rows in map(self.rows, names) if rows is not None]
            return rows[0] if len(rows) == 1 else torch.stack(rows, 1) if rows else None

        base = grid("base.feat")
        more = {
            "hidden": grid("img1.pre", "img2.pre"),
            "patches": self.rows("img1.dense"),
            "words": self.words("txt"),
        }
        image = grid("img1.feat", "img2.feat") if base is None else base
        return Features.from_rows(
            image, grid("txt.feat", "txt_aug.feat"), self.log_scale.exp(), **{**more, **other}
        )

    def parts(self, objective):
        """Return the learnt parts with golden weights and, of the first process, ring."""
        stem, dtype = self.stems[0], DTYPES[self.dtype]
        words = self.rows("txt.words")
        widths = FeatureDims(16, 16, hidden=16, patches=10, words=12, vocabulary=29)
        assert words is None or words.shape[2] == widths.words
        found = objective.loss_modules([widths], seed=0)[0].to(dtype)
        weights = {
            key: value for key, value in theirs(stem, "param").items() if key in found.state_dict()
        }
        if f"{stem}/bank_before" in GOLDEN.files and "bank" in found:
            weights |= {"bank.rows": GOLDEN[f"{stem}/bank_before"].T, "bank.place": np.array(0)}
        load(found, weights)
        return found

    def check_gradients(self, parts):
        """Compare the gradients of features, scale and learnt parts with the release's, which are
        sums over processes.
        """
        for key, value in self.leaves.items():
            close(
                torch.zeros_like(value) if value.grad is None else value.grad, GOLDEN[f"{key}.grad"]
            )
        slope = GOLDEN[f"{self.stems[0]}/pgrad.logit_scale"]
        close(torch.zeros(1) if self.log_scale.grad is None else self.log_scale.grad, slope)
        loss_modules = {key: value.grad for key, value in parts.named_parameters()}
        wanted = theirs(self.stems[0], "pgrad")
        assert set(loss_modules) == set(wanted)
        for key, value in loss_modules.items():
            whole = wanted[key]
            if (
                not key.endswith("bias") or np.abs(whole).max() > 1e-6
            ):  # a bias before a normalisation has none but rounding
                close(value, whole)
            else:
                assert value.abs().max() < 1e-6


def objective_of(weights):
    """Return the objective of a mix, with the widths of the golden heads."""
    return Objective(
        [LossConfig(name, weight, OPTIONS.get(name, {})) for name, weight in weights.items()], GIVEN
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STEPS)
def test_a_step_equals_the_released_one(name, dtype):
    step, objective = Step([name], dtype), objective_of(STEPS[name])
    parts = step.parts(objective)
    values = objective(step.features(), None, parts)
    values["total"].backward()
    meters = {**METERS, "declip.filip": FILIP_METERS.get(name)}
    for term, value in values.items():
        close(value, GOLDEN[f"{name}/meter.{meters[term]}"])
    step.check_gradients(parts)
    if "bank" in parts and f"{name}/bank_after" in GOLDEN.files:
        close(parts["bank"].rows.T, GOLDEN[f"{name}/bank_after"])
        assert parts["bank"].place == GOLDEN[f"{name}/bank_ptr_after"][0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_with_all_four_pairs_of_tokens_equals_the_released_one(dtype):
    """The release's ``dense_aug``: FILIP is the mean over views and captions."""
    step, objective = Step(["defilip_aug"], dtype), objective_of(STEPS["defilip"])
    parts = step.parts(objective)
    patches, words = (
        map(step.rows, ("img1.dense", "img2.dense")),
        map(step.words, ("txt", "txt_aug")),
    )
    own = {name: parts[name] for name in resolve("declip.filip", {}).uses_modules}
    pairs = [step.features(patches=a, words=b) for a, b in itertools.product(patches, words)]
    filip = sum(resolve("declip.filip", {})(pair, **own) for pair in pairs) / 4
    values = objective_of(DECLIP)(step.features(), None, parts)
    for term in DECLIP:
        # simsiam is a mean of cosines near 0, -0.0016: float32 sums of two threads differ by 3e-8
        close(values[term], GOLDEN[f"defilip_aug/meter.{METERS[term]}"], 5e-5)
    close(filip, GOLDEN["defilip_aug/meter.filip_losses"])
    total = values["total"] + 0.2 * filip
    close(total, GOLDEN["defilip_aug/meter.losses"])
    total.backward()
    step.check_gradients(parts)


class EachProcess(nn.Module):
    """A head that sees each process's rows alone, as in the release."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, rows):
        return torch.cat([self.head(own) for own in rows.chunk(2)])


class Rings(nn.Module):
    """A ring for each process, as in the release."""

    def __init__(self, rings):
        super().__init__()
        self.rings = nn.ModuleList(rings)

    def nearest(self, rows):
        return torch.cat(
            [each.nearest(own) for each, own in zip(self.rings, rows.chunk(2), strict=True)]
        )

    def push(self, rows, wrap):
        for each, own in zip(self.rings, rows.chunk(2), strict=True):
            each.push(own, wrap)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["declip", "filip", "slip"])
def test_a_step_of_two_processes_equals_the_released_one(name, dtype):
    """Both processes hide 20 words: with unequal numbers the mean over all words is not the mean of
    the processes' means.
    """
    stems = [f"rank{rank}of2/{name}" for rank in (0, 1)]
    step, objective = Step(stems, dtype), objective_of(STEPS[name])
    parts = step.parts(objective)
    given = nn.ModuleDict(dict(parts))
    for part in {"projector", "predictor", "simclr_head"} & set(parts):
        given[part] = EachProcess(parts[part])
    if "bank" in parts:
        given["bank"] = Rings([ring(GOLDEN[f"{stem}/bank_before"], dtype) for stem in stems])
    values = objective(step.features(), None, given)
    values["total"].backward()
    meters = {**METERS, "declip.filip": FILIP_METERS.get(name)}
    for term, value in values.items():
        close(value, np.mean([GOLDEN[f"{stem}/meter.{meters[term]}"] for stem in stems]))
    step.check_gradients(parts)
    for stem, found in zip(stems, given["bank"].rings if "bank" in parts else [], strict=False):
        close(found.rows.T, GOLDEN[f"{stem}/bank_after"])
        assert found.place == GOLDEN[f"{stem}/bank_ptr_after"][0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stems", [["filip"], ["rank0of2/filip", "rank1of2/filip"]], ids=len)
def test_tokens_and_their_scores_of_a_step_equal_the_released_ones(stems, dtype):
    """The release computes CLIP's own loss there too, and gives it no weight."""
    step, objective = Step(stems, dtype), objective_of(STEPS["filip"])
    parts, student = step.parts(objective), step.features()
    tokens = parts["image_mapping"](student.patches), parts["text_mapping"](student.words.states)
    ways = scores(*map(TokenEmbeddings.from_rows, tokens), 16)
    given = dict(zip(("dense_img", "dense_txt"), tokens, strict=True))
    given |= {
        f"dense_logits_{way}": parts["dense_scale"]("exp") * found
        for way, found in zip("it", ways, strict=True)
    }
    for name, found in given.items():
        close(found, np.concatenate([GOLDEN[f"{stem}/{name}"] for stem in stems]))
    value = Objective([LossConfig("clip.contrastive", 1.0)], GIVEN)(student, None)["total"]
    close(value, np.mean([GOLDEN[f"{stem}/meter.clip_losses"] for stem in stems]))
