"""What a cut left of a student, in words and as a chart."""

import json

import pytest
from PIL import Image

from dimefm.errors import DataError, ModelError
from dimefm.runs.kept import draw, read_kept, text

LAYERS = [{"heads": 7, "mlp": 1890}, {"heads": 0, "mlp": 2011}, {"heads": 12, "mlp": 3066}]
VISION = {"pruned": {"width": 555, "head_width": 64, "layers": LAYERS}}
WHOLE = {"image": {"width": 768, "layers": 3, "heads": 12, "mlp": 3072}}


def run(folder, model_cfg, pruned=None):
    record = {"kind": "image-tower", "model_cfg": model_cfg, "pruned": pruned}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_each_layer_is_told_and_drawn(tmp_path):
    towers = read_kept(run(tmp_path, {"vision_cfg": VISION}, {"whole": WHOLE}))
    told = text(towers)
    assert told.startswith("image tower: 555 of 768 channels\n")
    assert "0 of 12" in told and "2,011 of 3,072" in told
    draw(towers, tmp_path / "charts" / "kept.png", "runs/75")
    with Image.open(tmp_path / "charts" / "kept.png") as chart:
        assert chart.width > 1000 and len(chart.convert("RGB").getcolors(1 << 20)) > 20


def test_without_the_whole_the_largest_layer_counts(tmp_path):
    (tower,) = read_kept(run(tmp_path, {"vision_cfg": VISION}))
    assert (tower.of_width, tower.of_heads, tower.of_mlp) == (555, 12, 3066)


def test_runs_that_cut_nothing_and_damaged_ones_are_refused(tmp_path):
    with pytest.raises(DataError, match="nothing was cut from its student. Fix: "):
        read_kept(run(tmp_path, {"vision_cfg": {"layers": 12}}))
    with pytest.raises(ModelError, match="layers of the image tower cannot be read"):
        read_kept(run(tmp_path, {"vision_cfg": {"pruned": {"layers": [3]}}}))
    towers = read_kept(run(tmp_path, {"vision_cfg": VISION}))
    with pytest.raises(DataError, match="ends in .png"):
        draw(towers, tmp_path / "kept.pdf", "runs/75")
