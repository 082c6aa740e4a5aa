"""A folder of ONNX graphs, written by ``dimefm export --to onnx``, as an encoder.

::

    config.json                      facts of both towers, and under "dimefm" those that are ours
    tokenizer.json, ...              for transformers.js; the encoder has open_clip's tokenizer
    onnx/vision_model.onnx           image tower, float32
    onnx/text_model.onnx             text tower, float32
    onnx/vision_model_quantized.onnx, text_model_quantized.onnx       8-bit weights
    onnx/vision_model_fp16.onnx, text_model_fp16.onnx                 16-bit weights

onnxruntime runs the graphs on the CPU.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dimefm.cache import EncoderCard
from dimefm.errors import ModelError
from dimefm.models import config_check, open_clip
from dimefm.models.config_schema import Preprocessing, Table, TextTower
from dimefm.models.encoder import Encoder
from dimefm.models.onnx_session import Graph
from dimefm.storage.small_files import Unreadable, read_json

CONFIG = "config.json"
FACTS = "dimefm"
"""Key of ``config.json`` under which our facts are."""

GRAPHS = "onnx"
IMAGE = "vision_model"
TEXT = "text_model"
ENDING = ".onnx"
OTHER_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")
VARIANTS = {"fp32": "", "uint8": "_quantized", "fp16": "_fp16"}
"""Name of each set of graphs -> the ending of its files, which transformers.js knows."""

PIXELS, IMAGE_ROWS = "pixel_values", "image_embeds"
TOKENS, TEXT_ROWS = "input_ids", "text_embeds"
"""Names of the graphs' inputs and outputs; transformers.js looks for these."""


class Facts(Table):
    """What our key of ``config.json`` says.

    ``has_text`` is False where embeddings of fixed labels stand for the text tower. ``any_length``
    is True where the text graph takes sentences of any length; ``end`` is then the
    token at which it pools, None for the largest token of a sentence. ``text_cfg`` has what decides
    the tokenizer, which is called ``tokenizer``. ``logit_scale`` is the factor on cosines itself.
    """

    version: Literal[1] = 1
    dim: Annotated[int, Field(gt=0, le=1 << 16)]
    logit_scale: Annotated[float, Field(gt=0, le=1e6)]
    logit_bias: Annotated[float, Field(ge=-1e6, le=1e6)] | None = None
    activation: Literal["quick_gelu", "standard"] | None = None
    has_text: bool = True
    any_length: bool = True
    end: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    preprocess: Preprocessing
    text_cfg: TextTower
    tokenizer: Annotated[str, Field(max_length=300)]


def graph_file(kind: str, variant: str) -> str:
    """Return the path of a graph inside the folder."""
    return f"{GRAPHS}/{kind}{VARIANTS[variant]}{ENDING}"


def is_onnx_folder(folder: Path) -> bool:
    """Tell whether a folder holds ONNX graphs in this layout, and no weights for another library.

    Folders of transformers may hold graphs of other programs beside their weights.
    """
    if any((folder / name).is_file() for name in OTHER_WEIGHTS):
        return False
    return any((folder / graph_file(IMAGE, variant)).is_file() for variant in VARIANTS)


def variant_of(file: Path) -> str | None:
    """Return which set of graphs a file of a folder belongs to, None for any other file."""
    if file.parent.name != GRAPHS:
        return None
    for variant in VARIANTS:
        for kind in (IMAGE, TEXT):
            if file.name == Path(graph_file(kind, variant)).name:
                return variant
    return None


class ImageGraph(nn.Module):
    """The image tower of a folder."""

    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph
        self.visual = nn.Module()  # it has no weights that torch could see

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return rows [B, D], not normalized, of pixels [B, 3, H, W]."""
        values = pixels.contiguous().float().numpy()
        return torch.from_numpy(self.graph.run(values))


class TextGraph(nn.Module):
    """The text tower of a folder."""

    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return rows [N, D], not normalized, of tokens [N, L]."""
        values = tokens.contiguous().long().numpy()
        return torch.from_numpy(self.graph.run(values))


