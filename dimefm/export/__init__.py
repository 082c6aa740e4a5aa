"""Export: a model as a folder that another program loads, with all that it needs.

Calling the package exports, see :func:`export`: ``dimefm.export(model, to, out)``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dimefm.runtime.verbs import make_callable

if TYPE_CHECKING:
    from dimefm.export.job import Exported


def export(
    model: str | os.PathLike,
    to: str,
    out: str | os.PathLike,
    *,
    labels: str | os.PathLike | None = None,
    check_images: str | os.PathLike | None = None,
    eval_root: str | os.PathLike | None = None,
    datasets: Sequence[str] = (),
    least_cosine: float | None = None,
    most_loss: float = 0.01,
    text_model: str | os.PathLike | None = None,
    preprocess: str | os.PathLike | None = None,
    **settings: Any,
) -> Exported:
    """Write a model to the new folder ``out``, in the format ``to``, and check what was written.

    ``model`` is a run folder or any other name that ``dimefm.load`` takes; ``text_model`` and
    ``preprocess`` go with it. ``to`` is ``"open_clip"``, ``"hf"``, ``"onnx"`` or ``"web"``. The
    folder holds a whole CLIP: a distilled tower, and the tower that it borrowed from its teacher.
    ``labels`` is a file of class names or class embeddings, which are written too.

    What was written is loaded again. Its embeddings of the images in ``check_images`` (by default
    images of the run, else drawn pictures) and of some prompts are compared with the model's: no
    cosine may be below ``least_cosine`` (default: the format's own limit). With ``eval_root``,
    both are scored on ``datasets`` below it, and no score may fall by more than ``most_loss``.

    Returns where the export is and what the checks found. Raises ModelError when the model cannot
    be loaded, the format cannot express it or a check fails; then nothing is left behind.

    Example::

        exported = dimefm.export("runs/first", "open_clip", "exported")
        print(exported.folder, exported.agreements[0].image_least)
    """
    from dimefm.export.job import Request, run

    request = Request(
        model=os.fspath(model),
        to=to,
        out=Path(out),
        labels=None if labels is None else Path(labels),
        check_images=None if check_images is None else Path(check_images),
        eval_root=None if eval_root is None else Path(eval_root),
        datasets=tuple(datasets),
        least_cosine=least_cosine,
        most_loss=most_loss,
        text_model=None if text_model is None else os.fspath(text_model),
        preprocess=None if preprocess is None else os.fspath(preprocess),
        settings=settings,
    )
    return run(request)


make_callable(__name__, export)
