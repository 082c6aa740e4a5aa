"""``-q``, ``-v``, ``--json`` and ``--debug``: every command has them, before and after its name."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from PIL import Image

import dimefm.__main__ as entry
from dimefm.cli import main
from dimefm.runtime import console

ROOT = Path(__file__).parents[2]
TEACHER = "ResNet-mini-64/random:0"


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def commands(group, words=()):
    yield words, group
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


@pytest.mark.parametrize(("words", "command"), list(commands(main)), ids=lambda part: str(part))
def test_every_command_has_the_common_options_once(words, command):
    spellings = [spelling for param in command.params for spelling in param.opts]
    for option in ("-q", "--quiet", "-v", "--verbose", "--json", "--debug"):
        assert spellings.count(option) == 1


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of six images, sentences, and nothing else."""
    root = tmp_path_factory.mktemp("output")
    (root / "photos").mkdir()
    for number in range(6):
        color = (40 * number, 90, 255 - 40 * number)
        Image.new("RGB", (30, 24), color).save(root / "photos" / f"{number}.png")
    (root / "sentences.txt").write_text("a red square\na blue square\n")
    return root


def extract(root, out, *options):
    sources = ("--images", root / "photos", "--texts", root / "sentences.txt")
    return invoke("extract-features", "--teacher", TEACHER, *sources, "--out", root / out, *options)


def test_json_of_an_extraction_is_one_document_with_its_counts(root):
    result = extract(root, "counted", "--json")
    assert result.exit_code == 0, result.output
    images, texts = json.loads(result.stdout)
    assert (images["rows"], images["quarantined"], texts["rows"]) == (6, 0, 2)
    assert images["out"] == str(root / "counted/images")


def test_quiet_leaves_the_result_and_nothing_on_stderr(root):
    result = extract(root, "quiet", "--quiet")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "6 rows in = 6 rows out" in result.stdout
    console.set_level(console.Level.NORMAL)
    assert "teacher" in extract(root, "loud").stderr


def test_the_recipe_of_a_run_is_printed_with_verbose_only(root):
    assert extract(root, "cache").exit_code == 0
    caches = ("--image-cache", root / "cache/images", "--text-cache", root / "cache/texts")
    student = ("--student", "ResNet-mini-32", "--crops", "free", "--set", "resize=0")
    run = ("train", "--images", root / "photos", *caches, *student, "--batch-size", 2, "--steps", 1)
    quiet = invoke(*run, "--out", root / "plain")
    assert quiet.exit_code == 0, quiet.output
    verbose = invoke("-v", *run, "--out", root / "verbose", "--json")
    assert verbose.exit_code == 0, verbose.output
    assert "[losses]" in verbose.stderr and "[losses]" not in quiet.stderr
    document = json.loads(verbose.stdout)
    assert document["folder"] == str(root / "verbose")
    assert document["figures"]["state"] == "finished"


@pytest.mark.parametrize(
    "words",
    [("losses",), ("losses", "dime.vl"), ("prompts",), ("prompts", "mnist")],
    ids=" ".join,
)
def test_json_of_lists_is_one_document(words):
    document = json.loads(invoke(*words, "--json").stdout)
    assert len(document) >= 1


def test_quiet_and_verbose_exclude_each_other():
    result = invoke("-q", "losses", "-v")
    assert result.exit_code == 2
    assert "-q and -v exclude each other" in result.stderr


