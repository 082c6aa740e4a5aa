"""Where the scores come from: models, teachers, caches, recipes, machine, versions, settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dimefm.evaluate.report.collect import Collection, Model, Source
from dimefm.evaluate.report.parts import NONE, Section, Table
from dimefm.evaluate.report.words import count, cut

SHA_DIGITS = 12
LONGEST = 120
"""Characters of a setting that are shown."""

RUN_FACTS = ("kind", "steps", "rows", "parameters", "start", "pruned", "ema", "imported")


def section(collection: Collection) -> Section:
    """Return tables on every file of scores, every run, and what could not be scored."""
    tables = [_files(collection)]
    for model in collection.models:
        tables += _run_tables(model)
    unscored = _unscored(collection.sources)
    if unscored is not None:
        tables.append(unscored)
    return Section(
        name="provenance",
        title="Where these numbers come from",
        text=collection.notes,
        tables=tables,
    )


def _files(collection: Collection) -> Table:
    """Return a table with a column for each file of scores."""
    facts = []
    head = [""]
    for model in collection.models:
        for source in model.sources:
            facts.append(_facts_of(source))
            is_only = len(model.sources) == 1
            head.append(model.name if is_only else f"{model.name}, {source.folder.name}")
    names = list(dict.fromkeys(name for table in facts for name in table))
    rows = []
    for name in names:
        rows.append([name, *(table.get(name, NONE) for table in facts)])
    return Table("Files of scores", head, rows, left=tuple(range(len(head))))


def _facts_of(source: Source) -> dict[str, str]:
    """Return what a file says of how its scores were made, as text."""
    content = source.content
    facts = {
        "file": source.path.as_posix(),
        "model": str(content.get("model", NONE)),
        "weights": _digest(content.get("weights_sha256")),
        "protocol": str(content.get("protocol", NONE)),
    }
    encoder = content.get("encoder")
    tables: list[tuple[str, Any]] = [("", encoder), ("", content.get("settings"))]
    if isinstance(encoder, dict):
        tables.append(("machine: ", encoder.get("machine")))
    for before, table in tables:
        if not isinstance(table, dict):
            continue
        for name, value in table.items():
            if not isinstance(value, dict):
                facts[f"{before}{name.replace('_', ' ')}"] = _shown(value)
    for name in ("metric", "split", "seconds"):
        if isinstance(content.get(name), str | int | float):
            facts[name] = str(content[name])
    libraries = content.get("libraries")
    if isinstance(libraries, dict):
        for name, version in libraries.items():
            facts[f"version of {name}"] = str(version)
    return facts


def _run_tables(model: Model) -> list[Table]:
    """Return what the run folder of a model says: its teacher, caches, machine and recipe."""
    if model.run is None:
        return []
    record = model.run.record
    rows = []
    teachers = record.teachers or ([record.teacher] if record.teacher else [])
    for card in teachers:
        if isinstance(card, dict):
            rows.append(["teacher", f"{card.get('name')} {_digest(card.get('weights_sha256'))}"])
    for name, digests in record.fingerprints.items():
        rows.append([name.replace("_", " "), ", ".join(_digest(digest) for digest in digests)])
    for name in RUN_FACTS:
        value = getattr(record, name)
        if value is not None:
            rows.append([name, _shown(value)])
    for before, table in (("machine: ", record.machine), ("version of ", record.libraries)):
        for name, value in (table or {}).items():
            rows.append([f"{before}{name}", _shown(value)])
    head = ("", model.name)
    tables = [Table(f"The run of {model.name}", head, rows, left=(0, 1))]
    recipe = [[name, _shown(value)] for name, value in _flat(model.run.recipe)]
    if recipe:
        tables.append(Table(f"The recipe of {model.name}", ("key", "value"), recipe, left=(0, 1)))
    return tables


def _flat(table: Mapping, above: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of nested tables with names like ``losses.dime.vl.weight``."""
    leaves = []
    for name, value in table.items():
        if isinstance(value, dict):
            leaves += _flat(value, f"{above}{name}.")
        else:
            leaves.append((f"{above}{name}", value))
    return leaves


def _unscored(sources: Sequence[Source]) -> Table | None:
    """Return the datasets without a score, and why; None when there are none."""
    rows = []
    for source in sources:
        model = str(source.content.get("model", NONE))
        for failure in source.content.get("failed") or ():
            if isinstance(failure, dict):
                name = str(failure.get("dataset"))
                rows.append([model, name, f"failed: {failure.get('reason')}"])
        for state, reason in (("missing", "not found"), ("pending", "not scored yet")):
            for name in source.content.get(state) or ():
                rows.append([model, str(name), reason])
    if not rows:
        return None
    head = ("model", "dataset", "reason")
    return Table("Datasets without a score", head, rows, left=(0, 1, 2))


def _digest(value: Any) -> str:
    return value[:SHA_DIGITS] if isinstance(value, str) else NONE


def _shown(value: Any) -> str:
    """Return a setting as text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: NONE}[value]
    if isinstance(value, int):
        return count(value)
    if isinstance(value, str):
        text = value
    else:
        text = json.dumps(value, ensure_ascii=False)
    return cut(text, LONGEST)
