"""DeCLIP (ICLR 2022) and the models of its benchmark: CLIP, SLIP, FILIP, DeFILIP.

The text tower is called ``encode_text``. Its vocabulary has 49,409 tokens: the release puts a mask
at 49,406, before the begin and end of a sentence, which open_clip numbers one lower. Row 49,406 of
the embedding is removed, so open_clip's tokenizer fits. The projection of a sentence has a bias.
What only training needs (projectors, predictors, the words' classifier) is dropped.

Source: Sense-GVT/DeCLIP f7bc094, prototype/model/declip.py, slip.py, filip.py,
text_encoder/text_transformer.py. Images are normalised with ImageNet's mean and deviation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dimefm.models.weights.family import IMAGENET, Family, Tensors, renamed, without

TEXT = ("encode_text.", "text_encoder.")  # the latter in SLIP
VOCABULARY = 49_409
MASK = 49_406  # the token that open_clip does not have
EMBEDDING = "text.token_embedding.weight"
TRAINING_ONLY = (
    r"(projector\w*|predictor\w*|text_label_predictor|image_mapping|text_mapping)\..+"
    r"|logit_scale_dense|visual\.fc\.(weight|bias)"
)
"""Also the classifier that a ResNet has for images of another size than 224 pixels."""


def claims(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether the text tower has DeCLIP's name."""
    names = [name for name in tensors if name.startswith(TEXT)]
    return any(name.endswith("token_embedding.weight") for name in names)


def remap(tensors: Tensors) -> Tensors:
    """Return the tensors under the names of open_clip's CLIP with a text tower of its own."""
    kept = renamed(without(tensors, TRAINING_ONLY), r"encode_text\.|text_encoder\.", "text.")
    embedding = kept.get(EMBEDDING)
    if embedding is not None and len(embedding) == VOCABULARY:
        kept[EMBEDDING] = torch.cat([embedding[:MASK], embedding[MASK + 1 :]])
    return kept


FAMILY = Family(
    name="declip",
    title="DeCLIP (ICLR 2022)",
    claims=claims,
    remap=remap,
    from_shapes=True,
    settings={"quick_gelu": True, "custom_text": True},
    preprocess=IMAGENET,
)
