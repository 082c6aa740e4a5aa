"""Image models of timm are teachers of image rows: their rows, their preprocessing, and what they
are refused for.
"""

import dataclasses
import io
import json
import os
import shutil

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from torch.nn import functional as F

import dimefm
from dimefm.errors import ModelError
from dimefm.models import timm_teacher, timm_weights
from dimefm.models.loading import load_encoder
from dimefm.models.preprocess import decoder
from tests.models.conftest import refused

NAMES = ["test_vit", "test_vit2", "test_resnet", "test_efficientnet", "test_convnext"]
WAYS = {  # each way in which tags of timm prepare images
    "test_resnet.r160_in1k": ("bilinear", 160),
    "resnet50.a1_in1k": ("bicubic", 224),
    "vit_base_patch16_dinov3.lvd1689m": ("bicubic", 256),
    "vit_base_patch16_siglip_224.webli": ("bicubic", 224),
    "caformer_b36.sail_in22k_ft_in1k": ("bicubic", 224),
}


def noise(size, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_those_of_the_network_without_its_classifier(name):
    encoder = load_encoder(f"timm/{name}/random:3", "cpu")
    torch.manual_seed(3)
    network = timm.create_model(name, num_classes=0).eval()
    pixels = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    wanted = F.normalize(network(pixels).detach(), dim=-1)
    assert torch.allclose(encoder.encode_image(pixels), wanted, atol=1e-5)
    assert encoder.card.dim == wanted.shape[1] == network.num_features
    assert encoder.card.logit_scale == 100
    assert encoder.card.context_length is None
    assert encoder.text_parameters == 0


@pytest.mark.parametrize("kind", ["safetensors", "state dict", "wrapped", "classifier"])
def test_weights_of_a_file_are_those_of_the_network(tmp_path, kind):
    network = timm.create_model("test_vit", num_classes=7 if kind == "classifier" else 0).eval()
    state = network.state_dict()
    file = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    if kind == "safetensors":
        save_file(state, file)
    elif kind == "wrapped":
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, file)
    else:
        torch.save(state, file)
    encoder = load_encoder(f"timm/test_vit/{file}", "cpu")
    pixels = torch.randn(2, 3, 160, 160)
    network.reset_classifier(0)
    wanted = F.normalize(network(pixels).detach(), dim=-1)
    assert torch.allclose(encoder.encode_image(pixels), wanted, atol=1e-5)


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("size", [(300, 300), (500, 333), (180, 260)])
def test_pictures_are_prepared_as_timm_does(name, size):
    """To the last bit by ``pil``, and as ``turbo`` stands to open_clip's own transform."""
    preprocess = timm_teacher.preprocess_of(name)
    settings = timm.get_pretrained_cfg(name)
    config = resolve_data_config({}, pretrained_cfg=settings.to_dict())
    assert (preprocess["interpolation"], preprocess["size"]) == WAYS[name]
    picture = noise(size)
    wanted = create_transform(**config)(picture)
    found = decoder("pil", preprocess).whole(picture)
    assert torch.equal(found, wanted)

    data = io.BytesIO()
    picture.save(data, "png")
    turbo = decoder("turbo", preprocess)
    quick = turbo.finish(turbo(data.getvalue())[None], torch.device("cpu"))[0]
    levels = (quick - wanted).abs() * 255 * torch.tensor(preprocess["std"]).view(3, 1, 1)
    assert levels.max() < 3.01


@pytest.mark.parametrize("tag", sorted(timm.list_pretrained())[::25])
def test_each_tag_has_a_preprocessing_or_a_reason(tag):
    try:
        preprocess = timm_teacher.preprocess_of(tag)
    except ModelError as error:
        assert "Fix: name an open_clip_config.json with --preprocess FILE" in str(error)
        return
    decoder("turbo", preprocess)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("timm/test_vit", "Fix: say timm/test_vit.TAG (tags: r160_in1k), timm/test_vit/FILE or"),
        ("timm/test_vti", "has no model 'test_vti'. Fix: did you mean test_vit"),
        ("timm/", "has no model ''"),
        ("timm/hf-hub:a", "has no model 'hf-hub:a'"),
        ("timm/test_vit.no_tag", "'no_tag' is no tag of timm's test_vit (r160_in1k)"),
        ("timm/test_vit/random:x", "expected timm/test_vit/random:SEED"),
        ("timm/test_vit/nowhere.pt", "there is no such file nowhere.pt"),
        ("timm/test_vit/../x", "there is no such file ../x"),
    ],
)
def test_a_name_that_means_nothing_is_refused(spec, told):
    message = refused(spec)
    assert told in message and len(message) <= 500


