"""From the bytes of an image file to the input of an encoder, in one of two ways.

Manifests name the way.

============  ======================================================================================
``"turbo"``   libjpeg-turbo, then an antialiased resize of 8-bit pixels in torch; the device
              normalizes. Images are upright as EXIF says, transparency is dropped. On upright
              gray and RGB images it is open_clip's transform within one gray level, two in under
              1 of 1,000 values, and much faster.
``"pil"``     open_clip's own transform on the image as PIL opens it, to the last bit: EXIF is not
              read, palettes are resized without smoothing.
============  ======================================================================================

Both scale grays of more than 8 bits by their range (``images/deep.py``), which open_clip clips to
white or black, and refuse half pictures.

Rows are resized before columns, as Pillow did until version 13. Since then Pillow resizes columns
first when an image shrinks much more in height than in width (photos more than twice as tall as
wide): for these ``"pil"`` depends on Pillow's version, and ``"turbo"`` may be 5 gray levels off.

Both cut views out of the upright image: boxes are pixels of what ``images.decode`` returns; for a
packed image they are pixels of its original, rounded to the pixels of the packed one.

``open`` depends on the bytes alone, so that several encoders may share its result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dimefm.data.images.decode import (
    Photo,
    as_bad_row,
    load,
    opened,
    original_size,
    photo_of,
    rgb_pixels,
    upright,
)
from dimefm.data.images.deep import shallow
from dimefm.data.images.resize import Box, cropped, resized, scaled
from dimefm.errors import RecipeError, did_you_mean
from dimefm.models import open_clip

Crop = tuple[Box, bool]  # crop box, whether it is mirrored
Draw = Callable[[int, int], Iterable[Crop]]  # of each view of an image of this width and height
D = TypeVar("D")  # an image as a decoder opens it


class Decoder(ABC, Generic[D]):
    """Turns image files into the input of an encoder with this ``preprocess`` (of its card).

    Threads may share one decoder. An opened image is the same for all encoders: any decoder of the
    same name takes it, and none changes it.
    """

    name: str

    @abstractmethod
    def __init__(self, preprocess: dict): ...

    @abstractmethod
    def open(self, data: bytes) -> D:
        """Return the decoded image of a file; raise BadRow for a file that gives none."""

    @abstractmethod
    def whole(self, image: D) -> Tensor:
        """Return an opened image, resized and cropped as the encoder asks, [3, H, W].

        ``finish`` makes it an input. Raises BadRow for an image that cannot be resized.
        """

    @abstractmethod
    def views(self, image: D, draw: Draw) -> list[Tensor]:
        """Return the views of an opened image, [3, H, W] each.

        ``draw`` gets the image's width and height when upright, and returns the box of each view
        and whether it is mirrored. A view is cropped, resized to the encoder's size whatever its
        shape, and mirrored. Raises BadRow as ``whole`` does.
        """

    def __call__(self, data: bytes) -> Tensor:
        """Return ``whole`` of the image of a file."""
        return self.whole(self.open(data))

    @abstractmethod
    def finish(self, batch: Tensor, device: torch.device) -> Tensor:
        """Return stacked images or views [B, 3, H, W] as float32 on ``device``, normalized."""


class Pil(Decoder[Image.Image]):
    """open_clip's transform, bit for bit; float32 from the start.

    Views are upright, and then go through the same resize.
    """

    name = "pil"

    def __init__(self, preprocess: dict):
        self._transform = open_clip.transform_of(preprocess)
        plain = open_clip.without_resize(preprocess)
        self._squash = open_clip.transform_of({**plain, "resize_mode": "squash"})

    def open(self, data: bytes) -> Image.Image:
        with opened(data) as image:
            load(image, data)
            return image

    def whole(self, image: Image.Image) -> Tensor:
        with as_bad_row():
            return self._transform(shallow(image))

    def views(self, image: Image.Image, draw: Draw) -> list[Tensor]:
        with as_bad_row():
            size = original_size(image)
            image = Image.fromarray(rgb_pixels(upright(image)))
        views: list[Tensor] = []
        for box, is_mirrored in draw(*size):
            box = scaled(box, size, image.size)
            crop = image.crop(box)
            if is_mirrored:
                crop = ImageOps.mirror(crop)
            views.append(self._squash(crop))
        return views

    def finish(self, batch: Tensor, device: torch.device) -> Tensor:
        return batch.to(device, non_blocking=True)


class Turbo(Decoder[Photo]):
    """libjpeg-turbo and torch; uint8 until ``finish``, so that fewer bytes go to the device.

    The whole image is resized and then cropped: to crop first would shift the rest by fractions of
    a pixel.
    """

    name = "turbo"

    def __init__(self, preprocess: dict):
        size = preprocess["size"]
        if isinstance(size, int):
            size = (size, size)
        self._height, self._width = size
        self._mode = preprocess["resize_mode"]
        self._resize_to = preprocess.get("resize_to")
        self._fill = preprocess["fill_color"]
        self._filter = self._filter_of(preprocess["interpolation"])
        self._mean = _per_channel(preprocess["mean"])
        self._std = _per_channel(preprocess["std"])

    def _filter_of(self, interpolation: str) -> str:
        """Return the filter by which open_clip resizes."""
        is_square = self._height == self._width or self._resize_to is not None
        if self._mode == "shortest" and not is_square:  # open_clip is always bicubic then
            return "bicubic"
        return "bilinear" if interpolation == "bilinear" else "bicubic"

    def open(self, data: bytes) -> Photo:
        return photo_of(data)

    def whole(self, photo: Photo) -> Tensor:
        height, width, _ = photo.pixels.shape
        new_height, new_width = self._shape(height, width)
        pixels = resized(photo.pixels, (new_width, new_height), self._filter)
        return _planes(self._center(pixels))

    def views(self, photo: Photo, draw: Draw) -> list[Tensor]:
        height, width, _ = photo.pixels.shape
        views: list[Tensor] = []
        for box, is_mirrored in draw(*photo.size):
            box = scaled(box, photo.size, (width, height))
            size = (self._width, self._height)
            view = cropped(photo.pixels, box, size, self._filter)
            if is_mirrored:
                view = view[:, ::-1]
            views.append(_planes(view))
        return views

    def finish(self, batch: Tensor, device: torch.device) -> Tensor:
        pixels = batch.to(device, non_blocking=True).float()
        mean = self._mean.to(device)
        std = self._std.to(device)
        return pixels.div_(255).sub_(mean).div_(std)

    def _shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width to which open_clip resizes before it crops or pads."""
        if isinstance(self._resize_to, list | tuple):
            return self._resize_to[0], self._resize_to[1]
        if self._mode == "squash":
            return self._height, self._width
        is_square = self._height == self._width
        if self._resize_to is not None or (self._mode == "shortest" and is_square):
            size = self._resize_to or self._height
            shorter = min(height, width)
            new_height = int(size * height / shorter)
            new_width = int(size * width / shorter)
            return new_height, new_width
        ratio_of_heights = height / self._height
        ratio_of_widths = width / self._width
        if self._mode == "shortest":
            ratio = min(ratio_of_heights, ratio_of_widths)
        else:
            ratio = max(ratio_of_heights, ratio_of_widths)
        new_height = round(height / ratio)
        new_width = round(width / ratio)
        return max(1, new_height), max(1, new_width)

    def _center(self, pixels: np.ndarray) -> np.ndarray:
        """Return the center of pixels [h, w, 3] in the encoder's size, padded where too small."""
        height, width, _ = pixels.shape
        down = max(0, self._height - height)
        right = max(0, self._width - width)
        if down or right:
            edges = (_halves(down), _halves(right), (0, 0))
            pixels = np.pad(pixels, edges, constant_values=self._fill)
            height, width, _ = pixels.shape
        top = round((height - self._height) / 2)
        left = round((width - self._width) / 2)
        bottom = top + self._height
        right = left + self._width
        return pixels[top:bottom, left:right]


def _halves(length: int) -> tuple[int, int]:
    """Return the halves of a length, the first one rounded down."""
    half = length // 2
    return half, length - half


def _per_channel(values: Sequence[float]) -> Tensor:
    """Return a number for each channel as a tensor [3, 1, 1]."""
    return torch.tensor(values).view(-1, 1, 1)


def _planes(pixels: np.ndarray) -> Tensor:
    """Return pixels [H, W, 3] as a tensor [3, H, W].

    NumPy makes the copy: torch would wake its own threads for it.
    """
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return torch.from_numpy(planes)


DECODERS: dict[str, type[Decoder]] = {
    Turbo.name: Turbo,
    Pil.name: Pil,
}


def decoder(name: str, preprocess: dict) -> Decoder:
    """Return the decoder ``name`` for an encoder whose card has this ``preprocess``.

    Raises RecipeError when there is no decoder of that name.
    """
    if name not in DECODERS:
        raise RecipeError(f"unknown decoder '{name}': {did_you_mean(name, DECODERS)}")
    return DECODERS[name](preprocess)
