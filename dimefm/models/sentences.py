"""Many sentences at once: each distinct one is encoded once, together with others of its length.

Which sentences share a batch depends on the tokens that are given and the kind of device alone: sentences that are encoded
together again give the same rows to the last bit.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dimefm.models.encoder import Encoder

WINDOW = 32
"""How many batches of sentences to bring together, so that those of similar length find each other."""


CPU_PLACES = 2048
"""Places in a batch on a CPU, where more of them are slower: activations outgrow what the allocator keeps and reuses."""


def plan(lengths: np.ndarray, batch_size: int, places: int) -> list[np.ndarray]:
    """Return batches of row numbers [n_i], longest rows first, rows of one length in their order.

    ``lengths`` are the places [N] that each row needs. A batch is at most ``batch_size`` rows and, unless it is one row,
    ``places`` places when all its rows are padded to its longest.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        end = start + max(1, min(batch_size, places // int(lengths[order[start]])))
        batches.append(order[start:end])
        start = end
    return batches


def distinct(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (the numbers [M] of the first of each distinct row of tokens [N, L], which of these each row is [N])."""
    seen: dict[bytes, int] = {}
    which = np.fromiter((seen.setdefault(row.tobytes(), len(seen)) for row in tokens), np.int64, len(tokens))
    return np.unique(which, return_index=True)[1], which


def encode_sentences(encoder: Encoder, tokens: Tensor, batch_size: int) -> Tensor:
    """Return float32 unit rows [N, D] of tokens [N, L] (on the CPU), in order; at most ``batch_size`` run together."""
    if not len(tokens):
        return encoder.encode_text(tokens)
    first, which = distinct(tokens.numpy())
    once = tokens[torch.from_numpy(first)]
    places = CPU_PLACES if encoder.device.type == "cpu" else batch_size * tokens.shape[1]
    batches = plan(encoder.lengths_read(once).numpy(), batch_size, places)
    rows = torch.cat([encoder.encode_text(once[torch.from_numpy(batch)]) for batch in batches])
    place = np.empty(len(first), np.int64)  # where the row of each distinct sentence stands in ``rows``
    place[np.concatenate(batches)] = np.arange(len(first))
    return rows[torch.from_numpy(place[which]).to(rows.device)]
