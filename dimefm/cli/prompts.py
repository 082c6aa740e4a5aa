"""``dimefm prompts``."""

from __future__ import annotations

from pathlib import Path

import click

from dimefm.cli._options import CONTEXT
from dimefm.cli._output import result


@click.command(
    "prompts",
    context_settings=CONTEXT,
    short_help="Write the class prompts of datasets to a text file.",
)
@click.argument("datasets", nargs=-1)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write, one prompt a line.  [default: standard output]",
)
def command(datasets, out):
    """Write the class prompts of DATASETS, one a line; without DATASETS, list the dataset cards.

    DATASETS are names of cards, or folders with a classnames.txt or class folders. The file is a
    text source for extract-features: DIME-FM's second text corpus holds the class prompts of the
    downstream datasets.

    \b
    Example:
      dimefm prompts cifar-10 mnist --out prompts.txt
    """
    from dimefm.evaluate.benchmark import for_folder, load, prompts
    from dimefm.storage.files import write_text

    if not datasets:
        return _list_cards()
    cards = [for_folder(Path(name)) if Path(name).is_dir() else load(name) for name in datasets]
    sentences = [sentence for card in cards for row in prompts(card) for sentence in row]
    distinct = list(dict.fromkeys(sentences))
    if out is None:
        result("\n".join(distinct))
        return distinct
    text = "".join(f"{sentence}\n" for sentence in distinct)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)
    result(f"{out}: {len(distinct):,} sentences of {len(cards)} datasets")
    return {"file": out, "sentences": len(distinct), "datasets": len(cards)}


def _list_cards() -> list[dict]:
    """Print the dataset cards and return what is printed."""
    from dimefm import plugins
    from dimefm.errors import DataError
    from dimefm.evaluate.benchmark import load

    cards: list[dict] = []
    for name in plugins.names("benchmarks"):
        try:
            card = load(name)
        except DataError as error:
            result(f"{name:36} cannot be used: {error}")
            cards.append({"name": name, "error": str(error)})
            continue
        classes = len(card.classes)
        templates = len(card.templates)
        result(f"{name:36} {classes:4} classes x {templates:2} templates")
        cards.append({"name": name, "classes": classes, "templates": templates})
    return cards
