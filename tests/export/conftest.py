"""Small models of the kinds that leave: vision transformers, a SigLIP, distilled towers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import dimefm
from dimefm.models import open_clip

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
VIT = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 16, "layers": 2},
    "text_cfg": TEXT,
}


def picture(seed=0, size=(90, 70)):
    """Return an image of noise."""
    width, height = size
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def write_folder(folder, config, preprocess=None, seed=0):
    """Write an open_clip folder with random weights, its biases too; return its path as text."""
    torch.manual_seed(seed)
    model = open_clip.from_config(config)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 1:
                weights.add_(0.02 * torch.randn_like(weights))
    folder.mkdir(parents=True)
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    settings = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Return a folder of images, and the path of a file of sentences."""
    root = tmp_path_factory.mktemp("photos")
    (root / "images").mkdir()
    for number in range(8):
        picture(number, (60 + 7 * number, 80)).save(root / f"images/{number}.png")
    (root / "texts.txt").write_text("".join(f"a photo of thing {n}\n" for n in range(12)))
    return root


@pytest.fixture(scope="session")
def distilled(photos, tmp_path_factory):
    """Return ``distilled(teacher, **recipe)``: a run that learned two steps from a teacher."""
    made = {}

    def make(teacher, **recipe):
        # pytest may give two tests one folder, one after the other
        configs = [path.read_text() for path in sorted(Path(teacher).glob("*.json"))]
        key = (teacher, *configs, json.dumps(recipe, sort_keys=True))
        if key in made:
            return made[key]
        root = tmp_path_factory.mktemp("run")
        sources = {"images": [str(photos / "images")], "texts": [str(photos / "texts.txt")]}
        dimefm.extract(teacher, root / "cache", **sources)
        settings = {
            "image_cache": [str(root / "cache/images")],
            "text_cache": [str(root / "cache/texts")],
            "use_pvl_loss": True,
            "batch_size": 4,
            "steps": 2,
            **recipe,
        }
        if "text" not in recipe:
            settings = {"images": sources["images"], "crops": "free", **settings}
        else:
            settings = {"texts": sources["texts"], **settings}
        made[key] = str(dimefm.train(None, root / "run", **settings))
        return made[key]

    return make
