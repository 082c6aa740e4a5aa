"""Classes that the student forgot: those whose score is lower than the teacher's."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from dimefm.evaluate.metrics import average_precisions
from dimefm.runtime.printable import one_line


@dataclass(frozen=True)
class ForgottenClass:
    """A class of a dataset with the scores of both models, 0 to 1.

    ``metric`` is accuracy, or average precision where images have several labels. Of its
    ``images``, ``lost`` are right for the teacher alone and ``gained`` for the student alone; both
    are None for average precision.
    """

    dataset: str
    name: str
    metric: str
    teacher: float
    student: float
    loss: float
    images: int
    lost: int | None
    gained: int | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def forgotten_classes(
    dataset: str,
    classes: Sequence[str],
    student: np.ndarray,
    teacher: np.ndarray,
    labels: np.ndarray,
) -> list[ForgottenClass]:
    """Return the classes with a lower score than the teacher's, the largest loss first.

    ``student`` and ``teacher`` are probabilities [n, C]; ``labels`` are int [n], or 0/1 [n, C].
    Equal losses are in the order of the number of images, then of the classes.
    """
    if labels.ndim == 2:
        found = _by_precision(dataset, classes, student, teacher, labels)
    else:
        found = _by_accuracy(dataset, classes, student, teacher, labels)
    worse = [entry for entry in found if entry.loss > 0]
    worse.sort(key=lambda entry: (-entry.loss, -entry.images))
    return worse


def _by_accuracy(
    dataset: str,
    classes: Sequence[str],
    student: np.ndarray,
    teacher: np.ndarray,
    labels: np.ndarray,
) -> list[ForgottenClass]:
    n_classes = len(classes)
    student_right = student.argmax(axis=1) == labels
    teacher_right = teacher.argmax(axis=1) == labels
    images = np.bincount(labels, minlength=n_classes)
    lost = np.bincount(labels[teacher_right & ~student_right], minlength=n_classes)
    gained = np.bincount(labels[student_right & ~teacher_right], minlength=n_classes)
    of_teacher = np.bincount(labels[teacher_right], minlength=n_classes)
    of_student = np.bincount(labels[student_right], minlength=n_classes)
    found = []
    for number in np.flatnonzero(images):
        count = int(images[number])
        found.append(
            ForgottenClass(
                dataset=dataset,
                name=classes[number],
                metric="accuracy",
                teacher=int(of_teacher[number]) / count,
                student=int(of_student[number]) / count,
                loss=int(of_teacher[number] - of_student[number]) / count,
                images=count,
                lost=int(lost[number]),
                gained=int(gained[number]),
            )
        )
    return found


def _by_precision(
    dataset: str,
    classes: Sequence[str],
    student: np.ndarray,
    teacher: np.ndarray,
    labels: np.ndarray,
) -> list[ForgottenClass]:
    images = labels.sum(axis=0)
    of_student = average_precisions(student, labels)
    of_teacher = average_precisions(teacher, labels)
    found = []
    for number in np.flatnonzero(images):
        found.append(
            ForgottenClass(
                dataset=dataset,
                name=classes[number],
                metric="average precision",
                teacher=float(of_teacher[number]),
                student=float(of_student[number]),
                loss=float(of_teacher[number] - of_student[number]),
                images=int(images[number]),
                lost=None,
                gained=None,
            )
        )
    return found


def csv_text(found: Sequence[ForgottenClass]) -> str:
    """Return the classes as comma-separated values with a head."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = [item.name for item in fields(ForgottenClass)]
    writer.writerow(["class" if name == "name" else name for name in names])
    for entry in found:
        values = entry.to_json()
        values["dataset"] = one_line(entry.dataset)
        values["name"] = one_line(entry.name)
        for name in ("teacher", "student", "loss"):
            values[name] = round(values[name], 6)
        writer.writerow(["" if values[name] is None else values[name] for name in names])
    return file.getvalue()