def test_an_interrupt_while_the_command_line_is_imported_is_one_line(monkeypatch, capsys):
    class Interrupting:
        def find_spec(self, name, path=None, target=None):
            if name == "dimefm.cli":
                raise KeyboardInterrupt
            return None

    monkeypatch.delitem(sys.modules, "dimefm.cli")
    monkeypatch.setattr("sys.meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as exit_:
        entry.main()
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


@pytest.mark.parametrize(
    "words",
    [
        ("extract-features", "--teacher", TEACHER, "--images", "nowhere", "--out", "cache"),
        ("train", "--images", "nowhere", "--image-cache", "cache", "--out", "run"),
        ("train", "--images", ".", "--image-cache", "nowhere", "--out", "run"),
    ],
    ids=lambda words: " ".join(words[:1]),
)
def test_a_path_that_does_not_exist_is_found_before_torch_is_imported(tmp_path, words):
    code = "import sys; from dimefm.__main__ import main\ntry: main()\nfinally: print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert "nowhere: no" in process.stderr
    modules = process.stdout.split()
    assert "dimefm.cli" in modules
    assert "torch" not in modules and "open_clip" not in modules


EARLY = {
    "train --images . --crops free --out run --eval-root nowhere": "no such folder",
    "train --images . --crops free --out run --student nowhere.json": "no such file",
    "train --images . --crops free --out mine": "mine: holds other files",
    "extract-features --images . --out c --teacher runs/nowhere": "no such file or folder",
    "extract-features --images . --out c --teacher vit-b-32/openai": "did you mean 'ViT-B-32'",
    "extract-features --images . --out c --teacher ViT-B-32:openai": "Fix: write ViT-B-32/openai",
    "eval elevater --root . --out scores --model nowhere": "no such file or folder",
    f"eval elevater --root nowhere --out scores --model {TEACHER}": "no such folder",
    f"eval elevater --root . --out mine --model {TEACHER}": "mine: holds other files",
    "pack nowhere --out packed": "no such file or folder",
    "run nowhere.toml": "no such recipe file",
    "run dime_fm_vitb32 --dataroot nowhere": "no such file or folder",
    "runs list nowhere": "no such folder",
    "cache verify c --against-teacher 4 --images nowhere": "no such file or folder",
    "train --images . --image-cache . --out run": "name images, if that is meant",
}
"""Command lines with a path that cannot be, and what is said."""

MANY = """
import sys
from dimefm.cli import main
for line in sys.stdin.read().splitlines():
    try:
        main(line.split(), standalone_mode=False)
    except Exception as error:
        print(error, *(name for name in ("torch", "open_clip") if name in sys.modules))
"""


def test_paths_that_cannot_be_are_found_by_every_command_before_torch_is_imported(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.doc").write_text("")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/manifest.json").write_text("{}")
    process = subprocess.run(
        [sys.executable, "-c", MANY],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input="\n".join(EARLY),
        capture_output=True,
        text=True,
    )
    said = process.stdout.splitlines()
    for (words, expected), line in zip(EARLY.items(), said, strict=True):
        assert expected in line, words
        assert not line.endswith(("torch", "open_clip")), words


def test_json_of_cache_commands_is_one_document(root):
    assert extract(root, "inspected").exit_code == 0
    cache = root / "inspected/images"
    [info] = json.loads(invoke("cache", "info", cache, "--json").stdout).values()
    assert (info["rows"], info["quarantined"], info["kind"]) == (6, 0, "image")
    [verified] = json.loads(invoke("cache", "verify", cache, "--json").stdout).values()
    assert verified == {"shards": 1, "rows": 6, "sha256": False}
    assert list(json.loads(invoke("cache", "quarantine", cache, "--json").stdout).values()) == [[]]
    small = root / "small"
    converted = invoke("cache", "convert", cache, small, "--dtype", "float32", "--json")
    assert json.loads(converted.stdout)["dtype"] == "float32"
    compared = invoke("cache", "diff", cache, root / "inspected/images", "--json")
    assert compared.exit_code == 0 and json.loads(compared.stdout)["same"] is True


def test_a_difference_exits_with_1_and_prints_its_document(root):
    for name, seed in (("one", 0), ("two", 1)):
        teacher = f"ResNet-mini-64/random:{seed}"
        sources = ("--texts", root / "sentences.txt", "--out", root / name)
        assert invoke("extract-features", "--teacher", teacher, *sources).exit_code == 0
    result = invoke("cache", "diff", root / "one/texts", root / "two/texts", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["same"] is False


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_at_any_moment_of_any_command_is_one_line(monkeypatch, capsys, name):
    def stopped(*_, **__):
        signal.raise_signal(getattr(signal, name))

    monkeypatch.setattr("dimefm.losses.describe", stopped)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as exit_:
            main.main(["losses", "dime.vl"])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert exit_.value.code == 130
    assert capsys.readouterr().err.strip() == "interrupted"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
