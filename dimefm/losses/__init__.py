"""Losses as pure functions ``(student: Features, teacher: Features, *, parts, options) -> scalar``;
one paper a file.

A name is ``FILE.FUNCTION``, e.g. ``dime.pvl``; a file's ``__all__`` lists its terms. What of a loss
learns is a part that it is given, see ``uses_modules``. Legend: B images, N sentences, D
dimensions. Similarities and softmax are computed in float32 (float64 stays float64).
"""

from dimefm.losses._features import (
    Features,
    Term,
    TextTokenStates,
    described,
    needs,
    options_of,
    resolve,
    terms,
)
from dimefm.losses._late_interaction import Padding, TokenEmbeddings, late, present
from dimefm.losses._modules import FeatureDims, project_to_teacher, uses_modules
from dimefm.losses._objective import LossConfig, Objective

__all__ = [
    "Features",
    "Objective",
    "Padding",
    "Term",
    "TokenEmbeddings",
    "LossConfig",
    "FeatureDims",
    "TextTokenStates",
    "described",
    "late",
    "uses_modules",
    "project_to_teacher",
    "needs",
    "options_of",
    "present",
    "resolve",
    "terms",
]
