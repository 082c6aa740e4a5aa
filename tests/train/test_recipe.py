"""Recipes: what is read, what is refused, and that a written recipe reads back as the same one."""

import shlex
from pathlib import Path

import click
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dimefm.cli.train import command
from dimefm.errors import RecipeError
from dimefm.recipe import KEYS, Recipe, changed, read, refuse_idle

PIPELINES = sorted((Path(__file__).parents[2] / "pipelines").glob("*.toml"))
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
POSITIVE = st.floats(1e-12, 1e12)


def written(folder, text):
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


recipes = st.builds(
    Recipe,
    images=st.lists(TEXT, max_size=3).map(tuple),
    dataroot=st.none() | TEXT,
    image_cache=st.lists(TEXT, max_size=3).map(tuple),
    student=TEXT,
    losses=st.dictionaries(
        st.sampled_from(["dime.vl", "dime.pvl", "clip.contrastive"]),
        st.fixed_dictionaries({"weight": POSITIVE}, optional={"temperature": POSITIVE}),
    ),
    logit_scale=st.none() | POSITIVE,
    epochs=POSITIVE,
    steps=st.none() | st.integers(1, 2**40),
    lr=POSITIVE,
    grad_clip_norm=st.none() | POSITIVE,
    crop_scale=st.just((0.25, 0.5)),
    view=st.sampled_from(["cached", "free", "center"]),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(recipe=recipes)
@example(recipe=Recipe(images=('\x7f \U0001f600 \\ " \n \t',), student="é"))
def test_a_written_recipe_reads_back_as_itself(tmp_path_factory, recipe):
    path = written(tmp_path_factory.mktemp("recipe"), recipe.to_toml())
    found = read(path)
    assert found == recipe
    assert changed(found, recipe) == []


def test_an_option_that_is_none_is_left_out_of_a_written_recipe(tmp_path):
    losses = {"tinyclip.affinity": {"weight": 1.0, "teacher_scale": None, "student_scale": 2.0}}
    found = read(written(tmp_path, Recipe(losses=losses).to_toml()))
    assert found.losses == {"tinyclip.affinity": {"weight": 1.0, "student_scale": 2.0}}


@pytest.mark.parametrize("value", ["3", "[1]", "'yes'"])
def test_a_small_that_is_no_table_is_refused(tmp_path, value):
    with pytest.raises(
        RecipeError, match=r"recipe\.toml: 'small' is .*; expected a table, \[small\]"
    ):
        read(written(tmp_path, f"small = {value}"))


def test_every_field_survives_writing(tmp_path):
    """No field is left out of the file: each differs from its default here."""
    other = {str: "x", int: 7, float: 0.125}
    fixed = {
        "text": "student",
        "captions": "label",
        "long_texts": "quarantine",
        "crops": "center",
        "precision": "bf16",
        "report_to": "tensorboard",
    }
    fixed |= {
        "losses": {"dime.vl": {"weight": 1.0}},
        "images": ("a", "b"),
        "texts": ("c",),
        "source_weights": (0.7, 0.3),
        "shuffle": "blocks",
        "tsv_file_list": ("a", "b", "c", "d"),
    }
    fixed |= {
        "image_cache": ("a",),
        "text_cache": ("b", "c"),
        "projection": "linear",
        "init_projection": "least-squares",
        "inherit_by": "importance",
        "augment": "clip-kd",
    }
    fixed |= {"crop_scale": (0.5, 0.75), "crop_ratio": (0.5, 2.0), "eval_datasets": ("a", "b")}
    fixed |= {
        "mlm_caption": "contrastive",
        "optimizer": "open_clip",
        "text_augment": "eda",
        "neighbours": ("a",),
        "image_tokens": ("b",),
        "text_tokens": ("c",),
        "prune_towers": "image",
        "prune_target": "each",
    }
    for name in Recipe.model_fields:
        if name not in fixed:
            fixed[name] = other[KEYS[name].value_type]
    recipe = Recipe(**fixed)
    assert all(getattr(recipe, name) != getattr(Recipe(), name) for name in Recipe.model_fields)
    assert read(written(tmp_path, recipe.to_toml())) == recipe


def test_flags_win_over_the_small_table_which_wins_over_the_file(tmp_path):
    path = written(
        tmp_path, "lr = 1e-3\nsteps = 100\nbatch_size = 64\n[small]\nsteps = 3\nbatch_size = 4\n"
    )
    whole, small = read(path), read(path, small=True, batch_size=5, wd=None)
    assert (whole.lr, whole.steps, whole.batch_size) == (1e-3, 100, 64)
    assert (small.lr, small.steps, small.batch_size, small.wd) == (1e-3, 3, 5, Recipe().wd)


def test_whole_numbers_stand_for_floats(tmp_path):
    recipe = read(written(tmp_path, "lr = 1\nepochs = 2\n"))
    assert (recipe.lr, recipe.epochs) == (1.0, 2.0)
    assert isinstance(recipe.lr, float)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("btach_size = 3", "unknown recipe key 'btach_size': did you mean 'batch_size'?"),
        ("[small]\nstepz = 3", "unknown recipe key 'stepz': did you mean 'steps'?"),
        ("batch_size = '3'", "'batch_size' is '3'; expected int"),
        ("batch_size = 3.5", "'batch_size' is 3.5; expected int"),
        ("batch_size = true", "'batch_size' is True; expected int"),
        ("lr = 'fast'", "'lr' is 'fast'; expected float"),
        ("images = 'folder'", "'images' is 'folder'; expected tuple"),
        ("images = [1, 2]", "'images' is [1, 2]; expected tuple[str"),
        ("student = 5", "'student' is 5; expected str"),
        ("losses = 3", "'losses' is 3; expected dict"),
        ("crops = 'middle'", "'crops' is 'middle'; expected one of 'replay', 'free', 'center'"),
        ("batch_size = 0", "'batch_size' is 0; expected a positive number"),
        ("lr = -1.0", "'lr' is -1.0; expected a positive number"),
        ("lr = nan", "'lr' is nan; expected a positive number"),
        ("epochs = inf", "'epochs' is inf; expected a positive number"),
        ("logit_scale = 0", "'logit_scale' is 0.0; expected a positive number"),
        ("image_size = -5", "'image_size' is -5; expected a positive number"),
        ("grad_clip_norm = 0", "'grad_clip_norm' is 0.0; expected a positive number"),
        ("wd = -0.1", "'wd' is -0.1; expected a number of at least 0"),
        ("resize = -1", "'resize' is -1; expected a number of at least 0"),
        ("beta2 = 1.0", "'beta2' is 1.0; expected 0 <= beta2 < 1"),
        ("image_mask = 1.0", "'image_mask' is 1.0; expected 0 <= image_mask < 1"),
        ("flip = 1.5", "'flip' is 1.5; expected 0 <= flip <= 1"),
        ("crop_scale = [0.5]", "'crop_scale' is [0.5]; expected tuple[float, float]"),
        ("crop_scale = [0.9, 0.1]", "'crop_scale' is (0.9, 0.1); expected 0 < low <= high <= 1"),
        ("crop_ratio = [-1.0, 1.0]", "'crop_ratio' is (-1.0, 1.0); expected 0 < low <= high"),
        ("[losses]\n'dime.vl' = 0.5", "loss 'dime.vl' is 0.5; expected a table with a weight"),
        ("[losses]\n'dime.vl' = { temperature = 1.0 }", "expected a table with a weight"),
        ("[losses]\n'dime.vl' = { weight = true }", "expected a table with a weight"),
        ("lr = = 3", "cannot be read as TOML"),
    ],
)
def test_mistakes_are_refused_in_one_line_that_names_the_file(tmp_path, text, words):
    path = written(tmp_path, text)
    with pytest.raises(RecipeError) as error:
        read(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_flag_is_not_blamed_on_the_file(tmp_path):
    path = written(tmp_path, "lr = 1e-3")
    with pytest.raises(RecipeError, match="^'batch_size' is 0"):
        read(path, batch_size=0)


def test_small_without_a_table_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="does not have"):
        read(written(tmp_path, "lr = 1e-3"), small=True)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        read(tmp_path / "none.toml")


