"""DeCLIP's, SLIP's and FILIP's terms equal DeCLIP's released code in value and gradient.

``declip_losses.npz`` is a cut of the released code's golden vectors. Single losses were computed in float64; whole training
steps (``declip``, ``defilip``, ``defilip_aug``, ``filip``, ``slip``) in float32, with stored features in place of towers, so
that gradients are with respect to these, the scales and the heads. ``rank0of2`` and ``rank1of2`` are such steps of two
processes. There the release normalises each process's rows alone and looks up each in a ring of its own; with heads and
rings of that kind our loss of all rows is the mean of the processes', and its gradient the sum of theirs.
"""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dimefm.data.masking import Draws, Masking
from dimefm.losses import Features, Objective, Weighted, Widths, Words, _tokens
from dimefm.losses._bank import Bank
from dimefm.losses._features import resolve
from dimefm.losses._heads import predictor, projector, simclr_head
from dimefm.losses._learnt import Scale
from dimefm.losses._primitives import views_apart

GOLDEN = np.load(Path(__file__).parent / "declip_losses.npz", allow_pickle=False)
DTYPES = {"float64": torch.float64, "float32": torch.float32}
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
FILIP_METERS = {"defilip": "filip_losses", "defilip_aug": "filip_losses", "filip": "clip_dense_losses"}
OPTIONS = {
    "declip.simsiam": {"width": 24},
    "declip.nns": {"size": 40},
    "declip.filip": {"width": 8},
    "declip.simclr": {"width": 24, "dim": 8},
}
LAYERS = {  # the release's names of layers, and the places of ours
    "projector": ("linear1", "bn1", None, "linear2", "bn2", None, "linear3", "bn3"),
    "predictor": ("linear1", "bn1", None, "layer2"),
    "predictor_sim": ("linear1", "bn1", None, "linear2", "bn2", None, "linear3"),
}
PARTS = {"predictor_sim": "simclr_head", "text_label_predictor": "word_head", "logit_scale_dense": "dense_scale"}
GIVEN = frozenset({"pairs", "views", "hidden", "words", "masked", "patches"})


def close(found, wanted, tolerance=1e-5):
    """Compare with errors relative to the largest value wanted."""
    found = found.detach().double().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
    assert found.size == np.size(wanted)
    np.testing.assert_allclose(
        found.reshape(np.shape(wanted)), wanted, rtol=0, atol=tolerance * max(np.abs(wanted).max(), 1e-6)
    )


def precise(dtype):
    """Return the tolerance for golden values in float64."""
    return 1e-9 if dtype == "float64" else 1e-5


def leaf(key, dtype):
    """Return a golden array as a leaf."""
    return torch.tensor(GOLDEN[key], dtype=DTYPES[dtype]).requires_grad_()


def theirs(stem, kind):
    """Return {our name of a learnt weight: golden array} of the ``kind`` "param" or "pgrad" under a stem."""
    found = {}
    start = f"{stem}/{kind}" + ("." if kind else "")
    for key in GOLDEN.files:
        module, *rest = key.removeprefix(start).split(".")
        if not key.startswith(start) or module in ("logit_scale", "visual"):
            continue
        if module in LAYERS and rest[0] not in LAYERS[module]:
            continue  # a layer that the release builds and does not use
        ours = [PARTS.get(module, module)]
        ours += [str(LAYERS[module].index(rest[0])), rest[1]] if module in LAYERS else rest or ["value"]
        found[".".join(ours)] = GOLDEN[key]
    return found


def load(module, weights):
    """Give a module golden weights, each of its own."""
    assert set(module.state_dict()) == set(weights)
    module.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})


