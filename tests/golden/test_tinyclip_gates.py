"""Gates on channels, heads and hidden units are those of TinyCLIP's released code.

``tinyclip_gates.npz`` is a cut of the released code's golden vectors: gates and expected sizes in
float64, and a small CLIP of random weights that computes through gates in float32.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from dimefm.models import open_clip
from dimefm.models.weights.inheritance import gates as gating
from dimefm.models.weights.inheritance import sparsity
from dimefm.models.weights.inheritance.cut import cut
from dimefm.models.weights.inheritance.gated import Gates
from dimefm.models.weights.inheritance.gates import Structure, TowerGates
from dimefm.models.weights.inheritance.sparsity import Whole

HERE = Path(__file__).parent
GOLDEN = np.load(HERE / "tinyclip_gates.npz", allow_pickle=False)
INPUTS = np.load(HERE / "tinyclip_pruned.npz", allow_pickle=False)
EXACT = {"rtol": 1e-11, "atol": 1e-13}
SHAPES = {
    "l0/hhi/": Whole(width=32, layers=3, heads=4, mlp=128),
    "l0total/img_": Whole(width=32, layers=3, heads=4, mlp=128),
    "l0total/txt_": Whole(width=16, layers=2, heads=2, mlp=64),
    "l0opt/img_": Whole(width=64, layers=3, heads=4, mlp=256),
    "l0opt/txt_": Whole(width=32, layers=2, heads=2, mlp=128),
}
PARTS = {"hidden": "hidden", "heads": "heads", "mlp": "intermediate"}
MODEL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 40, "width": 32, "layers": 2, "heads": 2},
}
TOWERS = {"image": "img", "text": "txt"}


def golden(key):
    return torch.tensor(GOLDEN[key])


def tower_gates(whole):
    """Return float64 gates of a tower of this shape."""
    heads = (whole.heads,) * whole.layers
    mlp = (whole.mlp,) * whole.layers
    return TowerGates(Structure(whole.width, 8, heads, mlp)).double()


def released(key, name):
    """Return the released value for a group of gates: ``key`` has a {} for the released part."""
    part, _, layer = name.partition("_")
    value = golden(key.format(PARTS[part]))
    return value[int(layer)].flatten() if layer else value


def fill(gates, key):
    """Give a tower's gates the released alphas."""
    for name, alpha in gates.alpha.items():
        alpha.data.copy_(released(key, name))
    return gates


@pytest.fixture
def gates():
    return fill(tower_gates(SHAPES["l0/hhi/"]), "l0/hhi/loga_{}")


def test_drawn_and_settled_gates_are_the_released_ones(gates):
    for name, alpha in gates.alpha.items():
        scores = gating.open_probability(alpha)
        torch.testing.assert_close(scores.data, released("l0/hhi/score_{}", name), **EXACT)
        gates.noise[name] = released("l0/hhi/sample_u_{}", name)
    closed = golden("l0/hhi/cdf_qz_0.0")
    opened = torch.stack([gating.open_probability(gates.alpha[f"heads_{i}"]) for i in range(3)])
    torch.testing.assert_close(1 - opened.data, closed, **EXACT)
    for training, key in ((True, "l0/hhi/sample_z_{}"), (False, "l0/hhi/eval_z_{}")):
        masks = gates.train(training).masks()
        torch.testing.assert_close(masks.hidden.data, released(key, "hidden"), **EXACT)
        for layer in range(3):
            for part in ("heads", "mlp"):
                mask = getattr(masks, part)[layer].data
                torch.testing.assert_close(mask, released(key, f"{part}_{layer}"), **EXACT)


