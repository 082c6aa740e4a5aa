"""A student that starts from existing weights: what it takes, what it draws, what is refused."""

import json
import shutil

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants

from dimefm.errors import ModelError, RecipeError
from dimefm.models import initial, open_clip
from dimefm.models.initial import Start
from dimefm.recipe import refuse_idle
from dimefm.runs import folder as runs
from dimefm.runs.record import RunRecord
from dimefm.train.trainer import Trainer, train

LARGE = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 24, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3},
}
LAST = {"image": "visual.proj", "text": "text.text_projection"}


def quiet(line):
    """Take a line of progress and say nothing."""


def recipe_of(world, kind, **over):
    """Return a recipe of a tiny student of this kind."""
    if kind == "clip":
        pairs = world.pairs([f"number {n}" for n in range(10)])
        return world.clip_recipe(images=[str(pairs)], **over)
    return world.text_recipe(**over) if kind == "text" else world.recipe(**over)


def finished(world, kind, name="first", **over):
    """Return the folder of a short run of another seed."""
    recipe = recipe_of(world, kind, seed=5, steps=1, **over)
    return train(recipe, world.root / name, echo=quiet)


def begun(world, kind, lines=None, name="second", **over):
    """Return a run before its first step."""
    echo = quiet if lines is None else lines.append
    return Trainer(recipe_of(world, kind, **over), world.root / name, resume=False, echo=echo)


def weights_of(out):
    return safetensors.torch.load_file(out / runs.KINDS[runs.read(out).kind])


def assert_equal(tensors, others):
    assert tensors.keys() == others.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []


def large_run(world, name="large", seed=0, **config):
    """Return a run's folder of a whole CLIP that is larger than the tiny student, and its weights,
    which are all random.
    """
    config = {**LARGE, **config}
    model = open_clip.from_config(config)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise))
    out = world.root / name
    out.mkdir()
    runs.save_tensors(model.state_dict(), out / runs.KINDS["clip"])
    preprocess = {**open_clip.default_preprocess(32), "mean": [0.1, 0.2, 0.3]}
    settings = {"model_cfg": config, "preprocess_cfg": preprocess}
    (out / open_clip.CONFIG).write_text(json.dumps(settings))
    (out / runs.FILE).write_text(RunRecord("clip", config, preprocess).to_json())
    return out, model.state_dict()


@pytest.mark.parametrize("source", ["run", "file", "bare file", "best"])
@pytest.mark.parametrize("kind", ["image", "text", "clip"])
def test_a_run_or_a_file_of_the_same_student_is_taken_whole(world, kind, source):
    first = finished(world, kind)
    weights = weights_of(first)
    init = f"run:{first}"
    if source == "file":
        init = str(world.root / "copy.pt")
        torch.save({"state_dict": {f"module.{n}": w for n, w in weights.items()}}, init)
    if source == "bare file":
        if kind == "clip":
            pytest.skip("the names of two towers have their prefixes")
        init = str(world.root / "copy.safetensors")
        safetensors.torch.save_file({n.split(".", 1)[1]: w for n, w in weights.items()}, init)
    if source == "best":
        init = str(first / runs.KINDS[runs.read(first).kind])
    lines = []
    run = begun(world, kind, lines, init=init)
    assert_equal(run.student.model.state_dict(), weights)
    for side in ["image", "text"] if kind == "clip" else [kind]:
        facts = run.begun.record[side]
        assert facts["init"] == init and len(facts["weights_sha256"]) == 64
        assert "drawn" not in facts
        assert any(line.startswith(f"{side} tower: starts from {init}") for line in lines)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_projection_to_another_dimension_is_drawn_and_said(world, kind):
    config = json.loads(world.tiny.read_text())
    other = world.root / "wide.json"
    other.write_text(json.dumps({**config, "embed_dim": 12}))
    name = {"image": {"student": str(other)}, "text": {"text": f"student:{other}"}}[kind]
    first = finished(world, kind, projection="linear", **name)
    weights = weights_of(first)
    safetensors.torch.save_file(
        {n: (w[:, :5].clone() if n == LAST[kind] else w) for n, w in weights.items()},
        world.root / "narrow.safetensors",
    )
    lines = []
    run = begun(world, kind, lines, init=str(world.root / "narrow.safetensors"))
    own = run.student.model.state_dict()
    different = [n for n, w in weights.items() if not torch.equal(own[n], w)]
    assert different == [LAST[kind]] == run.begun.record[kind]["drawn"]
    assert any(f"drawn at random: {LAST[kind]}" in line for line in lines)
    assert not run.begun.is_taken(f"model.{LAST[kind]}")
    assert run.begun.is_taken(f"model.{next(iter(weights))}")


