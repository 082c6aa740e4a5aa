"""The int8 code of a cache: one affine map per dimension, ``value = code * scale + offset``.

The map is per dimension and not per row, since CLIP's features have a few huge dimensions that
would waste a row's range. The code is fitted on a sample and widened by a margin; a value outside
it is refused, never clipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dimefm.errors import CacheError
from dimefm.runtime.vectors import unit_rows

TOP = 127  # codes run from -127 to 127
MARGIN = 0.5  # the range of the sample is widened by this fraction, half of it at each end
NARROWEST = 1e-4  # narrowest range of a dimension
SHORTEST = 1e-12  # least length that a row is divided by
LARGEST_SQUARED = 1e15  # of which sums of squares stay in the range of float32
SAMPLE = 2048  # rows that the error is measured on; the KL compares each row with all others


@dataclass(frozen=True)
class AffineQuantizer:
    """The affine code of each dimension: ``scale`` and ``offset``, both float32 [D]."""

    scale: np.ndarray
    offset: np.ndarray

    @staticmethod
    def from_fields(fields: dict) -> AffineQuantizer:
        """Return the code that a manifest holds; raise ValueError when it is no code."""
        scale = np.array(fields["scale"], dtype=np.float32)
        offset = np.array(fields["offset"], dtype=np.float32)
        has_shape = scale.ndim == 1 and scale.shape == offset.shape
        if not has_shape or not _are_usable(scale, offset):
            raise ValueError(
                "code: scale and offset must be equally long lists of finite numbers, scale above 0"
            )
        return AffineQuantizer(scale, offset)

    def fields(self) -> dict:
        """Return plain values for a manifest; short decimals that read back as the same float32."""
        return {"scale": _decimals(self.scale), "offset": _decimals(self.offset)}

    def encode(self, rows: np.ndarray, first: int = 0) -> np.ndarray:
        """Return int8 codes of ``rows`` [n, D].

        ``first`` is the number of the first row, for messages. Raises CacheError naming the row and
        the dimension of a value that lies outside the code.
        """
        centered = rows.astype(np.float32) - self.offset
        codes = np.rint(centered / self.scale)
        if codes.size:
            largest = np.abs(codes).max()
            if not largest <= TOP:  # also when it is NaN
                raise self._outside(rows, codes, first)
        return codes.astype(np.int8)

    def holds(self, rows: np.ndarray) -> bool:
        """Return whether every value of ``rows`` [n, D] lies inside the code."""
        codes = np.rint((rows.astype(np.float32) - self.offset) / self.scale)
        return bool(np.abs(codes).max(initial=0) <= TOP)

    def _outside(self, rows: np.ndarray, codes: np.ndarray, first: int) -> CacheError:
        """Return the error that names the first value outside the code."""
        outside = ~(np.abs(codes) <= TOP)
        row, dimension = np.argwhere(outside)[0].tolist()
        value = float(rows[row, dimension])
        middle = self.offset[dimension]
        reach = TOP * self.scale[dimension]
        low = float(middle - reach)
        high = float(middle + reach)
        number = first + row
        return CacheError(
            f"row {number}, dimension {dimension}: {value:.5g} lies outside the int8 code's"
            f" {low:.5g} to {high:.5g}, which was fitted on a sample. Fix: extract as float16, then"
            " dimefm cache convert --dtype int8 fits every row"
        )

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return float32 rows of int8 ``codes`` [.., D]."""
        rows = codes.astype(np.float32)
        rows *= self.scale
        rows += self.offset
        return rows


def _are_usable(scale: np.ndarray, offset: np.ndarray) -> bool:
    if not np.isfinite(offset).all():
        return False
    if not np.isfinite(scale).all():
        return False
    return bool((scale > 0).all())


def _decimals(values: np.ndarray) -> list[float]:
    return [float(str(value)) for value in values]


