"""Inheritance by importance: what counts is kept, in every part of a tower alike."""

import pytest
import torch

from dimefm.models import open_clip
from dimefm.models.encoder import weights_sha256
from dimefm.models.inherited import by_importance, inherit
from dimefm.models.initial import tower_names
from dimefm.models.weights.inheritance import importance
from dimefm.models.weights.inheritance.blocks import NotInheritable
from dimefm.models.weights.inheritance.measure import measure

VIT = {"layers": 4, "width": 32, "head_width": 8, "patch_size": 8, "image_size": 16}
RESNET = {"layers": [2, 3, 1, 2], "width": 16, "head_width": 32, "image_size": 32}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 4, "layers": 3}


def clip(vision=VIT, text=TEXT, seed=0, **config):
    """Return a whole CLIP whose weights are all random."""
    settings = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text, **config}
    model = open_clip.from_config(settings).eval()
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand(value.shape, generator=noise))
    return model


def inputs_of(side, size=16, rows=6):
    noise = torch.Generator().manual_seed(1)
    if side == "text":
        return torch.randint(50, (rows, 8), generator=noise)
    return torch.randn(rows, 3, size, size, generator=noise)


def tensors_of(model, side):
    state = model.state_dict()
    return {name: state[full] for name, full in tower_names(model, side).items()}


@pytest.mark.parametrize(
    ("side", "config"),
    [
        ("image", {}),
        ("image", {"vision": {**VIT, "pool_type": "avg", "ls_init_value": 0.5}}),
        ("image", {"vision": {**VIT, "final_ln_after_pool": True}}),
        ("image", {"vision": RESNET}),
        ("text", {}),
        ("text", {"custom_text": True}),
        ("text", {"text": {**TEXT, "proj_bias": True, "no_causal_mask": True}}),
    ],
)
def test_a_student_of_the_teachers_shape_is_the_teacher(side, config):
    teacher, student = clip(**config), clip(seed=7, **config)
    inputs = inputs_of(side, 32 if config.get("vision") is RESNET else 16)
    before = weights_sha256(teacher)
    taken = inherit(student, side, teacher, "it", by_importance(teacher, side, inputs))
    encode = "encode_image" if side == "image" else "encode_text"
    with torch.no_grad():
        assert torch.equal(getattr(student, encode)(inputs), getattr(teacher, encode)(inputs))
    assert taken.details["inherit_by"] == "importance" and taken.details["measured_rows"] == 6
    assert weights_sha256(teacher) == before
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in teacher.modules()]
    assert sum(hooks) == 0


@pytest.mark.parametrize("side", ["image", "text"])
def test_hidden_units_that_add_nothing_are_left_out(side):
    """A student of half the hidden units computes what the teacher does when half add nothing."""
    teacher = clip()
    blocks = (teacher.visual if side == "image" else teacher).transformer.resblocks
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for block in blocks:
            idle = torch.randperm(128, generator=noise)[:64]
            block.mlp.c_proj.weight[:, idle] = 0
            block.mlp.c_fc.bias[idle] += 5  # large activations that add nothing do not count
    student = clip({**VIT, "mlp_ratio": 2}, {**TEXT, "mlp_ratio": 2}, seed=7)
    inputs = inputs_of(side)
    inherit(student, side, teacher, "it", by_importance(teacher, side, inputs))
    encode = "encode_image" if side == "image" else "encode_text"
    with torch.no_grad():
        found, expected = (getattr(model, encode)(inputs) for model in (student, teacher))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def indices(model, side):
    """Return the tensors of a tower, each weight being its own index along one axis, by axis."""
    found = {}
    for name, tensor in tensors_of(model, side).items():
        for axis in range(tensor.ndim):
            shape = [1] * tensor.ndim
            shape[axis] = tensor.shape[axis]
            numbers = torch.arange(tensor.shape[axis], dtype=torch.float64).view(shape)
            found.setdefault(axis, {})[name] = numbers.expand(tensor.shape).contiguous()
        if not tensor.ndim:
            found.setdefault(0, {})[name] = tensor
    for axis in found:
        for name, tensor in tensors_of(model, side).items():
            found[axis].setdefault(name, tensor.double())
    return found


