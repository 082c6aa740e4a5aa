"""The chunked primitives equal their dense twins in value and gradient, and no op of theirs makes
anything of B x N.
"""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dimefm.losses import Features, _chunked, _primitives, clip, dime
from dimefm.losses._primitives import info_nce, logits, similarity_kl, soft_cross_entropy

SOFT = ("similarity_kl", "soft_cross_entropy")


def unit(seed, *shape, dtype=torch.float64):
    """Return rows of unit length with a shared direction, so that similarities lie near each other
    as CLIP's do.
    """
    draw = torch.Generator().manual_seed(seed)
    shared = torch.randn(shape[-1], generator=draw, dtype=torch.float64)
    return F.normalize(
        shared + torch.randn(*shape, generator=draw, dtype=torch.float64), dim=-1
    ).to(dtype)


def made(seed, q, k, d, dtype=torch.float64):
    """Return the student's (queries, keys, scale), all of which learn, and the teacher's of another
    width, which do not.
    """
    student = (
        unit(seed, q, d, dtype=dtype),
        unit(seed + 1, k, d, dtype=dtype),
        torch.tensor(20.0, dtype=dtype),
    )
    return [x.requires_grad_() for x in student], [
        unit(seed + 2, q, d + 1, dtype=dtype),
        unit(seed + 3, k, d + 1, dtype=dtype),
    ]


def value_of(module, name, student, teacher, temperature, both_ways):
    """Return a primitive's value, by ``module``, chunked or dense."""
    if name == "info_nce":
        return module.info_nce(*student, both_ways=both_ways)
    sides = module.logits(*student), module.logits(*teacher, 30.0)
    return getattr(module, name)(*sides, temperature, both_ways=both_ways)


def chunks_of(monkeypatch, most):
    """Let a chunk have ``most`` similarities at most, or one row."""
    monkeypatch.setattr(_chunked, "CHUNK", most)
    monkeypatch.setattr(_chunked, "LEAST", 1)


@pytest.mark.parametrize("name", ["info_nce", *SOFT])
@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    q=st.integers(1, 11),
    k=st.integers(1, 11),
    d=st.integers(2, 7),
    chunk=st.integers(1, 130),
    temperature=st.floats(0.5, 9),
    both_ways=st.booleans(),
)
@example(
    seed=1, q=7, k=7, d=4, chunk=21, temperature=1.0, both_ways=True
)  # chunks of 3, 3 and 1 rows
@example(seed=2, q=5, k=11, d=4, chunk=10, temperature=1.0, both_ways=True)
@example(seed=3, q=5, k=11, d=4, chunk=22, temperature=3.0, both_ways=False)
@example(seed=4, q=9, k=1, d=4, chunk=4, temperature=3.0, both_ways=True)
def test_value_and_gradients_equal_the_dense_twin_for_any_chunk(
    dense, name, seed, q, k, d, chunk, temperature, both_ways
):
    student, teacher = made(seed, q, q if name == "info_nce" else k, d)
    expected = value_of(dense, name, student, teacher, temperature, both_ways)
    with pytest.MonkeyPatch.context() as patch:
        chunks_of(patch, chunk)
        value = value_of(_primitives, name, student, teacher, temperature, both_ways)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    found, wanted = (torch.autograd.grad(3 * x, student) for x in (value, expected))
    for gradient, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("name", ["info_nce", *SOFT])
def test_gradients_are_those_of_the_value(monkeypatch, name, both_ways):
    student, teacher = made(5, 5, 5 if name == "info_nce" else 4, 3)
    chunks_of(monkeypatch, 8)

    def loss(*student):
        return value_of(_primitives, name, student, teacher, 2.0, both_ways)

    assert gradcheck(loss, student)


