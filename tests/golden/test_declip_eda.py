"""The operations of DeCLIP's text augmentation return the released code's words, given the same
draws.

``declip_eda.npz`` has the rows (seed, sentence, after random deletion with p = 0.1, after one
random swap), each operation seeded anew. The draws are those that the release takes from Python's
``random``, in its order.
"""

import random
from pathlib import Path

import numpy as np
import pytest

from dimefm.data.views.text_views import kept, swapped

ROWS = np.load(Path(__file__).parent / "declip_eda.npz", allow_pickle=False)["rows"]
DELETION = 0.1


def deletion(words, seed):
    """Return the draws of a random deletion: a number for each word, and which of them is
    spared.
    """
    random.seed(seed)
    draws = [random.uniform(0, 1) for _ in words]
    return draws, random.randint(0, len(words) - 1)


def swap(words, seed):
    """Return the two places that are swapped; the second is drawn at most four times."""
    random.seed(seed)
    first = second = random.randint(0, len(words) - 1)
    for _ in range(4):
        second = random.randint(0, len(words) - 1)
        if second != first:
            break
    return first, second


@pytest.mark.parametrize(("seed", "sentence", "deleted", "swapped_"), ROWS.tolist())
def test_operations_equal_the_released_code(seed, sentence, deleted, swapped_):
    words = sentence.split()
    assert (
        kept(words, deletion(words, int(seed))[0], DELETION, deletion(words, int(seed))[1])
        == deleted.split()
    )
    assert swapped(words, *swap(words, int(seed))) == swapped_.split()
