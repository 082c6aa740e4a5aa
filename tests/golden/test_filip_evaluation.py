"""FILIP's zero-shot scores by tokens equal those of DeCLIP's released code.

``filip_evaluation.npz`` is a cut of the released code's golden vectors: 24 images of 20 patches and
8 classes of 80 prompts with 18 words, all of 8 dimensions and float32; scores in float64, top-1 and
top-5 in percent.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from dimefm.evaluate.classifier import softmax
from dimefm.evaluate.metrics import METRICS
from dimefm.losses import TokenEmbeddings, _late_interaction, late_similarity
from dimefm.models.filip import class_tokens

GOLDEN = np.load(Path(__file__).parent / "filip_evaluation.npz", allow_pickle=False)
PROMPTS = 80


def found(dtype):
    images, words = (
        TokenEmbeddings.from_rows(torch.tensor(GOLDEN[f"eval_filip/{side}_dense"], dtype=dtype))
        for side in ("img", "text")
    )
    return softmax(late_similarity(images, class_tokens(words, PROMPTS)).double().numpy())


@pytest.mark.parametrize("chunk", [_late_interaction.CHUNK, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scores_equal_the_released_code(monkeypatch, dtype, chunk):
    monkeypatch.setattr(_late_interaction, "CHUNK", chunk)
    np.testing.assert_allclose(found(dtype), GOLDEN["eval_filip/score"], rtol=0, atol=1e-7)


def test_top_1_and_top_5_equal_the_released_code():
    labels, scores = GOLDEN["eval/labels"], found(torch.float32)
    assert 100 * METRICS["accuracy"](scores, labels) == pytest.approx(
        float(GOLDEN["eval_filip/top1"]), abs=1e-4
    )
    best = (-scores).argsort(axis=1)[:, :5] == labels[:, None]
    assert 100 * best.any(axis=1).mean() == pytest.approx(
        float(GOLDEN["eval_filip/top5"]), abs=1e-4
    )
