"""Keys of an extraction: the table ``[extract]`` of a pipeline file."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dimefm.recipe.keys import OneOrMore, Strings, key
from dimefm.recipe.schema.data import Data
from dimefm.recipe.section import Section

SHARED: dict[str, Any] = dict(Data.model_fields)
"""Keys that mean the same in an extraction and in a training run."""


class Extract(Section):
    """What a teacher encodes, and what the cache holds."""

    title: ClassVar[str] = "Extraction"

    teacher: OneOrMore = key(
        (),
        "Teachers: ARCH/TAG of open_clip, ARCH/FILE, a folder of open_clip or transformers, "
        "hf:ORG/MODEL of transformers, timm/NAME.TAG (images alone), a run, or ARCH/random:SEED. "
        "Several share one pass over the sources.",
        metavar="SPEC...",
    )
    images: Strings = key(
        (),
        "Image sources: files, folders, patterns, .list files, or URLs.",
        metavar="SRC...",
    )
    texts: Strings = key(
        (),
        "Text sources; they need not be paired with the images.",
        metavar="SRC...",
    )
    text_model: str | None = key(
        None,
        "Text tower of a distilled --teacher: its own teacher, or a text tower's run.",
        metavar="SPEC",
        unset="the one that the run names",
    )
    preprocess: str | None = key(
        None,
        "Preprocessing of a --teacher that is ARCH/FILE: a tag of ARCH, or an "
        "open_clip_config.json.",
        metavar="TAG|FILE",
        unset="that of all tags of ARCH, where they agree",
    )
    dataroot: str | None = SHARED["dataroot"]
    input_format: str | None = SHARED["input_format"]
    image_column: str | None = SHARED["image_column"]
    text_column: str | None = SHARED["text_column"]
    key_column: str | None = SHARED["key_column"]
    separator: str | None = SHARED["separator"]
    rows: str | None = SHARED["rows"]
    split: str | None = SHARED["split"]
    limit: int | None = SHARED["limit"]
    format: str = key(
        "hdf5",
        "Format of the shards, see docs/cache-format.md.",
        metavar="NAME",
    )
    dtype: Literal["float16", "float32", "int8"] | None = key(
        None,
        "Number format of the embeddings.",
        unset="float16; tsv: float32, for DIME-FM; parquet: float32, for DuckDB",
    )
    views: int | None = key(
        None,
        "Random crops of each image to cache.",
        metavar="K",
        gt=0,
        unset="the center view",
        most=10_000,
    )
    view_recipe: dict = key(
        {},
        "Table of the crops' settings: scale, ratio, flip, seed.",
        flag=False,
    )
    captions: Literal["first", "all"] = key(
        "first",
        "Captions of a row that has several: the first one, or a row of the cache for each.",
    )
    text_views: int | None = key(
        None,
        "Views of each row's captions to cache: its captions in turn, or variants.",
        metavar="K",
        gt=0,
        unset="the first caption",
        most=10_000,
    )
    text_recipe: dict = key(
        {},
        "Table of the text views' settings: augment, seed, deletion, clean, synonyms.",
        flag=False,
    )
    long_texts: Literal["quarantine", "truncate"] = key(
        "quarantine",
        "Texts that are longer than the model's context: quarantine or truncate them.",
    )
    tokens: int | None = key(
        None,
        "Patches of an image, or words of a text, to cache in place of its embedding (for FILIP).",
        metavar="N",
        gt=0,
        most=4096,
    )
    decoder: Literal["turbo", "pil"] = key(
        "turbo",
        "Decoder for images: libjpeg-turbo, or open_clip's own transform to the bit.",
    )
    device: str = key("auto", "Device: auto, cpu, cuda or cuda:N.", metavar="NAME")
    precision: Literal["fp32", "fp32-fast", "bf16", "fp16", "auto"] = key(
        "fp32",
        "Compute precision. fp32-fast: fp32 with bf16 (CPU) or TF32 (GPU) matmuls. auto: the "
        "fastest here; an existing cache keeps its own.",
    )
    compile: bool = key(False, "Compile the image tower; needs a C++ compiler.")
    batch_size: Annotated[int, Field(gt=0)] | Literal["auto"] = key(
        256,
        "Samples to encode at once; fewer when memory runs out. auto: measure how many images fit.",
        metavar="N|auto",
        expected="a positive number or 'auto'",
    )
    workers: int = key(
        2, "Data-loading threads when encoding on a GPU.", metavar="N", gt=0, most=1024
    )
    scratch: str | None = SHARED["scratch"]
