"""The tox environment ``minimum`` installs the lower bounds that setup.cfg states."""

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOT_PINNED = {"click"}  # it must be as new as huggingface-hub asks


def requirements(text, operator):
    """Return name -> version of the lines that state one with ``operator``."""
    stated = {}
    for line in text.split("\n"):
        match = re.match(rf"\s*([A-Za-z0-9_-]+){operator}([0-9.]+)", line)
        if match is not None:
            stated[match[1]] = match[2]
    return stated


def config(name):
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / name, encoding="utf-8")
    return parser


def test_the_oldest_releases_are_those_that_the_bounds_allow():
    setup = config("setup.cfg")
    bounds = requirements(setup["options"]["install_requires"], ">=")
    bounds |= requirements(setup["options.extras_require"]["test"], ">=")
    pins = requirements(config("tox.ini")["testenv:minimum"]["deps"], "==")
    assert bounds.keys() - NOT_PINNED == pins.keys()
    for name, pin in pins.items():
        bound = bounds[name]
        assert pin == bound or pin.startswith(bound + "."), (name, pin, bound)
