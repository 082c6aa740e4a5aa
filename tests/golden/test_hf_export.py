"""A CLIP of open_clip becomes the ``CLIPModel`` of transformers that was proven to compute the
same.

``hf_export.npz`` is a cut of the golden vectors of that proof: a small ViT in both layouts, inputs,
and logits of both, with GELU (quick0) and QuickGELU (quick1) on the same weights.
"""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip as upstream
import pytest
import torch

from dimefm.export import hf
from dimefm.export.whole import WholeClip
from dimefm.models import open_clip

GOLDEN = np.load(Path(__file__).parent / "hf_export.npz", allow_pickle=False)
META = json.loads(str(GOLDEN["meta.json"]))
CASES = ("quick0", "quick1")
OF_THE_VOCABULARY = {"bos_token_id", "eos_token_id", "pad_token_id"}


def arrays(prefix):
    """Return the arrays below a prefix, as tensors."""
    names = [name for name in GOLDEN.files if name.startswith(prefix)]
    return {name.removeprefix(prefix): torch.tensor(GOLDEN[name]) for name in names}


def model_of(case):
    """Return the golden model as open_clip builds it."""
    text, vision = META[f"{case}/config"]["text_config"], META[f"{case}/config"]["vision_config"]
    config = {
        "embed_dim": META[f"{case}/config"]["projection_dim"],
        "quick_gelu": vision["hidden_act"] == "quick_gelu",
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "width": vision["hidden_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "layers": vision["num_hidden_layers"],
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "layers": text["num_hidden_layers"],
        },
    }
    model = open_clip.from_config(config)
    model.load_state_dict(arrays("quick1/open_clip/"))  # both cases have the same weights
    return config, model.eval()


def layout_of(case):
    """Return the golden model as a class of transformers."""
    config, model = model_of(case)
    scale = float(model.logit_scale.detach().exp())
    whole = WholeClip(
        name=case,
        encoder=SimpleNamespace(card=SimpleNamespace(dim=config["embed_dim"])),
        image=model,
        text=model,
        model_cfg=config,
        image_cfg=config,
        preprocess=open_clip.default_preprocess(32),
        tokenizer=upstream.SimpleTokenizer(),
        context_length=12,
        logit_scale=scale,
        logit_bias=None,
    )
    return hf.layout_of(whole)


@pytest.mark.parametrize("case", CASES)
def test_weights_go_where_the_proven_conversion_put_them(case):
    layout, expected = layout_of(case), arrays("quick1/hf/")
    assert layout.name == "CLIPModel"
    assert layout.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(layout.tensors[name], tensor, rtol=1e-7, atol=0), name


@pytest.mark.parametrize("case", CASES)
def test_the_config_is_the_proven_one(case):
    expected = copy.deepcopy(META[f"{case}/config"])
    expected["dtype"] = expected.pop("torch_dtype")
    config = layout_of(case).config
    for tower in ("text_config", "vision_config"):
        ids = OF_THE_VOCABULARY & config[tower].keys()
        proven = expected.pop(tower)
        made = config.pop(tower)
        assert {k: v for k, v in made.items() if k not in ids} == {
            k: v for k, v in proven.items() if k not in ids
        }
    config.pop("logit_scale_init_value")
    expected.pop("logit_scale_init_value")
    assert config == expected


@pytest.mark.parametrize("case", CASES)
def test_the_model_computes_the_proven_logits(case):
    _, model = model_of(case)
    with torch.no_grad():
        images = model.encode_image(torch.tensor(GOLDEN["pixel_values"]), normalize=True)
        texts = model.encode_text(torch.tensor(GOLDEN["input_ids"]), normalize=True)
        logits = model.logit_scale.exp() * images @ texts.T
    assert np.allclose(images.numpy(), GOLDEN[f"{case}/hf_image_embeds"], atol=1e-6)
    assert np.allclose(texts.numpy(), GOLDEN[f"{case}/hf_text_embeds"], atol=1e-6)
    for name in ("hf_logits_per_image", "open_clip_logits", "hf_logits_f64"):
        assert np.allclose(logits.numpy(), GOLDEN[f"{case}/{name}"], atol=2e-5), name


@pytest.mark.parametrize("case", CASES)
def test_transformers_computes_the_proven_logits(case):
    transformers = pytest.importorskip("transformers")
    layout = layout_of(case)
    layout.config["text_config"] |= {"bos_token_id": 62, "eos_token_id": 63, "pad_token_id": 63}
    model = transformers.CLIPModel(transformers.CLIPConfig.from_dict(layout.config)).eval()
    model.load_state_dict(layout.tensors)
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor(GOLDEN["input_ids"]),
            pixel_values=torch.tensor(GOLDEN["pixel_values"]),
        )
    logits = output.logits_per_image.numpy()
    assert np.allclose(logits, GOLDEN[f"{case}/hf_logits_per_image"], atol=1e-5)
