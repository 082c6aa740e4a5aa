"""What is wrong, lossy or foreign does not become an export, and nothing is left of it."""

import dataclasses
import json

import pytest
import torch
from PIL import Image
from torch import nn

import dimefm
from dimefm.errors import DataError, DimefmError, ModelError, RecipeError
from dimefm.export import gate, job, open_clip, probe
from dimefm.export.formats import Variant
from dimefm.models.loading import load_encoder

SPEC = "ResNet-mini-32/random:0"


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(SPEC, "cpu")


class Off(nn.Module):
    """A tower whose embeddings are turned by noise of some size."""

    def __init__(self, tower, size):
        super().__init__()
        self.tower = tower
        self.size = size

    @property
    def visual(self):
        return self.tower.visual

    def turned(self, rows):
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(rows.shape, generator=generator)
        return rows + self.size * rows.norm(dim=-1, keepdim=True) * noise / rows.shape[1] ** 0.5

    def encode_image(self, pixels):
        return self.turned(self.tower.encode_image(pixels))

    def encode_text(self, tokens):
        return self.turned(self.tower.encode_text(tokens))


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("size", [0.0, 0.1, float("nan")])
def test_cosines_tell_how_far_a_variant_is_off(side, size, encoder):
    off = Off(encoder.image_model, size)
    changed = dataclasses.replace(encoder, **{f"{side}_model": off})
    rows = probe.make(encoder)
    agreement = gate.compare(encoder, Variant("x", changed, 0.999), rows)
    least = {"image": agreement.image_least, "text": agreement.text_least}
    if size == 0:
        assert least[side] == pytest.approx(1, abs=1e-6)
        gate.check(agreement, 0.999, 0.0)
        return
    assert not least[side] > 0.999
    other = "text" if side == "image" else "image"
    assert least[other] == pytest.approx(1, abs=1e-6)
    with pytest.raises(ModelError, match=f"other embeddings of {side}s.*expected at least 0.999"):
        gate.check(agreement, 0.999, 0.0)


def test_a_score_that_falls_too_far_fails(encoder):
    agreement = gate.Agreement("uint8", 1, 1.0, 1.0, 1.0, scores={"digits": (0.98, 0.95)})
    gate.check(agreement, 0.9, 0.031)
    with pytest.raises(ModelError, match="digits falls from 98.00 % to 95.00 %, expected at most"):
        gate.check(agreement, 0.9, 0.02)


def test_the_images_of_the_run_are_the_probe(distilled, photos, tmp_path):
    run = distilled(SPEC, student="ResNet-mini-32")
    dimefm.export(run, "open_clip", tmp_path / "out")
    record = json.loads((tmp_path / "out/export.json").read_text())
    assert record["checked_on"] == f"8 images of {photos / 'images'}"
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.new("RGB", (50, 60), "red").save(folder / "a.png")
    (folder / "b.png").write_bytes(b"no image")
    dimefm.export(run, "open_clip", tmp_path / "out", check_images=folder)
    record = json.loads((tmp_path / "out/export.json").read_text())
    assert record["checked_on"] == f"1 images of {folder}"


