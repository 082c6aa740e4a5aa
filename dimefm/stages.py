"""The two stages of extraction, images and sentences: how a shard is counted, made ready in batches, and encoded.

How batches follow each other through threads stands in ``stream.py``. The threads write to nothing that they share: a
batch carries its own seconds and counts, and whoever consumes it adds them up.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from dimefm.cache import Manifest
from dimefm.cache.writer import Bad
from dimefm.data import Row, Shard
from dimefm.data.decoders import decoder
from dimefm.data.rows import readable
from dimefm.data.tokens import TokenPolicy
from dimefm.data.variants import TextPolicy
from dimefm.data.views import ViewPolicy, row_keys
from dimefm.errors import BadRow, RecipeError
from dimefm.models import compiler
from dimefm.models.encoder import Encoder
from dimefm.models.lanes import ahead
from dimefm.models.pending import Pending
from dimefm.models.precision import PRECISIONS, check_compiled, chosen
from dimefm.models.sentences import WINDOW, InLanes, digests, encode_sentences


@dataclass(frozen=True)
class Settings:
    """How to extract.

    ``dtype`` None is the format's own. Images: ``decoder`` is one of data/decoders.py; ``views`` None encodes them through
    the encoder's own preprocessing, else each gives that many rows, one for each view; ``auto_batch`` measures how many to
    encode at once, in place of ``batch_size``; ``compile`` runs their tower compiled. Sentences: ``captions`` "first" keeps
    one a source row, "all" makes a row of each; with ``text_views`` a source row gives that many, one for each view;
    ``long_texts`` says what happens to those past the encoder's context.
    ``auto_precision`` takes the precision of the cache that is there, else one for this machine, in place of the encoder's.
    With ``tokens`` each image and sentence gives that many, one a row, and no row of its own.
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
    text_views: TextPolicy | None = None
    tokens: TokenPolicy | None = None
    auto_batch: bool = False
    auto_precision: bool = False
    compile: bool = False


@dataclass
class Batch:
    """Rows ready to encode: their numbers and keys, the stacked inputs, and the rows that could not be made ready.

    ``parts`` are inputs that are not stacked yet; ``read`` and ``decode`` are the seconds that this took; ``unused`` counts
    captions that were left aside; ``last`` marks the end of a job. Rows with equal ``digests`` have equal inputs; once
    repeats are left out of these, ``which`` says which of all inputs of the job so far each row has.
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
    digests: list[bytes] = field(default_factory=list)
    which: np.ndarray | None = None
    pending: Pending | InLanes | None = None

    def stack(self) -> None:
        """Make ``inputs`` of the parts, if there are any."""
        if self.parts:
            self.inputs, self.parts = torch.stack(self.parts), []


class Stage(ABC):
    """What differs between images and sentences: how many rows a shard has, and how a batch is made and encoded.

    ``spread``: the lanes of a CPU share a batch, which was made ready elsewhere; else each does the whole of one.
    ``together`` rows come of one input and are asked for together.
    """

    how: dict
    spread = False
    together = 1

    def __init__(self, encoder: Encoder, settings: Settings):
        self.encoder, self.settings = encoder, settings
        self._keys: tuple[str, list[str]] | None = None

    def settle(self, out: str | Path, before: Manifest | None) -> None:
        """With ``auto_precision`` encode as the cache ``before`` at ``out`` says, else as is quick here, and say so."""
        if not self.settings.auto_precision:
            return
        found = None if before is None else before.how.get("precision")
        if found in PRECISIONS:
            precision, why = found, "as the cache there says"
        else:
            precision, why = chosen(self.encoder.device, self.settings.compile)
        self.encoder = dataclasses.replace(self.encoder, precision=precision)
        if self.settings.progress:
            print(f"note: {out}: --precision auto is {precision}, {why}", file=sys.stderr, flush=True)

    def count(self, shard: Shard) -> int:
        """Return how many rows the shard gives."""
        return len(shard)

    def key(self, shard: Shard, number: int) -> str:
        """Return the key of a row that cannot be read; the keys of the present shard stay in memory."""
        kept = self._keys
        if kept is None or kept[0] != shard.name:
            kept = self._keys = (shard.name, shard.keys())
        return kept[1][number]

    def portion(self) -> int:
        """Return how many rows are made ready together.

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

    def start(self, batch: Batch, lanes: Executor | None = None) -> None:
        """Send the inputs of a batch, if there are any, through the encoder; ``pending`` has them from now on."""
        if batch.inputs is not None:
            batch.pending, batch.inputs = Pending(self.encode, batch.inputs, self.encoder.device), None

    def batches(self, shard: Shard, numbers: Sequence[int]) -> Iterator[Batch]:
        """Yield the rows of ``numbers``, ascending, in batches that threads prepare ahead; ``count`` the shard first."""
        workers = self.settings.workers
        with ThreadPoolExecutor(workers, "reader") as pool:
            parts = portions(numbers, self.portion())
            yield from (batch for _, batch in ahead(pool, workers + 1, lambda part: self.prepare(shard, part), parts))


