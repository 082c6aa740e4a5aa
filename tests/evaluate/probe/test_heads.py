"""Heads that are trained together end where separate runs of torch's own modules end."""

import numpy as np
import pytest
import torch
from torch import nn

from dimefm.errors import DataError
from dimefm.evaluate.metrics import METRICS
from dimefm.evaluate.probe import heads
from dimefm.evaluate.probe.data import Features

RATES = [1e-6, 1e-3, 1e-1, 1e-2, 1e-1]
DECAYS = [1e2, 1e-2, 1e-4, 10.0, 0.0]


def features(n=150, dim=12, n_classes=5, several=False, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(n_classes, dim))
    if several:
        labels = (rng.random((n, n_classes)) < 0.3).astype(np.int64)
        embeddings = labels @ centers + rng.normal(size=(n, dim))
    else:
        labels = rng.integers(n_classes, size=n)
        embeddings = centers[labels] + rng.normal(size=(n, dim))
    return Features(embeddings.astype(np.float32), labels)


def separate(data, start, rate, decay, epochs, seed, metric, held_out, batch_size=64):
    """Train one head with torch's modules, autograd and SGD."""
    norm = nn.BatchNorm1d(start.shape[1], affine=False)
    linear = nn.Linear(*start.shape[::-1])
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(start))
        linear.bias.zero_()
    model = nn.Sequential(norm, linear)
    loss_of = nn.BCEWithLogitsLoss() if data.labels.ndim == 2 else nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=decay)
    generator = torch.Generator().manual_seed(seed)
    rows, labels = torch.tensor(data.embeddings), torch.tensor(data.labels)
    if labels.ndim == 2:
        labels = labels.float()
    scores = []
    for _ in range(epochs):
        model.train()
        for places in torch.randperm(len(rows), generator=generator).split(batch_size):
            if len(places) > 1:
                optimizer.zero_grad()
                loss_of(model(rows[places]), labels[places]).backward()
                optimizer.step()
        model.eval()
        with torch.no_grad():
            output = model(torch.tensor(held_out.embeddings)).softmax(-1).numpy()
        scores.append(METRICS[metric](output, held_out.labels))
    return output, scores


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("n", [150, 129])  # 129: the last batch has one image
@pytest.mark.parametrize("at_once", [1, 1 << 20])
def test_heads_together_equal_separate_runs(monkeypatch, several, n, at_once):
    monkeypatch.setattr(heads, "WEIGHTS_AT_ONCE", at_once)
    monkeypatch.setattr(heads, "BATCHES_AT_ONCE", 2)
    data, held_out = features(n, several=several), features(60, several=several, seed=1)
    start = np.random.default_rng(2).normal(size=(5, 12)).astype(np.float32)
    metric = "map_11_point" if several else "accuracy"
    scores = []

    def after_epoch(epoch, trained):
        assert epoch == len(scores) + 1
        scores.append(trained.scores(held_out, metric))

    trained = heads.train(data, start, RATES, DECAYS, epochs=4, seed=3, after_epoch=after_epoch)
    for head, (rate, decay) in enumerate(zip(RATES, DECAYS, strict=True)):
        output, expected = separate(data, start, rate, decay, 4, 3, metric, held_out)
        found = trained.probabilities(held_out.embeddings, head)
        np.testing.assert_allclose(found, output, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose([epoch[head] for epoch in scores], expected, atol=1e-6)


def test_a_head_that_diverges_scores_0_and_harms_no_other():
    data = features()
    start = np.zeros((5, 12), dtype=np.float32)
    alone = heads.train(data, start, [0.01], [0.1], epochs=30, seed=0)
    both = heads.train(data, start, [0.1, 0.01], [1e6, 0.1], epochs=30, seed=0)
    assert both.alive.tolist() == [False, True]
    np.testing.assert_allclose(both.weights[1], alone.weights[0], rtol=1e-4, atol=1e-6)
    scores = both.scores(data, "accuracy")
    assert scores[0] == 0 and scores[1] > 0.7


def test_training_is_the_same_for_a_seed_and_another_for_the_next():
    data = features()

    def weights(seed):
        return heads.train(data, None, [0.1], [0.0], epochs=2, seed=seed, n_classes=6).weights

    assert weights(0).shape == (1, 6, 12)
    assert torch.equal(weights(0), weights(0))
    assert not torch.allclose(weights(0), weights(1))


def test_training_stops_when_the_caller_stops_it():
    epochs = []

    def after_epoch(epoch, _):
        epochs.append(epoch)
        if epoch == 3:
            raise StopIteration

    heads.train(features(), None, [0.1], [0.0], epochs=9, seed=0, after_epoch=after_epoch)
    assert epochs == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda call: call.update(features=features(1)), "2 or more training images, found 1"),
        (lambda call: call.update(start=np.ones((4, 12))), "labels run from 0 to 4, expected 0"),
        (lambda call: call.update(start=np.ones((5, 9))), "have 12 numbers, class weights have 9"),
        (lambda call: call.update(decays=[0.0, 1.0]), "1 learning rates and 2 decays"),
        (lambda call: call.update(features=features(several=True), start=np.ones((7, 12))), "to 4"),
    ],
)
def test_refuses_what_does_not_fit(change, words):
    call = {"features": features(), "start": None, "rates": [0.1], "decays": [0.0]}
    change(call)
    with pytest.raises(DataError, match=words):
        heads.train(**call, epochs=1, seed=0)
