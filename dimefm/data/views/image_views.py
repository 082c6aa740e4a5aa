"""Views that a cache can promise and a student can replay: which crop and flip view v of an image
is, for all time.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dimefm.data.images.random_crop import RandomCrop
from dimefm.data.images.resize import Box
from dimefm.data.views.patch_tokens import TokenPolicy
from dimefm.data.views.text_views import TextPolicy
from dimefm.errors import CacheError, RecipeError, did_you_mean
from dimefm.runtime.seeding import seed_of

VERSION = 1  # of the function that draws: RandomCrop.draw, seeded as ViewPolicy.draw does
RECIPE = {
    "scale": "crop_scale",
    "ratio": "crop_ratio",
    "flip": "flip",
}  # a policy's field, and the recipe's for the same


SETTINGS = ("scale", "ratio", "flip", "seed")  # keys of --view-recipe


@dataclass(frozen=True)
class ViewPolicy:
    """``count`` random crops and flips of each image, drawn from ``seed``, the image's key, the
    view's number and its size.

    ``scale`` and ``ratio`` bound the area share and the aspect ratio of a crop; ``flip`` is the
    probability of a mirror image; ``version`` is that of the drawing function.
    """

    count: int
    seed: int = 0
    scale: tuple[float, float] = RandomCrop.scale
    ratio: tuple[float, float] = RandomCrop.ratio
    flip: float = RandomCrop.flip
    version: int = VERSION

    @staticmethod
    def parse(count: int | None, settings: Mapping[str, Any]) -> ViewPolicy | None:
        """Return the policy of ``--views COUNT --view-recipe KEY=VALUE...``, None without a count.

        Raises RecipeError for settings without a count, an unknown key, and an impossible value.
        """
        if count is None:
            for key, value in settings.items():
                raise RecipeError(
                    f"--view-recipe {key}={value!r}: describes augmented views. Fix: say how many"
                    " with --views K"
                )
            return None
        values = {key: _checked(key, value) for key, value in settings.items()}
        return ViewPolicy(count, **values)

    @staticmethod
    def from_manifest(how: dict) -> ViewPolicy | None:
        """Return the policy of a manifest's ``how``, None for a cache of one plain view.

        Raises CacheError when the views were drawn by another version of the drawing function.
        """
        fields = how.get("views")
        if fields is None:
            return None
        if fields.get("version") != VERSION:
            raise CacheError(
                f"the views were drawn by version {fields.get('version')} of the drawing, this"
                f" dimefm has {VERSION}. Fix: train with the dimefm that extracted them, or extract"
                " the images again"
            )
        values: dict = {
            key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
        }
        return ViewPolicy(**values)

    def how(self) -> dict:
        """Return the policy as the manifest states it: plain JSON values."""
        fields = dataclasses.asdict(self)
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()
        }

    def draw(self, key: str, view: int, width: int, height: int) -> tuple[Box, bool]:
        """Return (crop box in pixels of the upright image, whether it is mirrored) of view 0 <=
        ``view`` < count.

        A pure function of the policy, the row's ``key``, ``view`` and the image's size, of a packed
        image that before it was packed; not of what the crop is resized to.
        """
        return RandomCrop(self.scale, self.ratio, self.flip).draw(
            width, height, seed_of(self.seed, view, key)
        )


def row_keys(keys: list[str], policy: ViewPolicy | TextPolicy | TokenPolicy | None) -> list[str]:
    """Return the keys of what is cached of rows with these keys: ``KEY#VIEW``, row by row; KEY for
    one view.
    """
    return (
        keys
        if policy is None
        else [f"{key}#{view}" for key in keys for view in range(policy.count)]
    )


def _checked(key: str, value: Any) -> Any:
    """Return the value of a key of ``--view-recipe``; raise RecipeError unless it is possible."""
    if key == "seed":
        possible, expected = type(value) is int, "int"
    elif key == "flip":
        possible, expected = _is_number(value) and 0 <= value <= 1, "0 <= flip <= 1"
    elif key == "scale":
        possible, expected = _is_range(value, most=1.0), "0 < low <= high <= 1"
    elif key == "ratio":
        possible, expected = _is_range(value, most=sys.float_info.max), "0 < low <= high"
    else:
        raise RecipeError(f"--view-recipe {key}: unknown key: {did_you_mean(key, SETTINGS)}")
    if not possible:
        raise RecipeError(f"--view-recipe: '{key}' is {value!r}; expected {expected}")
    if isinstance(value, list | tuple):
        return tuple(float(bound) for bound in value)
    return float(value) if key == "flip" else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_range(value: Any, most: float) -> bool:
    """Tell whether a value is a pair of positive numbers in order, up to ``most``."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    low, high = value
    return _is_number(low) and _is_number(high) and 0 < low <= high <= most
