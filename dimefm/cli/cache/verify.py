"""``dimefm cache verify``."""

from __future__ import annotations

import click

from dimefm.cli._options import ManyValues, open_sources, refuse_absent_inputs
from dimefm.cli._output import result
from dimefm.cli._recipe_options import selection_options, source_options
from dimefm.cli.cache import caches
from dimefm.models.spec_paths import refuse_unknown_models


@click.command(
    "verify",
    cls=ManyValues,
    short_help="Check a cache, or compare it with its teacher.",
)
@click.argument("root")
@click.option(
    "--sha256", is_flag=True, help="Hash and read every shard instead of comparing sizes."
)
@click.option(
    "--against-teacher",
    type=click.IntRange(1),
    metavar="N",
    help="Encode N random rows again and compare.",
)
@click.option(
    "--teacher",
    metavar="SPEC",
    help="Teacher that made the cache.  [default: the teacher that the manifest names]",
)
@click.option(
    "--preprocess",
    metavar="TAG|FILE",
    help=(
        "Preprocessing of a teacher that is ARCH/FILE: a tag of ARCH, or an open_clip_config.json."
        "  [default: that of the manifest]"
    ),
)
@click.option(
    "--images", multiple=True, metavar="SRC...", help="Images that the cache was made from."
)
@click.option(
    "--texts", multiple=True, metavar="SRC...", help="Texts that the cache was made from."
)
@click.option(
    "--min-cosine",
    default=0.999,
    show_default=True,
    type=click.FloatRange(-1, 1),
    help="Lowest cosine that passes.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Device: auto, cpu, cuda or cuda:N.",
)
@source_options
@selection_options
def command(root, sha256, against_teacher, teacher, preprocess, min_cosine, device, **flags):
    """Check that the cache at ROOT, a folder or URL, is whole.

    With --against-teacher, also encode random rows again and compare them with the cache.

    \b
    Example:
      dimefm cache verify cache/images --sha256
      dimefm cache verify cache/images --against-teacher 64 --images photos/
    """
    refuse_absent_inputs((*flags["images"], *flags["texts"]), flags["dataroot"])
    refuse_unknown_models(teacher)

    from dimefm.cache import FeatureCache
    from dimefm.errors import CacheError

    verified = {}
    for folder in caches(root):
        cache = FeatureCache(folder, flags["scratch"])
        shards = cache.verify(sha256)
        plural = "s" if shards != 1 else ""
        checked = "SHA-256 and rows" if sha256 else "sizes"
        result(f"{folder}: {shards} shard{plural}, {len(cache):,} rows, {checked} as recorded")
        verified[str(folder)] = {"shards": shards, "rows": len(cache), "sha256": sha256}
        if against_teacher:
            agreement = _agreement(cache, against_teacher, teacher, preprocess, device, flags)
            result(f"  {agreement.describe()}")
            verified[str(folder)]["agreement"] = agreement
            if agreement.min_cosine < min_cosine:
                raise CacheError(
                    f"{folder}: cosine {agreement.min_cosine:.6f} at {agreement.worst}, expected at"
                    f" least {min_cosine}; this teacher makes other features than the cache holds."
                    " Fix: extract it again, or set --min-cosine"
                )
    return verified


def _agreement(cache, number, teacher, preprocess, device, flags):
    from dimefm.extract.verify import against_teacher
    from dimefm.models.loading import load_encoder, name_of

    kind = cache.manifest.kind
    sources = flags[f"{kind}s"]
    if not sources:
        raise click.UsageError(
            f"--against-teacher needs the raw {kind}s of {cache.store}: name them with --{kind}s"
        )
    precision = cache.manifest.how.get("precision", "fp32")
    card = cache.manifest.encoder
    encoder = load_encoder(
        teacher or name_of(card, str(cache.store), "--teacher"),
        device,
        precision,
        preprocess=preprocess,
        recorded=card,
        may_download=teacher is not None,
    )
    return against_teacher(cache, encoder, open_sources(sources, kind, flags), number)
