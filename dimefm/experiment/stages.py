"""The stages of an experiment: what each is made from, does, and leaves behind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dimefm.cache import Manifest
from dimefm.data.rows import Rows
from dimefm.data.selected import open_selected
from dimefm.errors import CacheError, DataError, RecipeError, did_you_mean
from dimefm.evaluate.datasets.layouts import find
from dimefm.evaluate.preparing import refuse_unscored
from dimefm.evaluate.requests import refuse_impossible, score, terminal
from dimefm.experiment.file import Experiment
from dimefm.experiment.record import digest_of
from dimefm.export import job
from dimefm.export.folder import RECORD
from dimefm.export.formats import FORMATS
from dimefm.extract.request import SOURCE_KEYS, plan_extraction
from dimefm.extract.sharding import share_of
from dimefm.models.loading import load_encoder
from dimefm.models.spec_paths import LOCAL_DIR
from dimefm.recipe import KEYS, Recipe, changed, read
from dimefm.recipe.schema.evaluation import Eval
from dimefm.recipe.schema.exporting import Export
from dimefm.recipe.schema.extraction import Extract
from dimefm.runs import folder as runs
from dimefm.runs.scores import SCORES, Scores
from dimefm.runtime.torchrun import rank_of
from dimefm.storage.files import sampled_sha256
from dimefm.storage.stores import open_store
from dimefm.train.online_eval import scorer
from dimefm.train.trainer import train

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What came of a stage: one line for people, and a table or ""."""

    summary: str
    details: str = ""


class Stage(ABC):
    """One stage. ``name`` is that of its table, ``place`` the folder that it fills."""

    name: str
    place: Path

    @abstractmethod
    def inputs(self) -> str:
        """Return a digest of everything that the stage is made from."""

    @abstractmethod
    def outputs(self) -> str:
        """Return a digest of what the stage left behind, "" when it is not finished."""

    @abstractmethod
    def run(self, say: Say) -> Outcome:
        """Do the stage, or what is left of it."""


class ExtractStage(Stage):
    """``[extract]``: the teacher's embeddings, in ``OUT/cache``."""

    name = "extract"

    def __init__(self, request: Extract, out: Path):
        self.request = request
        self.place = out / "cache"
        self.extraction = plan_extraction(request, str(self.place), progress=rank_of()[0] == 0)

    def caches(self, kind: str) -> tuple[str, ...]:
        """Return the cache of each teacher that the stage makes of images or of texts."""
        kinds = [source_kind for source_kind, _ in self.extraction.sources]
        return tuple(self.extraction.places(kind)) if kind in kinds else ()

    def inputs(self) -> str:
        sources = {kind: _shards_of(rows) for kind, rows in self.extraction.open()}
        teachers = [_model_of(spec) for spec in self.request.teacher]
        settings = self.request.model_dump()
        if self.request.preprocess is None:  # older records do not know the key
            del settings["preprocess"]
        return digest_of([settings, sources, teachers])

    def outputs(self) -> str:
        places = [*self.caches("image"), *self.caches("text")]
        fingerprints = [_fingerprint_of(place) for place in places]
        return digest_of(fingerprints) if all(fingerprints) else ""

    def run(self, say: Say) -> Outcome:
        share = share_of(None, None)
        sources = self.extraction.open()
        encoders = self.extraction.load()
        for encoder in encoders:
            for note in encoder.notes:
                say(note)
        for report in self.extraction.run(encoders, sources, share):
            say(report.describe())
        embeddings = {"image": 0, "text": 0}
        quarantined = 0
        for kind in embeddings:
            for place in self.caches(kind)[:1]:
                manifest = Manifest.read(open_store(place))
                embeddings[kind] = manifest.rows
                quarantined += sum(len(shard.bad) for shard in manifest.shards)
        teachers = ", ".join(self.request.teacher)
        return Outcome(
            f"{embeddings['image']:,} images and {embeddings['text']:,} texts by {teachers};"
            f" {quarantined:,} quarantined"
        )


