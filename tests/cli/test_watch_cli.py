"""``dimefm train --eval-root``: the scores on the way are those of ``dimefm eval``, and what cannot
be scored is refused.
"""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from dimefm.cache import FeatureCache
from dimefm.cli import main
from dimefm.models import student
from dimefm.recipe import read
from dimefm.train.online_eval import scorer

TEACHER = "ResNet-mini-64/random:0"
COLOURS = {"red": (230, 20, 20), "green": (20, 230, 20), "blue": (20, 20, 230)}
TINY = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def dimefm(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def done(*words):
    result = dimefm(*words)
    assert result.exit_code == 0, result.output
    return result


def refusal(*words, code=1):
    """Return the last line of a command that is expected to end with ``code``, without a
    traceback.
    """
    result = dimefm(*words)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr.rstrip("\n").split("\n")[-1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Captioned images, caches of a teacher made by the tool, and two datasets of colours."""
    root = tmp_path_factory.mktemp("watched")
    (root / "photos").mkdir()
    lines = []
    for n in range(9):
        name, colour = list(COLOURS.items())[n % 3]
        Image.new("RGB", (24, 20), tuple(c - n for c in colour)).save(root / "photos" / f"{n}.png")
        lines.append(f"photos/{n}.png,the colour {name} number {n}\n")
        for dataset in ("paints", "squares"):
            folder = root / "sets" / dataset / "test" / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), tuple(c - 2 * n for c in colour)).save(folder / f"{n}.png")
            (root / "sets" / dataset / "classnames.txt").write_text("red\ngreen\nblue\n")
    (root / "pairs.csv").write_text("filepath,title\n" + "".join(lines))
    (root / "sentences.txt").write_text(
        "".join(f"the colour {name} again {n}\n" for n in range(4) for name in COLOURS)
    )
    (root / "tiny.json").write_text(json.dumps(TINY))
    sources = ("--images", root / "photos", "--texts", root / "sentences.txt")
    done(
        "extract-features",
        "--teacher",
        TEACHER,
        "--device",
        "cpu",
        "--out",
        root / "cache",
        *sources,
    )
    return root


def words(made, out, *more, kind="image"):
    """Return a train command that is measured every other step."""
    caches = ["--image-cache", made / "cache/images", "--text-cache", made / "cache/texts"]
    tower = {
        "image": ["--images", made / "photos", *caches, "--student", made / "tiny.json"],
        "text": [
            "--texts",
            made / "sentences.txt",
            *caches,
            "--text",
            f"student:{made / 'tiny.json'}",
        ],
        "both": [
            "--images",
            made / "pairs.csv",
            "--text",
            "student",
            "--student",
            made / "tiny.json",
            "--no-vl-loss",
        ],
    }[kind]
    tower += ["--set", 'losses={"clip.contrastive"={weight=1.0}}'] if kind == "both" else []
    common = [
        "--steps",
        5,
        "--batch-size",
        4,
        "--device",
        "cpu",
        "--crops",
        "free",
        "--lr",
        0.01,
        "--warmup",
        0,
    ]
    watch = ["--eval-root", made / "sets", "--eval-datasets", "paints, squares", "--eval-every", 2]
    return ["train", *tower, *common, *watch, "--out", out, *more]


def evaluations(out):
    found = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in found if "eval/mean" in line}


def scored(made, model, out):
    """Return what ``dimefm eval elevater`` says of a model."""
    done(
        "eval",
        "elevater",
        "--model",
        model,
        "--root",
        made / "sets",
        "--datasets",
        "paints,squares",
        "--out",
        out,
        "--device",
        "cpu",
    )
    return json.loads((out / "scores.json").read_text())


@pytest.mark.parametrize(
    "kind",
    [
        "image",
        pytest.param("text", marks=pytest.mark.slow),
        pytest.param("both", marks=pytest.mark.slow),
    ],
)
def test_the_scores_on_the_way_are_those_of_eval(made, tmp_path, kind):
    out = tmp_path / "run"
    said = done(*words(made, out, "--ema", 0.3, kind=kind)).stderr
    found = evaluations(out)
    assert list(found) == [2, 4, 5]
    final = scored(made, out, tmp_path / "final")
    assert found[5]["eval/mean"] == pytest.approx(final["mean"], abs=1e-7)
    assert found[5]["eval/paints"] == pytest.approx(final["scores"][0]["value"], abs=1e-7)
    best = json.loads((out / "run.json").read_text())["best"]
    top = max(found, key=lambda step: (found[step]["eval/mean"], -step))
    assert (best["step"], best["at"]) == (top, "checkpoints/best")
    assert best["mean"] == pytest.approx(found[top]["eval/mean"], abs=1e-7)
    assert scored(made, out / best["at"], tmp_path / "best")["mean"] == pytest.approx(
        best["mean"], abs=1e-7
    )
    assert (
        f"best mean score {100 * best['mean']:.2f} % after step {top}: {out / 'checkpoints/best'}"
        in said
    )


def test_measuring_leaves_the_model_and_the_random_numbers_as_they_were(made):
    settings = {
        "student": "timm/test_resnet",
        "image_size": 32,
        "eval_datasets": ("paints",),
        "device": "cpu",
    }
    recipe = read(
        None, eval_root=str(made / "sets"), losses={"dime.vl": {"weight": 1.0}}, **settings
    )
    score = scorer(recipe, FeatureCache(made / "cache/images").manifest.encoder)
    model, _ = student.build(student.resolve(recipe.student, 32, 128), both_towers=False, seed=0)
    model.train().visual.trunk.eval()
    modes = [module.training for module in model.modules()]
    weights, draws = (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        torch.get_rng_state(),
    )
    assert score(model).keys() == {"paints"} and score(model) == score(model)
    assert (
        [module.training for module in model.modules()] == modes
        and True in modes
        and False in modes
    )
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
def test_without_names_the_sets_of_the_suite_that_are_there_are_scored(made, tmp_path):
    shutil.copytree(made / "sets/paints", tmp_path / "sets/mnist")
    (tmp_path / "sets/mnist/classnames.txt").write_text("red\ngreen\nblue\n")
    base = words(made, tmp_path / "run")
    at = base.index("--eval-root")
    base[at : at + 4] = ["--eval-root", tmp_path / "sets"]
    done(*base)
    assert {"eval/mnist", "eval/mean"} < evaluations(tmp_path / "run")[5].keys()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--eval-datasets", "paint"), "'paint' is neither a benchmark nor a folder in"),
        (("--eval-datasets", "paints,cifar-10"), "cifar-10 is not there"),
        (("--eval-root", "nowhere"), "nowhere: there is no such folder"),
        (
            ("--eval-text-model", "runs/none"),
            "needs the other tower, of the teacher 'ResNet-mini-64/random:0'",
        ),
        (
            ("--eval-text-model", "ResNet-mini-64/random:1"),
            "name the right teacher with --eval-text-model",
        ),
        (("--eval-every", 0), "'eval_every' is 0; expected a positive number"),
        (("--patience", 0), "'patience' is 0; expected a positive number"),
        (("--ema", 1.5), "'ema' is 1.5; expected 0 <= ema < 1"),
        (
            ("--report-to", "csv"),
            "'report_to' names 'csv'; expected 'tensorboard', 'wandb' or both",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_step(made, tmp_path, more, message):
    assert message in refusal(*words(made, tmp_path / "run", *more))
    assert not (tmp_path / "run/log.jsonl").exists()


@pytest.mark.parametrize("flag", ["--eval-datasets", "--patience", "--eval-text-model"])
def test_flags_that_do_nothing_without_datasets_are_refused(made, tmp_path, flag):
    base = words(made, tmp_path / "run")
    at = base.index("--eval-root")
    base[at : at + 6] = [flag, 3]
    name = flag.strip("-").replace("-", "_")
    line = refusal(*base)
    assert f"{name} is for --eval-root, the folder of datasets, and would do nothing here" in line
    assert "or set --eval-root" in line


def test_a_dataset_none_of_whose_images_can_be_read_is_refused_before_the_first_step(
    made, tmp_path
):
    shutil.copytree(made / "sets", tmp_path / "sets")
    for path in (tmp_path / "sets/squares").rglob("*.png"):
        path.write_bytes(b"no image")
    line = refusal(*words(made, tmp_path / "run", "--eval-root", tmp_path / "sets"))
    assert "squares: no image of the test split can be read" in line
    assert not (tmp_path / "run/log.jsonl").exists()


@pytest.mark.slow
def test_a_text_towers_run_lends_its_prompts(made, tmp_path):
    done(*words(made, tmp_path / "text", kind="text"))
    done(*words(made, tmp_path / "image", "--eval-text-model", tmp_path / "text"))
    last = evaluations(tmp_path / "image")[5]["eval/mean"]
    flags = (
        "--root",
        made / "sets",
        "--datasets",
        "paints,squares",
        "--device",
        "cpu",
        "--text-model",
        tmp_path / "text",
    )
    done("eval", "elevater", "--model", tmp_path / "image", "--out", tmp_path / "scores", *flags)
    assert json.loads((tmp_path / "scores/scores.json").read_text())["mean"] == pytest.approx(
        last, abs=1e-7
    )
