"""The teacher in ``tests/data/teacher`` is what docs/RESULTS.md says: a small CLIP that scores
CIFAR-10 zero-shot.
"""

from pathlib import Path

import numpy as np

from dimefm.data import open_rows
from dimefm.data.images.decode import decode
from dimefm.evaluate.benchmark import for_folder, prompts
from dimefm.evaluate.classifier import class_weights, probabilities
from dimefm.evaluate.metrics import accuracy
from dimefm.models.loading import load_encoder

TEACHER = Path(__file__).parents[1] / "data" / "teacher"
ROWS = 1500


def test_it_is_small_and_half_precision():
    assert (TEACHER / "open_clip_model.safetensors").stat().st_size <= 12_000_000
    encoder = load_encoder(str(TEACHER), "cpu")
    assert encoder.card.dim == 128
    assert encoder.image_parameters == 3_006_452


def test_it_scores_on_images_it_has_not_seen(shared_data):
    import torch

    encoder = load_encoder(str(TEACHER), "cpu")
    folder = shared_data / "classification" / "cifar10"
    rows = open_rows([folder / "test.parquet"])
    found = [rows[i] for i in range(ROWS)]
    pixels = torch.stack([encoder.preprocess(decode(row.image)) for row in found])
    images = torch.cat([encoder.encode_image(part) for part in pixels.split(250)]).numpy()
    embeddings = [
        encoder.encode_text(encoder.tokenize(sentences)[0]).numpy()
        for sentences in prompts(for_folder(folder))
    ]
    scores = probabilities(images, class_weights(embeddings))
    assert accuracy(scores, np.array([row.label for row in found])) >= 0.65
