"""The int8 code of a cache: one affine map per dimension, ``value = code * scale + offset``.

Per dimension and not per row, since CLIP's features have a few huge dimensions that would waste a
row's range. The code is fitted on a sample and widened by a margin; a value outside it is refused,
never clipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dimefm.errors import CacheError

TOP = 127  # codes run from -127 to 127
MARGIN = 0.5  # the range of the sample is widened by this share of it, half at each end
LEAST = 1e-4  # narrowest range of a dimension
SAMPLE = 2048  # rows that the effect is measured on; the KL compares each with all others


@dataclass(frozen=True)
class AffineQuantizer:
    """``scale`` and ``offset``, both float32 [D]."""

    scale: np.ndarray
    offset: np.ndarray

    @staticmethod
    def from_fields(fields: dict) -> AffineQuantizer:
        """Return the code that a manifest holds; raise ValueError when it is none."""
        scale, offset = (np.array(fields[name], dtype=np.float32) for name in ("scale", "offset"))
        if (
            scale.ndim != 1
            or scale.shape != offset.shape
            or not (np.isfinite(offset) & np.isfinite(scale) & (scale > 0)).all()
        ):
            raise ValueError(
                "code: scale and offset must be equally long lists of finite numbers, scale above 0"
            )
        return AffineQuantizer(scale, offset)

    def fields(self) -> dict:
        """Return plain values for a manifest; short decimals that read back as the same float32."""
        return {
            "scale": [float(str(x)) for x in self.scale],
            "offset": [float(str(x)) for x in self.offset],
        }

    def encode(self, rows: np.ndarray, first: int = 0) -> np.ndarray:
        """Return int8 codes of ``rows`` [n, D]; raise CacheError naming row and dimension when one
        does not fit.

        ``first`` is the number of the first row, for messages.
        """
        codes = np.rint((rows.astype(np.float32) - self.offset) / self.scale)
        if codes.size and not np.abs(codes).max() <= TOP:
            row, d = (int(i) for i in np.argwhere(~(np.abs(codes) <= TOP))[0])
            low, high = (float(self.offset[d] + side * TOP * self.scale[d]) for side in (-1, 1))
            raise CacheError(
                f"row {first + row}, dimension {d}: {float(rows[row, d]):.5g} lies outside the int8"
                f" code's {low:.5g} to {high:.5g}, which was fitted on a sample; extract as"
                " float16, then dimefm cache convert --dtype int8 fits every row"
            )
        return codes.astype(np.int8)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return float32 rows of int8 ``codes`` [.., D]."""
        rows = codes.astype(np.float32)
        rows *= self.scale
        rows += self.offset
        return rows


class QuantizerFitter:
    """A code fitted to rows that come in portions; evenly spaced ones are kept to measure what it
    costs.
    """

    def __init__(self, rows: int):
        """``rows`` is how many will come."""
        self._every, self._seen = -(-rows // SAMPLE), 0
        self._low = self._high = np.empty(0)
        self._kept: list[np.ndarray] = []

    def add(self, rows: np.ndarray) -> None:
        """Take up rows [n, D]."""
        if not len(rows):
            return
        low, high = rows.min(0).astype(np.float64), rows.max(0).astype(np.float64)
        self._low = np.minimum(self._low, low) if self._seen else low
        self._high = np.maximum(self._high, high) if self._seen else high
        self._kept.append(rows[-self._seen % self._every :: self._every].astype(np.float32))
        self._seen += len(rows)

    def code(self, margin: float = MARGIN) -> AffineQuantizer:
        """Return the code whose range holds every row and ``margin`` more; raise CacheError when
        there was no row.
        """
        if not self._seen:
            raise CacheError(
                "no row could be encoded to fit the int8 code on; mend the sources, or take --dtype"
                " float16"
            )
        span = np.maximum((self._high - self._low) * (1 + margin), LEAST)
        return AffineQuantizer(
            (span / (2 * TOP)).astype(np.float32), ((self._low + self._high) / 2).astype(np.float32)
        )

    def quantization_error(self, code: AffineQuantizer, logit_scale: float) -> dict:
        """Return what ``code`` costs on the rows kept, for a manifest."""
        rows = np.concatenate(self._kept)
        return quantization_error(rows, code.decode(code.encode(rows)), logit_scale)


def quantization_error(rows: np.ndarray, coded: np.ndarray, logit_scale: float) -> dict:
    """Return what storing ``rows`` [n, D] as ``coded`` [n, D] costs: a dict for the manifest.

    ``min_cosine`` and ``mean_cosine`` of a row with its stored form; ``kl``: of the softmax of
    ``logit_scale`` x cosines of a row with all others, exact against stored, averaged over the
    rows, in nats; ``rows`` is n.
    """
    exact, stored = _unit(rows), _unit(coded)
    cosines = np.einsum("nd,nd->n", exact, stored, dtype=np.float64)
    kl = _kl(logit_scale * (exact @ exact.T), logit_scale * (stored @ stored.T))
    return {
        "rows": len(rows),
        "min_cosine": round(float(cosines.min()), 7),
        "mean_cosine": round(float(cosines.mean()), 7),
        "kl": float(f"{kl:.3g}"),
        "logit_scale": float(logit_scale),
    }


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _kl(exact: np.ndarray, stored: np.ndarray) -> float:
    """Return the mean KL of the rows' softmaxes, a row's similarity to itself left out."""
    if len(exact) < 2:
        return 0.0
    exact, stored = (_log_softmax(logits) for logits in (exact, stored))
    probability = np.exp(exact)
    np.fill_diagonal(exact, 0)
    np.fill_diagonal(stored, 0)
    return float((probability * (exact - stored)).sum(1, dtype=np.float64).mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    np.fill_diagonal(logits, -np.inf)
    logits -= logits.max(1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    return logits
