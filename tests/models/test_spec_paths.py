"""Names of models that are paths are looked up before anything that takes seconds is imported."""

import subprocess
import sys

import pytest

from dimefm.errors import ModelError
from dimefm.models.spec_paths import refuse_absent_models

ABSENT = ["/no/such/model", "./teacher", "../runs/first", "local-dir:nowhere", "local-dir:"]
CLI = """
import sys
from dimefm.cli import main
code = 0
try:
    main(sys.argv[1:], standalone_mode=False)
except Exception as error:
    print(error)
print([name for name in ("torch", "open_clip") if name in sys.modules])
"""


@pytest.mark.parametrize("spec", ABSENT)
def test_what_can_only_be_a_path_is_refused_when_nothing_is_there(spec):
    with pytest.raises(ModelError, match="Fix: check the path"):
        refuse_absent_models(None, spec)


def test_other_names_are_left_to_open_clip(tmp_path):
    refuse_absent_models("ViT-B-32/openai", "hf-hub:org/model", "runs/first", None)
    refuse_absent_models(str(tmp_path), f"local-dir:{tmp_path}")


@pytest.mark.parametrize(
    "words",
    [
        ["extract-features", "--teacher", "/no/model", "--images", ".", "--out", "out"],
        ["eval", "elevater", "--model", "/no/model", "--root", ".", "--out", "out"],
        ["cache", "adopt", ".", "--kind", "image", "--teacher", "/no/model", "--out", "out"],
    ],
    ids=lambda words: words[0],
)
def test_a_command_says_so_before_it_imports_torch(tmp_path, words):
    done = subprocess.run(
        [sys.executable, "-c", CLI, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    message, loaded = done.stdout.splitlines()[-2:]
    assert message == "/no/model: there is no such file or folder. Fix: check the path"
    assert loaded == "[]"
