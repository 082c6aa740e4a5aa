"""What the flags of open_clip, img2dataset and clip_benchmark are called here.

A command that is given one of them says so for all that stand on its command line.
"""

from __future__ import annotations

from collections.abc import Sequence

TABLES = {
    "--csv-img-key": "--image-column",
    "--csv-caption-key": "--text-column",
    "--csv-separator": "--separator",
    "--caption-col": "--text-column",
    "--dataset-type": "not needed, files tell their format",
    "--train-num-samples": "not needed, samples are counted",
}
TRAINING = {
    **TABLES,
    "--train-data": "--images; with --text student for pairs without caches",
    "--model": "--student",
    "--pretrained": "--init, see docs/weights.md",
    "--distill-model": "extract-features --teacher MODEL/TAG first, then the caches",
    "--distill-pretrained": "extract-features --teacher MODEL/TAG first, then the caches",
    "--force-image-size": "--image-size",
    "--logs": "--out LOGS/NAME",
    "--name": "--out LOGS/NAME",
    "--log-every-n-steps": "--log-every",
    "--save-frequency": "--save-every, in steps",
    "--save-most-recent": "not needed, the newest checkpoints stay",
    "--zeroshot-frequency": "--eval-every, in steps",
    "--imagenet-val": "--eval-root",
    "--val-data": "dimefm eval retrieval, from two caches",
    "--aug-cfg": "--augment, or --set crop_scale=...",
    "--local-loss": "not needed, the loss is of the whole batch",
    "--gather-with-grad": "not needed, gradients are those of the whole batch",
    "--lr-scheduler": "a cosine always",
    "--beta1": "--set beta1=...",
    "--beta2": "--set beta2=...",
    "--eps": "--set eps=...",
    "--opt": "AdamW always",
    "--torchcompile": "not available",
    "--grad-checkpointing": "--accum-freq, which needs less memory, too",
    "--use-bn-sync": "not available",
    "--dataset-resampled": "not available, each sample comes once an epoch",
}
EXTRACTION = {
    **TABLES,
    "--train-data": "--images and --texts",
    "--model": "--teacher MODEL/TAG",
    "--pretrained": "--teacher MODEL/TAG",
    "--clip-model": "--teacher MODEL/TAG",
    "--input-dataset": "--images and --texts",
    "--output-folder": "--out",
    "--url-list": "not available, img2dataset downloads; --images takes its folder",
}
SCORING = {
    "--pretrained": "--model MODEL/TAG",
    "--imagenet-val": "--root FOLDER --datasets NAME",
    "--dataset": "--datasets",
    "--dataset-root": "--root",
    "--output": "--out",
    "--task": "eval elevater, or eval retrieval",
}
FLAGS = {"train": TRAINING, "extract-features": EXTRACTION, "pack": TABLES, "elevater": SCORING}
"""Command -> flag of open_clip, img2dataset, clip-retrieval or clip_benchmark -> what it is."""

PRECISIONS = {"amp": "bf16", "amp_bf16": "bf16", "amp_bfloat16": "bf16"}
"""open_clip's values of --precision, and what each means here."""

MOST = 7  # flags in a message


def advice(command: str | None, given: Sequence[str], known: set[str]) -> str:
    """Return what the flags of ``given`` that the command lacks are called here, "" for none."""
    flags = FLAGS.get(command or "", {})
    lines = []
    for word in given:
        flag = word.partition("=")[0]
        line = f"{flag} is {flags.get(flag)}"
        if flag in flags and flag not in known and line not in lines:
            lines.append(line)
    if not lines:
        return ""
    more = " ..." if len(lines) > MOST else ""
    return f"Here {'; '.join(lines[:MOST])}{more} (docs/training.md, From open_clip)"
