"""Measures of agreement equal their definitions, computed in another way."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy, ortho_group, spearmanr

from dimefm.errors import DataError
from dimefm.evaluate.agreement import measures


@pytest.fixture
def draw():
    return np.random.default_rng(3)


def test_cosines_are_of_the_same_rows_whatever_their_length(draw):
    rows = draw.normal(size=(6, 4))
    other = rows * np.arange(1, 7)[:, None]
    other[2] *= -1
    other[4] = [0, 0, 0, 0]
    assert measures.cosines(rows, other) == pytest.approx([1, 1, -1, 1, 0, 1])
    with pytest.raises(DataError, match=r"\(6, 4\) and \(6, 3\)"):
        measures.cosines(rows, rows[:, :3])


def centered_gram(rows):
    gram = rows @ rows.T
    center = np.eye(len(rows)) - 1 / len(rows)
    return center @ gram @ center


def test_cka_is_that_of_the_gram_matrices(draw):
    first = draw.normal(size=(30, 5))
    second = first[:, :3] + draw.normal(size=(30, 3))
    grams = centered_gram(first), centered_gram(second)
    expected = np.sum(grams[0] * grams[1]) / np.prod([np.linalg.norm(gram) for gram in grams])
    assert measures.linear_cka(first, second) == pytest.approx(expected)


def test_cka_sees_neither_rotation_nor_scale_nor_shift(draw):
    rows = draw.normal(size=(20, 4))
    turned = 7 * rows @ ortho_group.rvs(4, random_state=0) + 3
    assert measures.linear_cka(rows, turned) == pytest.approx(1)
    assert measures.linear_cka(rows, draw.normal(size=(20, 4))) < 0.9
    assert measures.linear_cka(rows, np.ones((20, 4))) is None


@pytest.mark.parametrize("at_once", [1, 7, 1 << 22])
def test_rank_correlation_is_spearmans_of_each_row_also_with_ties(draw, monkeypatch, at_once):
    monkeypatch.setattr(measures, "NUMBERS_AT_ONCE", at_once)
    student = np.round(draw.normal(size=(9, 6)), 1)
    teacher = np.round(student + draw.normal(size=(9, 6)))
    teacher[4] = 0.5
    found = measures.rank_correlations(student, teacher)
    assert np.isnan(found[4])
    for row in np.delete(np.arange(9), 4):
        expected = spearmanr(student[row], teacher[row]).statistic
        assert found[row] == pytest.approx(expected)


@pytest.mark.parametrize("at_once", [1, 1 << 22])
def test_kl_is_of_the_teacher_to_the_student(draw, monkeypatch, at_once):
    monkeypatch.setattr(measures, "NUMBERS_AT_ONCE", at_once)
    student = 5 * draw.normal(size=(8, 4))
    teacher = 5 * draw.normal(size=(8, 4))
    expected = entropy(softmax(teacher, axis=1), softmax(student, axis=1), axis=1)
    assert measures.kl_divergences(student, teacher) == pytest.approx(expected)
    assert measures.kl_divergences(student, student) == pytest.approx(0)


def test_kl_stays_finite_where_a_probability_is_none_in_float32():
    student = np.array([[100.0, -100.0]], np.float32)
    [value] = measures.kl_divergences(student, -student)
    assert value == pytest.approx(200)


def test_top_1_agreement_is_a_share_of_images():
    student = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    teacher = np.array([[0.6, 0.4], [0.9, 0.1], [0.6, 0.4], [0.7, 0.3]])
    assert measures.top1_agreement(student, teacher) == 0.75


def naive_calibration_error(probabilities, labels, bins):
    total = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        confidences, right = [], []
        for row, label in zip(probabilities, labels, strict=True):
            if low < row.max() <= high:
                confidences.append(row.max())
                right.append(row.argmax() == label)
        if confidences:
            total += len(right) / len(labels) * abs(np.mean(right) - np.mean(confidences))
    return total


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_calibration_error_is_that_of_its_bins(draw, bins):
    probabilities = softmax(3 * draw.normal(size=(200, 4)), axis=1)
    labels = draw.integers(4, size=200)
    expected = naive_calibration_error(probabilities, labels, bins)
    assert measures.calibration_error(probabilities, labels, bins) == pytest.approx(expected)


def test_calibration_error_of_a_model_that_is_always_sure():
    probabilities = np.eye(2)[[0, 0, 1, 1]]
    assert measures.calibration_error(probabilities, np.array([0, 0, 1, 1])) == 0
    assert measures.calibration_error(probabilities, np.array([1, 1, 1, 1])) == pytest.approx(0.5)