def test_the_card_says_whose_towers_these_are(distilled, tmp_path):
    run = distilled(SPEC, student="ResNet-mini-32")
    dimefm.export(run, "open_clip", tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    assert text.startswith("---\nlibrary_name: open_clip\npipeline_tag: zero-shot-image")
    assert f"borrowed from {SPEC}" in text and "2 steps on 8 rows" in text
    assert "use_pvl_loss" in text or "dime.pvl" in text
    assert "| open_clip_model.safetensors |" in text


def test_scores_before_and_after_are_in_the_card(tmp_path):
    root = tmp_path / "datasets/toys"
    for name in ("red", "blue"):
        (root / "test" / name).mkdir(parents=True)
        for number in range(2):
            image = Image.new("RGB", (40, 40), name)
            image.putpixel((number, 0), (1, 2, 3))
            image.save(root / f"test/{name}/{number}.png")
    exported = dimefm.export(
        SPEC, "open_clip", tmp_path / "out", eval_root=tmp_path / "datasets", datasets=["toys"]
    )
    before, after = exported.agreements[0].scores["toys"]
    assert before == after
    assert "| toys | before the export |" in (tmp_path / "out/README.md").read_text()


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def fails(tmp_path, error, match, **options):
    """Check that an export is refused in one line, and that the folder is as it was."""
    before = listing(tmp_path)
    settings = {"to": "open_clip", "out": tmp_path / "new/out", **options}
    with pytest.raises(error, match=match) as caught:
        dimefm.export(settings.pop("model", SPEC), **settings)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 500
    assert listing(tmp_path) == before


def test_refusals_leave_nothing(tmp_path):
    fails(tmp_path, RecipeError, "did you mean 'open_clip'", to="openclip")
    fails(tmp_path, ModelError, "unknown architecture", model="ResNet-mini-33/random:0")
    fails(tmp_path, RecipeError, "needs --eval-root", datasets=["x"])
    fails(tmp_path, DataError, "has no image|no such|not found", check_images=tmp_path / "none")
    fails(tmp_path, DataError, "no such|there is no|not found", eval_root=tmp_path / "none")
    fails(tmp_path, ModelError, "cannot be read", labels=tmp_path / "none.txt")
    fails(tmp_path, ModelError, "expected at least 1.1", least_cosine=1.1)


def test_an_evaluation_that_cannot_be_made_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(open_clip, "variants", lambda whole, folder, options: [])
    (tmp_path / "sets").mkdir()
    fails(tmp_path, ModelError, "no text tower to score.*remove --eval-root", eval_root=tmp_path)


@pytest.mark.parametrize("out", [".", ".."])
def test_the_working_folder_is_not_replaced(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(tmp_path, DimefmError, "holds the working folder.*Fix: name a new folder", out=out)


def test_an_export_may_stand_behind_a_link(tmp_path, monkeypatch):
    (tmp_path / "place").mkdir()
    (tmp_path / "link").symlink_to("place")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        dimefm.export(SPEC, "open_clip", "link")
        assert (tmp_path / "place/export.json").is_file()
        assert (tmp_path / "link").is_symlink()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "place"]


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("x")
    fails(tmp_path, DimefmError, "holds other files", out=tmp_path / "out")
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial/thesis.tex").write_text("x")
    fails(tmp_path, DimefmError, "holds other files", out=tmp_path / "other")


def test_an_earlier_export_is_replaced_only_by_a_whole_one(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".gitignore").write_text("*\n")
    dimefm.export(SPEC, "open_clip", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    fails(tmp_path, ModelError, "expected at least 1.1", out=out, least_cosine=1.1)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    dimefm.export("ResNet-mini-32/random:1", "open_clip", out)
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert after.keys() == before.keys()
    assert after["open_clip_model.safetensors"] != before["open_clip_model.safetensors"]
    assert listing(tmp_path) == sorted(["out", *[f"out/{name}" for name in after]])


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left")])
def test_whatever_happens_nothing_is_half_written(error, monkeypatch, tmp_path):
    def stopped(*_):
        raise error

    monkeypatch.setattr(open_clip, "variants", stopped)
    with pytest.raises((KeyboardInterrupt, MemoryError, DimefmError)):
        dimefm.export(SPEC, "open_clip", tmp_path / "new/out")
    assert listing(tmp_path) == []


def test_a_killed_export_is_in_nobodys_way(tmp_path):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "export.json").write_text("{}\n")
    (partial / "half.safetensors").write_bytes(b"half")
    dimefm.export(SPEC, "open_clip", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_result_has_the_files(tmp_path):
    exported = job.run(job.Request(SPEC, "open_clip", tmp_path / "out"))
    assert exported.folder == tmp_path / "out"
    assert exported.files["open_clip_model.safetensors"] > 1e6
    assert "open_clip" in exported.describe()
