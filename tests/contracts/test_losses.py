"""What every loss term keeps, also one that somebody adds next year: parametrised over what is
found on disk.
"""

import dataclasses
import inspect
import math
import tomllib
from typing import Literal, get_type_hints

import numpy as np
import pytest
import torch

from dimefm.errors import RecipeError
from dimefm.losses import (
    FeatureDims,
    Features,
    LossConfig,
    Objective,
    TextTokenStates,
    needs,
    options_of,
    resolve,
    terms,
)
from dimefm.losses._terms import check_options
from dimefm.train.distributed import DistributedContext, GlobalBatch
from dimefm.train.grad_cache import Gradients, MicroBatch

B, N, D = 6, 9, 16
V, P, L, W, VOCABULARY = (
    2,
    5,
    7,
    12,
    20,
)  # views, patches, words of a caption, their width, words that are known


@pytest.fixture(params=terms())
def term(request):
    return resolve(request.param, {})


def leaves(seed, term, dtype=torch.float32, dim=D):
    """Return by name un-normalised rows of a student of ``dim`` dimensions: image [B, dim], or [B,
    V, dim] where the term needs views, text [N, dim] (N = B where it needs pairs), and what else it
    needs of a student."""
    draw = torch.Generator().manual_seed(seed)
    n = B if "pairs" in term.needs else N
    shapes = {"image": (B, V, dim) if "views" in term.needs else (B, dim), "text": (n, dim)}
    further = {"hidden": (B, V, W), "patches": (B, P, W), "words": (B, L, W)}
    shapes |= {name: shape for name, shape in further.items() if name in term.needs}
    rows = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}
    if "words" in term.needs:
        rows["lengths"] = torch.randint(2, L + 1, (B,), generator=draw)
        labels = torch.randint(VOCABULARY, (B, L), generator=draw)
        rows["labels"] = labels.where(torch.rand(B, L, generator=draw) < 0.3, -100)
    return rows


