"""``dimefm train`` as people use it: recipes by name, DIME-FM's flags, few samples, settings that
do nothing."""

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from dimefm.cli import main
from dimefm.cli._dime_fm_options import RENAMED, STUDENTS
from dimefm.errors import DataError, ModelError, RecipeError
from dimefm.recipe import KEYS, Recipe, changed, presets, read
from dimefm.recipe.presets import path_of, title
from dimefm.runs.compare import differences, read_runs
from dimefm.train import train
from dimefm.train.trainer import train as run

ROOT = Path(__file__).parents[2]


def dimefm(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def quiet(line):
    """Take a line of progress and say nothing."""


@pytest.fixture
def resolved(monkeypatch):
    """Return the recipes and folders that commands resolve to; nothing is trained."""
    seen = []

    def trains(recipe, out, resume, **options):
        seen.append((recipe, out, options))
        raise RecipeError("resolved")

    monkeypatch.setattr("dimefm.train.trainer.train", trains)
    monkeypatch.setattr("dimefm.cli.train.refuse_absent_inputs", lambda *paths: None)
    return seen


# Recipes


def test_every_pipeline_is_a_recipe_by_name_and_is_listed():
    files = {path.stem: path for path in sorted((ROOT / "pipelines").glob("*.toml"))}
    found = presets.presets()  # in the checkout, or in the installed package
    assert list(found) == list(files) and len(files) > 20
    assert all(found[name].read_text() == path.read_text() for name, path in files.items())
    listed = dimefm("recipes").stdout
    heads = [line.split()[0] for line in listed.splitlines() if not line.startswith(" ")]
    assert heads == list(files)
    words = " ".join(listed.split())
    assert all(f"{name} {' '.join(title(path).split())}" in words for name, path in files.items())
    assert files["declip_slip"].read_text() in dimefm("recipes", "declip_slip").stdout


def test_a_wheel_has_the_recipes_in_the_package(tmp_path, monkeypatch):
    (tmp_path / "dimefm/pipelines").mkdir(parents=True)
    (tmp_path / "dimefm/pipelines/a.toml").write_text("# Of the wheel.\n")
    folders = (tmp_path / "dimefm/pipelines", ROOT / "pipelines")
    monkeypatch.setattr(presets, "FOLDERS", folders)
    assert presets.presets() == {"a": tmp_path / "dimefm/pipelines/a.toml"}


@pytest.mark.parametrize("name", ["clip_kd_vit_t16", "clip_kd_vit_t16.toml"])
def test_a_recipe_by_name_is_that_of_its_file(resolved, name):
    dimefm("train", "--recipe", name, "--out", "x")
    assert resolved[0][0] == read(ROOT / "pipelines/clip_kd_vit_t16.toml")
    assert path_of(name).name == "clip_kd_vit_t16.toml"


def test_a_file_of_the_users_wins_over_the_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "declip_slip.toml").write_text("lr = 0.5\n")
    assert path_of("declip_slip.toml") == Path("declip_slip.toml")


@pytest.mark.parametrize("command", [("train", "--out", "x", "--recipe"), ("run",)])
@pytest.mark.parametrize("name", ["clip_kd_vitt16", "x/clip_kd_vit_t16", "none.toml"])
def test_an_unknown_recipe_is_bad_usage_with_the_nearest_name(command, name):
    result = dimefm(*command, name)
    assert result.exit_code == 2
    assert f"{name}: no such recipe file" in result.stderr
    if name == "clip_kd_vitt16":
        assert "did you mean 'clip_kd_vit_t16'?" in result.stderr


def test_two_recipes_are_refused_and_base_is_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text("lr = 0.5\n")
    both = ("--recipe", tmp_path / "a.toml", "--recipe", tmp_path / "b.toml")
    for words in (both, (both[0], both[1], both[3])):
        result = dimefm("train", *words, "--out", tmp_path / "run")
        assert result.exit_code == 2 and not (tmp_path / "run").exists()
        assert "--recipe is given 2 times" in result.stderr and "base =" in result.stderr


