"""A source that is not what it was when the extraction began: nothing of that shard is kept, and
the rest is.
"""

import shutil

import pytest

from dimefm.cache import FeatureCache
from dimefm.data import open_rows
from dimefm.errors import DataError
from dimefm.extract.extract import Settings, extract
from dimefm.extract.stages.images import Images
from dimefm.extract.stages.texts import Texts

SETTINGS = Settings(batch_size=2, workers=1, progress=False)


@pytest.fixture
def source(tmp_path, picture):
    """Two folders of photos with a table of sentences each, as their owner has them."""
    for name in ("a", "b"):
        (tmp_path / f"raw/{name}").mkdir(parents=True)
        for n in range(5):
            (tmp_path / f"raw/{name}/{n}.png").write_bytes(picture(n))
        (tmp_path / f"raw/{name}.txt").write_text(
            "".join(f"sentence {n} of {name}\n" for n in range(70))
        )
    return tmp_path / "raw"


def while_it_is_read(monkeypatch, stage, change):
    """Let ``change`` happen after the first batch of shard b was read."""
    prepare, done = stage.prepare_shared, []

    def changing(self, others, index, numbers):
        batches = prepare(self, others, index, numbers)
        if "b" in index.shard.name and not done:
            done.append(change())
        return batches

    monkeypatch.setattr(stage, "prepare_shared", changing)


def grow(path):
    with path.open("a") as file:
        file.write("one more\n")


def rewrite(path):
    path.write_text(path.read_text().replace("sentence", "SENTENCE"))


CHANGES = {
    "grows": (grow, r"b\.txt: changed while it was read; nothing of it was kept"),
    "is written anew": (rewrite, r"b\.txt: changed while it was read; nothing of it was kept"),
    "vanishes": (lambda path: path.unlink(), r"b\.txt: went away while it was read"),
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_file_that_changes_while_it_is_read_is_refused_and_read_again_later(
    source, tmp_path, tiny_teacher, monkeypatch, how
):
    change, message = CHANGES[how]
    kept = shutil.copy(source / "b.txt", tmp_path / "kept.txt")
    with monkeypatch.context() as patch:
        while_it_is_read(patch, Texts, lambda: change(source / "b.txt"))
        with pytest.raises(DataError, match=message):
            extract(
                tiny_teacher,
                open_rows([str(source / "*.txt")], "text"),
                "text",
                tmp_path / "out",
                SETTINGS,
            )
    assert not (tmp_path / "out/manifest.json").exists()
    assert [path.name for path in (tmp_path / "out").glob("*.h5")] == ["a.feat.h5"]
    shutil.copy(kept, source / "b.txt")
    report = extract(
        tiny_teacher, open_rows([str(source / "*.txt")], "text"), "text", tmp_path / "out", SETTINGS
    )
    assert report.resumed == 1
    assert len(FeatureCache(tmp_path / "out")) == 140


def test_a_photo_that_vanishes_while_its_folder_is_read_is_not_quarantined(
    source, tmp_path, tiny_teacher, monkeypatch
):
    folders = [str(source / name) for name in ("a", "b")]
    while_it_is_read(monkeypatch, Images, (source / "b/4.png").unlink)
    with pytest.raises(DataError, match=r"b: (changed|went away) while it was read"):
        extract(tiny_teacher, open_rows(folders, "image"), "image", tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out/manifest.json").exists()
