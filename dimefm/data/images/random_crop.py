"""Where random crops lie: drawn from a given seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dimefm.data.images.resize import Box


@dataclass(frozen=True)
class RandomCrop:
    """Random resized crop and flip.

    ``scale`` and ``ratio`` bound the area share and the aspect ratio of the crop; ``flip`` is the
    probability of a mirror image. DIME-FM: scale 0.08-1, ratio 3/4-4/3, flip 0.5 (released
    Training/datasets/build.py:32-59).
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def draw(self, width: int, height: int, seed: int) -> tuple[Box, bool]:
        """Return (crop box, whether it is mirrored) that ``seed`` selects in an image of ``width``
        x ``height`` pixels.
        """
        generator = np.random.default_rng(seed)
        return self._box(width, height, generator), bool(generator.random() < self.flip)

    def _box(self, width: int, height: int, draw: np.random.Generator) -> Box:
        """Return the crop: ten tries, then the largest centre crop of a legal ratio."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = width * height * draw.uniform(*self.scale)
            ratio = math.exp(draw.uniform(low, high))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = (
                    int(draw.integers(0, width - w + 1)),
                    int(draw.integers(0, height - h + 1)),
                )
                return left, top, left + w, top + h
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h
