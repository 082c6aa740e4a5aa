"""``dimefm eval``."""

from __future__ import annotations

from pathlib import Path

import click

from dimefm.cli._options import CONTEXT
from dimefm.cli._recipe_options import scratch_option


@click.group("eval", context_settings=CONTEXT)
def command():
    """Score models: zero-shot classification and retrieval."""


@command.command(
    "elevater", context_settings=CONTEXT, short_help="Score a model zero-shot on datasets."
)
@click.option(
    "--model",
    required=True,
    metavar="SPEC",
    help="Model to score: a run folder, ARCH/TAG of open_clip, or any other --teacher SPEC.",
)
@click.option(
    "--root",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder with one folder per dataset.",
)
@click.option(
    "--datasets",
    metavar="A,B",
    help="Benchmarks or folders.  [default: all folders in --root that have a card]",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write: scores.json, report.md and the embeddings.",
)
@click.option(
    "--by",
    default="rows",
    show_default=True,
    type=click.Choice(["rows", "tokens"]),
    help="Similarity of image and text: rows, by their embeddings; tokens, by patches and words.",
)
@click.option(
    "--layout", metavar="NAME", help="Layout of the dataset folders.  [default: detected]"
)
@click.option(
    "--text-model",
    metavar="SPEC",
    help=(
        "Text tower of a distilled run: its teacher, or a text tower's run.  [default: the teacher"
        " that the run names]"
    ),
)
@click.option(
    "--preprocess",
    metavar="TAG|FILE",
    help=(
        "Preprocessing of a --model that is ARCH/FILE: a tag of ARCH, or an open_clip_config.json."
        "  [default: that of all tags of ARCH, where they agree]"
    ),
)
@click.option(
    "--device",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="Device: auto, cpu, cuda or cuda:N.",
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="Compute precision of the towers.",
)
@click.option(
    "--batch-size",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="Samples to encode at once.",
)
@click.option(
    "--workers",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="Threads that read and decode.",
)
def elevater(
    model,
    root,
    datasets,
    out,
    by,
    layout,
    text_model,
    preprocess,
    device,
    precision,
    batch_size,
    workers,
):
    """Score a model zero-shot on the datasets in --root: the 20 of ELEVATER, and any other dataset
    that has a card. Without --datasets the mean is over the ELEVATER datasets.

    A dataset is an image folder, Parquet, webdataset tars, or a vision-datasets folder. A
    classnames.txt or templates.txt in the folder of a dataset replaces the built-in file. The
    embeddings are saved in --out, so a second run is fast.

    With --by tokens, patches are compared with words, as FILIP does. This needs a run that trained
    with declip.filip, and saves no embeddings.

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

    encoder = load_encoder(model, device, precision, text_model, preprocess)
    for note in encoder.notes:
        click.echo(note, err=True)
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


@command.command("retrieval", context_settings=CONTEXT, short_help="Score two caches by retrieval.")
@click.option("--images", required=True, metavar="CACHE", help="Image cache: a folder or URL.")
@click.option(
    "--texts", required=True, metavar="CACHE", help="Text cache of the same model: a folder or URL."
)
@click.option(
    "--split",
    metavar="A:B",
    help="Share of the samples to score, by a hash of their keys, as in train.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write: scores.json and report.md.  [default: print only]",
)
@scratch_option
def retrieval(images, texts, split, out, scratch):
    """Compute recall at 1, 5 and 10 in both directions from an image cache and a text cache.

    A text matches the image of the same key. An image may have several texts, with the keys KEY#0,
    KEY#1, ...: any of them is a match.

    \b
    Example:
      dimefm eval retrieval --images cache/images --texts cache/texts \\
             --out scores/retrieval
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
