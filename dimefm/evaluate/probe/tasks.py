"""Tasks of an evaluation: zero-shot, probes and fine-tuning, with all images or some per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dimefm.evaluate.kept_predictions import ALL_IMAGES, ZERO_SHOTS
from dimefm.evaluate.probe.finetune import TOWER_RATE
from dimefm.evaluate.probe.protocols import DEFAULT
from dimefm.runs.scores import ZERO_SHOT

LINEAR_PROBE = "linear probe"
FINE_TUNING = "fine-tuning"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Task:
    """One task: its kind, and the training images per class; None for all, 0 for zero-shot."""

    kind: str
    shots: int | None

    @property
    def name(self) -> str:
        """Name of the task in results: ``"linear probe, 5-shot"``."""
        if self.shots:
            return f"{self.kind}, {self.shots}-shot"
        return self.kind

    @property
    def kept_shots(self) -> int:
        """The shots as the files of predictions have them."""
        return ALL_IMAGES if self.shots is None else self.shots

    def images_per_class(self) -> int | None:
        """Return how many images per class are drawn, None for all.

        With one shot, there is a second image for validation, as in the toolkit.
        """
        return 2 if self.shots == 1 else self.shots


@dataclass(frozen=True)
class Plan:
    """What is scored on each dataset.

    ``few_shot`` are numbers of training images per class: of linear probes, and with ``fine_tune``
    of fine-tuning, too. ``fine_tune_epochs`` and ``tower_rate`` are those of
    :class:`dimefm.evaluate.probe.finetune.Options`. ``protocol`` is a name in PROTOCOLS. Few-shot
    tasks run with each of ``seeds``, and tasks with all images with the first one.
    """

    zero_shot: bool = False
    linear_probe: bool = False
    few_shot: Sequence[int] = ()
    fine_tune: bool = False
    fine_tune_epochs: int | None = None
    tower_rate: float = TOWER_RATE
    protocol: str = DEFAULT
    seeds: Sequence[int] = SEEDS

    def tasks(self) -> list[Task]:
        """Return the tasks in the order of their names in a table."""
        tasks = []
        if self.zero_shot:
            tasks.append(Task(ZERO_SHOT, ZERO_SHOTS))
        shots = sorted(set(self.few_shot))
        tasks += [Task(LINEAR_PROBE, count) for count in shots]
        if self.linear_probe:
            tasks.append(Task(LINEAR_PROBE, None))
        if self.fine_tune:
            tasks += [Task(FINE_TUNING, count) for count in (*shots, None)]
        return tasks

    def seeds_of(self, task: Task) -> list[int]:
        """Return the seeds with which a task runs."""
        unique = list(dict.fromkeys(self.seeds))
        return unique if task.shots else unique[:1]
