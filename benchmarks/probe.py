"""How quick the search for a linear probe's settings is: 90 runs together, beside single runs; and
a path of logistic regressions beside scikit-learn's.

    python -m benchmarks.probe [--parts search logistic] [--images 5000] [--classes 100]
                               [--dim 512] [--single 3] [--repeats 3] [--out results.jsonl]

The search is the one of ``--protocol elevater`` on random embeddings: 10 epochs a run on 80 % of
the images, scored after each epoch on the others. Random embeddings would end it at the edge of
the decays, with fewer runs; so it is steered to one that takes all 90.

Single runs use torch's modules, autograd and SGD: once as the toolkit trains, with a DataLoader
and a score of the training images in each epoch, and once with batches cut from a tensor. Only
``--single`` of the 90 are run, and all are taken to last as long. The bound is the time of the
matrix products alone. All run in turn in one process; medians; the first round is not counted.
With one thread, seconds are those of the CPU, which other programs do not change much.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import _probe_logistic
from benchmarks._timing import Line, Work, interleaved, machine, record, table
from dimefm.evaluate.metrics import accuracy
from dimefm.evaluate.probe import elevater, heads
from dimefm.evaluate.probe.data import Features
from dimefm.evaluate.probe.sampling import split_train_val
from dimefm.evaluate.probe.sweep import SweepRun, sweep
from dimefm.runtime.versions import libraries

PARTS = ("search", "logistic")
Clock = Callable[[], float]


def drawn(n_images: int, n_classes: int, dim: int) -> tuple[Features, Features, np.ndarray]:
    """Return images to train on and for validation, and class weights: random ones."""
    draw = np.random.default_rng(0)
    centers = draw.normal(size=(n_classes, dim)).astype(np.float32)
    labels = draw.integers(n_classes, size=n_images)
    rows = centers[labels] + 4 * draw.normal(size=(n_images, dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    features = Features(rows.astype(np.float32), labels)
    fit, val = (features.take(places) for places in split_train_val(labels))
    start = centers / np.linalg.norm(centers, axis=1, keepdims=True)
    return fit, val, start


class Search:
    """The whole search; it keeps the settings of its runs."""

    def __init__(self, fit: Features, val: Features, start: np.ndarray):
        self.fit, self.val, self.start = fit, val, start
        self.runs: list[SweepRun] = []

    def run(self, repeat: int) -> None:
        """Search once."""
        self.runs, _ = sweep(self.score_runs)

    def score_runs(self, rates: list[float], decays: list[float]) -> np.ndarray:
        """Train and score a round; return scores that lead to the decay 10^-1.5."""
        heads.train(
            self.fit,
            self.start,
            rates,
            decays,
            epochs=elevater.SWEEP_EPOCHS,
            seed=0,
            after_epoch=lambda _, trained: trained.scores(self.val, "accuracy"),
        )
        return 1 / (1 + np.abs(np.log10(decays) + 1.5))


def batches_of(rows: Tensor, labels: Tensor, loader: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of an epoch, from a DataLoader or cut from the tensors."""
    if loader:
        yield from DataLoader(TensorDataset(rows, labels), heads.BATCH_SIZE, shuffle=True)
        return
    for places in torch.randperm(len(rows)).split(heads.BATCH_SIZE):
        yield rows[places], labels[places]


def single_run(
    fit: Features, val: Features, start: np.ndarray, rate: float, decay: float, loader: bool
) -> float:
    """Train one head by torch's own modules and return its best score on validation."""
    rows, labels = torch.from_numpy(fit.embeddings), torch.from_numpy(fit.labels)
    val_rows, val_labels = torch.from_numpy(val.embeddings), torch.from_numpy(val.labels)
    linear = nn.Linear(start.shape[1], len(start))
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(start))
        linear.bias.zero_()
    model = nn.Sequential(nn.BatchNorm1d(start.shape[1], affine=False), linear)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=decay)
    best = 0.0
    for _ in range(elevater.SWEEP_EPOCHS):
        model.train()
        outputs, seen = [], []
        for inputs, targets in batches_of(rows, labels, loader):
            optimizer.zero_grad()
            output = model(inputs)
            loss = criterion(output, targets)
            loss.backward()
            optimizer.step()
            if loader:
                loss.item()
                outputs.append(output.detach())
                seen.append(targets)
        model.eval()
        with torch.no_grad():
            if loader:
                accuracy(torch.cat(outputs).softmax(dim=-1).numpy(), torch.cat(seen).numpy())
                loaded = DataLoader(TensorDataset(val_rows, val_labels), heads.BATCH_SIZE)
                logits = torch.cat([model(inputs) for inputs, _ in loaded])
            else:
                logits = model(val_rows)
        best = max(best, accuracy(logits.softmax(dim=-1).numpy(), val.labels))
    return best


