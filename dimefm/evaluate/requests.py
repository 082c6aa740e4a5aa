"""Run what ``[eval]`` or ``dimefm eval elevater`` asks for: zero-shot alone, or several tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dimefm.errors import DataError
from dimefm.evaluate import reports, score_tables, zero_shot
from dimefm.evaluate.probe.job import evaluate_tasks
from dimefm.evaluate.probe.tasks import SEEDS, Plan
from dimefm.models import filip
from dimefm.models.encoder import Encoder
from dimefm.recipe.schema.evaluation import Eval
from dimefm.runs.scores import Scores, ZeroShotScores


def score(
    model: str, encoder: Encoder, request: Eval, out: Path, names: Sequence[str] | None
) -> ZeroShotScores | Scores:
    """Score ``encoder``, which was loaded from ``model``, and keep the scores in ``out``.

    Zero-shot alone gives :class:`ZeroShotScores`. Raises DataError when the settings do not fit
    together, and as :func:`dimefm.evaluate.zero_shot.elevater`.
    """
    root = Path(str(request.root))
    if request.trains:
        return evaluate_tasks(
            encoder,
            root,
            out,
            _plan(request),
            names,
            layout=request.layout,
            metric=request.metric,
            decoder=request.decoder,
            batch_size=request.batch_size,
            workers=request.workers,
        )
    return zero_shot.elevater(
        encoder,
        root,
        out,
        names,
        layout=request.layout,
        metric=request.metric,
        decoder=request.decoder,
        batch_size=request.batch_size,
        workers=request.workers,
        maps=filip.load(model, encoder) if request.by == "tokens" else None,
    )


def refuse_impossible(request: Eval) -> None:
    """Raise DataError when settings do not fit together."""
    if request.trains and request.by == "tokens":
        raise DataError(
            "--by tokens compares images with prompts, and probes are trained on embeddings. Fix:"
            " leave out --by, or score zero-shot alone"
        )


def _plan(request: Eval) -> Plan:
    return Plan(
        zero_shot=request.zero_shot,
        linear_probe=request.linear_probe,
        few_shot=request.few_shot,
        protocol=request.protocol,
        seeds=request.seeds or SEEDS,
    )


def terminal(scores: ZeroShotScores | Scores) -> str:
    """Return the scores as an aligned table."""
    if isinstance(scores, ZeroShotScores):
        return reports.terminal(scores)
    return score_tables.terminal(scores)
