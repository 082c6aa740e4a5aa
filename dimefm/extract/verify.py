"""Verify a cache against its teacher: encode a few random rows again and compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dimefm.cache import FeatureCache, Manifest, ShardInfo
from dimefm.cache.manifest import differences
from dimefm.cache.skip_index import SkipIndex
from dimefm.data import Rows
from dimefm.data.grown_folders import as_cached
from dimefm.data.matching import same_name
from dimefm.data.views.image_views import ViewPolicy
from dimefm.data.views.patch_tokens import TokenPolicy
from dimefm.data.views.text_views import TextPolicy
from dimefm.errors import CacheError
from dimefm.extract.extract import stage_of
from dimefm.extract.stages.base import Settings, Stage
from dimefm.extract.stages.sample_index import SampleIndex
from dimefm.models.encoder import Encoder
from dimefm.runtime.text import first_few
from dimefm.storage.stores import Store

COSINE_DECIMALS = 6  # cosines that are equal to so many decimals count as equal


@dataclass(frozen=True)
class Agreement:
    """Cosines of cached rows with the same rows encoded now.

    ``worst`` names the row with the lowest cosine, the first one of several.
    """

    rows: int
    min_cosine: float
    mean_cosine: float
    worst: str

    def describe(self) -> str:
        """Return a human-readable summary of one line."""
        return (
            f"{self.rows} rows encoded again: cosine at least {self.min_cosine:.6f}, mean"
            f" {self.mean_cosine:.6f} (lowest: {self.worst})"
        )


@dataclass(frozen=True)
class Selection:
    """Rows of one cached shard that are compared.

    ``cache_rows`` int64 [n] are their numbers in the whole cache, ascending, and ``shard_rows``
    their numbers in the shard before quarantined rows were removed.
    """

    info: ShardInfo
    index: SampleIndex
    cache_rows: np.ndarray
    shard_rows: list[int]


def against_teacher(
    cache: FeatureCache,
    encoder: Encoder,
    rows: Rows,
    number: int,
    *,
    seed: int = 0,
    batch_size: int = 64,
) -> Agreement:
    """Encode ``number`` random rows of ``cache`` again and compare them with the stored ones.

    ``rows`` are the raw rows that the cache was made from; the manifest says how they are encoded.
    Raises CacheError when the encoder or the sources are not those of the manifest, naming what
    differs, or when a row of the cache cannot be encoded now.
    """
    _refuse_other_encoder(cache, encoder)
    rows = as_cached(rows, cache)
    settings = _settings_of(cache.manifest, cache.store, batch_size)
    stage = stage_of(cache.manifest.kind, encoder, settings)
    cosines: list[float] = []
    names: list[str] = []
    for selection in _locate(cache, rows, stage, number, seed):
        vectors = _encode(cache, stage, selection)
        stored = cache[selection.cache_rows].astype(np.float32)
        for row, stored_vector, vector in zip(selection.shard_rows, stored, vectors, strict=True):
            cosines.append(_cosine(stored_vector, vector))
            names.append(f"{selection.info.source} row {row}")
    if not cosines:
        raise CacheError(
            f"{cache.store}: holds no rows to compare. Fix: extract samples that can be read"
        )
    worst = names[_first_lowest(cosines)]
    return Agreement(len(cosines), min(cosines), sum(cosines) / len(cosines), worst)


def _settings_of(manifest: Manifest, store: Store, batch_size: int) -> Settings:
    """Return the settings that a cache was extracted with."""
    how = manifest.how
    return Settings(
        batch_size=batch_size,
        decoder=how.get("decoder", Settings.decoder),
        captions=how.get("captions", Settings.captions),
        long_texts=how.get("long_texts", Settings.long_texts),
        views=ViewPolicy.from_manifest(how) if how.get("views") else None,
        tokens=TokenPolicy.from_manifest(how),
        text_views=TextPolicy.from_manifest(how, store),
    )


def _refuse_other_encoder(cache: FeatureCache, encoder: Encoder) -> None:
    """Raise CacheError when the encoder is not the manifest's, naming the fields that differ.

    Fields that the manifest does not know may be anything.
    """
    recorded = cache.manifest.encoder.identity()
    given = encoder.card.identity()
    if recorded["weights_sha256"] is None:
        compared = ["dim"]
    else:
        compared = [name for name, value in recorded.items() if value not in (None, {})]
    different = differences(
        {name: recorded[name] for name in compared}, {name: given[name] for name in compared}
    )
    if different:
        raise CacheError(
            f"{cache.store}: was not made by {encoder.card.name} ({'; '.join(different)}: the"
            " manifest against the encoder). Fix: name the teacher that made it with --teacher"
        )


def _locate(
    cache: FeatureCache, rows: Rows, stage: Stage, number: int, seed: int
) -> Iterator[Selection]:
    """Draw ``number`` rows of the cache; yield those of each shard with their source."""
    draw = np.random.default_rng(seed)
    drawn = np.sort(draw.choice(len(cache), min(number, len(cache)), replace=False))
    shard_of_row = np.searchsorted(cache.starts, drawn, side="right") - 1
    for shard_number in np.unique(shard_of_row):
        info = cache.manifest.shards[shard_number]
        cache_rows = drawn[shard_of_row == shard_number]
        stored_rows = cache_rows - cache.starts[shard_number]
        index = _source_of(cache, info, rows, stage)
        shard_rows = SkipIndex.from_rows(info.bad).to_source(stored_rows)
        yield Selection(info, index, cache_rows, shard_rows.tolist())


def _source_of(cache: FeatureCache, info: ShardInfo, rows: Rows, stage: Stage) -> SampleIndex:
    """Return the samples of the source shard that a cached shard was made from."""
    for shard in rows.shards:
        if not same_name(shard.name, info.source):
            continue
        index = stage.index(shard)
        if stage.row_count(index) != info.source_rows:
            continue
        if info.source_digest not in ("", shard.digest()):
            raise CacheError(
                f"{shard.path}: has changed since {cache.store} was made. Fix: extract it again"
            )
        return index
    names = first_few([shard.name for shard in rows.shards], 4)
    raise CacheError(
        f"{cache.store}: no source called {info.source} with {info.source_rows} rows among those"
        f" given ({names}). Fix: pass the sources of the extraction as --images or --texts, with"
        " its --dataroot, --rows, --split and --limit"
    )


def _encode(cache: FeatureCache, stage: Stage, selection: Selection) -> Sequence[np.ndarray]:
    """Return the vector [dim] of each selected row, encoded now."""
    vectors: dict[int, np.ndarray] = {}
    for batch in stage.batches(selection.index, selection.shard_rows):
        if batch.bad:
            bad = batch.bad[0]
            raise CacheError(
                f"{selection.index.shard.path}, row {bad.row}: is in {cache.store}, but now"
                f" {bad.reason}. Fix: restore the source, or extract it again"
            )
        encoded = stage.encode(batch.inputs).cpu().numpy()
        vectors.update(zip(batch.numbers, encoded, strict=True))
    return [vectors[row] for row in selection.shard_rows]


def _cosine(stored: np.ndarray, vector: np.ndarray) -> float:
    return float(stored @ vector / np.linalg.norm(stored) / np.linalg.norm(vector))


def _first_lowest(cosines: Sequence[float]) -> int:
    """Return the place of the first cosine that is the lowest, to a few decimals."""
    lowest = round(min(cosines), COSINE_DECIMALS)
    return [round(cosine, COSINE_DECIMALS) for cosine in cosines].index(lowest)
