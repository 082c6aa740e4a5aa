"""Which rows a run uses when: the orders that a recipe and its lists of shards ask for.

A recipe has ``source_weights`` and ``shuffle``; lists may have a weight for each shard. Orders deal
usable row numbers, those that :class:`~dimefm.data.alignment.Aligned` locates. Caches are fast at
random rows (HDF5 and flat copies are mapped or read row by row), so only raw sources decide whether
rows are dealt in blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dimefm.data.alignment import Aligned
from dimefm.data.rows import BYTES_KEPT, Rows, Shard
from dimefm.errors import DataError, RecipeError
from dimefm.recipe import Recipe
from dimefm.runtime.text import first_few
from dimefm.train.inputs.sampler import (
    Order,
    Shuffled,
    ShuffledBlocks,
    Spans,
    WeightedOrder,
    quotas_of,
)
from dimefm.train.inputs.sources import Sources, TextSources

# Blocks of shards that have none of their own.
ROWS_PER_BLOCK = 1000
BLOCKS_PER_WINDOW = 64

# How many windows of blocks fit into the memory for blocks: those of one window and of the next are
# in use, and sizes differ.
WINDOWS_IN_MEMORY = 4

# Blocks of a window, however large they are.
MIN_BLOCKS = 2


def student_order(sources: Sources, recipe: Recipe) -> Order:
    """Return the order of the usable rows that the student encodes.

    These are images, or the texts of a text tower (paired by key: images, numbered as in
    ``sources.pairs``).

    Without weights every row comes once an epoch. A row of a shard with a weight in its list comes
    as many times as often as one of weight 1. With ``source_weights`` source i has the share
    ``source_weights[i] / sum(source_weights)`` of the positions, within which the weights of its
    shards count. Rows of one source and one weight are dealt without replacement; an epoch is as
    many rows as there are.

    Raises RecipeError when the source weights do not fit the sources, DataError when a source has
    no usable rows or too small a share.
    """
    if isinstance(sources, TextSources) and sources.pairs is not None:
        _refuse_weights_of_pairs(sources, recipe)
        return Shuffled(len(sources), recipe.seed, "images")
    stream = "texts" if recipe.text_student else "images"
    shards = _Shards.from_sources(sources, recipe)
    groups = _groups(shards, recipe)
    in_blocks = _deals_blocks(sources.raw, recipe)
    if len(groups) == 1:
        if not in_blocks:
            return Shuffled(len(sources), recipe.seed, stream)
        return _block_order(shards, groups[0], len(groups), recipe.seed, stream)

    orders: list[Order] = []
    for number, group in enumerate(groups):
        group_stream = f"{stream}/{number}/"
        if in_blocks:
            order = _block_order(shards, group, len(groups), recipe.seed, group_stream)
        else:
            order = _row_order(shards, group, recipe.seed, group_stream)
        orders.append(order)
    shares = [group.share for group in groups]
    return WeightedOrder(orders, shares, recipe.seed, stream)


def unpaired_order(sources: Sources, recipe: Recipe) -> Order | None:
    """Return the order of the cached rows of the other modality, dealt by themselves; None if none.

    These are texts (for a text tower, images) and come from caches alone: each once an epoch.
    """
    if recipe.text_student:
        rows = sources.image_rows
        stream = "images"
    else:
        rows = sources.text_rows
        stream = "texts"
    if rows is None:
        return None
    return Shuffled(len(rows), recipe.seed, stream)


@dataclass(frozen=True)
class _Shards:
    """A table of the raw shards with what an order has to know of each."""

    raw: Rows
    aligned: Aligned | None  # None: all rows are usable
    starts: np.ndarray  # [shards + 1] first usable row
    usable: np.ndarray  # [shards] number of usable rows
    source: np.ndarray  # [shards] number of the source in the recipe, 0 without source weights
    weight: np.ndarray  # [shards] weight in its list

    @staticmethod
    def from_sources(sources: Sources, recipe: Recipe) -> _Shards:
        """Return the table of the shards that the student encodes."""
        raw = sources.raw
        aligned = sources.text_rows if recipe.text_student else sources.image_rows
        starts = np.array(raw.starts) if aligned is None else aligned.starts
        source = np.zeros(len(raw.shards), dtype=np.int64)
        if recipe.source_weights:
            source[:] = [shard.entry for shard in raw.shards]
        weight = np.array([shard.weight for shard in raw.shards])
        return _Shards(raw, aligned, starts, np.diff(starts), source, weight)


@dataclass(frozen=True)
class _Group:
    """The shards of one source and one weight, which are dealt as one."""

    shards: np.ndarray  # their numbers
    share: float  # of the positions, in any unit
    name: str  # of the first shard


def _groups(shards: _Shards, recipe: Recipe) -> list[_Group]:
    """Return the groups with usable rows, in the order of the sources and then of the weights."""
    _refuse_wrong_source_weights(shards, recipe)
    weighted_rows = shards.usable * shards.weight
    groups = []
    for source in np.unique(shards.source).tolist():
        in_source = shards.source == source
        share = 1.0
        if recipe.source_weights:
            share = recipe.source_weights[source] / weighted_rows[in_source].sum()
        weights = shards.weight[in_source & (shards.usable > 0)]
        for weight in np.unique(weights).tolist():
            in_group = in_source & (shards.weight == weight)
            numbers = np.flatnonzero(in_group)
            rows = float(shards.usable[numbers].sum())
            name = shards.raw.shards[numbers[0]].name
            groups.append(_Group(numbers, share * weight * rows, name))
    if len(groups) > 1:
        _refuse_small_share(groups)
    return groups


def _row_order(shards: _Shards, group: _Group, seed: int, stream: str) -> Order:
    """Return the order of a group whose rows are dealt one by one."""
    firsts = shards.starts[group.shards]
    sizes = shards.usable[group.shards]
    return Shuffled(Spans.from_sizes(firsts, sizes), seed, stream)


def _block_order(shards: _Shards, group: _Group, groups: int, seed: int, stream: str) -> Order:
    """Return the order of a group whose rows are dealt in blocks; ``groups`` share the memory."""
    blocks = _blocks(shards, group)
    in_group = [shards.raw.shards[number] for number in group.shards]
    window = _window(_bytes(in_group), len(blocks.firsts), groups)
    return ShuffledBlocks(blocks, window, seed, stream)


def _deals_blocks(raw: Rows, recipe: Recipe) -> bool:
    """Return whether rows are dealt in blocks.

    "auto": when the shards' own blocks do not all stay in memory.
    """
    if recipe.shuffle == "auto":
        return _bytes(raw.shards) > BYTES_KEPT
    return recipe.shuffle == "blocks"


def _bytes(shards: Sequence[Shard]) -> int:
    """Return the bytes in memory of all blocks of shards."""
    total = 0
    for shard in shards:
        _, sizes = shard.blocks()
        total += int(sizes.sum())
    return total


def _window(size: int, blocks: int, groups: int) -> int:
    """Return how many of a group's ``blocks`` of ``size`` bytes together are dealt at a time."""
    if not size:
        return BLOCKS_PER_WINDOW
    fitting = BYTES_KEPT * blocks // (WINDOWS_IN_MEMORY * groups * size)
    return max(MIN_BLOCKS, fitting)