REFUSED = {
    "a shape": (
        lambda w: {**w, "visual.ln_pre.weight": torch.zeros(17)},
        r"shapes differ: ln_pre.weight \[17\] for \[16\]",
    ),
    "a missing tensor": (
        lambda w: {n: t for n, t in w.items() if "ln_post" not in n},
        r"missing: ln_post.weight, ln_post.bias",
    ),
    "a tensor too many": (
        lambda w: {**w, "visual.extra": torch.zeros(1)},
        r"not of this tower: extra",
    ),
    "another network": (
        lambda w: {"layer1.weight": torch.zeros(3)},
        r"none of its names is one of the student's \(layer1.weight\)",
    ),
    "no image tower": (
        lambda w: {"text.ln_final.weight": torch.zeros(3)},
        r"has text tower, not the student's image tower",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_weights_of_another_student_are_refused_and_nothing_is_loaded(world, fault):
    change, reason = REFUSED[fault]
    first = finished(world, "image")
    path = world.root / "changed.safetensors"
    safetensors.torch.save_file(change(weights_of(first)), path)
    task = begun(world, "image", name="plain").task
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    with pytest.raises(ModelError, match=reason) as error:
        begun(world, "image", init=str(path))
    assert len(str(error.value)) <= 500 and ". Fix: " in str(error.value)
    assert not (world.root / "second").exists() or not list((world.root / "second").iterdir())
    with pytest.raises(ModelError, match=reason):
        weights = initial.load(Start.parse(str(path)), task.model, task.spec)
        initial.take(task.model, "image", weights, "file")
    assert_equal(dict(task.model.state_dict()), before)


@pytest.mark.parametrize(
    ("init", "reason"),
    [
        ("nothing", "no such file; expected random, timm, tag:TAG, run:DIR, inherit:SPEC"),
        ("run:nowhere", "no finished run"),
        ("tag:openai", "'openai' is no pretrained tag of .*none, since it has no tags"),
        ("timm", "is no network of timm"),
        ("inherit:ViT-B-99/x", "unknown architecture"),
    ],
)
def test_a_start_that_is_none_is_refused(world, init, reason):
    with pytest.raises(ModelError, match=reason):
        begun(world, "image", init=init)


def test_a_pickled_or_damaged_file_is_refused(world):
    pickled = world.root / "pickled.pt"
    torch.save({"state_dict": torch.nn.Linear(2, 2)}, pickled)
    damaged = world.root / "damaged.safetensors"
    damaged.write_bytes(b"no tensors at all")
    for path in (pickled, damaged):
        with pytest.raises(ModelError, match=f"{path}: cannot be loaded"):
            begun(world, "image", init=str(path))


@pytest.mark.parametrize("kind", ["image", "text", "clip"])
def test_a_part_of_a_larger_model_is_inherited(world, kind):
    large, weights = large_run(world)
    run = begun(world, kind, init=f"inherit:{large}")
    own = run.student.model.state_dict()
    if kind != "text":
        wanted = weights["visual.transformer.resblocks.0.mlp.c_fc.weight"][:64, :16]
        assert torch.equal(own["visual.transformer.resblocks.0.mlp.c_fc.weight"], wanted)
        assert own["visual.positional_embedding"].shape == (5, 16)  # of 17: another grid
        assert run.task.preprocess["mean"] == [0.1, 0.2, 0.3]
        assert run.student.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    if kind != "image":
        name = next(n for n in own if n.endswith("ln_final.weight"))
        assert torch.equal(own[name], weights["ln_final.weight"][:16])
    assert all(
        facts["layers"] == "0" for side, facts in run.begun.record.items() if side != "pixels"
    )


def test_another_activation_is_said(world):
    large, _ = large_run(world, quick_gelu=True)
    lines = []
    run = begun(world, "image", lines, init=f"inherit:{large}")
    assert run.begun.record["image"]["activation"] == "standard, the teacher's is quick_gelu"
    assert any("its activation is standard, the teacher's is quick_gelu" in line for line in lines)
    first = train(recipe_of(world, "clip", steps=1), world.root / "plain", echo=quiet)
    record = runs.read(first)
    record.model_cfg["quick_gelu"] = True
    (first / runs.FILE).write_text(record.to_json())
    with pytest.raises(ModelError, match="these weights were trained with QuickGELU"):
        begun(world, "image", name="fourth", init=f"run:{first}")


def test_two_towers_may_inherit_from_two_models(world):
    one, of_images = large_run(world, "one")
    two, of_texts = large_run(world, "two", seed=1)
    run = begun(world, "clip", init=f"inherit:{one}", init_text=f"inherit:{two}")
    own = run.student.model.state_dict()
    assert torch.equal(own["visual.ln_post.weight"], of_images["visual.ln_post.weight"][:16])
    assert torch.equal(own["ln_final.weight"], of_texts["ln_final.weight"][:16])
    assert not torch.equal(of_images["ln_final.weight"], of_texts["ln_final.weight"])
    half = begun(world, "clip", name="half", init=f"inherit:{one}", init_text="random")
    assert list(half.begun.record) == ["image", "pixels"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"head_width": 12}, "its attention heads are 8 wide, the teacher's 12"),
        ({"width": 8}, "it is wider than the teacher: class_embedding"),
        ({"patch_size": 16}, r"of \[8, 8\] pixels, the teacher's of \[16, 16\]"),
        ({"layers": [1, 1, 1, 1], "head_width": 24}, "of different families"),
    ],
)
def test_what_cannot_inherit_is_refused_in_one_line(world, change, reason):
    large, _ = large_run(world, vision_cfg={**LARGE["vision_cfg"], **change})
    with pytest.raises(ModelError, match=reason) as error:
        begun(world, "image", init=f"inherit:{large}")
    assert len(str(error.value)) <= 500 and "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "ema"), [("image", None), ("clip", 0.5)])
