"""Masked students equal CLIP-KD's released ``random_masking`` and ``mask_forward``, which its
training then throws away.

``clip_kd_masking.npz`` is a cut of the released code's golden vectors: a transformer of 16 patches,
its images, the noise that decides, and for shares of 0, 0.5 and 0.75 the tokens that are kept, in
their order, and the rows, float64.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transformer import VisionTransformer

from dimefm.models import patch_dropout
from dimefm.models.towers import ImageTower

GOLDEN = np.load(Path(__file__).parent / "clip_kd_masking.npz", allow_pickle=False)
SHARES = (0.0, 0.5, 0.75)


@pytest.fixture
def tower(monkeypatch):
    """Return the released transformer in training mode, drawing the stored noise."""
    visual = VisionTransformer(32, 8, 16, layers=2, heads=2, mlp_ratio=4.0, output_dim=12).double()
    visual.load_state_dict(
        {k[2:]: torch.tensor(GOLDEN[k]) for k in GOLDEN.files if k.startswith("w/")}
    )
    monkeypatch.setattr(
        patch_dropout.torch, "rand", lambda *shape: torch.tensor(GOLDEN["noise"]).view(shape)
    )
    return ImageTower(visual).train()


@pytest.mark.parametrize("share", SHARES)
def test_the_patches_that_are_kept_are_the_released_ones(share):
    found = patch_dropout.kept(torch.tensor(GOLDEN["noise"]), share)
    hidden = torch.ones(3, 16).scatter_(1, found, 0.0)
    assert torch.equal(hidden, torch.tensor(GOLDEN[f"r{share}/mask"]))
    order = torch.tensor(GOLDEN[f"r{share}/ids_restore"]).argsort(1)
    assert torch.equal(found, order[:, : found.shape[1]])


@pytest.mark.parametrize("share", SHARES)
def test_tokens_and_rows_are_the_released_ones(tower, share):
    seen = []
    tower.visual.ln_pre.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0][:, 1:])
    )
    patch_dropout.hide(tower, share)
    found = tower.encode_image(torch.tensor(GOLDEN["x"]))
    tokens = torch.tensor(GOLDEN[f"r{share}/tokens_kept"])
    if share:  # the release shuffles the tokens even when it keeps them all
        torch.testing.assert_close(seen[0], tokens, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found, torch.tensor(GOLDEN[f"r{share}/out"]), rtol=1e-9, atol=1e-12)


def test_evaluation_sees_whole_images(tower):
    patch_dropout.hide(tower, 0.75)
    found = tower.eval().encode_image(torch.tensor(GOLDEN["x"]))
    torch.testing.assert_close(found, torch.tensor(GOLDEN["forward"]), rtol=1e-9, atol=1e-12)
