"""clip-benchmark on folders of its own layout; runs in its own environment.

    PEER/bin/python peer.py JOB.json

The job has ``model`` (an open_clip folder), ``root``, ``sets`` (name and task of each), ``seeds``
and ``out``, a folder. Predictions of each set are written as ``NAME.npz``, all scores as
``peer.json``. The functions are clip-benchmark's. Its linear probe asks for a GPU: where there is
none, the calls that move tensors to one do nothing.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from clip_benchmark.datasets.builder import build_dataset
from clip_benchmark.metrics import linear_probe, zeroshot_classification, zeroshot_retrieval
from clip_benchmark.models import load_clip

BATCH = 64
RECALL_AT = [1, 5, 10]
VALIDATION = 0.2
RATE = 0.1
EPOCHS = 10


class Cpu(str):
    """The name of the CPU as a device, which passes for that of a GPU where it is compared."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return other == "cuda" or str.__eq__(self, other)

    __hash__ = str.__hash__


def loader(dataset):
    return torch.utils.data.DataLoader(dataset.batched(BATCH), batch_size=None, num_workers=0)


def open_set(root: Path, name: str, transform, split: str, task: str):
    return build_dataset(
        dataset_name=f"wds/{name}",
        root=str(root / f"wds_{name}"),
        transform=transform,
        split=split,
        download=False,
        task=task,
    )


def zero_shot(job, name, model, transform, tokenizer) -> dict:
    root = Path(job["root"])
    dataset = open_set(root, name, transform, "test", "zeroshot_classification")
    started = time.perf_counter()
    metrics = zeroshot_classification.evaluate(
        model,
        loader(dataset),
        tokenizer,
        dataset.classes,
        dataset.templates,
        device="cpu",
        amp=False,
    )
    seconds = time.perf_counter() - started
    classifier = zeroshot_classification.zero_shot_classifier(
        model, tokenizer, dataset.classes, dataset.templates, "cpu", amp=False
    )
    again = open_set(root, name, transform, "test", "zeroshot_classification")
    logits, labels = zeroshot_classification.run_classification(
        model, classifier, loader(again), "cpu", amp=False
    )
    predicted = logits.argmax(dim=1).numpy()
    np.savez(Path(job["out"]) / f"{name}.npz", predicted=predicted, labels=labels.numpy())
    return {**{key: float(value) for key, value in metrics.items()}, "seconds": seconds}


def retrieval(job, name, model, transform, tokenizer) -> dict:
    dataset = open_set(Path(job["root"]), name, transform, "test", "zeroshot_retrieval")
    metrics = zeroshot_retrieval.evaluate(
        model, loader(dataset), tokenizer, "cpu", amp=False, recall_k_list=RECALL_AT
    )
    return {key: float(value) for key, value in metrics.items()}


def probe(job, name, model, transform) -> list[dict]:
    """Return the scores of each seed: its sweep of decays on a random fifth of the training set."""
    root = Path(job["root"])
    device = "cuda"
    if not torch.cuda.is_available():
        device = Cpu("cpu")
        torch.nn.Module.cuda = lambda self, *of, **named: self
        torch.Tensor.cuda = lambda self, *of, **named: self
        torch.nn.DataParallel = lambda module, **named: module
    train = list(open_set(root, name, transform, "train", "linear_probe"))
    test = list(open_set(root, name, transform, "test", "linear_probe"))
    scores = []
    for seed in job["seeds"]:
        torch.manual_seed(seed)
        parts = torch.utils.data.random_split(train, [1 - VALIDATION, VALIDATION])
        loaders = [torch.utils.data.DataLoader(part, batch_size=BATCH) for part in (*parts, test)]
        with tempfile.TemporaryDirectory() as features:
            metrics = linear_probe.evaluate(
                model,
                loaders[0],
                loaders[2],
                -1,
                BATCH,
                0,
                RATE,
                EPOCHS,
                name,
                seed,
                features,
                device,
                val_dataloader=loaders[1],
                amp=False,
            )
        scores.append({key: float(metrics[key]) for key in ("lp_acc1", "lp_mean_per_class_recall")})
    return scores


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    model, transform, tokenizer = load_clip(
        "open_clip", f"local-dir:{job['model']}", "", None, device="cpu"
    )
    model.eval()
    found: dict[str, dict] = {}
    for entry in job["sets"]:
        name = entry["name"]
        found[name] = {}
        for task in entry["tasks"]:
            if task == "zero-shot":
                found[name][task] = zero_shot(job, name, model, transform, tokenizer)
            elif task == "retrieval":
                found[name][task] = retrieval(job, name, model, transform, tokenizer)
            else:
                found[name][task] = probe(job, name, model, transform)
    (Path(job["out"]) / "peer.json").write_text(json.dumps(found, indent=1))


main()
