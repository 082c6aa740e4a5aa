"""The two stages of extraction, images and sentences: how a shard is counted, made ready in batches, and encoded.

Beside a GPU threads read and decode the next batches, of this shard and the next; on a CPU each of a few threads does the
whole of a batch. Stages of several encoders may go over the same rows together. The threads write to nothing that they
share: a batch carries its own seconds and counts, and whoever consumes it adds them up.
"""

from __future__ import annotations

import itertools
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch

from dimefm.cache.writer import Bad
from dimefm.data import Shard
from dimefm.data.decoders import decoder
from dimefm.data.rows import readable
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

    ``parts`` are inputs that are not stacked yet; ``read`` and ``decode`` are the seconds that this took; ``unused`` counts
    captions that were left aside; ``last`` marks the end of a job.
    """

    numbers: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    parts: list[torch.Tensor] = field(default_factory=list)
    inputs: torch.Tensor | None = None
    bad: list[Bad] = field(default_factory=list)
    read: float = 0.0
    decode: float = 0.0
    unused: int = 0
    last: bool = False
    pending: Pending | None = None

    def stack(self) -> None:
        """Make ``inputs`` of the parts, if there are any."""
        if self.parts:
            self.inputs, self.parts = torch.stack(self.parts), []

    def start(self, encode: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> None:
        """Send the inputs, if there are any, through ``encode``; ``pending`` has them from now on."""
        if self.inputs is not None:
            self.pending, self.inputs = Pending(encode, self.inputs, device), None


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
        """Return how many of a job's ``rows`` are made ready together.

        The same for all processes of one extraction, as the last bits of a feature may depend on what it is encoded with.
        """
        return self.settings.batch_size

    @abstractmethod
    def prepare(self, shard: Shard, numbers: Sequence[int]) -> Batch:
        """Read and decode the rows of ``numbers``, ascending; those that cannot be are in ``bad``."""

    def prepare_beside(self, others: Sequence[Stage], shard: Shard, numbers: Sequence[int]) -> list[Batch]:
        """Return what ``prepare`` gives for this stage and each of ``others``, which have its settings and its kind."""
        return [stage.prepare(shard, numbers) for stage in (self, *others)]

    @abstractmethod
    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return unit rows of the inputs of a batch."""

    def batches(self, shard: Shard, numbers: Sequence[int]) -> Iterator[Batch]:
        """Yield the rows of ``numbers``, ascending, in batches that threads prepare ahead; ``count`` the shard first."""
        workers = self.settings.workers
        with ThreadPoolExecutor(workers, "reader") as pool:
            yield from (batch for _, batch in _stream(pool, workers + 1, [[Job(self, shard, numbers)]], _ready))


@dataclass(eq=False)
class Job:
    """Rows of one shard, ascending, that a stage is to encode."""

    stage: Stage
    shard: Shard
    numbers: Sequence[int]


J = TypeVar("J", bound=Job)
Group = Sequence[J]  # jobs of one kind and device with the same settings, about the same rows of one shard


def encoded(groups: Iterable[Group[J]], device: torch.device, workers: int) -> Generator[tuple[J, Batch]]:
    """Yield the batches of one group of jobs after another, in flight through the encoders, each job's last one marked.

    The jobs of a group share what ``prepare_beside`` shares. A batch never holds rows of two jobs, so what is computed of a
    shard does not depend on its neighbours. The next group is asked for when a thread has nothing else to do.
    """
    if device.type == "cpu":
        with lanes(device) as pool:
            yield from _stream(pool, 2 * lanes_of(device) + 1, groups, _done)
        return
    behind: deque[tuple[J, Batch]] = deque()
    with ThreadPoolExecutor(workers, "reader") as pool:
        for job, batch in _stream(pool, workers + 1, groups, _ready):
            batch.start(job.stage.encode, device)
            behind.append((job, batch))
            if len(behind) > 1:  # the encoder has the next one already when this one is fetched
                yield behind.popleft()
        yield from behind


def _stream(
    pool: ThreadPoolExecutor,
    most: int,
    groups: Iterable[Group[J]],
    make: Callable[[Group[Job], Sequence[int]], list[Batch]],
) -> Iterator[tuple[J, Batch]]:
    """Yield what ``make`` gives for each portion of each group, in order; ``most`` portions are in the pool at a time."""
    tasks = ((group, part, last) for group in groups for part, last in _parts(group[0]))
    ahead: deque[tuple[Group[J], bool, Future[list[Batch]]]] = deque()
    try:
        while True:
            for group, part, last in itertools.islice(tasks, most - len(ahead)):
                ahead.append((group, last, pool.submit(make, group, part)))
            if not ahead:
                return
            group, last, made = ahead.popleft()
            for job, batch in zip(group, made.result(), strict=True):
                batch.last = last
                yield job, batch
    finally:
        for _, _, made in ahead:
            made.cancel()


