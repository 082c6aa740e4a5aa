"""What the tests of DeCLIP's losses share: the golden values, how they are compared, and modules
with golden weights.
"""

from pathlib import Path

import numpy as np
import torch

from dimefm.losses import late_similarity
from dimefm.losses._queue import Bank

GOLDEN = np.load(Path(__file__).parent / "declip_losses.npz", allow_pickle=False)
DTYPES = {"float64": torch.float64, "float32": torch.float32}
LAYERS = {  # the release's names of layers, and the places of ours
    "projector": ("linear1", "bn1", None, "linear2", "bn2", None, "linear3", "bn3"),
    "predictor": ("linear1", "bn1", None, "layer2"),
    "predictor_sim": ("linear1", "bn1", None, "linear2", "bn2", None, "linear3"),
}
GIVEN = frozenset({"pairs", "views", "hidden", "words", "masked", "patches"})


def close(found, wanted, tolerance=1e-5):
    """Compare with errors relative to the largest value wanted."""
    found = (
        found.detach().double().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
    )
    assert found.size == np.size(wanted)
    np.testing.assert_allclose(
        found.reshape(np.shape(wanted)),
        wanted,
        rtol=0,
        atol=tolerance * max(np.abs(wanted).max(), 1e-6),
    )


def precise(dtype):
    """Return the tolerance for golden values in float64."""
    return 1e-9 if dtype == "float64" else 1e-5


def leaf(key, dtype):
    """Return a golden array as a leaf."""
    return torch.tensor(GOLDEN[key], dtype=DTYPES[dtype]).requires_grad_()


def load(module, weights):
    """Give a module golden weights, each of its own."""
    assert set(module.state_dict()) == set(weights)
    module.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})


def ring(before, dtype):
    """Return a ring with golden rows [D, size]."""
    found = Bank(before.shape[1], before.shape[0])
    load(found, {"rows": before.T, "place": np.array(0)})
    return found.to(DTYPES[dtype])


def scores(image, text, count):
    """Return the cosines [B, B] by tokens of images to sentences, and of sentences to images."""
    return late_similarity(image, text.top(image, count)), late_similarity(
        text, image.top(text, count)
    )