def test_expected_sizes_are_the_released_ones(gates):
    whole = SHAPES["l0/hhi/"]
    per_channel, per_head, per_unit = golden("l0/hhi/params_per_dim").tolist()
    assert whole.prunable == int(golden("l0/hhi/prunable_model_size"))
    assert whole.prunable == int(golden("l0/hhi/full_model_size"))
    assert whole.attention // whole.heads == per_head
    assert (2 * whole.width + 1, 12 * whole.width) == (per_unit, per_channel)
    number = sparsity.left(whole, *gates.open_counts())
    torch.testing.assert_close(number.data, golden("l0/hhi/num_params_hiddenflag"), **EXACT)
    fresh = tower_gates(whole)
    first = gating.open_probability(fresh.alpha["hidden"])[0]
    torch.testing.assert_close(first.data, golden("l0/hhi/init_score"), **EXACT)
    number = sparsity.left(whole, *fresh.open_counts())
    torch.testing.assert_close(number.data, golden("l0/hhi/init_num_params"), **EXACT)
    assert golden("l0/hhi/clamp").tolist() == [gating.LEAST_ALPHA, gating.LARGEST_ALPHA]


@pytest.mark.parametrize("step", [0, 250, 1000, 5000])
def test_the_penalty_and_its_gradients_are_the_released_ones(gates, step):
    key = f"l0/hhi/lagr_{step}/"
    multipliers = torch.full((2,), 10.0, dtype=torch.float64, requires_grad=True)
    wanted = sparsity.target(step, start=0.25, end=0.75, warmup=1000)
    share = sparsity.expected_removed([SHAPES["l0/hhi/"]], [gates])
    loss = sparsity.penalty(share, wanted, multipliers)
    loss.backward()
    assert wanted == float(golden(key + "target"))
    torch.testing.assert_close(share.data, golden(key + "expected_sparsity"), **EXACT)
    torch.testing.assert_close(loss.data, golden(key + "loss"), **EXACT)
    for name, alpha in gates.alpha.items():
        torch.testing.assert_close(alpha.grad, released(key + "grad_{}_loga", name), **EXACT)
    for number in (0, 1):
        gradient = golden(f"{key}grad_lambda_{number + 1}")
        torch.testing.assert_close(multipliers.grad[number], gradient, **EXACT)


@pytest.mark.parametrize("step", [0, 400, 3000])
@pytest.mark.parametrize("joint", [True, False])
def test_two_towers_have_the_released_penalty(step, joint):
    wholes = [SHAPES["l0total/img_"], SHAPES["l0total/txt_"]]
    towers = []
    multipliers = torch.nn.Parameter(golden("l0total/lambdas_img_txt").double())
    for whole, tower in zip(wholes, ("img", "txt"), strict=True):
        assert whole.prunable == int(golden(f"l0total/{tower}_prunable"))
        towers.append(fill(tower_gates(whole), f"l0total/{tower}_loga_{{}}"))
    wanted = sparsity.target(step, start=0.0, end=0.25, warmup=1000)
    loss, _ = sparsity.towers_penalty(wholes, towers, list(multipliers), [wanted, wanted], joint)
    loss.backward()
    key = f"l0total/step{step}_flag{int(joint)}/"
    torch.testing.assert_close(loss.data, golden(key + "loss_minus_base"), **EXACT)
    for gates, tower in zip(towers, ("img", "txt"), strict=True):
        for name, alpha in gates.alpha.items():
            wanted_gradient = released(f"{key}{tower}_grad_{{}}_loga", name)
            torch.testing.assert_close(alpha.grad, wanted_gradient, **EXACT)
        number = 0 if tower == "img" else 1
        for which in (0, 1):
            gradient = golden(f"{key}{tower}_grad_lambda_{which + 1}")
            torch.testing.assert_close(multipliers.grad[number][which], gradient, **EXACT)


