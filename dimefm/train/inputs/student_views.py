"""What a student sees of an image in training: from the bytes of its file to pixels, as the recipe
says.

JPEGs are decoded by libjpeg-turbo, at a half, a quarter or an eighth of their size where the view
has pixels enough then; resizing is antialiased, on 8-bit pixels. Of an image that ``dimefm pack``
made small, a view is the same part as of the whole one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dimefm.data.images.color_jitter import ColorJitter
from dimefm.data.images.decode import Photo, photos_of
from dimefm.data.images.random_crop import RandomCrop
from dimefm.data.images.resize import Box, Size, cropped, resized, scaled, shorter_side
from dimefm.data.views.image_views import ViewPolicy
from dimefm.recipe import Recipe

COLOURS = {"moco-v2": ColorJitter()}  # augmentations that change colours too
# times the pixels of the view, to each side: what is left of the difference is 0.2 to 0.5 grey
# levels on average
SPARE = 2
BICUBIC = ("clip-kd",)  # augmentations whose crops are resized so; the others' are bilinear


@dataclass(frozen=True)
class CropSpec:
    """Where a view lies: a ``box`` in an image of ``size``, mirrored or not.

    With ``canvas`` the image is first resized to ``size`` (bicubic); without, ``size`` is its own,
    and it is cropped as it is.
    """

    size: Size
    box: Box
    flip: bool
    canvas: bool

    def needs(self, side: int) -> tuple[float, float]:
        """Return (width, height): so many pixels of the whole image have all that a view of
        ``side`` pixels can show.
        """
        if self.canvas:
            return SPARE * self.size[0], SPARE * self.size[1]
        left, top, right, bottom = self.box
        return SPARE * self.size[0] * side / (right - left), SPARE * self.size[1] * side / (
            bottom - top
        )


class StudentTransform(ABC):
    """The views of one run, ``size`` pixels wide and high. Threads may share one."""

    @staticmethod
    def from_recipe(recipe: Recipe, views: ViewPolicy | None, size: int) -> StudentTransform:
        """Return the viewer of a recipe whose image caches hold ``views`` (None: the centre view,
        or no caches).
        """
        if recipe.crops == "replay" and views is not None:
            return Replay(recipe, size, views)
        return Center(recipe, size) if recipe.crops == "center" else Free(recipe, size)

    def __init__(self, recipe: Recipe, size: int):
        self.size, self.colour, self.interpolation = size, COLOURS.get(recipe.augment), "bicubic"

    def __call__(self, data: bytes, key: str, view: int, seed: int) -> np.ndarray:
        """Return uint8 pixels [S, S, 3] of a view of the image file ``data``; raise BadRow for a
        file that gives none.

        Pure in its arguments. Where the cache's views are replayed, ``key`` and ``view`` select the
        crop and ``seed`` the colours; else ``seed`` selects both.
        """
        return self.several(data, key, [(view, seed)])[0]

    def several(self, data: bytes, key: str, shown: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Return what a call gives for each (view, seed), to the bit; what they share is decoded
        and resized once.
        """
        cuts: list[CropSpec] = []

        def needs(width: int, height: int) -> list[tuple[float, float]]:
            cuts.extend(self.cut((width, height), key, view, seed) for view, seed in shown)
            return [cut.needs(self.size) for cut in cuts]

        photos, canvases = photos_of(data, needs), dict[tuple[Size, Size], np.ndarray]()
        found = [
            self._pixels(photo, cut, canvases) for photo, cut in zip(photos, cuts, strict=True)
        ]
        if self.colour is None:
            return found
        return [self.colour(pixels, seed) for pixels, (_, seed) in zip(found, shown, strict=True)]

    @abstractmethod
    def cut(self, size: Size, key: str, view: int, seed: int) -> CropSpec:
        """Return where the view lies in an upright image of ``size``, its own before it was
        packed.
        """

    def _pixels(
        self, photo: Photo, cut: CropSpec, canvases: dict[tuple[Size, Size], np.ndarray]
    ) -> np.ndarray:
        """Return the view of a decoded image; ``canvases`` are the image resized, by the sizes
        before and after.
        """
        pixels, size = photo.pixels, (photo.pixels.shape[1], photo.pixels.shape[0])
        if cut.canvas and size != cut.size:
            if (size, cut.size) not in canvases:
                canvases[size, cut.size] = resized(pixels, cut.size, "bicubic")
            pixels, size = canvases[size, cut.size], cut.size
        found = cropped(
            pixels, scaled(cut.box, cut.size, size), (self.size, self.size), self.interpolation
        )
        return found[:, ::-1] if cut.flip else found


class Free(StudentTransform):
    """Random crops, whatever the teacher saw; of the image as it is, or with its shorter side at
    ``resize`` pixels first.
    """

    def __init__(self, recipe: Recipe, size: int):
        super().__init__(recipe, size)
        self.augment, self.side = (
            RandomCrop(recipe.crop_scale, recipe.crop_ratio, recipe.flip),
            recipe.resize,
        )
        self.interpolation = "bicubic" if recipe.augment in BICUBIC else "bilinear"

    def cut(self, size: Size, key: str, view: int, seed: int) -> CropSpec:
        size = shorter_side(size, self.side) if self.side else size
        return CropSpec(size, *self.augment.draw(*size, seed), canvas=bool(self.side))


class Replay(StudentTransform):
    """The crops and flips that the teacher saw; the colours, if the recipe has any, are the
    student's alone.
    """

    def __init__(self, recipe: Recipe, size: int, views: ViewPolicy):
        super().__init__(recipe, size)
        self.views = views

    def cut(self, size: Size, key: str, view: int, seed: int) -> CropSpec:
        return CropSpec(size, *self.views.draw(key, view, *size), canvas=False)


class Center(StudentTransform):
    """The centre, as CLIP's transform cuts it: the shorter side to the view's size (bicubic), then
    the middle.
    """

    def cut(self, size: Size, key: str, view: int, seed: int) -> CropSpec:
        side, short = self.size, min(size)
        width, height = (side if length == short else int(side * length / short) for length in size)
        left, top = round((width - side) / 2), round((height - side) / 2)
        return CropSpec((width, height), (left, top, left + side, top + side), False, canvas=True)