class Step:
    """Golden features of one training step, of one process or several, as leaves by the release's names."""

    def __init__(self, stems, dtype):
        self.stems, self.dtype = stems, dtype
        self.leaves = {}
        for stem in stems:
            keys = [key for key in GOLDEN.files if key.startswith(f"{stem}/") and f"{key}.grad" in GOLDEN.files]
            self.leaves |= {key: leaf(key, dtype) for key in keys}
        self.log_scale = torch.tensor(GOLDEN[f"{stems[0]}/param.logit_scale"][0], dtype=DTYPES[dtype]).requires_grad_()

    def rows(self, name):
        """Return the rows of all processes, or None where the step has no such features."""
        keys = [f"{stem}/{name}" for stem in self.stems]
        if keys[0] not in GOLDEN.files:
            return None
        return torch.cat([self.leaves.get(key, torch.tensor(GOLDEN[key], dtype=DTYPES[self.dtype])) for key in keys])

    def words(self, name):
        states = self.rows(f"{name}.words")
        if states is None:
            return None
        labels = torch.cat([torch.tensor(GOLDEN[f"{stem}/{name}.labels"]) for stem in self.stems])
        return Words(states, torch.full((len(states),), states.shape[1]), labels)

    def features(self, **other):
        """Return the student's features as the trainer makes them."""

        def grid(*names):
            rows = [rows for rows in map(self.rows, names) if rows is not None]
            return rows[0] if len(rows) == 1 else torch.stack(rows, 1) if rows else None

        base = grid("base.feat")
        more = {"hidden": grid("img1.pre", "img2.pre"), "patches": self.rows("img1.dense"), "words": self.words("txt")}
        image = grid("img1.feat", "img2.feat") if base is None else base
        return Features.of(image, grid("txt.feat", "txt_aug.feat"), self.log_scale.exp(), **{**more, **other})

    def parts(self, objective):
        """Return the learnt parts with golden weights and, of the first process, ring."""
        stem, dtype = self.stems[0], DTYPES[self.dtype]
        words = self.rows("txt.words")
        widths = Widths(16, 16, hidden=16, patches=10, words=12, vocabulary=29)
        assert words is None or words.shape[2] == widths.words
        found = objective.learnt([widths], seed=0)[0].to(dtype)
        weights = {key: value for key, value in theirs(stem, "param").items() if key in found.state_dict()}
        if f"{stem}/bank_before" in GOLDEN.files and "bank" in found:
            weights |= {"bank.rows": GOLDEN[f"{stem}/bank_before"].T, "bank.place": np.array(0)}
        load(found, weights)
        return found

    def check_gradients(self, parts):
        """Compare the gradients of features, scale and learnt parts with the release's, which are sums over processes."""
        for key, value in self.leaves.items():
            close(torch.zeros_like(value) if value.grad is None else value.grad, GOLDEN[f"{key}.grad"])
        slope = GOLDEN[f"{self.stems[0]}/pgrad.logit_scale"]
        close(torch.zeros(1) if self.log_scale.grad is None else self.log_scale.grad, slope)
        learnt = {key: value.grad for key, value in parts.named_parameters()}
        wanted = theirs(self.stems[0], "pgrad")
        assert set(learnt) == set(wanted)
        for key, value in learnt.items():
            whole = wanted[key]
            if not key.endswith("bias") or np.abs(whole).max() > 1e-6:  # a bias before a normalisation has none but rounding
                close(value, whole)
            else:
                assert value.abs().max() < 1e-6


def objective_of(weights):
    """Return the objective of a mix, with the widths of the golden heads."""
    return Objective([Weighted(name, weight, OPTIONS.get(name, {})) for name, weight in weights.items()], GIVEN)


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
    patches, words = map(step.rows, ("img1.dense", "img2.dense")), map(step.words, ("txt", "txt_aug"))
    own = {name: parts[name] for name in resolve("declip.filip", {}).learns}
    pairs = [step.features(patches=a, words=b) for a, b in itertools.product(patches, words)]
    filip = sum(resolve("declip.filip", {})(pair, **own) for pair in pairs) / 4
    values = objective_of(DECLIP)(step.features(), None, parts)
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
        return torch.cat([ring.nearest(own) for ring, own in zip(self.rings, rows.chunk(2), strict=True)])

    def push(self, rows, wrap):
        for ring, own in zip(self.rings, rows.chunk(2), strict=True):
            ring.push(own, wrap)


