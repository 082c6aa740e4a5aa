"""State dicts in the layouts in which the families published them, made from random weights.

Each function returns the model, the content of the file, and the options of the import.
"""

import copy
import json

import torch

from dimefm.models import open_clip, student

VISION = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2}
TEXT = {"context_length": 77, "vocab_size": 49_408, "width": 64, "heads": 1, "layers": 2}
VIT = {"embed_dim": 48, "vision_cfg": VISION, "text_cfg": TEXT}
RESNET = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 32, "layers": [1, 2, 1, 1], "width": 8, "head_width": 64},
    "text_cfg": TEXT,
}
PRUNED = {
    "embed_dim": 48,
    "vision_cfg": {
        "image_size": 32,
        "patch_size": 16,
        "pruned": {
            "width": 39,
            "layers": [{"heads": 1, "mlp": 11}, {"heads": 0, "mlp": 30}, {"heads": 2, "mlp": 9}],
        },
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49_408,
        "pruned": {"width": 24, "layers": [{"heads": 1, "mlp": 8}, {"heads": 1, "mlp": 13}]},
    },
}


def noisy(model, seed=0):
    """Return a model whose weights and running statistics are all drawn from ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(torch.randn(weights.shape, generator=generator), alpha=0.05)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand(buffer.shape, generator=generator))
    return model.eval()


def model_of(config, **settings):
    return noisy(open_clip.from_config({**copy.deepcopy(config), **settings}))


def tensors_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def openai(tmp_path):
    model = model_of(VIT, quick_gelu=True)
    tensors = tensors_of(model)
    tensors["input_resolution"] = torch.tensor(32)
    tensors["context_length"] = torch.tensor(77)
    tensors["vocab_size"] = torch.tensor(49_408)
    return model, tensors, {}


def openai_resnet(tmp_path):
    model = model_of(RESNET, quick_gelu=True)
    return model, tensors_of(model), {"family": "openai"}


def openai_in_half(tmp_path):
    model, tensors, options = openai(tmp_path)
    halves = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    model.load_state_dict({k: halves[k].float() for k in model.state_dict()})
    return model, halves, options


def open_clip_state(tmp_path):
    model = noisy(open_clip.create("ViT-T-16"))
    tensors = {f"module.{name}": tensor for name, tensor in tensors_of(model).items()}
    return model, {"epoch": 3, "state_dict": tensors}, {"family": "open_clip"}


def open_clip_json(tmp_path):
    path = tmp_path / "small.json"
    path.write_text(json.dumps(VIT))
    model = model_of(VIT)
    state = {f"_orig_mod.{name}": tensor for name, tensor in tensors_of(model).items()}
    return model, state, {"student": str(path)}


def small_text(tmp_path, name):
    """Return the path of a student's config with a small text tower."""
    config = {**open_clip.config_of(name), "text_cfg": TEXT}
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(config))
    return config, str(path)


