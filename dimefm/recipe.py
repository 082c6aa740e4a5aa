"""Recipe: one training run, described completely. A TOML file in ``pipelines/``, or flags, or both.

Flags override the file, the file overrides the defaults below. The ``[small]`` table of a file
holds overrides that make the same run take seconds on a laptop (``--small``). The resolved recipe
is printed and saved with the run.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import tomllib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dimefm.errors import RecipeError, did_you_mean


@dataclass(frozen=True)
class Recipe:
    """Every setting of a run; units are in the comments. Paths are as the user gave them."""

    # what is learnt from
    images: tuple[str, ...] = ()  # sources of raw images (of pairs when text = "student")
    dataroot: str | None = None  # folder or URL that relative sources are looked up in
    input_format: str | None = None  # a file of data/formats, when detection does not do
    image_column: str | None = None  # column or tar ending of images; None: the first usual name
    text_column: str | None = None
    key_column: str | None = None
    separator: str | None = (
        None  # of CSV and TSV tables: one character, or "tab"; None: told from the header
    )
    # which rows of the raw sources run, as they were extracted: those of "rows", of these "split",
    # of these "limit"
    rows: str | None = None  # "A:B": row numbers A to B - 1, from 0 through all shards; None: all
    split: str | None = (
        None  # "A:B": rows whose keys hash to at least A and below B, shares of 0 to 1; None: all
    )
    limit: int | None = None  # rows, the first ones; None: all
    texts: tuple[str, ...] = ()  # sources of raw sentences, for text = "student:NAME"
    image_cache: tuple[
        str, ...
    ] = ()  # teacher features of the images: one cache, or one of each of several teachers
    text_cache: tuple[
        str, ...
    ] = ()  # teacher features of sentences, of the same teachers in the same order
    tsv_file_list: tuple[
        str, ...
    ] = ()  # DIME-FM's form, instead of images and caches: image, image_feat, text, text_feat
    # shares of a batch that the entries of "images" (of a text tower, "texts") have, one positive
    # number each; none: each row comes as often as another, or as "weight=" in .list files says
    mix: tuple[float, ...] = ()
    # "rows": all rows are shuffled. "blocks": row groups of Parquet files (of others, runs of 1000
    # rows) are, and then the rows of some such blocks at a time. "auto": "blocks" for Parquet of
    # more than the 2 GiB that stay in memory
    shuffle: str = "auto"
    # where pairs take sentences from: "text" column, or "label" (class names and templates)
    captions: str = "text"

    # what is learnt
    student: str = (
        "dime-ViT-B-32"  # models/students, an open_clip architecture, timm/NAME, or a .json file
    )
    image_size: int | None = None  # pixels; None: the student's own
    # how a tower reaches the teacher's dimension. "none": by its own last projection, which is made
    # anew in that size. "linear": it keeps its own dimension and learns a linear map without bias,
    # which is folded into it at the end
    bridge: str = "none"
    # share of each image that is hidden from the student, drawn anew each time; transformers leave
    # the patches out, other towers see blocks of the mean colour
    image_mask: float = 0.0
    # "teacher": an image tower is trained. "student": both towers, from pairs, of which caches of
    # both kinds may hold a teacher's features. "student:NAME": the text tower of NAME, from texts
    # and caches; without a text_cache a sentence takes the features of the images that have its
    # key.
    text: str = "teacher"
    # name -> {weight, options}; see "dimefm losses". With schedule = "linear" or "cosine" a weight
    # goes to "end" at the last step, 0 if not said
    losses: dict = field(default_factory=dict)
    logit_scale: float | None = None  # factor on cosines; None: the teacher's own

    word_dropout: float = (
        0.0  # of a text tower: probability that a word of a sentence is left out, anew each time
    )

    # how a step shows its images and sentences. Losses are means over all views and captions of a
    # pair
    views_per_step: int = (
        1  # views of each image in a step; of cached views, the next ones each epoch
    )
    captions_per_step: int = (
        1  # sentences of each pair in a step: of a cache of several a row, the next ones each epoch
    )
    # of pairs without a text cache: "eda" makes the further captions of a pair of its first, as
    # extract-features --text-views does; "none" draws them from its own
    text_augment: str = "none"
    # share of the words of the first caption that are hidden, for losses that need "masked"
    mask_words: float = 0.0
    # "apart": it is encoded once more for losses on words. "contrast": all losses see it masked, as
    # in DeCLIP's release
    masked: str = "apart"
    # for losses that need "neighbours": a graph of "dimefm cache neighbours" for each text cache,
    # and of how many of the nearest one is drawn, anew in each step
    neighbours: tuple[str, ...] = ()
    neighbours_among: int = 1
    # for losses that need "tokens": caches of extract-features --tokens, one for each image cache
    # and each text cache
    image_tokens: tuple[str, ...] = ()
    text_tokens: tuple[str, ...] = ()

    # how long, in which portions
    seed: int = 0
    epochs: float = 100.0  # passes over what the student encodes; ignored when steps is given
    steps: int | None = None
    batch_size: int = 640  # images in a batch, over all processes; of a text tower, sentences
    texts_per_step: int | None = (
        None  # sentences a batch (images, of a text tower); None: as many as batch_size
    )
    accum_freq: int = (
        1  # batches of an optimizer step, whose loss and gradient are those of one large batch
    )

    # AdamW; defaults are DIME-FM's "dime-fm": position and token embeddings do not decay, the
    # cosine counts from the first step. "open_clip": all matrices decay, the cosine begins after
    # the warm-up, as CLIP-KD, TinyCLIP and DeCLIP train
    optimizer: str = "dime-fm"
    lr: float = 8e-4
    min_lr: float = 4e-5
    warmup_lr: float = 4e-6
    warmup: float = 4.0  # epochs
    wd: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    grad_clip_norm: float | None = None  # None: no clipping

    ema: float | None = (
        # decay of averaged weights, which are then evaluated and written; None: the weights
        # themselves
        None
    )

    # zero-shot scores on the way; they do not change what is learnt. None: no scores
    eval_root: str | None = None  # folder that holds one folder per dataset, as of "eval elevater"
    eval_datasets: tuple[
        str, ...
    ] = ()  # benchmarks or folders there; none: those of the 20 that are there
    eval_every: int = 1000  # steps between evaluations; the last step is always one
    eval_text_model: str | None = (
        None  # where the teacher lies now, or a text tower's run; None: where its features say
    )
    patience: int | None = (
        None  # evaluations without a better mean that end the run; None: it runs to its end
    )

    # the view that the student sees "cached": the crops and flips that the teacher saw, replayed
    # from a cache of --views; the three fields below must be those of that cache. "center": the
    # centre view, from a cache without --views. "free": random crops whatever the teacher saw
    # (DIME-FM's way). For pairs without caches "cached" and "free" are both random crops.
    view: str = "cached"
    # "dime-fm", "clip-kd" or "moco-v2": sets the four fields below where the same file or command
    # line does not say them; clip-kd resizes crops bicubic, moco-v2 changes colours too, also those
    # of cached views
    augment: str = "dime-fm"
    crop_scale: tuple[float, float] = (0.08, 1.0)  # area share
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)  # width / height
    flip: float = 0.5  # probability
    resize: int = 256  # shorter side before free crops; 0: as it is

    # machine and records
    device: str = "auto"
    precision: str = "fp32"  # or "bf16"
    workers: int = 2  # threads that read and decode
    scratch: str | None = None  # folder for local copies of remote files; None: ~/.cache/dimefm
    log_every: int = 10  # steps
    save_every: int = 1000  # steps between checkpoints
    keep: int = 2  # newest checkpoints to keep
    report_to: str = ""  # further logs: "tensorboard", "wandb", or both with a comma

    @property
    def text_student(self) -> str:
        """What the text tower to train is called, "" when none is trained alone."""
        return self.text.removeprefix("student:") if self.text.startswith("student:") else ""

    def to_toml(self) -> str:
        """Return the recipe as TOML that :func:`read` accepts.

        Unset fields are left out, and those at their defaults that such a run does not look at.
        """
        lines, idle = [], _idle(self)
        for name, value in dataclasses.asdict(self).items():
            if (
                value not in (None, ())
                and name != "losses"
                and not (name in idle and value == FIELDS[name].default)
            ):
                lines.append(f"{name} = {_toml(value)}")
        lines.append("\n[losses]")
        for name, settings in self.losses.items():
            stated = {key: value for key, value in settings.items() if value is not None}
            inner = ", ".join(f"{key} = {_toml(value)}" for key, value in stated.items())
            lines.append(f'"{name}" = {{ {inner} }}')
        return "\n".join(lines) + "\n"


def _idle(recipe: Recipe) -> set[str]:
    """Return the fields that nothing looks at in what ``recipe`` trains."""
    found = set(OF_IMAGES) if recipe.text_student else {"word_dropout"}
    found |= set() if recipe.text == "student" else set(OF_PAIRS)
    found |= set() if recipe.eval_root else WATCHING
    return found | (set() if recipe.steps is None else {"epochs"})


def _toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


AUGMENTATIONS: dict[str, dict] = {
    "dime-fm": {"crop_scale": (0.08, 1.0), "crop_ratio": (0.75, 4 / 3), "flip": 0.5, "resize": 256},
    "clip-kd": {"crop_scale": (0.9, 1.0), "crop_ratio": (0.75, 4 / 3), "flip": 0.0, "resize": 0},
    "moco-v2": {"crop_scale": (0.2, 1.0), "crop_ratio": (0.75, 4 / 3), "flip": 0.5, "resize": 0},
}
"""What ``augment`` sets. Sources: DIME-FM, released Training/datasets/build.py:32-59; CLIP-KD,
released src/open_clip/transform.py:64-70; MoCo v2's as DeCLIP has it, released
prototype/data/imagenet_dataloader.py."""
FIELDS = {f.name: f for f in dataclasses.fields(Recipe)}
CHOICES = {
    "augment": tuple(AUGMENTATIONS),
    "captions": ("text", "label"),
    "bridge": ("none", "linear"),
    "shuffle": ("auto", "rows", "blocks"),
    "view": ("cached", "free", "center"),
    "precision": ("fp32", "bf16"),
    "masked": ("apart", "contrast"),
    "text_augment": ("none", "eda"),
    "optimizer": ("dime-fm", "open_clip"),
}
# a plain string is a tuple of one
ONE_OR_MORE = (
    "image_cache",
    "text_cache",
    "eval_datasets",
    "neighbours",
    "image_tokens",
    "text_tokens",
)
POSITIVE = (
    "limit",
    "epochs",
    "steps",
    "batch_size",
    "texts_per_step",
    "accum_freq",
    "views_per_step",
    "captions_per_step",
    "neighbours_among",
    "image_size",
    "logit_scale",
    "lr",
    "eps",
    "grad_clip_norm",
    "log_every",
    "save_every",
    "keep",
    "eval_every",
    "patience",
    "workers",
)
# what only a student of images looks at, and only what learns from pairs
OF_IMAGES = (
    "student",
    "image_size",
    "image_mask",
    "views_per_step",
    "view",
    "augment",
    *AUGMENTATIONS["dime-fm"],
)
OF_PAIRS = (
    "captions",
    "captions_per_step",
    "text_augment",
    "mask_words",
    "masked",
    "neighbours_among",
)
WATCHING = {"eval_every", "eval_text_model", "patience"}  # may differ in a run that is resumed
AT_LEAST_0 = ("min_lr", "warmup_lr", "warmup", "wd", "resize")
SHARES = {
    "flip": "<= 1",
    "beta1": "< 1",
    "beta2": "< 1",
    "word_dropout": "< 1",
    "mask_words": "< 1",
    "image_mask": "< 1",
}


def read(path: Path | None, small: bool = False, **overrides: object) -> Recipe:
    """Return the recipe of a file (None: all defaults) with overrides that are not None.

    Raises RecipeError for an unknown key (with the nearest known one), a wrong type, or an
    impossible value.
    """
    table: dict = {}
    if path is not None:
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecipeError(f"{path}: cannot be read as TOML: {error}") from error
    reduced = table.pop("small", {})
    if not isinstance(reduced, dict):
        raise RecipeError(
            f"{path}: 'small' is {reduced!r}; expected a table, [small], of keys that --small"
            " replaces"
        )
    if small and not reduced:
        lacks = (
            f"{path} does not have; add it"
            if path
            else "only a recipe file has; name one with --recipe"
        )
        raise RecipeError(f"--small asks for a [small] table, which {lacks}, or leave --small out")
    where = f"{path}: " if path else ""
    reduced = {key: _typed(key, value, where) for key, value in reduced.items()}
    table = _augmented(table) | (_augmented(reduced) if small else {})
    recipe = check(
        Recipe(**{key: _typed(key, value, where) for key, value in table.items()}), where
    )
    given = {key: _typed(key, value, "") for key, value in overrides.items() if value is not None}
    return check(dataclasses.replace(recipe, **_augmented(given)))


def _augmented(table: dict) -> dict:
    """Return settings of one place with what their ``augment`` sets and they do not say
    themselves.
    """
    name = table.get("augment")
    return AUGMENTATIONS.get(name, {}) | table if isinstance(name, str) else table


def assignments(flag: str, settings: Sequence[str], example: str, known: Collection[str]) -> dict:
    """Return the keys and values of ``KEY=VALUE`` settings in TOML, as ``--set`` takes them.

    Raises RecipeError naming the ``flag``, and an ``example`` for one that is not or the nearest
    ``known`` key for another.
    """
    found: dict = {}
    for setting in settings:
        try:
            found |= tomllib.loads(setting)
        except tomllib.TOMLDecodeError as error:
            wanted = f"expected KEY=VALUE as in TOML, e.g. {example}, and words in quotes"
            raise RecipeError(f"{flag} {setting}: {wanted} ({error})") from error
    unknown = next((key for key in found if key not in known), None)
    if unknown is not None:
        raise RecipeError(f"{flag} {unknown}: unknown key: {did_you_mean(unknown, known)}")
    return found


def _typed(key: str, value: Any, where: str) -> Any:
    """Return ``value`` as the field's type wants it; raise RecipeError for an unknown key or
    another type.
    """
    if key not in FIELDS:
        raise RecipeError(f"{where}unknown recipe key '{key}': {did_you_mean(key, FIELDS)}")
    value = (value,) if key in ONE_OR_MORE and isinstance(value, str) else value
    kind = str(FIELDS[key].type)
    if kind.startswith("tuple") and isinstance(value, list | tuple):
        item, number = ("str", None) if "str" in kind else ("float", None if "..." in kind else 2)
        if all(_is(item, part) for part in value) and number in (None, len(value)):
            return tuple(float(part) if item == "float" else part for part in value)
    elif _is(kind, value) or (value is None and "None" in kind):
        return float(value) if kind.startswith("float") and value is not None else value
    raise RecipeError(f"{where}'{key}' is {value!r}; expected {kind}")


def _is(kind: str, value: object) -> bool:
    known = {"str": (str,), "int": (int,), "float": (int, float), "dict": (dict,)}
    wanted = next((python for name, python in known.items() if kind.startswith(name)), ())
    return isinstance(value, wanted) and not isinstance(value, bool)


def check(recipe: Recipe, where: str = "") -> Recipe:
    """Return the recipe if its values are possible on their own; raise RecipeError, opening with
    ``where``, otherwise.
    """
    wrong = next(itertools.chain(_faults(recipe), _table_faults(recipe)), None)
    if wrong is not None:
        raise RecipeError(f"{where}{wrong}")
    return recipe


def _faults(recipe: Recipe) -> Iterator[str]:
    for name, known in CHOICES.items():
        if getattr(recipe, name) not in known:
            yield (
                f"'{name}' is '{getattr(recipe, name)}'; expected one of"
                f" {', '.join(map(repr, known))}"
            )
    if recipe.text not in ("teacher", "student") and not recipe.text_student:
        yield f"'text' is '{recipe.text}'; expected 'teacher', 'student' or 'student:NAME'"
    if recipe.bridge != "none" and recipe.text == "student" and not recipe.image_cache:
        yield (
            "'bridge' leads into the space of a teacher, and 'text' is 'student', which has none;"
            " leave one of them out"
        )
    yield from _watch_faults(recipe)
    for name in POSITIVE:
        value = getattr(recipe, name)
        if value is not None and not 0 < value < math.inf:
            yield f"'{name}' is {value}; expected a positive number"
    for name in AT_LEAST_0:
        if not 0 <= getattr(recipe, name) < math.inf:
            yield f"'{name}' is {getattr(recipe, name)}; expected a number of at least 0"
    for name, end in SHARES.items():
        value = getattr(recipe, name)
        if not (0 <= value < 1 or (value == 1 and end == "<= 1")):
            yield f"'{name}' is {value}; expected 0 <= {name} {end}"


def _watch_faults(recipe: Recipe) -> Iterator[str]:
    for name in filter(None, map(str.strip, recipe.report_to.split(","))):
        if name not in ("tensorboard", "wandb"):
            yield (
                f"'report_to' names '{name}'; expected 'tensorboard', 'wandb' or both with a comma"
            )
    if recipe.ema is not None and not 0 <= recipe.ema < 1:
        yield f"'ema' is {recipe.ema}; expected 0 <= ema < 1, e.g. 0.999"
    for name in ("eval_datasets", "eval_text_model", "patience"):
        if getattr(recipe, name) and recipe.eval_root is None:
            yield (
                f"'{name}' does nothing without 'eval_root'; give the folder of datasets"
                " (--eval-root), or leave it out"
            )


def _table_faults(recipe: Recipe) -> Iterator[str]:
    if not all(0 < share < math.inf for share in recipe.mix):
        yield f"'mix' is {list(recipe.mix)}; expected positive numbers, one for each source"
    for name, settings in recipe.losses.items():
        if not isinstance(settings, dict) or not _is("float", settings.get("weight")):
            yield (
                f"loss '{name}' is {settings!r}; expected a table with a weight, e.g. {{ weight ="
                " 1.0 }"
            )
    for name, most in (("crop_scale", 1.0), ("crop_ratio", math.inf)):
        low, high = getattr(recipe, name)
        if not 0 < low <= high <= most or high == math.inf:
            yield f"'{name}' is {(low, high)}; expected 0 < low <= high" + (
                " <= 1" if most == 1 else ""
            )


def changed(ours: Recipe, theirs: Recipe) -> list[str]:
    """Return ``"field: a against b"`` for each field that differs and that changes what is
    learnt.
    """
    machine = {
        "device",
        "workers",
        "scratch",
        "log_every",
        "save_every",
        "keep",
        "report_to",
    } | WATCHING
    return [
        f"{name}: {getattr(ours, name)!r} against {getattr(theirs, name)!r}"
        for name in FIELDS
        if name not in machine and getattr(ours, name) != getattr(theirs, name)
    ]
