"""The text stage of extraction: texts to tokens to embeddings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor

import torch

from dimefm.cache.writer import Bad
from dimefm.data import Row, Shard
from dimefm.data.rows import readable
from dimefm.errors import BadRow, RecipeError
from dimefm.extract.stages.base import Batch, Settings, Stage
from dimefm.extract.stages.sample_index import SampleIndex
from dimefm.models.encoder import Encoder
from dimefm.models.fast_tokenizer import LONG_WORD
from dimefm.models.inference.text_batches import WINDOW, PooledEncode, digests, encode_sentences

CAPTIONS = ("first", "all")
LONG_TEXTS = ("quarantine", "truncate")


class Texts(Stage):
    """Encodes the first caption of each source row, every caption, or K views of its captions.

    With captions "all" every caption is a row of its own. With a policy of K text views, view v of
    source row i of a shard is row i * K + v.
    """

    split_batch_across_threads = True

    def __init__(self, encoder: Encoder, settings: Settings):
        """Raises RecipeError for an unknown or contradictory setting."""
        super().__init__(encoder, settings)
        _check_choice("captions", settings.captions, CAPTIONS)
        _check_choice("long_texts", settings.long_texts, LONG_TEXTS)
        self.all_captions = settings.captions == "all"
        self.policy = settings.text_views
        self.how = {"captions": settings.captions, "long_texts": settings.long_texts}
        if self.policy is not None:
            if self.all_captions:
                raise RecipeError(
                    "captions 'all' makes a row of every sentence, text_views of every row. Fix:"
                    " leave one out"
                )
            self.how["text_views"] = self.policy.how()

    def index(self, shard: Shard) -> SampleIndex:
        if self.all_captions:
            counts = [_caption_count(shard, row) for row in range(len(shard))]
            return SampleIndex.from_counts(shard, counts)
        return SampleIndex.from_equal_rows(shard, 1 if self.policy is None else self.policy.count)

    def chunk_size(self) -> int:
        return self.settings.batch_size * WINDOW

    def prepare(self, index: SampleIndex, numbers: Sequence[int]) -> Batch:
        batch = Batch()
        texts: list[str] = []
        started = time.perf_counter()
        for row, places in index.by_row(numbers):
            self._read(index, row, places, batch, texts)
        read = time.perf_counter()
        batch.read_seconds = read - started
        if texts:
            self._tokenize(index, batch, texts)
        batch.decode_seconds = time.perf_counter() - read
        return batch

    def _read(
        self,
        index: SampleIndex,
        row_number: int,
        places: list[int],
        batch: Batch,
        texts: list[str],
    ) -> None:
        """Add the texts at ``places`` of one source row to ``texts``, and their rows to ``batch``.

        A text that cannot be read is quarantined.
        """
        row = None
        for place in places:
            number = index.number(row_number, place)
            try:
                if row is None:
                    row = index.read(row_number)
                text = self._text(row, place)
            except BadRow as error:
                key = self.key(index.shard, row_number)
                if not self.all_captions:
                    key = self._row_key(key, place)
                batch.bad.append(self._bad(index, number, key, str(error)))
                continue
            texts.append(text)
            batch.unused_captions += self._unused_captions(row, place)
            batch.numbers.append(number)
            batch.keys.append(self._row_key(row.key, place))

    def _text(self, row: Row, place: int) -> str:
        """Return the text at ``place`` of a source row; raise BadRow when it is not usable."""
        if self.policy is None:
            return _usable_text(row.texts, place)
        caption = self.policy.place(place, max(1, len(row.texts)))
        text = _usable_text(row.texts, caption)
        return self.policy.vary(row.key, place, text)

    def _row_key(self, key: str, place: int) -> str:
        one_per_row = self.policy is None and not self.all_captions
        return key if one_per_row else f"{key}#{place}"

    def _bad(self, index: SampleIndex, number: int, key: str, reason: str) -> Bad:
        """Return a quarantine entry; where captions are rows, it also names the source row."""
        if self.all_captions:
            row, place = index.locate(number)
            reason = f"{reason} (source row {row}, sentence {place}, both counted from 0)"
        return Bad(number, key, reason)

    def _unused_captions(self, row: Row, place: int) -> int:
        """Return how many captions of a source row are not encoded.

        They are counted with the first text of the row.
        """
        if self.all_captions or place > 0:
            return 0
        captions = len(row.texts)
        if self.policy is None:
            return captions - 1
        used = {self.policy.place(view, captions) for view in range(self.policy.count)}
        return captions - len(used)

    def _tokenize(self, index: SampleIndex, batch: Batch, texts: list[str]) -> None:
        """Make the inputs of a batch; texts longer than the context are quarantined or cut."""
        tokens, lengths = self.encoder.tokenize(texts)
        limit = tokens.shape[1]
        kept = []
        for place, length in enumerate(lengths):
            if length <= limit or self.settings.long_texts == "truncate":
                kept.append(place)
                continue
            more = " or more" if len(texts[place]) > LONG_WORD else ""
            reason = (
                f"sentence has {length} tokens{more}, the encoder reads {limit} (--long-texts"
                " truncate cuts it)"
            )
            batch.bad.append(self._bad(index, batch.numbers[place], batch.keys[place], reason))
        batch.numbers = [batch.numbers[place] for place in kept]
        batch.keys = [batch.keys[place] for place in kept]
        if kept:
            batch.inputs = tokens[kept]
            batch.input_digests = digests(batch.inputs)

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        return encode_sentences(self.encoder, inputs, self.settings.batch_size)

    def start(self, batch: Batch, encode_threads: Executor | None = None) -> None:
        on_cpu = self.encoder.device.type == "cpu"
        if encode_threads is None or batch.inputs is None or not on_cpu:
            super().start(batch)
            return
        batch.pending = PooledEncode(
            self.encoder, batch.inputs, self.settings.batch_size, encode_threads
        )
        batch.inputs = None


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise RecipeError(f"{name} is '{value}'; expected one of {', '.join(choices)}")


def _usable_text(texts: tuple[str, ...], place: int) -> str:
    """Return one text; raise BadRow when it is empty or not valid Unicode."""
    if not texts or not texts[place].strip():
        raise BadRow("sentence is empty")
    text = texts[place]
    if readable(text) != text:
        raise BadRow("sentence holds a lone surrogate, half of a character")
    return text


def _caption_count(shard: Shard, row: int) -> int:
    """Return how many captions a source row has, at least 1.

    An unreadable row and a row without captions count as one caption, which is quarantined.
    """
    try:
        return max(1, len(shard[row].texts))
    except BadRow:
        return 1
