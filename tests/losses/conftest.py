"""The plain twins in tests/reference, which is no package."""

import importlib.util
from pathlib import Path

import pytest

REFERENCE = Path(__file__).parents[1] / "reference"


def twin(name):
    spec = importlib.util.spec_from_file_location(name, REFERENCE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def dense():
    """Return the primitives on whole matrices."""
    return twin("dense_losses")


@pytest.fixture(scope="session")
def reference():
    """Return DIME-FM's losses in numpy."""
    return twin("dime_reference")
