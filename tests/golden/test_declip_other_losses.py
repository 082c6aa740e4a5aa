"""Losses of DeCLIP's repository that no configuration of it uses, said in the primitives of ours,
in value and gradient.

They are in ``declip_losses.npz``, float64. No term here is one of them; the primitives are what is
held against the release.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest
from dimefm.curate.neighbours import Rule
from dimefm.curate.neighbours.search import Searcher
from dimefm.losses import TokenEmbeddings, late_similarity
from dimefm.losses._primitives import info_nce

GOLDEN = np.load(Path(__file__).parent / "declip_losses.npz", allow_pickle=False)
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5}


def leaves(stem, names, dtype):
    return [torch.tensor(GOLDEN[f"{stem}/{name}"], dtype=dtype).requires_grad_() for name in names]


def close(found, key):
    """Compare with errors relative to the largest value wanted."""
    wanted = torch.tensor(GOLDEN[key])
    largest = wanted.abs().max().item()
    torch.testing.assert_close(
        found.detach().double(), wanted, rtol=0, atol=TOLERANCES[found.dtype] * largest
    )


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_simsiam_by_tokens_is_the_token_score_of_an_image_with_its_other_view(dtype):
    """The release's ``minimize_loss``: each token of a view looks for the one most like it in the
    other view.
    """
    p1, z1, p2, z2 = leaves("simsiam_min", ("p1", "z1", "p2", "z2"), dtype)
    scores = [
        late_similarity(TokenEmbeddings.from_rows(p), TokenEmbeddings.from_rows(z.detach()))
        .diagonal()
        .mean()
        for p, z in ((p1, z2), (p2, z1))
    ]
    value = -sum(scores) / 2
    value.backward()
    close(value, "simsiam_min/loss")
    close(p1.grad, "simsiam_min/gp1")
    close(p2.grad, "simsiam_min/gp2")


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_convirt_is_contrast_that_weighs_its_directions_unequally(dtype):
    """Temperature 0.1, three quarters of images looking for sentences and one of the way back."""
    one, other = leaves("convirt", ("zis", "zjs"), dtype)
    image, text = F.normalize(one, dim=1), F.normalize(other, dim=1)
    value = 0.75 * info_nce(image, text, 10.0) + 0.25 * info_nce(text, image, 10.0)
    value.backward()
    close(value, "convirt/loss")
    close(one.grad, "convirt/gi")
    close(other.grad, "convirt/gj")


@pytest.fixture
def search(tmp_path):
    """Return ``search(call)``: the rows of the ring before a call, and which three of them each
    sentence finds [B, 3].
    """

    def find(call):
        ring = GOLDEN["bank_k3/init" if call == 0 else f"bank_k3/bank_{call - 1}"].T
        rows = np.concatenate(
            [ring, GOLDEN["bank_k3/queries"][call][: GOLDEN["bank_k3/sizes"][call]]]
        )
        header = Manifest(
            "text", "hdf5", "float32", 16, False, EncoderCard("any", None, 16, 100.0), {}, {}
        )
        writer = CacheWriter(tmp_path / str(call), header, [("all", len(rows))])
        writer.write("all", [str(row) for row in range(len(rows))], rows)
        writer.seal()
        searcher = Searcher(
            FeatureCache(tmp_path / str(call)), Rule(k=len(rows) - 1, max_cosine=1.0)
        )
        found = searcher.search(np.arange(len(ring), len(rows))).ids
        return ring, np.stack([own[own < len(ring)][:3] for own in found])

    return find


@pytest.mark.parametrize("call", range(7))
def test_three_neighbours_are_the_released_ones(search, call):
    """The release's ring finds several neighbours where its loss fails; ours finds one, the search
    over a cache several.

    Here the ring's rows and the sentences of a call lie in one cache, and only the former count.
    """
    ring, ids = search(call)
    wanted = GOLDEN[f"bank_k3/nn_{call}"]
    np.testing.assert_allclose(
        ring[ids] / np.linalg.norm(ring[ids], axis=2, keepdims=True), wanted, atol=1e-6
    )
