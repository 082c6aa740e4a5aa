"""Keys of an evaluation: the table ``[eval]`` of a pipeline file."""

from __future__ import annotations

from typing import ClassVar, Literal

from dimefm.recipe.keys import OneOrMore, key
from dimefm.recipe.section import Section


class Eval(Section):
    """What a model is scored on."""

    title: ClassVar[str] = "Evaluation"

    suites: OneOrMore = key(
        ("elevater",),
        "Suites to score: elevater, zero-shot on the datasets in root.",
        metavar="NAME...",
    )
    root: str | None = key(
        None,
        "Folder with one folder per dataset.",
        metavar="DIR",
        folder=True,
    )
    datasets: OneOrMore = key(
        (),
        "Benchmarks or folders in it.",
        metavar="NAME...",
        unset="all with a card that are found",
    )
    by: Literal["rows", "tokens"] = key(
        "rows",
        "Comparison of images and prompts: by embeddings (rows), or token by token as FILIP.",
    )
    text_model: str | None = key(
        None,
        "Text tower of a distilled run: its teacher, or a text tower's run.",
        metavar="SPEC",
        unset="the one that the run names",
    )
    layout: str | None = key(
        None,
        "Layout of the datasets.",
        metavar="NAME",
        unset="detected",
    )
    device: str = key("auto", "Device: auto, cpu, cuda or cuda:N.", metavar="NAME")
    precision: Literal["fp32", "bf16", "fp16"] = key("fp32", "Compute precision of the towers.")
    batch_size: int = key(256, "Samples to encode at once.", metavar="N", gt=0)
    workers: int = key(2, "Threads that read and decode.", metavar="N", gt=0)
