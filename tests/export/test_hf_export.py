"""What is exported to transformers is loaded by it offline, and computes the same."""

import json
import sys
from types import ModuleType

import numpy as np
import pytest
import timm
import torch

import dimefm
from dimefm.errors import ModelError
from dimefm.models.model import load
from tests.export.conftest import TEXT, VIT, picture, write_folder

transformers = pytest.importorskip("transformers")

PROMPTS = ["a red square", "two dogs on a lawn, seen from above", "the number 7", "X-ray!"]
LOGITS = 1e-5  # that may differ, at the scale of the model

pytestmark = pytest.mark.filterwarnings("default")  # those of transformers are its own


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def same_in_transformers(spec, folder, kind):
    """Check that transformers computes from ``folder`` what dimefm computes from ``spec``."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert type(model).__name__ == kind
    ours = load(spec, "cpu")
    tokens, _ = ours.encoder.tokenize(PROMPTS)
    theirs = processor.tokenizer(
        PROMPTS,
        padding="max_length",
        truncation=True,
        max_length=tokens.shape[1],
        return_tensors="pt",
    )["input_ids"]
    if kind == "SiglipModel":
        assert torch.equal(tokens, theirs)
    else:
        until_the_end = torch.arange(tokens.shape[1]) <= tokens.argmax(1, keepdim=True)
        assert torch.equal(tokens[until_the_end], theirs[until_the_end])
    pixels = ours.encoder.preprocess(picture())[None]
    with torch.no_grad():
        logits = model(input_ids=theirs, pixel_values=pixels).logits_per_image
    cosines = ours.encoder.encode_image(pixels) @ ours.encoder.encode_text(tokens).T
    expected = ours.logit_scale * cosines + (ours.encoder.card.logit_bias or 0.0)
    assert float((logits - expected).abs().max()) < LOGITS
    prepared = processor(images=picture(), return_tensors="pt")["pixel_values"]
    assert float((prepared - pixels).abs().max()) < 0.05


def in_the_pipeline(folder):
    """Return the scores of a picture by transformers' own pipeline."""
    classify = transformers.pipeline("zero-shot-image-classification", model=str(folder))
    found = classify(picture(), candidate_labels=["cat", "dog", "tree"])
    assert sum(entry["score"] for entry in found) > 0
    return {entry["label"]: entry["score"] for entry in found}


@pytest.mark.parametrize("quick", [False, True])
def test_a_vision_transformer_is_a_clip_model(quick, tmp_path):
    spec = write_folder(tmp_path / "model", {**VIT, "quick_gelu": quick})
    exported = dimefm.export(spec, "hf", tmp_path / "out")
    assert exported.agreements[0].text_least > 0.99999
    same_in_transformers(spec, tmp_path / "out", "CLIPModel")
    ours = load(spec, "cpu")
    texts = [f"This is a photo of {name}." for name in ("cat", "dog", "tree")]
    logits = ours.logit_scale * ours.encode_image(picture()) @ ours.encode_text(texts).T
    expected = np.exp(logits) / np.exp(logits).sum()
    scores = in_the_pipeline(tmp_path / "out")
    assert np.allclose([scores[name] for name in ("cat", "dog", "tree")], expected, atol=5e-3)


def test_each_tower_loads_by_itself(tmp_path):
    spec = write_folder(tmp_path / "model", VIT)
    dimefm.export(spec, "hf", tmp_path / "out")
    vision = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path / "out")
    ours = load(spec, "cpu")
    with torch.no_grad():
        rows = vision(ours.encoder.preprocess(picture())[None]).image_embeds
    rows = torch.nn.functional.normalize(rows).numpy()[0]
    assert np.allclose(rows, ours.encode_image(picture()), atol=1e-6)


def test_towers_of_different_activations(distilled, tmp_path):
    teacher = write_folder(tmp_path / "model", {**VIT, "quick_gelu": True})
    config = tmp_path / "student.json"
    config.write_text(json.dumps({"embed_dim": 48, "vision_cfg": VIT["vision_cfg"]}))
    run = distilled(teacher, student=str(config))
    dimefm.export(run, "hf", tmp_path / "out")
    same_in_transformers(run, tmp_path / "out", "CLIPModel")


@pytest.mark.parametrize("student", ["ResNet-mini-32", "timm/test_vit", "ConvNeXt-mini-64"])
def test_a_timm_tower_is_a_dual_encoder(student, distilled, tmp_path):
    run = distilled(write_folder(tmp_path / "model", VIT), student=student, image_size=64)
    dimefm.export(run, "hf", tmp_path / "out")
    same_in_transformers(run, tmp_path / "out", "VisionTextDualEncoderModel")
    in_the_pipeline(tmp_path / "out")


