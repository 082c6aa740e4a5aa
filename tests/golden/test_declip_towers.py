"""Tokens and towers equal DeCLIP's released code.

``declip_tokens.npz`` has five sentences and their tokens. The release puts a mask among the special
tokens, id 49406, so begin and end of a sentence have ids larger by one than open_clip's; all others
are the same. The towers, two layers of width 32, are in the whole golden file alone. Their
vocabulary is cut to the tokens of those five sentences, in order.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.model import CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer

from dimefm.models import intermediate
from dimefm.models.fast_tokenizer import cached_tokenizer
from dimefm.models.trimmed_text import trimmed

GOLDEN = np.load(Path(__file__).parent / "declip_tokens.npz", allow_pickle=False)
WHOLE = Path(__file__).parents[3] / "shared" / "golden" / "declip.npz"
TOLERANCE = 1e-5  # relative to the largest value; the release computed in float32


def test_tokens_equal_the_released_ones():
    """Among the sentences is one of HTML entities and capitals, one that is cut, one of other
    scripts and an empty one.
    """
    mask, begin, end = GOLDEN["tok/special"].tolist()
    tokenizer = SimpleTokenizer()
    assert (begin - 1, end - 1) == (tokenizer.sot_token_id, tokenizer.eot_token_id)
    assert GOLDEN["tok/vocab_size"] == tokenizer.vocab_size + 1
    wanted = GOLDEN["tok/ids"]
    assert not (wanted == mask).any()
    found, lengths = cached_tokenizer(tokenizer).tokenize(GOLDEN["tok/caps"].tolist())
    np.testing.assert_array_equal(found, np.where(wanted > mask, wanted - 1, wanted))
    assert max(lengths) > wanted.shape[1]


@pytest.fixture(scope="module")
def golden():
    """Return the arrays of the towers by their names."""
    if not WHOLE.exists():
        pytest.skip("the whole golden file (../shared/golden) is not beside this checkout")
    with np.load(WHOLE, allow_pickle=False) as file:
        return {
            key.removeprefix("tower/"): file[key] for key in file.files if key.startswith("tower/")
        }


@pytest.fixture(scope="module")
def model(golden):
    """Return both towers with the released weights."""
    vision = {"image_size": 64, "patch_size": 32, "width": 32, "layers": 2, "head_width": 16}
    text = {
        "context_length": 77,
        "vocab_size": len(golden["t.used_ids"]),
        "width": 32,
        "heads": 4,
        "layers": 2,
    }
    found = CustomTextCLIP(16, vision, text | {"proj_bias": True}, quick_gelu=True).eval()
    for tower, prefix in ((found.visual, "v."), (found.text, "t.")):
        weights = {
            key.removeprefix(prefix): torch.tensor(value)
            for key, value in golden.items()
            if key.startswith(prefix)
        }
        weights.pop("used_ids", None)
        tower.load_state_dict(weights)
    return found


def close(found, wanted):
    np.testing.assert_allclose(
        found.detach().numpy(), wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max()
    )


def test_an_image_tower_gives_the_released_rows_patches_and_features(golden, model):
    found = intermediate.image(model, torch.tensor(golden["im"]))
    for name, ours in (("feat", found.rows), ("dense", found.patches), ("pre", found.hidden)):
        close(ours, golden[f"img_{name}"])


def test_a_text_tower_gives_the_released_rows_and_states(golden, model):
    """Also of tokens that are cut behind the end of the longest sentence but one, which the release
    does not do.
    """
    tokens = torch.tensor(np.searchsorted(golden["t.used_ids"], GOLDEN["tok/ids"]))
    found = intermediate.text(model, tokens)
    close(found.rows, golden["txt_feat"])
    close(found.states, golden["txt_words"])
    tower = trimmed(model)
    short = tower.lengths(tokens) < 40
    close(
        tower.encode_text(tokens[short, : tower.lengths(tokens)[short].max()]),
        golden["txt_feat"][short.numpy()],
    )
