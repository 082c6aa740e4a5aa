"""The sentences below the quickstart's table: a score near chance is not praised."""

import pytest

from dimefm.quickstart.report import table

SUMMARY = {
    "datasets": {},
    "teacher_accuracy": 0.9,
    "student_accuracy": 0.6,
    "untrained_accuracy": 0.1,
    "chance": 0.1,
    "teacher_params": 1300,
    "student_params": 100,
    "text_params": 50,
    "teacher_rows_per_s": 10,
    "student_rows_per_s": 20,
    "seconds": 3.0,
}


def test_a_student_above_chance_is_compared_with_its_teacher():
    text = table(SUMMARY)
    assert "13 times smaller and keeps 67 % of the teacher's accuracy" in text


@pytest.mark.parametrize("model", ["teacher", "student"])
def test_an_accuracy_at_chance_is_called_meaningless(model):
    text = table({**SUMMARY, f"{model}_accuracy": 0.14})
    assert "too short for its scores to mean anything" in text
    assert "keeps" not in text
