"""Which weights decay in TinyCLIP's released code, against ``optimizer = "open_clip"`` of this
package.

The whole golden file has the names and shapes of a small model, and how many tensors its optimizers
had in each group.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from dimefm.train.optim import decays

WHOLE = Path(__file__).parents[3] / "shared" / "golden" / "tinyclip.npz"


@pytest.mark.skipif(
    not WHOLE.exists(),
    reason="the whole golden file (../shared/golden) is not beside this checkout",
)
def test_weight_decay_is_the_released_one():
    with np.load(WHOLE, allow_pickle=False) as golden:
        weights = {
            key.removeprefix("mask/weights/"): golden[key]
            for key in golden.files
            if key.startswith("mask/weights/")
        }
        image, text, scale, _ = json.loads(str(golden["meta.json"]))["optimizer_groups"]
    for prefix, ((plain, *_), (decayed, _, rate, *_)) in (
        ("_image_", image),
        ("_text_", text),
        ("_logit_scale", scale),
    ):
        tensors = {
            name: value
            for name, value in weights.items()
            if name.startswith(prefix) and "l0_module" not in name
        }
        ours = {name for name, value in tensors.items() if decays(name, value, "open_clip")}
        assert len(ours) == decayed
        assert len(tensors) == plain + decayed
        assert rate == 0.2
