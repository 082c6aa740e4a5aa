"""Run clip-benchmark and this package on the same weights and files, and print both figures."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import dimefm
from benchmarks._timing import machine
from benchmarks.parity import folders, ours
from dimefm.evaluate.datasets.layouts import find
from dimefm.models.encoder import Encoder
from dimefm.models.loading import load_encoder
from dimefm.runtime.tables import markdown_table

SETS = ("cifar10", "mnist", "caltech101", "scene15", "sign_digits")
PROBED = ("mnist", "caltech101", "scene15", "sign_digits")
PAIRS = ("fsac", "ucm")
DISTINCT = "_distinct"
PROTOCOLS = ("clean", "logistic")
SEEDS = [0, 1, 2]
PEER = Path(__file__).with_name("peer.py")
THREADS = 2


@dataclass(frozen=True)
class Folders:
    """What both programs read and write: the datasets, the exported model, and the results."""

    out: Path

    @property
    def sets(self) -> Path:
        return self.out / "wds"

    @property
    def model(self) -> Path:
        return self.out / "model"

    @property
    def features(self) -> Path:
        return self.out / "features"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.parity", description=__doc__)
    parser.add_argument("--model", required=True, help="what dimefm.load takes")
    parser.add_argument("--root", required=True, type=Path, help="folder with classification/")
    parser.add_argument("--peer", required=True, help="python of clip-benchmark's environment")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--sets", default=",".join(SETS), help="datasets, with commas")
    return parser.parse_args()


def names_of_pairs() -> list[str]:
    """Return the retrieval datasets: as they are, and without captions that images share."""
    return [name + ending for name in PAIRS for ending in ("", DISTINCT)]


def write_sets(root: Path, sets: Sequence[str], place: Folders) -> None:
    """Write the datasets as clip-benchmark's folders, unless they are there."""
    for name in sets:
        folder = place.sets / f"wds_{name}"
        if folder.exists():
            continue
        [dataset], _ = find(root / "classification", [name])
        splits = ("train", "test") if name in PROBED else ("test",)
        folders.classification_folder(dataset, folder, splits)
    for name in PAIRS:
        source = root / "captions" / name / "test.parquet"
        for ending in ("", DISTINCT):
            folder = place.sets / f"wds_{name}{ending}"
            if not folder.exists():
                folders.retrieval_folder(source, folder, distinct=bool(ending))


def run_peer(python: str, sets: Sequence[str], place: Folders) -> dict:
    """Run clip-benchmark on the folders and return its scores."""
    entries = []
    for name in sets:
        tasks = ["zero-shot", "probe"] if name in PROBED else ["zero-shot"]
        entries.append({"name": name, "tasks": tasks})
    entries += [{"name": name, "tasks": ["retrieval"]} for name in names_of_pairs()]
    job = {
        "model": str(place.model.resolve()),
        "root": str(place.sets.resolve()),
        "sets": entries,
        "seeds": SEEDS,
        "threads": THREADS,
        "out": str(place.out.resolve()),
    }
    path = place.out / "job.json"
    path.write_text(json.dumps(job, indent=1))
    with (place.out / "peer.log").open("w") as log:
        subprocess.run([python, str(PEER), str(path)], check=True, stdout=log, stderr=log)
    return json.loads((place.out / "peer.json").read_text())


def zero_shot_table(
    encoder: Encoder, sets: Sequence[str], theirs: dict, place: Folders
) -> list[tuple[str, ...]]:
    """Return accuracy and mean per class of both, and how many images get another class."""
    rows = [
        (
            "zero-shot",
            "images",
            "accuracy",
            "ours",
            "mean per class",
            "ours",
            "images of another class",
        )
    ]
    for name in sets:
        scores = ours.zero_shot_scores(encoder, place.sets, name, place.features)
        kept = np.load(place.out / f"{name}.npz", allow_pickle=False)
        if not np.array_equal(kept["labels"], scores.labels):
            raise SystemExit(f"{name}: the two programs read other images or other labels")
        different = np.count_nonzero(kept["predicted"] != scores.predicted)
        peer = theirs[name]["zero-shot"]
        rows.append(
            (
                name,
                f"{len(scores.labels):,}",
                f"{100 * peer['acc1']:.3f}",
                f"{100 * scores.accuracy:.3f}",
                f"{100 * peer['mean_per_class_recall']:.3f}",
                f"{100 * scores.mean_per_class:.3f}",
                str(different),
            )
        )
    return rows


def retrieval_table(encoder: Encoder, theirs: dict, place: Folders) -> list[tuple[str, ...]]:
    """Return recall at 1, 5 and 10 of both in both directions."""
    rows = [("retrieval", "direction", *_both("R@1"), *_both("R@5"), *_both("R@10"))]
    for name in names_of_pairs():
        found = ours.recalls(encoder, place.sets, name, place.features)
        for recall, direction in ours.RECALLS.items():
            cells = [name, direction]
            for k in (1, 5, 10):
                key = f"{recall}@{k}"
                cells += [f"{100 * theirs[name]['retrieval'][key]:.2f}", f"{100 * found[key]:.2f}"]
            rows.append(tuple(cells))
    return rows


def _both(name: str) -> tuple[str, str]:
    return name, "ours"


def probe_table(
    encoder: Encoder, sets: Sequence[str], theirs: dict, place: Folders
) -> list[tuple[str, ...]]:
    """Return the accuracy of linear probes, mean and deviation over seeds.

    The last column is the standard error of an accuracy on so many test images.
    """
    rows = [
        ("linear probe", "clip-benchmark", "ours, clean", "ours, logistic", "error of n images")
    ]
    for name in sets:
        if name not in PROBED:
            continue
        peer = [entry["lp_acc1"] for entry in theirs[name]["probe"]]
        cells = [name, _spread(peer)]
        for protocol in PROTOCOLS:
            scores = ours.probe_scores(encoder, place.sets, name, place.features, protocol, SEEDS)
            cells.append(_spread(scores))
        mean = statistics.mean(peer)
        n_images = len(np.load(place.out / f"{name}.npz", allow_pickle=False)["labels"])
        error = math.sqrt(mean * (1 - mean) / n_images)
        rows.append((*cells, f"± {100 * error:.1f}"))
    return rows


def _spread(scores: Sequence[float]) -> str:
    return f"{100 * statistics.mean(scores):.1f} ± {100 * statistics.stdev(scores):.1f}"


def main() -> None:
    options = arguments()
    place = Folders(options.out)
    sets = options.sets.split(",")
    place.sets.mkdir(parents=True, exist_ok=True)
    write_sets(options.root, sets, place)
    if not place.model.exists():
        dimefm.export(options.model, "open_clip", place.model)
    theirs = run_peer(options.peer, sets, place)
    encoder = load_encoder(str(place.model), "cpu")
    tables = [
        zero_shot_table(encoder, sets, theirs, place),
        retrieval_table(encoder, theirs, place),
        probe_table(encoder, sets, theirs, place),
    ]
    texts = ["\n".join(markdown_table(rows, _text_columns(rows))) for rows in tables]
    facts = ", ".join(f"{name} {value}" for name, value in machine(options.out).items())
    page = "\n\n".join([*texts, f"Machine: {facts}"]) + "\n"
    (options.out / "parity.md").write_text(page)
    print(page)


def _text_columns(rows: Sequence[tuple[str, ...]]) -> tuple[int, ...]:
    return (0, 1) if rows[0][0] == "retrieval" else (0,)


main()
