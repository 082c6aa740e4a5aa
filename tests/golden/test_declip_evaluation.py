"""Zero-shot classification with eighty prompts equals DeCLIP's released code.

``declip_evaluation.npz`` has eight classes' prompts, the rows of these and of 24 images, the
scores, their top-1 and top-5. The release takes cosines for logits, where ELEVATER, by whose
protocol this package scores, takes a hundred times as much: the order of the classes is the same.
"""

from pathlib import Path

import numpy as np
import pytest
from open_clip import OPENAI_IMAGENET_TEMPLATES

from dimefm.evaluate.benchmark import for_folder, prompts
from dimefm.evaluate.classifier import class_weights, probabilities
from dimefm.evaluate.metrics import accuracy

GOLDEN = np.load(Path(__file__).parent / "declip_evaluation.npz", allow_pickle=False)
CLASSES = 8


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_scores_and_their_shares_of_right_ones_equal_the_released_code(dtype):
    weights = class_weights(GOLDEN["eval/text_feat"].astype(dtype).reshape(CLASSES, 80, -1))
    images, labels = GOLDEN["eval/img_feat"].astype(dtype), GOLDEN["eval/labels"]
    found = probabilities(images, weights, scale=1.0)
    np.testing.assert_allclose(found, GOLDEN["eval/score"], rtol=1e-5, atol=0)
    assert 100 * accuracy(found, labels) == GOLDEN["eval/top1"]
    five = np.argsort(-found, axis=1, kind="stable")[:, :5]
    assert 100 * (five == labels[:, None]).any(axis=1).mean() == GOLDEN["eval/top5"]
    assert accuracy(probabilities(images, weights), labels) == accuracy(found, labels)


def test_prompts_equal_the_released_ones(tmp_path):
    """Its eighty templates are OpenAI's, which a folder has beside its images."""
    first, second = OPENAI_IMAGENET_TEMPLATES[0]("|").split("|")
    sentences = GOLDEN["eval/texts"].tolist()
    names = [sentence.removeprefix(first).removesuffix(second) for sentence in sentences[::80]]
    (tmp_path / "classnames.txt").write_text("\n".join(names))
    (tmp_path / "templates.txt").write_text(
        "\n".join(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    )
    assert sum(prompts(for_folder(tmp_path)), []) == sentences
