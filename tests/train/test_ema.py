"""Averaged weights: what they are, that they go on bit for bit, and what a checkpoint keeps of
them.
"""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dimefm.errors import ModelError
from dimefm.losses._queue import Bank
from dimefm.train import checkpoint
from dimefm.train.ema import Ema, decay_at


def net(seed=0):
    """Return a small network with weights, running statistics and a counter."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def stir(model, seed):
    """Change all weights and statistics of ``model``."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise))
        model(torch.randn(8, 3, generator=noise))


@settings(max_examples=25)
@given(
    decay=st.floats(0, 0.9999),
    values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30),
)
def test_it_is_the_recursion_that_it_says(decay, values):
    model = nn.Linear(1, 1, bias=False)
    ema, expected = Ema(model, decay), None
    for n, value in enumerate(values):
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update(model)
        d = min(decay, (1 + n) / (10 + n))
        expected = value if n == 0 else d * expected + (1 - d) * value
    np.testing.assert_allclose(ema.module.weight.item(), expected, rtol=1e-4, atol=1e-4)


def test_the_decay_grows_to_what_was_asked():
    found = [decay_at(n, 0.999) for n in range(20_000)]
    assert found == sorted(found)
    assert found[0] == 0.1 and found[-1] == 0.999
    assert found[8000] < 0.999


def test_buffers_are_the_models_and_it_stays_in_evaluation_mode_without_gradients():
    model = net().train()
    ema = Ema(model, 0.9)
    for seed in range(3):
        stir(model, seed)
        ema.update(model)
    ours, theirs = dict(ema.module.named_buffers()), dict(model.named_buffers())
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )
    assert not torch.equal(ema.module[0].weight, model[0].weight)
    assert not ema.module.training and model.training
    assert not any(parameter.requires_grad for parameter in ema.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_buffers_take_no_memory_of_their_own_not_even_a_ring_of_rows():
    model = nn.ModuleDict({"net": net(), "bank": Bank(8, 4)})
    ema = Ema(model, 0.9)
    for seed in range(2):
        stir(model["net"], seed)
        model["bank"].push(torch.full((3, 4), float(seed)), "whole")
        ema.update(model)
    ours, theirs = dict(ema.module.named_buffers()), dict(model.named_buffers())
    assert {"bank.rows", "bank.place", "net.1.running_mean"} <= ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in ours)
    weights = zip(ema.module.parameters(), model.parameters(), strict=True)
    assert not any(average is weight for average, weight in weights)


def test_a_restored_average_goes_on_bit_for_bit(tmp_path):
    model = net()
    optimizer, ema = torch.optim.AdamW(model.parameters()), Ema(model, 0.99)
    for seed in range(3):
        stir(model, seed)
        ema.update(model)
    folder = checkpoint.save(tmp_path, 3, model, optimizer, 2, {}, ema)
    again = net(seed=9)
    restored = Ema(again, 0.99)
    assert checkpoint.load(folder, again, torch.optim.AdamW(again.parameters()), restored) == (
        3,
        {},
    )
    for seed in range(3, 6):
        for one, average in ((model, ema), (again, restored)):
            stir(one, seed)
            average.update(one)
    ours, theirs = ema.state_dict(), restored.state_dict()
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )
    assert int(ours["n_averaged"]) == 6


def test_a_checkpoint_without_the_average_that_is_asked_for_is_refused(tmp_path):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    folder = checkpoint.save(tmp_path, 1, model, optimizer, 2, {})
    assert not (folder / checkpoint.AVERAGE).exists()
    with pytest.raises(ModelError, match="ema.safetensors: the weights do not load"):
        checkpoint.load(folder, model, optimizer, Ema(model, 0.9))


def test_it_averages_weights_as_they_lie_in_memory():
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    ema, plain = (
        Ema(model, 0.5),
        Ema(copy.deepcopy(model).to(memory_format=torch.contiguous_format), 0.5),
    )
    for n in range(3):
        with torch.no_grad():
            model.weight.add_(torch.arange(model.weight.numel()).view_as(model.weight) * (n + 1.0))
        ema.update(model)
        plain.update(model)
    assert torch.equal(ema.module.weight, plain.module.weight)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_an_impossible_decay_is_refused(decay):
    with pytest.raises(ValueError, match="expected 0 <= decay < 1"):
        Ema(net(), decay)
