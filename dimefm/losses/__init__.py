"""Losses as pure functions ``(student: Features, teacher: Features, *, modules, options)``.

Each returns a scalar. There is one paper a file. A name is ``FILE.FUNCTION``, e.g. ``dime.pvl``; a
file's ``__all__`` lists its terms. Trainable modules are passed to a loss as arguments, see
``uses_modules``. Legend: B images, N captions, D dimensions. Similarities and softmax are computed
in float32 (float64 stays float64).
"""

from dimefm.losses._features import Features, TextTokenStates
from dimefm.losses._late_interaction import (
    Padding,
    TokenEmbeddings,
    late_similarity,
    word_mask,
)
from dimefm.losses._modules import FeatureDims, project_to_teacher, uses_modules
from dimefm.losses._needs import Need, Provider, outputs_of
from dimefm.losses._objective import LossConfig, Objective
from dimefm.losses._terms import Term, describe, needs, options_of, resolve, terms

__all__ = [
    "FeatureDims",
    "Features",
    "LossConfig",
    "Need",
    "Objective",
    "Padding",
    "Provider",
    "Term",
    "TextTokenStates",
    "TokenEmbeddings",
    "describe",
    "late_similarity",
    "needs",
    "options_of",
    "outputs_of",
    "project_to_teacher",
    "resolve",
    "terms",
    "uses_modules",
    "word_mask",
]
