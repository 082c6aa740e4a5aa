"""Zero-shot classification token by token: prompts become tokens of classes, images scores, batch
by batch.

Tokens of an image are many times its row, so nothing of them is kept.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from dimefm.data import Rows
from dimefm.errors import DataError
from dimefm.evaluate.benchmark import Benchmark, prompts
from dimefm.evaluate.classifier import softmax
from dimefm.extract.stages.base import Settings
from dimefm.extract.stages.images import Images
from dimefm.extract.stream import ShardTask, encoded
from dimefm.losses import TokenEmbeddings
from dimefm.models.encoder import Encoder
from dimefm.models.filip import TokenMaps, class_tokens, joined
from dimefm.runtime.progress import Progress

PROTOCOL = (
    "FILIP zero-shot, as released with DeCLIP: tokens normalised, averaged over prompts place by"
    " place, those of a class normalised together; mean over patches of the largest product with a"
    " token of the class; softmax at scale 1"
)


class Scored(Images):
    """Images to scores [n, C] in place of rows."""

    def __init__(self, encoder: Encoder, settings: Settings, score: Callable[[Tensor], Tensor]):
        super().__init__(encoder, settings)
        self.score = score

    def encode(self, inputs: Tensor) -> Tensor:
        return self.score(self.decoder.finish(inputs, self.encoder.device))


def probabilities(
    encoder: Encoder, maps: TokenMaps, benchmark: Benchmark, rows: Rows, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """Return (probabilities [n, C], numbers of the rows that could be used [n]) of a benchmark's
    images, prepared as ``encoder`` says.

    Raises DataError when not one of them can be used.
    """
    classes = of_classes(encoder, maps, benchmark, settings.batch_size)
    stage = Scored(encoder, settings, lambda pixels: maps.scores(encoder, pixels, classes))
    jobs = {
        ShardTask(stage, shard, range(len(shard))): start
        for shard, start in zip(rows.shards, rows.starts, strict=False)
    }
    scores, numbers, bad = (
        [np.empty((0, len(benchmark.classes)), np.float32)],
        [np.empty(0, np.int64)],
        [],
    )
    with Progress(len(rows), "images", "row", quiet=not settings.progress) as bar:
        for job, batch in encoded([[job] for job in jobs], encoder.device, settings.workers):
            bad += [f"{job.shard.name} row {each.row}: {each.reason}" for each in batch.bad]
            bar.update(len(batch.numbers) + len(batch.bad))
            if batch.pending is not None:
                found, _ = batch.pending.fetch()
                usable = np.isfinite(found).all(axis=1)
                scores.append(found[usable])
                numbers.append(jobs[job] + np.array(batch.numbers)[usable])
                bad += [
                    f"{job.shard.name} row {batch.numbers[i]}: its scores are not finite"
                    for i in np.flatnonzero(~usable)
                ]
    good = np.concatenate(numbers)
    if not len(good):
        first = f"; the first, {bad[0]}" if bad else ""
        raise DataError(f"none of the {len(rows)} rows could be used{first}; mend the source")
    return softmax(np.concatenate(scores).astype(np.float64)), good


def of_classes(
    encoder: Encoder, maps: TokenMaps, benchmark: Benchmark, batch_size: int
) -> TokenEmbeddings:
    """Return the tokens [C, L, E] of a benchmark's classes; at most ``batch_size`` prompts are
    encoded at once.
    """
    filled, count = prompts(benchmark), len(benchmark.templates)
    together = max(1, batch_size // count)
    parts = []
    for start in range(0, len(filled), together):
        tokens, _ = encoder.tokenize(
            [sentence for row in filled[start : start + together] for sentence in row]
        )
        words = joined([maps.words(encoder, part) for part in tokens.split(batch_size)])
        parts.append(class_tokens(words, count))
    return joined(parts)
