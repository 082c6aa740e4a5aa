"""Classes that a student forgot, and the table of them."""

import csv
import io

import numpy as np

from dimefm.evaluate.agreement.forgotten import csv_text, forgotten_classes

CLASSES = ("cat", "dog", "owl", "=1+1, or\nnot")


def test_losses_are_sorted_and_counted():
    labels = np.array([0, 0, 1, 1, 1, 1, 2, 2])
    teacher = np.eye(4)[[0, 0, 1, 1, 1, 3, 2, 0]]
    student = np.eye(4)[[0, 1, 3, 3, 1, 1, 2, 2]]
    found = forgotten_classes("animals", CLASSES, student, teacher, labels)
    assert [(entry.name, entry.loss, entry.images) for entry in found] == [
        ("cat", 0.5, 2),
        ("dog", 0.25, 4),
    ]
    assert [(entry.lost, entry.gained) for entry in found] == [(1, 0), (2, 1)]
    assert forgotten_classes("animals", CLASSES, teacher, teacher, labels) == []


def test_several_labels_are_scored_by_average_precision():
    labels = np.array([[1, 0], [1, 1], [0, 1], [0, 0]])
    teacher = np.array([[0.9, 0.1], [0.8, 0.9], [0.2, 0.8], [0.1, 0.2]])
    student = np.array([[0.1, 0.1], [0.8, 0.9], [0.2, 0.8], [0.9, 0.2]])
    [entry] = forgotten_classes("scenes", ("sea", "sky"), student, teacher, labels)
    assert (entry.name, entry.metric, entry.images, entry.lost) == (
        "sea",
        "average precision",
        2,
        None,
    )
    assert entry.teacher == 1 and 0 < entry.student < 1


def test_the_table_holds_each_class_in_one_line():
    labels = np.array([3, 3])
    right = np.eye(4)[[3, 3]]
    wrong = np.eye(4)[[0, 3]]
    found = forgotten_classes("animals", CLASSES, wrong, right, labels)
    [row] = csv.DictReader(io.StringIO(csv_text(found)))
    assert row["class"] == "=1+1, or\\nnot"
    assert (row["teacher"], row["student"], row["loss"]) == ("1.0", "0.5", "0.5")
    assert (row["images"], row["lost"], row["gained"]) == ("2", "1", "0")
