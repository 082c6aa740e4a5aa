"""A small teacher for image towers that have no text tower of their own."""

import json

import pytest
from safetensors.torch import save_file

from dimefm.models import open_clip
from tests.models.weights.layouts import VIT, model_of, tensors_of


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    """Return the folder of a small teacher of 32 dimensions."""
    folder = tmp_path_factory.mktemp("teacher")
    config = {**VIT, "embed_dim": 32}
    model = model_of(config)
    settings = {"model_cfg": config, "preprocess_cfg": {"size": 32}}
    (folder / open_clip.CONFIG).write_text(json.dumps(settings))
    save_file(tensors_of(model), folder / "open_clip_model.safetensors")
    return folder
