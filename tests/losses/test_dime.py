"""The DIME-FM terms against their plain numpy twins, on shapes and scales that hypothesis draws."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dimefm.losses import Features, dime

TERMS = ("vl", "pvl", "udist")


def rows(seed, b, n, d):
    """Return (student, image, text) with a shared direction, so that similarities lie near each
    other as CLIP's do.
    """
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=d)
    return tuple(
        rng.uniform(0.1, 9, (k, 1)) * (shared + rng.normal(size=(k, d))) for k in (b, b, n)
    )


def ours(term, student, image, text, scale, temperature):
    image, text = torch.from_numpy(image), torch.from_numpy(text)
    teacher = Features.from_rows(image, text, scale)
    student = Features.from_rows(torch.from_numpy(student), text, scale)
    return getattr(dime, term)(student, teacher, temperature=temperature).item()


@pytest.mark.parametrize("term", TERMS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    b=st.integers(1, 7),
    n=st.integers(1, 7),
    d=st.integers(2, 9),
    scale=st.floats(0.5, 100),
    temperature=st.floats(0.5, 9),
)
@example(seed=1, b=1, n=5, d=4, scale=100.0, temperature=1.0)
@example(seed=2, b=5, n=1, d=4, scale=100.0, temperature=1.0)
@example(seed=3, b=1, n=1, d=2, scale=100.0, temperature=1.0)
@example(seed=4, b=6, n=3, d=8, scale=100.0, temperature=3.0)
def test_equals_the_numpy_twin(reference, term, seed, b, n, d, scale, temperature):
    arrays = rows(seed, b, n, d)
    expected = getattr(reference, term)(*arrays, scale=scale, temperature=temperature)
    assert ours(term, *arrays, scale, temperature) == pytest.approx(expected, rel=1e-9, abs=1e-11)


@pytest.mark.parametrize(("term", "default"), [("vl", 1.0), ("pvl", 3.0), ("udist", 7.0)])
def test_default_temperatures_are_the_released_ones(term, default):
    student, image, text = (torch.from_numpy(a) for a in rows(5, 6, 4, 8))
    teacher, found = (
        Features.from_rows(image, text, 100.0),
        Features.from_rows(student, text, 100.0),
    )
    function = getattr(dime, term)
    assert function(found, teacher) == function(found, teacher, temperature=default)
    assert function(found, teacher) != function(found, teacher, temperature=default + 1)


def test_the_scale_is_the_teachers_and_the_student_brings_no_sentences():
    student, image, text = (torch.from_numpy(a) for a in rows(6, 6, 4, 8))
    teacher = Features.from_rows(image, text, 50.0)
    for term in TERMS:
        function = getattr(dime, term)
        same = function(Features.from_rows(student, text, 50.0), teacher)
        assert same == function(Features.from_rows(student, torch.randn(2, 8), 7.0), teacher)
        assert same != function(
            Features.from_rows(student, text, 50.0), Features.from_rows(image, text, 51.0)
        )


@pytest.mark.parametrize("term", TERMS)
def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient(term):
    _, image, text = (torch.from_numpy(a) for a in rows(7, 6, 4, 8))
    student = image.clone().requires_grad_()
    value = getattr(dime, term)(
        Features.from_rows(student, text, 100.0), Features.from_rows(image, text, 100.0)
    )
    value.backward()
    assert abs(value.item()) < 1e-12
    assert student.grad.abs().max() < 1e-12


def test_a_row_without_length_stays_finite():
    """The release turns the whole batch into NaN for one zero row (spec, section 1.2)."""
    student, image, text = (torch.from_numpy(a) for a in rows(8, 4, 3, 5))
    student[0] = 0
    student.requires_grad_()
    teacher = Features.from_rows(image, text, 100.0)
    total = sum(
        getattr(dime, term)(Features.from_rows(student, text, 100.0), teacher) for term in TERMS
    )
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(student.grad).all()
