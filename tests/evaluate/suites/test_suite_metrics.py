"""Metrics against the definitions of clip-benchmark, scikit-learn and WILDS."""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score

from dimefm.evaluate.suites.metrics import (
    METRICS,
    answers_of,
    mean_average_precision,
    with_unreadable,
)


def drawn(seed, n_classes=9):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, n_classes - 2, 200)  # two classes have no image
    logits = draw.normal(size=(200, n_classes)).astype(np.float32)
    logits[np.arange(200), labels] += 1
    groups = draw.integers(0, 4, 200) * 3  # some numbers are no group
    return logits, labels, groups


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_metrics_of_one_label(seed):
    logits, labels, groups = drawn(seed)
    answers = answers_of(logits, labels, groups)
    top = torch.from_numpy(logits).topk(5, dim=1).indices.numpy()
    in_top5 = (top == labels[:, None]).any(axis=1)
    is_right = top[:, 0] == labels
    of_groups = {
        "acc_wg": min(is_right[groups == group].mean() for group in np.unique(groups)),
        "acc_top5_wg": min(in_top5[groups == group].mean() for group in np.unique(groups)),
    }
    f1 = f1_score(labels, top[:, 0], average="macro", labels=np.unique(labels))
    expected = {
        "acc1": is_right.mean(),
        "acc5": in_top5.mean(),
        "mean_per_class_recall": balanced_accuracy_score(labels, top[:, 0]),
        "acc_worst_region": of_groups["acc_wg"],
        "F1-macro_all": f1,
        **of_groups,
    }
    found = {name: metric(answers) for name, metric in METRICS.items()}
    assert found == pytest.approx(expected, abs=1e-9)


def test_equal_scores_count_for_the_first_class():
    answers = answers_of(np.zeros((6, 6), np.float32), np.arange(6))
    assert METRICS["acc1"](answers) == pytest.approx(1 / 6)
    assert METRICS["acc5"](answers) == pytest.approx(5 / 6)


def test_unreadable_images_are_wrong_in_every_metric():
    logits, labels, groups = drawn(0)
    readable = np.arange(0, 200, 2)
    part = answers_of(logits[readable], labels[readable], groups[readable])
    everything = with_unreadable(part, readable, labels, groups)
    assert METRICS["acc1"](everything) == pytest.approx(METRICS["acc1"](part) / 2)
    for name, metric in METRICS.items():
        assert metric(everything) < metric(part), name


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_clip_benchmark(seed):
    """As clip_benchmark 1.6.2 defines it: precisions at the positives, 0 without any."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(50, 7)).astype(np.float32)
    targets = (draw.random((50, 7)) < 0.3).astype(np.int64)
    targets[:, 2] = 0
    values = []
    for scores, truth in zip(logits.T, targets.T, strict=True):
        ranked = truth[np.argsort(-scores)]
        precisions = [ranked[: place + 1].mean() for place in np.flatnonzero(ranked)]
        values.append(np.mean(precisions) if precisions else 0)
    assert mean_average_precision(logits, targets) == pytest.approx(np.mean(values))
