"""Keys that say how long a run trains, how it is evaluated, and on which machine."""

from __future__ import annotations

from typing import ClassVar, Literal

from dimefm.recipe.conditions import (
    EPOCHS,
    EVALUATION,
    NOT_PRUNED,
    STARTED,
)
from dimefm.recipe.keys import Names, key
from dimefm.recipe.section import Section


class Optimization(Section):
    """How long to train, in which batches, and with which optimizer."""

    title: ClassVar[str] = "Duration and optimizer"

    epochs: float = key(
        100.0,
        "Passes over the images (of a text tower, texts).",
        metavar="FLOAT",
        gt=0,
        applies_to=EPOCHS,
        tolerated=True,
    )
    steps: int | None = key(
        None,
        "Optimizer steps, in place of epochs.",
        more="0 writes the student as it starts, which has to be from --init or init_projection.",
        metavar="N",
        ge=0,
    )
    batch_size: int = key(
        640,
        "Images (of a text tower, texts) in a batch, over all processes.",
        more="Where the sources hold fewer, and no flag sets it, the batch has all of them.",
        metavar="N",
        gt=0,
        most=10**7,
    )
    texts_per_step: int | None = key(
        None,
        "Texts (of a text tower, images) in a batch.",
        metavar="N",
        gt=0,
        unset="--batch-size",
        most=10**7,
    )
    accum_freq: int = key(
        1,
        "Batches in an optimizer step, whose loss and gradient are those of one large batch.",
        metavar="N",
        gt=0,
        most=10**6,
    )
    optimizer: Literal["dime-fm", "open_clip"] = key(
        "dime-fm",
        "Form of AdamW. dime-fm: position and token embeddings do not decay, the cosine counts "
        "from the first step; open_clip: all matrices decay, the cosine begins after the warm-up.",
        more="CLIP-KD, TinyCLIP and DeCLIP train with open_clip's.",
        flag=False,
    )
    lr: float = key(8e-4, "Peak learning rate.", gt=0)
    min_lr: float = key(4e-5, "Final learning rate.", ge=0)
    warmup_lr: float = key(4e-6, "First learning rate of the warm-up.", flag=False, ge=0)
    init_lr_scale: float = key(
        1.0,
        "Factor on the learning rate of weights that the student did not draw at random (--init).",
        more="0.1 is usual for fine-tuning; 0 keeps these weights, and running statistics, as they "
        "are.",
        flag=False,
        ge=0,
        applies_when=[STARTED],
        most=100,
    )
    warmup: float = key(
        4.0,
        "Linear warm-up in epochs.",
        more="With `prune` the warm-up lasts until the cut.",
        metavar="EPOCHS",
        ge=0,
        looked_at=NOT_PRUNED,
    )
    wd: float = key(0.05, "Weight decay.", ge=0)
    beta1: float = key(0.9, "AdamW's beta1.", flag=False, ge=0, lt=1)
    beta2: float = key(0.999, "AdamW's beta2.", flag=False, ge=0, lt=1)
    eps: float = key(1e-8, "AdamW's epsilon.", flag=False, gt=0)
    grad_clip_norm: float | None = key(None, "Largest gradient norm.", gt=0, unset="no limit")
    ema: float | None = key(
        None,
        "Decay of averaged weights, which are evaluated and written in place of the last ones.",
        metavar="DECAY",
        ge=0,
        lt=1,
        unset="no average",
    )


class Evaluation(Section):
    """Zero-shot evaluation during training. It does not change what the student learns."""

    title: ClassVar[str] = "Evaluation during training"

    eval_root: str | None = key(
        None,
        "Folder with one folder per dataset. Scores are logged, and the best weights kept.",
        metavar="DIR",
        folder=True,
        unset="no evaluation",
    )
    eval_datasets: Names = key(
        (),
        "Benchmarks or folders in it.",
        metavar="A,B",
        commas=True,
        unset="all ELEVATER datasets in it",
        applies_to=EVALUATION,
    )
    eval_every: int = key(
        1000,
        "Steps between evaluations; the last step is always evaluated.",
        metavar="STEPS",
        gt=0,
        applies_to=EVALUATION,
        may_differ_on_resume=True,
    )
    eval_text_model: str | None = key(
        None,
        "Teacher whose text tower encodes the class names, or a text tower's run.",
        metavar="SPEC",
        unset="the teacher that the features name",
        applies_to=EVALUATION,
        may_differ_on_resume=True,
    )
    patience: int | None = key(
        None,
        "Evaluations without a better mean after which the run ends.",
        metavar="N",
        gt=0,
        unset="no early end",
        applies_to=EVALUATION,
        may_differ_on_resume=True,
    )


class Machine(Section):
    """The machine, and the records of the run."""

    title: ClassVar[str] = "Machine and records"

    seed: int = key(0, "Seed of weights, order and views.", most=2**63 - 1)
    device: str = key(
        "auto",
        "Device: auto, cpu, cuda or cuda:N.",
        metavar="NAME",
        may_differ_on_resume=True,
    )
    precision: Literal["fp32", "bf16"] = key(
        "fp32",
        "Compute precision of the towers; losses are always fp32.",
    )
    workers: int = key(
        2,
        "Threads that read and decode.",
        metavar="N",
        gt=0,
        may_differ_on_resume=True,
        most=1024,
    )
    log_every: int = key(
        10,
        "Steps between lines of log.jsonl.",
        metavar="STEPS",
        gt=0,
        may_differ_on_resume=True,
    )
    save_every: int = key(
        1000,
        "Steps between checkpoints.",
        metavar="STEPS",
        gt=0,
        may_differ_on_resume=True,
    )
    keep: int = key(
        2,
        "Number of newest checkpoints to keep.",
        flag=False,
        gt=0,
        may_differ_on_resume=True,
    )
    report_to: str = key(
        "",
        "Further logs: tensorboard, wandb, or both with a comma.",
        metavar="A,B",
        may_differ_on_resume=True,
    )
