"""``dimefm train``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from dimefm.cli._options import ManyValues, column_options, scratch_option, selection_options
from dimefm.errors import RecipeError
from dimefm.recipe import AUGMENTATIONS, Recipe

DIME = {
    "vl": 0.7,
    "pvl": 0.3,
    "udist": 0.0,
}  # released default weights, Training/utils/opts.py:41-52
CACHE = click.Path(file_okay=False)
SECTIONS = {
    "--recipe": "The run",
    "--images": "What it learns from",
    "--student": "What learns",
    "--use-vl-loss": "Losses of DIME-FM; all others are in recipes, see dimefm losses",
    "--epochs": "How long, and the optimizer",
    "--view": "What the student sees of an image",
    "--eval-root": "Scores on the way",
    "--seed": "Machine and records",
}


@click.command(
    "train",
    cls=ManyValues,
    sections=SECTIONS,
    short_help="Train a student on cached features; no teacher runs.",
)
@click.option(
    "--recipe",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file, see pipelines/.",
)
@click.option(
    "--small", is_flag=True, help="Apply the recipe's [small] table: the same run in seconds."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE...",
    help="Any other key of the recipe, as TOML.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Run folder to write.",
)
@click.option(
    "--resume", is_flag=True, help="Go on from the newest checkpoint in --out, if there is one."
)
@click.option(
    "--images",
    multiple=True,
    metavar="SRC...",
    help="Images: files, folders, patterns, .list files, or URLs.",
)
@click.option(
    "--texts", multiple=True, metavar="SRC...", help="Raw sentences, to train a text tower on."
)
@click.option(
    "--image-cache",
    multiple=True,
    type=CACHE,
    metavar="DIR...",
    help="Teacher features of the images; of several teachers, one each.",
)
@click.option(
    "--text-cache",
    multiple=True,
    type=CACHE,
    metavar="DIR...",
    help=(
        "Teacher features of sentences, of the same teachers; for --text student those of the"
        " pairs."
    ),
)
@click.option(
    "--tsv-file-list",
    multiple=True,
    metavar="LIST...",
    help="DIME-FM's form, in place of --images and caches: image image_feat text text_feat.",
)
@click.option(
    "--captions",
    type=click.Choice(["text", "label"]),
    help="For pairs: sentences, or prompts from labels.  [text]",
)
@click.option(
    "--dataroot", metavar="DIR", help="Folder or URL that relative sources are looked up in."
)
@click.option(
    "--input-format", metavar="NAME", help="Format of the sources when it cannot be told from them."
)
@column_options
@selection_options
@scratch_option
@click.option(
    "--mix",
    multiple=True,
    type=float,
    metavar="SHARE...",
    help="Shares of a batch, one for each source named.",
)
@click.option(
    "--shuffle",
    type=click.Choice(["auto", "rows", "blocks"]),
    help=(
        "All rows, or some row groups at a time; auto: blocks for Parquet files with many row"
        " groups.  [auto]"
    ),
)
@click.option(
    "--student",
    metavar="NAME",
    help=(
        "One of docs/students.md, e.g. ViT-T-16, any open_clip architecture, timm/NAME or a JSON"
        " file.  [dime-ViT-B-32]"
    ),
)
@click.option(
    "--image-size", type=int, metavar="PIXELS", help="Side of the student's input.  [its own]"
)
@click.option(
    "--bridge",
    type=click.Choice(["none", "linear"]),
    help=(
        "'linear': the student keeps its dimension and learns a map to the teacher's, folded into"
        " it at the end.  [none]"
    ),
)
@click.option(
    "--text",
    metavar="WHICH",
    help=(
        "Text tower: 'teacher', 'student' to train both towers on pairs (with caches of these,"
        " against a teacher), or 'student:NAME' to train the text tower of NAME on --texts. "
        " [teacher]"
    ),
)
@click.option(
    "--use-vl-loss/--no-vl-loss",
    default=None,
    help="VL: scores of images and sentences like the teacher's; on unless the recipe has losses.",
)
@click.option(
    "--use-pvl-loss",
    is_flag=True,
    help="P-VL: the same with the teacher's images in place of sentences.",
)
@click.option(
    "--use-udist-loss", is_flag=True, help="UDIST: distances among images; needs --w-udist above 0."
)
@click.option("--w-vl", type=float, help="Weight of VL.  [0.7]")
@click.option("--w-pvl", type=float, help="Weight of P-VL.  [0.3]")
@click.option("--w-udist", type=float, help="Weight of UDIST.  [0]")
@click.option("--t-vl", type=float, help="Temperature of VL.  [1]")
@click.option("--t-pvl", type=float, help="Temperature of P-VL.  [3]")
@click.option("--t-udist", type=float, help="Temperature of UDIST.  [7]")
@click.option("--logit-scale", type=float, help="Factor on cosines.  [the teacher's]")
@click.option(
    "--epochs", type=float, help="Passes over the images (of a text tower, sentences).  [100]"
)
@click.option("--steps", type=int, metavar="N", help="Optimizer steps, instead of epochs.")
@click.option(
    "--batch-size",
    type=int,
    metavar="N",
    help="Images (of a text tower, sentences) in a batch, over all processes.  [640]",
)
@click.option(
    "--texts-per-step",
    type=int,
    metavar="N",
    help="Sentences (of a text tower, images) a step.  [--batch-size]",
)
@click.option(
    "--accum-freq",
    type=int,
    metavar="N",
    help="Batches per optimizer step, whose loss and gradient are those of one large batch.  [1]",
)
@click.option("--lr", type=float, help="Peak learning rate.  [0.0008]")
@click.option("--min-lr", type=float, help="Final learning rate.  [0.00004]")
@click.option("--warmup", type=float, metavar="EPOCHS", help="Linear warm-up.  [4]")
@click.option("--wd", type=float, help="Weight decay.  [0.05]")
@click.option("--grad-clip-norm", type=float, help="Largest gradient norm.  [no limit]")
@click.option(
    "--ema",
    type=float,
    metavar="DECAY",
    help="Average the weights; the averaged ones are scored and written.",
)
@click.option(
    "--view",
    type=click.Choice(["cached", "free", "center"]),
    help=(
        "The cache's own crops, random crops whatever the teacher saw, or the centre.  [cached;"
        " with --tsv-file-list free]"
    ),
)
@click.option(
    "--augment",
    type=click.Choice(list(AUGMENTATIONS)),
    help="Random crops, and colours, of a paper; --set crop_scale=... replaces a part.  [dime-fm]",
)
@click.option(
    "--eval-root",
    type=CACHE,
    help="Folder with one folder per dataset; scores are logged, the best weights kept.",
)
@click.option(
    "--eval-datasets",
    metavar="A,B",
    help="Benchmarks or folders in it.  [those of the 20 that are there]",
)
@click.option(
    "--eval-every",
    type=int,
    metavar="STEPS",
    help="Between evaluations; the last step is one.  [1000]",
)
@click.option(
    "--eval-text-model",
    metavar="SPEC",
    help="Where the teacher lies now, or a text tower's run.  [as the features say]",
)
@click.option(
    "--patience", type=int, metavar="N", help="Stop after N evaluations without a better mean."
)
@click.option("--seed", type=int, help="Seed of weights, order, views.  [0]")
@click.option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.  [auto]")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    help="Of the towers; losses are always fp32.  [fp32]",
)
@click.option("--workers", type=int, metavar="N", help="Threads that read and decode.  [2]")
@click.option("--log-every", type=int, metavar="STEPS", help="Between lines of log.jsonl.  [10]")
@click.option("--save-every", type=int, metavar="STEPS", help="Between checkpoints.  [1000]")
@click.option(
    "--report-to", metavar="A,B", help="Further logs beside log.jsonl: tensorboard, wandb, or both."
)
def command(recipe, small, settings, out, resume, **flags):
    """Train a student on cached teacher features; no teacher runs.

    \b
    Example: an image tower, against the teacher's text tower:
      dimefm train --images images/ --image-cache cache/images --text-cache cache/texts \\
                   --student dime-ViT-B-32 --out runs/image --use-pvl-loss

    \b
    A text tower, against the teacher's image tower; without --text-cache a sentence learns
    from the cached images of its key:
      dimefm train --texts sentences.txt --text-cache cache/texts --image-cache cache/images \\
                   --text student:dime-text-256 --out runs/text --use-pvl-loss

    \b
    On 4 GPUs, the same batches as on one:
      torchrun --nproc-per-node 4 -m dimefm train ...
    """
    from dimefm.recipe import read
    from dimefm.runtime.torchrun import rank_of
    from dimefm.train.online_eval import scorer
    from dimefm.train.trainer import train

    choices = {
        name: flags.pop(name) for name in list(flags) if name.startswith(("use_", "w_", "t_"))
    }
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    if "eval_datasets" in given:
        given["eval_datasets"] = tuple(
            name.strip() for name in given["eval_datasets"].split(",") if name.strip()
        )
    given |= parse_settings(settings)
    resolved = read(recipe, small, **given)
    losses = dime_losses(
        dict(resolved.losses),
        choices,
        default=resolved.text != "student" or bool(resolved.image_cache),
    )
    resolved = one_form(read(recipe, small, **{**given, "losses": losses}), given)

    def say(line: str) -> None:
        if rank_of()[0] == 0:
            click.echo(line, err=True)

    done = train(
        resolved, out, resume, echo=say, scorer=scorer, ready=lambda: say(resolved.to_toml())
    )
    if rank_of()[0] == 0:
        click.echo(f"run folder: {done}")


def one_form(recipe: Recipe, given: dict) -> Recipe:
    """Return the recipe in DIME-FM's form when ``--tsv-file-list`` is given: without its file's own
    sources and caches, and, as released, with free views where it would replay cached ones."""
    instead: dict = {"images": (), "image_cache": (), "text_cache": ()}
    instead |= {"view": "free"} if recipe.view == "cached" else {}
    left_out = {name: value for name, value in instead.items() if name not in given}
    return dataclasses.replace(recipe, **left_out) if "tsv_file_list" in given else recipe


def parse_settings(settings: tuple[str, ...]) -> dict:
    """Return the keys and values of ``--set``; raise RecipeError for one that is not KEY=VALUE with
    a key of recipes.

    ``losses={...}`` replaces all losses of the recipe.
    """
    from dimefm.recipe import FIELDS, assignments

    found = assignments("--set", settings, "crop_scale=[0.5,1.0]", {*FIELDS, "small"})
    if "small" in found:
        raise RecipeError(
            "--set small: that table is the recipe file's; --small applies it, and --set replaces"
            " single keys"
        )
    return found


def dime_losses(losses: dict, choices: dict, default: bool = True) -> dict:
    """Return the recipe's losses with the flags applied, by ``default`` VL where there are none;
    raise RecipeError for a flag that would do nothing."""
    switches = {
        "vl": choices["use_vl_loss"],
        "pvl": choices["use_pvl_loss"],
        "udist": choices["use_udist_loss"],
    }
    if switches["vl"] is None:
        switches["vl"] = default and not losses
    for term, on in switches.items():
        name = f"dime.{term}"
        weight, temperature = choices[f"w_{term}"], choices[f"t_{term}"]
        if on:
            losses.setdefault(name, {"weight": DIME[term]})
        elif choices["use_vl_loss"] is False and term == "vl":
            losses.pop(name, None)
        if name not in losses:
            if weight is not None or temperature is not None:
                flag = f"--{'w' if weight is not None else 't'}-{term}"
                raise RecipeError(
                    f"{flag} does nothing without --use-{term}-loss; add that, or leave {flag} out"
                )
            continue
        settings = {"weight": weight, "temperature": temperature}
        losses[name] = {
            **losses[name],
            **{key: value for key, value in settings.items() if value is not None},
        }
        if losses[name]["weight"] == 0:
            raise RecipeError(
                f"--use-{term}-loss with weight 0 would do nothing (DIME-FM's default for it); say"
                f" --w-{term} above 0"
            )
    return losses
