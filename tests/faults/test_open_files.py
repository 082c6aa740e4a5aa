"""More shards than a process may hold open: the limit is raised where the system lets it, else one
clear line says so.
"""

import io
import resource
import subprocess
import sys
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

SHARDS, LIMIT = 150, 100
READ = """
import sys
from dimefm.data import open_rows
from dimefm.errors import DataError
try:
    print(sum(len(row.texts) for row in open_rows([sys.argv[1]], "text")))
except DataError as error:
    print(error)
"""


def text(path):
    path.with_suffix(".txt").write_text("a cat\n")


def tsv(path):
    path.with_suffix(".tsv").write_text("k\ta cat\n")
    path.with_suffix(".lineidx").write_text("0\n")


def tar(path):
    with tarfile.open(path.with_suffix(".tar"), "w") as file:
        entry = tarfile.TarInfo("k.txt")
        entry.size = 5
        file.addfile(entry, io.BytesIO(b"a cat"))


def parquet(path):
    pq.write_table(pa.table({"text": ["a cat"]}), path.with_suffix(".parquet"))


def read(folder, hard):
    done = subprocess.run(
        [sys.executable, "-c", READ, str(folder)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, hard)),
    )
    return done.stdout.strip() or done.stderr


@pytest.mark.parametrize("write", [text, tsv, tar, parquet])
def test_more_shards_than_the_soft_limit_are_all_read(tmp_path, write):
    for i in range(SHARDS):
        write(tmp_path / f"{i:03d}")
    assert read(tmp_path, hard=2000) == str(SHARDS)


@pytest.mark.parametrize("write", [text, tsv, tar])
def test_more_shards_than_the_system_allows_are_read_one_after_another(tmp_path, write):
    for i in range(SHARDS):
        write(tmp_path / f"{i:03d}")
    assert read(tmp_path, hard=100) == str(SHARDS)


def test_more_shards_of_parquet_than_the_system_allows_are_one_line(tmp_path):
    for i in range(SHARDS):
        parquet(tmp_path / f"{i:03d}")
    assert (
        read(tmp_path, hard=200)
        == "150 shards need 428 open files, this system allows 200. Fix: raise it with ulimit -n"
    )
