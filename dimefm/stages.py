"""The two stages of extraction, images and sentences: how a shard is counted, made ready in batches, and encoded.

Beside a GPU threads read and decode the next batches, of this shard and the next; on a CPU each of a few threads does the
whole of a batch. They write to nothing that they share: a batch carries its own seconds and counts, and whoever consumes it
adds them up.
"""

from __future__ import annotations

import functools
import itertools
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from dimefm.cache.writer import Bad
from dimefm.data import Shard
from dimefm.data.decoders import decoder
from dimefm.data.rows import Row, readable
from dimefm.data.views import ViewPolicy, row_keys
from dimefm.errors import BadRow, RecipeError
from dimefm.models import compiler
from dimefm.models.encoder import Encoder
from dimefm.models.lanes import lanes, lanes_of
from dimefm.models.pending import Pending
from dimefm.models.sentences import WINDOW, encode_sentences

SHARES = 8
"""In how many portions at least a shard of sentences is cut, so that the lanes of a CPU all have work."""


@dataclass(frozen=True)
class Settings:
    """How to extract.

    ``dtype`` None is the format's own. Images: ``decoder`` is one of data/decoders.py; ``views`` None encodes them through
    the encoder's own preprocessing, else each gives that many rows, one for each view; ``auto_batch`` measures how many to
    encode at once, in place of ``batch_size``; ``compile`` runs their tower compiled. Sentences: ``captions`` "first" keeps
    one a source row, "all" makes a row of each; ``long_texts`` says what happens to those past the encoder's context.
    """

    format: str = "hdf5"
    dtype: str | None = None
    batch_size: int = 256
    workers: int = 2
    decoder: str = "turbo"
    captions: str = "first"
    long_texts: str = "quarantine"
    progress: bool = True
    views: ViewPolicy | None = None
    auto_batch: bool = False
    compile: bool = False


