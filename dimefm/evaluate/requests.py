"""Run what ``[eval]`` or ``dimefm eval elevater`` asks for: zero-shot alone, or several tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dimefm.errors import DataError
from dimefm.evaluate import reports, score_tables, zero_shot
from dimefm.evaluate.knowledge import Knowledge, read_knowledge
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
    knowledge = _knowledge(request)
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
            knowledge=knowledge,
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
        knowledge=knowledge,
    )


def refuse_impossible(request: Eval) -> None:
    """Raise DataError when settings do not fit together, or a file of knowledge cannot be used."""
    if request.trains and request.by == "tokens":
        raise DataError(
            "--by tokens compares images with prompts, and probes are trained on embeddings. Fix:"
            " leave out --by, or score zero-shot alone"
        )
    if request.knowledge and request.by == "tokens":
        raise DataError(
            "--by tokens compares prompts of equal numbers, and --knowledge makes different ones."
            " Fix: leave out one of them"
        )
    _knowledge(request)


def _knowledge(request: Eval) -> Knowledge | None:
    """Return the knowledge in the files that are asked for, None without any."""
    if not request.knowledge:
        return None
    return read_knowledge(
        request.knowledge,
        request.knowledge_kind,
        request.knowledge_method,
        request.knowledge_items,
    )


def _plan(request: Eval) -> Plan:
    return Plan(
        zero_shot=request.zero_shot,
        linear_probe=request.linear_probe,
        few_shot=request.few_shot,
        fine_tune=request.fine_tune,
        fine_tune_epochs=request.fine_tune_epochs,
        tower_rate=request.tower_rate,
        protocol=request.protocol,
        seeds=request.seeds or SEEDS,
    )


def terminal(scores: ZeroShotScores | Scores) -> str:
    """Return the scores as an aligned table."""
    if isinstance(scores, ZeroShotScores):
        return reports.terminal(scores)
    return score_tables.terminal(scores)