# DIME-FM's flags


README = (
    *("--amp", "--dataroot", "DATA", "--tsv_file_list", "image.list", "image_feat.list"),
    *("text.list", "text_feat.list", "--batch_size", "640", "--use_pvl_loss"),
)


def test_the_command_of_dime_fms_readme_is_taken_as_it_is(resolved):
    result = dimefm("train", *README)
    recipe, out, _ = resolved[0]
    assert (recipe.precision, recipe.batch_size, str(out)) == ("bf16", 640, "snapshots")
    assert set(recipe.losses) == {"dime.vl", "dime.pvl"}
    assert "DIME-FM's --amp: --precision bf16" in result.stderr


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (("--base_lr", "0.1"), {"lr": 0.1}),
        (("--warmup_lr", "0.1"), {"warmup_lr": 0.1}),
        (("--min_lr", "0.1"), {"min_lr": 0.1}),
        (("--warmup_epochs", "3"), {"warmup": 3.0}),
        (("--num_workers", "3"), {"workers": 3}),
        (("--print_freq", "3"), {"log_every": 3}),
        (("--seed", "3", "--epochs", "7"), {"seed": 3, "epochs": 7.0}),
        (("--local_rank", "0"), {}),
        (("--w_vl_loss", "0.5"), {"losses": {"dime.vl": {"weight": 0.5}}}),
        (
            ("--use_pvl_loss", "--w_pvl_loss", "0.5", "--t_pvl", "2"),
            {
                "losses": {
                    "dime.vl": {"weight": 0.7},
                    "dime.pvl": {"weight": 0.5, "temperature": 2.0},
                }
            },
        ),
        (
            ("--student_config_file", "configs/models/swin_tiny.yaml"),
            {"student": "dime-Swin-T"},
        ),
    ],
)
def test_each_flag_means_what_it_says(resolved, words, settings):
    result = dimefm("train", *words, "--out", "run")
    recipe, out, _ = resolved[0]
    assert recipe == Recipe().replace(**settings) and str(out) == "run"
    for word in words:
        name = word.removeprefix("--")
        if name in RENAMED:
            assert f"DIME-FM's --{name.replace('_', '-')} " in result.stderr


def test_the_run_folder_has_their_name(resolved):
    dimefm("train", "--output_dir", "logs", "--prefix", "first")
    dimefm("train", "--prefix", "first")
    dimefm("train", "--base_lr", "0.1", "--out", "mine")
    assert [str(out) for _, out, _ in resolved] == ["logs/first", "snapshots/first", "mine"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--base_lr", 1, "--lr", 1), "--base-lr and --lr mean the same"),
        (("--output_dir", "a"), "--output-dir and --out mean the same"),
        (("--amp", "--precision", "fp32"), "--amp and --precision mean the same"),
        (("--student_config_file", "x.yaml"), "is none of the released configs"),
    ],
)
def test_flags_that_contradict_or_are_unknown_are_refused(words, message):
    result = dimefm("train", *words, "--out", "run")
    assert result.exit_code == 2 and message in result.stderr


def test_their_flags_have_keys_and_students_that_exist():
    assert {key for key, _ in RENAMED.values()} <= set(KEYS) | {"w_vl", "w_pvl", "w_udist"}
    for name in STUDENTS.values():
        assert (ROOT / f"dimefm/models/students/{name}.json").is_file()
    assert "--base-lr" not in dimefm("train", "--help").output


# A batch that is larger than the sources


