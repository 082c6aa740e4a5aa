"""The quickstart's raw data, made from a seed without a network: real digits and drawn scenes.

Digits are the 1,797 scans of ``sklearn.datasets.load_digits`` (8x8 gray), drawn as 32x32 RGB in
dark ink or in chalk. Scenes are one of 6 shapes in one of 8 colors (48 classes), at varying places,
sizes and tilts on a noisy background, some with a small second shape, with a caption from
varied patterns. The three splits (pairs, images, test) share nothing: no scan and no scene is in
two of them.

    FOLDER/pairs.tar          KEY.png + KEY.txt: what the teacher learns from
    FOLDER/images.tar         KEY.png: images without text, for distillation
    FOLDER/sentences.txt      one sentence a line, which describe no image of these
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

from dimefm.quickstart.captions import (
    DIGITS,
    SCENES,
    TEMPLATES,
    digit_sentence,
    scene_sentence,
)
from dimefm.quickstart.pictures import (
    COLORS,
    GROUNDS,
    SHAPES,
    SIDE,
    UPRIGHT,
    DigitStyle,
    Scene,
    draw_digit,
    draw_scene,
    random_noise,
    to_png,
)


@dataclass(frozen=True)
class Sizes:
    """How many samples each part of the raw data has."""

    pairs: int
    images: int
    sentences: int
    test_digits: int
    test_shapes: int


@dataclass(frozen=True)
class Mix:
    """How many digits and scenes one split holds, and which of the shuffled scans it may draw."""

    digits: int
    scenes: int
    scans: slice

    def scaled(self, scale: float) -> Mix:
        """Return the mix with both counts times ``scale``, at least one scene of each class and two
        of each digit.
        """
        digits = max(2 * len(DIGITS), round(self.digits * scale))
        scenes = max(len(SCENES), round(self.scenes * scale))
        return Mix(digits, scenes, self.scans)


PAIRS = Mix(digits=3200, scenes=5600, scans=slice(0, 700))
UNPAIRED = Mix(digits=3200, scenes=6400, scans=slice(700, 1300))
TEST = Mix(digits=497, scenes=960, scans=slice(1300, 1797))
SENTENCES = Mix(digits=1000, scenes=3000, scans=slice(0, 0))

# Each part of the data has a number, so that its random numbers do not depend on the other parts.
SCANS_PART = 0
PAIRS_PART = 1
UNPAIRED_PART = 2
SENTENCES_PART = 3
TEST_DIGITS_PART = 4
TEST_SHAPES_PART = 5


@dataclass(frozen=True)
class Item:
    """One example: a PNG file, its sentence, and its class number among the digits or scenes."""

    image: bytes
    text: str
    label: int


def write(folder: Path, seed: int = 0, scale: float = 1.0) -> Sizes:
    """Write the raw data under ``folder`` and return the counts.

    The same seed and scale give the same bytes (with the same Pillow, zlib and numpy). ``scale``
    multiplies all counts (with a few samples of every class at least). There are at most 497 test
    digits, one for each scan; the other splits draw a scan several times, never twice alike. Each
    file appears under its name only when it is whole.

    Raises ValueError when ``scale`` is not a positive number.
    """
    folder = Path(folder)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be above 0 and finite, found {scale}")
    scans = _Scans(seed)
    pairs = _split(scans, PAIRS.scaled(scale), seed, PAIRS_PART)
    images = _split(scans, UNPAIRED.scaled(scale), seed, UNPAIRED_PART)
    sentences = _sentences(SENTENCES.scaled(scale), seed)
    test = TEST.scaled(scale)
    test_digits = Mix(min(test.digits, TEST.digits), 0, test.scans)
    digits = list(_digits(scans, test_digits, _generator(seed, TEST_DIGITS_PART)))
    shapes = list(_scenes(test.scenes, _generator(seed, TEST_SHAPES_PART)))

    paired_files = ({"png": item.image, "txt": item.text.encode()} for item in pairs)
    _write_tar(folder / "pairs.tar", paired_files)
    image_files = ({"png": item.image} for item in images)
    _write_tar(folder / "images.tar", image_files)
    _write_lines(folder / "sentences.txt", sentences)
    _write_test_set(folder / "eval/digits", digits, DIGITS, TEMPLATES["digits"])
    _write_test_set(folder / "eval/shapes", shapes, SCENES, TEMPLATES["shapes"])
    return Sizes(
        pairs=len(pairs),
        images=len(images),
        sentences=len(sentences),
        test_digits=len(digits),
        test_shapes=len(shapes),
    )


class _Scans:
    """The scans of handwritten digits [n, 8, 8] and their labels, in a random order."""

    def __init__(self, seed: int):
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        order = _generator(seed, SCANS_PART).permutation(len(labels))
        self.images = images[order].reshape(-1, 8, 8)
        self.labels = labels[order]


def _generator(seed: int, part: int) -> np.random.Generator:
    """Return the random numbers of one part of the data."""
    return np.random.default_rng([seed, part])


def _split(scans: _Scans, mix: Mix, seed: int, part: int) -> list[Item]:
    """Return the digits and scenes of a split in a random order."""
    random = _generator(seed, part)
    items = list(_digits(scans, mix, random))
    items += _scenes(mix.scenes, random)
    return [items[number] for number in random.permutation(len(items))]


def _sentences(mix: Mix, seed: int) -> list[str]:
    """Return sentences about digits and scenes that are never drawn, in a random order."""
    random = _generator(seed, SENTENCES_PART)
    lines = []
    for number in range(mix.digits):
        digit = DIGITS[number % len(DIGITS)]
        chalk = bool(random.integers(2))
        lines.append(digit_sentence(digit, chalk, random))
    for number in range(mix.scenes):
        scene = _random_scene(number % len(SCENES), random)
        second = _random_second_shape(scene, random)
        lines.append(scene_sentence(scene, second, random))
    return [lines[number] for number in random.permutation(len(lines))]


def _digits(scans: _Scans, mix: Mix, random: np.random.Generator) -> Iterator[Item]:
    """Draw ``mix.digits`` digits from the scans that the mix may use, one after the other."""
    allowed = range(len(scans.labels))[mix.scans]
    for number in range(mix.digits):
        scan = allowed[number % len(allowed)]
        chalk = bool(random.integers(2))
        style = _random_style(chalk, random)
        pixels = draw_digit(scans.images[scan], style, random_noise(random))
        label = int(scans.labels[scan])
        text = digit_sentence(DIGITS[label], chalk, random)
        yield Item(to_png(pixels), text, label)


def _random_style(chalk: bool, random: np.random.Generator) -> DigitStyle:
    """Return light chalk on dark paper, or dark ink on light paper, at a random place."""
    if chalk:
        paper = random.uniform(0, 70, 3)
        ink = random.uniform(200, 255)
    else:
        paper = random.uniform(185, 255, 3)
        ink = random.uniform(0, 70)
    size = int(random.integers(26, SIDE + 1))
    left, top = random.integers(0, SIDE - size + 1, 2)
    return DigitStyle(ink, paper, int(left), int(top), size)


def _scenes(count: int, random: np.random.Generator) -> Iterator[Item]:
    """Draw ``count`` scenes, one class after the other."""
    for number in range(count):
        label = number % len(SCENES)
        scene = _random_scene(label, random)
        second = _random_second_shape(scene, random)
        pixels = draw_scene(scene, second, random_noise(random))
        text = scene_sentence(scene, second, random)
        yield Item(to_png(pixels), text, label)


def _random_scene(label: int, random: np.random.Generator) -> Scene:
    """Return a scene of class ``label``, whose shape is inside the image."""
    color, shape = SCENES[label].split()
    radius = random.uniform(0.24, 0.42)
    x, y = random.uniform(radius, 1 - radius, 2)
    ground = _choose(list(GROUNDS), random)
    angle = _random_tilt(random)
    return Scene(color, shape, ground, x, y, radius, angle)


def _random_second_shape(scene: Scene, random: np.random.Generator) -> Scene | None:
    """Return, one time in six, a small shape of another color.

    It lies in the corner that is farthest from the shape of ``scene``.
    """
    is_absent = random.integers(6) > 0
    color = _choose([name for name in COLORS if name != scene.color], random)
    shape = _choose(SHAPES, random)
    angle = _random_tilt(random)
    if is_absent:
        return None
    x = 0.86 if scene.x < 0.5 else 0.14
    y = 0.86 if scene.y < 0.5 else 0.14
    return Scene(color, shape, scene.ground, x, y, 0.12, angle)


def _choose(names: Sequence[str], random: np.random.Generator) -> str:
    return names[random.integers(len(names))]


def _random_tilt(random: np.random.Generator) -> float:
    """Return an angle in radians that is at most 0.4 off the upright."""
    return UPRIGHT + random.uniform(-0.4, 0.4)


def _write_test_set(
    folder: Path, items: Sequence[Item], classes: Sequence[str], templates: Sequence[str]
) -> None:
    """Write a dataset for zero-shot evaluation."""
    files = ({"png": item.image, "cls": str(item.label).encode()} for item in items)
    _write_tar(folder / "test.tar", files)
    _write_lines(folder / "classnames.txt", classes)
    _write_lines(folder / "templates.txt", templates)


def _write_tar(path: Path, samples: Iterable[dict[str, bytes]]) -> None:
    """Write a webdataset shard: sample i is the files ``i.EXTENSION``.

    The members carry no time and no owner, so the bytes do not depend on the machine.
    """
    with (
        _whole(path) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for number, sample in enumerate(samples):
            for extension, content in sorted(sample.items()):
                member = tarfile.TarInfo(f"{number:06d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write one line per string, UTF-8, with ``\\n`` on every system."""
    text = "".join(f"{line}\n" for line in lines)
    with _whole(path) as temporary:
        temporary.write_bytes(text.encode())


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path, and rename it to ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
