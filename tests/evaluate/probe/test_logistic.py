"""Logistic regression has the objective of scikit-learn, and reaches its minimum."""

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dimefm.errors import DataError
from dimefm.evaluate.probe import logistic
from dimefm.evaluate.probe.data import Features
from dimefm.evaluate.probe.logistic import fit_path

STRENGTHS = [1.0, 1e-2, 1e-4]


def features(n=200, n_classes=5, dim=12, several=False):
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(n_classes, dim))
    scales = np.logspace(0, -2, dim)  # badly conditioned, as embeddings are
    if several:
        labels = (rng.random((n, n_classes)) < 0.3).astype(np.int64)
        rows = labels @ centers
    else:
        labels = np.arange(n) % n_classes
        rows = centers[labels]
    rows = 3 + scales * (rows + 2 * rng.normal(size=(n, dim)))
    return Features(rows.astype(np.float32), labels)


def reference(rows, labels, strength):
    model = LogisticRegression(C=1 / (strength * len(rows)), tol=1e-8, max_iter=5000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(rows.astype(np.float64), labels)


@pytest.mark.parametrize("n_classes", [2, 5])
def test_the_path_reaches_the_minimum_of_scikit_learn(n_classes):
    data = features(n_classes=n_classes)
    for strength, head in zip(STRENGTHS, fit_path(data, n_classes, STRENGTHS), strict=True):
        rows = (data.embeddings.astype(np.float64) - head.mean) / head.scale
        # two classes: one row of weights w there is a pair w/2, -w/2 here, of half the penalty
        model = reference(rows, data.labels, strength / 2 if n_classes == 2 else strength)
        expected = model.predict_proba(rows)
        found = head.probabilities(data.embeddings)
        np.testing.assert_allclose(found, expected, atol=0.02)
        loss = -np.log(expected[np.arange(len(rows)), data.labels]).mean()
        weights = model.coef_
        if n_classes == 2:
            weights = np.concatenate([-weights / 2, weights / 2])
        minimum = loss + strength / 2 * (weights**2).sum()
        assert minimum * (1 - 1e-6) <= head.objective <= minimum * (1 + 1e-3)


def test_several_labels_are_one_regression_for_each_class():
    data = features(several=True)
    for strength, head in zip(STRENGTHS, fit_path(data, 5, STRENGTHS), strict=True):
        rows = (data.embeddings.astype(np.float64) - head.mean) / head.scale
        found = head.probabilities(data.embeddings)
        for number in range(5):
            model = reference(rows, data.labels[:, number], strength)
            expected = model.predict_proba(rows)[:, 1]
            np.testing.assert_allclose(found[:, number], expected, atol=0.02)


def test_the_path_is_that_of_separate_fits():
    data = features()
    together = fit_path(data, 5, STRENGTHS)
    for strength, head in zip(STRENGTHS, together, strict=True):
        [alone] = fit_path(data, 5, [strength])
        assert alone.objective == pytest.approx(head.objective, rel=1e-3)


def test_classes_that_all_or_no_images_have_are_constant():
    data = features(several=True)
    data.labels[:, 1] = 0
    data.labels[:, 3] = 1
    [head] = fit_path(data, 5, [1e-2])
    assert head.classes.tolist() == [0, 2, 4]
    probabilities = head.probabilities(data.embeddings[:5])
    assert (probabilities[:, 1] == 0).all() and (probabilities[:, 3] == 1).all()


def test_embeddings_that_are_all_equal_give_the_shares_of_the_classes():
    data = Features(np.ones((30, 6), dtype=np.float32), np.repeat([0, 1, 2], [15, 10, 5]))
    [head] = fit_path(data, 3, [1e-2])
    np.testing.assert_allclose(
        head.probabilities(data.embeddings[:1]), [[1 / 2, 1 / 3, 1 / 6]], atol=5e-3
    )


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros(10, dtype=np.int64), "all 10 training images have the same labels"),
        (np.arange(10), r"values from 0 to 9 do not fit 4 classes"),
        (np.ones((10, 3), dtype=np.int64), r"labels of shape \(10, 3\)"),
    ],
)
def test_labels_that_do_not_fit_are_one_line(labels, words):
    embeddings = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)
    with pytest.raises(DataError, match=words):
        fit_path(Features(embeddings, labels), 4, logistic.STRENGTHS)
