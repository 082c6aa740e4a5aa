"""Losses over similarities that are never held as a whole.

The value and all gradients come from one walk over chunks of rows. A chunk's similarities, their
softmax and their share of the value and of the gradients of queries, keys and scale are computed
together, then forgotten; the backward pass only multiplies. So memory is that of one chunk and of
the gradients [Q, D] and [K, D]. The idea is that of fused linear cross-entropies (Liger Kernel,
arXiv 2410.10989); columns are normalized as in the online softmax (arXiv 1805.02867).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Similarities of a chunk. On a CPU they are 2 MiB of float32, near a core's cache; on other devices
# 16 MiB, so that computing them takes longer than launching it. Up to eight matrices of that size
# live at a time.
CHUNK = 2**19
DEVICE_CHUNK = 2**22

# Rows of a chunk, however long they are: products of fewer rows are slow.
LEAST = 128


@dataclass(frozen=True)
class ScratchScores:
    """The scores [C, K] of a chunk of rows, in scratch memory.

    They are the log-softmax of similarities, or the similarities themselves. Whoever is called with
    them may overwrite them, and whoever calls reads neither of them afterwards.
    """

    first: int  # number of the first row
    student: Tensor
    teacher: Tensor | None = None  # None where a loss compares with no teacher

    @property
    def rows(self) -> slice:
        """The numbers of the rows."""
        return slice(self.first, self.first + len(self.student))


class RowLossOutput(NamedTuple):
    """What a row loss returns for a chunk of rows."""

    loss: Tensor  # scalar, summed over the rows
    gradient: Tensor  # [C, K], by the student's scores; it may lie in their memory


class RowLoss(Protocol):
    """A loss that is a sum over rows of scores."""

    def __call__(self, scores: ScratchScores, /) -> RowLossOutput:
        """Return the loss, summed over the rows, and its gradient by the student's scores."""


@dataclass(frozen=True)
class Similarity:
    """Similarities [Q, K] = scale x queries @ keysᵀ of rows [Q, D] and [K, D].

    A loss computes them chunk by chunk. ``scale`` is a float or a tensor of one element; it
    multiplies the queries, as in DIME-FM.
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
        scaled = self.queries[rows] * self.scale
        return scaled @ self.keys.T

    def detached(self, dtype: torch.dtype, temperature: float) -> Similarity:
        """Return the same divided by ``temperature``, in ``dtype``, unknown to autograd."""
        queries = self.queries.detach().to(dtype)
        keys = self.keys.detach().to(dtype)
        scale = self.scale
        if isinstance(scale, Tensor):
            scale = scale.detach().to(dtype)
        return Similarity(queries, keys, scale / temperature)


@dataclass(frozen=True)
class ChunkedLoss:
    """The mean over rows of what ``row_loss`` makes of the log-softmax of similarities.

    Similarities are divided by ``temperature`` first. ``both_ways`` adds the mean over columns of
    what ``row_loss`` makes of the log-softmax over columns. Without ``softmax`` it gets the
    similarities as they are. The chunks change the result by rounding only.
    """

    row_loss: RowLoss
    temperature: float = 1.0
    both_ways: bool = False
    softmax: bool = True

    def __call__(self, student: Similarity, teacher: Similarity | None = None) -> Tensor:
        """Return the loss in float32 (float64 if rows are), whatever autocast says.

        Only ``student`` receives gradients. Raises ValueError when the two have different shapes.
        """
        if teacher is not None and teacher.shape != student.shape:
            raise ValueError(
                f"similarities of student {student.shape} and teacher {teacher.shape}; expected one"
                " shape"
            )
        rows, columns = student.shape
        if self.both_ways and rows < columns:  # the shorter the rows, the more of them in a chunk
            student = student.T
            teacher = None if teacher is None else teacher.T

        inputs = (student.queries, student.keys, student.scale)
        wanted = [_needs_gradient(value) for value in inputs]
        device = student.queries.device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):
            walk = _Walk(self, student, teacher, wanted)
            walk.run()
        if not any(wanted):
            return walk.value
        gradients = walk.gradients
        sums = (gradients.queries, gradients.keys, gradients.scale)
        return _KnownGradients.apply(walk.value, walk.factors(), *inputs, *sums)


def _needs_gradient(value: Tensor | float) -> bool:
    return torch.is_grad_enabled() and isinstance(value, Tensor) and value.requires_grad


class _Walk:
    """One walk over all chunks: it sums up the value and the wanted gradients.

    ``wanted`` says whether queries, keys and scale need a gradient.
    """

    def __init__(
        self,
        loss: ChunkedLoss,
        student: Similarity,
        teacher: Similarity | None,
        wanted: list[bool],
    ):
        sides = [student]
        if teacher is not None:
            sides.append(teacher)
        dtype = _dtype_of(sides)
        sides = [side.detached(dtype, loss.temperature) for side in sides]
        self.loss = loss
        self.student = sides[0]
        self.value = self.student.queries.new_zeros(())
        self.gradients = _Gradients(self.student, wanted)
        budget = CHUNK if self.value.device.type == "cpu" else DEVICE_CHUNK
        row_length = self.student.shape[1]
        self.chunks = _Chunks(sides, max(LEAST, budget // row_length))

    def run(self) -> None:
        """Visit every chunk once; of both ways with several chunks, twice."""
        column_softmax = None
        if self.loss.both_ways:
            column_softmax = _ColumnSoftmax(self.chunks)
        for rows, blocks in self.chunks:
            gradient = self._add_rows(rows, blocks)
            if column_softmax is not None:
                self._add_columns(rows, column_softmax(blocks), gradient)
            self.gradients.add(rows, gradient)

    def factors(self) -> list[Tensor | float]:
        """Return what the summed gradients of queries, keys and scale are to be multiplied by."""
        count = self.student.shape[0]
        factor = self.student.scale / count
        return [factor, factor, 1 / (count * self.loss.temperature)]

    def _add_rows(self, rows: slice, blocks: list[Tensor]) -> Tensor:
        """Add the loss of a chunk's rows; return its gradient [C, K] by the similarities."""
        scores = blocks
        if self.loss.softmax:
            scores = [block.log_softmax(1) for block in blocks]
        loss, gradient = self._row_loss(rows, scores)
        self.value += loss / self.student.shape[0]
        return gradient

    def _add_columns(self, rows: slice, scores: list[Tensor], gradient: Tensor) -> None:
        """Add a chunk's share of the loss of columns, and its gradient to that of the rows."""
        row_count, column_count = self.student.shape
        loss, column_gradient = self._row_loss(rows, scores)
        self.value += loss / column_count
        gradient.add_(column_gradient, alpha=row_count / column_count)

    def _row_loss(self, rows: slice, scores: list[Tensor]) -> RowLossOutput:
        return self.loss.row_loss(ScratchScores(rows.start, *scores))


