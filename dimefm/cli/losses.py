"""``dimefm losses``."""

from __future__ import annotations

import click

from dimefm.cli._options import CONTEXT

NEEDS = {
    "teacher": "a teacher's features",
    "pairs": "images with their own sentences (--text student)",
    "width": "a student of the teacher's dimension",
    "bias": "a student with a logit bias, as SigLIP's",
    "views": "views_per_step of 2 or more",
    "masked": "words that are hidden (mask_words)",
    "neighbours": "a graph of dimefm cache neighbours (neighbours)",
    "tokens": "caches of extract-features --tokens (image_tokens, text_tokens)",
    "hidden, patches": "an image tower",
    "words": "both towers (--text student)",
}


@click.command(
    "losses",
    context_settings=CONTEXT,
    short_help="List the losses of recipes, or describe some in full.",
)
@click.argument("names", nargs=-1)
def command(names):
    """List the losses that a recipe can weigh under [losses]; with NAMES, describe these in full.

    Each line says what a term needs of the data and its options with their defaults; learnt are the
    parts that train with the student and are no part of what comes out.

    \b
    Example:
      dimefm losses clip_kd.fd
    """
    from dimefm.losses import described, terms

    click.echo("\n\n".join(described(name, whole=bool(names)) for name in names or terms()))
    if not names:
        click.echo(
            "\nNeeds; a recipe that lacks one is refused before its first step. An option's first"
            " word is the default."
        )
        click.echo("\n".join(f"  {need:<16} {what}" for need, what in NEEDS.items()))
