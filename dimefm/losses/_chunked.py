"""Softmax losses over similarities that are never held as a whole: value and gradients in one walk
over chunks of rows.

A chunk's similarities, their softmax and its share of the value and of the gradients of queries,
keys and scale are computed together, then forgotten; the backward pass only multiplies. So memory
is that of one chunk and of the gradients [Q, D] and [K, D]. The idea is that of fused linear
cross-entropies (Liger Kernel, arXiv 2410.10989), for columns that of the online softmax (arXiv
1805.02867).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Similarities of a chunk: on a CPU 2 MiB of float32, near a core's cache; on other devices 16 MiB,
# so that computing them takes longer than launching it. Up to eight matrices of that size live at a
# time.
CHUNK, DEVICE_CHUNK = 2**19, 2**22
LEAST = 128  # rows of a chunk at least, however long they are: products of fewer rows are slow


@dataclass(frozen=True)
class Similarity:
    """Similarities [Q, K] = scale x queries @ keysᵀ of rows [Q, D] and [K, D], computed chunk by
    chunk inside a loss.

    ``scale`` is a float or a tensor of one element; it goes onto the queries, as DIME-FM does.
    """

    queries: Tensor
    keys: Tensor
    scale: Tensor | float

    @property
    def T(self) -> Similarity:
        """The transpose [K, Q]."""
        return Similarity(self.keys, self.queries, self.scale)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of queries and of keys (Q, K)."""
        return len(self.queries), len(self.keys)

    def block(self, rows: slice) -> Tensor:
        """Return the similarities [C, K] of a slice of the queries."""
        return (self.queries[rows] * self.scale) @ self.keys.T

    def numbers(self, dtype: torch.dtype, temperature: float) -> Similarity:
        """Return the same divided by ``temperature``, in ``dtype``, unknown to autograd."""
        scale = self.scale.detach().to(dtype) if isinstance(self.scale, Tensor) else self.scale
        return Similarity(
            self.queries.detach().to(dtype), self.keys.detach().to(dtype), scale / temperature
        )