class QuantizerFitter:
    """Fits a code to rows that come in blocks; keeps evenly spaced rows to measure its error."""

    def __init__(self, rows: int):
        """``rows`` is how many will come."""
        self._every = -(-rows // SAMPLE)
        self._seen = 0
        self._low = np.empty(0)
        self._high = np.empty(0)
        self._kept: list[np.ndarray] = []
        self.shortest = np.inf  # length of the shortest row so far

    def add(self, rows: np.ndarray) -> None:
        """Widen the ranges to ``rows`` [n, D]."""
        if not len(rows):
            return
        low = rows.min(0).astype(np.float64)
        high = rows.max(0).astype(np.float64)
        if self._seen:
            low = np.minimum(self._low, low)
            high = np.maximum(self._high, high)
        self._low = low
        self._high = high
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
        self.shortest = min(self.shortest, float(lengths.min()))
        first_kept = -self._seen % self._every
        kept = rows[first_kept :: self._every]
        self._kept.append(kept.astype(np.float32))
        self._seen += len(rows)

    def code(self, margin: float = MARGIN) -> AffineQuantizer:
        """Return the code whose range holds every row and ``margin`` more.

        Raises CacheError when there was no row.
        """
        if not self._seen:
            raise CacheError(
                "no row could be encoded to fit the int8 code on. Fix: repair the sources, or use"
                " --dtype float16"
            )
        span = (self._high - self._low) * (1 + margin)
        span = np.maximum(span, NARROWEST)
        scale = span / (2 * TOP)
        offset = (self._low + self._high) / 2
        return AffineQuantizer(
            scale=scale.astype(np.float32),
            offset=offset.astype(np.float32),
        )

    def quantization_error(self, code: AffineQuantizer, logit_scale: float) -> dict:
        """Return the error of ``code`` on the kept rows, for a manifest."""
        rows = np.concatenate(self._kept)
        coded = code.decode(code.encode(rows))
        return quantization_error(rows, coded, logit_scale)


def quantization_error(rows: np.ndarray, coded: np.ndarray, logit_scale: float) -> dict:
    """Return what storing ``rows`` [n, D] as ``coded`` [n, D] costs: a dict for the manifest.

    ``min_cosine`` and ``mean_cosine`` are of a row with its stored form. ``kl`` is of the softmax
    of ``logit_scale`` x cosines of a row with all others, exact against stored, averaged over the
    rows, in nats. ``rows`` is n.
    """
    exact = directions(rows)
    stored = directions(coded)
    cosines = np.einsum("nd,nd->n", exact, stored, dtype=np.float64)
    exact_logits = logit_scale * (exact @ exact.T)
    stored_logits = logit_scale * (stored @ stored.T)
    kl = _kl(exact_logits, stored_logits)
    return {
        "rows": len(rows),
        "min_cosine": round(float(cosines.min()), 7),
        "mean_cosine": round(float(cosines.mean()), 7),
        "kl": float(f"{kl:.3g}"),
        "logit_scale": float(logit_scale),
    }


def directions(rows: np.ndarray) -> np.ndarray:
    """Return float32 rows of unit length, also of rows whose squares leave the range of float32."""
    largest = float(np.abs(rows).max(initial=0))
    if largest > LARGEST_SQUARED:
        rows = rows.astype(np.float64)
        return unit_rows(rows, eps=SHORTEST).astype(np.float32)
    return unit_rows(rows.astype(np.float32), eps=SHORTEST)


def _kl(exact_logits: np.ndarray, stored_logits: np.ndarray) -> float:
    """Return the mean KL of the rows' softmaxes, without a row's similarity to itself."""
    if len(exact_logits) < 2:
        return 0.0
    exact = _log_softmax(exact_logits)
    stored = _log_softmax(stored_logits)
    probability = np.exp(exact)
    np.fill_diagonal(exact, 0)
    np.fill_diagonal(stored, 0)
    terms = probability * (exact - stored)
    per_row = terms.sum(1, dtype=np.float64)
    return float(per_row.mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the log-softmax of each row without its diagonal; ``logits`` is overwritten."""
    np.fill_diagonal(logits, -np.inf)
    logits -= logits.max(1, keepdims=True)
    total = np.exp(logits).sum(1, keepdims=True)
    logits -= np.log(total)
    return logits
