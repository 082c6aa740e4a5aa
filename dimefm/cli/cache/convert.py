"""``dimefm cache convert``."""

from __future__ import annotations

import click

from dimefm import plugins
from dimefm.cli._options import CONTEXT
from dimefm.cli._output import result
from dimefm.cli._recipe_options import scratch_option
from dimefm.cli.cache import lasting


@click.command(
    "convert", context_settings=CONTEXT, short_help="Write a cache in another format or dtype."
)
@click.argument("root")
@click.argument("out", callback=lasting)
@click.option(
    "--format",
    "format_",
    type=click.Choice(plugins.names("caches")),
    help="Format of the new shards.  [default: that of the cache]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32", "int8"]),
    help="Number format of the new rows.  [default: that of the cache; float16 becomes float32 in"
    " parquet]",
)
@click.option(
    "--force",
    is_flag=True,
    help="Also store rows whose cosine with their stored form is below 0.99.",
)
@scratch_option
def command(root, out, format_, dtype, force, scratch):
    """Write the cache at ROOT to OUT in another format or dtype.

    Another format is lossless. The fingerprint stays the same. A conversion in which a row loses
    too much is refused, and the message names the row: a few rows of huge numbers leave int8 no
    steps for the others.

    \b
    Example:
      dimefm cache convert cache/images exchange/images --format parquet
      dimefm cache convert cache/images small/images --dtype int8
    """
    from dimefm.cache import FeatureCache
    from dimefm.cache.convert import convert
    from dimefm.cache.manifest import describe_quantization_error

    cache = FeatureCache(root, scratch)
    made = convert(cache, out, format_, dtype, scratch, force)
    bytes_before = sum(shard.bytes for shard in cache.manifest.shards)
    bytes_after = sum(shard.bytes for shard in made.shards)
    result(
        f"{out}: {made.rows:,} rows of {made.dtype}[{made.dim}] as {made.format}, {bytes_after:,}"
        f" bytes (before: {bytes_before:,}); fingerprint {made.fingerprint[:12]} as before"
    )
    if made.quantization_error and made.dtype == "int8":
        result(f"  {describe_quantization_error(made.quantization_error)}")
    return {
        "out": out,
        "rows": made.rows,
        "format": made.format,
        "dtype": made.dtype,
        "dim": made.dim,
        "bytes": bytes_after,
        "bytes_before": bytes_before,
        "fingerprint": made.fingerprint,
        "quantization_error": made.quantization_error,
    }