class AbsentText(nn.Module):
    """In place of the text tower of a folder that has class embeddings instead."""

    def __init__(self, folder: Path):
        super().__init__()
        self._folder = folder

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Raise ModelError."""
        raise self.refusal()

    def refusal(self) -> ModelError:
        """Return the error that there is no text tower."""
        return ModelError(
            f"{self._folder}: has no text tower, only the embeddings of fixed labels. Fix: export"
            " the model again without --labels"
        )


@dataclass(repr=False)
class OnnxEncoder(Encoder):
    """An encoder whose towers are ONNX graphs.

    ``any_length`` and ``end`` are those of the folder's facts.
    """

    any_length: bool = False
    end: int | None = None

    def compiled(self, batch_size: int) -> Encoder:
        """Return this encoder: onnxruntime has compiled its graphs already."""
        return self

    def lengths_read(self, tokens: Tensor) -> Tensor:
        """Return how many places of each row of tokens [N, L] the text graph needs: int64 [N]."""
        if not self.any_length:
            return torch.full((len(tokens),), tokens.shape[1])
        marks = tokens if self.end is None else (tokens == self.end).int()
        return 1 + marks.argmax(dim=-1)

    @property
    def has_text(self) -> bool:
        """Whether there is a text graph; a folder of fixed labels has none."""
        return not isinstance(self.text_model, AbsentText)

    def require_text(self) -> None:
        """Raise ModelError when there is no text graph."""
        if isinstance(self.text_model, AbsentText):
            raise self.text_model.refusal()

    @property
    def image_parameters(self) -> int:
        """Number of weights of the image graph."""
        return self.image_model.graph.parameters

    @property
    def text_parameters(self) -> int:
        """Number of weights of the text graph."""
        if isinstance(self.text_model, AbsentText):
            return 0
        return self.text_model.graph.parameters


def read_facts(folder: Path) -> Facts:
    """Return the facts of a folder; raise ModelError when they are damaged, or not ours."""
    path = folder / CONFIG
    try:
        content = read_json(path)
    except (OSError, Unreadable) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{path}: cannot be read ({reason}). Fix: export it again") from error
    facts = content.get(FACTS) if isinstance(content, dict) else None
    if not isinstance(facts, dict):
        raise ModelError(
            f"{path}: has no table '{FACTS}', which dimefm export --to onnx writes; graphs of other"
            " programs are not read. Fix: name the model that they were made from"
        )
    checked = config_check.validate(Facts, facts, str(path), FACTS)
    config_check.preprocessing(facts["preprocess"], f"{path}: {FACTS}", whole=True)
    return checked


def load(
    name: str, folder: Path, variant: str | None, device: torch.device, precision: str
) -> Encoder:
    """Return the encoder of a folder; without a ``variant`` the most exact one that is there.

    Raises ModelError when files are missing, damaged, or do not belong together, and for a
    precision that the graphs do not have.
    """
    if not precision.startswith("fp32"):
        raise ModelError(
            f"{name}: --precision {precision}: the precision of ONNX graphs is in their files. Fix:"
            f" name e.g. {folder / graph_file(IMAGE, 'fp16')}"
        )
    notes: tuple[str, ...] = ()
    if device.type != "cpu":
        notes = (f"{name}: ONNX graphs are run on the CPU, not on {device}",)
    facts = read_facts(folder)
    chosen = variant or _most_exact(folder)
    image = _image_graph(folder, chosen, facts)
    text = _text_graph(folder, chosen, facts)
    preprocess = open_clip.plain(facts.preprocess.model_dump())
    tokenizer = open_clip.tokenizer_for(_text_config(facts), folder)
    card = EncoderCard(
        name=name,
        weights_sha256=_digest(image, text),
        dim=facts.dim,
        logit_scale=facts.logit_scale,
        logit_bias=facts.logit_bias,
        preprocess=preprocess,
        tokenizer=facts.tokenizer,
        context_length=getattr(tokenizer, "context_length", None),
        activation=facts.activation,
    )
    return OnnxEncoder(
        card=card,
        image_model=ImageGraph(image),
        text_model=AbsentText(folder) if text is None else TextGraph(text),
        preprocess=open_clip.transform_of(preprocess),
        tokenizer=tokenizer,
        device=torch.device("cpu"),
        precision="fp32",
        notes=notes,
        any_length=facts.any_length,
        end=facts.end,
    )


def _most_exact(folder: Path) -> str:
    for variant in VARIANTS:
        if (folder / graph_file(IMAGE, variant)).is_file():
            return variant
    raise ModelError(f"{folder}: has no {graph_file(IMAGE, 'fp32')}. Fix: export the model again")


def _image_graph(folder: Path, variant: str, facts: Facts) -> Graph:
    """Return the image graph, checked."""
    graph = Graph(folder / graph_file(IMAGE, variant), PIXELS, IMAGE_ROWS)
    height, width = _sides(facts.preprocess.size)
    _check_shape(graph, "input", graph.shape, (None, 3, height, width))
    _check_shape(graph, "output", graph.output_shape, (None, facts.dim))
    return graph


def _text_graph(folder: Path, variant: str, facts: Facts) -> Graph | None:
    """Return the text graph, checked; None in a folder with fixed labels and no text graph."""
    if not facts.has_text:
        return None
    graph = Graph(folder / graph_file(TEXT, variant), TOKENS, TEXT_ROWS)
    length = None if facts.any_length else facts.text_cfg.context_length
    _check_shape(graph, "input", graph.shape, (None, length))
    _check_shape(graph, "output", graph.output_shape, (None, facts.dim))
    return graph


def _sides(size: int | list[int]) -> tuple[int, int]:
    """Return height and width of a preprocessing's size."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _check_shape(
    graph: Graph, what: str, shape: tuple[int | None, ...], expected: tuple[int | None, ...]
) -> None:
    """Raise ModelError when a graph has an input or output of another shape than the facts say."""
    if shape != expected:
        raise ModelError(
            f"{graph.path}: its {what} has the shape {_axes(shape)}, expected {_axes(expected)} as"
            f" {CONFIG} says. Fix: export the model again"
        )


def _axes(shape: tuple[int | None, ...]) -> list[int | str]:
    return ["any" if size is None else size for size in shape]


def _text_config(facts: Facts) -> dict:
    """Return the open_clip model config that decides the tokenizer."""
    text = facts.text_cfg.model_dump(exclude_unset=True)
    return {"embed_dim": facts.dim, "text_cfg": text}


def _digest(image: Graph, text: Graph | None) -> str:
    digests = image.sha256 + (text.sha256 if text is not None else "")
    return hashlib.sha256(digests.encode()).hexdigest()
