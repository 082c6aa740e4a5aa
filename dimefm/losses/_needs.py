"""What losses need of the data and of the student: one member each, with all that is said of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, StrEnum


class Provider(Enum):
    """Who provides what a loss needs: the data, or one or both towers of the student."""

    SOURCES = "sources"
    STUDENT = "student"
    IMAGE_TOWER = "image tower"
    TEXT_TOWER = "text tower"

    @property
    def is_model(self) -> bool:
        """Whether the student provides it, not the data."""
        return self is not Provider.SOURCES


@dataclass(frozen=True)
class _Facts:
    """What is said of a need; see :class:`Need`."""

    help: str
    remedy: str
    provider: Provider = Provider.SOURCES
    recipe_keys: tuple[str, ...] = ()


class Need(StrEnum):
    """Something that a loss needs; equal to its name, a string.

    * ``help`` describes it in ``dimefm losses``.
    * ``remedy`` completes "remove the loss, or ..." where it is lacking.
    * ``provider`` is what has it: the sources, or a part of the student.
    * ``recipe_keys``: a recipe that sets all of these provides it; () where the run's kind decides.
    """

    help: str
    remedy: str
    provider: Provider
    recipe_keys: tuple[str, ...]

    def __new__(cls, name: str, facts: _Facts) -> Need:
        member = str.__new__(cls, name)
        member._value_ = name
        member.help = facts.help
        member.remedy = facts.remedy
        member.provider = facts.provider
        member.recipe_keys = facts.recipe_keys
        return member

    TEACHER = (
        "teacher",
        _Facts(
            help="a teacher's embeddings (--image-cache, --text-cache)",
            remedy="train on sources with a teacher's features",
        ),
    )
    SENTENCES = (
        "sentences",
        _Facts(
            help="a teacher's embeddings of texts (--text-cache)",
            remedy="name a cache of texts (--text-cache is not given; --no-vl-loss removes VL)",
        ),
    )
    PAIRS = (
        "pairs",
        _Facts(
            help="images with their own captions (--text student)",
            remedy="train on pairs (text = 'student')",
        ),
    )
    WIDTH = (
        "width",
        _Facts(
            help="a student of the teacher's embedding dimension",
            remedy="train a student of the teacher's dimension",
            provider=Provider.STUDENT,
        ),
    )
    BIAS = (
        "bias",
        _Facts(
            help="a student with a logit bias, such as SigLIP's",
            remedy="train a student with 'init_logit_bias' in its config, both towers of it",
            provider=Provider.STUDENT,
        ),
    )
    VIEWS = (
        "views",
        _Facts(
            help="two or more views of each image in a step (views_per_step)",
            remedy="set views_per_step = 2",
            recipe_keys=("views_per_step",),
        ),
    )
    MASKED = (
        "masked",
        _Facts(
            help="captions with hidden words (mask_words)",
            remedy="set mask_words = 0.15",
            recipe_keys=("mask_words",),
        ),
    )
    NEIGHBOURS = (
        "neighbours",
        _Facts(
            help="a graph that dimefm cache neighbours has made (neighbours)",
            remedy="name a graph with neighbours = FOLDER",
            recipe_keys=("neighbours",),
        ),
    )
    TOKENS = (
        "tokens",
        _Facts(
            help="caches of extract-features --tokens (image_tokens, text_tokens)",
            remedy="name token caches with image_tokens and text_tokens",
            recipe_keys=("image_tokens", "text_tokens"),
        ),
    )
    HIDDEN = (
        "hidden",
        _Facts(
            help="an image tower that trains: its features before the last projection",
            remedy="train an image tower",
            provider=Provider.IMAGE_TOWER,
        ),
    )
    PATCHES = (
        "patches",
        _Facts(
            help="an image tower that trains: its patch tokens",
            remedy="train an image tower",
            provider=Provider.IMAGE_TOWER,
        ),
    )
    WORDS = (
        "words",
        _Facts(
            help="both towers (--text student): the token states of the text tower",
            remedy="train both towers (text = 'student')",
            provider=Provider.TEXT_TOWER,
        ),
    )


def outputs_of(provider: Provider, needs: Iterable[Need]) -> list[Need]:
    """Return those of ``needs`` that a tower provides, in the order of :class:`Need`."""
    wanted = set(needs)
    outputs = []
    for need in Need:
        if need in wanted and need.provider is provider:
            outputs.append(need)
    return outputs
