"""An encoder by its name and as files, how it is refused, and what makes two of them the same."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dimefm.errors import ModelError
from dimefm.models import open_clip
from dimefm.models.loading import load_encoder

ARCH = "ResNet-mini-64"
SPEC = f"{ARCH}/random:0"
SENTENCES = ["a red square", "two dogs on a lawn, seen from above"]


def refused(spec, **options):
    """Return the one line with which ``load_encoder`` refuses ``spec``."""
    with pytest.raises(ModelError) as error:
        load_encoder(spec, "cpu", **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def same(ours, theirs):
    """Tell whether two encoders give the same rows for images and sentences, and say so about
    themselves.
    """
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    pixels = [encoder.preprocess(image)[None] for encoder in (ours, theirs)]
    rows = [encoder.encode_image(p) for encoder, p in zip((ours, theirs), pixels, strict=True)]
    texts = [encoder.encode_text(encoder.tokenize(SENTENCES)[0]) for encoder in (ours, theirs)]
    return torch.equal(*pixels) and torch.equal(*rows) and torch.equal(*texts)


@pytest.fixture(scope="session")
def files(tmp_path_factory, tiny_teacher):
    """Return a folder with the weights of SPEC as .pt, .safetensors and an open_clip folder."""
    root, state = tmp_path_factory.mktemp("files"), tiny_teacher.image_model.state_dict()
    torch.save(state, root / "weights.pt")
    torch.save(
        {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        root / "trained.pt",
    )
    save_file(state, root / "weights.safetensors")
    folder = root / "folder"
    folder.mkdir()
    config = {"model_cfg": open_clip.config_of(ARCH), "preprocess_cfg": {}}
    (folder / open_clip.CONFIG).write_text(json.dumps(config))
    shutil.copy(root / "weights.safetensors", folder / "open_clip_model.safetensors")
    shutil.copy(root / "weights.pt", folder / "other.pt")
    return root
