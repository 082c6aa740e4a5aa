"""The quickstart's raw data, made from a seed without a network: real handwritten digits and
rendered scenes.

Digits are the 1,797 scans of ``sklearn.datasets.load_digits`` (8x8 grey), drawn as 32x32 RGB in
dark ink or in chalk. Scenes are one of 6 shapes in one of 8 colours (48 classes), at varying
places, sizes and tilts on a noisy background, sometimes in addition to a small second shape, with a
caption from varied patterns. The three splits (pairs, images, test) share nothing: no scan and no
scene is in two of them.

    FOLDER/pairs.tar          KEY.png + KEY.txt: what the teacher learns from
    FOLDER/images.tar         KEY.png: images without text, for distillation
    FOLDER/sentences.txt      one sentence a line, made apart from all images
    FOLDER/eval/digits/       classnames.txt (10)  templates.txt  test.tar: KEY.png + KEY.cls
    FOLDER/eval/shapes/       classnames.txt (48)  templates.txt  test.tar
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE = 32
"""Width and height of every image, in pixels."""

OVERSAMPLE = 4
"""Scenes are drawn this many times larger and averaged down, which smooths their edges."""

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

COLOURS = {
    "red": (220, 40, 40),
    "orange": (250, 140, 20),
    "yellow": (245, 225, 60),
    "green": (40, 165, 70),
    "cyan": (60, 210, 220),
    "blue": (45, 80, 220),
    "purple": (135, 55, 180),
    "pink": (250, 150, 195),
}

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")

SCENES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
"""The 48 class names of the scenes, e.g. ``"red circle"``; the class number is the index here."""

UPRIGHT = -math.pi / 2
"""The angle, in radians, at which a shape's first corner points up."""

GROUNDS = {
    "white": (240, 240, 240),
    "grey": (128, 128, 128),
    "black": (18, 18, 18),
    "brown": (105, 70, 45),
    "navy": (20, 30, 85),
    "beige": (225, 205, 170),
}

PLACES = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)

SCENE_PATTERNS = (
    "{a} {colour} {shape}",
    "{a} {colour} {shape} on a {ground} background",
    "{size} {colour} {shape}",
    "{size} {colour} {shape} on a {ground} background",
    "{a} {colour} {shape} at the {place}",
    "{size} {colour} {shape} at the {place} of the picture",
    "the {shape} is {colour}",
    "the {shape} at the {place} is {colour} and the background is {ground}",
    "a picture of {a} {colour} {shape}",
    "{a} {colour} {shape} painted on {ground}",
)

DIGIT_PATTERNS = (
    "a handwritten {digit}",
    "the digit {digit}",
    "the number {digit} written by hand",
    "somebody wrote {a} {digit} with {ink}",
    "{a} {digit} in {ink}",
    "a picture of the digit {digit}",
    "handwriting: {digit}",
    "the handwritten number {digit} in {ink}",
)

TEMPLATES = {
    "digits": (
        "a handwritten {}",
        "the digit {}",
        "the number {} written by hand",
        "a picture of the digit {}",
    ),
    "shapes": ("a {}", "the {}", "a picture of a {}", "a {} on a plain background"),
}


@dataclass(frozen=True)
class Sizes:
    """How many rows each part of the raw data has."""

    pairs: int
    images: int
    sentences: int
    test_digits: int
    test_shapes: int


@dataclass(frozen=True)
class Mix:
    """How many digits and scenes one split holds, and which scans (a slice of the shuffled ones) it
    may draw.
    """

    digits: int
    scenes: int
    scans: slice

    def scaled(self, scale: float) -> Mix:
        """Return the mix with both counts times ``scale``, at least one scene per class and two of
        each digit.
        """
        return Mix(
            max(20, round(self.digits * scale)),
            max(len(SCENES), round(self.scenes * scale)),
            self.scans,
        )


PAIRS = Mix(digits=3200, scenes=5600, scans=slice(0, 700))
UNPAIRED = Mix(digits=3200, scenes=6400, scans=slice(700, 1300))
TEST = Mix(digits=497, scenes=960, scans=slice(1300, 1797))
SENTENCES = Mix(digits=1000, scenes=3000, scans=slice(0, 0))


