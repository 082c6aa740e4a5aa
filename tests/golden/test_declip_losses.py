"""DeCLIP's, SLIP's and FILIP's single losses, heads, ring and masking equal DeCLIP's released code
in value and gradient.

``declip_losses.npz`` is a cut of the released code's golden vectors. Losses were computed in
float64, heads and ring in float32; test_declip_steps.py has whole training steps.
"""

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
    _late_interaction,
)
from dimefm.losses._heads import predictor, projector, simclr_head
from dimefm.losses._modules import Scale
from dimefm.losses._primitives import logits, nt_xent
from dimefm.losses._terms import resolve
from dimefm.train.inputs.word_masking import Draws, Masking
from tests.golden.declip import (
    DTYPES,
    GIVEN,
    GOLDEN,
    LAYERS,
    close,
    leaf,
    load,
    precise,
    ring,
    scores,
)


@pytest.mark.parametrize("dtype", DTYPES)
def test_contrast_equals_the_released_code(dtype):
    image, text, log_scale = (leaf(f"clip/{name}", dtype) for name in ("v", "t", "log_scale"))
    student = Features.from_rows(image, text, log_scale.exp())
    value = Objective([LossConfig("clip.contrastive", 1.0)], GIVEN)(student, None)["total"]
    value.backward()
    close(value, GOLDEN["clip/loss"], precise(dtype))
    found = logits(student.image, student.text, student.logit_scale)
    close(found.block(slice(None)), GOLDEN["clip/logits_i"], precise(dtype))
    close(found.T.block(slice(None)), GOLDEN["clip/logits_t"], precise(dtype))
    assert GOLDEN["clip/labels"].tolist() == list(range(len(image)))  # row i belongs to row i
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
    value = resolve("declip.simsiam", {})(
        Features.from_rows(rows, rows, 1.0), projector=Given(z1, z2), predictor=Given(p1, p2)
    )
    value.backward()
    close(value, GOLDEN["simsiam/loss"], precise(dtype))
    close(p1.grad, GOLDEN["simsiam/gp1"], precise(dtype))
    close(p2.grad, GOLDEN["simsiam/gp2"], precise(dtype))
    assert z1.grad is None
    half = resolve("declip.simsiam", {})(
        Features.from_rows(rows, rows, 1.0), projector=Given(z2, z2), predictor=Given(p1, p1)
    )
    close(-half, GOLDEN["simsiam/D_p1z2"], precise(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("kind", ["nt_xent", "nt_xent_gather"])
def test_nt_xent_equals_the_released_code(kind, temperature, dtype):
    one, other = (leaf(f"nt_xent_T{temperature}/{name}", dtype) for name in ("zi", "zj"))
    value = nt_xent(nn.functional.normalize(torch.cat([one, other]), dim=1), 1 / temperature)
    value.backward()
    stem = f"{kind}_T{temperature}"
    close(value, GOLDEN[f"{stem}/loss"], precise(dtype))
    close(one.grad, GOLDEN[f"{stem}/gi"], precise(dtype))
    close(other.grad, GOLDEN[f"{stem}/gj"], precise(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_simsiam_heads_equal_the_released_ones(dtype):
    x = [leaf(f"heads/x{view}", dtype) for view in (1, 2)]
    heads = {"proj": projector(FeatureDims(16, 16), 24), "pred": predictor(FeatureDims(16, 16), 24)}
    for name, head in heads.items():
        load(head, head_weights(name, LAYERS["projector" if name == "proj" else "predictor"]))
        head.to(DTYPES[dtype])
    for number, rows in enumerate(x, 1):
        close(heads["proj"](rows), GOLDEN[f"heads/z{number}"])
        close(heads["pred"](heads["proj"](rows)), GOLDEN[f"heads/p{number}"])
    student = Features.from_rows(torch.stack(x, 1), x[0], 1.0)
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
    head = simclr_head(FeatureDims(16, 16, hidden=16), 24, 8)
    load(head, head_weights("slip", LAYERS["predictor_sim"]))
    close(
        head.to(DTYPES[dtype])(torch.tensor(GOLDEN["heads/slip_x"], dtype=DTYPES[dtype])),
        GOLDEN["heads/slip_out"],
    )


@pytest.mark.parametrize("chunk", [_late_interaction.CHUNK, 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 4, 16, None])
def test_filip_equals_the_released_code(monkeypatch, tokens, dtype, chunk):
    """As it is since e47a5ff, with the number of chosen tokens as an option, and as it was before:
    with all.
    """
    monkeypatch.setattr(_late_interaction, "CHUNK", chunk)
    stem = "filip_all" if tokens is None else f"filip_k{tokens}"
    image, text = leaf(f"{stem}/img", dtype), leaf(f"{stem}/txt", dtype)
    factor = Scale().to(DTYPES[dtype])
    scale = "filip_k16/log_scale" if tokens is None else f"{stem}/log_scale"
    nn.init.constant_(factor.value, float(GOLDEN[scale]))
    parts = {"image_mapping": nn.Identity(), "text_mapping": nn.Identity(), "dense_scale": factor}
    words = TextTokenStates(text, torch.full((len(text),), 5))
    student = Features.from_rows(image[:, 0], text[:, 0], 1.0, patches=image, words=words)
    value = resolve("declip.filip", {})(student, **parts, tokens=tokens or 1000)
    value.backward()
    close(value, GOLDEN[f"{stem}/loss"], precise(dtype))
    for found, name in ((image, "gimg"), (text, "gtxt"), (factor.value, "gs")):
        close(found.grad, GOLDEN[f"{stem}/{name}"], precise(dtype))
    ways = scores(TokenEmbeddings.from_rows(image), TokenEmbeddings.from_rows(text), tokens or 1000)
    for found, name in zip(ways, ("li", "lt"), strict=True):
        close(factor("exp") * found, GOLDEN[f"{stem}/{name}"], precise(dtype))


@pytest.mark.parametrize("stem", ["bank_k1", "bank_k3"])
def test_the_ring_equals_the_released_one(stem):
    """Seven batches, among them a short one, through a ring of 32 rows; the first is looked up
    only.

    In ``bank_k3`` the release finds three neighbours, of which the first is ours.
    """
    found = ring(GOLDEN[f"{stem}/init"], "float32")
    for call, (update, size) in enumerate(
        zip(GOLDEN[f"{stem}/update"], GOLDEN[f"{stem}/sizes"], strict=True)
    ):
        rows = torch.tensor(GOLDEN[f"{stem}/queries"][call][:size])
        close(found.nearest(rows), GOLDEN[f"{stem}/nn_{call}"][:, 0], 1e-6)
        if update:
            found.push(rows, "released")
        close(found.rows.T, GOLDEN[f"{stem}/bank_{call}"], 1e-6)
        assert found.place == GOLDEN[f"{stem}/ptr_{call}"][0]


@pytest.mark.parametrize(
    ("stem", "wrap"), [("bank_k1", "released"), ("bank_k3", "released"), ("bank_cuda", "whole")]
)
def test_the_ring_ends_as_the_released_ones(stem, wrap):
    """Twelve rows at place 27 of 32: the release drops seven of them; its version for CUDA, unused,
    goes on at the start.
    """
    found = ring(GOLDEN["bank_cuda/init" if stem == "bank_cuda" else f"{stem}/bank_6"], "float32")
    found.place.fill_(27)
    found.push(torch.tensor(GOLDEN[f"{stem}/wrap_in"]), wrap)
    close(found.rows.T, GOLDEN[f"{stem}/wrap_bank"], 1e-6)
    assert found.place == GOLDEN[f"{stem}/wrap_ptr"][0]


def test_masking_equals_the_released_one():
    """With the draws of the release: its 40 sentences of ids below 97, begun by 97, ended by 98,
    with mask 99.
    """
    tokens, masked, replaced = (
        GOLDEN[f"mlm_mask/{name}"] for name in ("tok", "masked", "replaced")
    )
    draws = Draws(masked, replaced, GOLDEN["mlm_mask/randomed"], GOLDEN["mlm_mask/words"])
    shown, labels = draws.apply(tokens, 99)
    assert np.array_equal(shown, GOLDEN["mlm_mask/inp"])
    assert np.array_equal(labels, GOLDEN["mlm_mask/lab"])
    ours = Masking(1.0, mask=99, begin=97, end=98, vocabulary=100, words="any").draw(
        tokens, range(len(tokens))
    )
    assert not (masked & ~ours.hidden).any()
    assert ours.words.max() < 100