@pytest.mark.parametrize("student", ["ResNet-mini-32", "vit"])
def test_the_text_tower_of_a_teacher_of_transformers(student, distilled, tmp_path):
    teacher = tmp_path / "teacher"
    dimefm.export(write_folder(tmp_path / "model", {**VIT, "quick_gelu": True}), "hf", teacher)
    kind = "VisionTextDualEncoderModel"
    if student == "vit":
        kind = "CLIPModel"
        student = str(tmp_path / "student.json")
        config = {"embed_dim": 48, "vision_cfg": VIT["vision_cfg"]}
        (tmp_path / "student.json").write_text(json.dumps(config))
    run = distilled(str(teacher), student=student)
    dimefm.export(run, "hf", tmp_path / "out")
    same_in_transformers(run, tmp_path / "out", kind)
    with pytest.raises(ModelError, match="is a model of transformers already. Fix: copy"):
        dimefm.export(str(teacher), "hf", tmp_path / "again")
    with pytest.raises(ModelError, match="not built by open_clip. Fix: use --to hf"):
        dimefm.export(run, "open_clip", tmp_path / "again")


def test_a_text_tower_with_its_teachers_image_tower(distilled, tmp_path):
    teacher = write_folder(tmp_path / "model", VIT)
    run = distilled(teacher, text="student:dime-text-256")
    dimefm.export(run, "hf", tmp_path / "out")
    same_in_transformers(run, tmp_path / "out", "CLIPModel")


@pytest.mark.parametrize("tanh", [False, True], ids=["siglip", "siglip2"])
def test_a_siglip_is_a_siglip_model(tanh, small_siglip, tmp_path):
    spec = small_siglip(tmp_path / "model", tanh)
    dimefm.export(spec, "hf", tmp_path / "out")
    same_in_transformers(spec, tmp_path / "out", "SiglipModel")
    in_the_pipeline(tmp_path / "out")


@pytest.fixture
def small_siglip(monkeypatch):
    """Return ``small_siglip(folder, tanh)``: a SigLIP of two layers, with a tokenizer."""
    from timm.models import register_model
    from timm.models.vision_transformer import VisionTransformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    module = ModuleType("small_siglip_of_a_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def vit_nano_patch8_siglip_32(pretrained=False, **settings):
        for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            settings.pop(name, None)
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
        return VisionTransformer(
            **{**sizes, "class_token": False, "global_pool": "map", **settings}
        )

    vit_nano_patch8_siglip_32.__module__ = module.__name__
    if not timm.is_model("vit_nano_patch8_siglip_32"):
        register_model(vit_nano_patch8_siglip_32)

    def make(folder, tanh):
        text = {
            "context_length": 64,
            "vocab_size": 64,
            "hf_tokenizer_name": "here",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 32,
            "heads": 2,
            "layers": 2,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        }
        if tanh:
            text["act_kwargs"] = {"approximate": "tanh"}
        config = {
            "embed_dim": 32,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": {
                "image_size": 32,
                "timm_model_name": "vit_nano_patch8_siglip_32",
                "timm_pool": "map",
                "timm_proj": "none",
            },
            "text_cfg": text,
        }
        preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
        spec = write_folder(folder, config, preprocess)
        words = "<pad> </s> <unk> a red square two dogs on lawn seen from above the number 7 xray"
        vocabulary = {word: number for number, word in enumerate(words.split())}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
        tokenizer.save(str(folder / "tokenizer.json"))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "<pad>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "model_max_length": 64,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return spec

    return make


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"vision_cfg": {**VIT["vision_cfg"], "ls_init_value": 0.1}}, "blocks that transformers"),
        ({"vision_cfg": {**VIT["vision_cfg"], "pool_type": "avg"}}, "does not pool as OpenAI"),
        ({"text_cfg": {**TEXT, "no_causal_mask": True}}, "without a causal mask"),
        ({"text_cfg": {**TEXT, "proj_bias": True}}, "no plain matrix"),
        ({"init_logit_bias": -10}, "a bias on its logits"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_transformers_cannot_express_is_refused(change, reason, tmp_path):
    spec = write_folder(tmp_path / "model", {**VIT, **change})
    with pytest.raises(ModelError, match=f"{reason}.*Fix: use --to open_clip"):
        dimefm.export(spec, "hf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