def test_three_steps_of_gates_and_multipliers_are_the_released_ones():
    """The release recorded the gates after the third step under the names of all three."""
    wholes = [SHAPES["l0opt/img_"], SHAPES["l0opt/txt_"]]
    towers = [tower_gates(whole).float() for whole in wholes]
    multipliers = [torch.nn.Parameter(torch.full((2,), 10.0)) for _ in towers]
    alphas = [alpha for tower in towers for alpha in tower.parameters()]
    groups = [{"params": alphas}, {"params": multipliers, "maximize": True}]
    optimizer = torch.optim.AdamW(groups, lr=0.02, weight_decay=0.0, fused=True)
    for step, wanted in enumerate((0.2, 0.4, 0.5)):
        loss, _ = sparsity.towers_penalty(wholes, towers, multipliers, [wanted] * 2, joint=False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for tower in towers:
            tower.clamp()
        torch.testing.assert_close(loss.data, golden(f"l0opt/step{step}/loss"), rtol=1e-5, atol=0)
    for number, tower in enumerate(("img", "txt")):
        for step in range(3):
            key = f"l0opt/step{step}/{tower}_"
            for name, alpha in towers[number].alpha.items():
                torch.testing.assert_close(alpha.data, released(key + "{}_loga", name))
            lambdas = torch.stack([golden(f"{key}lambda_1"), golden(f"{key}lambda_2")])
            torch.testing.assert_close(multipliers[number].data, lambdas, rtol=1e-6, atol=0)


def gated_clip():
    """Return the released small CLIP and its gates, with the released alphas and noise."""
    model = open_clip.from_config(MODEL)
    weights = {}
    for key in GOLDEN.files:
        if key.startswith("mask/weights/") and "l0_module" not in key:
            weights[key.removeprefix("mask/weights/").partition(".")[2]] = golden(key)
    model.load_state_dict(weights)
    gates = Gates(model, ["image", "text"])
    for name, tower in TOWERS.items():
        fill(gates.towers[name], f"mask/{tower}_loga_{{}}")
        for group in gates.towers[name].alpha:
            noise = released(f"mask/{tower}_u_{{}}", group)
            gates.towers[name].noise[group] = noise
    return model, gates


def features(model, gates):
    image = torch.tensor(INPUTS["image"])
    text = torch.tensor(INPUTS["text"])
    return gates.run(model, model.encode_image, image), gates.run(model, model.encode_text, text)


def test_a_gated_model_computes_the_released_features():
    model, gates = gated_clip()
    for mode, training in (("train", True), ("eval", False)):
        model.train(training)
        gates.train(training)
        image, text = features(model, gates)
        for rows, name in ((image, "image"), (text, "text")):
            wanted = golden(f"mask/{mode}_{name}_features")
            torch.testing.assert_close(rows.data, wanted, rtol=1e-5, atol=2e-6)
        if training:
            (image.sum() + text.sum()).backward()
    for name, tower in TOWERS.items():
        masks = gates.towers[name].masks()
        torch.testing.assert_close(masks.hidden.data, golden(f"mask/{tower}_eval_hidden_z"))
        for part in ("heads", "mlp"):
            for layer, mask in enumerate(getattr(masks, part)):
                settled = released(f"mask/{tower}_eval_{{}}_z", f"{part}_{layer}")
                torch.testing.assert_close(mask.data, settled)
        for group, alpha in gates.towers[name].alpha.items():
            gradient = released(f"mask/{tower}_train_grad_loga_{{}}", group)
            torch.testing.assert_close(alpha.grad, gradient, rtol=1e-4, atol=1e-5)


def test_the_cut_model_has_the_released_sizes_and_keeps_the_features():
    """The released cut changes them, see :mod:`dimefm.models.weights.inheritance.cut`."""
    model, gates = gated_clip()
    model.eval()
    gates.eval()
    small, config = cut(model, MODEL, gates)
    layers = config["vision_cfg"]["pruned"]["layers"]
    assert config["vision_cfg"]["pruned"]["width"] == 39
    assert [layer["mlp"] for layer in layers] == [171, 179, 179]
    assert config["text_cfg"]["pruned"]["layers"][1] == {"heads": 0, "mlp": 88}
    with torch.no_grad():
        image, text = features(model, gates)
        torch.testing.assert_close(small.encode_image(torch.tensor(INPUTS["image"])), image)
        torch.testing.assert_close(small.encode_text(torch.tensor(INPUTS["text"])), text)