def test_a_batch_fits_itself_to_few_rows_and_says_so(world, digests):
    recipe = world.recipe(batch_size=640, save_every=3)
    said = []
    out = run(recipe, world.root / "run", echo=said.append, fits_batch=True)
    assert "so a batch has 17 of them, not 640 (--batch-size sets another number)" in said[0]
    assert tomllib.loads((out / "recipe.toml").read_text())["batch_size"] == 640
    (out / "run.json").rename(out / "kept")
    weights = (out / "image_tower.safetensors").read_bytes()
    newest = out / "checkpoints/00000006"
    newest.rename(out / "aside")
    run(recipe, out, resume=True, echo=quiet, fits_batch=True)
    assert (out / "image_tower.safetensors").read_bytes() == weights
    exact = run(recipe.replace(batch_size=17), world.root / "exact", echo=quiet)
    assert (exact / "image_tower.safetensors").read_bytes() == weights
    assert json.loads((out / "run.json").read_text()) == json.loads((out / "kept").read_text())


def test_a_batch_that_is_stated_is_refused_where_there_are_fewer_rows(world):
    settings = world.recipe().settings()
    del settings["batch_size"]
    assert train({**settings, "losses": dict(settings["losses"])}, world.root / "a", echo=quiet)
    for stated in ({**settings, "batch_size": 640}, Recipe(**settings)):
        with pytest.raises(DataError, match="17 rows, fewer than a batch of 640"):
            train(stated, world.root / "b", echo=quiet)
    with pytest.raises(DataError, match="17 rows, fewer than a batch of 18"):
        train(settings, world.root / "b", echo=quiet, batch_size=18)


# Settings that a run does not look at


CROPS = {
    "flip": 0.1,
    "crop_scale": [0.3, 0.9],
    "crop_ratio": [0.5, 1.5],
    "resize": 99,
    "augment": "clip-kd",
}


@pytest.mark.parametrize("name", CROPS)
def test_what_the_center_does_not_look_at_is_neither_saved_nor_compared(tmp_path, name):
    plain = Recipe(crops="center")
    other = plain.replace(**{name: CROPS[name]})
    assert other != plain and changed(other, plain) == changed(plain, other) == []
    assert f"{name} = " not in plain.to_toml()
    assert read(_written(tmp_path / "x.toml", other.to_toml())) == other
    free = Recipe(crops="free")
    assert changed(free.replace(**{name: CROPS[name]}), free)
    assert f"{name} = " in free.to_toml()


def test_runs_of_before_that_have_saved_them_are_compared_without_them(tmp_path):
    for run_name, flip in (("a", 0.1), ("b", 0.2)):
        _written(tmp_path / run_name / "recipe.toml", f'view = "center"\nflip = {flip}\n')
        _written(tmp_path / run_name / "log.jsonl", "")
    assert differences(read_runs([tmp_path / "a", tmp_path / "b"])) == []
    _written(tmp_path / "b/recipe.toml", 'view = "free"\nflip = 0.2\n')
    rows = {row[0]: row[1:] for row in differences(read_runs([tmp_path / "a", tmp_path / "b"]))}
    assert rows["flip"][1] == "0.2" and rows["flip"][0] not in ("0.1", "0.5")


def test_what_is_set_in_vain_is_said(world):
    said = []
    settings = {"crops": "center", "flip": 0.1, "crop_scale": [0.3, 0.9], "steps": 1}
    run(world.recipe(**settings), world.root / "run", echo=said.append)
    assert said[0] == "note: crops = 'center' does not look at crop_scale, flip, resize"


def test_colors_of_the_center_are_looked_at():
    plain = Recipe(crops="center")
    assert changed(plain.replace(augment="moco-v2"), plain)


def _written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# A finished run


def test_a_finished_run_says_which_settings_are_others(world):
    recipe = world.recipe()
    out = run(recipe, world.root / "run", echo=quiet)
    said = []
    run(recipe.replace(workers=1, save_every=2), out, resume=True, echo=said.append)
    assert said[0].endswith(
        "nothing to do (other settings of this call: workers: 1 against 2; save_every: 2 against"
        " 1000)"
    )
    with pytest.raises(ModelError, match="its recipe is another one: lr: 0.01 against 0.0008"):
        run(recipe.replace(lr=0.01), out, resume=True, echo=quiet)
