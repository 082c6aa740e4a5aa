"""Random crops and flips, drawn from a given seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dimefm.data.images.resize import Box

Range = tuple[float, float]  # low, high
TRIES = 10  # crops that are drawn before the largest legal center crop is taken


@dataclass(frozen=True)
class RandomCrop:
    """Random resized crop and flip.

    ``scale`` and ``ratio`` bound the area share and the aspect ratio of the crop; ``flip`` is the
    probability of a mirror image. DIME-FM: scale 0.08-1, ratio 3/4-4/3, flip 0.5 (released
    Training/datasets/build.py:32-59).
    """

    scale: Range = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    flip: float = 0.5

    def draw(self, width: int, height: int, seed: int) -> tuple[Box, bool]:
        """Return (crop box, whether it is mirrored) for ``seed``.

        The image has ``width`` x ``height`` pixels.
        """
        generator = np.random.default_rng(seed)
        box = self._box(width, height, generator)
        mirrored = generator.random() < self.flip
        return box, bool(mirrored)

    def _box(
        self,
        width: int,
        height: int,
        generator: np.random.Generator,
    ) -> Box:
        """Return the crop: ten tries, then the largest center crop of a legal ratio."""
        low, high = self.ratio
        log_low = math.log(low)
        log_high = math.log(high)
        for _ in range(TRIES):
            share = generator.uniform(*self.scale)
            area = width * height * share
            log_ratio = generator.uniform(log_low, log_high)
            ratio = math.exp(log_ratio)
            crop_width = round(math.sqrt(area * ratio))
            crop_height = round(math.sqrt(area / ratio))
            if not 0 < crop_width <= width:
                continue
            if not 0 < crop_height <= height:
                continue
            left = generator.integers(0, width - crop_width + 1)
            top = generator.integers(0, height - crop_height + 1)
            return _box_at(int(left), int(top), crop_width, crop_height)
        return self._center_box(width, height)

    def _center_box(self, width: int, height: int) -> Box:
        """Return the largest center crop of a legal ratio."""
        low, high = self.ratio
        widest = round(height * high)
        highest = round(width / low)
        crop_width = min(width, max(1, widest))
        crop_height = min(height, max(1, highest))
        left = (width - crop_width) // 2
        top = (height - crop_height) // 2
        return _box_at(left, top, crop_width, crop_height)


def _box_at(left: int, top: int, width: int, height: int) -> Box:
    """Return the box of ``width`` x ``height`` pixels whose corner is at (left, top)."""
    right = left + width
    bottom = top + height
    return left, top, right, bottom
