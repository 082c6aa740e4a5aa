"""Recipe files that are based on others, and recipes in the table ``[train]`` of a pipeline."""

import pytest

from dimefm.errors import RecipeError
from dimefm.experiment.file import read_experiment
from dimefm.recipe import Recipe, read


@pytest.fixture
def write(tmp_path):
    def written(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return written


def refusal(path, **settings):
    with pytest.raises(RecipeError) as error:
        read(path, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_child_replaces_keys_of_its_base_whole_and_keys_of_small_one_by_one(write):
    write("base.toml", 'lr = 1.0\nimages = ["a", "b"]\n[losses]\n"dime.vl" = { weight = 2.0 }\n')
    write("shared/middle.toml", 'base = "../base.toml"\nwd = 0.5\n[small]\nsteps = 3\nlr = 0.25\n')
    text = 'base = "shared/middle.toml"\nimages = ["c"]\n[losses]\n"dime.pvl" = { weight = 1.0 }\n'
    path = write("child.toml", text + "[small]\nsteps = 4\n")
    expected = Recipe(lr=1.0, wd=0.5, images=["c"], losses={"dime.pvl": {"weight": 1.0}})
    assert read(path) == expected
    assert read(path, small=True) == expected.replace(steps=4, lr=0.25)
    assert read(path, lr=3.0) == expected.replace(lr=3.0)


def test_what_a_child_implies_wins_over_what_its_base_sets(write):
    write("base.toml", 'augment = "clip-kd"\ncrop_scale = [0.5, 1.0]\nimages = ["a"]\n')
    path = write("child.toml", 'base = "base.toml"\naugment = "moco-v2"\n')
    assert read(path).crop_scale == (0.2, 1.0)
    path = write("child.toml", 'base = "base.toml"\ntsv_file_list = ["a", "b", "c", "d"]\n')
    assert read(path).images == () and read(path).crops == "free"


def test_a_base_that_leads_back_is_refused(write):
    write("a.toml", 'base = "b.toml"\n')
    write("b.toml", 'base = "c/../a.toml"\n')
    (write("c/x.toml", "")).unlink()
    line = refusal(write("child.toml", 'base = "a.toml"\n'))
    assert "its base leads back to it" in line
    assert "a.toml -> " in line and "b.toml -> " in line
    assert "its base leads back to it" in refusal(write("own.toml", 'base = "own.toml"\n'))


def test_a_fault_is_blamed_on_the_file_that_has_it(write):
    base = write("base.toml", "lr = -1.0\n")
    child = write("child.toml", 'base = "base.toml"\n')
    assert refusal(child) == f"{base}: 'lr' is -1.0; expected a positive number"
    write("base.toml", "lr = 1.0\n[small]\nstepz = 1\n")
    assert refusal(child).startswith(f"{base}: unknown recipe key 'stepz'")
    write("base.toml", "lr = 1.0\n")
    write("child.toml", 'base = "base.toml"\nwd = -1.0\n')
    assert refusal(child).startswith(f"{child}: 'wd' is -1.0")


def test_a_base_that_is_no_file_is_refused(write):
    line = refusal(write("child.toml", 'base = "none.toml"\n'))
    assert "none.toml: cannot be read as TOML" in line
    assert "'base' is 3; expected the path of a TOML file" in refusal(write("a.toml", "base = 3\n"))


PIPELINE = """
[extract]
teacher = "ViT-B-16/openai"
[train]
lr = 0.5
[train.losses]
"dime.pvl" = { weight = 1.0 }
[eval]
suites = ["elevater"]
[small.extract]
limit = 3
[small.train]
steps = 3
"""


def test_the_recipe_of_a_pipeline_file_is_its_table_train(write):
    expected = Recipe(lr=0.5, losses={"dime.pvl": {"weight": 1.0}})
    path = write("pipeline.toml", PIPELINE)
    assert read(path) == expected
    assert read(path, small=True) == expected.replace(steps=3)


def test_dimefm_run_reads_the_same_recipe(write):
    write("base.toml", PIPELINE)
    path = write("pipeline.toml", 'base = "base.toml"\n[train]\naugment = "clip-kd"\n')
    for small in (False, True):
        assert read_experiment(path, small).train == read(path, small)
    settings = {"augment": "moco-v2", "view": "free"}
    changed = read_experiment(path, settings={"train": settings}).train
    assert changed == read(path, **settings)
    assert changed.crop_scale == (0.2, 1.0)


def test_files_of_both_forms_may_be_based_on_each_other(write):
    write("pipeline.toml", PIPELINE)
    flat = write("flat.toml", 'base = "pipeline.toml"\nwd = 0.25\n[small]\nsteps = 4\n')
    expected = Recipe(lr=0.5, wd=0.25, losses={"dime.pvl": {"weight": 1.0}})
    assert read(flat) == expected
    assert read(flat, small=True) == expected.replace(steps=4)
    tables = write("tables.toml", 'base = "flat.toml"\n[train]\nlr = 0.75\n')
    assert read(tables, small=True) == expected.replace(steps=4, lr=0.75)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr = 1.0\n[train]\nwd = 0.5\n", "unknown table 'lr': known: "),
        ("[train]\n[evla]\nsuites = []\n", "unknown table 'evla': did you mean 'eval'?"),
        ("[train]\n[small]\nsteps = 3\n", "unknown table 'small.steps'"),
        ("[train]\nstepz = 3\n", "unknown recipe key 'stepz': did you mean 'steps'?"),
        ("eval = 3\n[train]\n", "'eval' is 3; expected a table"),
        ("[train]\n[small.train]\nstepz = 3\n", "unknown recipe key 'stepz'"),
        ("[extract]\nteacher = 'a'\n", "has no table [train]"),
    ],
)
def test_mistakes_in_a_pipeline_file_are_refused(write, text, words):
    path = write("pipeline.toml", text)
    line = refusal(path)
    assert words in line
    assert line.startswith(f"{path}: ")


def test_small_needs_a_small_table_of_the_recipe(write):
    path = write("pipeline.toml", "[train]\nlr = 1.0\n[small.extract]\nlimit = 3\n")
    assert "asks for a [small] table" in refusal(path, small=True)
