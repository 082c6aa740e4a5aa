"""How much the channels, heads and hidden units of a tower count, measured on a few rows.

Scores are mean squares over rows and places; of texts, over the places up to the end of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Literal

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from dimefm.models.weights.inheritance.blocks import NotInheritable

CHUNK = 16  # rows at a time


@torch.no_grad()
def measure(model: nn.Module, side: Literal["image", "text"], inputs: Tensor) -> dict[str, Tensor]:
    """Return the scores of a tower's groups, see :mod:`.importance`, on the CPU in float64.

    ``inputs`` are pixels [N, 3, S, S] as the tower takes them, or tokens [N, L]. Raises
    NotInheritable for a tower of another family.
    """
    tower = model.visual if side == "image" else getattr(model, "text", model)
    encode = model.encode_image if side == "image" else model.encode_text
    meter = _Meter()
    with ExitStack() as hooks:
        if isinstance(tower, ModifiedResNet):
            hooks.enter_context(_watched_resnet(tower, meter))
        else:
            hooks.enter_context(_watched_transformer(tower, meter))
        for chunk in inputs.split(CHUNK):
            if side == "text":
                meter.watch_places(chunk)
            encode(chunk)
    return meter.scores


class _Meter:
    """Sums of squares by group; ``weights`` [N, L] are 1 at the places that count."""

    def __init__(self) -> None:
        self.scores: dict[str, Tensor] = {}
        self.weights: Tensor | None = None

    def watch_places(self, tokens: Tensor) -> None:
        """Count the places of tokens [N, L] up to the end of each text, its largest token."""
        numbers = torch.arange(tokens.shape[1])
        ends = tokens.argmax(dim=1)
        self.weights = (numbers <= ends[:, None]).double()

    def add(self, group: str, squares: Tensor) -> None:
        """Add squares [N, L, C] of a group."""
        squares = squares.double()
        if self.weights is not None:
            places = self.weights[:, : squares.shape[1], None]
            squares = squares[:, : places.shape[1]] * places
        total = squares.sum((0, 1)).cpu()
        self.scores[group] = self.scores.get(group, 0) + total


@contextmanager
def _hooked(module: nn.Module, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Show each output of a module to ``see``, for the time of the block."""

    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        see(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _watched_transformer(tower: nn.Module, meter: _Meter) -> Iterator[None]:
    """Measure the layers of a ViT or text transformer."""
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    known = isinstance(blocks, nn.ModuleList)
    known = known and all(type(block) is ResidualAttentionBlock for block in blocks)
    last = getattr(tower, "ln_post", getattr(tower, "ln_final", None))
    if not known or last is None or getattr(tower, "attn_pool", None) is not None:
        raise NotInheritable(
            "inherit_by = 'importance' knows open_clip's ViT, text transformer and ModifiedResNet,"
            f" not {type(tower).__name__}"
        )
    with ExitStack() as hooks:
        for number, block in enumerate(blocks):
            is_first = block.attn.batch_first  # else places come before rows
            see = partial(_add_channels, meter, f"channels {number}", is_first)
            hooks.enter_context(_hooked(block.ln_1, see))
            hooks.enter_context(_hooked(block.ln_2, see))
            layer = block.mlp.c_proj
            see = partial(_add_units, meter, f"units {number}", is_first, layer)
            hooks.enter_context(_hooked(block.mlp.gelu, see))
            hooks.enter_context(_watched_heads(block.attn, meter, f"heads {number}"))
        hooks.enter_context(_hooked(last, partial(_add_last, meter)))
        yield


def _add_channels(meter: _Meter, group: str, is_first: bool, output: Tensor) -> None:
    squares = output.square()
    meter.add(group, squares if is_first else squares.transpose(0, 1))


def _add_last(meter: _Meter, output: Tensor) -> None:
    """Add the output of the last norm, of all places [N, L, C] or behind the pool [N, C]."""
    if output.ndim == 3:
        meter.add("channels last", output.square())
        return
    total = output.square().double().sum(0).cpu()
    meter.scores["channels last"] = meter.scores.get("channels last", 0) + total


def _add_units(meter: _Meter, group: str, is_first: bool, layer: nn.Linear, output: Tensor) -> None:
    """Add what each hidden unit adds to the residual stream."""
    squared_weights = layer.weight.square().sum(0)
    squares = output.square() * squared_weights
    meter.add(group, squares if is_first else squares.transpose(0, 1))


@contextmanager
def _watched_heads(attention: nn.MultiheadAttention, meter: _Meter, group: str) -> Iterator[None]:
    """Measure what each head adds to the residual stream."""

    def hook(module: nn.Module, inputs: tuple, options: dict) -> None:
        x = inputs[0] if attention.batch_first else inputs[0].transpose(0, 1)
        heads = _heads(attention, x, options.get("attn_mask"))
        by_head = attention.out_proj.weight.unflatten(1, (attention.num_heads, -1))
        squares = []
        for number in range(attention.num_heads):
            added = heads[:, number] @ by_head[:, number].T
            squares.append(added.square().sum(-1))
        meter.add(group, torch.stack(squares, dim=-1))

    handle = attention.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _heads(attention: nn.MultiheadAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the output of each head [N, H, L, D] for x [N, L, C]."""
    projected = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    parts = projected.chunk(3, dim=-1)
    query, key, value = [
        part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in parts
    ]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


@contextmanager
def _watched_resnet(tower: ModifiedResNet, meter: _Meter) -> Iterator[None]:
    """Measure the channels of a ResNet after each activation, and the heads of its pool."""
    groups = {"act1": "stem 1", "act2": "stem 2", "act3": "stage 0"}
    with ExitStack() as hooks:
        for name, group in groups.items():
            hooks.enter_context(_hooked(getattr(tower, name), partial(_add_maps, meter, group)))
        for stage in range(1, 5):
            for number, block in enumerate(getattr(tower, f"layer{stage}")):
                inner = {
                    "act1": f"inner {stage} {number} 1",
                    "act2": f"inner {stage} {number} 2",
                    "act3": f"stage {stage} {number}",
                }
                for name, group in inner.items():
                    see = partial(_add_maps, meter, group)
                    hooks.enter_context(_hooked(getattr(block, name), see))
        meter.scores["heads 0"] = _heads_of_pool(tower.attnpool)
        yield


def _add_maps(meter: _Meter, group: str, output: Tensor) -> None:
    """Add feature maps [N, C, H, W]."""
    meter.add(group, output.square().flatten(2).transpose(1, 2))


def _heads_of_pool(pool: nn.Module) -> Tensor:
    """Return the squared norm of the product of value and output weights of each head."""
    heads = pool.num_heads
    values = pool.v_proj.weight.double().unflatten(0, (heads, -1))
    outputs = pool.c_proj.weight.double().unflatten(1, (heads, -1))
    products = torch.einsum("ohd,hdc->hoc", outputs, values)
    return products.square().sum((1, 2)).cpu()