class TrainStage(Stage):
    """``[train]``: the student, in ``OUT/run``."""

    name = "train"

    def __init__(self, recipe: Recipe, out: Path):
        self.recipe = recipe
        self.place = out / "run"

    def inputs(self) -> str:
        settings = {
            name: value
            for name, value in self.recipe.settings().items()
            if not KEYS[name].may_differ_on_resume
        }
        caches = [*self.recipe.image_cache, *self.recipe.text_cache]
        caches += [*self.recipe.image_tokens, *self.recipe.text_tokens]
        fingerprints = [_fingerprint_of(place) for place in caches]
        return digest_of([settings, fingerprints, self._sources()])

    def _sources(self) -> list:
        """Return the raw shards that the student sees; of DIME-FM's own lists, their files."""
        recipe = self.recipe
        options = {name: getattr(recipe, name) for name in SOURCE_KEYS}
        if recipe.text == "student":
            return _shards_of(open_selected(recipe.images, "pair", **options))
        if recipe.text_student:
            return _shards_of(open_selected(recipe.texts, "text", **options))
        if recipe.images:
            return _shards_of(open_selected(recipe.images, "image", **options))
        return [_model_of(path) for path in recipe.tsv_file_list]

    def outputs(self) -> str:
        if not (self.place / runs.FILE).exists():
            return ""
        record = runs.read(self.place)
        weights = self.place / runs.KINDS[record.kind]
        return sampled_sha256(weights) if weights.exists() else ""

    def run(self, say: Say) -> Outcome:
        self._refuse_other_run()
        train(self.recipe, self.place, resume=True, echo=say, scorer=scorer, fits_batch=True)
        record = runs.read(self.place)
        name = self.recipe.text_student or self.recipe.student
        return Outcome(f"{name}, {record.parameters:,} parameters, {record.steps:,} steps")

    def _refuse_other_run(self) -> None:
        """Raise RecipeError when the folder holds a finished run of another recipe."""
        if not (self.place / runs.FILE).exists():
            return
        different = changed(self.recipe, read(self.place / "recipe.toml"))
        if different:
            raise RecipeError(
                f"{self.place}: holds a finished run of another recipe ({'; '.join(different)}: the"
                f" file against the run). Fix: use another --out, or remove {self.place}"
            )


class EvalStage(Stage):
    """``[eval]``: scores of the student, in ``OUT/scores``."""

    name = "eval"

    def __init__(self, request: Eval, model: Path, out: Path, preprocess: str | None = None):
        self.request = request
        self.model = model
        self.preprocess = preprocess
        self.place = out / "scores"

    @property
    def root(self) -> Path:
        """The folder of datasets."""
        if self.request.root is None:
            raise DataError(
                "[eval] names no datasets. Fix: set root, a folder with one per dataset"
            )
        return Path(self.request.root)

    def inputs(self) -> str:
        refuse_impossible(self.request)
        datasets, _missing = find(
            self.root,
            self.request.datasets or None,
            layout=self.request.layout,
            every_card=True,
            on_failure=lambda name, error: None,
        )
        shards = {}
        for dataset in datasets:
            rows, *_rest = dataset.rows("test")
            shards[dataset.benchmark.name] = _shards_of(rows)
            if self.request.trains and dataset.has("train"):
                rows, *_rest = dataset.rows("train")
                shards[f"{dataset.benchmark.name} (train)"] = _shards_of(rows)
        settings = self.request.changed_settings()
        return digest_of([settings, _model_of(str(self.model)), shards])

    def outputs(self) -> str:
        scores = self.place / SCORES
        return sampled_sha256(scores) if scores.exists() else ""

    def run(self, say: Say) -> Outcome:
        encoder = load_encoder(
            str(self.model),
            self.request.device,
            self.request.precision,
            self.request.text_model,
            self.request.preprocess or self.preprocess,
        )
        names = self.request.datasets or None
        scores = score(str(self.model), encoder, self.request, self.place, names)
        table = terminal(scores)
        if scores.failed or (names and scores.missing):
            say(table)
            refuse_unscored(scores, self.root, names)
        if isinstance(scores, Scores):
            means = [f"{name} {100 * value:.2f}" for name, value in scores.summary.items()]
            return Outcome("; ".join(means), table)
        count = len(scores.results)
        noun = "dataset" if count == 1 else "datasets"
        return Outcome(f"mean {100 * scores.mean:.2f} over {count} {noun}", table)