@pytest.mark.parametrize("chunk", [1, 8192, 2**30])
def test_in_float32_the_chunk_costs_no_precision(monkeypatch, dense, chunk):
    student, teacher = made(6, 200, 300, 16, torch.float32)
    exact, sure = made(6, 200, 300, 16)
    chunks_of(monkeypatch, chunk)
    value = value_of(_primitives, "similarity_kl", student, teacher, 1.0, True)
    expected = value_of(dense, "similarity_kl", exact, sure, 1.0, True)
    torch.testing.assert_close(value.double(), expected, rtol=2e-6, atol=0)
    for gradient, other in zip(
        torch.autograd.grad(value, student), torch.autograd.grad(expected, exact), strict=True
    ):
        assert (gradient - other).norm() <= 2e-6 * other.norm()


@pytest.mark.parametrize("name", ["info_nce", *SOFT])
@pytest.mark.parametrize(
    "wanted",
    [(True, False, False), (False, True, False), (False, False, True), (True, False, True)],
)
def test_only_what_learns_receives_a_gradient(dense, name, wanted):
    student, teacher = made(7, 6, 6, 4)
    for x, uses_modules in zip(student, wanted, strict=True):
        x.requires_grad_(uses_modules)
    for rows in teacher:
        rows.requires_grad_()
    learning = [x for x in student if x.requires_grad]
    grads = [
        torch.autograd.grad(value_of(module, name, student, teacher, 1.0, True), learning)
        for module in (_primitives, dense)
    ]
    torch.testing.assert_close(*grads)
    value_of(_primitives, name, student, teacher, 1.0, True).backward()
    assert all(
        (x.grad is not None) == uses_modules
        for x, uses_modules in zip(student, wanted, strict=True)
    )
    assert all(rows.grad is None for rows in teacher)


def test_without_anything_to_learn_there_is_no_graph():
    student, teacher = made(8, 6, 5, 4)
    plain = [x.detach() for x in student]
    assert not value_of(_primitives, "similarity_kl", plain, teacher, 1.0, True).requires_grad
    with torch.no_grad():
        assert not value_of(_primitives, "similarity_kl", student, teacher, 1.0, True).requires_grad


def test_rows_that_are_queries_and_keys_receive_both_gradients(monkeypatch, dense):
    (rows, _, _), (teacher, _) = made(9, 7, 7, 5)
    chunks_of(monkeypatch, 15)
    value = similarity_kl(logits(rows, rows, 20.0), logits(teacher, teacher, 20.0), 2.0)
    expected = dense.similarity_kl(
        dense.logits(rows, rows, 20.0), dense.logits(teacher, teacher, 20.0), 2.0
    )
    torch.testing.assert_close(*(torch.autograd.grad(x, rows) for x in (value, expected)))


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_scale_receives_a_gradient_of_its_own_shape_and_dtype(shape, dtype):
    queries, keys = unit(10, 4, 3), unit(11, 4, 3)
    scale = torch.full(shape, 14.0, dtype=dtype, requires_grad=True)
    info_nce(queries, keys, scale).backward()
    assert (scale.grad.shape, scale.grad.dtype) == (scale.shape, dtype)


def test_a_second_backward_gives_the_same():
    student, teacher = made(12, 5, 4, 3)
    value = value_of(_primitives, "similarity_kl", student, teacher, 1.0, True)
    first = torch.autograd.grad(value, student, retain_graph=True)
    torch.testing.assert_close(first, torch.autograd.grad(value, student), rtol=0, atol=0)


