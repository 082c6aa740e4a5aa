"""``dimefm eval retrieval``: recall of an image cache and a text cache."""

from __future__ import annotations

from pathlib import Path

import click

from dimefm.cli._options import CONTEXT
from dimefm.cli._output import result
from dimefm.cli._recipe_options import scratch_option
from dimefm.runs.scores import REPORT, SCORE_MARKS, SCORES
from dimefm.storage.out_folder import refuse_foreign


@click.command("retrieval", context_settings=CONTEXT, short_help="Score two caches by retrieval.")
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
def command(images, texts, split, out, scratch):
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
    from dimefm.runs.scores import write_scores

    if out:
        refuse_foreign(out, "scores", SCORE_MARKS)
    chosen = None if split is None else parse_split(split)
    image_cache = FeatureCache(images, scratch)
    text_cache = FeatureCache(texts, scratch)
    scores = retrieval_scores(image_cache, run(image_cache, text_cache, split=chosen))
    result(terminal(scores))
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write_scores(out, scores, markdown(scores))
        result(f"\nwritten: {out / SCORES}, {out / REPORT}")
    return scores.to_json()
