"""Keys of an evaluation: the table ``[eval]`` of a pipeline file."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from dimefm.recipe.keys import Counts, OneOrMore, Seeds, key
from dimefm.recipe.schema.extraction import Extract
from dimefm.recipe.section import Section

SHARED: dict[str, Any] = dict(Extract.model_fields)
"""Keys that mean the same in an extraction and in an evaluation."""

LATER = (
    "metric",
    "preprocess",
    "decoder",
    "zero_shot",
    "linear_probe",
    "few_shot",
    "fine_tune",
    "fine_tune_epochs",
    "tower_rate",
    "protocol",
    "seeds",
    "knowledge",
    "knowledge_kind",
    "knowledge_method",
    "knowledge_items",
)
"""Keys that came after the first records of evaluations."""


class Eval(Section):
    """What a model is scored on."""

    title: ClassVar[str] = "Evaluation"

    suites: OneOrMore = key(
        ("elevater",),
        "Suites to score: elevater, zero-shot on the datasets in root.",
        metavar="NAME...",
        flag=False,
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
    layout: str | None = key(
        None,
        "Layout of the datasets.",
        metavar="NAME",
        unset="detected",
    )
    metric: Literal["accuracy", "mean_per_class", "map_11_point", "roc_auc"] | None = key(
        None,
        "Metric of all datasets.",
        unset="that of each card; accuracy without a card",
    )
    zero_shot: bool = key(
        False,
        "Score zero-shot. This is also done when no other task is asked for.",
    )
    linear_probe: bool = key(
        False,
        "Train a linear probe on all training images and score it.",
    )
    few_shot: Counts = key(
        (),
        "Train linear probes on N images per class and score them.",
        metavar="N,N,...",
        commas=True,
        expected="numbers above 0, with commas between them",
    )
    fine_tune: bool = key(
        False,
        "Fine-tune the image tower with a linear head and score it: on all training images, and on"
        " those of few_shot.",
    )
    fine_tune_epochs: int | None = key(
        None,
        "Epochs of fine-tuning at most; validation chooses one of them.",
        metavar="N",
        unset="by the number of images, at least 5",
        gt=0,
        most=1000,
    )
    tower_rate: float = key(
        0.1,
        "Learning rate of the tower in fine-tuning, as a share of the head's.",
        metavar="X",
        ge=0,
        most=1000,
    )
    protocol: Literal["clean", "elevater", "logistic"] = key(
        "clean",
        "Protocol of probes: clean chooses all by validation images, logistic solves by L-BFGS and"
        " does too, elevater is the toolkit's, which chooses the epoch on the test set.",
    )
    seeds: Seeds = key(
        (),
        "Seeds of few-shot tasks, whose mean is the score; tasks with all images use the first.",
        metavar="N,N,...",
        commas=True,
        unset="the benchmark's 0,1,2",
        expected="numbers of at least 0, with commas between them",
    )
    by: Literal["rows", "tokens"] = key(
        "rows",
        "Comparison of images and prompts: by embeddings (rows), or token by token as FILIP.",
    )
    knowledge: OneOrMore = key(
        (),
        "Files of ELEVATER's resources/knowledge, or their folder: prompts get definitions of"
        " Wiktionary or WordNet and texts of GPT-3.",
        metavar="PATH...",
    )
    knowledge_kind: Literal["wiktionary", "wordnet", "wordnet-path", "gpt3"] | None = key(
        None,
        "Knowledge to take from files of definitions; gpt3 expects texts of GPT-3 alone.",
        unset="definitions of Wiktionary",
    )
    knowledge_method: Literal["wiki-and-gpt3", "wiki-then-gpt3", "definition-then-gpt3"] = key(
        "wiki-and-gpt3",
        "Texts of GPT-3: beside the definition, for classes without an entry, or for classes"
        " without a definition.",
    )
    knowledge_items: int = key(
        1, "Texts of GPT-3 to use for each class, the first of 5.", metavar="N", gt=0, most=1000
    )
    text_model: str | None = key(
        None,
        "Text tower of a distilled run: its teacher, or a text tower's run.",
        metavar="SPEC",
        unset="the one that the run names",
    )
    preprocess: str | None = key(
        None,
        "Preprocessing of a model that is ARCH/FILE: a tag of ARCH, or an open_clip_config.json.",
        metavar="TAG|FILE",
        unset="that of all tags of ARCH, where they agree",
    )
    decoder: Literal["turbo", "pil"] = SHARED["decoder"]
    device: str = SHARED["device"]
    precision: Literal["fp32", "bf16", "fp16"] = key("fp32", "Compute precision of the towers.")
    batch_size: int = key(256, "Samples to encode at once.", metavar="N", gt=0, most=10**7)
    workers: int = key(2, "Threads that read and decode.", metavar="N", gt=0, most=1024)

    @property
    def trains(self) -> bool:
        """Whether a task asks for training images."""
        return self.linear_probe or self.fine_tune or bool(self.few_shot)

    def changed_settings(self) -> dict[str, Any]:
        """Return the settings, without those of later versions that have their defaults.

        So a record of an earlier version is still that of the same evaluation.
        """
        settings = self.model_dump()
        for name in LATER:
            if settings[name] == type(self).model_fields[name].default:
                del settings[name]
        return settings
