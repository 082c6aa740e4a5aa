"""When a key of a recipe matters: for which kinds of run, and with which other keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Condition:
    """Something that a recipe fulfills or not.

    ``words`` complete the sentence "KEY is for ..."; ``remedy`` says how to fulfill the condition.
    ``holds`` is asked with the recipe.
    """

    words: str
    holds: Callable[[Any], bool]
    remedy: str = ""


# Kinds of run. A key of another kind of run is not written into the resolved recipe.

IMAGE_STUDENT = Condition(
    "a student of images",
    lambda recipe: not recipe.text_student,
)
TEXT_TOWER = Condition(
    "a text tower (--text student:NAME)",
    lambda recipe: bool(recipe.text_student),
    remedy="use --text student:NAME",
)
PAIRS = Condition(
    "pairs (--text student)",
    lambda recipe: recipe.text == "student",
    remedy="use --text student",
)
EVALUATION = Condition(
    "--eval-root, the folder of datasets,",
    lambda recipe: recipe.eval_root is not None,
    remedy="set --eval-root",
)
EPOCHS = Condition(
    "runs without steps",
    lambda recipe: recipe.steps is None,
)

# What else has to be set.


def starts_from_weights(recipe: Any) -> bool:
    """Tell whether a tower of the student starts from existing weights."""
    return recipe.init != "random" or (recipe.init_text or "random") != "random"


PRUNED = Condition(
    "students that are cut",
    lambda recipe: recipe.prune is not None,
    remedy="set prune",
)
NOT_PRUNED = Condition(
    "students that are not cut",
    lambda recipe: recipe.prune is None,
)
UNPAIRED_TEXTS = Condition(
    "training a text tower (--text student:NAME)",
    lambda recipe: bool(recipe.text_student),
    remedy="use --text student:NAME; an image tower learns from the features in --text-cache, "
    "and --text student from the pairs in --images",
)
ONE_TOWER = Condition(
    "one tower that is led into the space of a teacher, not for two (--text student),",
    lambda recipe: recipe.text != "student",
)
STARTED = Condition(
    "students that start from existing weights",
    lambda recipe: starts_from_weights(recipe),
    remedy="set --init",
)
INHERITED = Condition(
    "students that inherit (--init inherit:SPEC)",
    lambda recipe: any(
        (start or "").startswith("inherit:") for start in (recipe.init, recipe.init_text)
    ),
    remedy="set --init inherit:SPEC",
)
OWN_FEATURES = Condition(
    "towers that have features of what they encode (--image-cache, --text-cache)",
    lambda recipe: not recipe.text_student or bool(recipe.text_cache),
    remedy="set --text-cache",
)
SOLVED = Condition(
    "init_projection = 'least-squares'",
    lambda recipe: recipe.init_projection != "random",
    remedy="set it",
)
RANDOM_CROPS = Condition(
    "random views, not for the centre,",
    lambda recipe: recipe.crops != "center",
)
# Whether a run looks at settings of crops, which may be set in any run.

DRAWN_CROPS = Condition(
    "crops that are drawn, not the centre",
    lambda recipe: recipe.crops != "center",
)
FREE_CROPS = Condition(
    "free crops",
    lambda recipe: not _replays(recipe) and recipe.crops != "center",
)
DRAWN_CROPS_OR_COLORS = Condition(
    "crops that are drawn, not the centre, and for colors",
    lambda recipe: recipe.crops != "center" or recipe.augment == "moco-v2",
)


def _replays(recipe: Any) -> bool:
    """Tell whether the student sees the crops of caches."""
    return recipe.crops == "replay" and bool(recipe.image_cache or recipe.tsv_file_list)


SEVERAL_CAPTIONS = Condition(
    "captions_per_step of 2 or more",
    lambda recipe: recipe.captions_per_step > 1,
)
UNCACHED_TEXTS = Condition(
    "pairs without a --text-cache",
    lambda recipe: not recipe.text_cache,
)
MASKED_WORDS = Condition(
    "mask_words",
    lambda recipe: recipe.mask_words > 0,
    remedy="set mask_words",
)
PAIRS_WITH_IMAGE_CACHE = Condition(
    "pairs with an --image-cache",
    lambda recipe: recipe.text == "student" and bool(recipe.image_cache),
)
PAIRS_WITH_TEXT_CACHE = Condition(
    "pairs with a --text-cache",
    lambda recipe: recipe.text == "student" and bool(recipe.text_cache),
)
NEIGHBOURS = Condition(
    "neighbours",
    lambda recipe: bool(recipe.neighbours),
    remedy="set neighbours",
)
