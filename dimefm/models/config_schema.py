"""The keys of a model config and of its preprocessing that may come with data, and their bounds.

They are the fields of open_clip's own dataclasses, without those by which open_clip, timm or
transformers import code, open another file or reach the network.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MOST_PIXELS = 2048  # on a side of an image

Count = Annotated[int, Field(ge=1, le=1024)]  # of heads
Depth = Annotated[int, Field(ge=1, le=256)]
Width = Annotated[int, Field(ge=1, le=16_384)]
Pixels = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
Context = Annotated[int, Field(ge=1, le=4096)]
Vocabulary = Annotated[int, Field(ge=1, le=2_000_000)]
Token = Annotated[int, Field(ge=0, lt=2_000_000)]
Heads = Annotated[int, Field(ge=0, le=1024)]  # that a pruned layer has left
Hidden = Annotated[int, Field(ge=0, le=131_072)]
Ratio = Annotated[float, Field(gt=0, le=64)]
Share = Annotated[float, Field(ge=0, lt=1)]
Number = Annotated[float, Field(ge=-10_000, le=10_000)]
Sides = Annotated[list[Pixels], Field(min_length=2, max_length=2)]
Stages = Annotated[list[Depth], Field(min_length=4, max_length=4)]
Mean = Annotated[float, Field(ge=-1000, le=1000)]
Deviation = Annotated[float, Field(gt=0, le=1000)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}$")]
TimmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,99}(\.[A-Za-z0-9_]{1,99})?$")]


class Table(BaseModel):
    """A table with these keys and no others; values are taken as they are."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class NormSettings(Table):
    """Settings of a layer norm."""

    eps: Annotated[float, Field(gt=0, le=1)] = 1e-5
    elementwise_affine: bool = True
    bias: bool = True


class ActivationSettings(Table):
    """Settings of GELU."""

    approximate: Literal["none", "tanh"] = "none"


class TokenizerSettings(Table):
    """Settings of a tokenizer. ``bpe_path`` is the name of a file in the current folder."""

    clean: Literal["lower", "whitespace", "canonicalize"] = "lower"
    strip_sep_token: bool = False
    reduction_mask: Literal["", "simple", "random", "shuffle"] = ""
    bpe_path: FileName | None = None


class PrunedLayer(Table):
    """Heads and hidden units of one layer."""

    heads: Heads
    mlp: Hidden


class Pruned(Table):
    """``pruned``: layers that differ, see :mod:`dimefm.models.pruned`."""

    width: Width
    head_width: Width = 64
    layers: Annotated[list[PrunedLayer], Field(min_length=1, max_length=256)]


NOT_PRUNED = (
    "width",
    "layers",
    "mlp_ratio",
    "heads",
    "head_width",
    "timm_model_name",
    "block_type",
    "ls_init_value",
    "qk_norm",
    "scaled_cosine_attn",
    "scale_heads",
    "scale_attn_inner",
    "scale_attn",
    "scale_fc",
)
"""Keys that a tower with ``pruned`` does not have."""


class Transformer(Table):
    """The keys that image and text transformers share."""

    pruned: Pruned | None = None

    layers: Depth | Stages = 12
    width: Width = 512
    mlp_ratio: Ratio = 4.0
    ls_init_value: Number | None = None
    final_ln_after_pool: bool = False
    output_tokens: bool = False
    act_kwargs: ActivationSettings | None = None
    norm_kwargs: NormSettings | None = None
    block_type: Literal["default", "custom"] | None = None
    qk_norm: bool = False
    scaled_cosine_attn: bool = False
    scale_heads: bool = False
    scale_attn_inner: bool = False
    scale_attn: bool = False
    scale_fc: bool = False

    @model_validator(mode="after")
    def _describes_layers_once(self) -> Transformer:
        """Refuse a key that says something else of the layers than ``pruned``."""
        if self.pruned is None:
            return self
        for key in NOT_PRUNED:
            if key in self.model_fields_set and getattr(self, key) is not None:
                raise PydanticCustomError(
                    "pruned_twice", "a table without '{key}', since it has 'pruned'", {"key": key}
                )
        return self


class ImageTower(Transformer):
    """``vision_cfg``; ``timm_model_name`` names an architecture that the installed timm has."""

    width: Width = 768
    head_width: Width = 64
    patch_size: Pixels | None = 16
    image_size: Pixels | Sides = 224
    patch_dropout: Share = 0.0
    attentional_pool: bool | Literal["parallel", "cascade"] = False
    attn_pooler_queries: Context = 256
    attn_pooler_heads: Count = 8
    no_ln_pre: bool = False
    pos_embed_type: Literal["learnable", "sin_cos_2d"] = "learnable"
    pool_type: Literal["tok", "avg"] = "tok"
    timm_model_name: TimmName | None = None
    timm_model_pretrained: Literal[False] = False
    timm_pool: Literal["", "avg", "max", "avgmax", "token", "map", "abs_attn", "rot_attn"] = "avg"
    timm_proj: Literal["", "linear", "mlp", "none"] | None = "linear"
    timm_proj_bias: bool = False
    timm_drop: Share = 0.0
    timm_drop_path: Share | None = None


class TextTower(Transformer):
    """``text_cfg``; ``hf_tokenizer_name`` means the tokenizer's files next to the config."""

    layers: Depth = 12
    context_length: Context = 77
    vocab_size: Vocabulary = 49_408
    heads: Count = 8
    hf_tokenizer_name: Annotated[str, Field(max_length=200)] | None = None
    tokenizer_mode: Literal["", "clips"] | None = None
    tokenizer_kwargs: TokenizerSettings | None = None
    embed_cls: bool = False
    pad_id: Token = 0
    eos_id: Token = 2
    no_causal_mask: bool = False
    pool_type: Literal["first", "last", "argmax", "eos"] = "argmax"
    proj_bias: bool = False
    proj_type: Literal["linear", "none"] = "linear"
    hf_model_name: None = None


class Decoder(TextTower):
    """``multimodal_cfg`` of a CoCa."""

    pruned: None = None

    dim_head: Width = 64
    n_queries: Context = 256
    attn_pooler_heads: Count = 8


class ModelConfig(Table):
    """``model_cfg``."""

    embed_dim: Width | None = None
    vision_cfg: ImageTower | None = None
    text_cfg: TextTower | None = None
    multimodal_cfg: Decoder | None = None
    quick_gelu: bool = False
    custom_text: bool = False
    init_logit_scale: Number = 2.6593
    init_logit_bias: Number | None = None
    nonscalar_logit_scale: bool = False
    pad_id: Token = 0


class Preprocessing(Table):
    """``preprocess_cfg``."""

    size: Pixels | Sides = 224
    mode: Literal["RGB"] = "RGB"
    mean: Mean | Annotated[list[Mean], Field(min_length=3, max_length=3)] | None = None
    std: Deviation | Annotated[list[Deviation], Field(min_length=3, max_length=3)] | None = None
    interpolation: Literal["bicubic", "bilinear", "random"] | None = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] | None = "shortest"
    fill_color: Annotated[int, Field(ge=0, le=255)] = 0


class CardPreprocessing(Preprocessing):
    """The preprocessing of a card, which may resize to other sides than it crops.

    ``resize_to`` is the shorter side in pixels, or height and width; None: the sides of ``size``.
    """

    resize_to: Pixels | Sides | None = None


class ModelFile(Table):
    """``open_clip_config.json``."""

    model_cfg: ModelConfig
    preprocess_cfg: Preprocessing = Preprocessing()