@dataclass
class Batch:
    """Rows ready to encode: their numbers and keys, the stacked inputs, and the rows that could not be made ready.

    ``read`` and ``decode`` are the seconds that this took; ``unused`` counts captions that were left aside; ``last`` marks
    the end of a job.
    """

    numbers: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    inputs: torch.Tensor | None = None
    bad: list[Bad] = field(default_factory=list)
    read: float = 0.0
    decode: float = 0.0
    unused: int = 0
    last: bool = False
    pending: Pending | None = None

    def start(self, encode: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> None:
        """Send the inputs, if there are any, through ``encode``; ``pending`` has them from now on."""
        if self.inputs is not None:
            self.pending, self.inputs = Pending(encode, self.inputs, device), None


@dataclass(eq=False)
class Job:
    """Rows of one shard that are to be encoded, ascending."""

    shard: Shard
    numbers: Sequence[int]


J = TypeVar("J", bound=Job)


class Stage(ABC):
    """What differs between images and sentences: how many rows a shard has, and how a batch is made and encoded."""

    how: dict

    def __init__(self, encoder: Encoder, settings: Settings):
        self.encoder, self.settings = encoder, settings
        self._keys: tuple[str, list[str]] | None = None

    def count(self, shard: Shard) -> int:
        """Return how many rows the shard gives."""
        return len(shard)

    def key(self, shard: Shard, number: int) -> str:
        """Return the key of a row that cannot be read; the keys of the present shard stay in memory."""
        kept = self._keys
        if kept is None or kept[0] != shard.name:
            kept = self._keys = (shard.name, shard.keys())
        return kept[1][number]

    def portion(self, rows: int) -> int:
        """Return how many of a job's ``rows`` are made ready together; it depends on nothing else, as the last bits of a
        feature may depend on what it is encoded with."""
        return self.settings.batch_size

    @abstractmethod
    def prepare(self, shard: Shard, numbers: Sequence[int]) -> Batch:
        """Read and decode the rows of ``numbers``, ascending; those that cannot be are in ``bad``."""

    @abstractmethod
    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return unit rows of the inputs of a batch."""

    def batches(self, shard: Shard, numbers: Sequence[int]) -> Iterator[Batch]:
        """Yield the rows of ``numbers``, ascending, in batches that threads prepare ahead; ``count`` the shard first."""
        with ThreadPoolExecutor(self.settings.workers, "reader") as pool:
            yield from (
                batch for _, batch in self._stream(pool, self.settings.workers + 1, [Job(shard, numbers)], self._ready)
            )

    def encoded(self, jobs: Iterable[J]) -> Generator[tuple[J, Batch]]:
        """Yield the batches of one job after another, in flight through the encoder, each job's last one marked.

        A batch never holds rows of two jobs, so what is computed of a shard does not depend on its neighbours. The next job
        is asked for when a thread has nothing else to do.
        """
        device = self.encoder.device
        if device.type == "cpu":
            with lanes(device) as pool:
                yield from self._stream(pool, 2 * lanes_of(device) + 1, jobs, self._done)
            return
        behind: deque[tuple[J, Batch]] = deque()
        with ThreadPoolExecutor(self.settings.workers, "reader") as pool:
            for job, batch in self._stream(pool, self.settings.workers + 1, jobs, self._ready):
                batch.start(self.encode, device)
                behind.append((job, batch))
                if len(behind) > 1:  # the encoder has the next one already when this one is fetched
                    yield behind.popleft()
            yield from behind

    def _stream(
        self, pool: ThreadPoolExecutor, most: int, jobs: Iterable[J], make: Callable[[Shard, Sequence[int]], Batch]
    ) -> Iterator[tuple[J, Batch]]:
        """Yield what ``make`` gives for each portion of each job, in order; ``most`` portions are in the pool at a time."""
        tasks = ((job, part, last) for job in jobs for part, last in self._parts(job.numbers))
        ahead: deque[tuple[J, bool, Future[Batch]]] = deque()
        try:
            while True:
                for job, part, last in itertools.islice(tasks, most - len(ahead)):
                    ahead.append((job, last, pool.submit(make, job.shard, part)))
                if not ahead:
                    return
                job, last, made = ahead.popleft()
                batch = made.result()
                batch.last = last
                yield job, batch
        finally:
            for _, _, made in ahead:
                made.cancel()

    def _parts(self, numbers: Sequence[int]) -> Iterator[tuple[Sequence[int], bool]]:
        """Yield the portions of a job's rows, and whether each is the last; no rows make one portion, empty."""
        size = self.portion(len(numbers))
        for start in range(0, max(len(numbers), 1), size):
            yield numbers[start : start + size], start + size >= len(numbers)

    def _ready(self, shard: Shard, numbers: Sequence[int]) -> Batch:
        batch = self.prepare(shard, numbers)
        if batch.inputs is not None and self.encoder.device.type == "cuda":
            batch.inputs = batch.inputs.pin_memory()
        return batch

    def _done(self, shard: Shard, numbers: Sequence[int]) -> Batch:
        batch = self.prepare(shard, numbers)
        batch.start(self.encode, self.encoder.device)
        return batch


class Images(Stage):
    """Image files to pixels to rows; with a view policy of K views, view v of image i of a shard is row i * K + v."""

    def __init__(self, encoder: Encoder, settings: Settings):
        super().__init__(encoder, settings)
        self.views, self.decoder = settings.views, decoder(settings.decoder, encoder.card.preprocess)
        self.how = {"decoder": self.decoder.name, "views": None if self.views is None else self.views.how()}
        if settings.compile:
            compiler.check(encoder.device)
            self.how["compiled"] = True
        self.per_image = 1 if self.views is None else self.views.count

    def portion(self, rows: int) -> int:
        return self.encoder.fitting_batch_size if self.settings.auto_batch else self.settings.batch_size

    def count(self, shard: Shard) -> int:
        return len(shard) * self.per_image

    def prepare(self, shard: Shard, numbers: Sequence[int]) -> Batch:
        batch, pixels = Batch(), []
        for image, of_image in itertools.groupby(numbers, lambda number: number // self.per_image):
            rows = list(of_image)
            started = time.perf_counter()
            try:
                row = shard[image]
                read = time.perf_counter()
                pixels += self._pixels(row, [number % self.per_image for number in rows])
            except BadRow as error:
                key = self.key(shard, image)
                batch.bad += [Bad(number, self._row_key(key, number), str(error)) for number in rows]
                continue
            batch.read += read - started
            batch.decode += time.perf_counter() - read
            batch.numbers += rows
            batch.keys += [self._row_key(row.key, number) for number in rows]
        batch.inputs = torch.stack(pixels) if pixels else None
        return batch

    def _pixels(self, row: Row, views: list[int]) -> list[torch.Tensor]:
        """Return the encoder's input of each of these views of one image, which is decoded once."""
        policy = self.views
        if policy is None:
            return [self.decoder(row.image)]
        return self.decoder.views(row.image, lambda w, h: [policy.draw(row.key, view, w, h) for view in views])

    def _row_key(self, key: str, number: int) -> str:
        return row_keys([key], self.views)[number % self.per_image]

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._encoder.encode_image(self.decoder.finish(inputs, self.encoder.device))

    @functools.cached_property
    def _encoder(self) -> Encoder:
        return self.encoder.compiled(self.portion(0)) if self.settings.compile else self.encoder


class Texts(Stage):
    """Sentences to tokens to rows; with ``captions`` "all", every sentence of a source row is a row."""

    def __init__(self, encoder: Encoder, settings: Settings):
        super().__init__(encoder, settings)
        for name, known in (("captions", ("first", "all")), ("long_texts", ("quarantine", "truncate"))):
            if getattr(settings, name) not in known:
                raise RecipeError(f"{name} is '{getattr(settings, name)}'; expected one of {', '.join(known)}")
        self.how = {"captions": settings.captions, "long_texts": settings.long_texts}
        self.every = settings.captions == "all"
        self._items: dict[str, list[tuple[int, int]]] = {}

    def count(self, shard: Shard) -> int:
        if not self.every:
            return len(shard)
        self._items[shard.name] = [(row, j) for row in range(len(shard)) for j in range(_captions(shard, row))]
        return len(self._items[shard.name])

    def portion(self, rows: int) -> int:
        batches = -(-rows // (SHARES * self.settings.batch_size))
        return self.settings.batch_size * min(max(batches, 1), WINDOW)

    def _place(self, shard: Shard, number: int) -> tuple[int, int]:
        """Return (row, caption) numbers of sentence ``number`` of a shard."""
        return self._items[shard.name][number] if self.every else (number, 0)

    def _bad(self, shard: Shard, number: int, key: str, reason: str) -> Bad:
        """Quarantine sentence ``number``; where sentences are rows, the reason says which source row it stands in."""
        if self.every:
            row, place = self._place(shard, number)
            reason = f"{reason} (source row {row}, sentence {place}, both counted from 0)"
        return Bad(number, key, reason)

    def prepare(self, shard: Shard, numbers: Sequence[int]) -> Batch:
        batch, sentences = Batch(), []
        started = time.perf_counter()
        for number in numbers:
            row_number, place = self._place(shard, number)
            try:
                row = shard[row_number]
                sentences.append(_sentence(row.texts, place))
            except BadRow as error:
                batch.bad.append(self._bad(shard, number, self.key(shard, row_number), str(error)))
                continue
            batch.unused += 0 if self.every else len(row.texts) - 1
            batch.numbers.append(number)
            batch.keys.append(f"{row.key}#{place}" if self.every else row.key)
        read = time.perf_counter()
        batch.read = read - started
        if sentences:
            self._tokenize(shard, batch, sentences)
        batch.decode = time.perf_counter() - read
        return batch

    def _tokenize(self, shard: Shard, batch: Batch, sentences: list[str]) -> None:
        tokens, lengths = self.encoder.tokenize(sentences)
        limit = tokens.shape[1]
        keep = [i for i, n in enumerate(lengths) if n <= limit or self.settings.long_texts == "truncate"]
        for i in sorted(set(range(len(lengths))) - set(keep)):
            reason = f"sentence has {lengths[i]} tokens, the encoder reads {limit} (--long-texts truncate cuts it)"
            batch.bad.append(self._bad(shard, batch.numbers[i], batch.keys[i], reason))
        batch.numbers = [batch.numbers[i] for i in keep]
        batch.keys = [batch.keys[i] for i in keep]
        batch.inputs = tokens[keep]

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        return encode_sentences(self.encoder, inputs, self.settings.batch_size)


def _sentence(texts: tuple[str, ...], place: int) -> str:
    """Return one sentence; raise BadRow when it is empty or holds half a character."""
    if not texts or not texts[place].strip():
        raise BadRow("sentence is empty")
    if readable(texts[place]) != texts[place]:
        raise BadRow("sentence holds a lone surrogate, half of a character")
    return texts[place]


def _captions(shard: Shard, row: int) -> int:
    """Return how many sentences a row has; an unreadable row counts as one, so that it is quarantined once."""
    try:
        return max(1, len(shard[row].texts))
    except BadRow:
        return 1
