"""Sentences about the quickstart's images, from varied patterns."""

from __future__ import annotations

import numpy as np

from dimefm.quickstart.pictures import COLORS, SHAPES, Scene

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

SCENES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
"""The 48 class names of the scenes, e.g. ``"red circle"``; the class number is the index here."""

PLACES = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)

SCENE_PATTERNS = (
    "{a} {color} {shape}",
    "{a} {color} {shape} on a {ground} background",
    "{size} {color} {shape}",
    "{size} {color} {shape} on a {ground} background",
    "{a} {color} {shape} at the {place}",
    "{size} {color} {shape} at the {place} of the picture",
    "the {shape} is {color}",
    "the {shape} at the {place} is {color} and the background is {ground}",
    "a picture of {a} {color} {shape}",
    "{a} {color} {shape} painted on {ground}",
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
    "shapes": (
        "a {}",
        "the {}",
        "a picture of a {}",
        "a {} on a plain background",
    ),
}


def scene_sentence(scene: Scene, second: Scene | None, random: np.random.Generator) -> str:
    """Return a sentence about ``scene``; half of those with a second shape mention it."""
    pattern = SCENE_PATTERNS[random.integers(len(SCENE_PATTERNS))]
    sentence = pattern.format(
        a=article(scene.color),
        color=scene.color,
        shape=scene.shape,
        ground=scene.ground,
        size=_size(scene),
        place=PLACES[_third(scene.y)][_third(scene.x)],
    )
    mentions_second = random.integers(2)
    if mentions_second and second is not None:
        sentence += f" with a small {second.color} {second.shape}"
    return sentence


def digit_sentence(digit: str, chalk: bool, random: np.random.Generator) -> str:
    """Return a sentence about a handwritten digit, e.g. ``"seven"``."""
    ink = "white chalk" if chalk else "dark ink"
    pattern = DIGIT_PATTERNS[random.integers(len(DIGIT_PATTERNS))]
    return pattern.format(digit=digit, a=article(digit), ink=ink)


def article(word: str) -> str:
    """Return the indefinite article of ``word``."""
    starts_with_vowel = word[0] in "aeiou" and word != "one"
    return "an" if starts_with_vowel else "a"


def _size(scene: Scene) -> str:
    """Return the words for the size of a shape; a medium size is only an article."""
    if scene.radius < 0.3:
        return "a small"
    if scene.radius > 0.36:
        return "a large"
    return article(scene.color)


def _third(position: float) -> int:
    """Return 0, 1 or 2: in which third of the image a position, 0 to 1, lies."""
    if position < 0.43:
        return 0
    if position > 0.57:
        return 2
    return 1
