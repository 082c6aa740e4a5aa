"""Run the stages of an experiment one after another, and write the table at the end."""

from __future__ import annotations

import time
from pathlib import Path

from dimefm.experiment.file import Experiment
from dimefm.experiment.record import FILE, StageRecord, read_records, write_records
from dimefm.experiment.stages import EvalStage, ExportStage, Say, Stage, stages_of
from dimefm.runtime.torchrun import rank_of
from dimefm.storage.files import write_report
from dimefm.storage.out_folder import refuse_foreign

REPORT = "report.md"
MARKS = (FILE, "cache", "run", "scores", "export")
"""What a folder has that holds an experiment, or the beginning of one."""


def run_experiment(experiment: Experiment, out: Path, say: Say = print) -> str:
    """Run what is left of ``experiment`` in the folder ``out``; return the table at the end.

    A stage that is done, and whose inputs have not changed, is skipped. An interrupted stage is
    resumed. ``say`` gets the messages of the stages. Under torchrun every process calls this; the
    first one writes, scores and exports. Raises a DimefmError when a stage cannot be done; what was
    finished before stays.
    """
    is_main = rank_of()[0] == 0
    if is_main:
        refuse_foreign(out, "experiment", MARKS)
    stages = stages_of(experiment, out)
    records = read_records(out)
    for number, stage in enumerate(stages, start=1):
        title = f"{number}/{len(stages)} {stage.name}"
        if isinstance(stage, EvalStage | ExportStage) and not is_main:
            continue
        inputs = stage.inputs()
        if is_done(stage, inputs, records):
            say(f"{title}: done already, inputs unchanged")
            continue
        say(f"{title}: {stage.place}")
        started = time.perf_counter()
        outcome = stage.run(say)
        records[stage.name] = StageRecord(
            inputs=inputs,
            outputs=stage.outputs(),
            summary=outcome.summary,
            details=outcome.details,
            seconds=round(time.perf_counter() - started, 1),
        )
        if is_main:
            write_records(out, records)

    text = table(stages, records)
    if is_main:
        write_report(out / REPORT, f"# {experiment.path.stem}\n\n```\n{text}\n```\n")
    return text


def is_done(stage: Stage, inputs: str, records: dict[str, StageRecord]) -> bool:
    """Tell whether a stage is finished and was made from these inputs."""
    record = records.get(stage.name)
    if record is None or record.inputs != inputs:
        return False
    return record.outputs != "" and record.outputs == stage.outputs()


def table(stages: list[Stage], records: dict[str, StageRecord]) -> str:
    """Return the stages with their results and seconds, and the scores, for people."""
    lines = [f"{'stage':<8} {'seconds':>9}  result"]
    lines.append(f"{'-' * 8} {'-' * 9}  {'-' * 6}")
    for stage in stages:
        record = records.get(stage.name)
        if record is not None:
            lines.append(f"{stage.name:<8} {record.seconds:>9,.1f}  {record.summary}")
    for stage in stages:
        record = records.get(stage.name)
        if record is not None and record.details:
            lines += ["", record.details]
    return "\n".join(lines)
