"""Runs that cut their student: gates learn what stays, the rest is removed, training goes on."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dimefm.errors import ModelError, RecipeError
from dimefm.models import open_clip
from dimefm.models.loading import load_encoder
from dimefm.models.towers import ImageTower
from dimefm.models.weights.inheritance.cut import build
from dimefm.storage.files import to_json
from dimefm.train import checkpoint
from dimefm.train.trainer import Trainer, train

SMALL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
CUT = {"prune": 0.5, "prune_steps": 4, "prune_warmup": 2, "prune_lr": 1.5, "steps": 8}
TIMINGS = ("rows_per_s", "data_share", "data_s", "compute_s")
SLOW = ["text tower", "image tower of a clip", "accumulated", "averaged"]
KINDS = ["image tower", "clip", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]
KEYS = {"image": "vision_cfg", "text": "text_cfg"}


def quiet(line):
    """Take a line of progress and say nothing."""


def recipes(world):
    """Return the recipes that cut a student."""
    small = world.root / "small.json"
    small.write_text(json.dumps(SMALL))
    student = {"student": str(small), "save_every": 1, "keep": 99, **CUT}
    text = {key: value for key, value in student.items() if key != "student"}
    captions = [f"number {n} of many" for n in range(9)]
    pairs = {"images": [str(world.pairs(captions))]}
    return {
        "image tower": world.recipe(**student, image_mask=0.3),
        "text tower": world.text_recipe(text=f"student:{small}", **text),
        "clip": world.clip_recipe(**student, **pairs, prune_target="each"),
        "image tower of a clip": world.clip_recipe(**student, **pairs, prune_towers="image"),
        "accumulated": world.recipe(**student, accum_freq=2, projection="linear"),
        "averaged": world.recipe(**student, ema=0.9),
    }


def weights(out):
    return next(path for path in out.glob("*.safetensors")).read_bytes()


def outcome(out):
    """Return what of a finished run must not depend on when it was interrupted."""
    newest = checkpoint.checkpoints(out)[-1]
    lines = []
    for line in (out / "log.jsonl").read_text().splitlines():
        fields = json.loads(line)
        lines.append({key: value for key, value in fields.items() if key not in TIMINGS})
    files = [(newest / name).read_bytes() for name in ("model.safetensors", "state.json")]
    optimizer = (newest / "optimizer.safetensors").read_bytes()
    return weights(out), files, optimizer, lines, json.loads((out / "run.json").read_text())


@pytest.fixture(scope="module", params=KINDS)
def done(make_world, tmp_path_factory, request):
    """Return (kind, recipe, the folder of its finished run that nothing disturbed)."""
    world = make_world(tmp_path_factory.mktemp("world"))
    recipe = recipes(world)[request.param]
    return request.param, recipe, train(recipe, world.root / "whole", echo=quiet)


def test_a_finished_run_holds_the_cut_student(done):
    kind, _, out = done
    record = json.loads((out / "run.json").read_text())
    towers = record["pruned"]["whole"].keys()
    assert list(towers) == (["image"] if "image" in kind else record_towers(record))
    for tower in towers:
        pruned = record["model_cfg"][KEYS[tower]]["pruned"]
        assert pruned["width"] < 16 or sum(layer["mlp"] for layer in pruned["layers"]) < 128
    assert 0.02 < record["pruned"]["removed"]["all"] < 0.9
    state = json.loads((checkpoint.checkpoints(out)[-1] / "state.json").read_text())
    assert set(state["cut"]) == {KEYS[tower] for tower in towers}
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert ["prune_share" in line for line in log] == [True] * 4 + [False] * 4
    assert [line["prune_target"] for line in log[:4]] == [0.0, 0.25, 0.5, 0.5]
    if "clip" in kind:
        model = load_encoder(str(out), "cpu")
        assert model.encode_text(model.tokenize(["a sentence"])[0]).isfinite().all()
        assert model.encode_image(torch.zeros(2, 3, 16, 16)).shape == (2, 8)


def record_towers(record):
    return {"image-tower": ["image"], "text-tower": ["text"], "clip": ["image", "text"]}[
        record["kind"]
    ]


@pytest.mark.parametrize("step", [2, 4, 5, pytest.param(7, marks=pytest.mark.slow)])
def test_a_run_resumed_on_either_side_of_the_cut_ends_with_the_same_bytes(done, tmp_path, step):
    _, recipe, out = done
    copy = tmp_path / "run"
    shutil.copytree(out, copy)
    for name in ("run.json", *(path.name for path in out.glob("*.safetensors"))):
        (copy / name).unlink()
    for folder in checkpoint.checkpoints(copy):
        if int(folder.name) > step:
            shutil.rmtree(folder)
    train(recipe, copy, resume=True, echo=quiet)
    assert outcome(copy) == outcome(out)


def test_a_damaged_checkpoint_after_the_cut_leads_back_before_it(done, tmp_path):
    kind, recipe, out = done
    copy = tmp_path / "run"
    shutil.copytree(out, copy)
    (copy / "run.json").unlink()
    for folder in checkpoint.checkpoints(copy):
        if int(folder.name) > 5:
            shutil.rmtree(folder)
    last = copy / "checkpoints" / "00000005"
    state = json.loads((last / "state.json").read_text())
    state["cut"][next(iter(state["cut"]))]["width"] = 10**9 if "image" in kind else 3
    (last / "state.json").write_text(json.dumps(state))
    (last / "SHA256SUMS").write_text(checkpoint.seal_of(last))
    said = []
    train(recipe, copy, resume=True, echo=said.append)
    assert any("the checkpoint is damaged" in line for line in said)
    assert outcome(copy) == outcome(out)


@pytest.mark.parametrize(
    "kind", ["image tower", pytest.param("text tower", marks=pytest.mark.slow)]
)
def test_the_next_stage_starts_from_the_cut_student(world, tmp_path, kind):
    recipe = recipes(world)[kind].replace(prune=0.25, precision="bf16")
    first = train(recipe, tmp_path / "first", echo=quiet)
    again = {"student": f"run:{first}", "init": f"run:{first}"}
    if kind == "text tower":
        again = {"text": f"student:run:{first}", "init": f"run:{first}"}
    second = train(recipe.replace(**again, prune=0.6), tmp_path / "second", echo=quiet)
    records = [json.loads((out / "run.json").read_text()) for out in (first, second)]
    assert records[0]["pruned"]["whole"] == records[1]["pruned"]["whole"]
    removed = [record["pruned"]["removed"]["all"] for record in records]
    assert removed[0] < removed[1]
    log = json.loads((second / "log.jsonl").read_text().splitlines()[0])
    assert log["prune_target"] == pytest.approx(removed[0], abs=1e-6)
    with pytest.raises(RecipeError, match="the student lacks 0.* already. Fix: "):
        train(recipe.replace(**again, prune=0.01), tmp_path / "third", echo=quiet)


def test_a_student_that_inherits_all_of_a_teacher_starts_as_the_teacher(world, tmp_path):
    """Before the first step gates are nearly open."""
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    torch.manual_seed(3)
    model = open_clip.from_config(SMALL).eval()
    preprocess = open_clip.default_preprocess(16)
    settings = {"model_cfg": SMALL, "preprocess_cfg": preprocess}
    (teacher / "open_clip_config.json").write_text(to_json(settings))
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, teacher / "open_clip_model.safetensors")
    recipe = recipes(world)["image tower"].replace(init=f"inherit:{teacher}", image_mask=0.0)
    trainer = Trainer(recipe, tmp_path / "run", False, quiet)
    pixels = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    trainer.student.eval()
    with torch.no_grad():
        rows = trainer.student(pixels, None)["rows"]
        wanted = model.encode_image(trainer.student.prepared(pixels))
    cosines = torch.nn.functional.cosine_similarity(rows, wanted)
    assert cosines.min() > 0.9999


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"prune_steps": 9}, "prune_steps is 9, the run has 8 steps"),
        ({"prune": None}, "prune_steps is for students that are cut"),
        ({"losses": {"clip_kd.gd": {"weight": 1.0}}, "prune_towers": "text"}, "prune_towers"),
    ],
)
def test_settings_that_do_not_go_with_a_cut_are_refused(world, tmp_path, over, words):
    with pytest.raises(RecipeError) as error:
        train(recipes(world)["image tower"].replace(**over), tmp_path / "run", echo=quiet)
    assert words in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("student", "kind"),
    [("noisy", "timm's"), ("resnet", "ModifiedResNet")],
)
def test_a_student_that_is_no_transformer_is_named(world, tmp_path, student, kind):
    resnet = {**SMALL, "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}}
    (world.root / "resnet.json").write_text(json.dumps(resnet))
    recipe = recipes(world)["image tower"].replace(student=str(world.root / f"{student}.json"))
    with pytest.raises(ModelError, match="cannot be pruned") as error:
        train(recipe, tmp_path / "run", echo=quiet)
    assert kind in str(error.value) and "Fix: " in str(error.value)


def test_a_loss_on_features_inside_the_tower_is_refused(world, tmp_path):
    over = {"losses": {"declip.simclr": {"weight": 1.0}}, "views_per_step": 2}
    with pytest.raises(RecipeError, match="'declip.simclr' reads features inside the towers"):
        train(recipes(world)["image tower"].replace(**over), tmp_path / "run", echo=quiet)


def test_an_evaluation_before_the_cut_scores_and_keeps_a_cut_student(world, tmp_path):
    widths = []

    def scorer(recipe, teacher):
        def score(model):
            widths.append(model.visual.conv1.out_channels)
            return {"first": 1.0 if len(widths) == 2 else 0.0}

        return score

    recipe = recipes(world)["averaged"].replace(eval_root="anywhere", eval_every=2)
    out = train(recipe, tmp_path / "run", echo=quiet, scorer=scorer)
    assert len(widths) == 4 and widths[2] == widths[3]
    best = json.loads((out / "checkpoints" / "best" / "run.json").read_text())
    assert best["steps"] == 4
    assert best["model_cfg"]["vision_cfg"]["pruned"]["width"] == widths[1]
    assert load_file(out / "checkpoints" / "best" / "image_tower.safetensors")


def test_gates_learn_to_close(world, tmp_path):
    out = train(recipes(world)["image tower"], tmp_path / "run", echo=quiet)
    tensors = load_file(out / "checkpoints" / "00000004" / "model.safetensors")
    alphas = [value for name, value in tensors.items() if name.startswith("gates.towers.image")]
    assert len(alphas) == 5
    assert torch.cat(alphas).min() < 4.0
    lambdas = tensors["gates.multipliers.image"]
    assert (lambdas > 10).all()


def test_what_is_cut_expects_the_pixels_that_its_source_expected():
    like = open_clip.image_tower(SMALL)
    like = ImageTower(like)
    like.visual.preprocess_cfg = {"mean": (0.1, 0.2, 0.3)}
    assert build(SMALL, like).visual.preprocess_cfg == like.visual.preprocess_cfg
