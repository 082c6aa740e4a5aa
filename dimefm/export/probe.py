"""Real rows for the gate: images and prompts on which a model and its export are compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dimefm.data import open_rows
from dimefm.errors import BadRow, DataError, DimefmError
from dimefm.models.encoder import Encoder
from dimefm.models.preprocess import decoder

IMAGES = 32  # of a user's folder at most
DRAWN = 16
MOST_TRIED = 4  # times as many rows are read, for bad ones among them

PLAIN_PROMPTS = (
    "a photo of a cat.",
    "a photo of a dog, a type of pet.",
    "a close-up photo of the wing of an aircraft",
    "an aerial view of a forest next to a river at dawn",
    "the number seven, written by hand in blue ink",
    "a low resolution picture of 3 red cars",
    "graffiti on a brick wall",
    "satellite image of annual crop land.",
    "a plate of spaghetti bolognese with parmesan cheese and basil",
    "two people sitting on a bench & looking at the sea",
    "LOGO of a Company (in black and white)",
    "an x-ray",
    "",
    "a very long sentence that names many things, such as apples, pears, plums, cherries, oranges,"
    " lemons, bananas, grapes, melons, figs, dates, nuts, carrots, beans, peas, corn, rice, wheat,"
    " bread, butter, milk, cheese, salt, pepper, sugar, honey, tea, coffee, and at the end a photo",
)
"""Prompts of several kinds: short and long, with signs, with nothing, and too long for a tower."""

ODD_PROMPTS = (
    "caf\u00e9 \u2014 na\u00efve \u201cquotes\u201d",
    "fish &amp; chips   on\ta  table",
)
"""Prompts that open_clip cleans: typographic signs, HTML entities, white space."""


@dataclass(frozen=True)
class Probe:
    """Pixels [B, 3, S, S] as the model's own preprocessing makes them, and their images.

    ``source`` says where the images are from.
    """

    images: tuple[Image.Image, ...]
    pixels: Tensor
    source: str


def make(encoder: Encoder, folder: Path | None = None, sources: tuple[str, ...] = ()) -> Probe:
    """Return images of ``folder``, else of ``sources`` that can be read, else drawn ones.

    Raises DataError when ``folder`` has no readable image.
    """
    if folder is not None:
        images = _images_of(str(folder))
        if not images:
            raise DataError(
                f"{folder}: has no image that can be read. Fix: name a folder of images with"
                " --check-images"
            )
        return _probe(encoder, images, f"{len(images)} images of {folder}")
    for source in sources:
        try:
            images = _images_of(source)
        except (DimefmError, OSError):  # it has moved since
            continue
        if images:
            return _probe(encoder, images, f"{len(images)} images of {source}")
    drawn = [_drawing(number) for number in range(DRAWN)]
    return _probe(encoder, drawn, f"{DRAWN} drawn pictures")


def _probe(encoder: Encoder, images: list[Image.Image], source: str) -> Probe:
    prepare = decoder("pil", encoder.image_preprocess)
    pixels = [prepare.whole(image) for image in images]
    batch = prepare.finish(torch.stack(pixels), torch.device("cpu"))
    return Probe(tuple(images), batch, source)


def _images_of(source: str) -> list[Image.Image]:
    """Return the first readable images of a source, as RGB."""
    rows = open_rows([source], "image")
    images: list[Image.Image] = []
    prepare = decoder("pil", {"size": 64})
    for number in range(min(len(rows), IMAGES * MOST_TRIED)):
        try:
            image = prepare.open(rows[number].image)
        except BadRow:
            continue
        images.append(image.convert("RGB"))
        if len(images) == IMAGES:
            break
    return images


def _drawing(number: int) -> Image.Image:
    """Return a picture of shapes on a gradient with some noise, drawn from ``number``."""
    random = np.random.default_rng(number)
    width, height = random.integers(180, 420, 2)
    across = np.linspace(0, 1, width)[None, :, None]
    down = np.linspace(0, 1, height)[:, None, None]
    first, second = random.uniform(0, 255, (2, 1, 1, 3))
    ground = first + (second - first) * (across + down) / 2
    noise = random.normal(0, 12, (height, width, 3))
    image = Image.fromarray(np.clip(ground + noise, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        color = tuple(int(value) for value in random.integers(0, 256, 3))
        left = int(random.integers(0, width - 20))
        top = int(random.integers(0, height - 20))
        right = left + int(random.integers(15, 160))
        bottom = top + int(random.integers(15, 160))
        draw = random.choice([pen.ellipse, pen.rectangle])
        draw((left, top, right, bottom), fill=color)
    return image
