"""What an encoder costs: operations as TinyCLIP publishes them, and speeds of what is there."""

import json
import socket
from pathlib import Path

import pytest
import torch

from dimefm.evaluate import costs, profiling
from dimefm.models.loading import load_encoder
from dimefm.models.macs import image_macs, text_macs
from dimefm.storage.files import to_json

TEACHER = str(Path(__file__).parents[1] / "data" / "teacher")
PUBLISHED = {  # GMACs of an image and a sentence; source: TinyCLIP README, recomputed from configs
    "TinyCLIP-ViT-40M-32-Text-19M": (1.995, 1.490),
    "TinyCLIP-ResNet-19M-Text-19M": (2.916, 1.490),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_operations_are_those_that_are_published(name):
    encoder = load_encoder(f"{name}/random:0", "cpu")

    image, text = PUBLISHED[name]
    assert image_macs(encoder) / 1e9 == pytest.approx(image, abs=6e-4)
    assert text_macs(encoder) / 1e9 == pytest.approx(text, abs=6e-4)
    assert torch.backends.mha.get_fastpath_enabled()


def test_every_fact_of_a_whole_model_is_known():
    known = profiling.facts(load_encoder(TEACHER, "cpu"))

    for name in ("image_macs", "text_macs", "images_per_second", "sentences_per_second"):
        assert known[name] > 0, name
    assert known["peak_memory_bytes"] > 1 << 20
    [sizes], [speed] = costs.sizes(known), costs.speeds(known)
    assert "image tower: 3.0 M parameters" in sizes and "text tower: 2.4 M" in sizes
    assert "images/s" in speed and "sentences/s" in speed and "peak memory" in speed
    assert socket.gethostname() not in to_json(known)


def test_nothing_is_measured_unless_it_is_wanted():
    known = profiling.facts(load_encoder(TEACHER, "cpu"), measure=False)

    assert "images_per_second" not in known and "image_macs" not in known
    assert costs.sizes(known) == costs.speeds(known) == []


def test_a_model_without_a_text_tower_has_the_facts_of_its_images():
    known = profiling.facts(load_encoder("timm/test_resnet.r160_in1k/random:0", "cpu"))

    assert known["image_macs"] > 0 and known["text_macs"] is None
    assert known["text_parameters"] == 0 and known["sentences_per_second"] is None
    assert "no text tower" in known["macs_note"]
    assert "text tower" not in costs.sizes(known)[0]
    assert "sentences" not in costs.speeds(known)[0]
    json.dumps(known)
