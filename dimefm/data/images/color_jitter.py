"""Colors of training views: jitter, gray and blur, drawn from a given seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter
from torchvision.transforms.v2 import functional as F

from dimefm.runtime.seeding import seed_of


@dataclass(frozen=True)
class ColorJitter:
    """Random changes of color; a view for which none is drawn stays as it is.

    With probability ``jitter`` brightness, contrast and saturation are multiplied by 1 -
    ``strength`` to 1 + ``strength`` and the hue is turned by up to ``hue`` of the circle, in random
    order; with ``gray`` the view turns gray; with ``blur`` it is blurred by a Gaussian of
    ``radius[0]`` to ``radius[1]`` pixels. The defaults are MoCo v2's (arXiv 2003.04297) as DeCLIP
    has them (released imagenet_dataloader.py:14-150, MOCOV2); operations are torchvision's on PIL
    images.
    """

    jitter: float = 0.8
    strength: float = 0.4
    hue: float = 0.1
    gray: float = 0.2
    blur: float = 0.5
    radius: tuple[float, float] = (0.1, 2.0)

    def __call__(self, pixels: np.ndarray, seed: int) -> np.ndarray:
        """Return uint8 pixels [H, W, 3] with the changes of color that ``seed`` selects.

        The given array is never written to.
        """
        generator = np.random.default_rng(seed_of(seed, "colour"))
        probabilities = (self.jitter, self.gray, self.blur)
        jitter, gray, blur = generator.random(3) < probabilities
        if not (jitter or gray or blur):
            return pixels
        image = Image.fromarray(np.ascontiguousarray(pixels))
        if jitter:
            image = self._jittered(image, generator)
        if gray:
            image = F.to_grayscale(image, num_output_channels=3)
        if blur:
            radius = generator.uniform(*self.radius)
            image = image.filter(ImageFilter.GaussianBlur(radius))
        return np.asarray(image)

    def _jittered(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        low = max(0.0, 1 - self.strength)
        high = 1 + self.strength
        changes = [
            (F.adjust_brightness, generator.uniform(low, high)),
            (F.adjust_contrast, generator.uniform(low, high)),
            (F.adjust_saturation, generator.uniform(low, high)),
            (F.adjust_hue, generator.uniform(-self.hue, self.hue)),
        ]
        for number in generator.permutation(len(changes)):
            change, amount = changes[number]
            image = change(image, amount)
        return image
