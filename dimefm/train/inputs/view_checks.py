"""What views of images and of sentences the caches of a run hold, checked against each other and
against the recipe.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from dimefm.cache import FeatureCache
from dimefm.cache.manifest import differences
from dimefm.data.views.image_views import RECIPE, ViewPolicy
from dimefm.data.views.text_views import TextPolicy
from dimefm.errors import CacheError, RecipeError
from dimefm.recipe import Recipe


def image_views(recipe: Recipe, caches: Sequence[FeatureCache]) -> ViewPolicy | None:
    """Return the views that all image caches hold; raise when they differ, or are not what the
    recipe shows the student.
    """
    first = caches[0]
    for other in caches[1:]:
        different = differences(
            {"views": first.manifest.how.get("views")}, {"views": other.manifest.how.get("views")}
        )
        if different:
            raise CacheError(
                f"{first.store} and {other.store} hold different views ({'; '.join(different)})."
                " Fix: extract one of them again with the other's --views and --view-recipe"
            )
    policy = ViewPolicy.from_manifest(first.manifest.how)
    if recipe.crops == "center" and policy is not None:
        raise RecipeError(
            f"crops = 'center', but {first.store} holds {policy.count} random crops of each image"
            " and not its centre. Fix: say --crops replay to replay them, or extract the images"
            " without --views"
        )
    if recipe.crops == "replay":
        _refuse_other_views(recipe, policy, first)
        if policy is not None and recipe.views_per_step > policy.count:
            raise RecipeError(
                f"views_per_step = {recipe.views_per_step}, but {first.store} holds"
                f" {policy.count} of each image. Fix: lower it, or extract the images with --views"
                f" {recipe.views_per_step}"
            )
    return policy


def refuse_other_sentences(caches: Sequence[FeatureCache]) -> None:
    """Raise CacheError when text caches of the same rows hold other views of their sentences."""
    for first, second in itertools.pairwise(caches):
        first_views = {"text views": first.manifest.how.get("text_views")}
        second_views = {"text views": second.manifest.how.get("text_views")}
        different = differences(first_views, second_views)
        if different:
            raise CacheError(
                f"{first.store} and {second.store} hold different sentences"
                f" ({'; '.join(different)}). Fix: extract one of them again with the other's"
                " --text-views and --text-recipe"
            )


def text_views(recipe: Recipe, caches: Sequence[FeatureCache]) -> TextPolicy | None:
    """Return the sentences that all text caches hold; raise when they differ, or a step cannot show
    as many as it should.
    """
    first = caches[0]
    refuse_other_sentences(caches)
    policy, count = (
        TextPolicy.from_manifest(first.manifest.how, first.store),
        recipe.captions_per_step,
    )
    held = 1 if policy is None else policy.count
    if count > held:
        raise RecipeError(
            f"captions_per_step = {count}, but {first.store} holds {held} of each row. Fix: lower"
            f" it, or extract the sentences with --text-views {count}"
        )
    return policy


def _refuse_other_views(recipe: Recipe, policy: ViewPolicy | None, cache: FeatureCache) -> None:
    """Raise RecipeError, naming each field, unless the cache's views are the recipe's."""
    asked = {name: getattr(recipe, name) for name in RECIPE.values()}
    if policy is None:
        crops = ", ".join(f"{name} {value}" for name, value in asked.items())
        raise RecipeError(
            f"the recipe asks for random crops ({crops}), but {cache.store} holds the centre view"
            " of each image. Fix: say --crops free to show the student crops that the teacher did"
            " not see, as DIME-FM does, or --crops center to show it the centre view; or extract"
            " the images with --views"
        )
    held = {name: getattr(policy, key) for key, name in RECIPE.items()}
    different = [
        f"{name}: {asked[name]} in the recipe, {held[name]} in the cache"
        for name in held
        if asked[name] != held[name]
    ]
    if different:
        raise RecipeError(
            f"{cache.store} does not hold the recipe's views ({'; '.join(different)}). Fix: set the"
            " recipe to the cache's (--set KEY=VALUE), say --crops free to show the student crops"
            " that the teacher did not see, as DIME-FM does, or extract the images with --views"
            " and another --view-recipe"
        )
