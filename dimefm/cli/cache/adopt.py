"""``dimefm cache adopt``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dimefm import plugins
from dimefm.cli._options import ManyValues, open_sources
from dimefm.cli._recipe_options import source_options

if TYPE_CHECKING:
    from dimefm.cache import EncoderCard

LOGIT_SCALE = 100.0
PROVENANCE = (
    "encoder_name",
    "weights_sha256",
    "logit_scale",
    "logit_bias",
    "tokenizer",
    "preprocess",
)


@click.command("adopt", cls=ManyValues, short_help="Make a cache of feature files of others.")
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@click.option("--out", required=True, metavar="DIR", help="Folder or URL of the cache.")
@click.option(
    "--kind", required=True, type=click.Choice(["image", "text"]), help="What was encoded."
)
@click.option(
    "--format",
    "format_",
    default="hdf5",
    show_default=True,
    type=click.Choice(plugins.names("caches")),
    help="To write.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    help="Number format of the rows.  [default: that of SRC; float64 becomes float32]",
)
@click.option("--array", metavar="NAME", help="Array of .npz files that holds the vectors.")
@click.option(
    "--keys", multiple=True, metavar="FILE...", help="One per SRC: a key a line, or a .tsv or .csv."
)
@click.option(
    "--rows-of",
    multiple=True,
    metavar="RAW...",
    help="Images or sentences that the rows belong to.",
)
@click.option("--normalize", is_flag=True, help="Make every row unit length.")
@click.option(
    "--teacher",
    metavar="SPEC",
    help="Encoder that made the vectors; its identity goes into the manifest.",
)
@click.option("--encoder-name", metavar="NAME", help="Its name, when the weights are not at hand.")
@click.option(
    "--weights-sha256", metavar="HEX", help="Digest of its weights, as another manifest states it."
)
@click.option(
    "--logit-scale",
    type=click.FloatRange(min=0, min_open=True),
    help=f"Its factor on cosines, not the logarithm.  [default: {LOGIT_SCALE:g}]",
)
@click.option("--logit-bias", type=float, help="Of a SigLIP.")
@click.option("--tokenizer", metavar="NAME", help="Its tokenizer.")
@click.option(
    "--preprocess", metavar="JSON", help="How images were prepared, as an object of facts."
)
@source_options
def command(sources, out, kind, format_, dtype, array, keys, rows_of, normalize, teacher, **flags):
    """Give feature files that others wrote a manifest, so that they are a cache.

    SRC are .npy or .npz arrays [rows, dimensions], DIME-FM's feature TSVs, .list files of these, or
    output folders of clip-retrieval. What is not stated about the encoder is recorded as unknown.

    To train on them, name with --rows-of the images or sentences that were encoded: shards get
    their names and keys, and column options and --input-format say how they are read. Without it
    shards are called like the feature files, and --key-column names the keys in --keys (default:
    the first column), in clip-retrieval's metadata (image_path) or in the .npz (keys).

    \b
    Example:
      dimefm cache adopt img_emb_*.npy --kind image --rows-of photos/ --teacher ViT-L-14/openai
      --out cache/images dimefm cache verify cache/images --against-teacher 64 --images photos/
    """
    from dimefm.cache.importing.adopt import adopt, header, pieces, pieces_of
    from dimefm.cache.importing.sources import open_vectors
    from dimefm.data.sources import local_root, shard_names

    card = _card(teacher, flags)
    files = _expand(sources, flags["dataroot"], flags["scratch"])
    column = None if rows_of else flags["key_column"]
    vectors = open_vectors(
        files, kind, array=array, keys=[Path(key) for key in keys], key_column=column
    )
    head = header(vectors, kind, card(vectors[0].dim), format_, dtype)
    if rows_of:
        shards = pieces_of(vectors, open_sources(rows_of, kind, flags).shards)
    else:
        root = local_root(flags["dataroot"], flags["scratch"])
        shards = pieces(vectors, shard_names([v.path for v in vectors], root, flags["scratch"]))
    result = adopt(shards, head, out, normalize=normalize, quiet=False)
    click.echo(result.describe())


def _expand(sources: Sequence[str], dataroot: str | None, scratch: str | None) -> list[Path]:
    """Return feature files as absolute paths; a folder stands for itself, a pattern or .list for
    what it names.
    """
    from dimefm.data.sources import expand

    found: list[Path] = []
    for source in sources:
        folder = next(
            (path for path in (Path(dataroot or "", source), Path(source)) if path.is_dir()), None
        )
        found += [folder.absolute()] if folder else expand(source, dataroot, scratch=scratch)
    return found


def _card(teacher: str | None, facts: Mapping) -> Callable[[int], EncoderCard]:
    """Return a function from dimension to :class:`EncoderCard`: the teacher's own, or what the
    flags state.
    """
    given = {name: facts[name] for name in PROVENANCE if facts[name] is not None}
    if teacher and given:
        flag = "--" + next(iter(given)).replace("_", "-")
        raise click.UsageError(
            f"--teacher states everything about the encoder already; leave {flag} out"
        )
    if teacher:
        from dimefm.models.encoder import load_encoder

        card = load_encoder(teacher, "cpu").card
        return lambda dim: card
    if not re.fullmatch(r"[0-9a-f]{64}", given.get("weights_sha256", "0" * 64)):
        raise click.BadParameter("expected 64 hexadecimal digits", param_hint="--weights-sha256")
    given["preprocess"] = _preprocess(given.get("preprocess", "{}"))

    from dimefm.cache import EncoderCard
    from dimefm.cache.importing.adopt import UNKNOWN

    name = given.pop("encoder_name", UNKNOWN)
    return lambda dim: EncoderCard(
        name=name, dim=dim, **{"weights_sha256": None, "logit_scale": LOGIT_SCALE, **given}
    )


def _preprocess(text: str) -> dict:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"not JSON ({error})", param_hint="--preprocess") from error
    if not isinstance(found, dict):
        raise click.BadParameter(
            'expected a JSON object like {"size": 224}', param_hint="--preprocess"
        )
    return found
