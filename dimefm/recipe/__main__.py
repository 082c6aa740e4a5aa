"""Print the reference page of all keys: ``python -m dimefm.recipe > docs/recipes.md``."""

from dimefm.recipe.page import page

if __name__ == "__main__":
    print(page(), end="")
