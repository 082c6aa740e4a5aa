"""``dimefm cache adopt``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dimefm import plugins
from dimefm.cli._options import ManyValues, open_sources
from dimefm.cli._output import result
from dimefm.cli._recipe_options import source_options
from dimefm.cli.cache import lasting
from dimefm.errors import ModelError
from dimefm.models.spec_paths import refuse_unknown_models
from dimefm.storage.small_files import parse_json

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


@click.command("adopt", cls=ManyValues, short_help="Import feature files of other programs.")
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@click.option(
    "--out", required=True, metavar="DIR", callback=lasting, help="Folder or URL of the cache."
)
@click.option(
    "--kind", required=True, type=click.Choice(["image", "text"]), help="Kind of the samples."
)
@click.option(
    "--format",
    "format_",
    default="hdf5",
    show_default=True,
    type=click.Choice(plugins.names("caches")),
    help="Format of the cache.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    help="Number format of the rows.  [default: that of SRC; float64 becomes float32]",
)
@click.option(
    "--array",
    metavar="NAME",
    help="Array of .npz and .h5 files, or column of .parquet files, that holds the vectors.",
)
@click.option(
    "--keys",
    multiple=True,
    metavar="FILE...",
    help="Key file of each SRC: a key a line, or .tsv or .csv.",
)
@click.option(
    "--rows-of",
    multiple=True,
    metavar="RAW...",
    help="Images or texts that were encoded; they give the rows their keys.",
)
@click.option("--normalize", is_flag=True, help="Scale every row to unit length.")
@click.option(
    "--teacher",
    metavar="SPEC",
    help="Encoder that made the vectors; it is loaded, for the manifest to record its identity.",
)
@click.option(
    "--encoder-name",
    metavar="NAME",
    help="Name of the encoder, in place of --teacher; nothing is loaded.",
)
@click.option(
    "--weights-sha256",
    metavar="HEX",
    help="Digest of the encoder's weights, of another manifest.",
)
@click.option(
    "--logit-scale",
    type=click.FloatRange(min=0, min_open=True),
    help=f"Factor on the encoder's cosines, not its logarithm.  [default: {LOGIT_SCALE:g}]",
)
@click.option("--logit-bias", type=float, help="Bias of a SigLIP encoder's logits.")
@click.option("--tokenizer", metavar="NAME", help="Name of the encoder's tokenizer.")
@click.option(
    "--preprocess",
    metavar="JSON|TAG|FILE",
    help=(
        "Preprocessing of the images, as a JSON object. Of a --teacher that is ARCH/FILE: a tag of"
        " ARCH, or an open_clip_config.json."
    ),
)
@source_options
def command(sources, out, kind, format_, dtype, array, keys, rows_of, normalize, teacher, **flags):
    """Import feature files of other programs into a cache.

    SRC are .npy, .npz or .h5 arrays [rows, dimensions], .parquet files with a column of lists,
    DIME-FM's feature TSVs, .list files of these, or output folders of clip-retrieval. Facts about
    the encoder that are not stated are recorded as unknown.

    To train on the cache, pass the images or texts that were encoded with --rows-of: the shards get
    their names and keys. Column options and --input-format describe how to read them. Without
    --rows-of the shards have the names of the feature files. Then --key-column names the column of
    keys in --keys (default: the first), in clip-retrieval's metadata (image_path), or the array in
    the .npz or .h5 (keys), or the column in the .parquet (key).

    \b
    Example:
      dimefm cache adopt clip-retrieval-output/ --kind image --rows-of photos/ \\
        --encoder-name ViT-L-14/openai --out cache/images
      dimefm cache verify cache/images --against-teacher 64 --images photos/
    """
    refuse_unknown_models(teacher)

    from dimefm.cache.importing.adopt import adopt, begun_dtype, header, pieces, pieces_of
    from dimefm.cache.importing.sources import open_vectors
    from dimefm.data.sources import local_root, shard_names

    dataroot = flags["dataroot"]
    scratch = flags["scratch"]
    files = _expand(sources, dataroot, scratch)
    key_files = [Path(key) for key in keys]
    column = None if rows_of else flags["key_column"]
    vectors = open_vectors(files, kind, array=array, keys=key_files, key_column=column)
    card = _card(teacher, flags)(vectors[0].dim)
    head = header(vectors, kind, card, format_, dtype or begun_dtype(out, format_))
    if rows_of:
        raw = open_sources(rows_of, kind, flags)
        shards = pieces_of(vectors, raw.shards)
    else:
        root = local_root(dataroot, scratch)
        paths = [file.path for file in vectors]
        shards = pieces(vectors, shard_names(paths, root, scratch))
    adopted = adopt(shards, head, out, normalize=normalize, quiet=False)
    result(adopted.describe())
    manifest = adopted.manifest
    return {
        "out": adopted.out,
        "already_finished": adopted.already,
        "rows": manifest.rows,
        "quarantined": sum(len(shard.bad) for shard in manifest.shards),
        "format": manifest.format,
        "dtype": manifest.dtype,
        "dim": manifest.dim,
        "fingerprint": manifest.fingerprint,
    }


def _expand(sources: Sequence[str], dataroot: str | None, scratch: str | None) -> list[Path]:
    """Return feature files and folders as absolute paths; patterns and .list files are expanded."""
    from dimefm.data.sources import expand

    files: list[Path] = []
    for source in sources:
        folder = _folder(source, dataroot)
        if folder is not None:
            files.append(folder.absolute())
        else:
            files += expand(source, dataroot, scratch=scratch)
    return files


def _folder(source: str, dataroot: str | None) -> Path | None:
    """Return the folder that a source names, in the data root or the working folder, if any."""
    for path in (Path(dataroot or "", source), Path(source)):
        if path.is_dir():
            return path
    return None


def _card(teacher: str | None, facts: Mapping) -> Callable[[int], EncoderCard]:
    """Return a function from dimension to :class:`EncoderCard`.

    The card is the teacher's, or made from the facts that the flags state.
    """
    given = {name: facts[name] for name in PROVENANCE if facts[name] is not None}
    preprocess = given.pop("preprocess", None)
    if teacher and given:
        flag = "--" + next(iter(given)).replace("_", "-")
        raise click.UsageError(
            f"--teacher states everything about the encoder already. Fix: leave {flag} out"
        )
    if teacher:
        card = _card_of_teacher(teacher, preprocess)
        return lambda dim: card
    if not re.fullmatch(r"[0-9a-f]{64}", given.get("weights_sha256", "0" * 64)):
        raise click.BadParameter("expected 64 hexadecimal digits", param_hint="--weights-sha256")
    given["preprocess"] = _preprocess(preprocess or "{}")

    from dimefm.cache import EncoderCard
    from dimefm.cache.manifest import UNKNOWN

    name = given.pop("encoder_name", UNKNOWN)
    return lambda dim: EncoderCard(
        name=name, dim=dim, **{"weights_sha256": None, "logit_scale": LOGIT_SCALE, **given}
    )


def _card_of_teacher(teacher: str, preprocess: str | None) -> EncoderCard:
    """Return the card of an encoder, which is loaded for it."""
    from dimefm.models.loading import load_encoder

    try:
        return load_encoder(teacher, "cpu", preprocess=preprocess).card
    except ModelError as error:
        raise ModelError(
            f"{error}; or pass --encoder-name '{teacher}' in place of --teacher, which loads"
            " nothing and records the weights as unknown"
        ) from error


def _preprocess(text: str) -> dict:
    try:
        facts = parse_json(text)
    except ValueError as error:
        raise click.BadParameter(f"not JSON ({error})", param_hint="--preprocess") from error
    if not isinstance(facts, dict):
        raise click.BadParameter(
            'expected a JSON object like {"size": 224}', param_hint="--preprocess"
        )
    return facts
