"""TSV shards whose lines or whose line index an attacker wrote."""

import shutil

import numpy as np
import pytest

from tests.faults import forging
from tests.faults.conftest import files, refused, shard


def indexed(root, lines):
    """Replace the index of shard 0."""
    index = next(file for file in files(root, 0) if file.suffix == ".lineidx")
    starts = [int(line) for line in index.read_text().split()]
    index.write_bytes(
        b"".join(
            b"%b\n" % (line if isinstance(line, bytes) else b"%d" % line) for line in lines(starts)
        )
    )


INDICES = {
    "outside": lambda starts: [*starts[:-1], 10**9],
    "far outside": lambda starts: [*starts[:-1], 10**30],
    "negative": lambda starts: [-1, *starts[1:]],
    "in the middle of a line": lambda starts: [starts[0], starts[1] + 1, *starts[2:]],
    "out of order": lambda starts: [starts[1], starts[0], *starts[2:]],
    "twice the same": lambda starts: [starts[0], starts[0], *starts[2:]],
    "too few": lambda starts: starts[:-1],
    "too many": lambda starts: [*starts, starts[-1]],
    "empty": lambda starts: [],
    "words": lambda starts: [b"abc", *starts[1:]],
    "padded": lambda starts: [b"0" * 30, *starts[1:]],
    "no numbers": lambda starts: [b"\xff\xfe\0", *starts[1:]],
}


@pytest.mark.parametrize("name", INDICES)
def test_a_line_index_that_does_not_fit_is_refused(made, reader, name):
    root = made("tsv")
    indexed(root, INDICES[name])
    found = reader(root)
    refused(found, "read", "rows", "some", "verify all")
    forging.forge(root)
    refused(reader(root), "read", "rows", "some", "verify all")


def test_a_missing_line_index_is_refused_and_named(made, reader):
    root = made("tsv")
    (root / "0.feat.lineidx").unlink()
    found = reader(root)
    refused(found, "read", "rows", "some", "verify", "verify all")
    assert "0.feat.lineidx is missing" in found["rows"]


def test_a_line_index_that_is_a_link_to_outside_is_refused(made, reader, tmp_path):
    root = made("tsv")
    shutil.move(root / "0.feat.lineidx", tmp_path / "x")
    (root / "0.feat.lineidx").symlink_to(tmp_path / "x")
    refused(reader(root), "read", "rows", "some", "verify", "verify all")


LINES = {
    "no tab": lambda line: line.replace(b"\t", b" "),
    "not base64": lambda line: line.split(b"\t")[0] + b"\t!!!!\n",
    "too few numbers": lambda line: line.split(b"\t")[0] + b"\tAAAA\n",
    "too many numbers": lambda line: line.strip() + b"AAAA\n",
    "a megabyte": lambda line: line.strip() + b"A" * 2**20 + b"\n",
    "key not UTF-8": lambda line: b"\xff" + line,
    "empty": lambda line: b"\n",
    "another key": lambda line: b"x" + line,
    "a third column": lambda line: line.strip() + b"\tAAAA\n",
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_of_another_form_is_refused_and_its_row_named(made, reader, name):
    root = made("tsv")
    lines = shard(root).read_bytes().splitlines(keepends=True)
    lines[2] = LINES[name](lines[2])
    shard(root).write_bytes(b"".join(lines))
    indexed(root, lambda _: np.cumsum([0, *map(len, lines[:-1])]).tolist())
    forging.forge(root)
    found = reader(root)
    refused(found, "read", "rows", "some", "verify all")
    assert "row 2" in found["read"] or name == "another key"