def test_a_resumed_run_does_not_read_the_source_again(world, monkeypatch, kind, ema):
    large, _ = large_run(world)
    recipe = recipe_of(world, kind, init=f"inherit:{large}", save_every=2, ema=ema)
    recipe = recipe.replace(init_lr_scale=0.1)
    whole = train(recipe, world.root / "whole", echo=quiet)
    step = Trainer.step

    def interrupted(self, number, loading):
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number, loading)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", interrupted)
        train(recipe, world.root / "parts", echo=quiet)
    shutil.rmtree(large)
    parts = train(recipe, world.root / "parts", resume=True, echo=quiet)
    assert_equal(weights_of(whole), weights_of(parts))
    records = [runs.read(out) for out in (whole, parts)]
    assert records[0].start == records[1].start
    assert records[0].start["image"]["init"] == f"inherit:{large}"
    assert records[1].preprocess_cfg["mean"] == [0.1, 0.2, 0.3]


def test_inherited_weights_have_a_rate_of_their_own(world):
    large, _ = large_run(world, embed_dim=4)
    run = begun(world, "image", init=f"inherit:{large}", init_lr_scale=0.0)
    before = {name: tensor.clone() for name, tensor in run.student.model.state_dict().items()}
    run.loop()
    own = run.student.model.state_dict()
    changed = [name for name in before if not torch.equal(before[name], own[name])]
    assert changed == ["visual.proj"]  # of 8 dimensions, where the source has 4


