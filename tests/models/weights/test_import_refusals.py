"""Partial, foreign, damaged and hostile checkpoints: all is listed, and nothing is written."""

import errno
import json
import os
import re
from pathlib import Path

import open_clip as upstream
import pytest
import torch
from click.testing import CliRunner

from dimefm.cli import main
from dimefm.errors import DimefmError, ModelError
from dimefm.models import open_clip, student
from dimefm.models.weights import importing
from dimefm.models.weights.importing import import_checkpoint
from tests.models.weights import layouts
from tests.models.weights.layouts import (
    VISION,
    VIT,
    dime_vit,
    in_three_modules,
    model_of,
    openai,
    tensors_of,
)

EVERY = [
    layouts.openai,
    layouts.openai_resnet,
    layouts.open_clip_json,
    layouts.clip_kd_small_mobilenet,
    layouts.tinyclip,
    layouts.tinyclip_resnet,
    layouts.tinyclip_automatic,
    layouts.declip,
    layouts.slip,
    layouts.declip_resnet,
    layouts.dime_vit,
    layouts.dime_vit_of_the_evaluation,
]
UNNEEDED = r"projector|text_label|fc\.weight|num_batches|input_resolution|context_length|vocab_size"
TOWERS = r"^_?(image|text)_encoder(_without_ddp)?\."


def name_of(make):
    return getattr(make, "__name__", None)


def without_layer(state):
    return {name: t for name, t in state.items() if "visual.transformer.resblocks.1." not in name}


def with_strangers(state):
    return {**state, **{f"stranger.{number}": torch.ones(1) for number in range(2000)}}


def with_another_shape(state):
    return {**state, "visual.ln_post.weight": torch.ones(63)}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (without_layer, ["12 missing: visual.transformer.resblocks.1.attn.in_proj_bias", "and 10"]),
        (with_strangers, ["2,000 unexpected: stranger.0, stranger.1 and 1998 more"]),
        (
            with_another_shape,
            ["1 of another shape: visual.ln_post.weight [63], expected [64]"],
        ),
        (
            lambda state: with_strangers(with_another_shape(without_layer(state))),
            ["12 missing", "1 of another shape"],
        ),
    ],
)
def test_what_does_not_fit_is_listed_and_nothing_is_written(change, parts, tmp_path, capsys):
    path = tmp_path / "small.json"
    path.write_text(json.dumps(VIT))
    torch.save(change(tensors_of(model_of(VIT))), tmp_path / "x.pt")
    with pytest.raises(ModelError) as error:
        import_checkpoint(
            tmp_path / "x.pt",
            tmp_path / "run",
            student=str(path),
        )
    message = str(error.value)
    for part in parts:
        assert part in message
    assert len(message) <= 500 and "\n" not in message
    assert not (tmp_path / "run").exists()
    arguments = ["-v", "import", str(tmp_path / "x.pt"), "--student", str(path)]
    arguments += ["--out", str(tmp_path / "run")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    if change is without_layer:  # every name
        assert result.output.count("  missing: visual.transformer.resblocks.1.") == 12


def tables(state):
    """Yield the table of tensors of a file's content."""
    for value in [state, *state.values()]:
        if isinstance(value, dict) and any(isinstance(t, torch.Tensor) for t in value.values()):
            return value
    raise AssertionError("no tensors")


def tail(name):
    """Return the end of a name that no family changes."""
    return ".".join(name.split(".")[-2:])


@pytest.mark.parametrize("make", EVERY, ids=name_of)
@pytest.mark.parametrize("place", [0.1, 0.6])
def test_a_tensor_that_is_missing_is_named_whatever_the_family(make, place, tmp_path, teacher):
    _, state, *options = make(tmp_path)
    options = options[0] if options else {"teacher": teacher}
    table = tables(state)
    needed = [name for name in table if not re.search(UNNEEDED, name)]
    missing = needed[int(place * len(needed))]
    copies = [name for name in table if re.sub(TOWERS, "", name) == re.sub(TOWERS, "", missing)]
    for name in copies:
        del table[name]
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ModelError) as error:
        import_checkpoint(tmp_path / "x.pt", tmp_path / "run", **options)
    assert tail(missing).removeprefix("0.") in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("make", EVERY, ids=name_of)
