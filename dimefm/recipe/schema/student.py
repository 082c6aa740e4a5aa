"""Keys that say what a run trains, by which losses, and what the student sees."""

from __future__ import annotations

from typing import ClassVar, Literal

from dimefm.recipe.conditions import (
    DRAWN_CROPS,
    DRAWN_CROPS_OR_COLORS,
    FREE_CROPS,
    IMAGE_STUDENT,
    INHERITED,
    MASKED_WORDS,
    ONE_TOWER,
    OWN_FEATURES,
    PAIRS,
    RANDOM_CROPS,
    SEVERAL_CAPTIONS,
    SOLVED,
    TEXT_TOWER,
    UNCACHED_TEXTS,
)
from dimefm.recipe.keys import Range, key
from dimefm.recipe.section import Section


class Student(Section):
    """The model to train."""

    title: ClassVar[str] = "Student"

    student: str = key(
        "dime-ViT-B-32",
        "Architecture of the student: a name in docs/students.md, e.g. ViT-T-16, an open_clip "
        "architecture, timm/NAME, run:DIR, or a JSON file.",
        metavar="NAME",
        applies_to=IMAGE_STUDENT,
    )
    image_size: int | None = key(
        None,
        "Side of the student's input.",
        metavar="PIXELS",
        gt=0,
        unset="the student's own",
        applies_to=IMAGE_STUDENT,
        most=2048,
    )
    projection: Literal["none", "linear"] = key(
        "none",
        "Path to the teacher's dimension. linear: the student keeps its own dimension and learns a "
        "linear map, which is folded into it at the end.",
        more="none: the student's last projection is built in the teacher's dimension.",
        applies_when=[ONE_TOWER],
        formerly="bridge",
    )
    init: str = key(
        "random",
        "Weights that the student starts from: random, timm (pretrained, as its name says), "
        "tag:TAG of its architecture, run:DIR, a weights FILE, or inherit:SPEC, a part of a larger "
        "model.",
        more="timm and tag:TAG are downloaded when they are not on this machine. SPEC is what "
        "--teacher takes. See docs/weights.md.",
        metavar="START",
        pattern="^.+$",
        expected="random, timm, tag:TAG, run:DIR, inherit:SPEC or a file",
    )
    init_text: str | None = key(
        None,
        "Weights that the text tower starts from, where both towers are trained.",
        metavar="START",
        pattern="^.+$",
        expected="random, tag:TAG, run:DIR, inherit:SPEC or a file",
        unset="as --init; random with --init timm",
        applies_to=PAIRS,
    )
    inherit_by: Literal["first", "importance"] = key(
        "first",
        "What of a larger model is inherited. first: the first channels and heads of every k-th "
        "layer, as TinyCLIP; importance: evenly spread layers, and what counts most on rows of "
        "the run.",
        flag=False,
        applies_when=[INHERITED],
    )
    init_projection: Literal["random", "least-squares"] = key(
        "random",
        "Last projection at the start. least-squares: the best linear map from what the tower "
        "computes to the teacher's cached embeddings, solved before the first step.",
        more="Ridge regression in one pass over the run's rows; its fit is printed and recorded.",
        applies_when=[ONE_TOWER, OWN_FEATURES],
    )
    init_rows: int | None = key(
        None,
        "Rows that least squares reads.",
        flag=False,
        gt=0,
        unset="all",
        applies_when=[SOLVED],
    )
    text: str = key(
        "teacher",
        "Text tower: teacher, student to train both towers on pairs (with caches, against a "
        "teacher), or student:NAME to train the text tower of NAME on --texts.",
        more="A text tower without a text_cache learns from the images that have a text's key.",
        metavar="WHICH",
        pattern="^(teacher|student|student:.+)$",
        expected="'teacher', 'student' or 'student:NAME'",
    )


class Losses(Section):
    """What the student is trained to do."""

    title: ClassVar[str] = "Losses"

    losses: dict = key(
        {},
        "Table of losses: name -> {weight, options}; `dimefm losses` lists them.",
        more="With schedule = 'linear' or 'cosine' a weight goes to `end` (0 by default) at the "
        "last step.",
        flag=False,
        unset="DIME-FM's VL with weight 0.7, where there is a teacher",
    )
    logit_scale: float | None = key(
        None,
        "Factor on cosines.",
        metavar="FLOAT",
        gt=0,
        unset="the teacher's",
    )


