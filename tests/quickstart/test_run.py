"""The quickstart's folder belongs to one seed; interrupted, it goes on where it was."""

import json

import pytest

from dimefm.errors import RecipeError
from dimefm.quickstart import data
from dimefm.quickstart import run as quick
from dimefm.train.trainer import Trainer


class Stop(Exception):
    """Ends a quickstart after its data."""


@pytest.fixture
def made(monkeypatch):
    """Return the list of seeds for which data were made; a quickstart stops where the teacher would
    be trained.
    """
    seeds = []

    def write(folder, seed, scale):
        seeds.append(seed)
        return data.Sizes(1, 2, 3, 4, 5)

    def stop(*args):
        raise Stop

    monkeypatch.setattr(data, "write", write)
    monkeypatch.setattr(quick, "_train", stop)
    return seeds


def begin(out, seed=0, scale=1.0):
    with pytest.raises(Stop):
        quick.quickstart(out, seed, lambda line: None, scale)


def test_the_seed_is_written_first_and_another_one_is_refused(tmp_path, made):
    begin(tmp_path / "q", 3)
    record = json.loads((tmp_path / "q/quickstart.json").read_text())
    assert (record["seed"], record["data"]["sentences"]) == (3, 3)
    with pytest.raises(
        RecipeError,
        match=r"q: was begun with --seed 3, not 4. Fix: give that seed, or another --out",
    ):
        quick.quickstart(tmp_path / "q", 4)
    begin(tmp_path / "q", 3)
    assert made == [3]


def test_another_scale_is_refused(tmp_path, made):
    begin(tmp_path / "q", 0, 0.5)
    with pytest.raises(
        RecipeError,
        match=r"q: was begun with --scale 0\.5, not 1\.0. Fix: give that scale, or another --out",
    ):
        quick.quickstart(tmp_path / "q", 0)


def test_another_seed_is_refused_also_when_finished(tmp_path, made):
    begin(tmp_path / "q")
    (tmp_path / "q/summary.json").write_text("{}")
    with pytest.raises(RecipeError, match="--seed 0, not 1"):
        quick.quickstart(tmp_path / "q", 1)


def test_data_that_are_not_whole_are_made_again(tmp_path, made, monkeypatch):
    def interrupted(folder, seed, scale):
        (folder / "eval/shapes").mkdir(parents=True)
        (folder / "eval/shapes/test.tar").write_bytes(b"")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(data, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quick.quickstart(tmp_path / "q", 0, echo=lambda line: None)
    begin(tmp_path / "q")
    assert made == [0]


@pytest.mark.parametrize("name", ["data", "student"])
def test_a_folder_of_unknown_seed_is_refused(tmp_path, made, name):
    (tmp_path / name).mkdir()
    with pytest.raises(
        RecipeError, match=f"holds {name} but no quickstart.json, so its seed is unknown"
    ):
        quick.quickstart(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_damaged_record_is_one_line(tmp_path, made, text):
    (tmp_path / "quickstart.json").write_text(text)
    with pytest.raises(RecipeError, match=r"quickstart\.json: cannot be read"):
        quick.quickstart(tmp_path)


def test_an_interrupted_quickstart_goes_on_where_it_was(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    quick_train, step, told = quick._train, Trainer.step, []

    def short(recipe, out, echo):
        return quick_train(
            recipe.replace(steps=4, batch_size=8, save_every=2, log_every=1), out, echo
        )

    def interrupted(self, number, loading):
        if number == 3 and self.recipe.text == "teacher":
            raise KeyboardInterrupt
        return step(self, number, loading)

    monkeypatch.setattr(quick, "_train", short)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quick.quickstart(tmp_path / "q", 2, told.append, 0.02)
    kept = {
        name: (tmp_path / "q" / name).stat().st_mtime_ns
        for name in ("data/images.tar", "teacher/run.json")
    }
    told.clear()
    summary = quick.quickstart(tmp_path / "q", 2, told.append, 0.02)
    assert {name: (tmp_path / "q" / name).stat().st_mtime_ns for name in kept} == kept
    assert any("resumed after step" in line and "student" in line for line in told)
    assert any("cache/texts: finished already" in line for line in told)
    assert summary == json.loads((tmp_path / "q/summary.json").read_text())