def teachers(seed, term, dtype=torch.float32):
    """Return by name the rows of a teacher, likewise."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"image": (B, D), "text": (B if "pairs" in term.needs else N, D)}
    shapes |= {"neighbor_text": (B, D)} if "neighbours" in term.needs else {}
    shapes |= {"patches": (B, 3, D), "words": (B, 3, D)} if "tokens" in term.needs else {}
    rows = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}
    if "tokens" in term.needs:
        rows["lengths"] = torch.randint(1, 4, (B,), generator=draw)
    return rows


def features(rows, scale=20.0, bias=0.0):
    """Return features of rows by name."""
    more = {name: rows[name] for name in ("hidden", "patches", "neighbor_text") if name in rows}
    if "words" in rows:
        more["words"] = TextTokenStates(rows["words"], rows["lengths"], rows.get("labels"))
    return Features.from_rows(rows["image"], rows["text"], scale, bias, **more)


def widths(dim):
    """Return the widths of a student of ``dim`` dimensions and a teacher."""
    return FeatureDims(dim, D, hidden=W, patches=W, words=W, vocabulary=VOCABULARY)


def small(term):
    """Return the options that make the learnt parts of a term small."""
    return {
        name: 8 for name, value in options_of(term).items() if type(value) is int and value > 100
    }


def objective_of(term, weight=1.0):
    """Return the objective of one term with small parts."""
    return Objective([LossConfig(name_of(term), weight, small(term))], given=term.needs)


def with_parts(term, dim=D):
    """Return (the term with its learnt parts, these parts) for students of ``dim`` dimensions, in
    float64.

    Whatever the parts remember of a call is as it was before at the next one.
    """
    found = objective_of(term).loss_modules([widths(dim)], seed=3)
    parts = found[0].double() if len(found) else torch.nn.ModuleDict()
    memory = {name: buffer.clone() for name, buffer in parts.named_buffers()}

    def call(student, teacher, **options):
        own = {name: parts[name].to(student.image) for name in term.uses_modules}
        for name, buffer in parts.named_buffers():
            buffer.copy_(memory[name])
        return term(student, teacher, **own, **small(term), **options)

    return call, parts


def name_of(term):
    """Return what a recipe calls a term."""
    return f"{term.__module__.rpartition('.')[2]}.{term.__name__}"


def towers(term, dtype=torch.float32):
    """Return (student leaves, teacher leaves, call): ``call()`` computes the loss from the leaves
    as they are.
    """
    student, teacher, (call, _) = leaves(1, term, dtype), teachers(2, term, dtype), with_parts(term)
    return student, teacher, lambda: call(features(student, bias=-3.0), features(teacher))


def learn(rows):
    """Make leaves of all rows that are no numbers of words; return them."""
    found = {name: value for name, value in rows.items() if value.is_floating_point()}
    for value in found.values():
        value.requires_grad_()
    return found


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
    wide = [
        {k: v.double() if v.is_floating_point() else v for k, v in side.items()}
        for side in (student, teacher)
    ]
    exact = call(features(wide[0], bias=-3.0), features(wide[1]))
    assert loss().item() == pytest.approx(exact.item(), rel=1e-4, abs=1e-5)


def test_leaves_the_teacher_alone(term):
    student, teacher, loss = towers(term)
    before = [rows.clone() for rows in (*student.values(), *teacher.values())]
    own = learn(student)
    loss().backward()
    assert sum(rows.grad.abs().sum() for rows in own.values() if rows.grad is not None) > 0
    assert all(rows.grad is None for rows in teacher.values())
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, (*student.values(), *teacher.values()), strict=True)
    )


def test_does_not_depend_on_the_order_of_rows(term):
    student, teacher, loss = towers(term)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    sentences = order if "pairs" in term.needs else torch.tensor([8, 3, 0, 5, 7, 1, 4, 2, 6])
    turned = [
        {k: v[sentences if k == "text" else order] for k, v in side.items()}
        for side in (student, teacher)
    ]
    found = with_parts(term)[0](features(turned[0], bias=-3.0), features(turned[1]))
    torch.testing.assert_close(found, loss(), rtol=1e-5, atol=1e-6)


def test_a_small_step_of_the_student_lowers_it(term):
    student, _, loss = towers(term, torch.float64)
    own = learn(student)
    before = loss()
    before.backward()
    slopes = {name: rows.grad for name, rows in own.items() if rows.grad is not None}
    length = sum(slope.square().sum() for slope in slopes.values()).sqrt()
    with torch.no_grad():
        for name, slope in slopes.items():
            own[name].sub_(1e-3 * slope / length)
    assert loss() < before


def test_states_shapes_and_source(term):
    words = inspect.getdoc(term)
    assert "[B" in words
    assert "Source:" in words


def test_options_have_defaults_and_are_named(term):
    parameters = inspect.signature(term).parameters
    for option in parameters.values():
        if option.kind is option.KEYWORD_ONLY:
            assert (option.default is option.empty) == (option.name in term.uses_modules)
    assert list(parameters)[:2] == ["student", "teacher"]
    assert set(term.uses_modules) <= set(parameters)


@pytest.mark.parametrize("name", terms())
def test_an_unknown_option_is_refused(name):
    known = list(options_of(resolve(name, {})))
    wrong = f"{known[0]}e" if known else "no_such_option"
    with pytest.raises(RecipeError, match=f"'{name}' has no option '{wrong}'") as error:
        resolve(name, {wrong: 1.0})
    assert not known or f"did you mean '{known[0]}'?" in str(error.value)


OPTIONS = [(name, option) for name in terms() for option in options_of(resolve(name, {}))]
WRONG = ([1], {}, "no such word", b"", math.nan, math.inf, -math.inf, 1j)  # of any option's type


def examples(message):
    """Return the values that the line of a refusal gives as right, as a recipe spells them."""
    last = "e.g. " if "e.g. " in message else "expected "
    text = message.rpartition(last)[2]
    return [tomllib.loads(f"value = {word}")["value"] for word in text.split(" or ")]


def refusal(name, term, option, value):
    """Return the line that refuses a value of an option, having tried all its examples."""
    with pytest.raises(RecipeError) as error:
        check_options(name, term, {option: value})
    message = str(error.value)
    assert message.startswith(f"loss '{name}': {option} is {value!r}; expected ")
    assert "\n" not in message
    for example in examples(message):
        check_options(name, term, {option: example})
    return message


def is_text(term, option):
    return get_type_hints(term).get(option) is str


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=".".join)
def test_every_option_takes_its_default_and_refuses_a_wrong_type_with_an_example_that_it_takes(
    name, option
):
    term = resolve(name, {})
    default = options_of(term)[option]
    assert resolve(name, {option: default}) is term
    for value in WRONG:
        if not (isinstance(value, str) and is_text(term, option)):
            refusal(name, term, option, value)
    refusal(name, term, option, 1 if isinstance(default, bool | str) else True)


@needs()
def every_kind(
    student,
    teacher,
    *,
    margin: float = 0.0,
    shift: float = -1.5,
    scale: float | None = None,
    count: int = 0,
    places: int | None = None,
    symmetric: bool = False,
    learns: bool = True,
    how: Literal["code", "paper"] = "code",
    word: str = "",
):
    """Every kind of option that a loss may have."""


@pytest.mark.parametrize(
    ("option", "right", "wrong", "expected"),
    [
        ("margin", [0, 0.0, 0.5, 3], [-0.1, True, "0"], "a number of at least 0, e.g. 0.0"),
        ("shift", [-2, 0, 1.5], [False, None], "a finite number, e.g. -1.5"),
        ("scale", [None, 1, 0.5], [0, -1.0, True], "a positive number, e.g. 50.0"),
        ("count", [0, 3], [-1, False], "a number of at least 0, e.g. 0"),
        ("count", [0, 3], [0.5], "a whole number, e.g. 0"),
        ("places", [None, 3], [0, True], "a positive number, e.g. 50"),
        ("places", [None, 3], [1.5], "a whole number, e.g. 50"),
        ("symmetric", [True, False], [0, 1, 1.0, "true", None], "true or false"),
        ("learns", [True, False], [0, 1, "yes"], "true or false"),
        ("how", ["code", "paper"], ["Code", 1, True, None], "'code' or 'paper'"),
        ("word", ["", "any"], [1, True, None], "text, e.g. 'text'"),
    ],
)
def test_an_option_of_any_kind_takes_its_default_and_what_its_annotation_says(
    option, right, wrong, expected
):
    for value in (options_of(every_kind)[option], *right):
        check_options("made.up", every_kind, {option: value})
    for value in wrong:
        assert refusal("made.up", every_kind, option, value).endswith(f"; expected {expected}")


@pytest.mark.parametrize("name", terms())
def test_the_objective_adds_weight_times_value(name):
    term = resolve(name, {})
    student, teacher, loss = towers(term)
    sides = features(student, bias=-3.0), features(teacher)
    values = objective_of(term, 0.25)(*sides, with_parts(term)[1].float())
    assert set(values) == {"total", name}
    torch.testing.assert_close(values[name], loss())
    torch.testing.assert_close(values["total"], 0.25 * loss())


def test_the_objective_is_a_sum():
    student, teacher, _ = towers(resolve("dime.vl", {}))
    sides = features(student), features(teacher)
    values = Objective(
        [LossConfig("dime.vl", 0.7), LossConfig("dime.pvl", 0.3, {"temperature": 2.0})]
    )(*sides)
    expected = 0.7 * resolve("dime.vl", {})(*sides) + 0.3 * resolve("dime.pvl", {})(
        *sides, temperature=2.0
    )
    torch.testing.assert_close(values["total"], expected)


@pytest.mark.parametrize("name", [name for name in terms() if resolve(name, {}).uses_modules])
def test_learnt_parts_learn_and_lead_to_the_teachers_width(name):
    """A student of another width has a loss, whose gradient reaches its rows, all else that is
    needed, every learnt part.
    """
    term = resolve(name, {})
    student, teacher = leaves(1, term, torch.float64, dim=10), teachers(2, term, torch.float64)
    call, parts = with_parts(term, dim=10)
    own = learn(student)
    call(features(student), features(teacher)).backward()
    reached = {
        name for name, rows in own.items() if rows.grad is not None and rows.grad.abs().sum() > 0
    }
    assert reached >= (set(own) & term.needs if term.sees_all_views else set(own))
    assert reached
    first = [
        p for name, p in parts.named_parameters() if not name.endswith("bias")
    ]  # behind a norm they do nothing
    assert all(parameter.grad.abs().sum() > 0 for parameter in first)


class Towers(torch.nn.Module):
    """A student in float64, whose rows have ``dim`` dimensions, with the learnt parts of an
    objective.

    Its ``forward`` gives what a term needs of five numbers for each image, or each of its views,
    and five for each sentence.
    """

    def __init__(self, term, dim):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = torch.nn.Linear(5, dim), torch.nn.Linear(5, dim)
        self.further = torch.nn.ModuleDict()
        for name, width in (("hidden", W), ("patches", P * W), ("words", L * W)):
            if name in term.needs:
                self.further[name] = torch.nn.Linear(5, width)
        self.scale, self.bias = (
            torch.nn.Parameter(torch.tensor(20.0)),
            torch.nn.Parameter(torch.tensor(-3.0)),
        )
        self.loss_modules = objective_of(term).loss_modules([widths(dim)], seed=3)
        self.double()

    def forward(self, pixels, tokens, hidden=None):
        found = {
            "image": self.image(pixels),
            "text": self.text(tokens),
            "scale": self.scale * 1,
            "bias": self.bias * 1,
        }
        inputs = {"hidden": pixels, "patches": pixels.flatten(1)[:, :5], "words": tokens}
        further = {name: layer(inputs[name]) for name, layer in self.further.items()}
        tokens = {
            name: rows.unflatten(1, (-1, W)) for name, rows in further.items() if name != "hidden"
        }
        return found | further | tokens


@pytest.mark.parametrize("name", terms())
def test_portions_of_a_batch_have_the_gradient_of_the_whole(name):
    """So do processes, whose rows meet in the same way: tests/train/test_distributed.py."""
    term = resolve(name, {})
    objective = objective_of(term)
    inputs, known, theirs = (
        leaves(1, term, dim=5),
        leaves(1, term),
        teachers(2, term, torch.float64),
    )
    image, text = inputs["image"].double(), inputs["text"][:B].double()
    counts = {name: rows for name, rows in known.items() if not rows.is_floating_point()}
    teacher = features({**theirs, "text": theirs["text"][:B]})
    found = []
    for sizes in ([6], [2, 2, 2], [4, 2]):
        student = Towers(term, D if "width" in term.needs else 10)
        parts = [
            MicroBatch(*rows, 0) for rows in zip(image.split(sizes), text.split(sizes), strict=True)
        ]

        def loss(outputs, student=student):
            return objective(
                features(outputs | counts, outputs["scale"], outputs["bias"]),
                teacher,
                *student.loss_modules,
            )

        Gradients(student, DistributedContext())(
            parts, GlobalBatch(DistributedContext(), np.arange(B), B), loss
        )
        found.append({key: parameter.grad for key, parameter in student.named_parameters()})
    for others in found[1:]:
        torch.testing.assert_close(others, found[0], rtol=1e-10, atol=1e-14)
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in found[0].values())


@pytest.mark.parametrize("name", terms())
def test_learnt_parts_are_the_same_for_one_seed(name):
    term = resolve(name, {})
    own = D if "width" in term.needs else 10
    objective, both = (
        objective_of(term),
        [widths(own), dataclasses.replace(widths(own), teacher=own)],
    )
    first, again, other = (objective.loss_modules(both, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = [key for key in first if first[key].ndim > 1]
    assert all(not torch.equal(first[key], other[key]) for key in drawn)
    assert {key.split(".")[1] for key in first} == set(term.uses_modules)


@pytest.mark.parametrize("name", [name for name in terms() if "width" in resolve(name, {}).needs])
def test_a_student_of_another_width_is_refused(name):
    with pytest.raises(
        RecipeError,
        match=f"'{name}' compares rows .* 10 and {D} dimensions. Fix: leave it out, or give a --st",
    ):
        Objective([LossConfig(name, 1.0)]).loss_modules([FeatureDims(10, D)], seed=0)


@pytest.mark.parametrize("name", [name for name in terms() if resolve(name, {}).needs])
def test_the_objective_refuses_data_without_what_a_term_needs(name):
    with pytest.raises(RecipeError, match=f"'{name}' needs "):
        Objective([LossConfig(name, 1.0)], given=frozenset())


@pytest.mark.parametrize(
    ("weighted", "words"),
    [
        ([], "no loss is given"),
        ([LossConfig("dime.vl", 0.0)], "weight 0 and would do nothing"),
        ([LossConfig("dime.vl", -1.0)], "give it a positive weight"),
        ([LossConfig("dime.vl", float("nan"))], "give it a positive weight"),
        ([LossConfig("dime.vll", 1.0)], "did you mean 'dime.vl'"),
        ([LossConfig("vl", 1.0)], "unknown loss 'vl'"),
        ([LossConfig("dime._features", 1.0)], "unknown loss"),
        ([LossConfig("dime.vl", 1.0, {"temprature": 1.0})], "did you mean 'temperature'"),
        (
            [LossConfig("dime.vl", 1.0, {"temperature": "1"})],
            "temperature is '1'; expected a positive number",
        ),
        (
            [LossConfig("dime.vl", 1.0, {"temperature": 0.0})],
            "temperature is 0.0; expected a positive number",
        ),
        (
            [LossConfig("clip_kd.gd", 1.0, {"temperature": 1.0})],
            "temperature is 1.0; expected 'code' or 'paper'",
        ),
        (
            [LossConfig("tinyclip.affinity", 1.0, {"teacher_scale": 0})],
            "teacher_scale is 0; expected a positive number, e.g. 50.0",
        ),
        ([LossConfig("clip_kd.fd", 1.0, {"image_projection": 1})], "no option 'image_projection'"),
        ([LossConfig("siglip.sigmoid", 1.0)], "needs bias and pairs"),
        ([LossConfig("dime.vl", 1.0, schedule="linaer")], "did you mean 'linear'"),
        ([LossConfig("dime.vl", 1.0, end=0.5)], "end 0.5, which does nothing without a schedule"),
        (
            [LossConfig("dime.vl", 0.0, schedule="linear")],
            "goes from weight 0 to 0. Fix: leave the schedule out",
        ),
        (
            [LossConfig("dime.vl", 1.0, schedule="linear", end=-1.0)],
            "expected numbers of at least 0",
        ),
    ],
)
def test_the_objective_refuses(weighted, words):
    with pytest.raises(RecipeError) as error:
        Objective(weighted)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
