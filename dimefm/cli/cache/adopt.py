"""``dimefm cache adopt``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import click

from dimefm import plugins
from dimefm.cli._options import ManyValues

PROVENANCE = ("encoder_name", "weights_sha256", "logit_scale", "logit_bias", "tokenizer", "preprocess")


@click.command("adopt", cls=ManyValues)
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the cache.")
@click.option("--kind", required=True, type=click.Choice(["image", "text"]), help="What was encoded.")
@click.option(
    "--format", "format_", default="hdf5", show_default=True, type=click.Choice(plugins.names("caches")), help="To write."
)
@click.option("--dtype", type=click.Choice(["float16", "float32"]), help="[as SRC; float64 becomes float32]")
@click.option("--array", metavar="NAME", help="Array of .npz files that holds the vectors.")
@click.option("--keys", multiple=True, metavar="FILE...", help="One per SRC: a key a line, or a .tsv or .csv.")
@click.option("--key-column", metavar="NAME", help="Column (or .npz array) of keys.  [first column; image_path]")
@click.option("--rows-of", multiple=True, metavar="RAW...", help="Images or sentences that the rows belong to.")
@click.option("--dataroot", type=click.Path(file_okay=False), help="Folder that relative sources are looked up in.")
@click.option("--normalize", is_flag=True, help="Make every row unit length.")
@click.option("--teacher", metavar="SPEC", help="Encoder that made the vectors; its identity goes into the manifest.")
@click.option("--encoder-name", metavar="NAME", help="Its name, when the weights are not at hand.")
@click.option("--weights-sha256", metavar="HEX", help="Digest of its weights, as another manifest states it.")
@click.option("--logit-scale", type=click.FloatRange(min=0, min_open=True), help="The factor, not its log.  [100]")
@click.option("--logit-bias", type=float, help="Of a SigLIP.")
@click.option("--tokenizer", metavar="NAME", help="Its tokenizer.")
@click.option("--preprocess", metavar="JSON", help="How images were prepared, like '{\"size\": 224}'.")
def command(sources, out, kind, format_, dtype, array, keys, key_column, rows_of, dataroot, normalize, teacher, **facts):
    """Give feature files that others wrote a manifest, so that they are a cache.

    SRC are .npy or .npz arrays [rows, dimensions], DIME-FM's feature TSVs, .list files of these, or output folders of
    clip-retrieval. To train on them, name what was encoded with --rows-of; without, shards bear the names of the feature
    files. What is not stated about the encoder is recorded as unknown.

    \b
    Example:
      dimefm cache adopt img_emb_*.npy --kind image --rows-of photos/ --encoder-name ViT-L-14/openai --out cache/images
    """
    from dimefm.cache.adopt import adopt, header, pieces, pieces_of
    from dimefm.cache.foreign import open_vectors
    from dimefm.data import open_rows
    from dimefm.data.sources import shard_names

    card = _card(teacher, facts)
    files = _expand(sources, dataroot)
    vectors = open_vectors(files, kind, array=array, keys=[Path(key) for key in keys], key_column=key_column)
    head = header(vectors, kind, card(vectors[0].dim), format_, dtype)
    if rows_of:
        shards = pieces_of(vectors, open_rows(rows_of, kind, dataroot=dataroot).shards)
    else:
        shards = pieces(vectors, shard_names([v.path for v in vectors], Path(dataroot) if dataroot else None))
    result = adopt(shards, head, out, normalize=normalize, quiet=False)
    click.echo(result.describe())


def _expand(sources: Sequence[str], dataroot: str | None) -> list[Path]:
    """Return feature files as absolute paths; a folder stands for itself, a pattern or .list for what it names."""
    from dimefm.data.sources import expand

    found: list[Path] = []
    for source in sources:
        folder = next((path for path in (Path(dataroot or "", source), Path(source)) if path.is_dir()), None)
        found += [folder.absolute()] if folder else expand(source, dataroot)
    return found


def _card(teacher: str | None, facts: dict):
    """Return a function from dimension to :class:`EncoderCard`: the teacher's own, or what the flags state."""
    given = {name: facts[name] for name in PROVENANCE if facts[name] is not None}
    if teacher and given:
        flag = "--" + next(iter(given)).replace("_", "-")
        raise click.UsageError(f"--teacher states everything about the encoder already; leave {flag} out")
    if teacher:
        from dimefm.models.encoder import load_encoder

        card = load_encoder(teacher, "cpu").card
        return lambda dim: card
    if not re.fullmatch(r"[0-9a-f]{64}", given.get("weights_sha256", "0" * 64)):
        raise click.BadParameter("expected 64 hexadecimal digits", param_hint="--weights-sha256")
    given["preprocess"] = _preprocess(given.get("preprocess", "{}"))

    from dimefm.cache import EncoderCard
    from dimefm.cache.adopt import UNKNOWN

    name = given.pop("encoder_name", UNKNOWN)
    return lambda dim: EncoderCard(name=name, dim=dim, **{"weights_sha256": None, "logit_scale": 100.0, **given})


def _preprocess(text: str) -> dict:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"not JSON ({error})", param_hint="--preprocess") from error
    if not isinstance(found, dict):
        raise click.BadParameter('expected a JSON object like {"size": 224}', param_hint="--preprocess")
    return found