def test_a_rate_without_inherited_weights_is_refused(world):
    with pytest.raises(RecipeError, match="init_lr_scale is for students that start from existing"):
        refuse_idle(world.recipe(init_lr_scale=0.1))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return a function that puts weights of a small network of timm into a hub's cache."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(name):
        settings = timm.get_pretrained_cfg(name)
        place = folder / f"models--{settings.hf_hub_id.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("0" * 40)
        snapshot = place / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        network = timm.create_model(name)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        weights = network.state_dict()
        safetensors.torch.save_file(weights, snapshot / "model.safetensors")
        return weights

    return put


@pytest.mark.parametrize("start", ["timm", "tag", "file"])
@pytest.mark.parametrize("name", ["test_resnet.r160_in1k", "test_vit.r160_in1k"])
def test_pretrained_weights_of_timm_are_taken(world, hub, name, start):
    weights = hub(name)
    plain, _, tag = name.partition(".")
    init, student = {
        "timm": ("timm", f"timm/{name}"),
        "tag": (f"tag:{tag}", f"timm/{plain}"),
        "file": (str(world.root / "timm.safetensors"), f"timm/{plain}"),
    }[start]
    safetensors.torch.save_file(weights, world.root / "timm.safetensors")
    lines = []
    run = begun(world, "image", lines, student=student, image_size=32, init=init)
    trunk = run.student.model.visual.trunk.state_dict()
    classifier = timm.get_pretrained_cfg(name).classifier
    for key, tensor in weights.items():
        if key in trunk and trunk[key].shape == tensor.shape:
            assert torch.equal(trunk[key], tensor), key
        else:
            assert key.startswith(classifier) or key == "pos_embed"  # of another image size
    drawn = run.begun.record["image"]["drawn"]
    assert drawn == ["visual.head.proj.weight"]
    if start != "file":
        assert run.begun.record["image"]["source"] == f"timm/{name}"
        assert run.task.preprocess["mean"] == list(timm.get_pretrained_cfg(name).mean)
    assert not any("note:" in line and "random weights" in line for line in lines)


@pytest.mark.parametrize(
    ("student", "init", "reason"),
    [
        ("timm/test_resnet.r160_in1k", "timm", "is not on this machine, and HF_HUB_OFFLINE"),
        (
            "timm/test_resnet.none",
            "timm",
            "'none' is no tag of test_resnet; expected one of test_resnet.r160_in1k",
        ),
        ("timm/test_resnet", "tag:nope", "no pretrained weights .*tags with weights: test_resnet"),
    ],
)
def test_weights_that_cannot_be_had_are_refused(world, hub, student, init, reason):
    with pytest.raises(ModelError, match=reason) as error:
        begun(world, "image", student=student, image_size=32, init=init)
    assert ". Fix: " in str(error.value)


@pytest.mark.parametrize("kind", ["image", "text", "clip"])
def test_what_counts_most_is_measured_on_rows_of_the_run(world, kind):
    large, _ = large_run(world)
    lines = []
    run = begun(world, kind, lines, init=f"inherit:{large}", inherit_by="importance")
    plain = begun(world, kind, name="plain", init=f"inherit:{large}")
    for side in ["image", "text"] if kind == "clip" else [kind]:
        facts = run.begun.record[side]
        assert facts["inherit_by"] == "importance" and facts["measured_rows"] > 100
        assert any(f"by importance on {facts['measured_rows']} rows" in line for line in lines)
    own, first = run.student.model.state_dict(), plain.student.model.state_dict()
    assert any(not torch.equal(own[name], first[name]) for name in own)
    again = begun(world, kind, name="again", init=f"inherit:{large}", inherit_by="importance")
    assert_equal(dict(own), dict(again.student.model.state_dict()))
    with pytest.raises(RecipeError, match="inherit_by = 'importance' is for students that inherit"):
        refuse_idle(world.recipe(inherit_by="importance"))