# (number of the first row, log-probabilities [C, K] of the student, of the teacher if there is one)
# -> (loss summed over the rows, its gradient [C, K] by the student's similarities). The matrices
# may be overwritten.
Compare = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Fused:
    """A loss that is the mean over rows of what ``compare`` says of the log-softmax of similarities
    / ``temperature``.

    ``both_ways`` adds the mean over columns of what it says of theirs. Without ``softmax`` it is
    told the similarities as they are. The chunks change the result by rounding only.
    """

    compare: Compare
    temperature: float = 1.0
    both_ways: bool = False
    softmax: bool = True

    def __call__(self, student: Similarity, teacher: Similarity | None = None) -> Tensor:
        """Return the loss in float32 (float64 if rows are), whatever autocast says; only
        ``student`` receives gradients.

        Raises ValueError when the two have different shapes.
        """
        if teacher is not None and teacher.shape != student.shape:
            raise ValueError(
                f"similarities of student {student.shape} and teacher {teacher.shape}; expected one"
                " shape"
            )
        if (
            self.both_ways and student.shape[0] < student.shape[1]
        ):  # the shorter the rows, the more of them in a chunk
            student, teacher = student.T, None if teacher is None else teacher.T
        inputs = (student.queries, student.keys, student.scale)
        wanted = [
            torch.is_grad_enabled() and isinstance(x, Tensor) and x.requires_grad for x in inputs
        ]
        with torch.no_grad(), torch.autocast(student.queries.device.type, enabled=False):
            value, sums, factors = self._walk(student, teacher, wanted)
        return _Known.apply(value, factors, *inputs, *sums) if any(wanted) else value

    def _walk(
        self, student: Similarity, teacher: Similarity | None, wanted: list[bool]
    ) -> tuple[Tensor, list, list]:
        """Return the value, and for queries, keys and scale the gradient (None where not wanted)
        and a factor on it.
        """
        given = [student] if teacher is None else [student, teacher]
        dtype = (
            torch.float64
            if torch.float64 in {x.dtype for s in given for x in (s.queries, s.keys)}
            else torch.float32
        )
        sides = [side.numbers(dtype, self.temperature) for side in given]
        count, width = student.shape
        value, gradients = sides[0].queries.new_zeros(()), _Gradients(sides[0], wanted)
        budget = CHUNK if value.device.type == "cpu" else DEVICE_CHUNK
        chunks = _Chunks(sides, max(LEAST, budget // width))
        columns = _columns(sides, chunks) if self.both_ways else []
        for rows, *blocks in chunks:
            loss, slope = self.compare(
                rows.start, *(block.log_softmax(1) if self.softmax else block for block in blocks)
            )
            value += loss / count
            if columns:
                logs = (column(block) for column, block in zip(columns, blocks, strict=True))
                loss, other = self.compare(rows.start, *logs)
                value += loss / width
                slope.add_(other, alpha=count / width)
            gradients.add(rows, slope)
        factor = sides[0].scale / count
        return (
            value,
            [gradients.queries, gradients.keys, gradients.scale],
            [factor, factor, 1 / (count * self.temperature)],
        )


class _Chunks:
    """The rows of each chunk with every side's similarities [C, K], computed anew in each iteration
    if they are many.
    """

    def __init__(self, sides: list[Similarity], size: int):
        count = sides[0].shape[0]
        self.sides, self.rows = (
            sides,
            [slice(start, start + size) for start in range(0, count, size)],
        )
        self.only = [side.block(self.rows[0]) for side in sides] if len(self.rows) == 1 else None

    def __iter__(self) -> Iterator[tuple]:
        for rows in self.rows:
            yield rows, *(self.only or (side.block(rows) for side in self.sides))


class _Columns:
    """The log-softmax over whole columns of similarities that are seen one chunk of rows at a
    time.
    """

    def __init__(self, side: Similarity):
        self.top = side.keys.new_full((len(side.keys),), -torch.inf)
        self.sum = torch.zeros_like(self.top)

    def add(self, block: Tensor) -> None:
        """Look at a chunk: keep each column's maximum and the sum of exponentials below it."""
        top = torch.maximum(self.top, block.amax(0))
        self.sum = self.sum.mul_(self.top.sub_(top).exp_()).add_((block - top).exp_().sum(0))
        self.top = top

    def __call__(self, block: Tensor) -> Tensor:
        """Return the log-probabilities of a chunk, after all of them have been looked at."""
        return (block - self.top).sub_(self.sum.log())


def _columns(sides: list[Similarity], chunks: _Chunks) -> Sequence[Callable[[Tensor], Tensor]]:
    """Return for each side what makes a chunk's log-probabilities over whole columns; this takes a
    walk of its own.
    """
    if chunks.only:
        return [lambda block: block.log_softmax(0)] * len(sides)
    columns = [_Columns(side) for side in sides]
    for _, *blocks in chunks:
        for column, block in zip(columns, blocks, strict=True):
            column.add(block)
    return columns


class _Gradients:
    """Sums over chunks of the gradients that are wanted of queries, keys and scale."""

    def __init__(self, side: Similarity, wanted: list[bool]):
        self.side, self.wanted = side, wanted
        self.queries = torch.empty_like(side.queries) if wanted[0] else None
        self.keys = torch.zeros_like(side.keys) if wanted[1] else None
        self.scale = torch.zeros_like(side.scale) if wanted[2] else None

    def add(self, rows: slice, slope: Tensor) -> None:
        """Add what the gradient [C, K] by the similarities of a chunk makes of each."""
        queries = self.side.queries[rows]
        if self.keys is not None:
            self.keys.addmm_(slope.T, queries)
        if self.queries is not None or self.scale is not None:
            out = None if self.queries is None else self.queries[rows]
            towards = torch.mm(slope, self.side.keys, out=out)
            if self.scale is not None:
                self.scale += (towards * queries).sum()


class _Known(torch.autograd.Function):
    """A value whose gradients are known already, but for a factor."""

    @staticmethod
    def forward(ctx, value, factors, queries, keys, scale, *sums):
        ctx.factors = factors
        ctx.save_for_backward(*sums)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, incoming):
        found = zip(ctx.factors, ctx.saved_tensors, strict=True)
        return (
            None,
            None,
            *(None if known is None else (incoming * factor) * known for factor, known in found),
            *[None] * 3,
        )
