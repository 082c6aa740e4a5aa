"""The reference page of all keys: ``python -m dimefm.recipe > docs/recipes.md``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import get_origin

from dimefm.recipe.keys import Key
from dimefm.recipe.schema import SECTIONS
from dimefm.recipe.schema.evaluation import Eval
from dimefm.recipe.schema.exporting import Export
from dimefm.recipe.schema.extraction import Extract
from dimefm.recipe.section import Section

INTRODUCTION = """\
# Recipes

A recipe describes a run: what `dimefm train` learns from, what it trains, how, and where. It is a
TOML file, or flags, or both:

```sh
dimefm train --recipe pipelines/clip_kd_vit_t16.toml --dataroot data/ --set beta2=0.999 --out runs/a
```

* **Flags** win over the file, and the file wins over the defaults below. The flag of `batch_size`
  is `--batch-size`. `--set KEY=VALUE` sets any key, also one without a flag.
* **Python** has the same keys: `read(path, batch_size=512)` and `Recipe(batch_size=512)` of
  `dimefm.recipe`.
* **`base = "other.toml"`** takes the keys of another recipe file; its path is relative to the file
  that names it. A key of the file replaces the base's key whole, also `losses`. `[small]` is merged
  key by key. A base may have a base.
* **`[small]`** holds what `--small` replaces, to make the same run take seconds.
* **`[train]`**: a pipeline file ([pipelines.md](pipelines.md)) has the keys of a recipe in this
  table, and those of `--small` in `[small.train]`.
* **Implied keys**: `augment` and `tsv_file_list` set other keys, unless the same file or command
  line sets them. Without any losses, a student that has a teacher learns by DIME-FM's VL.
* **Idle keys**: a key that is set where it would do nothing is refused.
* **Resuming**: a run is resumed with the recipe that it began with, but for the keys that may
  differ.

`python -m dimefm.recipe` prints this page.
"""

PIPELINE = """\
# Other tables of a pipeline file

`dimefm run` has the keys of the other stages in tables of their own. They are also the flags of
`dimefm extract-features`, `dimefm eval` and `dimefm export`.
"""


def page() -> str:
    """Return docs/recipes.md: the keys of all sections."""
    parts = [INTRODUCTION]
    parts += [_section(section) for section in SECTIONS]
    parts.append(PIPELINE)
    parts += [_section(Extract, "`[extract]`: "), _section(Eval, "`[eval]`: ")]
    parts.append(_section(Export, "`[export]`: "))
    return "\n".join(parts)


def _section(section: type[Section], prefix: str = "") -> str:
    """Return the heading, the introduction and the table of a section."""
    lines = [f"## {prefix}{section.title}", "", " ".join((section.__doc__ or "").split()), ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key in section.schema_keys().values():
        cells = [f"`{key.name}`", _value(key), _default(key), " ".join(_meaning(key))]
        lines.append("| " + " | ".join(cells).rstrip() + " |")
    return "\n".join(lines) + "\n"


def _value(key: Key) -> str:
    """Return what values a key takes."""
    if key.expected is not None:
        return key.expected
    if key.choices:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in key.choices)
    kinds = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
        dict: "table",
    }
    kind = kinds[key.value_type]
    if get_origin(key.type) is tuple:
        return "two numbers" if key.value_type is float else f"list of {kind}s"
    if key.bounds == {"gt": 0}:
        return f"{kind} above 0"
    if not key.bounds:
        return kind
    bounds = key.describe_bounds()
    return f"{kind}, `{bounds}`" if key.name in bounds else f"{kind} of at least 0"


def _default(key: Key) -> str:
    """Return a key's default: TOML, or words where it stands for something else."""
    if key.unset is not None:
        return key.unset
    if key.default is None or key.default in ((), {}):
        return ""
    if isinstance(key.default, str | bool) or key.value_type is str:
        return f"`{json.dumps(key.default)}`"
    return f"`{key.describe_default()}`"


def _meaning(key: Key) -> Iterator[str]:
    """Yield the sentences about a key."""
    yield key.help
    if key.more:
        yield key.more
    for condition in key.conditions:
        yield f"Only for {condition.words.rstrip(',')}."
    if key.looked_at is not None:
        yield f"Looked at for {key.looked_at.words}."
    if key.for_losses is not None:
        yield f"Only for losses that need '{key.for_losses}'."
    if key.may_differ_on_resume:
        yield "May differ when a run is resumed."
    if key.formerly is not None:
        yield f"Formerly `{key.formerly}`."
    if not key.flag:
        yield "No flag."