class DimeLosses(Section):
    """DIME-FM's options, a short way to set its losses. They are not kept: `losses` has the result.

    Default weights are those of the release (Training/utils/opts.py:41-52), default temperatures
    those of the losses.
    """

    title: ClassVar[str] = "Losses of DIME-FM (others are set in a recipe, see dimefm losses)"

    use_vl_loss: bool | None = key(
        None,
        "VL: match the teacher's similarities of images and texts.",
        unset="on, unless the recipe has losses",
        flag="--use-vl-loss/--no-vl-loss",
    )
    use_pvl_loss: bool = key(False, "P-VL: match the teacher's similarities of images and images.")
    use_udist_loss: bool = key(
        False, "UDIST: match the distances between images; needs --w-udist above 0."
    )
    w_vl: float = key(0.7, "Weight of VL.")
    w_pvl: float = key(0.3, "Weight of P-VL.")
    w_udist: float = key(0.0, "Weight of UDIST.")
    t_vl: float = key(1.0, "Temperature of VL.")
    t_pvl: float = key(3.0, "Temperature of P-VL.")
    t_udist: float = key(7.0, "Temperature of UDIST.")


class Views(Section):
    """What the student sees of an image and of a text."""

    title: ClassVar[str] = "Views of images and texts"

    crops: Literal["replay", "free", "center"] = key(
        "replay",
        "Crops that the student sees. replay: those that the teacher saw, from a cache of --views; "
        "free: other random crops; center: the center.",
        more="With replay, crop_scale, crop_ratio and flip must be those of the cache. center is "
        "for a cache without --views. Pairs without caches have random crops with replay and free.",
        unset="replay; with --tsv-file-list free",
        formerly="view",
        former_values={"cached": "replay"},
        applies_to=IMAGE_STUDENT,
        tolerated=True,
    )
    augment: Literal["dime-fm", "clip-kd", "moco-v2"] = key(
        "dime-fm",
        "Random crops, flips and colors of a paper; --set crop_scale=... replaces a part.",
        more="Sets the next four keys, unless the same file or command line sets them. clip-kd "
        "resizes crops bicubic; moco-v2 changes colors too, also of replayed crops.",
        applies_to=IMAGE_STUDENT,
        tolerated=True,
        looked_at=DRAWN_CROPS_OR_COLORS,
    )
    crop_scale: Range = key(
        (0.08, 1.0),
        "Range of a crop's share of the image's area.",
        flag=False,
        applies_to=IMAGE_STUDENT,
        tolerated=True,
        looked_at=DRAWN_CROPS,
    )
    crop_ratio: Range = key(
        (0.75, 4 / 3),
        "Range of a crop's aspect ratio, width / height.",
        unset="[0.75, 4/3]",
        flag=False,
        applies_to=IMAGE_STUDENT,
        tolerated=True,
        looked_at=DRAWN_CROPS,
    )
    flip: float = key(
        0.5,
        "Probability of a horizontal flip.",
        flag=False,
        ge=0,
        le=1,
        applies_to=IMAGE_STUDENT,
        tolerated=True,
        looked_at=DRAWN_CROPS,
    )
    resize: int = key(
        256,
        "Shorter side in pixels before free crops; 0 to crop from the whole image.",
        flag=False,
        ge=0,
        applies_to=IMAGE_STUDENT,
        tolerated=True,
        looked_at=FREE_CROPS,
        most=8192,
    )
    views_per_step: int = key(
        1,
        "Views of an image in a step.",
        more="Of cached views a step takes the next ones each epoch. Losses are means over all "
        "views and captions.",
        flag=False,
        gt=0,
        applies_to=IMAGE_STUDENT,
        applies_when=[RANDOM_CROPS],
        most=100,
    )
    image_mask: float = key(
        0.0,
        "Share of an image to hide from the student, drawn in every step.",
        more="Vision transformers leave the patches out; other towers see blocks of the mean "
        "color.",
        flag=False,
        ge=0,
        lt=1,
        applies_to=IMAGE_STUDENT,
    )
    captions_per_step: int = key(
        1,
        "Captions of a pair in a step.",
        more="Of a cache of several captions a step takes the next ones each epoch.",
        flag=False,
        gt=0,
        applies_to=PAIRS,
        most=100,
    )
    text_augment: Literal["none", "eda"] = key(
        "none",
        "Further captions of a pair. eda: variants of the first one, as `extract-features "
        "--text-views` makes them; none: others of the pair.",
        flag=False,
        applies_to=PAIRS,
        applies_when=[SEVERAL_CAPTIONS, UNCACHED_TEXTS],
    )
    mask_words: float = key(
        0.0,
        "Share of the words of the first caption to hide.",
        flag=False,
        ge=0,
        lt=1,
        applies_to=PAIRS,
        for_losses="masked",
    )
    mlm_caption: Literal["extra", "contrastive"] = key(
        "extra",
        "Caption with hidden words. extra: encoded once more, for losses on words; contrastive: "
        "in place of the first caption in all losses, as in DeCLIP's release.",
        formerly="masked",
        former_values={"apart": "extra", "contrast": "contrastive"},
        flag=False,
        applies_to=PAIRS,
        applies_when=[MASKED_WORDS],
    )
    word_dropout: float = key(
        0.0,
        "Probability to drop a word of a text, drawn in every step.",
        flag=False,
        ge=0,
        lt=1,
        applies_to=TEXT_TOWER,
    )
