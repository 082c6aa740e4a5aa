"""What every loss term keeps, also one that somebody adds next year: parametrised over what is found on disk."""

import inspect

import numpy as np
import pytest
import torch

from dimefm.errors import RecipeError
from dimefm.losses import Features, Objective, Weighted, Widths, options_of, resolve, terms
from dimefm.training.gradients import Gradients, Portion
from dimefm.training.world import Meeting, World

B, N, D = 6, 9, 16


@pytest.fixture(params=terms())
def term(request):
    return resolve(request.param, {})


def leaves(seed, term, dtype=torch.float32, dim=D):
    """Return un-normalised rows (image [B, D], text [N, D]; N = B where the term needs pairs)."""
    draw = torch.Generator().manual_seed(seed)
    n = B if "pairs" in term.needs else N
    return torch.randn(B, dim, generator=draw).to(dtype), torch.randn(n, dim, generator=draw).to(dtype)


def with_parts(term, dim=D):
    """Return (the term with its learnt parts, these parts) for students of ``dim`` dimensions, in float64."""
    found = Objective([Weighted(name_of(term), 1.0)], given=term.needs).learnt([Widths(dim, D)], seed=3)
    parts = found[0].double() if len(found) else torch.nn.ModuleDict()

    def call(student, teacher, **options):
        own = {name: parts[name].to(student.image) for name in term.learns}
        return term(student, teacher, **own, **options)

    return call, parts


def name_of(term):
    """Return what a recipe calls a term."""
    return f"{term.__module__.rpartition('.')[2]}.{term.__name__}"


