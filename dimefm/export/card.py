"""The model card of an export: ``README.md`` with the metadata that hubs of models read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import open_clip

from dimefm.cache import EncoderCard
from dimefm.errors import DataError, ModelError
from dimefm.export.gate import Agreement
from dimefm.export.whole import WholeClip
from dimefm.models.published import describe
from dimefm.runs import folder as runs
from dimefm.runs.record import RunRecord
from dimefm.runs.scores import SCORES, read_results
from dimefm.runtime.printable import report
from dimefm.runtime.tables import markdown_table
from dimefm.storage.small_files import read_text

FILE = "README.md"
RECIPE = "recipe.toml"
USAGES = Path(__file__).parent / "usage"
SHOWN_DIGEST = 12  # characters
LICENCES = {
    "openai": "MIT",
    "laion": "MIT",
    "datacomp": "MIT",
    "commonpool": "MIT",
    "webli": "Apache-2.0",
    "metaclip": "CC-BY-NC-4.0",
}
"""Beginning of a pretrained tag of open_clip -> the licence that its publishers state."""


def usage(name: str, out: Path) -> str:
    """Return how to load an export in ``out``, from the file of that name in ``usage/``."""
    return (USAGES / name).read_text(encoding="utf-8").replace("FOLDER", str(out))


def text(
    whole: WholeClip,
    folder: Path,
    tags: dict[str, str],
    agreements: Sequence[Agreement],
    checked_on: str,
    how_to_use: str,
) -> str:
    """Return the card of the export in ``folder``."""
    run = Path(whole.name)
    record = runs.read(run) if (run / runs.FILE).is_file() else None
    sections = [
        _head(whole, tags, record),
        f"## Use\n\n{how_to_use.rstrip()}",
        _towers(whole, record),
        _training(run, record),
        _scores(run, agreements),
        _checks(agreements, checked_on),
        _files(folder),
    ]
    return report("\n\n".join(section for section in sections if section) + "\n")


def _head(whole: WholeClip, tags: dict[str, str], record: RunRecord | None) -> str:
    lines = ["---"]
    lines += [f"{key}: {value}" for key, value in tags.items()]
    lines += ["tags:", "- clip", "- dimefm", "license: other", "---", ""]
    lines += [f"# {Path(whole.name).name}", ""]
    what = f"A CLIP of {whole.dim} dimensions"
    if record is not None and record.teacher is not None:
        what += f", distilled from {record.teacher.get('name')} with dimefm"
    lines.append(f"{what}. It scores images against sentences: zero-shot classification, search.")
    return "\n".join(lines)


def _towers(whole: WholeClip, record: RunRecord | None) -> str:
    """Return what the export is made of: its two towers, and whose they are."""
    encoder = whole.encoder
    own = "this model"
    owners = {"image": own, "text": own}
    shared = encoder.card.shared_towers
    teacher = record.teacher if record is not None else None
    for side in ("image", "text"):
        if side in shared and teacher is not None:
            owners[side] = f"borrowed from {teacher.get('name')}"
    rows: list[Sequence[str]] = [("tower", "weights", "from", "licence")]
    counts = {"image": encoder.image_parameters, "text": encoder.text_parameters}
    for side, owner in owners.items():
        source = encoder.card.name
        if owner != own and teacher is not None:
            source = str(teacher.get("name"))
        is_trained_here = record is not None and record.imported is None
        licence = "yours" if owner == own and is_trained_here else licence_of(source)
        rows.append((side, f"{counts[side]:,}", owner, licence))
    lines = ["## Made of", "", *markdown_table(rows, left=(0, 2, 3)), ""]
    lines.append(f"Images: {describe(whole.preprocess)}. Text: {whole.context_length} tokens.")
    lines.append(f"Factor on cosines: {whole.logit_scale:.4g}.")
    if whole.logit_bias is not None:
        lines.append(f"Bias on logits: {whole.logit_bias:.4g}.")
    return "\n".join(lines)


def licence_of(name: str) -> str:
    """Return the licence of a model of open_clip by its name, with where its publishers say so."""
    architecture, _, tag = name.partition("/")
    settings = open_clip.get_pretrained_cfg(architecture, tag) or {}
    place = settings.get("hf_hub", "").strip("/")
    where = f"https://huggingface.co/{place}" if place else settings.get("url", "")
    for beginning, licence in LICENCES.items():
        if settings and tag.startswith(beginning):
            return f"{licence} ({where})"
    if where:
        return f"see {where}"
    return f"that of {name}"


def _training(run: Path, record: RunRecord | None) -> str:
    """Return how a run was trained: its teacher, its caches, and its recipe."""
    if record is None:
        return ""
    lines = ["## Training", ""]
    if record.imported is not None:
        lines.append("The weights were imported, not trained here.")
    else:
        lines.append(f"{record.steps:,} steps on {record.rows:,} rows.")
    if record.teacher is not None:
        card = EncoderCard.from_fields(record.teacher)
        digest = (card.weights_sha256 or "unknown")[:SHOWN_DIGEST]
        lines.append(f"Teacher: {card.name}, {card.dim} dimensions, weights {digest}.")
    for name, fingerprints in record.fingerprints.items():
        shown = ", ".join(str(value)[:SHOWN_DIGEST] for value in fingerprints)
        lines.append(f"{name}: {shown}.")
    try:
        recipe = read_text(run / RECIPE)
    except (OSError, ValueError):
        return "\n".join(lines)
    return "\n".join([*lines, "", "```toml", recipe.rstrip(), "```"])


def _scores(run: Path, agreements: Sequence[Agreement]) -> str:
    """Return the scores that the run folder has, and those that the gate computed."""
    rows: list[Sequence[str]] = [("dataset", "scores of", "percent")]
    for path in sorted([*run.glob(SCORES), *run.glob(f"*/{SCORES}")]):
        try:
            results = read_results(path)
        except (DataError, ModelError):
            continue
        for result in results:
            rows.append((result.dataset, f"the run ({result.task})", f"{100 * result.value:.2f}"))
    for agreement in agreements:
        for dataset, (before, after) in agreement.scores.items():
            rows.append((dataset, "before the export", f"{100 * before:.2f}"))
            rows.append((dataset, agreement.variant, f"{100 * after:.2f}"))
    if len(rows) == 1:
        return ""
    return "\n".join(["## Scores", "", *markdown_table(rows, left=(0, 1))])


def _checks(agreements: Sequence[Agreement], checked_on: str) -> str:
    lines = ["## Checks", ""]
    if not agreements:
        return "\n".join([*lines, "The files were not loaded again: a package was missing."])
    lines += [f"What was written was loaded again and compared, on {checked_on}:", ""]
    lines += [f"* {agreement.describe()}" for agreement in agreements]
    return "\n".join(lines)


def _files(folder: Path) -> str:
    rows: list[Sequence[str]] = [("file", "MB")]
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            rows.append((name, f"{path.stat().st_size / 1e6:.2f}"))
    return "\n".join(["## Files", "", *markdown_table(rows)])
