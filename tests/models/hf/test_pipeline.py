"""Such a folder is a teacher like any other: of caches, of runs that borrow its text tower, and by
its name on the hub.
"""

import json
import shutil

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

import dimefm
from dimefm.data import open_rows
from dimefm.extract.verify import against_teacher
from dimefm.models import download
from dimefm.models.loading import load_encoder
from dimefm.recipe import read
from dimefm.train.trainer import train
from tests.models.conftest import refused

REPOSITORY = "org/model"
WORDS = [f"a photo of {number} cats" for number in range(8)]


@pytest.fixture
def data(tmp_path):
    """Return a folder with photos/ and words.txt."""
    photos = tmp_path / "photos"
    photos.mkdir()
    draw = np.random.default_rng(0)
    for number in range(8):
        pixels = draw.integers(0, 256, (50, 40 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    (tmp_path / "words.txt").write_text("\n".join(WORDS) + "\n")
    return tmp_path


def cached(data, teacher):
    """Extract photos and words with a teacher."""
    dimefm.extract(
        teacher,
        images=[str(data / "photos")],
        texts=[str(data / "words.txt")],
        out=str(data / "cache"),
        device="cpu",
    )
    return dimefm.FeatureCache(data / "cache/images"), dimefm.FeatureCache(data / "cache/texts")


@pytest.mark.parametrize("kind", ["clip", "siglip2", "align"])
def test_a_cache_of_such_a_teacher_is_its_own(folder_of, data, kind):
    folder, _ = folder_of(kind)
    images, texts = cached(data, str(folder))
    encoder = load_encoder(str(folder), "cpu")
    assert images.manifest.encoder == encoder.card
    tokens, _ = encoder.tokenize(WORDS)
    assert np.abs(texts[:] - encoder.encode_text(tokens).numpy()).max() < 2e-3  # float16
    for cache, source in ((images, "photos"), (texts, "words.txt")):
        rows = open_rows([str(data / source)], cache.manifest.kind)
        assert against_teacher(cache, encoder, rows, 8).min_cosine > 0.9999


def distilled(data, teacher, root):
    """Return the folder of an image tower distilled from the cache of a teacher."""
    cached(data, teacher)
    recipe = read(
        None,
        student="ConvNeXt-mini-64",
        images=[str(data / "photos")],
        image_cache=str(data / "cache/images"),
        text_cache=str(data / "cache/texts"),
        losses={"dime.vl": {"weight": 1.0}},
        crops="free",
        steps=1,
        batch_size=4,
        resize=0,
        device="cpu",
    )
    train(recipe, root / "run", echo=lambda line: None)
    return root / "run"


def test_a_run_borrows_the_text_tower_of_such_a_folder(folder_of, data, tmp_path):
    root = tmp_path / "together"
    root.mkdir()
    folder = shutil.copytree(folder_of("clip")[0], root / "teacher")
    run = distilled(data, str(folder), root)
    record = json.loads((run / "run.json").read_text())
    assert record["teacher"]["name"] == str(folder)

    moved = shutil.move(root, tmp_path / "elsewhere")  # both together
    student = load_encoder(f"{moved}/run", "cpu")
    teacher = load_encoder(f"{moved}/teacher", "cpu")
    tokens, _ = teacher.tokenize(WORDS)
    assert torch.equal(student.encode_text(tokens), teacher.encode_text(tokens))
    assert student.card.tokenizer == teacher.card.tokenizer
    model = dimefm.load(f"{moved}/run")
    assert model.encode_text(WORDS[0]).shape == model.encode_image(Image.new("RGB", (9, 9))).shape


def test_a_run_refuses_another_folder_in_its_teachers_place(folder_of, data, tmp_path):
    folder = shutil.copytree(folder_of("clip")[0], tmp_path / "teacher")
    run = distilled(data, str(folder), tmp_path)
    shutil.rmtree(folder)
    shutil.copytree(folder_of("metaclip_2")[0], folder)
    assert "was distilled from weights" in refused(str(run))
    found = load_encoder(str(run), "cpu", text_model=str(folder_of("clip")[0]))
    assert found.card.dim == 16


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return an empty cache of the hub, which has no network."""
    cache = tmp_path / "hub"
    cache.mkdir()
    for module in (constants, huggingface_hub._snapshot_download.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(cache))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://127.0.0.1:9")
    return cache


def downloaded(hub, folder):
    """Put a folder into the cache of the hub, as a download leaves it."""
    place = hub / f"models--{REPOSITORY.replace('/', '--')}"
    commit = "0" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(commit)
    shutil.copytree(folder, place / "snapshots" / commit)


def test_a_name_on_the_hub_is_loaded_from_its_cache(folder_of, hub):
    folder, _ = folder_of("siglip")
    downloaded(hub, folder)
    ours, theirs = (load_encoder(spec, "cpu") for spec in (f"hf:{REPOSITORY}", str(folder)))
    assert ours.card.name == f"hf:{REPOSITORY}"
    assert ours.card.identity() == theirs.card.identity()


def test_a_name_that_the_user_gave_is_downloaded_or_refused_at_once(hub, capsys):
    message = refused(f"hf:{REPOSITORY}")
    assert message.startswith(f"hf:{REPOSITORY}: cannot be downloaded: 127.0.0.1: ")
    assert f"fetch https://127.0.0.1:9/{REPOSITORY} where" in message
    assert capsys.readouterr().err == f"downloading hf:{REPOSITORY} to {hub}\n"


def test_a_name_that_came_with_data_is_not_downloaded(hub, monkeypatch):
    monkeypatch.setattr(download, "require_connection", None)
    message = refused(f"hf:{REPOSITORY}", may_download=False)
    assert "a name that comes with data downloads nothing" in message


@pytest.mark.parametrize("name", ["", "model", "org/", "/model", "org/a/b", "../x", "org/ä"])
def test_a_name_of_no_repository_is_refused(hub, name):
    assert "expected hf:ORG/MODEL" in refused(f"hf:{name}")
