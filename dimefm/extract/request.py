"""From the settings of an extraction to its work, for the command line, Python and pipelines."""

from __future__ import annotations

import functools

from dimefm.data.selected import open_selected
from dimefm.data.views.image_views import ViewPolicy
from dimefm.data.views.patch_tokens import TokenPolicy
from dimefm.data.views.text_views import TextPolicy
from dimefm.errors import RecipeError
from dimefm.extract.extract import Mode
from dimefm.extract.job import Extraction, folders_of
from dimefm.extract.stages.base import Settings
from dimefm.extract.stages.tokens import check_settings
from dimefm.models.loading import load_encoder
from dimefm.recipe.schema.extraction import Extract

SOURCE_KEYS = (
    "dataroot",
    "input_format",
    "image_column",
    "text_column",
    "key_column",
    "separator",
    "rows",
    "split",
    "limit",
    "scratch",
)
"""Keys that say where sources lie, how they are read, and which samples are used."""


def plan_extraction(
    request: Extract, out: str, mode: Mode = "create", progress: bool = True
) -> Extraction:
    """Return the extraction that ``request`` describes, into caches below ``out``.

    Nothing is opened or loaded yet. Raises RecipeError when settings do not fit together.
    """
    _refuse_contradictions(request)
    return Extraction(
        teachers=_teachers(request),
        sources=_sources(request),
        out=out,
        settings=settings_of(request, progress),
        mode=mode,
        scratch=request.scratch,
    )


def settings_of(request: Extract, progress: bool = True) -> Settings:
    """Return how the stages encode; raise RecipeError for views or tokens that cannot be made."""
    views = ViewPolicy.parse(request.views, request.view_recipe)
    text_views = TextPolicy.parse(request.text_views, request.text_recipe)
    tokens = None
    if request.tokens is not None:
        check_settings(views, text_views, request.compile)
        tokens = TokenPolicy(request.tokens)
    measured = request.batch_size == "auto"
    batch_size = Settings.batch_size if request.batch_size == "auto" else request.batch_size
    return Settings(
        format=request.format,
        dtype=request.dtype,
        batch_size=batch_size,
        workers=request.workers,
        decoder=request.decoder,
        captions=request.captions,
        long_texts=request.long_texts,
        progress=progress,
        views=views,
        text_views=text_views,
        tokens=tokens,
        auto_batch=measured,
        auto_precision=request.precision == "auto",
        compile=request.compile,
    )


def _refuse_contradictions(request: Extract) -> None:
    if not request.teacher:
        raise RecipeError("no teacher is named. Fix: set teacher, e.g. ViT-B-32/openai")
    if not request.images and not request.texts:
        raise RecipeError("nothing to extract. Fix: set images, texts or both")
    if len(request.teacher) > 1 and request.text_model:
        raise RecipeError(
            "--text-model is the text tower of one teacher. Fix: extract that teacher alone"
        )
    if len(request.teacher) > 1 and request.preprocess:
        raise RecipeError(
            "--preprocess is the preprocessing of one teacher. Fix: extract that teacher alone"
        )
    if request.text_views and request.captions == "all":
        raise RecipeError(
            "--captions all makes a row of every sentence, --text-views K of every row. Fix: leave"
            " one out"
        )


def _teachers(request: Extract) -> tuple[tuple[str, functools.partial], ...]:
    """Return the folder below ``out`` of each teacher, and what loads it."""
    precision = "fp32" if request.precision == "auto" else request.precision
    teachers = []
    for folder, spec in zip(folders_of(request.teacher), request.teacher, strict=True):
        load = functools.partial(
            load_encoder,
            spec,
            request.device,
            precision,
            request.text_model,
            request.preprocess,
        )
        teachers.append((folder, load))
    return tuple(teachers)


def _sources(request: Extract) -> tuple[tuple[str, functools.partial], ...]:
    """Return each kind of source that is given, and what opens its rows."""
    options = {name: getattr(request, name) for name in SOURCE_KEYS}
    sources = []
    for kind, paths in (("image", request.images), ("text", request.texts)):
        if paths:
            sources.append((kind, functools.partial(open_selected, paths, kind, **options)))
    return tuple(sources)
