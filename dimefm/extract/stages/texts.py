"""The text stage of extraction: sentences to tokens to rows."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import Executor

import torch

from dimefm.cache.writer import Bad
from dimefm.data import Row, Shard
from dimefm.data.rows import readable
from dimefm.errors import BadRow, RecipeError
from dimefm.extract.stages.base import Batch, Settings, Stage
from dimefm.models.encoder import Encoder
from dimefm.models.inference.text_batches import WINDOW, PooledEncode, digests, encode_sentences


class Texts(Stage):
    """Sentences to tokens to rows; with ``captions`` "all", every sentence of a source row is a
    row, and with a policy of K text views, view v of source row i of a shard is row i * K + v."""

    split_batch_across_threads = True

    def __init__(self, encoder: Encoder, settings: Settings):
        super().__init__(encoder, settings)
        for name, known in (
            ("captions", ("first", "all")),
            ("long_texts", ("quarantine", "truncate")),
        ):
            if getattr(settings, name) not in known:
                raise RecipeError(
                    f"{name} is '{getattr(settings, name)}'; expected one of {', '.join(known)}"
                )
        self.how = {"captions": settings.captions, "long_texts": settings.long_texts}
        self.every, self.policy = settings.captions == "all", settings.text_views
        if self.policy is not None:
            if self.every:
                raise RecipeError(
                    "captions 'all' makes a row of every sentence, text_views of every row; leave"
                    " one out"
                )
            self.how["text_views"] = self.policy.how()
        self._items: dict[str, list[tuple[int, int]]] = {}

    def count(self, shard: Shard) -> int:
        if not self.every:
            return len(shard) * self.per_row
        self._items[shard.name] = [
            (row, j) for row in range(len(shard)) for j in range(_captions(shard, row))
        ]
        return len(self._items[shard.name])

    def chunk_size(self) -> int:
        return self.settings.batch_size * WINDOW

    @property
    def per_row(self) -> int:
        """Rows of each source row, where that is one number."""
        return 1 if self.policy is None else self.policy.count

    def _place(self, shard: Shard, number: int) -> tuple[int, int]:
        """Return the number of the source row, and that of the caption or view in it, of sentence
        ``number`` of a shard.
        """
        return self._items[shard.name][number] if self.every else divmod(number, self.per_row)

    def _bad(self, shard: Shard, number: int, key: str, reason: str) -> Bad:
        """Quarantine sentence ``number``; where sentences are rows, the reason says which source
        row it stands in.
        """
        if self.every:
            row, place = self._place(shard, number)
            reason = f"{reason} (source row {row}, sentence {place}, both counted from 0)"
        return Bad(number, key, reason)

    def prepare(self, shard: Shard, numbers: Sequence[int]) -> Batch:
        batch, sentences = Batch(), list[str]()
        started = time.perf_counter()
        for row, of_row in itertools.groupby(numbers, lambda number: self._place(shard, number)[0]):
            self._read(shard, row, list(of_row), batch, sentences)
        read = time.perf_counter()
        batch.read = read - started
        if sentences:
            self._tokenize(shard, batch, sentences)
        batch.decode = time.perf_counter() - read
        return batch

    def _read(
        self, shard: Shard, row_number: int, numbers: list[int], batch: Batch, sentences: list[str]
    ) -> None:
        """Put the sentences ``numbers`` of one source row into ``sentences``, and what belongs to
        them into ``batch``.
        """
        row = None
        for number in numbers:
            place = self._place(shard, number)[1]
            try:
                row = row or shard[row_number]
                sentences.append(self._sentence(row, place))
            except BadRow as error:
                key = self.key(shard, row_number)
                batch.bad.append(
                    self._bad(
                        shard, number, key if self.every else self._row_key(key, place), str(error)
                    )
                )
                continue
            batch.unused += self._unused(row, place)
            batch.numbers.append(number)
            batch.keys.append(self._row_key(row.key, place))

    def _row_key(self, key: str, place: int) -> str:
        return key if self.policy is None and not self.every else f"{key}#{place}"

    def _sentence(self, row: Row, place: int) -> str:
        """Return the sentence of a row, or raise BadRow when it is none."""
        if self.policy is None:
            return _sentence(row.texts, place)
        found = _sentence(row.texts, self.policy.place(place, max(1, len(row.texts))))
        return self.policy.vary(row.key, place, found)

    def _unused(self, row: Row, place: int) -> int:
        """Return how many captions of a row are left aside, counted with its first sentence."""
        if self.every or place:
            return 0
        policy = self.policy
        used = (
            1
            if policy is None
            else len({policy.place(view, len(row.texts)) for view in range(policy.count)})
        )
        return len(row.texts) - used

    def _tokenize(self, shard: Shard, batch: Batch, sentences: list[str]) -> None:
        tokens, lengths = self.encoder.tokenize(sentences)
        limit = tokens.shape[1]
        keep = [
            i for i, n in enumerate(lengths) if n <= limit or self.settings.long_texts == "truncate"
        ]
        for i in sorted(set(range(len(lengths))) - set(keep)):
            reason = (
                f"sentence has {lengths[i]} tokens, the encoder reads {limit} (--long-texts"
                " truncate cuts it)"
            )
            batch.bad.append(self._bad(shard, batch.numbers[i], batch.keys[i], reason))
        batch.numbers = [batch.numbers[i] for i in keep]
        batch.keys = [batch.keys[i] for i in keep]
        if keep:
            batch.inputs = tokens[keep]
            batch.digests = digests(batch.inputs)

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        return encode_sentences(self.encoder, inputs, self.settings.batch_size)

    def start(self, batch: Batch, encode_threads: Executor | None = None) -> None:
        if encode_threads is None or batch.inputs is None or self.encoder.device.type != "cpu":
            super().start(batch)
        else:
            batch.pending = PooledEncode(
                self.encoder, batch.inputs, self.settings.batch_size, encode_threads
            )
            batch.inputs = None


def _sentence(texts: tuple[str, ...], place: int) -> str:
    """Return one sentence; raise BadRow when it is empty or holds half a character."""
    if not texts or not texts[place].strip():
        raise BadRow("sentence is empty")
    if readable(texts[place]) != texts[place]:
        raise BadRow("sentence holds a lone surrogate, half of a character")
    return texts[place]


def _captions(shard: Shard, row: int) -> int:
    """Return how many sentences a row has; an unreadable row counts as one, so that it is
    quarantined once.
    """
    try:
        return max(1, len(shard[row].texts))
    except BadRow:
        return 1
