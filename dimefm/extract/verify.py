"""Does the teacher still say what the cache holds? A few random rows are encoded again and
compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dimefm.cache import FeatureCache, ShardInfo
from dimefm.cache.manifest import differences
from dimefm.data import Rows, Shard
from dimefm.data.matching import same_name
from dimefm.data.views.image_views import ViewPolicy
from dimefm.data.views.patch_tokens import TokenPolicy
from dimefm.data.views.text_views import TextPolicy
from dimefm.errors import CacheError
from dimefm.extract.extract import stage_of
from dimefm.extract.stages.base import Settings
from dimefm.models.encoder import Encoder


@dataclass(frozen=True)
class Agreement:
    """Cosines of cached rows with the same rows encoded now; ``worst`` names the row that differs
    most.
    """

    rows: int
    min_cosine: float
    mean_cosine: float
    worst: str

    def describe(self) -> str:
        """Return one line for people."""
        return (
            f"{self.rows} rows encoded again: cosine at least {self.min_cosine:.6f}, mean"
            f" {self.mean_cosine:.6f} (lowest: {self.worst})"
        )


def against_teacher(
    cache: FeatureCache,
    encoder: Encoder,
    rows: Rows,
    number: int,
    *,
    seed: int = 0,
    batch_size: int = 64,
) -> Agreement:
    """Encode ``number`` random rows of ``cache`` again, as its manifest says, from the raw ``rows``
    it was made from.

    Raises CacheError when the encoder or the sources are not those of the manifest, naming what
    differs, or when a row that is in the cache cannot be encoded now.
    """
    manifest = cache.manifest
    _same_encoder(cache, encoder)
    how = manifest.how
    settings = Settings(
        batch_size=batch_size,
        decoder=how.get("decoder", Settings.decoder),
        captions=how.get("captions", "first"),
        long_texts=how.get("long_texts", "quarantine"),
        views=ViewPolicy.from_manifest(how) if how.get("views") else None,
        tokens=TokenPolicy.from_manifest(how),
        text_views=TextPolicy.from_manifest(how, cache.store),
    )
    stage = stage_of(manifest.kind, encoder, settings)
    chosen = np.sort(
        np.random.default_rng(seed).choice(len(cache), min(number, len(cache)), replace=False)
    )
    places = np.searchsorted(cache.starts, chosen, side="right") - 1
    found: list[tuple[float, str]] = []
    for place in np.unique(places):
        info = manifest.shards[place]
        stored = chosen[places == place]
        shard = _shard_of(cache, info, rows, stage.count)
        bad = np.array(info.bad, dtype=np.int64)
        local = stored - cache.starts[place]
        numbers = local + np.searchsorted(bad - np.arange(len(bad)), local, side="right")
        vectors: dict[int, np.ndarray] = {}
        for batch in stage.batches(shard, numbers.tolist()):
            if batch.bad:
                raise CacheError(
                    f"{shard.path}, row {batch.bad[0].row}: is in {cache.store}, but now"
                    f" {batch.bad[0].reason}"
                )
            vectors |= dict(
                zip(batch.numbers, stage.encode(batch.inputs).cpu().numpy(), strict=True)
            )
        for row, kept in zip(numbers.tolist(), cache[stored].astype(np.float32), strict=True):
            cosine = float(
                kept @ vectors[row] / np.linalg.norm(kept) / np.linalg.norm(vectors[row])
            )
            found.append((cosine, f"{info.source} row {row}"))
    if not found:
        raise CacheError(f"{cache.store}: holds no rows to compare")
    cosines = [cosine for cosine, _ in found]
    # of rows that differ in rounding only, which varies with the machine, the first is named
    worst = min(found, key=lambda row: round(row[0], 6))
    return Agreement(len(found), min(cosines), sum(cosines) / len(cosines), worst[1])


def _same_encoder(cache: FeatureCache, encoder: Encoder) -> None:
    """Raise CacheError naming the fields in which the encoder is not the manifest's; what that
    leaves open may be any.
    """
    ours, theirs = cache.manifest.encoder.identity(), encoder.card.identity()
    known = {name for name, value in ours.items() if value not in (None, {})}
    if cache.manifest.encoder.weights_sha256 is None:
        known &= {"dim"}
    different = differences({k: ours[k] for k in known}, {k: theirs[k] for k in known})
    if different:
        raise CacheError(
            f"{cache.store}: was not made by {encoder.card.name} ({'; '.join(different)}: the"
            " manifest against the encoder); name the teacher that made it with --teacher"
        )


def _shard_of(cache: FeatureCache, info: ShardInfo, rows: Rows, count) -> Shard:
    """Return the raw shard that a cached shard was made from."""
    for shard in rows.shards:
        if same_name(shard.name, info.source) and count(shard) == info.source_rows:
            if info.source_digest in ("", shard.digest()):
                return shard
            raise CacheError(
                f"{shard.path}: has changed since {cache.store} was made; extract it again"
            )
    raise CacheError(
        f"{cache.store}: no source called {info.source} with {info.source_rows} rows among those"
        f" given ({', '.join(shard.name for shard in rows.shards[:4])}); name it with --images or"
        " --texts, and --dataroot, --rows, --split and --limit as then"
    )
