"""Batches that do not fit into memory are halved, and a batch size that is worth while is found by
itself.
"""

import pytest
import torch
from torch import nn

from dimefm.errors import ModelError
from dimefm.models.inference import micro_batches
from dimefm.models.inference.micro_batches import (
    LARGEST,
    SMALLEST,
    Pieces,
    filled_up,
    fitting_batch_size,
    is_out_of_memory,
)
from dimefm.models.loading import load_encoder

ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory:"
        " you tried to allocate 1099511627776 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "python": MemoryError(),
}


class Narrow(nn.Module):
    """A model that has no memory for more than ``most`` rows, and counts what it is asked."""

    def __init__(self, model: nn.Module, most: int, error: Exception):
        super().__init__()
        self.model, self.most, self.error = model, most, error
        self.visual, self.asked = model.visual, []

    def encode_image(self, pixels):
        return self._encode(self.model.encode_image, pixels)

    def encode_text(self, tokens):
        return self._encode(self.model.encode_text, tokens)

    def _encode(self, encode, inputs):
        self.asked.append(len(inputs))
        if len(inputs) > self.most:
            raise self.error
        return encode(inputs)


def narrow(most: int, error: Exception = ERRORS["cpu"]):
    """Return an encoder whose towers have memory for ``most`` rows."""
    encoder = load_encoder("RN-mini-32/random:0", "cpu")
    encoder.image_model = encoder.text_model = Narrow(encoder.image_model, most, error)
    return encoder


def pixels(n: int) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_a_batch_is_halved_until_it_fits_and_stays_so(tiny_teacher, capfd, error):
    encoder, inputs = narrow(5, error), pixels(21)
    rows = encoder.encode_image(inputs)
    assert encoder.image_model.asked == [21, 10, 5, 5, 5, 5, 1]
    torch.testing.assert_close(
        rows, load_encoder("RN-mini-32/random:0", "cpu").encode_image(inputs), atol=1e-6, rtol=0
    )
    encoder.encode_image(inputs)
    assert encoder.image_model.asked[7:] == [5, 5, 5, 5, 1]
    assert (
        capfd.readouterr().err == "note: out of memory with 21 rows at once; going on with fewer\n"
    )


def test_sentences_are_halved_too(capfd):
    encoder = narrow(3)
    tokens = encoder.tokenize([f"a photo of {i} dogs" for i in range(10)])[0]
    found = encoder.encode_text(tokens)
    expected = load_encoder("RN-mini-32/random:0", "cpu").encode_text(tokens)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert "note: out of memory with 10 rows" in capfd.readouterr().err


def test_a_single_row_that_does_not_fit_ends_it():
    with pytest.raises(
        ModelError,
        match=r"^out of memory for a single row \(.*can't allocate memory.*\). Fix: free memory.*$",
    ):
        narrow(0).encode_image(pixels(4))


def test_other_errors_are_not_taken_for_it():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        narrow(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied")).encode_image(pixels(4))


def test_no_rows_give_no_rows(tiny_teacher):
    assert tiny_teacher.encode_image(torch.empty(0, 3, 64, 64)).shape == (0, 128)


def test_full_pieces_hide_what_fills_them():
    asked = []

    def encode(inputs):
        asked.append(inputs.shape)
        if len(inputs) > 4:
            raise ERRORS["cuda"]
        return inputs * 2

    inputs = torch.arange(22.0).reshape(11, 2)
    assert torch.equal(Pieces(8, full=True).encode(encode, inputs), inputs * 2)
    assert asked == [(8, 2), (4, 2), (4, 2), (4, 2)]
    assert torch.equal(filled_up(inputs[:1], 3), torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]))


def test_a_real_allocation_that_fails_is_known():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


class Clock:
    """A tower whose batch of n takes ``fixed + n * each`` seconds of a clock of its own."""

    def __init__(self, monkeypatch, fixed: float, each: float, most: int = 1 << 30):
        self.now, self.fixed, self.each, self.most = 0.0, fixed, each, most
        monkeypatch.setattr(micro_batches.time, "perf_counter", lambda: self.now)

    def __call__(self, inputs):
        if len(inputs) > self.most:
            raise ERRORS["cuda"]
        self.now += self.fixed + self.each * len(inputs)
        return inputs


@pytest.mark.parametrize(
    ("kind", "clock", "expected"),
    [
        ("cpu", {"fixed": 0.0, "each": 0.001}, SMALLEST),  # no gain
        ("cpu", {"fixed": 0.001, "each": 0.001}, 32),  # 3 % of the best at 256
        ("cpu", {"fixed": 1e-3, "each": 1e-9}, LARGEST["cpu"]),
        ("cuda", {"fixed": 1e-3, "each": 1e-9}, LARGEST["cuda"]),
        (
            "cuda",
            {"fixed": 1e-3, "each": 1e-9, "most": 300},
            128,
        ),  # a step before the last that fits
        ("cuda", {"fixed": 1e-3, "each": 1e-9, "most": 16}, SMALLEST),
        ("cuda", {"fixed": 1e-3, "each": 1e-9, "most": 0}, SMALLEST),
        ("cpu", {"fixed": 0.0, "each": 1.0}, SMALLEST),  # of one row alone
    ],
)
def test_the_smallest_batch_near_the_best_rate(monkeypatch, kind, clock, expected):
    tower = Clock(monkeypatch, **clock)
    assert fitting_batch_size(tower, torch.zeros(2), kind) == expected
    assert tower.now < micro_batches.SECONDS


def test_the_batch_size_of_a_real_tower_is_measured_once():
    encoder = load_encoder("RN-mini-32/random:0", "cpu")
    found = encoder.fitting_batch_size
    assert SMALLEST <= found <= LARGEST["cpu"] and found == encoder.fitting_batch_size