def test_soft_cross_entropy_is_the_divergence_and_the_teachers_entropy():
    student, teacher = made(13, 6, 5, 4)
    sides = logits(*student), logits(*teacher, 30.0)
    chances = (30 * teacher[0] @ teacher[1].T / 2).softmax(1)
    entropy = -(chances * chances.log()).sum(1).mean()
    torch.testing.assert_close(
        soft_cross_entropy(*sides, 2.0), similarity_kl(*sides, 2.0) + entropy
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_rows_are_computed_in_float32_and_receive_half_gradients(dtype):
    student, teacher = made(14, 6, 5, 8, dtype)
    value = value_of(_primitives, "similarity_kl", student, teacher, 1.0, True)
    single = [x.detach().float().requires_grad_() for x in student]
    expected = value_of(
        _primitives, "similarity_kl", single, [x.float() for x in teacher], 1.0, True
    )
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    for half, full in zip(
        torch.autograd.grad(value, student), torch.autograd.grad(expected, single), strict=True
    ):
        assert half.dtype == dtype
        torch.testing.assert_close(half, full.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_changes_nothing(dtype):
    student, teacher = made(15, 6, 5, 8, dtype)
    plain = value_of(_primitives, "similarity_kl", student, teacher, 1.0, True)
    with torch.autocast("cpu", torch.bfloat16):
        value = value_of(_primitives, "similarity_kl", student, teacher, 1.0, True)
        gradients = torch.autograd.grad(value, student)
    assert value.dtype == dtype
    torch.testing.assert_close(
        [value, *gradients], [plain, *torch.autograd.grad(plain, student)], rtol=0, atol=0
    )


class Largest(TorchDispatchMode):
    """Keeps the largest number of elements that any op returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        sizes = [
            x.untyped_storage().nbytes() // x.element_size()
            for x in tree_leaves(found)
            if isinstance(x, torch.Tensor)
        ]
        self.elements = max(self.elements, *sizes, 0)
        return found


def run_terms(b, n, d):
    """Go forward and backward through every term at sizes [B, N, D]."""
    student, image, text, caption = (
        unit(i, rows, d, dtype=torch.float32) for i, rows in enumerate((b, b, n, b))
    )
    student.requires_grad_()
    teacher = Features(image, text, 100.0)
    for term in (dime.vl, dime.pvl, dime.udist):
        term(Features(student, text, 100.0), teacher).backward()
    clip.contrastive(Features(student, caption, torch.tensor(100.0, requires_grad=True))).backward()


@pytest.mark.parametrize(("b", "n"), [(120, 200), (200, 120), (160, 160)])
def test_nothing_of_b_times_n_is_ever_made(monkeypatch, b, n):
    chunks_of(monkeypatch, 12 * 200)
    with Largest() as seen:
        run_terms(b, n, 8)
    assert max(b, n) * 8 <= seen.elements <= 12 * 200


def test_the_dense_twin_would_be_caught(dense):
    student, teacher = made(16, 120, 200, 8)
    with Largest() as seen:
        value_of(dense, "similarity_kl", student, teacher, 1.0, True).backward()
    assert seen.elements >= 120 * 200


def test_different_shapes_are_refused():
    (queries, keys, scale), teacher = made(17, 4, 5, 3)
    with pytest.raises(ValueError, match=r"student \(4, 5\) and teacher \(5, 4\)"):
        similarity_kl(logits(queries, keys, scale), logits(*teacher, 1.0).T, 1.0)
    with pytest.raises(ValueError, match="4 queries and 5 keys"):
        info_nce(queries, keys, scale)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_it_is_the_same_without_the_memory(monkeypatch):
    monkeypatch.setattr(_chunked, "DEVICE_CHUNK", 2**16)
    student, teacher = made(18, 2048, 1024, 16, torch.float32)
    placed = [x.detach().cuda().requires_grad_() for x in student]
    rows = [x.cuda() for x in teacher]
    expected = value_of(_primitives, "similarity_kl", student, teacher, 1.0, True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    value = value_of(_primitives, "similarity_kl", placed, rows, 1.0, True)
    gradients = torch.autograd.grad(value, placed)
    assert torch.cuda.max_memory_allocated() - before < 4 * 2048 * 1024
    torch.testing.assert_close(value.cpu(), expected, rtol=1e-5, atol=1e-6)
    for gradient, other in zip(gradients, torch.autograd.grad(expected, student), strict=True):
        assert (gradient.cpu() - other).norm() <= 1e-4 * other.norm()
