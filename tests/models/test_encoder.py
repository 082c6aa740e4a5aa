"""What an encoder does and says of itself: unit rows, token counts, its card, its device and
precision.
"""

import pytest
import torch

from dimefm.errors import ModelError
from dimefm.models.encoder import weights_sha256
from dimefm.models.loading import load_encoder
from dimefm.runtime.devices import pick_device
from tests.models.conftest import SENTENCES, SPEC, refused


def test_the_card_says_what_the_encoder_is(tiny_teacher):
    card = tiny_teacher.card
    assert (card.dim, card.context_length, card.logit_bias) == (128, 32, None)
    assert card.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    assert card.preprocess["size"] == [64, 64]
    assert "SimpleTokenizer" in card.tokenizer
    assert tiny_teacher.image_parameters + tiny_teacher.text_parameters == sum(
        p.numel() for p in tiny_teacher.image_model.parameters()
    )
    assert tiny_teacher.image_parameters == sum(
        p.numel() for p in tiny_teacher.image_model.visual.parameters()
    )


def test_the_digest_is_of_names_types_shapes_and_values():
    layer = torch.nn.Linear(2, 2)
    digest = weights_sha256(layer)
    assert weights_sha256(layer) == digest
    assert weights_sha256(torch.nn.Sequential(layer)) != digest
    assert weights_sha256(layer.double()) != digest
    layer = layer.float()
    with torch.no_grad():
        layer.bias[0] += 1e-6
    assert weights_sha256(layer) != digest


def test_rows_are_float32_and_of_unit_length(tiny_teacher):
    image = tiny_teacher.encode_image(torch.randn(3, 3, 64, 64))
    text = tiny_teacher.encode_text(tiny_teacher.tokenize(SENTENCES)[0])
    for rows, n in ((image, 3), (text, 2)):
        assert rows.shape == (n, 128)
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(n))


def test_half_precision_is_near(tiny_teacher):
    low, pixels = load_encoder(SPEC, "cpu", "bf16"), torch.randn(2, 3, 64, 64)
    rows = low.encode_image(pixels)
    assert rows.dtype == torch.float32
    assert (rows * tiny_teacher.encode_image(pixels)).sum(1).min() > 0.99
    assert not torch.equal(rows, tiny_teacher.encode_image(pixels))


def test_lengths_of_sentences_are_those_before_truncation(tiny_teacher):
    words = ["", "dog", "dog " * 30, "dog " * 31, "dog " * 50, "!", "!(" * 25]
    tokens, lengths = tiny_teacher.tokenize(words)
    assert tokens.shape == (len(words), 32)
    assert lengths[:5] == [2, 3, 32, 33, 52]
    assert lengths[6] > 32  # id 0 is both the padding and a token of punctuation
    assert lengths[5] <= 32


def test_an_unknown_precision_is_refused():
    assert "expected one of fp32, fp32-fast, bf16, fp16" in refused(SPEC, precision="int4")


@pytest.mark.parametrize("name", ["cuda:99", "tpu9", "meta", "cuda:x", ""])
def test_a_device_that_is_not_there_is_one_line(name):
    with pytest.raises(ModelError, match=f"--device {name}: ") as error:
        pick_device(name)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_one_line_with_a_remedy():
    with pytest.raises(ModelError, match="this machine has 0 CUDA devices.*use --device cpu"):
        pick_device("cuda")
    assert pick_device("auto").type == "cpu"


@pytest.mark.parametrize(("rank", "device"), [(None, "cuda:0"), ("1", "cuda:1")])
def test_each_process_of_torchrun_has_its_own_gpu(monkeypatch, rank, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert pick_device("auto") == torch.device(device)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ModelError, match="cuda:2: this machine has 2 CUDA devices"):
        pick_device("auto")