class ExportStage(Stage):
    """``[export]``: the student for other programs, in ``OUT/export/FORMAT``.

    ``scoring`` has the datasets on which model and export are scored, None for none.
    """

    name = "export"

    def __init__(
        self,
        request: Export,
        model: Path,
        out: Path,
        scoring: Eval | None = None,
        preprocess: str | None = None,
    ):
        self.request = request
        self.model = model
        self.place = out / "export"
        self.scoring = scoring or Eval()
        self.preprocess = self.scoring.preprocess or preprocess
        for name in request.to:
            if name not in FORMATS:
                raise RecipeError(
                    f"[export] to: unknown export format '{name}': {did_you_mean(name, FORMATS)}"
                )

    def inputs(self) -> str:
        scoring = [self.scoring.root, list(self.scoring.datasets), self.scoring.text_model]
        labels = _model_of(self.request.labels) if self.request.labels else None
        settings = [self.request.model_dump(), scoring, self.preprocess, labels]
        return digest_of([settings, _model_of(str(self.model))])

    def outputs(self) -> str:
        records = [self.place / name / RECORD for name in self.request.to]
        if not all(record.exists() for record in records):
            return ""
        return digest_of([sampled_sha256(record) for record in records])

    def run(self, say: Say) -> Outcome:
        request = self.request
        root = self.scoring.root
        for name in request.to:
            exported = job.run(
                job.Request(
                    model=str(self.model),
                    to=name,
                    out=self.place / name,
                    labels=None if request.labels is None else Path(request.labels),
                    check_images=(
                        None if request.check_images is None else Path(request.check_images)
                    ),
                    eval_root=None if root is None else Path(root),
                    datasets=self.scoring.datasets,
                    least_cosine=request.least_cosine,
                    most_loss=request.most_loss,
                    text_model=self.scoring.text_model,
                    preprocess=self.preprocess,
                )
            )
            say(exported.describe())
        return Outcome(f"{', '.join(request.to)} in {self.place}")


def _shards_of(rows: Rows) -> list:
    """Return what identifies the shards of opened sources."""
    return [[shard.name, *shard.digests()] for shard in rows.shards]


def _fingerprint_of(place: str) -> str:
    """Return the fingerprint of the cache at ``place``, "" when it is not finished."""
    try:
        return Manifest.read(open_store(place)).fingerprint
    except CacheError:
        return ""


def _model_of(spec: str) -> list:
    """Return what identifies a model or file: its name and, where it lies here, its files."""
    path = Path(spec.removeprefix(LOCAL_DIR))
    weights_file = Path(spec.partition("/")[2])  # of ARCH/FILE
    if not path.exists() and weights_file.is_file():
        path = weights_file
    if path.is_file():
        return [spec, sampled_sha256(path)]
    if path.is_dir():
        weights = sorted(path.glob("*.safetensors")) + sorted(path.glob("*.json"))
        return [spec, [[file.name, sampled_sha256(file)] for file in weights]]
    return [spec]


def stages_of(experiment: Experiment, out: Path) -> list[Stage]:
    """Return the stages of an experiment that fills ``out``, in the order in which they run.

    The caches that ``[extract]`` makes take the place of those that ``[train]`` names.
    """
    stages: list[Stage] = []
    recipe = experiment.train
    if experiment.extract is not None:
        extraction = ExtractStage(experiment.extract, out)
        stages.append(extraction)
        if recipe is not None:
            recipe = _with_caches(recipe, extraction)
    if recipe is not None:
        stages.append(TrainStage(recipe, out))
    if experiment.eval is None and experiment.export is None:
        return stages
    model = out / "run"
    preprocess = None
    if recipe is None:
        model = Path(_only_teacher(experiment))
        preprocess = experiment.extract.preprocess
    if experiment.eval is not None:
        stages.append(EvalStage(experiment.eval, model, out, preprocess))
    if experiment.export is not None:
        stages.append(ExportStage(experiment.export, model, out, experiment.eval, preprocess))
    return stages


def _with_caches(recipe: Recipe, extraction: ExtractStage) -> Recipe:
    images, texts = extraction.caches("image"), extraction.caches("text")
    changes: dict[str, Any] = {}
    if images:
        changes["image_cache"] = images
    if texts:
        changes["text_cache"] = texts
    return recipe.replace(**changes)


def _only_teacher(experiment: Experiment) -> str:
    """Return the model that is scored when nothing is trained."""
    teachers: tuple[str, ...] = ()
    if experiment.extract is not None:
        teachers = experiment.extract.teacher
    if len(teachers) != 1:
        raise DataError(
            f"{experiment.path}: [eval] has no model to score. Fix: add [train], or [extract] with"
            " one teacher"
        )
    return teachers[0]
