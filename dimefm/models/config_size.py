"""How large a model is by its config, before anything is allocated.

The counts are those of open_clip's towers without biases and norms, so a little too low.
"""

from __future__ import annotations

import functools

import timm
import torch

from dimefm.models.config_schema import Decoder, ImageTower, ModelConfig, TextTower, Transformer


def parameters(config: ModelConfig) -> int:
    """Return the number of parameters of the towers that a config has."""
    count = 0
    dim = config.embed_dim or 0
    if config.vision_cfg is not None:
        count += _image_parameters(config.vision_cfg, dim)
    if config.text_cfg is not None:
        count += _text_parameters(config.text_cfg, dim)
    if config.multimodal_cfg is not None:
        count += _decoder_parameters(config.multimodal_cfg, config.text_cfg)
    return count


def patches(tower: ImageTower) -> int:
    """Return into how many patches a native vision transformer cuts an image."""
    size = tower.image_size
    height, width = (size, size) if isinstance(size, int) else size
    side = tower.patch_size or 1
    return (height // side) * (width // side)


def _image_parameters(tower: ImageTower, dim: int) -> int:
    if tower.timm_model_name:
        return _timm_parameters(tower.timm_model_name)
    if isinstance(tower.layers, list):
        return _resnet_parameters(tower.layers, tower.width, dim)
    side = tower.patch_size or 1
    width = _width(tower)
    stem = 3 * side * side * width
    positions = patches(tower) * width
    pooling = 0
    if tower.attentional_pool:
        pooling = 2 * dim * (dim + width) + tower.attn_pooler_queries * dim
    head = width * dim
    return stem + positions + _tower_blocks(tower, tower.layers) + pooling + head


def _text_parameters(tower: TextTower, dim: int) -> int:
    width = _width(tower)
    tokens = (tower.vocab_size + tower.context_length) * width
    head = width * dim
    return tokens + _tower_blocks(tower, tower.layers) + head


def _width(tower: Transformer) -> int:
    return tower.width if tower.pruned is None else tower.pruned.width


def _tower_blocks(tower: Transformer, layers: int) -> int:
    """Return the parameters of a tower's blocks, which may differ."""
    if tower.pruned is None:
        return _blocks(layers, tower.width, tower.mlp_ratio)
    width = tower.pruned.width
    count = 0
    for layer in tower.pruned.layers:
        attention = 4 * width * layer.heads * tower.pruned.head_width
        perceptron = 2 * width * layer.mlp
        count += attention + perceptron
    return count


def _decoder_parameters(decoder: Decoder, text: TextTower | None) -> int:
    """Return the parameters of a CoCa's decoder, which attends to itself and to the image."""
    words = text.vocab_size if text is not None else decoder.vocab_size
    blocks = 2 * _blocks(decoder.layers, decoder.width, decoder.mlp_ratio)
    return blocks + words * decoder.width


def _blocks(layers: int, width: int, mlp_ratio: float) -> int:
    """Return the parameters of transformer blocks: attention and a perceptron of two layers."""
    attention = 4 * width * width
    perceptron = 2 * width * int(width * mlp_ratio)
    return layers * (attention + perceptron)


def _resnet_parameters(stages: list[int], width: int, dim: int) -> int:
    """Return the parameters of open_clip's ResNet and its attention pooling."""
    count = 0
    for number, blocks in enumerate(stages):
        planes = width * 2**number
        count += blocks * 17 * planes * planes
    channels = 32 * width
    return count + 3 * channels * channels + channels * dim


@functools.lru_cache
def _timm_parameters(name: str) -> int:
    """Return the parameters of a timm architecture, built without memory; 0 where it cannot be.

    The installed timm has a fixed list of architectures, so nothing is unbounded here.
    """
    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
    except Exception:  # older versions of timm read numbers out of tensors that have none
        return 0
    return sum(weights.numel() for weights in model.parameters())