def test_only_what_changes_the_result_counts_as_changed():
    ours = Recipe(workers=1, log_every=3, lr=1e-3)
    assert changed(ours, ours.replace(workers=9, log_every=1, device="cpu")) == []
    assert changed(ours, ours.replace(lr=2e-3)) == ["lr: 0.001 against 0.002"]


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_each_pipeline_reads_and_its_header_is_a_command_that_parses(path):
    recipe = read(path)
    assert recipe.losses
    assert read(path, small=True) != recipe
    header = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in header)
    words = shlex.split(
        next(line for line in _commands(header) if line.startswith("dimefm train")), comments=False
    )
    assert words[:2] == ["dimefm", "train"]
    assert f"pipelines/{path.name}" in words
    words[words.index(f"pipelines/{path.name}")] = str(path)
    context = command.make_context("train", words[2:], resilient_parsing=False)
    assert isinstance(context, click.Context)
    assert context.params["recipes"] == (str(path),)


def _commands(header):
    """Return the commands of a header, lines that end in a backslash joined with the next."""
    text = "\n".join(line.removeprefix("#").strip() for line in header).replace("\\\n", " ")
    return text.splitlines()


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"texts": ["a"]}, "use --text student:NAME"),
        ({"texts": ["a"], "text": "student"}, "use --text student:NAME"),
        (
            {"word_dropout": 0.5},
            r"word_dropout is for a text tower \(--text student:NAME\) and would do nothing here",
        ),
        (
            {"image_mask": 0.5, "text": "student:ViT-T-16"},
            "image_mask is for a student of images and would do nothing",
        ),
        ({"captions": "label"}, r"captions = 'label' is for pairs \(--text student\)"),
        ({"eval_every": 2}, "eval_every is for --eval-root"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(over, words):
    with pytest.raises(RecipeError, match=words):
        refuse_idle(read(None, **over))
