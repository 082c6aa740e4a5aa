"""``dimefm eval``."""

from __future__ import annotations

from pathlib import Path

import click

from dimefm.cli._options import CONTEXT
from dimefm.cli._recipe_options import scratch_option


@click.group("eval", context_settings=CONTEXT)
def command():
    """Measure what an encoder knows."""


@command.command("elevater", context_settings=CONTEXT)
@click.option(
    "--model",
    required=True,
    metavar="SPEC",
    help="A run folder, ARCH/TAG, or anything --teacher takes.",
)
@click.option(
    "--root",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="One folder per dataset.",
)
@click.option(
    "--datasets",
    metavar="A,B",
    help="Benchmarks or folders.  [default: every folder that has a card]",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="scores.json and report.md",
)
@click.option(
    "--by",
    default="rows",
    show_default=True,
    type=click.Choice(["rows", "tokens"]),
    help="What to compare.",
)
@click.option("--layout", help="Layout of the datasets when detection does not do.")
@click.option(
    "--text-model",
    metavar="SPEC",
    help="Of a distilled run: where its teacher lies now, or a text tower's run.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="Of the towers.",
)
@click.option(
    "--batch-size",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="Rows encoded at once.",
)
@click.option(
    "--workers",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="Threads that read and decode.",
)
def elevater(
    model, root, datasets, out, by, layout, text_model, device, precision, batch_size, workers
):
    """Zero-shot scores on the datasets found under --root: the 20 of ELEVATER and every other that
    has a card. Without --datasets the mean is over the sets of ELEVATER.

    Image folders, Parquet, webdataset tars and vision-datasets are read; classnames.txt and
    templates.txt next to the data win over the built-in ones. Features are kept in --out, so a
    second call is quick. --by tokens compares patches with words, as FILIP does, for a run that
    learned declip.filip; it keeps nothing.

    \b
    Example:
      dimefm eval elevater --model runs/first --root datasets --out scores/first
    """
    from dimefm.errors import DataError
    from dimefm.evaluate.reports import terminal
    from dimefm.evaluate.zero_shot import elevater as run
    from dimefm.models import filip
    from dimefm.models.loading import load_encoder
    from dimefm.runs.scores import REPORT, SCORES

    encoder = load_encoder(model, device, precision, text_model)
    maps = filip.load(model, encoder) if by == "tokens" else None
    names = [name.strip() for name in datasets.split(",") if name.strip()] if datasets else None
    scores = run(
        encoder, root, out, names, layout=layout, batch_size=batch_size, workers=workers, maps=maps
    )
    click.echo(terminal(scores))
    click.echo(f"\nwritten: {out / SCORES}, {out / REPORT}")
    failed = [failure.dataset for failure in scores.failed]
    if failed:
        asked = len(failed) + len(scores.results)
        raise DataError(
            f"{len(failed)} of {asked} datasets could not be scored: {', '.join(failed)}; the"
            f" reasons stand above and in {out / SCORES}"
        )


@command.command("retrieval", context_settings=CONTEXT)
@click.option("--images", required=True, metavar="CACHE", help="Image features: a folder or URL.")
@click.option("--texts", required=True, metavar="CACHE", help="Text features of the same encoder.")
@click.option(
    "--split", metavar="A:B", help="Only rows whose keys hash to [A, B) of 0 to 1, as in train."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Gets scores.json and report.md.",
)
@scratch_option
def retrieval(images, texts, split, out, scratch):
    """Recall at 1, 5 and 10, both ways, from cached features of one encoder.

    A text belongs to the image of the same key; of several texts of an image, KEY#0, KEY#1, ...,
    each does.

    \b
    Example:
      dimefm eval retrieval --images cache/images --texts cache/texts --out scores/retrieval
    """
    from dimefm.cache import FeatureCache
    from dimefm.data.selection import parse_split
    from dimefm.evaluate.retrieval import markdown, retrieval_scores, terminal
    from dimefm.evaluate.retrieval import retrieval as run
    from dimefm.runs.scores import REPORT, SCORES, write_scores

    chosen = None if split is None else parse_split(split)
    image_cache = FeatureCache(images, scratch)
    text_cache = FeatureCache(texts, scratch)
    scores = retrieval_scores(image_cache, run(image_cache, text_cache, split=chosen))
    click.echo(terminal(scores))
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write_scores(out, scores, markdown(scores))
        click.echo(f"\nwritten: {out / SCORES}, {out / REPORT}")
