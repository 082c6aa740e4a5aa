"""Raw data for ``dimefm extract-features``, and the command itself."""

import base64

import pytest
from click.testing import CliRunner

from dimefm.cli import main

TEACHER = "ResNet-mini-64/random:0"


def tsv(folder, name, lines, index=None):
    (folder / f"{name}.tsv").write_bytes(b"".join(lines))
    starts = [sum(map(len, lines[:i])) for i in range(len(lines))] if index is None else index
    (folder / f"{name}.lineidx").write_text("".join(f"{start}\n" for start in starts))


@pytest.fixture
def raw(tmp_path, picture):
    """Return a folder: photos/{0..3}.png, s.txt, one image and one text TSV with their indices."""
    (tmp_path / "photos").mkdir()
    for i in range(4):
        (tmp_path / "photos" / f"{i}.png").write_bytes(picture(i))
    (tmp_path / "s.txt").write_text("a cat\ntwo dogs\na red boat\n")
    lines = [b"k%d\t%b\n" % (i, base64.b64encode(picture(i))) for i in range(3)]
    tsv(tmp_path, "image_00", lines)
    tsv(tmp_path, "text_00", [b'k%d\t{"captions": ["a cat %d"]}\n' % (i, i) for i in range(3)])
    return tmp_path


def run(*arguments, teacher=TEACHER):
    """Run the command; return (exit code, output)."""
    result = CliRunner().invoke(
        main, ["extract-features", "--teacher", teacher, "--device", "cpu", *map(str, arguments)]
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def refused(*arguments, code=1, **options):
    """Run a command that must fail; return its one line of error."""
    found, output = run(*arguments, **options)
    assert found == code, output
    assert "Traceback" not in output
    errors = output[output.index("Error: ") :]
    assert errors.count("\n") == 1, errors
    return errors
