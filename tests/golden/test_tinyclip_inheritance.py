"""Manual inheritance takes the weights that TinyCLIP's released code takes, one by one.

A golden array has, for each weight of a student, its index in the teacher's tensor. The copy
``tinyclip_inheritance.npz`` has every so many columns of it; where the whole golden file is beside
this checkout, all indices are compared, and the rows of a student that the release made.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dimefm.models import open_clip
from dimefm.models.weights.inheritance import manual
from dimefm.models.weights.inheritance.blocks import NotInheritable

HERE = Path(__file__).parent
COPY = np.load(HERE / "tinyclip_inheritance.npz", allow_pickle=False)
CASES = json.loads(str(COPY["meta_json"]))
SORTED_KEYS = CASES.pop("sorted_keys")
WHOLE = HERE.parents[2] / "shared" / "golden" / "tinyclip.npz"
present = pytest.mark.skipif(
    not WHOLE.is_file(), reason="the golden files (../shared/golden) are not beside this checkout"
)


def indices(case):
    """Return the tensors of a teacher whose weights are their own indices."""
    tensors = {}
    for name, shape in CASES[case]["teacher"].items():
        count = int(np.prod(shape))
        tensors[name] = torch.arange(count, dtype=torch.float64).reshape(shape)
    return tensors


def of_student(case):
    return {name: torch.zeros(shape) for name, shape in CASES[case]["student"].items()}


def inherited(case, teacher=None):
    head_width = CASES[case]["head_width"]
    is_text = case.startswith("text")
    return manual.inherit(of_student(case), teacher or indices(case), head_width, is_text)


@pytest.mark.parametrize("case", CASES)
def test_each_weight_comes_from_where_the_release_takes_it(case):
    ours = inherited(case)
    assert ours.tensors.keys() == CASES[case]["student"].keys()
    names = [key for key in COPY.files if key.startswith(f"inherit/{case}/")]
    assert len(names) > len(ours.tensors) / 2
    for key in names:
        tensor = ours.tensors[key.removeprefix(f"inherit/{case}/")].numpy()
        wanted = COPY[key]
        if wanted.ndim == 2:
            tensor = tensor[:, :: tensor.shape[1] // wanted.shape[1]]
        assert np.array_equal(tensor, wanted), key
    layers = [layer for stage in sorted(ours.layers) for layer in ours.layers[stage]]
    assert layers == [layer for taken in CASES[case]["layers"].values() for layer in taken]


@present
@pytest.mark.parametrize("case", CASES)
def test_every_index_of_the_whole_file(case):
    ours = inherited(case)
    with np.load(WHOLE, allow_pickle=False) as golden:
        for name, tensor in ours.tensors.items():
            assert np.array_equal(tensor.numpy(), golden[f"inherit/{case}/{name}"]), name


@pytest.mark.parametrize("case", CASES)
def test_the_order_of_the_names_in_a_file_does_not_matter(case):
    """The release gives layers 1 and 2 of a student layer 9 of a teacher of 12 when names are
    sorted as texts, as safetensors has them."""
    teacher = indices(case)
    in_order = inherited(case).tensors
    for names in (sorted(teacher), sorted(teacher, reverse=True)):
        again = inherited(case, {name: teacher[name] for name in names}).tensors
        assert all(torch.equal(again[name], tensor) for name, tensor in in_order.items())


def test_sorted_names_do_not_give_the_released_defect():
    teacher, student = {}, {}
    for layer in range(12):
        name = f"visual.transformer.resblocks.{layer}.ln_1.weight"
        teacher[name] = torch.full((1,), float(layer))
        if layer < 3:
            student[name] = torch.zeros(1)
    teacher = {name: teacher[name] for name in sorted(teacher)}
    taken = manual.inherit(student, teacher, 16).tensors
    found = {name: tensor.tolist() for name, tensor in taken.items()}
    assert list(found.values()) == [[0.0], [4.0], [8.0]]
    assert found.keys() == SORTED_KEYS.keys() and found != SORTED_KEYS


@present
def test_a_student_computes_what_the_released_one_does():
    vision = {"image_size": 32, "patch_size": 8, "head_width": 16, "width": 64, "layers": 6}
    text = {"context_length": 12, "vocab_size": 40, "width": 64, "heads": 4, "layers": 6}
    teacher = open_clip.from_config({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text})
    with np.load(WHOLE, allow_pickle=False) as golden:
        values = {key: torch.from_numpy(golden[key]) for key in golden.files if "_e2e/" in key}
    weights = {}
    for key, value in values.items():
        if "/teacher/" in key:
            weights[key.rpartition("encoder.")[2].removeprefix("inherit_e2e/teacher/")] = value
    scale = weights.pop("_logit_scale.logit_scale")
    teacher.load_state_dict({**weights, "logit_scale": scale})
    small_vision = {**vision, "width": 32, "layers": 3}
    small_text = {**text, "width": 32, "heads": 2, "layers": 2}
    student = open_clip.from_config(
        {"embed_dim": 24, "vision_cfg": small_vision, "text_cfg": small_text}
    )
    own = student.state_dict()
    for is_text in (False, True):
        names = [name for name in own if name.startswith("visual.") != is_text]
        names = [name for name in names if name != "logit_scale"]
        of_teacher = {n: w for n, w in weights.items() if n.startswith("visual.") != is_text}
        taken = manual.inherit({n: own[n] for n in names}, of_teacher, 16, is_text).tensors
        own.update(taken)
    student.load_state_dict(own)
    for model, name in ((teacher, "teacher"), (student, "student")):
        with torch.no_grad():
            image = model.eval().encode_image(values["inherit_e2e/image"], normalize=True)
            rows = model.encode_text(values["inherit_e2e/text"], normalize=True)
        for found, side in ((image, "image"), (rows, "text")):
            wanted = values[f"inherit_e2e/{name}_{side}_features"]
            wanted = torch.nn.functional.normalize(wanted, dim=-1)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-6)


def without(names, part):
    return {name: tensor for name, tensor in names.items() if part not in name}


def grown(tensors, name, axis):
    tensor = tensors[name]
    return {**tensors, name: torch.cat([tensor, tensor], axis)}


VIT = "vit_w64L7_to_w48L3"
REFUSED = {
    "fewer layers": (
        lambda s, t: (s, without(t, "resblocks.4") and _cut(t, 2)),
        r"it has 3 layers, the teacher has fewer: 2",
    ),
    "a wider student": (
        lambda s, t: (grown(s, "visual.ln_pre.weight", 0), t),
        r"it is wider than the teacher: visual.ln_pre.weight \[96\] from \[64\]",
    ),
    "another family": (
        lambda s, t: (s, {n.replace("transformer.resblocks", "blocks"): w for n, w in t.items()}),
        r"its blocks are named resblocks.N, those of the teacher blocks.N",
    ),
    "a tensor that the teacher lacks": (
        lambda s, t: (s, without(t, "ln_post.bias")),
        r"the teacher has no visual.ln_post.bias",
    ),
    "a tensor that the student lacks": (
        lambda s, t: (without(s, "ln_pre"), t),
        r"it has no visual.ln_pre.weight, visual.ln_pre.bias, which the teacher has",
    ),
    "other patches": (
        lambda s, t: ({**s, "visual.conv1.weight": torch.zeros(48, 3, 4, 4)}, t),
        r"of \[4, 4\] pixels, the teacher's of \[8, 8\]",
    ),
    "a missing block": (
        lambda s, t: (s, without(t, "resblocks.3.")),
        r"has blocks \[0, 1, 2, 4, 5, 6\]",
    ),
    "no blocks": (lambda s, t: (s, {"proj": torch.zeros(1)}), r"has no blocks"),
}


def _cut(teacher, layers):
    left = teacher
    for layer in range(layers, 7):
        left = without(left, f"resblocks.{layer}.")
    return left


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_inherit_is_refused_by_name(fault):
    change, reason = REFUSED[fault]
    student, teacher = change(of_student(VIT), indices(VIT))
    with pytest.raises(NotInheritable, match=reason):
        manual.inherit(student, teacher, 16)


def test_another_vocabulary_is_refused():
    student = of_student("text_w32L12h2_to_w32L9h2")
    student["token_embedding.weight"] = torch.zeros(30, 32)
    with pytest.raises(NotInheritable, match="its vocabulary has 30 tokens, the teacher's 40"):
        manual.inherit(student, indices("text_w32L12h2_to_w32L9h2"), 16, is_text=True)


@pytest.mark.parametrize(("count", "is_class_kept"), [(10, True), (26, True), (17, True)])
def test_positions_of_another_grid_are_resampled(count, is_class_kept):
    student = of_student(VIT)
    student["visual.positional_embedding"] = torch.zeros(count, 48)
    taken = inherited_positions(student)
    assert taken.shape == (count, 48)
    assert torch.equal(taken[0], indices(VIT)["visual.positional_embedding"][0, :48].float())
    flat = {**indices(VIT), "visual.positional_embedding": torch.full((17, 64), 3.0)}
    same = manual.inherit(student, flat, 16).tensors["visual.positional_embedding"]
    torch.testing.assert_close(same, torch.full((count, 48), 3.0, dtype=same.dtype))


def inherited_positions(student):
    return manual.inherit(student, indices(VIT), 16).tensors["visual.positional_embedding"].float()


def test_positions_that_are_no_grid_are_refused():
    student = of_student(VIT)
    student["visual.positional_embedding"] = torch.zeros(12, 48)
    with pytest.raises(NotInheritable, match="no grid"):
        manual.inherit(student, indices(VIT), 16)
