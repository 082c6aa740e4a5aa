"""``import dimefm``: light, lazy, and helpful."""

import inspect
import pydoc
import subprocess
import sys

import pytest

import dimefm
import dimefm.train.trainer  # the package must stay callable after its modules were imported

VERBS = ("extract", "train", "evaluate", "export")


@pytest.mark.parametrize("name", dimefm.__all__)
def test_public_names_are_there_and_described(name):
    value = getattr(dimefm, name)
    assert name == "__version__" or inspect.getdoc(value)
    assert name in dir(dimefm)


@pytest.mark.parametrize("name", VERBS)
def test_verbs_are_functions_with_a_signature_and_an_example(name):
    verb = getattr(dimefm, name)
    assert callable(verb)
    assert "out" in inspect.signature(verb).parameters
    function = type(verb).__call__
    assert "Example::" in inspect.getdoc(function)
    assert inspect.signature(function) == inspect.signature(verb)


def test_help_tells_how_to_use_it():
    text = pydoc.render_doc(dimefm)
    for line in ("dimefm.extract(", "dimefm.train(", "dimefm.evaluate(", "dimefm.load("):
        assert line in text


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        dimefm.trian  # noqa: B018


@pytest.mark.parametrize("use", ["dimefm", *(f"dimefm.{name}" for name in VERBS)])
def test_naming_a_verb_imports_no_torch(use):
    check = f"import dimefm, sys; {use}; assert not {{'torch', 'pyarrow'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
