"""One pipeline of each paper goes from raw samples to a table in its small form.

The raw samples lie under the names that the pipelines give them: pairs in tars, and DIME-FM's lists
of images and texts.
"""

import base64
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dimefm.cli import main
from dimefm.experiment.file import read_experiment

ROOT = Path(__file__).parents[2]
COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220)}
PAIRS = 48
PAPERS = {
    "DIME-FM": "dime_fm_vitb32",
    "CLIP-KD": "clip_kd_vit_t16",
    "TinyCLIP": "tinyclip_vit_8m_16",
    "DeCLIP": "declip_declip",
}


def photo(number, color):
    """Return the JPEG of a noisy patch of one color."""
    noise = np.random.default_rng(number).normal(0, 30, (40, 48, 3))
    pixels = np.clip(noise + np.array(color), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def samples():
    """Yield (key, JPEG, caption) of each pair."""
    for number in range(PAIRS):
        name = list(COLORS)[number % len(COLORS)]
        yield f"{number:04d}", photo(number, COLORS[name]), f"a photo of something {name}"


def write_tar(path):
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        for key, image, caption in samples():
            for ending, data in (("jpg", image), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_lists(root):
    """Write DIME-FM's lists: a TSV of images and one of texts."""
    folder = root / "data_lists/cc3m"
    folder.mkdir(parents=True)
    image_lines, text_lines = [], []
    for key, image, caption in samples():
        image_lines.append(f"{key}\t{base64.b64encode(image).decode()}\n")
        text_lines.append(f"{caption}\n")
    (root / "images.tsv").write_text("".join(image_lines))
    (root / "texts.txt").write_text("".join(text_lines))
    (folder / "image.list").write_text("images.tsv\n")
    (folder / "text.list").write_text("texts.txt\n")


def write_dataset(root):
    """Write an evaluation dataset: images in folders of three classes."""
    folder = root / "datasets/paints"
    for color, rgb in COLORS.items():
        (folder / color).mkdir(parents=True)
        for number in range(4):
            (folder / color / f"{number}.jpg").write_bytes(photo(1000 + number, rgb))
    (folder / "classnames.txt").write_text("".join(f"{color}\n" for color in COLORS))


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    write_tar(root / "cc12m/0.tar")
    write_tar(root / "yfcc/0.tar")
    write_lists(root)
    write_dataset(root)
    return root


@pytest.mark.parametrize("name", PAPERS.values(), ids=list(PAPERS))
def test_from_raw_samples_to_a_table(dataroot, tmp_path, name):
    words = ["run", ROOT / "pipelines" / f"{name}.toml", "--small", "--dataroot", dataroot]
    words += ["--out", tmp_path / name, "--set", "train.device='cpu'", "eval.device='cpu'"]
    words += ["eval.datasets=['paints']"]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output

    experiment = read_experiment(ROOT / "pipelines" / f"{name}.toml", small=True)
    lines = (tmp_path / name / "run/log.jsonl").read_text().splitlines()
    assert len(lines) == experiment.train.steps
    assert set(experiment.train.losses) <= set(json.loads(lines[-1]))

    scores = json.loads((tmp_path / name / "scores/scores.json").read_text())
    assert scores["scores"][0]["images"] == 12
    table = result.stdout
    stages = [line.split()[0] for line in table.splitlines() if line[:1].isalpha()]
    expected = ["extract"] if experiment.extract is not None else []
    assert [stage for stage in stages if stage in ("extract", "train", "eval")] == [
        *expected,
        "train",
        "eval",
    ]
    assert f"{100 * scores['mean']:.2f}" in table


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.toml")), ids=lambda p: p.stem)
def test_every_published_row_is_a_whole_experiment(path):
    if "[train" not in path.read_text(encoding="utf-8"):
        pytest.skip("a recipe, with no published row")
    experiment = read_experiment(path, small=True)
    assert experiment.eval.root is not None
    assert f"dimefm run pipelines/{path.name}" in path.read_text(encoding="utf-8")
    if experiment.extract is not None:
        assert experiment.extract.teacher and experiment.extract.images
        assert experiment.train.images == experiment.extract.images
