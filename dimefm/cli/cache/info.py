"""``dimefm cache info``."""

from __future__ import annotations

import textwrap

import click

from dimefm.cli._options import CONTEXT
from dimefm.cli._output import result
from dimefm.cli.cache import caches


@click.command(
    "info", context_settings=CONTEXT, short_help="Print the content and the encoder of a cache."
)
@click.argument("root")
def command(root):
    """Print the content of the cache at ROOT, a folder or URL, and the encoder that made it.

    Example: dimefm cache info cache/images
    """
    from dimefm.cache import Manifest

    described = {}
    for folder in caches(root):
        manifest = Manifest.read(folder)
        result(str(folder))
        result(textwrap.indent(manifest.describe(), "  "))
        described[str(folder)] = {
            **manifest.header(),
            "rows": manifest.rows,
            "quarantined": sum(len(shard.bad) for shard in manifest.shards),
            "bytes": sum(shard.bytes for shard in manifest.shards),
            "shards": len(manifest.shards),
            "fingerprint": manifest.fingerprint,
        }
    return described
