"""Losses as pure functions ``(student: Features, teacher: Features, *, parts, options) -> scalar``;
one paper a file.

A name is ``FILE.FUNCTION``, e.g. ``dime.pvl``; a file's ``__all__`` lists its terms. What of a loss
learns is a part that it is given, see ``learns``. Legend: B images, N sentences, D dimensions.
Similarities and softmax are computed in float32 (float64 stays float64).
"""

from dimefm.losses._features import (
    Features,
    Term,
    Words,
    described,
    needs,
    options_of,
    resolve,
    terms,
)
from dimefm.losses._late_interaction import Padding, Tokens, late, present
from dimefm.losses._modules import Widths, learns, near
from dimefm.losses._objective import Objective, Weighted

__all__ = [
    "Features",
    "Objective",
    "Padding",
    "Term",
    "Tokens",
    "Weighted",
    "Widths",
    "Words",
    "described",
    "late",
    "learns",
    "near",
    "needs",
    "options_of",
    "present",
    "resolve",
    "terms",
]
