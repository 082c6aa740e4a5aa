"""The toolkit's protocol: what it chooses, what it reports, and from which images."""

import numpy as np
import pytest

from dimefm.evaluate.metrics import METRICS
from dimefm.evaluate.probe import elevater, heads
from dimefm.evaluate.probe.data import Features
from dimefm.evaluate.probe.protocols import PROTOCOLS
from dimefm.evaluate.probe.sampling import split_train_val


def features(n, several=False, seed=0, n_classes=4, dim=8):
    rng = np.random.default_rng(seed)
    centers = 1.5 * np.random.default_rng(9).normal(size=(n_classes, dim))
    if several:
        labels = (rng.random((n, n_classes)) < 0.4).astype(np.int64)
        rows = labels @ centers
    else:
        labels = np.arange(n) % n_classes
        rows = centers[labels]
    rows = rows + rng.normal(size=(n, dim))
    return Features(rows.astype(np.float32), labels)


@pytest.mark.parametrize("several", [False, True])
def test_the_final_run_has_the_chosen_settings_and_all_images(several):
    train, test = features(80, several), features(60, several, seed=1)
    start = np.random.default_rng(2).normal(size=(4, 8)).astype(np.float32)
    metric = "map_11_point" if several else "accuracy"
    outcome = elevater.run(train, test, start, metric, several, 0, n_classes=4)

    fit, val = (train.take(places) for places in split_train_val(train.labels))
    _, best = elevater.choose(fit, val, start, metric, 0, 4)
    scores = []
    heads.train(
        train,
        start,
        [best.rate],
        [best.decay],
        epochs=50,
        seed=0,
        after_epoch=lambda _, trained: scores.append(float(trained.scores(test, metric)[0])),
    )
    details = outcome.details
    assert (details["learning_rate"], details["weight_decay"]) == (best.rate, best.decay)
    assert details["validation"] == best.score
    assert details["sweep_runs"] <= 90
    assert details[elevater.BEST_EPOCH] == max(scores)
    assert details["epoch"] == 1 + int(np.argmax(scores))
    assert details[elevater.LAST_EPOCH] == scores[-1]
    assert details["train_images"] == 80
    assert details["trainable_parameters"] == 4 * 8 + 4
    assert METRICS[metric](outcome.probabilities, test.labels) == max(scores)


def test_the_choice_never_sees_the_test_set():
    train, test = features(40), features(30, seed=1)
    start = np.zeros((4, 8), dtype=np.float32)
    outcomes = []
    for labels in (test.labels, test.labels[::-1].copy()):
        other = Features(test.embeddings, labels)
        outcomes.append(elevater.run(train, other, start, "accuracy", False, 0, n_classes=4))
    chosen = ("learning_rate", "weight_decay", "validation")
    first, second = ([outcome.details[key] for key in chosen] for outcome in outcomes)
    assert first == second


def test_one_shot_trains_on_one_of_two_images():
    outcome = elevater.run(
        features(8), features(30, seed=1), None, "accuracy", False, 0, n_classes=4, shots=1
    )
    assert outcome.details["train_images"] == 4


def test_a_sweep_takes_so_many_images_of_a_class(monkeypatch):
    monkeypatch.setattr(elevater, "MOST_PER_CLASS", 5)
    cut = elevater._for_sweep(features(40), 0)
    assert np.bincount(cut.labels).tolist() == [5, 5, 5, 5]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_learns_and_repeats_itself(name):
    train, test = features(80), features(60, seed=1)
    start = np.random.default_rng(2).normal(size=(4, 8)).astype(np.float32)

    def run():
        return PROTOCOLS[name](train, test, start, "accuracy", False, 1, n_classes=4)

    first, second = run(), run()
    assert first.probabilities.shape == (60, 4)
    np.testing.assert_allclose(first.probabilities.sum(axis=1), 1, atol=1e-4)
    assert METRICS["accuracy"](first.probabilities, test.labels) > 0.6
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    assert isinstance(first.details["trainable_parameters"], int)
