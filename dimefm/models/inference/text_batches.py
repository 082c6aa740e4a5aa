"""Many sentences at once: each distinct one is encoded once, together with others of its length.

Which sentences share a batch depends on the tokens that are given and the kind of device alone:
sentences that are encoded together again give the same rows to the last bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np
import torch
from torch import Tensor

from dimefm.models.encoder import Encoder
from dimefm.models.inference.in_flight import Pending

WINDOW = 32
"""How many batches of sentences to bring together, so that those of similar length find each
other.
"""

CPU_PLACES = 2048
"""Places in a batch on a CPU, where more of them are slower: activations outgrow what the allocator
keeps and reuses.
"""

REMEMBERED = 1 << 20
"""Distinct sentences of a shard that are recognised when they come again, 200 bytes each; later
ones are encoded anew.
"""


def digests(tokens: Tensor) -> list[bytes]:
    """Return 16 bytes for each row of tokens [N, L] (on the CPU) that tell it from others."""
    return [hashlib.blake2b(row, digest_size=16).digest() for row in tokens.contiguous().numpy()]


class SeenSentences:
    """The sentences of one stream so far."""

    def __init__(self):
        self._numbers: dict[bytes, int] = {}
        self._count = 0

    def deduplicate(self, digests: Sequence[bytes]) -> tuple[list[int], np.ndarray]:
        """Take up the next N sentences; return (the places in them of M new ones, which sentence
        [N] each of the N is).

        New ones are counted from 0 through the whole stream, so that the N are numbers of new ones,
        of now or earlier.
        """
        fresh, which = [], np.empty(len(digests), np.int64)
        for place, digest in enumerate(digests):
            number = self._numbers.get(digest)
            if number is None:
                number, self._count = self._count, self._count + 1
                fresh.append(place)
                if len(self._numbers) < REMEMBERED:
                    self._numbers[digest] = number
            which[place] = number
        return fresh, which


def plan(lengths: np.ndarray, batch_size: int, places: int) -> list[np.ndarray]:
    """Return batches of row numbers [n_i], longest rows first, rows of one length in their order.

    ``lengths`` are the places [N] that each row needs. A batch is at most ``batch_size`` rows and,
    unless it is one row, ``places`` places when all its rows are padded to its longest.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        end = start + max(1, min(batch_size, places // int(lengths[order[start]])))
        batches.append(order[start:end])
        start = end
    return batches


def _batches(encoder: Encoder, tokens: Tensor, batch_size: int) -> list[Tensor]:
    """Return which rows of tokens [N, L] to encode together."""
    places = CPU_PLACES if encoder.device.type == "cpu" else batch_size * tokens.shape[1]
    planned = plan(encoder.lengths_read(tokens).numpy(), batch_size, places)
    return [torch.from_numpy(batch) for batch in planned]


def encode_sentences(
    encoder: Encoder,
    tokens: Tensor,
    batch_size: int,
    encode: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return float32 unit rows [N, D] of tokens [N, L] (on the CPU), in order; at most
    ``batch_size`` run together.

    ``encode`` in place of ``encode_text`` may give each sentence something else, [N, ...].
    """
    encode = encode or encoder.encode_text
    if not len(tokens):
        return encode(tokens)
    batches = _batches(encoder, tokens, batch_size)
    rows = torch.cat([encode(tokens[batch]) for batch in batches])
    return rows[torch.cat(batches).argsort().to(rows.device)]


class PooledEncode:
    """What :func:`encode_sentences` gives on a CPU, whose threads take its batches one by one;
    ``pieces`` counts them.
    """

    def __init__(self, encoder: Encoder, tokens: Tensor, batch_size: int, encode_threads: Executor):
        batches = _batches(encoder, tokens, batch_size)
        self._order, self.pieces = torch.cat(batches).argsort().numpy(), len(batches)
        self._parts = [
            encode_threads.submit(Pending, encoder.encode_text, tokens[batch], encoder.device)
            for batch in batches
        ]

    def fetch(self) -> tuple[np.ndarray, float]:
        """Return (rows [N, D], seconds that threads were busy with them, added up)."""
        done = [part.result().fetch() for part in self._parts]
        return np.concatenate([rows for rows, _ in done])[self._order], sum(
            seconds for _, seconds in done
        )
