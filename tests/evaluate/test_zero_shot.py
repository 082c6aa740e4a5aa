"""Zero-shot class weights and probabilities against the toolkit's, and their invariants."""

from pathlib import Path

import numpy as np
import pytest

from dimefm.errors import DataError
from dimefm.evaluate.classifier import class_weights, probabilities

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "elevater_golden.npz")


def test_equals_the_toolkit():
    weights = class_weights(GOLDEN["zs_prompt_embeddings"])
    np.testing.assert_allclose(weights.T, GOLDEN["zs_weights"], rtol=0, atol=1e-7)
    np.testing.assert_allclose(
        probabilities(GOLDEN["zs_images"], weights), GOLDEN["zs_probs"], rtol=1e-5, atol=1e-7
    )


def test_float32_is_near_and_half_is_raised():
    weights = class_weights(GOLDEN["zs_prompt_embeddings"].astype(np.float32))
    found = probabilities(GOLDEN["zs_images"].astype(np.float16), weights)
    assert weights.dtype == found.dtype == np.float32
    np.testing.assert_allclose(found, GOLDEN["zs_probs"], atol=2e-3)


def test_classes_may_have_different_numbers_of_prompts():
    prompts = np.random.default_rng(0).normal(size=(3, 4, 5))
    whole = class_weights(prompts)
    ragged = class_weights([prompts[0], prompts[1][:2], prompts[2]])
    np.testing.assert_allclose(ragged[[0, 2]], whole[[0, 2]])
    unit = prompts[1][:2] / np.linalg.norm(prompts[1][:2], axis=1, keepdims=True)
    np.testing.assert_allclose(ragged[1], unit.sum(axis=0) / np.linalg.norm(unit.sum(axis=0)))


def test_lengths_of_embeddings_and_order_of_prompts_do_not_matter():
    rng = np.random.default_rng(1)
    prompts, images = rng.normal(size=(3, 4, 5)), rng.normal(size=(6, 5))
    weights = class_weights(prompts)
    np.testing.assert_allclose(
        class_weights(prompts[:, ::-1] * rng.uniform(1, 9, (3, 4, 1))), weights
    )
    np.testing.assert_allclose(probabilities(7 * images, weights), probabilities(images, weights))
    np.testing.assert_allclose(np.linalg.norm(weights, axis=1), 1)


def test_scale_sharpens_and_extremes_stay_finite():
    weights = np.eye(3)
    images = np.array([[1.0, 0.9, 0.0]])
    soft, sharp = (
        probabilities(images, weights, scale=1.0),
        probabilities(images, weights, scale=1e6),
    )
    assert soft.max() < 0.5 and sharp.max() == 1.0
    np.testing.assert_allclose(sharp.sum(axis=1), 1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: class_weights([np.ones((2, 3)), np.zeros((1, 3))]),
            "class 1, prompt 0 has length 0",
        ),
        (lambda: class_weights([np.ones((2, 3)), np.ones((0, 3))]), "class 1: expected prompts"),
        (lambda: class_weights([np.array([[1.0, 0], [-1.0, 0]])]), "mean 0 has length 0"),
        (lambda: class_weights([]), "no classes"),
        (lambda: probabilities(np.ones((2, 3)), np.ones((4, 5))), "do not share a dimension"),
        (lambda: probabilities(np.array([[1.0, 1], [0, 0]]), np.eye(2)), "image 1 has length 0"),
    ],
)
def test_refuses_what_cannot_be_normalised(call, words):
    with pytest.raises(DataError, match=words):
        call()


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 80, 64), (300, 7, 512)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_classes_at_once_equal_classes_one_by_one_to_the_bit(shape, dtype):
    prompts = np.random.default_rng(0).normal(size=shape).astype(dtype)
    at_once = class_weights(prompts)
    one_by_one = class_weights(list(prompts))
    assert at_once.dtype == one_by_one.dtype
    assert at_once.tobytes() == one_by_one.tobytes()
    prompts[-1, -1] = 0
    for given in (prompts, list(prompts)):
        words = f"class {shape[0] + 4}, prompt {shape[1] - 1} has length 0"
        with pytest.raises(DataError, match=words):
            class_weights(given, first_class=5)


@pytest.mark.parametrize("at_once", [1, 40, 64, 10_000])
def test_probabilities_in_blocks_are_those_of_all_images(monkeypatch, at_once):
    rng = np.random.default_rng(2)
    images, weights = rng.normal(size=(23, 8)), rng.normal(size=(13, 8))
    whole = probabilities(images, weights)
    monkeypatch.setattr("dimefm.evaluate.classifier.LOGITS_AT_ONCE", at_once)
    np.testing.assert_allclose(probabilities(images, weights), whole, rtol=1e-12)
