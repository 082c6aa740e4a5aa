"""Renaming the tensors of a published checkpoint loses none."""

import torch

from dimefm.models.weights.family import renamed


def test_two_names_never_become_one():
    one, two, three = (torch.full((1,), number) for number in (1, 2, 3))
    tensors = {"encode_text.x": one, "text.x": two, "encode_text.y": three}
    result = renamed(tensors, r"encode_text\.", "text.")
    assert result == {"encode_text.x": one, "text.x": two, "text.y": three}
