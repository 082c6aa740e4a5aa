"""Commands for caches on a disk that fills at any point: one line, nothing that looks whole."""

import subprocess

import numpy as np
import pytest
from click.testing import CliRunner

from dimefm.cache import FeatureCache
from dimefm.cli import main
from dimefm.curate.neighbours import Neighbours

KILOBYTES = [8, 60, 200, 400, 800, 1000, 1600, 2400]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with a feature file of 3,000 rows and its cache."""
    folder = tmp_path_factory.mktemp("made")
    rows = np.random.default_rng(0).standard_normal((3000, 64)).astype(np.float32)
    np.save(folder / "a.npy", rows)
    assert run(*adopt(folder, folder / "cache"))[0] == 0
    return folder


def run(*words):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def adopt(folder, out):
    return ["cache", "adopt", folder / "a.npy", "--kind", "image", "--out", out]


def convert_to(format_, *more):
    return lambda folder, out: [
        "cache",
        "convert",
        folder / "cache",
        out,
        "--format",
        format_,
        *more,
    ]


def neighbours(folder, out):
    return ["cache", "neighbours", folder / "cache", "--out", out]


COMMANDS = {
    "adopt": adopt,
    "hdf5 int8": convert_to("hdf5", "--dtype", "int8"),
    "parquet": convert_to("parquet"),
    "tsv": convert_to("tsv"),
    "neighbours": neighbours,
}


@pytest.fixture
def disk(tmp_path):
    """Return a function that mounts a disk of some kilobytes; it is unmounted at the end."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def mount(kilobytes):
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting is not permitted ({done.stderr.strip()})")
        mounted.append(folder)
        return folder

    yield mount
    for _ in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line_and_with_room_the_command_ends(made, disk, name):
    out = disk(KILOBYTES[0]) / "out"
    codes = []
    for kilobytes in KILOBYTES:
        remount = ["mount", "-o", f"remount,size={kilobytes}k", str(out.parent)]
        subprocess.run(remount, check=True)
        code, output = run(*COMMANDS[name](made, out))
        codes.append(code)
        if code == 0:
            break
        errors = [line for line in output.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1 and "Traceback" not in output
        assert str(out) in errors[0] and "No space left" in errors[0] and ". Fix: " in errors[0]
        whole = {"manifest.json", "neighbours.json"}
        assert not whole & {path.name for path in out.rglob("*")}
    assert codes[0] == 1 and codes[-1] == 0
    if name == "neighbours":
        assert len(Neighbours(out).keys()) == 3000
    else:
        assert FeatureCache(out).verify(sha256=True) == 1
    assert not [path for path in out.rglob("*") if "part" in path.name]
