"""Which rows a run uses when: the orders that a recipe's ``mix``, ``shuffle`` and lists with
weights ask for.

What is dealt are usable row numbers, those that :class:`~dimefm.data.alignment.Aligned` locates.
Caches are quick at random rows (HDF5 and flat copies are mapped or read row by row), so only raw
sources decide whether rows are dealt in blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dimefm.data.alignment import Aligned
from dimefm.data.rows import BYTES_KEPT, Rows, Shard
from dimefm.errors import DataError, RecipeError
from dimefm.recipe import Recipe
from dimefm.train.inputs.sampler import (
    Order,
    Shuffled,
    ShuffledBlocks,
    Spans,
    WeightedOrder,
    quotas_of,
)
from dimefm.train.inputs.sources import Sources, TextSources

ROWS_PER_BLOCK, BLOCKS = 1000, 64  # of a window, where shards have no blocks of their own
# that fit into the memory for blocks: those of one window and of the next are in use, and sizes
# differ
WINDOWS = 4
LEAST = 2  # blocks of a window, whatever they weigh


def own_order(sources: Sources, recipe: Recipe) -> Order:
    """Return the order of the usable rows that the student encodes: images, of a text tower
    sentences (paired by key: images, numbered as in ``sources.pairs``).

    Without ``mix`` and weights every row comes once an epoch. With weights a row comes so many
    times as often as one of weight 1. With ``mix`` entry i of the sources has the share ``mix[i] /
    sum(mix)`` of the positions, within which the weights of its shards count. Rows of one entry and
    one weight are dealt without replacement; an epoch is as many rows as there are.

    Raises RecipeError when the mix does not fit the sources, DataError when a source has no usable
    rows or too small a share.
    """
    if isinstance(sources, TextSources) and sources.pairs is not None:
        _refuse_of_pairs(sources, recipe)
        return Shuffled(len(sources), recipe.seed, "images")
    what = "texts" if recipe.text_student else "images"
    aligned = sources.text_rows if recipe.text_student else sources.image_rows
    starts = np.array(sources.raw.starts) if aligned is None else aligned.starts
    lists = _lists(sources.raw, starts, recipe)
    in_blocks = _in_blocks(sources.raw, recipe)
    if len(lists) == 1 and not in_blocks:
        return Shuffled(len(sources), recipe.seed, what)
    orders: list[Order] = []
    for number, found in enumerate(lists):
        name = what if len(lists) == 1 else f"{what}/{number}/"
        if in_blocks:
            shards = [sources.raw.shards[shard] for shard in found.shards]
            blocks = _blocks(sources.raw, aligned, starts, found.shards)
            orders.append(
                ShuffledBlocks(
                    blocks, _window(shards, len(blocks.firsts), len(lists)), recipe.seed, name
                )
            )
        else:
            orders.append(
                Shuffled(
                    Spans.from_sizes(starts[found.shards], np.diff(starts)[found.shards]),
                    recipe.seed,
                    name,
                )
            )
    return (
        orders[0]
        if len(orders) == 1
        else WeightedOrder(orders, [found.share for found in lists], recipe.seed, what)
    )


def other_order(sources: Sources, recipe: Recipe) -> Order | None:
    """Return the order of the cached rows of the other kind, dealt by themselves and so unpaired;
    None where there is none.

    These are sentences (of a text tower, images) and come from caches alone: each once an epoch.
    """
    rows, what = (
        (sources.image_rows, "images") if recipe.text_student else (sources.text_rows, "texts")
    )
    return None if rows is None else Shuffled(len(rows), recipe.seed, what)


@dataclass(frozen=True)
class _List:
    """Shards that are dealt as one, by number, and the share of positions that they have."""

    shards: np.ndarray
    share: float
    name: str


def _lists(raw: Rows, starts: np.ndarray, recipe: Recipe) -> list[_List]:
    """Return the shards of each entry of the mix and each weight that have usable rows, in the
    order of the entries.
    """
    rows = np.diff(starts)
    entries = np.array(
        [shard.entry if recipe.source_weights else 0 for shard in raw.shards], dtype=np.int64
    )
    weights = np.array([shard.weight for shard in raw.shards])
    _refuse_source_weights(
        recipe, np.bincount(entries, weights=rows, minlength=len(recipe.source_weights))
    )
    found = []
    for entry in np.unique(entries).tolist():
        here = entries == entry
        share = (
            recipe.source_weights[entry] / (rows * weights)[here].sum()
            if recipe.source_weights
            else 1.0
        )
        for weight in np.unique(weights[here & (rows > 0)]).tolist():
            shards = np.flatnonzero(here & (weights == weight))
            found.append(
                _List(
                    shards, share * weight * float(rows[shards].sum()), raw.shards[shards[0]].name
                )
            )
    if len(found) > 1:
        _refuse_small(found)
    return found


def _bytes(shards: Sequence[Shard]) -> int:
    """Return the bytes in memory of all blocks of shards."""
    return int(sum(shard.blocks()[1].sum() for shard in shards))


def _window(shards: Sequence[Shard], blocks: int, lists: int) -> int:
    """Return how many of the ``blocks`` of a list are dealt at a time, when as many
    ``gather_objects`` share the memory.
    """
    size = _bytes(shards)
    return max(LEAST, BYTES_KEPT * blocks // (WINDOWS * lists * size)) if size else BLOCKS


def _in_blocks(raw: Rows, recipe: Recipe) -> bool:
    """Say whether rows are dealt in blocks; "auto": when the shards' own blocks do not all stay in
    memory.
    """
    if recipe.shuffle == "auto":
        return _bytes(raw.shards) > BYTES_KEPT
    return recipe.shuffle == "blocks"


def _blocks(
    raw: Rows, aligned: Aligned | None, starts: np.ndarray, shards: Sequence[int] | np.ndarray
) -> Spans:
    """Return the blocks of some shards as runs of usable rows."""
    firsts, sizes = [], []
    for number in map(int, shards):
        edges = np.append(_edges(raw.shards[number]), len(raw.shards[number]))
        found = (
            starts[number] + edges - (0 if aligned is None else _unusable(aligned, number, edges))
        )
        firsts.append(found[:-1])
        sizes.append(np.diff(found))
    return Spans.from_sizes(np.concatenate(firsts), np.concatenate(sizes))


def _edges(shard: Shard) -> np.ndarray:
    """Return where the blocks of a shard begin: its own, else runs of ROWS_PER_BLOCK rows."""
    own, _ = shard.blocks()
    return own if len(own) else np.arange(0, len(shard), ROWS_PER_BLOCK)


def _unusable(aligned: Aligned, shard: int, rows: np.ndarray) -> np.ndarray:
    """Return how many rows of a shard before each of ``rows`` are not usable."""
    return np.searchsorted(aligned.unusable[shard].skipped, rows)


def _refuse_source_weights(recipe: Recipe, rows: np.ndarray) -> None:
    """Raise when there is not one weight for each source, or a source has none of the usable
    ``rows`` [sources].
    """
    if not recipe.source_weights:
        return
    field = "texts" if recipe.text_student else "images"
    named = getattr(recipe, field)
    if not named:
        raise RecipeError(
            f"source_weights gives shares to the sources of --{field}, and none is named. Fix:"
            " remove it"
        )
    if len(named) != len(recipe.source_weights):
        raise RecipeError(
            f"source_weights has {len(recipe.source_weights)} shares, --{field} names"
            f" {len(named)} sources ({_some(named)}); give one share for each, and name files that"
            " belong together in a .list or as a 'pattern' in quotes"
        )
    empty = next((name for name, count in zip(named, rows, strict=True) if not count), None)
    if empty is not None:
        raise DataError(
            f"--{field} {empty}: holds no usable rows to mix; leave it and its share out, or select"
            " more rows"
        )


def _refuse_small(lists: list[_List]) -> None:
    """Raise DataError when a share is too small for a mix."""
    quotas = quotas_of([found.share for found in lists])
    if not quotas.all():
        small, total = lists[int(quotas.argmin())], sum(found.share for found in lists)
        raise DataError(
            f"{small.name}: its share of the mix is {small.share / total:.1e}, less than a row of"
            f" {quotas.sum():,}; raise its weight, or leave it out"
        )


def _refuse_of_pairs(sources: Sources, recipe: Recipe) -> None:
    """Raise RecipeError for what orders of images paired by key cannot do: they follow the cache,
    not the sentences.
    """
    weighed = any(shard.weight != sources.raw.shards[0].weight for shard in sources.raw.shards)
    asked = {
        "source_weights": recipe.source_weights,
        "shuffle = 'blocks'": recipe.shuffle == "blocks",
        "weights in lists": weighed,
    }
    wrong = next(itertools.compress(asked, asked.values()), None)
    if wrong:
        raise RecipeError(
            f"{wrong}: sentences without --text-cache are dealt by the images of their keys; leave"
            " it out"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