def _parts(job: Job) -> Iterator[tuple[Sequence[int], bool]]:
    """Yield the portions of a job's rows, and whether each is the last; no rows make one portion, empty."""
    numbers, size = job.numbers, job.stage.portion(len(job.numbers))
    for start in range(0, max(len(numbers), 1), size):
        yield numbers[start : start + size], start + size >= len(numbers)


def _prepare(group: Group[Job], numbers: Sequence[int]) -> list[Batch]:
    """Return the batch of each job of a group with the rows of ``numbers``."""
    first, *others = (job.stage for job in group)
    return first.prepare_beside(others, group[0].shard, numbers)


def _ready(group: Group[Job], numbers: Sequence[int]) -> list[Batch]:
    """Prepare batches for an encoder that another thread starts."""
    batches = _prepare(group, numbers)
    for job, batch in zip(group, batches, strict=True):
        if batch.inputs is not None and job.stage.encoder.device.type == "cuda":
            batch.inputs = batch.inputs.pin_memory()
    return batches


def _done(group: Group[Job], numbers: Sequence[int]) -> list[Batch]:
    """Prepare batches and encode them in this thread."""
    batches = _prepare(group, numbers)
    for job, batch in zip(group, batches, strict=True):
        batch.start(job.stage.encode, job.stage.encoder.device)
    return batches


class Images(Stage):
    """Image files to pixels to rows; with a view policy of K views, view v of image i of a shard is row i * K + v."""

    def __init__(self, encoder: Encoder, settings: Settings):
        super().__init__(encoder, settings)
        self.views, self.decoder = settings.views, decoder(settings.decoder, encoder.image_preprocess)
        self.how = {"decoder": self.decoder.name, "views": None if self.views is None else self.views.how()}
        self._compiled, self._one_at_a_time = cast("Encoder | None", None), threading.Lock()
        if settings.compile:
            compiler.check(encoder.device)
            self.how["compiled"] = True
        self.per_image = 1 if self.views is None else self.views.count

    def portion(self, rows: int) -> int:
        return self.encoder.fitting_batch_size if self.settings.auto_batch else self.settings.batch_size

    def count(self, shard: Shard) -> int:
        return len(shard) * self.per_image

    def prepare(self, shard: Shard, numbers: Sequence[int]) -> Batch:
        return self.prepare_beside((), shard, numbers)[0]

    def prepare_beside(self, others: Sequence[Stage], shard: Shard, numbers: Sequence[int]) -> list[Batch]:
        """As every stage's, but each image is read and decoded once; the first batch has the seconds of that."""
        stages = [self, *cast("Sequence[Images]", others)]
        batches = [Batch() for _ in stages]
        for image, of_image in itertools.groupby(numbers, lambda number: number // self.per_image):
            views = [number % self.per_image for number in of_image]
            started = time.perf_counter()
            try:
                row = shard[image]
                read = time.perf_counter()
                opened = self.decoder.open(row.image)
            except BadRow as error:
                key = self.key(shard, image)
                for batch in batches:
                    batch.bad += self._bad(image, key, views, error)
                continue
            batches[0].read += read - started
            batches[0].decode += time.perf_counter() - read
            for stage, batch in zip(stages, batches, strict=True):
                stage._add(batch, image, row.key, opened, views)
        for batch in batches:
            batch.stack()
        return batches

    def _add(self, batch: Batch, image: int, key: str, opened: Any, views: list[int]) -> None:
        """Put these views of an opened image into ``batch``, as this encoder takes them."""
        started = time.perf_counter()
        try:
            batch.parts += self._pixels(key, opened, views)
        except BadRow as error:
            batch.bad += self._bad(image, key, views, error)
            return
        batch.decode += time.perf_counter() - started
        batch.numbers += [image * self.per_image + view for view in views]
        batch.keys += [self._row_key(key, view) for view in views]

    def _pixels(self, key: str, opened: Any, views: list[int]) -> list[torch.Tensor]:
        """Return the encoder's input of each of these views of an opened image."""
        policy = self.views
        if policy is None:
            return [self.decoder.whole(opened)]
        return self.decoder.views(opened, lambda w, h: [policy.draw(key, view, w, h) for view in views])

    def _bad(self, image: int, key: str, views: list[int], error: BadRow) -> list[Bad]:
        return [Bad(image * self.per_image + view, self._row_key(key, view), str(error)) for view in views]

    def _row_key(self, key: str, view: int) -> str:
        return row_keys([key], self.views)[view]

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._encoder.encode_image(self.decoder.finish(inputs, self.encoder.device))

    @property
    def _encoder(self) -> Encoder:
        with self._one_at_a_time:
            if self.settings.compile and self._compiled is None:
                self._compiled = self.encoder.compiled(self.portion(0))
            return self._compiled or self.encoder


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
        if self.encoder.device.type != "cpu":
            return self.settings.batch_size * WINDOW
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
