"""What a cut left of a student's transformers: channels, and heads and hidden units of each layer.

Everything is read from ``run.json``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dimefm.errors import DataError, ModelError
from dimefm.runs import folder as runs
from dimefm.runtime.tables import aligned

TOWERS = {"image": "vision_cfg", "text": "text_cfg"}
KEPT_COLOR = "#0072b2"
WHOLE_COLOR = "#d9e2ea"


@dataclass(frozen=True)
class Kept:
    """What is left of one tower, and the sizes ``of_...`` that each layer had before its first cut.

    The latter are the largest ones that are left where the record does not say them.
    """

    tower: str
    width: int
    heads: tuple[int, ...]
    mlp: tuple[int, ...]
    of_width: int
    of_heads: int
    of_mlp: int


def read_kept(folder: Path) -> list[Kept]:
    """Return what is left of each tower that was cut; raise DataError when none was.

    Raises ModelError when the record of the run cannot be read.
    """
    record = runs.read(folder)
    wholes = (record.pruned or {}).get("whole", {})
    kept = []
    for tower, key in TOWERS.items():
        pruned = (record.model_cfg.get(key) or {}).get("pruned")
        if pruned is None:
            continue
        try:
            kept.append(_kept(tower, pruned, wholes.get(tower)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"{folder / runs.FILE}: the layers of the {tower} tower cannot be read ({error!r})."
                " Fix: restore the file"
            ) from error
    if not kept:
        raise DataError(
            f"{folder}: nothing was cut from its student. Fix: name a run whose recipe has 'prune',"
            " or an imported model of automatic inheritance"
        )
    return kept


def _kept(tower: str, pruned: dict, whole: dict | None) -> Kept:
    heads = tuple(int(layer["heads"]) for layer in pruned["layers"])
    mlp = tuple(int(layer["mlp"]) for layer in pruned["layers"])
    width = int(pruned["width"])
    if whole is None:
        whole = {"width": width, "heads": max(heads), "mlp": max(mlp)}
    of_width, of_heads, of_mlp = (int(whole[name]) for name in ("width", "heads", "mlp"))
    return Kept(tower, width, heads, mlp, of_width, of_heads, of_mlp)


def as_dict(kept: Kept) -> dict:
    """Return what is left of a tower as JSON values."""
    layers = []
    for heads, mlp in zip(kept.heads, kept.mlp, strict=True):
        layers.append({"heads": heads, "mlp": mlp})
    whole = {"width": kept.of_width, "heads": kept.of_heads, "mlp": kept.of_mlp}
    return {"tower": kept.tower, "width": kept.width, "layers": layers, "whole": whole}


def text(towers: list[Kept]) -> str:
    """Return what is left of all towers as a table for people."""
    parts = []
    for kept in towers:
        rows = []
        for layer, (heads, mlp) in enumerate(zip(kept.heads, kept.mlp, strict=True)):
            rows.append([str(layer), f"{heads} of {kept.of_heads}", f"{mlp:,} of {kept.of_mlp:,}"])
        heading = f"{kept.tower} tower: {kept.width} of {kept.of_width} channels"
        lines = aligned([["layer", "heads", "hidden units"], *rows])
        parts.append("\n".join([heading, *lines]))
    return "\n\n".join(parts)


def draw(towers: list[Kept], path: Path, title: str) -> None:
    """Plot what is left of all towers into a PNG: a bar for each layer, before the whole's."""
    if path.suffix.lower() != ".png":
        raise DataError(f"--out {path}: expected a name that ends in .png. Fix: give such a name")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (9.6, 0.7 + 2.9 * len(towers))
    figure, grid = plt.subplots(
        len(towers), 2, figsize=size, layout="constrained", squeeze=False, width_ratios=(1, 1)
    )
    for (left, right), kept in zip(grid, towers, strict=True):
        _panel(left, kept.heads, kept.of_heads, "heads")
        _panel(right, kept.mlp, kept.of_mlp, "hidden units")
        heads = f"{sum(kept.heads)} of {kept.of_heads * len(kept.heads)} heads"
        units = f"{sum(kept.mlp):,} of {kept.of_mlp * len(kept.mlp):,} hidden units"
        channels = f"{kept.width} of {kept.of_width} channels"
        left.set_title(f"{kept.tower} tower, {channels}: {heads}", loc="left", fontsize=10)
        right.set_title(units, loc="left", fontsize=10)
    figure.suptitle(title.replace("$", r"\$"), x=0.01, ha="left", fontsize=11, weight="bold")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(axes, counts: tuple[int, ...], whole: int, label: str) -> None:
    """Draw a bar for each layer, and its number where there is room."""
    layers = range(len(counts))
    axes.bar(layers, [whole] * len(counts), color=WHOLE_COLOR, width=0.8)
    bars = axes.bar(layers, counts, color=KEPT_COLOR, width=0.8)
    axes.bar_label(bars, fontsize=7 if len(counts) <= 12 else 5, padding=1)
    axes.set_xticks(layers)
    axes.tick_params(labelsize=8)
    axes.set(xlabel="layer", ylabel=label, ylim=(0, 1.12 * whole))
    axes.spines[["top", "right"]].set_visible(False)