def test_a_tensor_too_much_is_named_whatever_the_family(make, tmp_path, teacher):
    _, state, *options = make(tmp_path)
    options = options[0] if options else {"teacher": teacher}
    table = tables(state)
    prefix = "module." if all(name.startswith("module.") for name in table) else ""
    table[f"{prefix}visual.stranger.weight"] = torch.ones(3)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ModelError, match=r"1 unexpected: visual\.stranger\.weight"):
        import_checkpoint(tmp_path / "x.pt", tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def foreign(tmp_path):
    torch.save({"conv1.weight": torch.ones(3), "fc.bias": torch.ones(2)}, tmp_path / "x.pt")
    return "has the tensors conv1.weight, fc.bias, expected those of a family (tinyclip, declip"


def gated(tmp_path):
    state = in_three_modules(tensors_of(model_of(VIT)))
    state["_image_encoder.l0_module.hidden_loga"] = torch.ones(64)
    torch.save(state, tmp_path / "x.pt")
    return "is a gate of automatic inheritance, so the model is not cut yet"


def differing_copies(tmp_path):
    state = in_three_modules(tensors_of(model_of(VIT)))
    state["image_encoder_without_ddp.visual.proj"] = torch.ones(64, 48)
    torch.save(state, tmp_path / "x.pt")
    return "has other values than its copy under another name"


def unpacking(tmp_path):
    shapes = {
        name: t[:1].expand(2**20, *t.shape[1:])
        for name, t in tensors_of(torch.nn.Linear(999, 9)).items()
    }
    torch.save(shapes, tmp_path / "x.pt")
    return "unpacks to"


def partly_wrapped(tmp_path):
    state = tensors_of(model_of(VIT))
    state = {f"module.{name}" if "visual" in name else name: t for name, t in state.items()}
    torch.save(state, tmp_path / "x.pt")
    return "expected those of a family"


def missing_projection(tmp_path):
    state = in_three_modules(tensors_of(model_of(VIT)))
    del state["_image_encoder.visual.proj"]
    torch.save(state, tmp_path / "x.pt")
    return "'visual.proj' is missing. Fix: fetch the whole file; --student lists all"


def objects(tmp_path):
    torch.save({"state_dict": {"x": torch.ones(1)}, "args": Path("x")}, tmp_path / "x.pt")
    return f"it holds '{type(Path('x')).__module__}.{type(Path('x')).__name__}', expected plain"


def truncated(tmp_path):
    torch.save(tensors_of(model_of(VIT)), tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(data[: len(data) // 2])
    return "cannot be"


def hollow(tmp_path):
    state = in_three_modules(tensors_of(model_of(VIT)))
    bias = "_image_encoder.visual.transformer.resblocks.{}.mlp.c_proj.bias"
    state |= {bias.format(number): torch.ones(16_384) for number in range(200)}
    torch.save(state, tmp_path / "x.pt")
    return "numbers, but its shapes describe a model of"


def too_deep(tmp_path):
    state = in_three_modules(tensors_of(model_of(VIT)))
    bias = "_image_encoder.visual.transformer.resblocks.{}.mlp.c_proj.bias"
    state |= {bias.format(number): torch.ones(64) for number in range(300)}
    torch.save(state, tmp_path / "x.pt")
    return "model_cfg.vision_cfg.pruned.layers"


def no_teacher(tmp_path):
    torch.save(dime_vit(tmp_path)[1], tmp_path / "x.pt")
    return "is an image tower alone, which uses the text tower of its teacher"


@pytest.mark.parametrize(
    "make",
    [
        foreign,
        gated,
        differing_copies,
        unpacking,
        partly_wrapped,
        missing_projection,
        objects,
        truncated,
        hollow,
        too_deep,
        no_teacher,
    ],
    ids=name_of,
)
def test_a_file_that_cannot_be_imported_is_refused_in_one_line(make, tmp_path):
    expected = make(tmp_path)
    with pytest.raises(ModelError) as error:
        import_checkpoint(tmp_path / "x.pt", tmp_path / "run")
    message = str(error.value)
    assert expected in message
    assert len(message) <= 500 and "\n" not in message and ". Fix: " in message
    assert not (tmp_path / "run").exists()


def test_an_architecture_that_no_shape_tells_must_be_named():
    config = open_clip.config_of("ViT-B-32")
    with torch.device("meta"):
        tensors = upstream.CLIP(**config).state_dict()
    with pytest.raises(ModelError, match=r"those of ViT-B-32, ViT-B-32-quickgelu\. Fix: name the"):
        importing._architecture(Path("x.pt"), tensors)


def test_a_teacher_of_another_dimension_is_refused(tmp_path, teacher):
    tower = student.new_tower({"embed_dim": 40, "vision_cfg": VISION}, False)
    torch.save({"image_state_dict": tensors_of(tower)}, tmp_path / "x.pt")
    with pytest.raises(ModelError, match=r"have 40 numbers, those of the teacher .* have 32"):
        import_checkpoint(tmp_path / "x.pt", tmp_path / "run", teacher=teacher)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def save(tensors, path, marks=None):
        path.with_name(path.name + ".part").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(importing.runs, "save_tensors", save)
    torch.save(openai(tmp_path)[1], tmp_path / "x.pt")
    with pytest.raises(OSError, match="No space left"):
        import_checkpoint(tmp_path / "x.pt", tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "roberta-ViT-B-32"])
def test_an_architecture_that_a_run_cannot_hold_is_refused(name, tmp_path):
    torch.save(tensors_of(model_of(VIT)), tmp_path / "x.pt")
    with pytest.raises(ModelError, match=f"Fix: use {name}/x.pt itself"):
        import_checkpoint(tmp_path / "x.pt", tmp_path / "run", student=name)


@pytest.mark.parametrize("name", ["run.json", "holiday.jpg"])
def test_a_folder_with_something_in_it_is_left_alone(name, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("{}")
    torch.save(openai(tmp_path)[1], tmp_path / "x.pt")
    with pytest.raises(DimefmError, match="choose"):
        import_checkpoint(tmp_path / "x.pt", tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]
