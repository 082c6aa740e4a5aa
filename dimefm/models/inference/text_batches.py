"""Encode many texts: every distinct text once, in batches of texts of similar length.

Which texts share a batch depends only on their tokens and on the kind of device: texts that are
encoded together again give the same embeddings to the last bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future

import numpy as np
import torch
from torch import Tensor

from dimefm.models.encoder import Encoder
from dimefm.models.inference.in_flight import Pending

WINDOW = 32
"""Batches whose texts are sorted by length together."""

CPU_PLACES = 2048
"""Tokens in a batch on a CPU. More are slower: activations outgrow what the allocator reuses."""

REMEMBERED = 1 << 20
"""Distinct texts of a shard that are recognized when they come again, 200 bytes each."""


def digests(tokens: Tensor) -> list[bytes]:
    """Return a digest of 16 bytes for each row of tokens [N, L] (on the CPU)."""
    rows = tokens.contiguous().numpy()
    return [hashlib.blake2b(row, digest_size=16).digest() for row in rows]


class SeenSentences:
    """The texts of one stream so far."""

    def __init__(self):
        self._numbers: dict[bytes, int] = {}
        self._count = 0

    def deduplicate(self, digests: Sequence[bytes]) -> tuple[list[int], np.ndarray]:
        """Add the next N texts; return (places of the M new ones among them, numbers [N] of all N).

        New texts are numbered from 0 through the whole stream; a text that came before has the
        number that it had then.
        """
        new_places: list[int] = []
        numbers = np.empty(len(digests), np.int64)
        for place, digest in enumerate(digests):
            number = self._numbers.get(digest)
            if number is None:
                number = self._count
                self._count += 1
                new_places.append(place)
                if len(self._numbers) < REMEMBERED:
                    self._numbers[digest] = number
            numbers[place] = number
        return new_places, numbers


def plan(lengths: np.ndarray, batch_size: int, places: int) -> list[np.ndarray]:
    """Return batches of row numbers [n_i], longest rows first, rows of one length in their order.

    ``lengths`` [N] are the places that the rows need. A batch has at most ``batch_size`` rows and,
    unless it is one row, ``places`` places when all its rows are padded to its longest.
    """
    order = np.argsort(-lengths, kind="stable")
    batches: list[np.ndarray] = []
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        rows = min(batch_size, places // longest)
        end = start + max(1, rows)
        batches.append(order[start:end])
        start = end
    return batches


def _batches(encoder: Encoder, tokens: Tensor, batch_size: int) -> list[Tensor]:
    """Return batches of rows of tokens [N, L] to encode together."""
    if encoder.device.type == "cpu":
        places = CPU_PLACES
    else:
        places = batch_size * tokens.shape[1]
    lengths = encoder.lengths_read(tokens).numpy()
    return [torch.from_numpy(batch) for batch in plan(lengths, batch_size, places)]


def _inverse(batches: list[Tensor]) -> Tensor:
    """Return the order that brings the rows of batches, one after another, to their places."""
    return torch.cat(batches).argsort()


def encode_sentences(
    encoder: Encoder,
    tokens: Tensor,
    batch_size: int,
    encode: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return float32 unit embeddings [N, D] of tokens [N, L] (on the CPU), in order.

    At most ``batch_size`` texts run together. ``encode`` in place of ``encode_text`` may compute
    another result for each text, [N, ...].
    """
    encode = encode or encoder.encode_text
    if not len(tokens):
        return encode(tokens)
    batches = _batches(encoder, tokens, batch_size)
    rows = torch.cat([encode(tokens[batch]) for batch in batches])
    order = _inverse(batches).to(rows.device)
    return rows[order]


class PooledEncode:
    """The result of :func:`encode_sentences` on a CPU, whose threads take its batches one by one.

    ``pieces`` counts the batches.
    """

    def __init__(
        self,
        encoder: Encoder,
        tokens: Tensor,
        batch_size: int,
        encode_threads: Executor,
    ):
        batches = _batches(encoder, tokens, batch_size)
        self.pieces = len(batches)
        self._order = _inverse(batches).numpy()
        self._futures: list[Future[Pending]] = []
        for batch in batches:
            future = encode_threads.submit(
                Pending,
                encoder.encode_text,
                tokens[batch],
                encoder.device,
            )
            self._futures.append(future)

    def fetch(self) -> tuple[np.ndarray, float]:
        """Return (embeddings [N, D], seconds that threads were busy with them, added up)."""
        batches: list[np.ndarray] = []
        busy = 0.0
        for future in self._futures:
            rows, seconds = future.result().fetch()
            batches.append(rows)
            busy += seconds
        return np.concatenate(batches)[self._order], busy
