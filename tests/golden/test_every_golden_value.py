"""Each array of the golden files is compared by a test, or ``golden.toml`` says why not; the copies
are cuts of them.
"""

import ast
import functools
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
WHOLE = HERE.parents[2] / "shared" / "golden"
TABLES = tomllib.loads((HERE / "golden.toml").read_text(encoding="utf-8"))
COPIES = {  # of which file, and what their names leave out; dimefm_losses.npz has names of its own
    "clip_kd_losses": ("clip_kd_losses", ""),
    "clip_kd_masking": ("clip_kd_losses", "mask/"),
    "declip_eda": ("declip", "eda/"),
    "declip_evaluation": ("declip", ""),
    "declip_losses": ("declip", ""),
    "declip_tokens": ("declip", ""),
    "declip_training": ("declip", ""),
    "elevater_golden": ("elevater_golden", ""),
    "filip_evaluation": ("declip", ""),
    "hf_export": ("hf_export", ""),
    "tinyclip_affinity": ("tinyclip", ""),
    "tinyclip_gates": ("tinyclip", ""),
    "tinyclip_pruned": ("tinyclip", "mask/"),
    "tinyclip_inheritance": ("tinyclip", ""),
}
present = pytest.mark.skipif(
    not WHOLE.is_dir(), reason="the golden files (../shared/golden) are not beside this checkout"
)


def golden(name):
    return np.load(WHOLE / f"{name}.npz", allow_pickle=False)


@functools.cache
def functions(path):
    """Return the names of the functions of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def matched(patterns, keys):
    """Return {pattern: the keys that it matches}."""
    return {pattern: {key for key in keys if re.fullmatch(pattern, key)} for pattern in patterns}


@present
@pytest.mark.parametrize("name", TABLES)
def test_every_value_is_compared_or_left_out_for_a_reason(name):
    with golden(name) as file:
        keys = set(file.files)
    left_out = matched(TABLES[name]["left out"], keys)
    keys -= set().union(*left_out.values())
    compared = matched(TABLES[name].get("compared", {}), keys)
    assert keys == set().union(*compared.values()), "neither compared nor left out"
    assert sum(map(len, compared.values())) == len(keys), "two tests for one array"
    assert [pattern for pattern, found in (left_out | compared).items() if not found] == [], (
        "matches nothing"
    )


@present
def test_every_golden_file_has_its_tables():
    assert {path.stem for path in WHOLE.glob("*.npz")} == set(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_the_tests_that_are_named_exist(name):
    for test in TABLES[name].get("compared", {}).values():
        path, _, function = test.partition("::")
        assert function.startswith("test_") and function in functions(HERE / path), test


@present
@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_a_cut_of_the_golden_file(name):
    """Of the larger matrices it may have the first rows, or every so many columns and the norm of
    the whole beside them.
    """
    of, prefix = COPIES[name]
    with np.load(HERE / f"{name}.npz", allow_pickle=False) as copy, golden(of) as whole:
        for key in copy.files:
            cut = copy[key]
            if key.endswith("/norm"):
                assert cut == np.linalg.norm(whole[prefix + key.removesuffix("/norm")])
            elif key != "meta_json":
                wanted = whole[prefix + key]
                if cut.ndim == 2:
                    wanted = wanted[: len(cut), :: wanted.shape[1] // cut.shape[1]]
                assert np.array_equal(cut, wanted), key


@present
def test_what_two_processes_share_is_the_same_in_both():
    with golden("declip") as file:
        shared = [key for key in file.files if re.fullmatch(r"rank1of2/\w+/(param|pgrad)\..*", key)]
        assert shared and all(
            np.array_equal(file[key], file[key.replace("rank1", "rank0")]) for key in shared
        )