def _dtype_of(sides: list[Similarity]) -> torch.dtype:
    """Return float64 if any rows are, else float32."""
    for side in sides:
        if torch.float64 in (side.queries.dtype, side.keys.dtype):
            return torch.float64
    return torch.float32


class _Chunks:
    """The rows of each chunk with the similarities [C, K] of each side.

    They are computed again in each iteration, unless there is only one chunk.
    """

    def __init__(self, sides: list[Similarity], size: int):
        self.sides = sides
        count = sides[0].shape[0]
        self.slices = [slice(start, start + size) for start in range(0, count, size)]
        self.only_blocks: list[Tensor] | None = None
        if len(self.slices) == 1:
            self.only_blocks = self._blocks(self.slices[0])

    def __iter__(self) -> Iterator[tuple[slice, list[Tensor]]]:
        for rows in self.slices:
            yield rows, self.only_blocks or self._blocks(rows)

    def _blocks(self, rows: slice) -> list[Tensor]:
        return [side.block(rows) for side in self.sides]


class _ColumnSoftmax:
    """The log-softmax over whole columns of each side, for chunks of rows.

    Of several chunks the first walk collects the normalization of the columns.
    """

    def __init__(self, chunks: _Chunks):
        self.columns: list[_Columns] = []
        if chunks.only_blocks is not None:
            return
        self.columns = [_Columns(side) for side in chunks.sides]
        for _, blocks in chunks:
            for column, block in zip(self.columns, blocks, strict=True):
                column.add(block)

    def __call__(self, blocks: list[Tensor]) -> list[Tensor]:
        """Return the log-probabilities [C, K] of a chunk of each side."""
        if not self.columns:
            return [block.log_softmax(0) for block in blocks]
        pairs = zip(self.columns, blocks, strict=True)
        return [column.log_softmax(block) for column, block in pairs]


class _Columns:
    """The normalization of whole columns whose similarities are seen one chunk at a time."""

    def __init__(self, side: Similarity):
        self.maximum = side.keys.new_full((len(side.keys),), -torch.inf)
        self.sum = torch.zeros_like(self.maximum)

    def add(self, block: Tensor) -> None:
        """Take in a chunk: each column's maximum, and its sum of exponentials relative to it."""
        maximum = torch.maximum(self.maximum, block.amax(0))
        rescaling = self.maximum.sub_(maximum).exp_()
        added = (block - maximum).exp_().sum(0)
        self.sum = self.sum.mul_(rescaling).add_(added)
        self.maximum = maximum

    def log_softmax(self, block: Tensor) -> Tensor:
        """Return the log-probabilities of a chunk, after all chunks have been taken in."""
        return (block - self.maximum).sub_(self.sum.log())


class _Gradients:
    """Sums over chunks of the wanted gradients of queries, keys and scale, but for a factor."""

    def __init__(self, side: Similarity, wanted: list[bool]):
        self.side = side
        wants_queries, wants_keys, wants_scale = wanted
        self.queries = torch.empty_like(side.queries) if wants_queries else None
        self.keys = torch.zeros_like(side.keys) if wants_keys else None
        self.scale = torch.zeros_like(side.scale) if wants_scale else None

    def add(self, rows: slice, gradient: Tensor) -> None:
        """Add a chunk's share, given the gradient [C, K] by its similarities."""
        queries = self.side.queries[rows]
        if self.keys is not None:
            self.keys.addmm_(gradient.T, queries)
        if self.queries is None and self.scale is None:
            return
        target = None if self.queries is None else self.queries[rows]
        by_queries = torch.mm(gradient, self.side.keys, out=target)
        if self.scale is not None:
            self.scale += (by_queries * queries).sum()


class _KnownGradients(torch.autograd.Function):
    """A value whose gradients are known already, but for a factor each."""

    @staticmethod
    def forward(ctx, value, factors, queries, keys, scale, *sums):
        ctx.factors = factors
        ctx.save_for_backward(*sums)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, incoming):
        gradients = []
        for factor, known in zip(ctx.factors, ctx.saved_tensors, strict=True):
            gradient = None if known is None else (incoming * factor) * known
            gradients.append(gradient)
        return None, None, *gradients, None, None, None