@dataclass(frozen=True)
class Item:
    """One example: PNG bytes, its sentence, and its class number within its own family (digits or
    scenes).
    """

    image: bytes
    text: str
    label: int


@dataclass(frozen=True)
class Scene:
    """What is to be drawn. Places and sizes are in fractions of the side; ``angle`` in radians."""

    colour: str
    shape: str
    ground: str
    x: float
    y: float
    radius: float
    angle: float

    @property
    def words(self) -> dict[str, str]:
        """Return the words that the sentence patterns may use."""
        size = (
            "a small"
            if self.radius < 0.3
            else "a large"
            if self.radius > 0.36
            else article(self.colour)
        )
        row, column = (0 if at < 0.43 else 2 if at > 0.57 else 1 for at in (self.y, self.x))
        return {
            "a": article(self.colour),
            "colour": self.colour,
            "shape": self.shape,
            "ground": self.ground,
            "size": size,
            "place": PLACES[row][column],
        }


def write(folder: Path, seed: int = 0, scale: float = 1.0) -> Sizes:
    """Write the raw data under ``folder`` and return the counts.

    The same seed and scale give the same bytes (with the same Pillow, zlib and numpy). ``scale``
    multiplies all counts (with a few rows of every class at least); the test digits stop at the 497
    scans there are, while the other splits draw a scan several times, never twice alike. Each file
    appears under its name only when it is whole.

    Raises ValueError when ``scale`` is not a positive number.
    """
    folder = Path(folder)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be above 0 and finite, found {scale}")
    scans = _Scans(seed)
    pairs = _split(scans, PAIRS.scaled(scale), seed, 1)
    images = _split(scans, UNPAIRED.scaled(scale), seed, 2)
    sentences = _sentences(SENTENCES.scaled(scale), seed)
    test = TEST.scaled(scale)
    digits = list(
        _digits(scans, Mix(min(test.digits, TEST.digits), 0, test.scans), _generator(seed, 4))
    )
    shapes = list(_scenes(test.scenes, _generator(seed, 5)))
    _write_tar(
        folder / "pairs.tar", ({"png": item.image, "txt": item.text.encode()} for item in pairs)
    )
    _write_tar(folder / "images.tar", ({"png": item.image} for item in images))
    _write_lines(folder / "sentences.txt", sentences)
    for name, classes, items in (("digits", DIGITS, digits), ("shapes", SCENES, shapes)):
        home = folder / "eval" / name
        _write_tar(
            home / "test.tar",
            ({"png": item.image, "cls": str(item.label).encode()} for item in items),
        )
        _write_lines(home / "classnames.txt", classes)
        _write_lines(home / "templates.txt", TEMPLATES[name])
    return Sizes(len(pairs), len(images), len(sentences), len(digits), len(shapes))


def article(word: str) -> str:
    """Return the indefinite article of ``word``."""
    return "an" if word[0] in "aeiou" and word != "one" else "a"


def draw_scene(scene: Scene, other: Scene | None, noise: np.ndarray) -> np.ndarray:
    """Return the pixels of ``scene``, uint8 [SIDE, SIDE, 3].

    ``other`` is drawn first, so it never hides the scene's own shape. ``noise`` [SIDE, SIDE, 3] is
    in grey levels.
    """
    side = SIDE * OVERSAMPLE
    canvas = Image.new("RGB", (side, side), GROUNDS[scene.ground])
    pen = ImageDraw.Draw(canvas)
    for each in (other, scene):
        if each is not None:
            _draw_shape(pen, each, side)
    pixels = np.asarray(canvas.reduce(OVERSAMPLE), dtype=np.float32) + noise
    return np.clip(pixels, 0, 255).astype(np.uint8)


