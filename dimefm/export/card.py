"""The model card of an export: ``README.md`` with the metadata that hubs of models read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dimefm.export.gate import Agreement
from dimefm.export.whole import WholeClip
from dimefm.runtime.printable import report

FILE = "README.md"
USAGES = Path(__file__).parent / "usage"


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
    lines = ["---"]
    lines += [f"{key}: {value}" for key, value in tags.items()]
    lines += ["---", "", f"# {Path(whole.name).name}", ""]
    lines += ["## Use", "", how_to_use.rstrip(), ""]
    lines += ["## Checks", "", f"Compared with the model before the export, on {checked_on}:", ""]
    lines += [f"* {agreement.describe()}" for agreement in agreements]
    return report("\n".join(lines) + "\n")
