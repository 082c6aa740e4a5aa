"""What a student sees of an image in training: from the bytes of its file to pixels.

JPEGs are decoded by libjpeg-turbo, at a half, a quarter or an eighth of their size where the view
has enough pixels then; resizing is antialiased, on 8-bit pixels. For an image that ``dimefm pack``
made small, a view is the same part as of the whole image.
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

COLOR_JITTER = {"moco-v2": ColorJitter()}
"""The color changes of augmentations that have some."""

BICUBIC = ("clip-kd",)
"""Augmentations whose crops are resized bicubic; those of the others are bilinear."""

OVERSAMPLING = 2
"""How many pixels a side is decoded with for each pixel of the view: what is left of the difference
to the whole image is 0.2 to 0.5 gray levels on average."""


ShownView = tuple[int, int]
"""A view to show: its number, and the seed of what is drawn for it."""


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
        """Return (width, height): the pixels that the whole image must have at least.

        They are enough for all that a view of ``side`` pixels can show.
        """
        width, height = self.size
        if self.canvas:
            return OVERSAMPLING * width, OVERSAMPLING * height
        left, top, right, bottom = self.box
        needed_width = OVERSAMPLING * width * side / (right - left)
        needed_height = OVERSAMPLING * height * side / (bottom - top)
        return needed_width, needed_height


class _Canvases:
    """Decoded images resized as a whole, each only once, by their sizes before and after."""

    def __init__(self) -> None:
        self._resized: dict[tuple[Size, Size], np.ndarray] = {}

    def get(self, pixels: np.ndarray, size: Size) -> np.ndarray:
        """Return the pixels [H, W, 3] of a decoded image in another size."""
        before = _size_of(pixels)
        if before == size:
            return pixels
        key = (before, size)
        if key not in self._resized:
            self._resized[key] = resized(pixels, size, "bicubic")
        return self._resized[key]


class StudentTransform(ABC):
    """The views of one run, ``size`` pixels wide and high. Threads may share one."""

    @staticmethod
    def from_recipe(recipe: Recipe, views: ViewPolicy | None, size: int) -> StudentTransform:
        """Return the transform of a recipe whose image caches hold ``views``.

        None: they hold the center view, or there are no caches.
        """
        if recipe.crops == "replay" and views is not None:
            return Replay(recipe, size, views)
        if recipe.crops == "center":
            return Center(recipe, size)
        return Free(recipe, size)

    def __init__(self, recipe: Recipe, size: int):
        self.size = size
        self.color_jitter = COLOR_JITTER.get(recipe.augment)
        self.interpolation = "bicubic"

    def __call__(self, data: bytes, key: str, view: int, seed: int) -> np.ndarray:
        """Return uint8 pixels [S, S, 3] of a view of the image file ``data``.

        It is a pure function of the arguments. Where the cache's views are replayed, ``key`` and
        ``view`` select the crop and ``seed`` the colors; else ``seed`` selects both. Raises BadRow
        for a file that gives no view.
        """
        (pixels,) = self.several(data, key, [(view, seed)])
        return pixels

    def several(self, data: bytes, key: str, shown: Sequence[ShownView]) -> list[np.ndarray]:
        """Return the same pixels as a call for each (view, seed).

        What the views share is decoded and resized once.
        """
        crops: list[CropSpec] = []

        def needs(width: int, height: int) -> list[tuple[float, float]]:
            size = (width, height)
            for view, seed in shown:
                crop = self.crop_spec(size, key, view, seed)
                crops.append(crop)
            return [crop.needs(self.size) for crop in crops]

        photos = photos_of(data, needs)
        canvases = _Canvases()
        views = []
        for photo, crop, (_, seed) in zip(photos, crops, shown, strict=True):
            pixels = self._crop(photo, crop, canvases)
            if self.color_jitter is not None:
                pixels = self.color_jitter(pixels, seed)
            views.append(pixels)
        return views

    @abstractmethod
    def crop_spec(self, size: Size, key: str, view: int, seed: int) -> CropSpec:
        """Return where the view lies in an upright image of ``size``.

        For a packed image that is its size before it was packed.
        """

    def _crop(self, photo: Photo, crop: CropSpec, canvases: _Canvases) -> np.ndarray:
        """Return the view of a decoded image."""
        pixels = photo.pixels
        if crop.canvas:
            pixels = canvases.get(pixels, crop.size)
        box = scaled(crop.box, crop.size, _size_of(pixels))
        size = (self.size, self.size)
        view = cropped(pixels, box, size, self.interpolation)
        if crop.flip:
            return view[:, ::-1]
        return view


def _size_of(pixels: np.ndarray) -> Size:
    """Return (width, height) of pixels [H, W, 3]."""
    height, width, _ = pixels.shape
    return width, height


class Free(StudentTransform):
    """Random crops, whatever the teacher saw.

    They are of the image as it is, or with its shorter side at ``resize`` pixels first.
    """

    def __init__(self, recipe: Recipe, size: int):
        super().__init__(recipe, size)
        self.random_crop = RandomCrop(recipe.crop_scale, recipe.crop_ratio, recipe.flip)
        self.shorter_side = recipe.resize
        if recipe.augment not in BICUBIC:
            self.interpolation = "bilinear"

    def crop_spec(self, size: Size, key: str, view: int, seed: int) -> CropSpec:
        resizes = bool(self.shorter_side)
        if resizes:
            size = shorter_side(size, self.shorter_side)
        box, flip = self.random_crop.draw(*size, seed)
        return CropSpec(size, box, flip, canvas=resizes)


class Replay(StudentTransform):
    """The crops and flips that the teacher saw; changes of color are the student's alone."""

    def __init__(self, recipe: Recipe, size: int, views: ViewPolicy):
        super().__init__(recipe, size)
        self.views = views

    def crop_spec(self, size: Size, key: str, view: int, seed: int) -> CropSpec:
        box, flip = self.views.draw(key, view, *size)
        return CropSpec(size, box, flip, canvas=False)


class Center(StudentTransform):
    """The center, as in CLIP's transform.

    The shorter side is resized to the view's size (bicubic), then the middle is cropped.
    """

    def crop_spec(self, size: Size, key: str, view: int, seed: int) -> CropSpec:
        width, height = self._canvas_size(size)
        left = round((width - self.size) / 2)
        top = round((height - self.size) / 2)
        right = left + self.size
        bottom = top + self.size
        box = (left, top, right, bottom)
        return CropSpec((width, height), box, flip=False, canvas=True)

    def _canvas_size(self, size: Size) -> Size:
        """Return the size of an image whose shorter side has the view's pixels.

        The longer side is rounded down.
        """
        width, height = size
        if width == height:
            return self.size, self.size
        if width < height:
            return self.size, int(self.size * height / width)
        return int(self.size * width / height), self.size
