"""Feature files that are damaged inside, lie about their size or hold other things: one line."""

import base64
import io
import os
import resource
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dimefm.cache import EncoderCard
from dimefm.cache.importing.adopt import adopt, header, pieces
from dimefm.cache.importing.sources import open_vectors
from dimefm.errors import CacheError

ROWS = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)


def take(path, out):
    """Adopt a file, as the command does."""
    vectors = open_vectors([path], "image")
    head = header(vectors, "image", EncoderCard("x", None, vectors[0].dim, 100.0), "hdf5")
    return adopt(pieces(vectors, [path.name]), head, out)


def npy_of(text, version=(1, 0), body=b"\0" * 64):
    """Return the bytes of a .npy file with any header."""
    head = text.encode("latin-1")
    size = struct.pack("<H" if version == (1, 0) else "<I", len(head))
    return b"\x93NUMPY" + bytes(version) + size + head + body


def described(shape, descr="'<f4'"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"


HEADERS = {
    "huge": npy_of(described("(1000000000000, 512)")),
    "huge rows of nothing": npy_of(described("(4611686018427387904, 512)")),
    "beyond any integer": npy_of(described(f"({10**40}, 512)")),
    "negative": npy_of(described("(-1, 512)")),
    "two negatives": npy_of(described("(-4, -4)")),
    "shape of text": npy_of(described("('a', 2)")),
    "nested": npy_of("[" * 9000),
    "nested tuples": npy_of(described("(" * 3000 + "1," + ")" * 3000)),
    "calls a function": npy_of("__import__('os').system('true')"),
    "objects": npy_of(described("(2, 2)", "'|O'")),
    "unknown type": npy_of(described("(2, 2)", "'<q99'")),
    "type of a table": npy_of(described("(2, 2)", "[('a', '<f4')]")),
    "no header": b"\x93NUMPY\x01\x00",
    "version 3": npy_of(described("(2, 2)"), (3, 0)),
    "version 9": npy_of(described("(2, 2)"), (9, 9)),
    "long header": npy_of(described("(2, 2)") + " " * 60_000),
    "empty": b"",
    "text": b"1.0,2.0\n" * 50,
    "NULs": b"\0" * 500,
}


@pytest.mark.parametrize("name", HEADERS)
def test_npy_headers_that_lie_or_are_none(tmp_path, name):
    path = tmp_path / "a.npy"
    path.write_bytes(HEADERS[name])
    with pytest.raises(CacheError, match=r"a\.npy: .*\. Fix: ") as error:
        take(path, tmp_path / "out")
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


@pytest.mark.parametrize("name", HEADERS)
def test_the_same_inside_an_npz(tmp_path, name):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", HEADERS[name])
    with pytest.raises(CacheError, match=r"a\.npz.*\. Fix: ") as error:
        take(path, tmp_path / "out")
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def packed(compression):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name in ("x", "keys"):
            part = io.BytesIO()
            np.save(part, ROWS if name == "x" else np.array([f"k{i}" for i in range(len(ROWS))]))
            archive.writestr(f"{name}.npy", part.getvalue())
    return file.getvalue()


METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@pytest.mark.parametrize("method", METHODS)
def test_npz_files_with_flipped_and_missing_bytes(tmp_path, method):
    """Each is adopted as it was or refused; whatever zlib, bz2, lzma and zipfile raise."""
    whole = packed(method)
    path = tmp_path / "a.npz"
    random = np.random.default_rng(method)
    refused = 0
    for number in range(150):
        damaged = bytearray(whole)
        if number % 5 == 0:
            del damaged[random.integers(len(damaged)) :]
        else:
            for place in random.integers(0, len(damaged), 1 + number % 3):
                damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            vectors = open_vectors([path], "image")[0]
            vectors.read(0, vectors.count)
        except CacheError as error:
            refused += 1
            assert len(str(error)) < 500 and "\n" not in str(error)
    assert refused > 100


@pytest.mark.parametrize("seed", range(4))
def test_npy_files_with_flipped_and_missing_bytes(tmp_path, seed):
    file = io.BytesIO()
    np.save(file, ROWS)
    whole = file.getvalue()
    path = tmp_path / "a.npy"
    random = np.random.default_rng(seed)
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[random.integers(0, 128)] = random.integers(256)
        path.write_bytes(damaged[: len(whole) - int(random.integers(2))])
        try:
            vectors = open_vectors([path], "image")[0]
            vectors.read(0, vectors.count)
        except CacheError as error:
            assert len(str(error)) < 500 and "\n" not in str(error)


def test_a_bomb_is_refused_before_memory_is_asked_for(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as member:
            member.write(npy_of(described("(2000000, 512)"), body=b""))
            for _ in range(400):
                member.write(bytes(1 << 20))
    program = f"""
import sys
from tests.memory import peak_kib
from tests.cache.importing.test_damage import take
from pathlib import Path
try:
    take(Path({str(path)!r}), Path({str(tmp_path / "out")!r}))
except Exception as error:
    print(type(error).__name__, error)
print(peak_kib() // 1024, file=sys.stderr)
"""
    limit = 3 << 30
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.stdout.startswith("CacheError") and "unpack to" in done.stdout, done.stderr[-900:]
    assert int(done.stderr.split()[-1]) < 900


def tsv(lines):
    return b"".join(b"%b\t%b\n" % (b"k%d" % i, line) for i, line in enumerate(lines))


GOOD = [base64.b64encode(row.tobytes()) for row in ROWS]
TSVS = {
    "empty": b"",
    "one endless line": b"k\t" + b"A" * 20_000_000,
    "no tab": b"".join(GOOD),
    "other lengths": tsv([*GOOD[:5], base64.b64encode(ROWS[0, :9].tobytes())]),
    "float64": tsv([base64.b64encode(row.astype(np.float64).tobytes()) for row in ROWS]),
    "float64 of their own": tsv(
        [base64.b64encode(row.tobytes()) for row in np.random.default_rng(1).random((40, 32))]
    ),
    "float16": tsv([base64.b64encode(row.astype(np.float16).tobytes()) for row in ROWS]),
    "numbers as text": tsv([b"0.1,0.2,0.3"] * 9),
    "a header": b"key\tfeature\n" + tsv(GOOD),
    "an empty line": tsv(GOOD[:5]) + b"\n" + tsv(GOOD[5:]),
    "keys that are not UTF-8": b"\xff\xfe\t" + GOOD[0] + b"\n",
    "UTF-16": tsv(GOOD).decode().encode("utf-16"),
    "gzip": b"\x1f\x8b\x08\x00" + bytes(200),
}


@pytest.mark.parametrize("name", TSVS)
def test_odd_feature_tsvs(tmp_path, name):
    path = tmp_path / "a.tsv"
    path.write_bytes(TSVS[name])
    with pytest.raises(CacheError, match=r"a\.tsv") as error:
        take(path, tmp_path / "out")
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [lambda text: text, lambda text: text.replace(b"\n", b"\r\n")])
def test_usual_feature_tsvs_are_adopted_also_without_the_last_newline(tmp_path, change):
    (tmp_path / "a.tsv").write_bytes(change(tsv(GOOD))[:-1])
    assert take(tmp_path / "a.tsv", tmp_path / "out").manifest.rows == 40


def not_utf8():
    raw = pa.array([b"\xff\xfe"] * 40, pa.binary())
    return pa.StringArray.from_buffers(40, *raw.buffers()[1:])


COLUMNS = {
    "text that is not UTF-8": not_utf8(),
    "dates beyond Python's": pa.array([10**18] * 40, pa.timestamp("us")),
    "empty cells": pa.array(["a", *[None] * 39]),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_metadata_of_clip_retrieval_that_cannot_be_keys(tmp_path, name):
    folder = tmp_path / "emb"
    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    np.save(folder / "img_emb/img_emb_0.npy", ROWS)
    table = pa.table({"image_path": COLUMNS[name]})
    pq.write_table(table, folder / "metadata/metadata_0.parquet")
    with pytest.raises(CacheError, match=r"metadata_0\.parquet") as error:
        take(folder, tmp_path / "out")
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "keys",
    [b"\xff\xfe" * 40, b'"open quote\n' * 40, b"a\0b\n" * 40, b"x" * 200_000 + b"\n", b"\n" * 3],
)
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".txt"])
def test_odd_key_files_are_one_line_or_keys(tmp_path, keys, ending):
    np.save(tmp_path / "a.npy", ROWS)
    path = tmp_path / f"keys{ending}"
    path.write_bytes(keys)
    try:
        vectors = open_vectors([tmp_path / "a.npy"], "image", keys=[path])[0]
        assert len(vectors.read(0, 40)[0]) == 40
    except CacheError as error:
        assert len(str(error)) < 500 and "\n" not in str(error)