def draw_digit(
    scan: np.ndarray, ink: float, paper: np.ndarray, place: Sequence[int], noise: np.ndarray
) -> np.ndarray:
    """Return the pixels of a digit, uint8 [SIDE, SIDE, 3].

    ``scan`` [8, 8] holds 0 (paper) to 16 (ink). It is enlarged (bicubic) to ``place[2]`` pixels
    with its corner at ``place[:2]``; ``ink`` and ``paper`` [3] are levels 0 to 255; ``noise``
    [SIDE, SIDE, 3] is added in grey levels.
    """
    left, top, size = place
    stroke = Image.fromarray(np.uint8(scan * 15.9375)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    cover = np.zeros((SIDE, SIDE, 1), np.float32)
    cover[top : top + size, left : left + size, 0] = np.asarray(stroke, np.float32) / 255
    return np.clip(paper * (1 - cover) + ink * cover + noise, 0, 255).astype(np.uint8)


class _Scans:
    """The handwritten digits in an order drawn from the seed."""

    def __init__(self, seed: int):
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        order = _generator(seed, 0).permutation(len(labels))
        self.images = images[order].reshape(-1, 8, 8)
        self.labels = labels[order]


def _generator(seed: int, part: int) -> np.random.Generator:
    """Return the random numbers of one part of the data; parts do not disturb each other."""
    return np.random.default_rng([seed, part])


def _split(scans: _Scans, mix: Mix, seed: int, part: int) -> list[Item]:
    """Return digits and scenes in mixed order."""
    random = _generator(seed, part)
    items = [*_digits(scans, mix, random), *_scenes(mix.scenes, random)]
    return [items[i] for i in random.permutation(len(items))]


def _sentences(mix: Mix, seed: int) -> list[str]:
    """Return sentences about digits and scenes that were never drawn, in mixed order."""
    random = _generator(seed, 3)
    lines = [
        _say_digit(DIGITS[i % 10], bool(random.integers(2)), random) for i in range(mix.digits)
    ]
    for i in range(mix.scenes):
        scene = _scene(i % len(SCENES), random)
        lines.append(_say_scene(scene, _other(scene, random), random))
    return [lines[i] for i in random.permutation(len(lines))]


def _digits(scans: _Scans, mix: Mix, random: np.random.Generator) -> Iterator[Item]:
    """Draw ``mix.digits`` digits, going round the scans that the mix may use."""
    allowed = range(len(scans.labels))[mix.scans]
    for i in range(mix.digits):
        row = allowed[i % len(allowed)]
        chalk = bool(random.integers(2))
        paper = random.uniform(0, 70, 3) if chalk else random.uniform(185, 255, 3)
        ink = random.uniform(200, 255) if chalk else random.uniform(0, 70)
        size = int(random.integers(26, SIDE + 1))
        left, top = (int(at) for at in random.integers(0, SIDE - size + 1, 2))
        pixels = draw_digit(scans.images[row], ink, paper, (left, top, size), _noise(random))
        label = int(scans.labels[row])
        yield Item(_png(pixels), _say_digit(DIGITS[label], chalk, random), label)


def _scenes(count: int, random: np.random.Generator) -> Iterator[Item]:
    """Draw ``count`` scenes, each class as often as the others."""
    for i in range(count):
        label = i % len(SCENES)
        scene = _scene(label, random)
        other = _other(scene, random)
        yield Item(
            _png(draw_scene(scene, other, _noise(random))), _say_scene(scene, other, random), label
        )


def _scene(label: int, random: np.random.Generator) -> Scene:
    """Return a scene of class ``label`` at a random place that keeps the shape inside the
    picture.
    """
    colour, shape = SCENES[label].split()
    radius = random.uniform(0.24, 0.42)
    x, y = random.uniform(radius, 1 - radius, 2)
    ground = list(GROUNDS)[random.integers(len(GROUNDS))]
    return Scene(colour, shape, ground, x, y, radius, UPRIGHT + random.uniform(-0.4, 0.4))


def _other(scene: Scene, random: np.random.Generator) -> Scene | None:
    """Return, one time in six, a small shape of another colour in the corner farthest from
    ``scene``.
    """
    draw = random.integers(6)
    colours = [name for name in COLOURS if name != scene.colour]
    colour, shape = colours[random.integers(len(colours))], SHAPES[random.integers(len(SHAPES))]
    angle = UPRIGHT + random.uniform(-0.4, 0.4)
    x, y = (0.86 if at < 0.5 else 0.14 for at in (scene.x, scene.y))
    return None if draw else Scene(colour, shape, scene.ground, x, y, 0.12, angle)


def _say_scene(scene: Scene, other: Scene | None, random: np.random.Generator) -> str:
    """Return a sentence about ``scene``; half of the sentences with a second shape mention it."""
    text = SCENE_PATTERNS[random.integers(len(SCENE_PATTERNS))].format_map(scene.words)
    if random.integers(2) and other is not None:
        text += f" with a small {other.colour} {other.shape}"
    return text


def _say_digit(digit: str, chalk: bool, random: np.random.Generator) -> str:
    """Return a sentence about a handwritten digit."""
    ink = "white chalk" if chalk else "dark ink"
    pattern = DIGIT_PATTERNS[random.integers(len(DIGIT_PATTERNS))]
    return pattern.format(digit=digit, a=article(digit), ink=ink)


def _noise(random: np.random.Generator) -> np.ndarray:
    """Return Gaussian noise [SIDE, SIDE, 3] of a random strength, 0 to 8 grey levels."""
    return random.standard_normal((SIDE, SIDE, 3), dtype=np.float32) * np.float32(
        random.uniform(0, 8)
    )


def _draw_shape(pen: ImageDraw.ImageDraw, scene: Scene, side: int) -> None:
    """Draw one shape on a canvas of ``side`` pixels."""
    x, y, radius = scene.x * side, scene.y * side, scene.radius * side
    fill = COLOURS[scene.colour]
    if scene.shape == "circle":
        radius *= 0.9
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    elif scene.shape == "ring":
        pen.ellipse(
            (x - radius, y - radius, x + radius, y + radius),
            outline=fill,
            width=max(2, round(radius * 0.36)),
        )
    else:
        turned = [
            (
                x + radius * far * math.cos(scene.angle + turn),
                y + radius * far * math.sin(scene.angle + turn),
            )
            for far, turn in OUTLINES[scene.shape]
        ]
        pen.polygon(turned, fill=fill)


def _regular(corners: int, inner: float | None = None) -> tuple[tuple[float, float], ...]:
    """Return (distance, angle) of a regular polygon's corners; with ``inner``, of a star's tips and
    notches.
    """
    if inner is None:
        return tuple((1.0, 2 * math.pi * i / corners) for i in range(corners))
    return tuple((1.0 if i % 2 == 0 else inner, math.pi * i / corners) for i in range(2 * corners))


def _cross(half: float) -> tuple[tuple[float, float], ...]:
    """Return (distance, angle) of the 12 corners of a plus sign whose arms are ``2 * half``
    wide.
    """
    tip, near = math.atan2(half, 1), math.pi / 4
    corners = ((math.hypot(1, half), -tip), (math.hypot(1, half), tip), (half * math.sqrt(2), near))
    return tuple(
        (far, turn + math.pi / 2 * quarter) for quarter in range(4) for far, turn in corners
    )


OUTLINES = {
    "square": tuple((1.0, math.pi / 4 + turn) for _, turn in _regular(4)),
    "triangle": _regular(3),
    "star": _regular(5, inner=0.42),
    "cross": _cross(0.3),
}
"""Corners of the straight-edged shapes as (distance, angle) around their centre, for a radius of
1.
"""


def _png(pixels: np.ndarray) -> bytes:
    """Return ``pixels``, uint8 [H, W, 3], as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _write_tar(path: Path, samples: Iterable[dict[str, bytes]]) -> None:
    """Write a webdataset shard: sample i is the files ``i.EXTENSION``, with no time, owner or order
    of the machine.
    """
    with (
        _whole(path) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for i, sample in enumerate(samples):
            for extension, data in sorted(sample.items()):
                member = tarfile.TarInfo(f"{i:06d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write one line per string, UTF-8, with ``\\n`` on every system."""
    with _whole(path) as temporary:
        temporary.write_bytes("".join(f"{line}\n" for line in lines).encode())


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Give a temporary path, and rename it to ``path`` when the block ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