def portions(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yield ``numbers`` in portions of ``size``; no numbers make one portion, empty."""
    for start in range(0, max(len(numbers), 1), size):
        yield numbers[start : start + size]


class Images(Stage):
    """Image files to pixels to rows; with a view policy of K views, view v of image i of a shard is row i * K + v."""

    def __init__(self, encoder: Encoder, settings: Settings):
        super().__init__(encoder, settings)
        self.views, self.decoder = settings.views, decoder(settings.decoder, encoder.image_preprocess)
        self.how = {"decoder": self.decoder.name, "views": None if self.views is None else self.views.how()}
        self._compiled, self._one_at_a_time = cast("Encoder | None", None), threading.Lock()
        if settings.compile:
            compiler.check(encoder.device)
            check_compiled(encoder.precision, encoder.device)
            self.how["compiled"] = True
        self.per_image = 1 if self.views is None else self.views.count

    def portion(self) -> int:
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
                self._compiled = self.encoder.compiled(self.portion())
            return self._compiled or self.encoder


class Texts(Stage):
    """Sentences to tokens to rows; with ``captions`` "all", every sentence of a source row is a row, and with a policy of K
    text views, view v of source row i of a shard is row i * K + v."""

    spread = True

    def __init__(self, encoder: Encoder, settings: Settings):
        super().__init__(encoder, settings)
        for name, known in (("captions", ("first", "all")), ("long_texts", ("quarantine", "truncate"))):
            if getattr(settings, name) not in known:
                raise RecipeError(f"{name} is '{getattr(settings, name)}'; expected one of {', '.join(known)}")
        self.how = {"captions": settings.captions, "long_texts": settings.long_texts}
        self.every, self.policy = settings.captions == "all", settings.text_views
        if self.policy is not None:
            if self.every:
                raise RecipeError("captions 'all' makes a row of every sentence, text_views of every row; leave one out")
            self.how["text_views"] = self.policy.how()
        self._items: dict[str, list[tuple[int, int]]] = {}

    def count(self, shard: Shard) -> int:
        if not self.every:
            return len(shard) * self.per_row
        self._items[shard.name] = [(row, j) for row in range(len(shard)) for j in range(_captions(shard, row))]
        return len(self._items[shard.name])

    def portion(self) -> int:
        return self.settings.batch_size * WINDOW

    @property
    def per_row(self) -> int:
        """Rows of each source row, where that is one number."""
        return 1 if self.policy is None else self.policy.count

    def _place(self, shard: Shard, number: int) -> tuple[int, int]:
        """Return the number of the source row, and that of the caption or view in it, of sentence ``number`` of a shard."""
        return self._items[shard.name][number] if self.every else divmod(number, self.per_row)

    def _bad(self, shard: Shard, number: int, key: str, reason: str) -> Bad:
        """Quarantine sentence ``number``; where sentences are rows, the reason says which source row it stands in."""
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

    def _read(self, shard: Shard, row_number: int, numbers: list[int], batch: Batch, sentences: list[str]) -> None:
        """Put the sentences ``numbers`` of one source row into ``sentences``, and what belongs to them into ``batch``."""
        row = None
        for number in numbers:
            place = self._place(shard, number)[1]
            try:
                row = row or shard[row_number]
                sentences.append(self._sentence(row, place))
            except BadRow as error:
                key = self.key(shard, row_number)
                batch.bad.append(self._bad(shard, number, key if self.every else self._row_key(key, place), str(error)))
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
        used = 1 if policy is None else len({policy.place(view, len(row.texts)) for view in range(policy.count)})
        return len(row.texts) - used

    def _tokenize(self, shard: Shard, batch: Batch, sentences: list[str]) -> None:
        tokens, lengths = self.encoder.tokenize(sentences)
        limit = tokens.shape[1]
        keep = [i for i, n in enumerate(lengths) if n <= limit or self.settings.long_texts == "truncate"]
        for i in sorted(set(range(len(lengths))) - set(keep)):
            reason = f"sentence has {lengths[i]} tokens, the encoder reads {limit} (--long-texts truncate cuts it)"
            batch.bad.append(self._bad(shard, batch.numbers[i], batch.keys[i], reason))
        batch.numbers = [batch.numbers[i] for i in keep]
        batch.keys = [batch.keys[i] for i in keep]
        if keep:
            batch.inputs = tokens[keep]
            batch.digests = digests(batch.inputs)

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        return encode_sentences(self.encoder, inputs, self.settings.batch_size)

    def start(self, batch: Batch, lanes: Executor | None = None) -> None:
        if lanes is None or batch.inputs is None or self.encoder.device.type != "cpu":
            super().start(batch)
        else:
            batch.pending = InLanes(self.encoder, batch.inputs, self.settings.batch_size, lanes)
            batch.inputs = None


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