def single_runs(search: Search, count: int, loader: bool) -> Work:
    """Return some of the search's runs, one after the other."""

    def run(repeat: int) -> None:
        places = np.linspace(0, len(search.runs) - 1, count).astype(int)
        for place in places:
            chosen = search.runs[place]
            single_run(search.fit, search.val, search.start, chosen.rate, chosen.decay, loader)

    return Work(run, count)


def products(search: Search, count: int) -> Work:
    """Return the matrix products of ``count`` runs: logits, gradients, and validation."""
    n_classes, dim = search.start.shape
    n_at_once = max(1, heads.WEIGHTS_AT_ONCE // (4 * n_classes * dim))
    n_heads = min(count, n_at_once)
    weights = torch.randn(n_heads * n_classes, dim)
    gradient = torch.empty_like(weights)
    inputs = torch.randn(heads.BATCH_SIZE, dim)
    logits = torch.empty(heads.BATCH_SIZE, n_heads * n_classes)
    errors = torch.randn_like(logits)
    val_rows = torch.from_numpy(search.val.embeddings)
    steps = len(search.fit) // heads.BATCH_SIZE

    def run(repeat: int) -> None:
        for _ in range(elevater.SWEEP_EPOCHS):
            for _ in range(steps):
                torch.mm(inputs, weights.T, out=logits)
                torch.mm(errors.T, inputs, out=gradient)
            val_rows @ weights.T

    return Work(run, n_heads)


def search_section(
    n_images: int, n_classes: int, dim: int, n_single: int, repeats: int, clock: Clock
) -> tuple[str, list[Line]]:
    """Return the title and the lines of the search."""
    fit, val, start = drawn(n_images, n_classes, dim)
    search = Search(fit, val, start)
    search.run(0)
    works = {
        "search": Work(search.run, len(search.runs)),
        "loader": single_runs(search, n_single, loader=True),
        "tensor": single_runs(search, n_single, loader=False),
        "products": products(search, 90),
    }
    rates = interleaved(works, repeats, clock)
    against = {
        "loader": ("single runs with a DataLoader", (">=", 5.0)),
        "tensor": ("single runs with tensors", None),
        "products": ("matrix products alone", (">=", 0.5)),
    }
    lines = []
    for name, (what, goal) in against.items():
        item = f"probe search / {name}"
        lines.append(
            Line(item, f"runs of the search / {what}", rates["search"], "runs/s", rates[name], goal)
        )
    return f"{len(search.runs)} runs, {len(fit)} + {len(val)} images", lines


def main() -> None:
    """Run the benchmark, print the table and append its lines to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--single", type=int, default=3, help="single runs of a round")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--out", type=Path, help="file that lines of JSON are appended to")
    options = parser.parse_args()
    size = (options.images, options.classes, options.dim)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    sections = []
    if "search" in options.parts:
        sections.append(search_section(*size, options.single, options.repeats, clock))
    if "logistic" in options.parts:
        sections.append(_probe_logistic.section(*size, options.repeats, clock))
    with tempfile.TemporaryDirectory(prefix="dimefm-bench-") as folder:
        place = machine(Path(folder)) | {name: str(v) for name, v in libraries().items()}
    for name in ("scikit-learn", "scipy"):
        place[name] = importlib.metadata.version(name)
    place["threads"] = str(torch.get_num_threads())
    print("  ".join(f"{name} {value}" for name, value in place.items()))
    print(table(sections))
    if options.out:
        settings = {name: getattr(options, name) for name in ("images", "classes", "dim")}
        record(options.out, "probe", settings, sections, place)


if __name__ == "__main__":
    main()
