"""``[export]`` is the last stage of a pipeline: the student leaves for other programs."""

import json
import shutil

import pytest

from dimefm.errors import RecipeError
from dimefm.experiment.file import read_experiment
from dimefm.experiment.run import run_experiment
from dimefm.models.model import load

PIPELINE = """
[extract]
teacher = "ResNet-mini-32/random:0"
images = ["images"]
texts = ["sentences.txt"]
device = "cpu"

[train]
student = "ResNet-mini-32"
images = ["images"]
crops = "free"
resize = 0
steps = 2
batch_size = 4
device = "cpu"

[export]
to = ["open_clip"]
"""


@pytest.fixture
def pipeline(picture, tmp_path):
    """Return the path of a pipeline file with its data beside it."""
    (tmp_path / "images").mkdir()
    for number in range(6):
        (tmp_path / f"images/{number}.png").write_bytes(picture(number))
    (tmp_path / "sentences.txt").write_text("a cat\na dog\na tree\n")
    (tmp_path / "pipeline.toml").write_text(PIPELINE)
    return tmp_path / "pipeline.toml"


def run(pipeline, out):
    said = []
    experiment = read_experiment(pipeline, dataroot=str(pipeline.parent))
    return run_experiment(experiment, out, said.append), said


def test_the_student_of_a_pipeline_is_exported_once(pipeline, tmp_path):
    out = tmp_path / "out"
    table, _ = run(pipeline, out)
    folder = out / "export/open_clip"
    assert f"open_clip in {out / 'export'}" in table
    ours, theirs = load(str(out / "run"), "cpu"), load(str(folder), "cpu")
    assert abs(ours.encode_text("a cat") - theirs.encode_text("a cat")).max() < 1e-6
    before = (folder / "export.json").stat().st_mtime_ns
    _, said = run(pipeline, out)
    assert "3/3 export: done already, inputs unchanged" in said
    shutil.rmtree(folder)
    run(pipeline, out)
    assert (folder / "export.json").stat().st_mtime_ns > before
    assert json.loads((folder / "export.json").read_text())["format"] == "open_clip"


def test_an_unknown_format_is_refused_before_any_stage(pipeline, tmp_path):
    pipeline.write_text(PIPELINE.replace('"open_clip"', '"open-clip"'))
    with pytest.raises(RecipeError, match="unknown export format.*did you mean 'open_clip'"):
        run(pipeline, tmp_path / "out")
    assert not (tmp_path / "out").exists()
