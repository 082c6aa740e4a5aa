"""``dimefm run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dimefm.cli._options import CONTEXT, ManyValues, refuse_absent_inputs, refuse_absent_root
from dimefm.cli._output import result
from dimefm.errors import RecipeError
from dimefm.models.spec_paths import refuse_unknown_models
from dimefm.runtime import console

if TYPE_CHECKING:
    from dimefm.experiment.file import Experiment


@click.command(
    "run",
    cls=ManyValues,
    context_settings=CONTEXT,
    short_help="Run a whole experiment from one file: extract, train, evaluate, export.",
)
@click.argument("pipeline", metavar="FILE|NAME")
@click.option(
    "--dataroot",
    metavar="DIR",
    help="Folder or URL that relative sources and datasets are looked up in.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write.  [default: runs/NAME of the file]",
)
@click.option("--small", is_flag=True, help="Apply the file's [small] tables: a run of seconds.")
@click.option("--teacher", metavar="SPEC", help="Teacher to extract with, in place of the file's.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="TABLE.KEY=VALUE...",
    help="Any key of a table, with its value as in TOML, e.g. train.steps=100.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan with an estimate; write nothing.")
def command(pipeline, dataroot, out, small, teacher, settings, dry_run):
    """Run the stages of a pipeline file: [extract], [train], [eval] and [export].

    A stage that is done, and whose inputs have not changed, is skipped; an interrupted one is
    resumed. The last lines are a table of the stages and the scores. docs/pipelines.md describes
    the file.

    \b
    Example:
      dimefm run pipelines/dime_fm_vitb32.toml --dataroot data/ --dry-run
      dimefm run pipelines/dime_fm_vitb32.toml --dataroot data/ --out runs/dime
      torchrun --nproc-per-node 4 -m dimefm run FILE --dataroot data/
    """
    from dimefm.experiment.file import read_experiment
    from dimefm.recipe.presets import path_of

    try:
        pipeline = path_of(pipeline)
    except RecipeError as error:
        raise click.BadParameter(str(error), param_hint="FILE|NAME") from error
    values = parse_settings(settings)
    if teacher is not None:
        values.setdefault("extract", {})["teacher"] = teacher
    experiment = read_experiment(pipeline, small, dataroot, values)
    _refuse_absent(experiment)

    from dimefm.experiment.plan import describe_plan
    from dimefm.experiment.record import read_records
    from dimefm.experiment.run import run_experiment
    from dimefm.runtime.torchrun import rank_of

    folder = out or Path("runs") / pipeline.stem

    if dry_run:
        plan = list(describe_plan(experiment, folder))
        for line in plan:
            result(line)
        return {"plan": plan}

    is_main = rank_of()[0] == 0

    def say(line: str) -> None:
        if is_main:
            console.note(line)

    table = run_experiment(experiment, folder, say)
    if is_main:
        result(f"\n{table}\n\nwritten: {folder}")
    return {"out": folder, "stages": read_records(folder)}


def _refuse_absent(experiment: Experiment) -> None:
    """Raise a DimefmError for a source, cache, model or folder of datasets that does not exist."""
    extract, train, evaluation = experiment.extract, experiment.train, experiment.eval
    if extract is not None:
        refuse_unknown_models(*extract.teacher, extract.text_model)
        refuse_absent_inputs((*extract.images, *extract.texts), extract.dataroot)
    if train is not None and not train.tsv_file_list:
        caches = ((), ()) if extract is not None else (train.image_cache, train.text_cache)
        sources = (*train.images, *train.texts)
        refuse_absent_inputs(sources, train.dataroot, *caches, train.eval_root, train.student)
    if evaluation is not None:
        refuse_absent_root(evaluation.root)


def parse_settings(settings: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return the tables, keys and values of ``--set``; raise RecipeError for one that is not
    TABLE.KEY=VALUE."""
    from dimefm.cli.assignments import assignments
    from dimefm.experiment.file import TABLES

    values = assignments("--set", settings, "train.steps=100", TABLES)
    for table, keys in values.items():
        if not isinstance(keys, dict):
            raise RecipeError(
                f"--set {table}: expected TABLE.KEY=VALUE, e.g. train.steps=100. Fix: name a key of"
                f" [{table}]"
            )
    return values
