"""Zero-shot classification by tokens: prompts become class tokens, and images become scores.

The tokens of an image are many times as large as its embedding, so images are scored batch by batch
and no token is kept.
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


class ImageScores(Images):
    """A stage that turns images into class scores [n, C] instead of embeddings."""

    def __init__(self, encoder: Encoder, settings: Settings, score: Callable[[Tensor], Tensor]):
        super().__init__(encoder, settings)
        self.score = score

    def encode(self, inputs: Tensor) -> Tensor:
        pixels = self.decoder.finish(inputs, self.encoder.device)
        return self.score(pixels)


def probabilities(
    encoder: Encoder, maps: TokenMaps, benchmark: Benchmark, rows: Rows, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """Return the class probabilities [n, C] of a benchmark's readable images.

    The second array, int64 [n], holds the numbers of these images among all rows. Images are
    prepared with the preprocessing of ``encoder``. Raises DataError when no image can be used.
    """
    classes = tokens_of_classes(encoder, maps, benchmark, settings.batch_size)
    stage = ImageScores(encoder, settings, lambda pixels: maps.scores(encoder, pixels, classes))
    first_row: dict[ShardTask, int] = {}
    for shard, start in zip(rows.shards, rows.starts, strict=False):
        task = ShardTask(stage, stage.index(shard), range(len(shard)))
        first_row[task] = start
    groups = [[task] for task in first_row]

    n_classes = len(benchmark.classes)
    scores = [np.empty((0, n_classes), np.float32)]
    numbers = [np.empty(0, np.int64)]
    problems: list[str] = []
    with Progress(len(rows), "images", "row", quiet=not settings.progress) as bar:
        for task, batch in encoded(groups, encoder.device, settings.workers):
            for bad in batch.bad:
                problems.append(f"{task.shard.name} row {bad.row}: {bad.reason}")
            bar.update(len(batch.numbers) + len(batch.bad))
            if batch.pending is None:
                continue
            batch_scores, _ = batch.pending.fetch()
            batch_numbers = np.array(batch.numbers)
            finite = np.isfinite(batch_scores).all(axis=1)
            scores.append(batch_scores[finite])
            numbers.append(first_row[task] + batch_numbers[finite])
            for row in batch_numbers[~finite]:
                problems.append(f"{task.shard.name} row {row}: its scores are not finite")

    readable = np.concatenate(numbers)
    if not len(readable):
        first = f"; the first, {problems[0]}" if problems else ""
        raise DataError(
            f"none of the {len(rows)} rows could be used{first}. Fix: correct the source"
        )
    logits = np.concatenate(scores)
    return softmax(logits.astype(np.float64)), readable


def tokens_of_classes(
    encoder: Encoder, maps: TokenMaps, benchmark: Benchmark, batch_size: int
) -> TokenEmbeddings:
    """Return the tokens [C, L, E] of a benchmark's classes.

    At most ``batch_size`` prompts are encoded at once.
    """
    class_prompts = prompts(benchmark)
    n_templates = len(benchmark.templates)
    classes_at_once = max(1, batch_size // n_templates)
    parts = []
    for start in range(0, len(class_prompts), classes_at_once):
        texts = []
        for prompts_of_class in class_prompts[start : start + classes_at_once]:
            texts += prompts_of_class
        tokens, _ = encoder.tokenize(texts)
        embeddings = [maps.words(encoder, chunk) for chunk in tokens.split(batch_size)]
        parts.append(class_tokens(joined(embeddings), n_templates))
    return joined(parts)
