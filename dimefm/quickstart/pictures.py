"""Draw the quickstart's images: scenes of simple shapes, and handwritten digits from scans."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIDE = 32
"""Width and height of every image, in pixels."""

OVERSAMPLE = 4
"""Scenes are drawn this many times larger and averaged down, which smooths their edges."""

COLORS = {
    "red": (220, 40, 40),
    "orange": (250, 140, 20),
    "yellow": (245, 225, 60),
    "green": (40, 165, 70),
    "cyan": (60, 210, 220),
    "blue": (45, 80, 220),
    "purple": (135, 55, 180),
    "pink": (250, 150, 195),
}

GROUNDS = {
    "white": (240, 240, 240),
    "grey": (128, 128, 128),
    "black": (18, 18, 18),
    "brown": (105, 70, 45),
    "navy": (20, 30, 85),
    "beige": (225, 205, 170),
}

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")

UPRIGHT = -math.pi / 2
"""The angle, in radians, at which a shape's first corner points up."""


@dataclass(frozen=True)
class Scene:
    """One shape on a background. Places and sizes are fractions of the side; radians for angles."""

    color: str
    shape: str
    ground: str
    x: float
    y: float
    radius: float
    angle: float


def draw_scene(scene: Scene, second: Scene | None, noise: np.ndarray) -> np.ndarray:
    """Return the pixels of ``scene``, uint8 [SIDE, SIDE, 3].

    The shape of ``second`` is drawn first, so it never hides the scene's shape. ``noise``
    [SIDE, SIDE, 3] is in gray levels.
    """
    side = SIDE * OVERSAMPLE
    canvas = Image.new("RGB", (side, side), GROUNDS[scene.ground])
    pen = ImageDraw.Draw(canvas)
    if second is not None:
        _draw_shape(pen, second, side)
    _draw_shape(pen, scene, side)
    small = canvas.reduce(OVERSAMPLE)
    pixels = np.asarray(small, dtype=np.float32) + noise
    return np.clip(pixels, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class DigitStyle:
    """How a digit is drawn: ``ink`` and ``paper`` [3] are levels 0 to 255, the rest is pixels."""

    ink: float
    paper: np.ndarray
    left: int
    top: int
    size: int


def draw_digit(scan: np.ndarray, style: DigitStyle, noise: np.ndarray) -> np.ndarray:
    """Return the pixels of a digit, uint8 [SIDE, SIDE, 3].

    ``scan`` [8, 8] holds 0 (paper) to 16 (ink) and is enlarged (bicubic) to ``style.size`` pixels.
    ``noise`` [SIDE, SIDE, 3] is in gray levels.
    """
    levels = np.uint8(scan * 15.9375)
    size = style.size
    stroke = Image.fromarray(levels).resize((size, size), Image.Resampling.BICUBIC)
    rows = slice(style.top, style.top + size)
    columns = slice(style.left, style.left + size)
    cover = np.zeros((SIDE, SIDE, 1), np.float32)
    cover[rows, columns, 0] = np.asarray(stroke, np.float32) / 255
    pixels = style.paper * (1 - cover) + style.ink * cover + noise
    return np.clip(pixels, 0, 255).astype(np.uint8)


def random_noise(random: np.random.Generator) -> np.ndarray:
    """Return Gaussian noise [SIDE, SIDE, 3] of a random strength, 0 to 8 gray levels."""
    noise = random.standard_normal((SIDE, SIDE, 3), dtype=np.float32)
    strength = np.float32(random.uniform(0, 8))
    return noise * strength


def to_png(pixels: np.ndarray) -> bytes:
    """Return ``pixels``, uint8 [H, W, 3], as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _draw_shape(pen: ImageDraw.ImageDraw, scene: Scene, side: int) -> None:
    """Draw the shape of a scene on a canvas of ``side`` pixels."""
    x = scene.x * side
    y = scene.y * side
    radius = scene.radius * side
    fill = COLORS[scene.color]
    if scene.shape == "circle":
        pen.ellipse(_square_around(x, y, radius * 0.9), fill=fill)
    elif scene.shape == "ring":
        width = max(2, round(radius * 0.36))
        pen.ellipse(_square_around(x, y, radius), outline=fill, width=width)
    else:
        corners = []
        for distance, turn in OUTLINES[scene.shape]:
            angle = scene.angle + turn
            corner_x = x + radius * distance * math.cos(angle)
            corner_y = y + radius * distance * math.sin(angle)
            corners.append((corner_x, corner_y))
        pen.polygon(corners, fill=fill)


def _square_around(x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    return (x - radius, y - radius, x + radius, y + radius)


Outline = tuple[tuple[float, float], ...]
"""Corners of a shape as (distance from the center, angle), for a radius of 1."""


def _polygon(corners: int, first_angle: float = 0.0) -> Outline:
    """Return the corners of a regular polygon."""
    outline = []
    for number in range(corners):
        outline.append((1.0, first_angle + 2 * math.pi * number / corners))
    return tuple(outline)


def _star(tips: int, inner: float) -> Outline:
    """Return the tips of a star and the notches between them, at the distance ``inner``."""
    outline = []
    for number in range(2 * tips):
        distance = 1.0 if number % 2 == 0 else inner
        outline.append((distance, math.pi * number / tips))
    return tuple(outline)


def _cross(half: float) -> Outline:
    """Return the 12 corners of a plus sign whose arms are ``2 * half`` wide."""
    tip_distance = math.hypot(1, half)
    tip_angle = math.atan2(half, 1)
    notch_distance = half * math.sqrt(2)
    outline = []
    for quarter in range(4):
        direction = math.pi / 2 * quarter
        outline.append((tip_distance, -tip_angle + direction))
        outline.append((tip_distance, tip_angle + direction))
        outline.append((notch_distance, math.pi / 4 + direction))
    return tuple(outline)


OUTLINES = {
    "square": _polygon(4, first_angle=math.pi / 4),
    "triangle": _polygon(3),
    "star": _star(5, inner=0.42),
    "cross": _cross(0.3),
}
"""Corners of the shapes with straight edges."""
