"""From the bytes of an image file to what an encoder takes, in one of two ways that manifests name.

============  ======================================================================================
``"turbo"``   libjpeg-turbo, then an antialiased resize of 8-bit pixels in torch; the device
              normalises. Images are upright as EXIF says, 16-bit grays are scaled, transparency
              is dropped. On upright gray and RGB images it is open_clip's transform within one
              grey level, two in under 1 of 1,000 values, and much faster.
``"pil"``     open_clip's own transform on the image as PIL opens it, to the last bit: EXIF is not
              looked at, 16-bit grays are clipped to white, palettes are resized without smoothing.
============  ======================================================================================

Rows are resized before columns, as Pillow did until version 13, which resizes images that shrink
much more in height than in width (photos more than twice as tall as wide) the other way round:
there ``"pil"`` depends on Pillow's version, and in photos ``"turbo"`` may be 5 grey levels from it.

Both cut views out of the upright image: boxes are pixels of what ``images.decode`` returns; of a
packed image, of what it was packed from, rounded to the pixels that there are.

What depends on the bytes alone, ``open``, stands apart from the rest, so that several encoders may
share it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dimefm.data.images.decode import Photo, as_bad_row, opened, original_size, photo_of, upright
from dimefm.data.images.resize import Box, cropped, resized, scaled
from dimefm.errors import RecipeError, did_you_mean
from dimefm.models import open_clip

Draw = Callable[
    [int, int], Iterable[tuple[Box, bool]]
]  # (width, height) -> (crop box, whether it is mirrored) per view
D = TypeVar("D")  # an image as a decoder opens it


class Decoder(ABC, Generic[D]):
    """Image files to the input of an encoder with this ``preprocess`` (of its card). Threads may
    share one decoder.

    An opened image is the same for all encoders: any decoder of the same name takes it, and none
    changes it.
    """

    name: str

    @abstractmethod
    def __init__(self, preprocess: dict): ...

    @abstractmethod
    def open(self, data: bytes) -> D:
        """Return the decoded image of a file; raise BadRow for a file that gives none."""

    @abstractmethod
    def whole(self, image: D) -> Tensor:
        """Return an opened image, resized and cropped as the encoder asks, [3, H, W]; ``finish``
        makes it an input.

        Raises BadRow for an image that cannot be resized.
        """

    @abstractmethod
    def views(self, image: D, draw: Draw) -> list[Tensor]:
        """Return [3, H, W] of each view of an opened image that ``draw`` names, given its width and
        height when upright.

        A view is cropped, resized to the encoder's size whatever its shape, and mirrored. Raises
        BadRow as ``whole`` does.
        """

    def __call__(self, data: bytes) -> Tensor:
        """Return ``whole`` of the image of a file."""
        return self.whole(self.open(data))

    @abstractmethod
    def finish(self, batch: Tensor, device: torch.device) -> Tensor:
        """Return stacked images or views [B, 3, H, W] as float32 on ``device``, normalised as the
        encoder asks.
        """


class Pil(Decoder[Image.Image]):
    """open_clip's transform, bit for bit; float32 from the start. Views are upright, and then go
    through the same resize.
    """

    name = "pil"

    def __init__(self, preprocess: dict):
        self._transform = open_clip.transform_of(preprocess)
        self._squash = open_clip.transform_of({**preprocess, "resize_mode": "squash"})

    def open(self, data: bytes) -> Image.Image:
        with opened(data) as image:
            image.load()
            return image

    def whole(self, image: Image.Image) -> Tensor:
        with as_bad_row():
            return self._transform(image)

    def views(self, image: Image.Image, draw: Draw) -> list[Tensor]:
        with as_bad_row():
            size, image = original_size(image), upright(image)
        crops = [(image.crop(scaled(box, size, image.size)), flip) for box, flip in draw(*size)]
        return [self._squash(ImageOps.mirror(crop) if flip else crop) for crop, flip in crops]

    def finish(self, batch: Tensor, device: torch.device) -> Tensor:
        return batch.to(device, non_blocking=True)


class Turbo(Decoder[Photo]):
    """libjpeg-turbo and torch; uint8 until ``finish``, a quarter of the bytes on the way to the
    device.

    The whole image is resized and then cropped: to crop first would shift the rest by fractions of
    a pixel.
    """

    name = "turbo"

    def __init__(self, preprocess: dict):
        size = preprocess["size"]
        self._size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        self._mode, self._fill = preprocess["resize_mode"], preprocess["fill_color"]
        uneven = (
            self._mode == "shortest" and self._size[0] != self._size[1]
        )  # there open_clip is always bicubic
        self._filter = (
            "bilinear" if preprocess["interpolation"] == "bilinear" and not uneven else "bicubic"
        )
        self._mean, self._std = (
            torch.tensor(preprocess[key]).view(-1, 1, 1) for key in ("mean", "std")
        )

    def open(self, data: bytes) -> Photo:
        return photo_of(data)

    def whole(self, photo: Photo) -> Tensor:
        height, width = self._shape(*photo.pixels.shape[:2])
        return _planes(self._center(resized(photo.pixels, (width, height), self._filter)))

    def views(self, photo: Photo, draw: Draw) -> list[Tensor]:
        views, (height, width) = [], photo.pixels.shape[:2]
        for box, flip in draw(*photo.size):
            view = cropped(
                photo.pixels,
                scaled(box, photo.size, (width, height)),
                self._size[::-1],
                self._filter,
            )
            views.append(_planes(view[:, ::-1] if flip else view))
        return views

    def finish(self, batch: Tensor, device: torch.device) -> Tensor:
        pixels = batch.to(device, non_blocking=True).float()
        return pixels.div_(255).sub_(self._mean.to(device)).div_(self._std.to(device))

    def _shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that open_clip resizes an image to, before it crops or
        pads.
        """
        if self._mode == "squash":
            return self._size
        if self._mode == "shortest" and self._size[0] == self._size[1]:
            size, short = self._size[0], min(height, width)
            return int(size * height / short), int(size * width / short)
        ratios = height / self._size[0], width / self._size[1]
        ratio = min(ratios) if self._mode == "shortest" else max(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _center(self, pixels: np.ndarray) -> np.ndarray:
        """Return the centre of pixels [h, w, 3] in the encoder's size; where they end, the fill
        colour begins.
        """
        down, right = (
            max(0, side - have) for side, have in zip(self._size, pixels.shape[:2], strict=True)
        )
        if down or right:
            edges = ((down // 2, down - down // 2), (right // 2, right - right // 2), (0, 0))
            pixels = np.pad(pixels, edges, constant_values=self._fill)
        top, left = (
            round((have - side) / 2)
            for side, have in zip(self._size, pixels.shape[:2], strict=True)
        )
        return pixels[top : top + self._size[0], left : left + self._size[1]]


def _planes(pixels: np.ndarray) -> Tensor:
    """Return pixels [H, W, 3] as a tensor [3, H, W]. NumPy copies: torch would wake its own threads
    for it.
    """
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


DECODERS: dict[str, type[Decoder]] = {kind.name: kind for kind in (Turbo, Pil)}


def decoder(name: str, preprocess: dict) -> Decoder:
    """Return the decoder ``name`` for an encoder whose card has this ``preprocess``; RecipeError
    when there is none.
    """
    if name not in DECODERS:
        raise RecipeError(f"unknown decoder '{name}': {did_you_mean(name, DECODERS)}")
    return DECODERS[name](preprocess)