def clip_kd_swin(tmp_path):
    config, path = small_text(tmp_path, "Swin-T")
    model = model_of(config)
    tensors = {}
    for name, tensor in tensors_of(model).items():
        for stage in (1, 2, 3):
            later = f"layers.{stage}.downsample"
            name = name.replace(later, f"layers.{stage - 1}.was_downsample")
        tensors[f"module.{name.replace('was_downsample', 'downsample')}"] = tensor
    for stage in range(4):
        block = f"module.visual.trunk.layers.{stage}.blocks.0"
        tensors[f"{block}.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
        tensors[f"{block}.attn_mask"] = torch.zeros(4, 49, 49)
    state = {"epoch": 32, "name": "x", "state_dict": tensors, "scaler": {}}
    return model, state, {"family": "clip-kd", "student": path}


def clip_kd_mobilenet(tmp_path, config=None, **options):
    model = model_of(config or open_clip.config_of("MobileNetV3-S"))
    with torch.no_grad():
        model.visual.trunk.classifier.bias.zero_()
    tensors = tensors_of(model)
    del tensors["visual.trunk.classifier.bias"]
    tensors["visual.head.proj.weight"] = tensors.pop("visual.trunk.classifier.weight")
    return model, {"state_dict": {f"module.{k}": v for k, v in tensors.items()}}, options


def clip_kd_small_mobilenet(tmp_path):
    config, path = small_text(tmp_path, "MobileNetV3-S")
    return clip_kd_mobilenet(tmp_path, config, family="clip-kd", student=path)


def in_three_modules(tensors, wrapper=""):
    result = {}
    for name, tensor in tensors.items():
        module = "_text_encoder"
        if name.startswith("visual."):
            module = "_image_encoder"
        elif name == "logit_scale":
            module = "_logit_scale"
        result[f"{module}.{wrapper}{name}"] = tensor
    return result


def tinyclip(tmp_path):
    model = model_of(VIT)
    return model, {"state_dict": in_three_modules(tensors_of(model), "module.")}, {}


def tinyclip_resnet(tmp_path):
    model = model_of(RESNET)
    tensors = in_three_modules(tensors_of(model))
    return model, {f"module.{name}": tensor for name, tensor in tensors.items()}, {}


def tinyclip_automatic(tmp_path):
    model = model_of(PRUNED)
    with torch.no_grad():
        model.visual.transformer.resblocks[1].attn.out_proj.bias.zero_()
    tensors = tensors_of(model)
    del tensors["visual.transformer.resblocks.1.attn.out_proj.bias"]
    state = in_three_modules(tensors)
    for name in list(state):
        if not name.startswith("_logit_scale"):
            tower, _, rest = name.partition(".")
            state[f"{tower[1:]}_without_ddp.{rest}"] = state[name].clone()
    return model, {"state_dict": state}, {}


def tinyclip_automatic_plain(tmp_path):
    model = model_of(PRUNED)
    return model, tensors_of(model), {}


def declip(tmp_path, config=VIT, text="encode_text"):
    cfg = {**config, "text_cfg": {**TEXT, "proj_bias": True}}
    model = model_of(cfg, quick_gelu=True, custom_text=True)
    tensors = {}
    for name, tensor in tensors_of(model).items():
        if name == "text.token_embedding.weight":
            mask = torch.full((1, tensor.shape[1]), 1e6)
            tensor = torch.cat([tensor[:49_406], mask, tensor[49_406:]])
        tensors[name.replace("text.", f"{text}.", 1)] = tensor
    tensors["logit_scale"] = tensors["logit_scale"].reshape(1)
    tensors["projector.linear1.weight"] = torch.ones(3, 3)
    tensors["text_label_predictor.bias"] = torch.ones(49_409)
    state = {"step": 4, "model": {f"module.{k}": v for k, v in tensors.items()}}
    return model, state, {}


def slip(tmp_path):
    return declip(tmp_path, text="text_encoder")


def declip_resnet(tmp_path):
    model, state, options = declip(tmp_path, RESNET)
    tensors = {k: v for k, v in state["model"].items() if not k.endswith("num_batches_tracked")}
    tensors["module.visual.fc.weight"] = torch.ones(48, 256)
    return model, {"model": tensors}, options


def declip_of_a_named_student(tmp_path):
    model, state, _ = declip(tmp_path)
    path = tmp_path / "small.json"
    path.write_text(json.dumps(VIT))
    return model, state, {"student": str(path)}


def dime_vit(tmp_path, wrapper="module.", projection="visual.proj"):
    tower = student.new_tower({"embed_dim": 32, "vision_cfg": VISION, "quick_gelu": True}, False)
    state = {}
    for name, tensor in tensors_of(noisy(tower)).items():
        if name == "visual.proj":
            name = projection
        state[f"{wrapper}{name}"] = tensor
    return tower, {"epoch": 100, "best_loss": 1e7, "image_state_dict": state}


def dime_vit_of_the_evaluation(tmp_path):
    return dime_vit(tmp_path, "", "vision_projection")


def dime_swin(tmp_path):
    config = open_clip.config_of("dime-Swin-T")
    tower = noisy(student.new_tower({**config, "embed_dim": 32}, False))
    state = {}
    for name, tensor in tensors_of(tower).items():
        name = name.replace("visual.trunk.", "image_encoder.")
        for stage in (1, 2, 3):
            name = name.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.was")
        name = name.replace(".was", ".downsample")
        if name == "visual.head.proj.weight":
            name, tensor = "image_projection", tensor.T.contiguous()
        state[f"module.{name}"] = tensor
    state["module.image_encoder.layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    return tower, {"image_state_dict": state}