def _blocks(shards: _Shards, group: _Group) -> Spans:
    """Return the blocks of a group's shards as runs of usable rows."""
    firsts = []
    sizes = []
    for number in group.shards.tolist():
        edges = _block_edges(shards.raw.shards[number])
        if shards.aligned is not None:
            skipped = shards.aligned.unusable[number].skipped
            edges = edges - np.searchsorted(skipped, edges)
        usable_edges = shards.starts[number] + edges
        firsts.append(usable_edges[:-1])
        sizes.append(np.diff(usable_edges))
    return Spans.from_sizes(np.concatenate(firsts), np.concatenate(sizes))


def _block_edges(shard: Shard) -> np.ndarray:
    """Return where the blocks of a shard begin, and its end.

    The blocks are its own, else runs of ROWS_PER_BLOCK rows.
    """
    starts, _ = shard.blocks()
    if not len(starts):
        starts = np.arange(0, len(shard), ROWS_PER_BLOCK)
    return np.append(starts, len(shard))


def _refuse_wrong_source_weights(shards: _Shards, recipe: Recipe) -> None:
    """Raise unless there is one weight for each source, and each source has usable rows."""
    if not recipe.source_weights:
        return
    field = "texts" if recipe.text_student else "images"
    sources = getattr(recipe, field)
    count = len(recipe.source_weights)
    if not sources:
        raise RecipeError(
            f"source_weights gives shares to the sources of --{field}, and none is named. Fix:"
            " remove it"
        )
    if len(sources) != count:
        raise RecipeError(
            f"source_weights has {count} shares, --{field} names {len(sources)} sources"
            f" ({first_few(sources, 3)}). Fix: give one share for each, and name files that belong"
            " together in a .list or as a 'pattern' in quotes"
        )
    usable = np.bincount(shards.source, weights=shards.usable, minlength=count)
    for name, rows in zip(sources, usable, strict=True):
        if not rows:
            raise DataError(
                f"--{field} {name}: holds no usable rows to mix. Fix: remove it and its share, or"
                " select more rows"
            )


def _refuse_small_share(groups: list[_Group]) -> None:
    """Raise DataError when a share is too small."""
    shares = [group.share for group in groups]
    quotas = quotas_of(shares)
    if quotas.all():
        return
    smallest = groups[int(quotas.argmin())]
    share = smallest.share / sum(shares)
    raise DataError(
        f"{smallest.name}: its share of the mix is {share:.1e}, less than a row of"
        f" {quotas.sum():,}. Fix: raise its weight, or remove it"
    )


def _refuse_weights_of_pairs(sources: Sources, recipe: Recipe) -> None:
    """Raise RecipeError for what cannot order texts that are paired with images by key.

    Their order is that of the images in the cache, not that of the texts.
    """
    weights = {shard.weight for shard in sources.raw.shards}
    refused = None
    if recipe.source_weights:
        refused = "source_weights"
    elif recipe.shuffle == "blocks":
        refused = "shuffle = 'blocks'"
    elif len(weights) > 1:
        refused = "weights in lists"
    if refused is not None:
        raise RecipeError(
            f"{refused}: sentences without --text-cache are dealt by the images of their keys."
            f" Fix: remove {refused}"
        )