@pytest.mark.parametrize("fault", ["missing", "shape", "further", "empty", "damaged", "code"])
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, fault, monkeypatch):
    class Runs:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/canary",)

    state = timm.create_model("test_vit", num_classes=0).state_dict()
    file = tmp_path / "weights.pt"
    told = {"missing": "norm.weight", "shape": "cls_token", "further": "decoder.weight"}
    if fault == "missing":
        del state["norm.weight"]
    elif fault == "shape":
        state["cls_token"] = torch.zeros(1, 1, 3)
    elif fault == "further":
        state["decoder.weight"] = torch.zeros(3)
    elif fault == "empty":
        state = {}
    elif fault == "code":
        state["more"] = Runs()
    torch.save(state, file)
    if fault == "damaged":
        file.write_bytes(os.urandom(2_000_000))
    message = refused(f"timm/test_vit/{file}")
    assert str(file) in message and told.get(fault, "") in message and "Fix: " in message
    assert not (tmp_path / "canary").exists()


def test_a_file_of_a_network_whose_tags_differ_asks_for_the_tag(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file(timm.create_model("resnet18", num_classes=0).state_dict(), file)
    message = refused(f"timm/resnet18/{file}")
    assert "prepare images in" in message and "timm/resnet18.TAG/FILE" in message
    named = load_encoder(f"timm/resnet18.a1_in1k/{file}", "cpu")
    assert named.card.preprocess["resize_to"] == 235
    stated = {"size": 64, "mean": [0.1] * 3, "std": [0.2] * 3, "resize_to": 80}
    (tmp_path / "stated.json").write_text(json.dumps(stated))
    chosen = load_encoder(f"timm/resnet18/{file}", "cpu", preprocess=str(tmp_path / "stated.json"))
    assert chosen.card.preprocess["resize_to"] == 80 and chosen.image_size == (64, 64)
    again = load_encoder(f"timm/resnet18/{file}", "cpu", recorded=chosen.card)
    assert again.card == chosen.card


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """Point the hub at a port of this machine where nobody listens, with an empty cache."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://127.0.0.1:9")
    for module in (constants, huggingface_hub._snapshot_download.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path))


def test_a_tag_is_downloaded_when_the_user_named_it_and_not_otherwise(no_network, capsys):
    message = refused("timm/resnet18.a1_in1k")
    assert message.startswith("timm/resnet18.a1_in1k: cannot be downloaded: 127.0.0.1: ")
    assert "name timm/resnet18.a1_in1k/FILE" in message
    assert capsys.readouterr().err.startswith("downloading timm/resnet18.a1_in1k (")
    message = refused("timm/resnet18.a1_in1k", may_download=False)
    assert "a name that comes with data downloads nothing" in message
    assert capsys.readouterr().err == ""


def test_a_tag_is_loaded_from_the_cache_of_the_hub(monkeypatch, tmp_path):
    """timm finds the file of the tag where the hub keeps it."""
    file = tmp_path / "model.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), file)
    settings = dataclasses.replace(timm.get_pretrained_cfg("test_vit.r160_in1k"), file=str(file))
    monkeypatch.setattr(timm_weights.timm, "get_pretrained_cfg", lambda *args: settings)
    monkeypatch.setattr(timm.models._builder, "get_pretrained_cfg", lambda *args, **more: settings)
    monkeypatch.setattr(
        timm.models._builder, "resolve_pretrained_cfg", lambda *args, **more: settings
    )
    encoder = load_encoder("timm/test_vit.r160_in1k", "cpu", may_download=False)
    other = load_encoder(f"timm/test_vit.r160_in1k/{file}", "cpu")
    assert encoder.card.identity() == other.card.identity()


def test_sentences_are_refused_and_images_are_not():
    model = dimefm.load("timm/test_vit/random:0", device="cpu")
    assert model.encode_image(noise((50, 40))).shape == (64,)
    with pytest.raises(ModelError, match="without a text tower, so it encodes no sentences"):
        model.encode_text("a cat")
    with pytest.raises(ModelError, match="without a text tower"):
        model.classify(noise((50, 40)), ["a", "b"])


def test_a_folder_of_open_clip_may_not_resize_to_other_sides(files, tmp_path):
    """open_clip would not look at it."""
    folder = shutil.copytree(files / "folder", tmp_path / "folder")
    content = json.loads((folder / "open_clip_config.json").read_text())
    content["preprocess_cfg"] = {"size": 64, "resize_to": 80}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    assert "'preprocess_cfg.resize_to' is no key" in refused(str(folder))
