"""``dimefm train``. The options that set keys of a recipe come from its schema."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dimefm.cli._dime_fm_options import dime_fm_options, translate
from dimefm.cli._options import ManyValues, refuse_absent_inputs
from dimefm.cli._output import result
from dimefm.cli._recipe_options import recipe_options, recipe_sections
from dimefm.cli.assignments import assignments
from dimefm.errors import RecipeError
from dimefm.models.spec_paths import refuse_absent_models
from dimefm.runtime import console
from dimefm.runtime.progress import unless_hung_up
from dimefm.runtime.torchrun import rank_of
from dimefm.storage.out_folder import refuse_foreign
from dimefm.train.checkpoint_folders import MARKS, how_to_resume

if TYPE_CHECKING:
    from dimefm.recipe import Recipe


@click.command(
    "train",
    cls=ManyValues,
    sections={"--recipe": "Run", **recipe_sections()},
    short_help="Train a student on cached features; no teacher runs.",
)
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    metavar="FILE|NAME",
    help="Recipe to train: a TOML file, or a name that `dimefm recipes` lists.",
)
@click.option("--small", is_flag=True, help="Apply the recipe's [small] table: a run of seconds.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE...",
    help="Any key of the recipe, with its value as in TOML.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Run folder to write.  [required]",
)
@click.option(
    "--resume", is_flag=True, help="Resume from the newest checkpoint in --out, if there is one."
)
@click.option(
    "--verify",
    is_flag=True,
    help="Read all caches and samples in full first; on resume, compare them with the first start.",
)
@click.option(
    "--cache",
    multiple=True,
    metavar="DIR...",
    help="Output of extract-features, one for each teacher: short for --image-cache DIR/images and"
    " --text-cache DIR/texts.",
)
@recipe_options
@dime_fm_options
def command(recipes, small, settings, out, resume, verify, cache, **flags):
    """Train a student on cached teacher features; no teacher runs.

    \b
    Example: an image tower, against the teacher's text tower:
      dimefm train --images images/ --cache cache --student dime-ViT-B-32 --crops free \\
                   --use-pvl-loss --out runs/image

    \b
    A text tower, against the teacher's image tower; without --text-cache a text learns
    from the cached images of its key:
      dimefm train --texts sentences.txt --text-cache cache/texts --image-cache cache/images \\
                   --text student:dime-text-256 --out runs/text --use-pvl-loss

    \b
    On 4 GPUs, the same batches as on one:
      torchrun --nproc-per-node 4 -m dimefm train ...
    """
    from dimefm.recipe import read
    from dimefm.train.signals import raised

    flags["out"] = out
    translated, lines = translate(flags)
    del flags["out"]
    out = translated.pop("out", out)
    if out is None:
        raise click.UsageError("Missing option '--out'.")
    for line in lines:
        _say(line)
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    given |= _caches(cache, given)
    given |= translated
    given |= parse_settings(settings)
    resolved = read(_only_recipe(recipes), small, **given)
    if not resolved.tsv_file_list:
        refuse_absent_inputs(
            (*resolved.images, *resolved.texts),
            resolved.dataroot,
            resolved.image_cache,
            resolved.text_cache,
            resolved.eval_root,
            resolved.student,
        )
    refuse_absent_models(resolved.eval_text_model)
    refuse_foreign(out, "run", MARKS)
    with raised():
        try:
            fits_batch = "batch_size" not in given
            return _train(resolved, out, resume, fits_batch=fits_batch, verify=verify)
        except KeyboardInterrupt:
            _say(f"\ninterrupted; {how_to_resume(out)}")
            click.get_current_context().exit(130)


def _caches(folders: Sequence[str], given: dict) -> dict:
    """Return the caches that --cache stands for; raise UsageError where they are named, too."""
    if not folders:
        return {}

    from dimefm.recipe.cache_folders import caches_below

    named = [f"--{key.replace('_', '-')}" for key in ("image_cache", "text_cache") if key in given]
    if named:
        raise click.UsageError(f"--cache stands for {' and '.join(named)}, too. Fix: remove one")
    return caches_below(folders)


def _only_recipe(recipes: Sequence[str]) -> Path | None:
    """Return the path of the one recipe; raise UsageError for several."""
    from dimefm.recipe.presets import path_of

    if len(recipes) > 1:
        names = " and ".join(map(ascii, recipes[:2]))
        raise click.UsageError(
            f"--recipe is given {len(recipes)} times, {names}, and a run has one. Fix: write base ="
            ' "FIRST.toml" into the second file, which then replaces keys of the first'
        )
    if not recipes:
        return None
    try:
        return path_of(recipes[0])
    except RecipeError as error:
        raise click.BadParameter(str(error), param_hint="--recipe") from error


def _train(recipe: Recipe, out: Path, resume: bool, **options: bool) -> dict | None:
    """Train, print the run folder and return its figures; None in all processes but the first."""
    from dimefm.runs.compare import as_dict, read_run
    from dimefm.train.online_eval import scorer
    from dimefm.train.trainer import train

    is_main = rank_of()[0] == 0

    def ready() -> None:
        if is_main:
            console.detail(recipe.to_toml())

    done = train(recipe, out, resume, echo=_say, scorer=scorer, ready=ready, **options)
    if not is_main or done is None:
        return None
    result(f"run folder: {done}")
    return as_dict(read_run(done))


def _say(line: str) -> None:
    """Print a line to stderr, in the first of several processes."""
    if rank_of()[0] == 0:
        with unless_hung_up():
            console.note(line)


def parse_settings(settings: tuple[str, ...]) -> dict:
    """Return the keys and values of ``--set``; raise RecipeError for one that is not KEY=VALUE with
    a key of recipes.

    ``losses={...}`` replaces all losses of the recipe.
    """
    from dimefm.recipe import FORMER_NAMES, KEYS

    values = assignments("--set", settings, "crop_scale=[0.5,1.0]", {*KEYS, *FORMER_NAMES, "small"})
    if "small" in values:
        raise RecipeError(
            "--set small: that table is the recipe file's. Fix: use --small to apply it, or --set"
            " to replace single keys"
        )
    return values
