"""DIME-FM (ICCV 2023): image towers alone, which live in the space of their teacher.

``checkpoint.pth.tar`` has the tower under ``image_state_dict``, wrapped in ``module``. A vision
transformer is OpenAI's (with QuickGELU), its last projection ``visual.proj`` or, in the evaluation
code, ``vision_projection``. A Swin transformer is ``image_encoder``, its projection
``image_projection``. The sentences are encoded by the teacher, CLIP ViT-L/14.

Source: sunxm2357/DIME-FM 093335c, Training/train_amp.py:81-108, utils/split_network.py:5-15 and
48-58, Evaluation/vision_benchmark/models/clip_vit_img_only.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dimefm.models.weights.clip_kd import swin
from dimefm.models.weights.family import Family, Tensors, renamed, without

SWIN, PROJECTION = "image_encoder.", "image_projection"
CONSTANTS = r"image_encoder\..+\.(attn_mask|relative_position_index)"
STUDENTS = ("dime-Swin-T",)


def claims(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether there is nothing but an image tower."""
    if not tensors:
        return False
    allowed = ("visual.", SWIN, PROJECTION, "vision_projection")
    return all(name.startswith(allowed) for name in tensors)


def remap(tensors: Tensors) -> Tensors:
    """Return the tensors of the image tower under open_clip's names."""
    kept = without(tensors, CONSTANTS)
    kept = renamed(kept, r"vision_projection$", "visual.proj")
    if PROJECTION not in kept:
        return kept
    projection = kept.pop(PROJECTION)
    kept = swin(renamed(kept, r"image_encoder\.", "visual.trunk."))
    kept["visual.head.proj.weight"] = projection.T.contiguous()
    return kept


FAMILY = Family(
    name="dime-fm",
    title="DIME-FM (ICCV 2023)",
    claims=claims,
    remap=remap,
    students=STUDENTS,
    from_shapes=True,
    settings={"quick_gelu": True},
)