def ring(before, dtype):
    """Return a ring with golden rows [D, size]."""
    found = Bank(before.shape[1], before.shape[0])
    load(found, {"rows": before.T, "place": np.array(0)})
    return found.to(DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["declip", "filip", "slip"])
def test_a_step_of_two_processes_equals_the_released_one(name, dtype):
    """Both processes hide 20 words: with unequal numbers the mean over all words is not the mean of the processes' means."""
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_contrast_equals_the_released_code(dtype):
    image, text, log_scale = (leaf(f"clip/{name}", dtype) for name in ("v", "t", "log_scale"))
    value = Objective([Weighted("clip.contrastive", 1.0)], GIVEN)(Features.of(image, text, log_scale.exp()), None)["total"]
    value.backward()
    close(value, GOLDEN["clip/loss"], precise(dtype))
    for found, name in ((image, "gv"), (text, "gt"), (log_scale, "gs")):
        close(found.grad, GOLDEN[f"clip/{name}"], precise(dtype))


class Given(nn.Module):
    """A head that gives the next of known outputs."""

    def __init__(self, *outputs):
        super().__init__()
        self.outputs = iter(outputs)

    def forward(self, rows):
        return next(self.outputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_simsiam_equals_the_released_code(dtype):
    p1, z1, p2, z2 = (leaf(f"simsiam/{name}", dtype) for name in ("p1", "z1", "p2", "z2"))
    rows = torch.stack([z1, z2], 1)
    value = resolve("declip.simsiam", {})(Features.of(rows, rows, 1.0), projector=Given(z1, z2), predictor=Given(p1, p2))
    value.backward()
    close(value, GOLDEN["simsiam/loss"], precise(dtype))
    close(p1.grad, GOLDEN["simsiam/gp1"], precise(dtype))
    close(p2.grad, GOLDEN["simsiam/gp2"], precise(dtype))
    assert z1.grad is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("kind", ["nt_xent", "nt_xent_gather"])
def test_nt_xent_equals_the_released_code(kind, temperature, dtype):
    one, other = (leaf(f"nt_xent_T{temperature}/{name}", dtype) for name in ("zi", "zj"))
    value = views_apart(nn.functional.normalize(torch.cat([one, other]), dim=1), 1 / temperature)
    value.backward()
    stem = f"{kind}_T{temperature}"
    close(value, GOLDEN[f"{stem}/loss"], precise(dtype))
    close(one.grad, GOLDEN[f"{stem}/gi"], precise(dtype))
    close(other.grad, GOLDEN[f"{stem}/gj"], precise(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_simsiam_heads_equal_the_released_ones(dtype):
    x = [leaf(f"heads/x{view}", dtype) for view in (1, 2)]
    heads = {"proj": projector(Widths(16, 16), 24), "pred": predictor(Widths(16, 16), 24)}
    for name, head in heads.items():
        load(head, head_weights(name, LAYERS["projector" if name == "proj" else "predictor"]))
        head.to(DTYPES[dtype])
    for number, rows in enumerate(x, 1):
        close(heads["proj"](rows), GOLDEN[f"heads/z{number}"])
        close(heads["pred"](heads["proj"](rows)), GOLDEN[f"heads/p{number}"])
    student = Features.of(torch.stack(x, 1), x[0], 1.0)
    value = resolve("declip.simsiam", {})(student, projector=heads["proj"], predictor=heads["pred"])
    value.backward()
    close(value, GOLDEN["heads/loss"])
    for number, rows in enumerate(x, 1):
        close(rows.grad, GOLDEN[f"heads/gx{number}"])


def head_weights(name, layers):
    """Return the golden weights of a head by our names."""
    found = {}
    for key in GOLDEN.files:
        head, _, leaf = key.removeprefix("heads/").partition("/")
        layer, _, weight = leaf.partition(".")
        if head == name and layer in layers:
            found[f"{layers.index(layer)}.{weight}"] = GOLDEN[key]
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_simclr_head_equals_the_released_one(dtype):
    head = simclr_head(Widths(16, 16, hidden=16), 24, 8)
    load(head, head_weights("slip", LAYERS["predictor_sim"]))
    close(head.to(DTYPES[dtype])(torch.tensor(GOLDEN["heads/slip_x"], dtype=DTYPES[dtype])), GOLDEN["heads/slip_out"])


@pytest.mark.parametrize("chunk", [_tokens.CHUNK, 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 4, 16, None])
def test_filip_equals_the_released_code(monkeypatch, tokens, dtype, chunk):
    """As it is since e47a5ff, with the number of chosen tokens as an option, and as it was before: with all."""
    monkeypatch.setattr(_tokens, "CHUNK", chunk)
    stem = "filip_all" if tokens is None else f"filip_k{tokens}"
    image, text = leaf(f"{stem}/img", dtype), leaf(f"{stem}/txt", dtype)
    factor = Scale().to(DTYPES[dtype])
    nn.init.constant_(factor.value, float(GOLDEN["filip_k16/log_scale"]))
    parts = {"image_mapping": nn.Identity(), "text_mapping": nn.Identity(), "dense_scale": factor}
    words = Words(text, torch.full((len(text),), 5))
    student = Features.of(image[:, 0], text[:, 0], 1.0, patches=image, words=words)
    value = resolve("declip.filip", {})(student, **parts, tokens=tokens or 1000)
    value.backward()
    close(value, GOLDEN[f"{stem}/loss"], precise(dtype))
    for found, name in ((image, "gimg"), (text, "gtxt"), (factor.value, "gs")):
        close(found.grad, GOLDEN[f"{stem}/{name}"], precise(dtype))


def test_the_ring_equals_the_released_one():
    """Seven batches, among them a short one, through a ring of 32 rows; the first is looked up only."""
    found = ring(GOLDEN["bank_k1/init"], "float32")
    for call, (update, size) in enumerate(zip(GOLDEN["bank_k1/update"], GOLDEN["bank_k1/sizes"], strict=True)):
        rows = torch.tensor(GOLDEN["bank_k1/queries"][call][:size])
        close(found.nearest(rows), GOLDEN[f"bank_k1/nn_{call}"][:, 0], 1e-6)
        if update:
            found.push(rows, "released")
        close(found.rows.T, GOLDEN[f"bank_k1/bank_{call}"], 1e-6)
        assert found.place == GOLDEN[f"bank_k1/ptr_{call}"][0]


@pytest.mark.parametrize(("stem", "wrap"), [("bank_k1", "released"), ("bank_cuda", "whole")])
def test_the_ring_ends_as_the_released_ones(stem, wrap):
    """Twelve rows at place 27 of 32: the release drops seven of them; its version for CUDA, unused, goes on at the start."""
    found = ring(GOLDEN["bank_k1/bank_6" if stem == "bank_k1" else "bank_cuda/init"], "float32")
    found.place.fill_(27)
    found.push(torch.tensor(GOLDEN[f"{stem}/wrap_in"]), wrap)
    close(found.rows.T, GOLDEN[f"{stem}/wrap_bank"], 1e-6)
    assert found.place == GOLDEN[f"{stem}/wrap_ptr"][0]


def test_masking_equals_the_released_one():
    """With the draws of the release: its 40 sentences of ids below 97, begun by 97, ended by 98, with mask 99."""
    tokens, masked, replaced = (GOLDEN[f"mlm_mask/{name}"] for name in ("tok", "masked", "replaced"))
    draws = Draws(masked, replaced, GOLDEN["mlm_mask/randomed"], GOLDEN["mlm_mask/words"])
    shown, labels = draws.apply(tokens, 99)
    assert np.array_equal(shown, GOLDEN["mlm_mask/inp"])
    assert np.array_equal(labels, GOLDEN["mlm_mask/lab"])
    ours = Masking(1.0, mask=99, begin=97, end=98, vocabulary=100, words="any").draw(tokens, range(len(tokens)))
    assert not (masked & ~ours.hidden).any()
    assert ours.words.max() < 100
