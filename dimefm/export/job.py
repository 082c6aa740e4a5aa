"""One export: load the model, write it into a new folder, check what was written, add the card."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dimefm.errors import DimefmError, RecipeError
from dimefm.export import card, gate, probe
from dimefm.export import labels as class_labels
from dimefm.export.folder import RECORD, new_export
from dimefm.export.formats import Options, format_of
from dimefm.export.gate import Agreement, Evaluation
from dimefm.export.whole import WholeClip
from dimefm.models.loading import load_encoder
from dimefm.models.model import Model
from dimefm.recipe import read as read_recipe
from dimefm.runtime import console
from dimefm.runtime.versions import libraries
from dimefm.storage.files import to_json
from dimefm.storage.remote import is_url

LIBRARIES = ("dimefm", "torch", "open_clip_torch", "timm", "transformers", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Request:
    """What to export, see :func:`dimefm.export.export`."""

    model: str
    to: str
    out: Path
    labels: Path | None = None
    check_images: Path | None = None
    eval_root: Path | None = None
    datasets: tuple[str, ...] = ()
    least_cosine: float | None = None
    most_loss: float = 0.01
    text_model: str | None = None
    preprocess: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """A finished export: its folder, what the gate found, and its files with their bytes."""

    folder: Path
    to: str
    agreements: list[Agreement]
    files: dict[str, int]

    def describe(self) -> str:
        """Return the result in a few lines, for people."""
        lines = [agreement.describe() for agreement in self.agreements]
        size = sum(self.files.values())
        lines.append(f"{self.folder}: {self.to}, {len(self.files)} files, {size / 1e6:,.2f} MB")
        return "\n".join(lines)


def run(request: Request) -> Exported:
    """Export a model; raise DimefmError, and leave nothing behind, when it cannot be done."""
    if request.datasets and request.eval_root is None:
        raise RecipeError("--datasets: needs --eval-root, the folder that holds them. Fix: add it")
    format = format_of(request.to)
    _check_settings(request, getattr(format, "SETTINGS", ()))
    with new_export(request.out) as folder:
        encoder = load_encoder(
            request.model,
            "cpu",
            text_model=request.text_model,
            preprocess=request.preprocess,
        )
        for note in encoder.notes:
            console.note(note)
        whole = WholeClip.from_encoder(encoder)
        has_labels = request.labels is not None
        format.check(whole, Options(None, request.settings, has_labels))
        model = Model(encoder)
        labels = None
        if request.labels is not None:
            labels = class_labels.read(request.labels, model)
        options = Options(labels, request.settings, has_labels)
        facts = format.write(whole, folder, options)
        if labels is not None:
            labels.write(folder, model)
            facts = {**facts, "labels": class_labels.describe(labels)}
        rows = probe.make(encoder, request.check_images, _sources_of(request.model))
        evaluation = None
        if request.eval_root is not None:
            evaluation = Evaluation(request.eval_root, request.datasets)
        agreements = gate.pass_through(
            encoder,
            format.variants(whole, folder, options),
            rows,
            least_cosine=request.least_cosine,
            most_loss=request.most_loss,
            evaluation=evaluation,
        )
        usage = card.usage(format.USAGE, request.out)
        text = card.text(whole, folder, format.TAGS, agreements, rows.source, usage)
        (folder / card.FILE).write_text(text, encoding="utf-8")
        files = {path: size for path, size in _files(folder).items() if path != RECORD}
        record = {
            "format": request.to,
            "model": whole.encoder.card.identity(),
            "checked_on": rows.source,
            "agreements": [vars(agreement) for agreement in agreements],
            "facts": facts,
            "files": files,
            "libraries": libraries(LIBRARIES),
        }
        (folder / RECORD).write_text(to_json(record), encoding="utf-8")
    return Exported(request.out, request.to, agreements, files)


def _check_settings(request: Request, known: Sequence[str]) -> None:
    """Raise RecipeError for a setting that the format does not have."""
    for name in request.settings:
        if name not in known:
            option = f"--{name.replace('_', '-')}"
            raise RecipeError(f"{option}: is no option of --to {request.to}. Fix: remove it")


def _sources_of(model: str) -> tuple[str, ...]:
    """Return the sources on this machine that a run was trained on, none for another model."""
    recipe = Path(model) / "recipe.toml"
    if not recipe.is_file():
        return ()
    with contextlib.suppress(DimefmError):
        sources = read_recipe(recipe).images
        return tuple(source for source in sources if not is_url(source))
    return ()


def _files(folder: Path) -> dict[str, int]:
    """Return the files below a folder and their bytes."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path.stat().st_size
    return files