def towers(term, dtype=torch.float32):
    """Return (student leaves, teacher leaves, call): ``call()`` computes the loss from the leaves as they are."""
    student, teacher, (call, _) = leaves(1, term, dtype), leaves(2, term, dtype), with_parts(term)
    return student, teacher, lambda: call(Features.of(*student, 20.0, -3.0), Features.of(*teacher, 20.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_is_a_finite_scalar_in_float32_or_better(term, dtype):
    _, _, loss = towers(term, dtype)
    value = loss()
    assert value.shape == ()
    assert value.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    assert torch.isfinite(value)


def test_half_precision_rows_lose_only_their_own_rounding(term):
    student, teacher, loss = towers(term, torch.bfloat16)
    call, _ = with_parts(term)
    wide = [[rows.double() for rows in side] for side in (student, teacher)]
    exact = call(Features.of(*wide[0], 20.0, -3.0), Features.of(*wide[1], 20.0))
    assert loss().item() == pytest.approx(exact.item(), rel=1e-4, abs=1e-5)


def test_leaves_the_teacher_alone(term):
    student, teacher, loss = towers(term)
    before = [rows.clone() for rows in (*student, *teacher)]
    for rows in student:
        rows.requires_grad_()
    loss().backward()
    assert student[0].grad.abs().sum() > 0
    assert all(rows.grad is None for rows in teacher)
    assert all(torch.equal(a, b) for a, b in zip(before, (*student, *teacher), strict=True))


def test_does_not_depend_on_the_order_of_rows(term):
    student, teacher, loss = towers(term)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    sentences = order if "pairs" in term.needs else torch.tensor([8, 3, 0, 5, 7, 1, 4, 2, 6])
    turned = [Features.of(image[order], text[sentences], 20.0, -3.0) for image, text in (student, teacher)]
    torch.testing.assert_close(with_parts(term)[0](*turned), loss(), rtol=1e-5, atol=1e-6)


def test_a_small_step_of_the_student_lowers_it(term):
    student, _, loss = towers(term, torch.float64)
    student[0].requires_grad_()
    before = loss()
    before.backward()
    with torch.no_grad():
        student[0].sub_(1e-3 * student[0].grad / student[0].grad.norm())
    assert loss() < before


def test_states_shapes_and_source(term):
    words = inspect.getdoc(term)
    assert "[B" in words
    assert "Source:" in words


def test_options_have_defaults_and_are_named(term):
    parameters = inspect.signature(term).parameters
    for option in parameters.values():
        if option.kind is option.KEYWORD_ONLY:
            assert (option.default is option.empty) == (option.name in term.learns)
    assert list(parameters)[:2] == ["student", "teacher"]
    assert set(term.learns) <= set(parameters)


@pytest.mark.parametrize("name", terms())
def test_an_unknown_option_is_refused(name):
    known = list(options_of(resolve(name, {})))
    wrong = f"{known[0]}e" if known else "no_such_option"
    with pytest.raises(RecipeError, match=f"'{name}' has no option '{wrong}'") as error:
        resolve(name, {wrong: 1.0})
    assert not known or f"did you mean '{known[0]}'?" in str(error.value)


@pytest.mark.parametrize("name", terms())
def test_the_objective_adds_weight_times_value(name):
    term = resolve(name, {})
    student, teacher, loss = towers(term)
    sides = Features.of(*student, 20.0, -3.0), Features.of(*teacher, 20.0)
    values = Objective([Weighted(name, 0.25)], given=term.needs)(*sides, with_parts(term)[1].float())
    assert set(values) == {"total", name}
    torch.testing.assert_close(values[name], loss())
    torch.testing.assert_close(values["total"], 0.25 * loss())


def test_the_objective_is_a_sum():
    student, teacher, _ = towers(resolve("dime.vl", {}))
    sides = Features.of(*student, 20.0), Features.of(*teacher, 20.0)
    values = Objective([Weighted("dime.vl", 0.7), Weighted("dime.pvl", 0.3, {"temperature": 2.0})])(*sides)
    expected = 0.7 * resolve("dime.vl", {})(*sides) + 0.3 * resolve("dime.pvl", {})(*sides, temperature=2.0)
    torch.testing.assert_close(values["total"], expected)


@pytest.mark.parametrize("name", [name for name in terms() if resolve(name, {}).learns])
def test_learnt_parts_learn_and_lead_to_the_teachers_width(name):
    """A student of another width has a loss, whose gradient reaches its rows and every learnt part."""
    term = resolve(name, {})
    student, teacher = leaves(1, term, torch.float64, dim=10), leaves(2, term, torch.float64)
    call, parts = with_parts(term, dim=10)
    for rows in student:
        rows.requires_grad_()
    call(Features.of(*student, 20.0), Features.of(*teacher, 20.0)).backward()
    assert all(rows.grad.abs().sum() > 0 for rows in student)
    assert all(parameter.grad.abs().sum() > 0 for parameter in parts.parameters())


class Towers(torch.nn.Module):
    """A student of both towers in float64, whose rows have ``dim`` dimensions, with the learnt parts of an objective."""

    def __init__(self, dim, objective):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = torch.nn.Linear(5, dim), torch.nn.Linear(5, dim)
        self.scale, self.bias = torch.nn.Parameter(torch.tensor(20.0)), torch.nn.Parameter(torch.tensor(-3.0))
        self.learnt = objective.learnt([Widths(dim, D)], seed=3)
        self.double()

    def forward(self, pixels, tokens):
        return self.image(pixels), self.text(tokens), self.scale * 1, self.bias * 1


@pytest.mark.parametrize("name", terms())
def test_portions_of_a_batch_have_the_gradient_of_the_whole(name):
    """So do processes, whose rows meet in the same way: tests/training/test_world.py."""
    term = resolve(name, {})
    objective = Objective([Weighted(name, 1.0)], given=term.needs)
    rows = [side.double() for side in (*leaves(1, term, dim=5), *leaves(2, term))]
    image, text, teacher = rows[0], rows[1][:B], Features.of(rows[2], rows[3][:B], 20.0)
    found = []
    for sizes in ([6], [2, 2, 2], [4, 2]):
        student = Towers(D if "width" in term.needs else 10, objective)
        parts = [Portion(*rows, 0) for rows in zip(image.split(sizes), text.split(sizes), strict=True)]

        def loss(outputs, student=student):
            return objective(Features.of(*outputs), teacher, *student.learnt)

        Gradients(student, World())(parts, Meeting(World(), np.arange(B), B), loss)
        found.append({key: parameter.grad for key, parameter in student.named_parameters()})
    for others in found[1:]:
        torch.testing.assert_close(others, found[0], rtol=1e-10, atol=1e-14)
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in found[0].values())


@pytest.mark.parametrize("name", terms())
def test_learnt_parts_are_the_same_for_one_seed(name):
    objective = Objective([Weighted(name, 1.0)], given=resolve(name, {}).needs)
    own = D if "width" in resolve(name, {}).needs else 10
    widths = [Widths(own, D), Widths(own, own)]
    first, again, other = (objective.learnt(widths, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = [key for key in first if not key.endswith("_scale.value")]
    assert all(not torch.equal(first[key], other[key]) for key in drawn)
    assert {key.split(".")[1] for key in first} == set(resolve(name, {}).learns)


@pytest.mark.parametrize("name", [name for name in terms() if "width" in resolve(name, {}).needs])
def test_a_student_of_another_width_is_refused(name):
    with pytest.raises(
        RecipeError, match=f"'{name}' compares rows .* 10 and {D} dimensions; leave it out, or give a --student"
    ):
        Objective([Weighted(name, 1.0)]).learnt([Widths(10, D)], seed=0)


@pytest.mark.parametrize("name", [name for name in terms() if resolve(name, {}).needs])
def test_the_objective_refuses_data_without_what_a_term_needs(name):
    with pytest.raises(RecipeError, match=f"'{name}' needs "):
        Objective([Weighted(name, 1.0)], given=frozenset())


@pytest.mark.parametrize(
    ("weighted", "words"),
    [
        ([], "no loss is given"),
        ([Weighted("dime.vl", 0.0)], "weight 0 and would do nothing"),
        ([Weighted("dime.vl", -1.0)], "give it a positive weight"),
        ([Weighted("dime.vl", float("nan"))], "give it a positive weight"),
        ([Weighted("dime.vll", 1.0)], "did you mean 'dime.vl'"),
        ([Weighted("vl", 1.0)], "unknown loss 'vl'"),
        ([Weighted("dime._features", 1.0)], "unknown loss"),
        ([Weighted("dime.vl", 1.0, {"temprature": 1.0})], "did you mean 'temperature'"),
        ([Weighted("dime.vl", 1.0, {"temperature": "1"})], "temperature is '1'; expected a positive number"),
        ([Weighted("dime.vl", 1.0, {"temperature": 0.0})], "temperature is 0.0; expected a positive number"),
        ([Weighted("clip_kd.gd", 1.0, {"temperature": 1.0})], "temperature is 1.0; expected 'code' or 'paper'"),
        (
            [Weighted("tinyclip.affinity", 1.0, {"teacher_scale": 0})],
            "teacher_scale is 0; expected a positive number, e.g. 50.0",
        ),
        ([Weighted("clip_kd.fd", 1.0, {"image_projection": 1})], "no option 'image_projection'"),
        ([Weighted("siglip.sigmoid", 1.0)], "needs bias and pairs"),
        ([Weighted("dime.vl", 1.0, schedule="linaer")], "did you mean 'linear'"),
        ([Weighted("dime.vl", 1.0, end=0.5)], "end 0.5, which does nothing without a schedule"),
        ([Weighted("dime.vl", 0.0, schedule="linear")], "goes from weight 0 to 0; leave the schedule out"),
        ([Weighted("dime.vl", 1.0, schedule="linear", end=-1.0)], "expected numbers of at least 0"),
    ],
)
def test_the_objective_refuses(weighted, words):
    with pytest.raises(RecipeError) as error:
        Objective(weighted)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
