"""What losses need: each need says what provides it, and keys of recipes name needs that exist."""

import pytest

from dimefm.losses import Need, outputs_of, resolve, terms
from dimefm.losses._needs import Provider
from dimefm.recipe import KEYS


def test_keys_that_only_matter_to_losses_are_those_that_provide_a_need():
    by_need = {}
    for name, key in KEYS.items():
        if key.for_losses is not None:
            by_need.setdefault(key.for_losses, set()).add(name)
    assert by_need["tokens"] == {"image_tokens", "text_tokens"}
    for need, names in by_need.items():
        assert set(Need(need).recipe_keys) == names


@pytest.mark.parametrize("need", Need)
def test_each_need_has_a_help_a_remedy_and_keys_that_recipes_have(need):
    assert need.help and need.remedy
    assert set(need.recipe_keys) <= set(KEYS)
    for key in need.recipe_keys:
        assert key in need.help and key in need.remedy
    assert not (need.recipe_keys and need.provider.is_model)


def test_outputs_of_a_tower_come_in_one_order():
    image = outputs_of(Provider.IMAGE_TOWER, {Need.PATCHES, Need.PAIRS, Need.HIDDEN})
    assert image == ["hidden", "patches"]
    assert outputs_of(Provider.TEXT_TOWER, Need) == ["words"]
    assert outputs_of(Provider.TEXT_TOWER, {Need.VIEWS}) == []


@pytest.mark.parametrize("name", terms())
def test_each_term_states_needs_and_no_mere_strings(name):
    assert all(isinstance(need, Need) for need in resolve(name, {}).needs)
