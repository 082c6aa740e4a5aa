"""How DeCLIP's repository trains, against ``optimizer = "open_clip"`` here: the learning rate, the
groups and AdamW.

``declip_training.npz`` has its rates at some iterations, the names of its parameters with and
without weight decay, and four steps of its optimizer. The tests say exactly how DeCLIP's differ.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.model import CustomTextCLIP
from torch import nn

from dimefm.recipe import read
from dimefm.train.optim import adamw, decays, learning_rate

GOLDEN = np.load(Path(__file__).parent / "declip_training.npz", allow_pickle=False)
TOWER = {
    "width": 64,
    "layers": 2,
    "vocab_size": 9,
    "context_length": 7,
    "heads": 2,
    "proj_bias": True,
}
VISION = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32}


@pytest.mark.parametrize("name", ["clip", "slip", "declip88m"])
def test_the_rate_is_the_released_one_a_step_later_once_it_is_warm(name):
    """DeCLIP counts iterations from 1 and has its first rate in the first; ours, as open_clip's,
    begins with a step up.

    A second group there has a tenth of the rate; all of ours have one.
    """
    first, peak, warm, total = GOLDEN[f"sched/{name}/cfg"]
    recipe = read(None, optimizer="open_clip", lr=peak, warmup_lr=first, min_lr=0.0)
    iterations, rates = GOLDEN[f"sched/{name}/iters"], GOLDEN[f"sched/{name}/lr"]
    assert iterations.min() < warm < iterations.max()
    for iteration, (rate, tenth) in zip(iterations.tolist(), rates, strict=True):
        if iteration >= warm:
            assert learning_rate(iteration, int(warm), int(total), recipe) == pytest.approx(
                rate, rel=1e-9, abs=1e-15
            )
        else:
            assert learning_rate(iteration - 2, int(warm) - 1, int(total), recipe) == pytest.approx(
                rate, rel=1e-9
            )
        assert tenth == pytest.approx(rate / 10, rel=1e-9)


def test_weight_decay_is_the_released_one_but_for_what_is_no_weight():
    """DeCLIP's also decays the class embedding and the bias of attention, which no layer of a kind
    that it knows owns.
    """
    model = CustomTextCLIP(16, VISION, TOWER)
    named = {
        name.replace("text.", "encode_text.") if name.startswith("text.") else name: p
        for name, p in model.named_parameters()
    }
    decayed, kept = (set(GOLDEN[f"pgroups/{which}"].tolist()) for which in ("decay", "no_decay"))
    assert set(named) == decayed | kept
    ours = {name for name, parameter in named.items() if decays(name, parameter, "open_clip")}
    more = ("class_embedding", "in_proj_bias")
    assert ours == {name for name in decayed if not name.endswith(more)}
    assert all(any(name.endswith(end) for name in decayed) for end in more)


def test_adamw_takes_the_released_steps():
    """``AdamW_SGD`` of the release, the first of its three groups. The others are SGD and AMSGrad,
    which is none of ours.
    """
    model = nn.Module()
    model.register_parameter("proj", nn.Parameter(torch.tensor(GOLDEN["adamw_sgd/p0_init"])))
    optimizer = adamw(model, read(None, lr=0.01, wd=0.1, beta2=0.98, eps=1e-8))
    for step in range(4):
        model.proj.grad = torch.tensor(GOLDEN[f"adamw_sgd/g0_{step}"])
        optimizer.step()
        np.testing.assert_allclose(
            model.proj.detach(), GOLDEN[f"adamw_sgd/p0_{step}"], rtol=0, atol=1e-6
        )
