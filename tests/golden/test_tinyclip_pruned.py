"""Towers whose layers differ compute the features of TinyCLIP's released cut model.

``tinyclip_pruned.npz`` is a cut of the released code's golden vectors: the weights that are left of
a small CLIP after automatic inheritance, inputs, and features. The last layer of its text tower has
lost its attention.
"""

from pathlib import Path

import numpy as np
import torch

from dimefm.models import open_clip, pruned

GOLDEN = np.load(Path(__file__).parent / "tinyclip_pruned.npz", allow_pickle=False)
PREFIXES = ("_image_encoder.", "_text_encoder.", "_logit_scale.")
MODEL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 40},
}


def released_weights():
    """Return the released weights under open_clip's names."""
    tensors = {}
    for key in GOLDEN.files:
        if key.startswith("pruned_weights/"):
            name = key.removeprefix("pruned_weights/").partition(".")[2]
            tensors[name] = torch.tensor(GOLDEN[key])
    return tensors


def test_a_cut_model_computes_the_released_features():
    tensors = released_weights()
    vision = {**MODEL["vision_cfg"], "pruned": pruned.describe(tensors, "visual.", head_width=16)}
    text = {**MODEL["text_cfg"], "pruned": pruned.describe(tensors, head_width=16)}
    assert [layer["mlp"] for layer in vision["pruned"]["layers"]] == [171, 179, 179]
    assert text["pruned"]["layers"][1] == {"heads": 0, "mlp": 88}
    model = open_clip.from_config({**MODEL, "vision_cfg": vision, "text_cfg": text})
    tensors["transformer.resblocks.1.attn.out_proj.bias"] = torch.zeros(24)
    model.load_state_dict(tensors)
    model.eval()
    with torch.inference_mode():
        image = model.encode_image(torch.tensor(GOLDEN["image"]))
        sentences = model.encode_text(torch.tensor(GOLDEN["text"]))
    for rows, name in ((image, "image"), (sentences, "text")):
        released = torch.tensor(GOLDEN[f"pruned_{name}_features"])
        torch.testing.assert_close(rows, released, rtol=1e-5, atol=1e-6)
