"""The benchmark of the losses compares forms that do the same."""

from pathlib import Path

import pytest
import torch

from dimefm.losses import Features


@pytest.fixture
def benchmark_of_losses(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from benchmarks import _train_losses

    return _train_losses


def test_both_forms_give_one_loss_and_one_gradient(benchmark_of_losses):
    draw = torch.Generator().manual_seed(0)
    image, text, found = (
        torch.randn(rows, 5, generator=draw, dtype=torch.float64) for rows in (6, 9, 6)
    )
    values = {}
    for name, form in benchmark_of_losses.FORMS.items():
        rows = found.clone().requires_grad_()
        value = form(Features(rows, text, 10.0), Features(image, text, 10.0))["total"]
        values[name] = [value, *torch.autograd.grad(value, rows)]
    torch.testing.assert_close(values["chunked"], values["whole"])


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_their_own(benchmark_of_losses):
    memory, speed = benchmark_of_losses.losses((1024,), dim=8, repeats=1)
    assert (memory.item, speed.item) == ("loss memory 1024", "loss 1024")
    assert 0 < memory.ours < memory.against / 2
    assert speed.ours > 0 and speed.against > 0