CASES = {
    "ViT": ("image", {}, {"vision": {**VIT, "layers": 2, "width": 16}}),
    "text": ("text", {}, {"text": {**TEXT, "layers": 2, "width": 16, "heads": 2}}),
    "ResNet": (
        "image",
        {"vision": RESNET},
        {"vision": {**RESNET, "width": 12, "layers": [1, 2, 1, 1]}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_choice_of_channels_runs_through_the_whole_tower(case):
    side, large, small = CASES[case]
    teacher, student = clip(**large), clip(**small)
    scores = measure(teacher, side, inputs_of(side, 32 if case == "ResNet" else 16))
    own = tensors_of(student, side)
    head_width = 32 if case == "ResNet" else 8
    chosen = {}
    for axis, tensors in indices(teacher, side).items():
        taken = importance.inherit(own, tensors, head_width, side == "text", scores)
        for name, tensor in taken.tensors.items():
            assert tensor.shape == own[name].shape
            if axis >= tensor.ndim:
                continue
            layer = importance.groups_of(name, case == "ResNet")[axis]
            if layer is None or "positional" in name:
                continue
            if "resblocks" in name or "layer" in name[:5]:
                layer = f"{layer} of {name.rsplit('.', 2)[0]}" if "stage" not in layer else layer
            if layer.startswith("channels"):
                layer = "channels"
            index = (0,) * axis + (slice(None),) + (0,) * (tensor.ndim - axis - 1)
            chosen.setdefault(layer, set()).add(tuple(tensor[index].int().tolist()))
    groups = [group for group in chosen if group == "channels" or group.startswith("stage")]
    assert len(groups) == (5 if case == "ResNet" else 1)
    for group in groups:
        assert len(chosen[group]) == 1, group
        places = list(next(iter(chosen[group])))
        assert places == sorted(set(places)) and places != list(range(len(places)))


def test_heads_are_taken_whole_and_those_that_add_most():
    teacher, student = clip(), clip({**VIT, "width": 16})
    with torch.no_grad():
        for block in teacher.visual.transformer.resblocks:
            block.attn.out_proj.weight[:, :8] *= 0.01
            block.attn.out_proj.weight[:, 16:24] *= 0.01
    scores = measure(teacher, "image", inputs_of("image"))
    tensors = {n: t.double() for n, t in tensors_of(teacher, "image").items()}
    name = "transformer.resblocks.2.attn.in_proj_bias"
    tensors[name] = torch.arange(96.0).double()
    own = tensors_of(student, "image")
    taken = importance.inherit(own, tensors, 8, False, scores).tensors[name].int().tolist()
    rows = [*range(8, 16), *range(24, 32)]
    assert taken == [part * 32 + row for part in range(3) for row in rows]


def test_a_channel_that_carries_more_is_taken():
    teacher, student = clip(), clip({**VIT, "width": 16})
    loud = torch.arange(1, 32, 2)
    with torch.no_grad():
        for name, value in teacher.visual.named_parameters():
            if ".ln_" in name or name.startswith("ln_post"):
                value[loud] *= 5
    rule = by_importance(teacher, "image", inputs_of("image"))
    inherit(student, "image", teacher, "it", rule)
    assert torch.equal(student.visual.ln_post.weight, teacher.visual.ln_post.weight[loud])
    assert torch.equal(student.visual.class_embedding, teacher.visual.class_embedding[loud])


@pytest.mark.parametrize(
    ("layers", "taken"), [(1, [0]), (2, [0, 11]), (3, [0, 6, 11]), (6, [0, 2, 4, 7, 9, 11])]
)
def test_layers_are_evenly_spread_with_the_first_and_the_last(layers, taken):
    student, teacher = (
        {f"resblocks.{n}.ln_1.weight": torch.zeros(1) for n in range(count)}
        for count in (layers, 12)
    )
    assert importance.evenly_spread(student, teacher) == {0: taken}


def test_padding_behind_a_text_does_not_count():
    teacher = clip()
    short = torch.tensor([[3, 49, 0, 0, 0, 0, 0, 0]])
    other = torch.tensor([[3, 49, 7, 8, 9, 7, 8, 9]])
    scores = [measure(teacher, "text", tokens) for tokens in (short, other)]
    for group in scores[0]:
        if group != "channels last":
            torch.testing.assert_close(scores[0][group], scores[1][group], rtol=1e-4, atol=1e-6)


def test_another_family_is_refused():
    vision = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"}
    model = clip({**vision, "image_size": 160})
    with pytest.raises(NotInheritable, match="knows open_clip's ViT, text transformer and Mod"):
        measure(model, "image", inputs_of("image", 160, 1))
