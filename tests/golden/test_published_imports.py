"""Imported weights compute the features that TinyCLIP's and DeCLIP's released code computed.

``tinyclip_pruned.npz`` has a model after automatic inheritance in the layout of its checkpoints.
The towers of DeCLIP are in the whole golden file alone, with the embeddings of the few tokens that
its sentences have; they go to their places among the 49,409.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dimefm.models import open_clip, pruned
from dimefm.models.loading import load_encoder
from dimefm.models.weights.importing import import_checkpoint

HERE = Path(__file__).parent
PRUNED = np.load(HERE / "tinyclip_pruned.npz", allow_pickle=False)
TOKENS = np.load(HERE / "declip_tokens.npz", allow_pickle=False)
WHOLE = HERE.parents[2] / "shared" / "golden" / "declip.npz"
VOCABULARY = 49_409


def test_a_model_of_automatic_inheritance(tmp_path):
    state = {}
    for key in PRUNED.files:
        if key.startswith("pruned_weights/"):
            state[key.removeprefix("pruned_weights/")] = torch.tensor(PRUNED[key])
    torch.save({"epoch": 6, "state_dict": state}, tmp_path / "x.pt")
    names = {name.partition(".")[2]: tensor for name, tensor in state.items()}
    vision = {"image_size": 32, "patch_size": 8, "pruned": pruned.describe(names, "visual.", 16)}
    text = {"context_length": 12, "vocab_size": 40, "pruned": pruned.describe(names, "", 16)}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "s.json").write_text(json.dumps(config))
    import_checkpoint(tmp_path / "x.pt", tmp_path / "run", student=str(tmp_path / "s.json"))
    model = open_clip.create(open_clip.folder_config(tmp_path / "run"))
    with torch.inference_mode():
        image = model.encode_image(torch.tensor(PRUNED["image"]))
        sentences = model.encode_text(torch.tensor(PRUNED["text"]))
    for rows, name in ((image, "image"), (sentences, "text")):
        released = torch.tensor(PRUNED[f"pruned_{name}_features"])
        torch.testing.assert_close(rows, released, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not WHOLE.exists(), reason="the whole golden file is not beside this checkout")
def test_a_model_of_declip(tmp_path):
    with np.load(WHOLE, allow_pickle=False) as file:
        golden = {key[6:]: file[key] for key in file.files if key.startswith("tower/")}
    state = {"module.logit_scale": torch.ones(1)}
    for key, value in golden.items():
        tower, _, name = key.partition(".")
        prefix = {"v": "visual", "t": "encode_text"}.get(tower)
        if prefix and name != "used_ids":
            state[f"module.{prefix}.{name}"] = torch.tensor(value)
    few = state["module.encode_text.token_embedding.weight"]
    embedding = torch.zeros(VOCABULARY, few.shape[1])
    embedding[torch.tensor(golden["t.used_ids"])] = few
    state["module.encode_text.token_embedding.weight"] = embedding
    torch.save({"model": state}, tmp_path / "x.pt")
    vision = {"image_size": 64, "patch_size": 32, "width": 32, "layers": 2, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49_408, "width": 32, "heads": 4, "layers": 2}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "s.json").write_text(json.dumps(config))
    imported = import_checkpoint(
        tmp_path / "x.pt", tmp_path / "run", student=str(tmp_path / "s.json")
    )
    assert imported.family == "declip"
    encoder = load_encoder(str(tmp_path / "run"), "cpu")
    tokens, _ = encoder.tokenize(TOKENS["tok/caps"].tolist())
    images = encoder.encode_image(torch.tensor(golden["im"]).float())
    for rows, name in ((images, "img_feat"), (encoder.encode_text(tokens), "txt_feat")):
        released = torch.nn.functional.normalize(torch.tensor(golden[name]).float(), dim=-1)
        torch.testing.assert_close(rows, released, rtol=0, atol=1e-5)
