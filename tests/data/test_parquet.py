"""Parquet as other writers leave it: text that is no UTF-8, values that Python cannot hold, row
groups larger than memory, damaged footers.
"""

import datetime
import pickle
import resource
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dimefm.data import open_rows, row_groups
from dimefm.data.formats import parquet
from dimefm.errors import BadRow, DataError

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def strings(items, kind=pa.string):
    """Return a column of text whose bytes are ``items``, valid or not."""
    width = np.int64 if kind is pa.large_string else np.int32
    ends = np.cumsum([0] + [len(item) for item in items]).astype(width)
    buffers = [None, pa.py_buffer(ends.tobytes()), pa.py_buffer(b"".join(items))]
    return pa.Array.from_buffers(kind(), len(items), buffers)


def shard_of(path, kind, **columns):
    pq.write_table(pa.table(columns), path / "x.parquet")
    (shard,) = open_rows([path / "x.parquet"], kind).shards
    return shard


BYTES = [b"zero", b"caf\xe9", b"two"]
TEXTS = {
    "string": strings(BYTES),
    "large string": strings(BYTES, pa.large_string),
    "list": pa.ListArray.from_arrays([0, 1, 2, 3], strings(BYTES)),
}


@pytest.mark.parametrize("form", TEXTS)
def test_a_caption_that_is_not_utf8_is_a_bad_row(tmp_path, form):
    shard = shard_of(tmp_path, "text", key=["a", "b", "c"], caption=TEXTS[form])
    assert [shard[0].texts, shard[2].texts] == [("zero",), ("two",)]
    with pytest.raises(BadRow, match="its caption is not UTF-8"):
        shard[1]
    assert shard.keys() == ["a", "b", "c"]


@pytest.mark.parametrize("form", ["string", "large string"])
def test_a_key_that_is_not_utf8_is_a_bad_row_and_can_be_shown(tmp_path, form):
    shard = shard_of(tmp_path, "text", key=TEXTS[form], caption=["a", "b", "c"])
    assert [shard[0].key, shard[2].key] == ["zero", "two"]
    with pytest.raises(BadRow, match="its key is not UTF-8"):
        shard[1]
    assert shard.keys() == ["zero", "caf\\xe9", "two"]


def test_a_file_name_that_is_not_utf8_is_a_bad_row(tmp_path, picture):
    (tmp_path / "zero").write_bytes(picture(0))
    (tmp_path / "two").write_bytes(picture(2))
    paths = pa.StructArray.from_arrays([strings(BYTES)], ["path"])
    for cells in (strings(BYTES), paths):
        shard = shard_of(tmp_path, "image", image=cells)
        assert [shard[0].image, shard[2].image] == [picture(0), picture(2)]
        with pytest.raises(BadRow, match="its image is not UTF-8"):
            shard[1]


def test_columns_that_are_not_wanted_do_not_matter(tmp_path):
    far = pa.array([2**62], pa.timestamp("ms"))
    shard = shard_of(tmp_path, "text", caption=["a"], other=strings([b"\xff"]), when=far)
    assert shard[0].texts == ("a",)


FAR = {
    "timestamp": pa.array([0, 2**62], pa.timestamp("ms")),
    "timestamp of microseconds": pa.array([0, -(2**62)], pa.timestamp("us")),
    "date": pa.array([0, 2**30], pa.date32()),
    "duration": pa.array([0, 2**62], pa.duration("ms")),
}


@pytest.mark.parametrize("form", FAR)
@pytest.mark.parametrize("column", ["key", "label"])
def test_a_value_that_python_cannot_hold_is_a_bad_row(tmp_path, picture, form, column):
    images = [picture(0), picture(1)]
    shard = shard_of(tmp_path, "image", image=images, **{column: FAR[form]})
    assert shard[0].image == images[0]
    with pytest.raises(BadRow):
        shard[1]
    labels = shard.labels()
    assert shard.keys()[1] == "1" and len(labels) == 2 and labels[1] is None


HUGE = [
    pa.array([3, 2**64 - 1], pa.uint64()),
    pa.array([3, -(2**63)], pa.int64()),
]


@pytest.mark.parametrize("labels", HUGE)
def test_a_label_that_no_class_has_is_a_bad_row(tmp_path, picture, labels):
    shard = shard_of(tmp_path, "image", image=[picture(0), picture(1)], label=labels)
    assert shard[0].label == 3
    with pytest.raises(BadRow, match="its label is a number of more than 18 digits"):
        shard[1]
    assert shard.labels() == [3, None]


def test_dates_within_bounds_and_long_keys_are_keys(tmp_path):
    when = [datetime.date(2020, 1, 2), datetime.date(1, 1, 1)]
    shard = shard_of(tmp_path, "text", key=when, caption=["a", "b"])
    assert shard.keys() == ["2020-01-02", "0001-01-01"] == [row.key for row in shard]
    shard = shard_of(tmp_path, "text", key=["k" * 9999], caption=["a"])
    assert shard.keys() == ["k" * parquet.LONGEST_KEY] == [shard[0].key]


# --- row groups that are large


@pytest.fixture
def small_memory(monkeypatch):
    """Let a group of some kilobytes be large."""
    monkeypatch.setattr(row_groups, "LARGE", 4000)
    monkeypatch.setattr(row_groups, "PART", 1000)
    monkeypatch.setattr(row_groups, "PARTS_KEPT", 3000)


def grouped(path, cells, **options):
    pq.write_table(pa.table({"image": cells, "key": [f"k{n}" for n in range(len(cells))]}), path)
    table = pq.read_table(path)
    pq.write_table(table, path, **options)
    (shard,) = open_rows([path], "image").shards
    return shard


FORMS = {
    "bytes": lambda images: pa.array(images),
    "struct": lambda images: pa.array([{"bytes": image, "path": "a"} for image in images], STRUCT),
    "list": lambda images: pa.array([[image] for image in images]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("has_dictionary", [True, False])
@pytest.mark.parametrize("repeated", [True, False])
def test_a_large_group_is_read_in_parts(tmp_path, small_memory, form, has_dictionary, repeated):
    images = [b"%03d" % (0 if repeated else n) * 50 for n in range(90)]
    cells = FORMS[form](images)
    options = {"row_group_size": 60, "use_dictionary": has_dictionary}
    shard = grouped(tmp_path / "x.parquet", cells, **options)
    rng = np.random.default_rng(0)
    order = [*range(90), *rng.permutation(90).tolist()]
    assert [shard[row].image for row in order] == [images[row] for row in order]
    assert shard.keys() == [f"k{n}" for n in range(90)]
    again = pickle.loads(pickle.dumps(shard))
    assert again[70].image == images[70]
    kept = shard._groups._parts
    assert 0 < len(kept) <= row_groups.FEWEST_PARTS
    firsts, sizes = shard.blocks()
    assert firsts[0] == 0 and (np.diff(firsts) > 0).all() and (sizes > 0).all()
    if not repeated:
        assert len(firsts) > 2


def test_a_group_that_is_not_large_is_one_block_as_ever(tmp_path):
    images = [b"x" * 100] * 90
    shard = grouped(tmp_path / "x.parquet", pa.array(images), row_group_size=60)
    metadata = pq.ParquetFile(tmp_path / "x.parquet").metadata
    firsts, sizes = shard.blocks()
    assert firsts.tolist() == [0, 60]
    expected = [
        sum(metadata.row_group(group).column(n).total_uncompressed_size for n in range(2))
        for group in range(2)
    ]
    assert sizes.tolist() == expected


def test_threads_that_read_a_large_group_read_it_a_few_times(tmp_path, small_memory, monkeypatch):
    images = [b"%03d" % n * 50 for n in range(200)]
    shard = grouped(tmp_path / "x.parquet", pa.array(images), use_dictionary=False)
    streams = []
    real = row_groups._Stream
    monkeypatch.setattr(row_groups, "_Stream", lambda *of: streams.append(1) or real(*of))
    turns = [start + step for step in range(25) for start in range(0, 200, 25)]
    assert [shard[row].image for row in turns] == [images[row] for row in turns]
    assert len(streams) <= 8


LIMITED = """
import sys
from tests.memory import peak_kib
from dimefm.data import open_rows
before = peak_kib()
(shard,) = open_rows([sys.argv[1]], "image").shards
total = sum(len(row.image) for row in shard)
print(len(shard), total, (peak_kib() - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "has_dictionary"), [("struct", True), ("struct", False), ("bytes", True)]
)
def test_more_than_two_gigabytes_are_read_in_one(tmp_path, form, has_dictionary):
    image = b"image" + b"\0" * (50 << 20)
    cells = pa.chunked_array([FORMS[form]([image]) for _ in range(44)])
    pq.write_table(
        pa.table({"image": cells}),
        tmp_path / "x.parquet",
        compression="zstd",
        use_dictionary=has_dictionary,
        row_group_size=1000,
    )
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "x.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    rows, total, megabytes = map(int, done.stdout.split())
    assert (rows, total) == (44, 44 * len(image))
    assert megabytes < 1400


# --- damage

MUTANTS = """
import random, sys
from pathlib import Path
from dimefm.data import open_rows
from dimefm.errors import DimefmError
seed, count = int(sys.argv[1]), int(sys.argv[2])
draw = random.Random(seed)
files = [(Path(path).read_bytes(), kind) for path, kind in zip(sys.argv[3::2], sys.argv[4::2])]
path = Path(sys.argv[3]).with_name("mutant.parquet")
messages = []
for number in range(count):
    whole, kind = draw.choice(files)
    raw = bytearray(whole)
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    first = footer if draw.random() < 0.8 else 4
    for _ in range(draw.choice([1, 1, 2, 3])):
        place = draw.randrange(first, len(raw) - 4)
        flipped = raw[place] ^ (1 << draw.randrange(8))
        raw[place] = draw.choice([draw.randrange(256), flipped, 255, 0])
    path.write_bytes(raw)
    print(number, flush=True)
    try:
        (shard,) = open_rows([path], kind).shards
        shard.blocks(), shard.keys(), shard.labels(), shard.cuts(3)
        for row in range(min(len(shard), 9)):
            try:
                shard[row]
            except DimefmError as error:
                messages.append(str(error))
    except DimefmError as error:
        messages.append(str(error))
for message in messages:
    assert len(message) < 500 and "\\n" not in message, message
print("survived")
"""


def mutants(folder, seed, count):
    """Read mutants of some files in a process of its own; return how it ended."""
    files = {
        "a": ("image", pa.table({"key": ["a", "b", "c"], "image": [b"x" * 50] * 3}), {}),
        "b": (
            "image",
            pa.table({"image": pa.array([{"bytes": b"1"}] * 5, STRUCT), "label": [1, 2, 3, 4, 5]}),
            {"row_group_size": 2},
        ),
        "c": (
            "text",
            pa.table({"captions": [["a", "b"], ["c"]], "key": [1.5, None]}),
            {"compression": "zstd"},
        ),
    }
    arguments = []
    for name, (kind, table, options) in files.items():
        pq.write_table(table, folder / f"{name}.parquet", **options)
        arguments += [str(folder / f"{name}.parquet"), kind]
    command = [sys.executable, "-c", MUTANTS, str(seed), str(count), *arguments]

    def without_core():
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, preexec_fn=without_core
    )


def test_counts_of_rows_that_disagree_are_damage(tmp_path):
    pq.write_table(pa.table({"text": ["a"] * 77}), tmp_path / "x.parquet")
    raw = (tmp_path / "x.parquet").read_bytes()
    count = b"\x16" + bytes([2 * 77 & 0x7F | 0x80, 1])  # a 64-bit number, zigzag
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    places = [n for n in range(footer, len(raw)) if raw.startswith(count, n)]
    assert len(places) >= 2
    for place in places:
        for value in (b"\x16\xff\x7f", b"\x16\x81\x01"):  # -8192, -65
            (tmp_path / "x.parquet").write_bytes(raw[:place] + value + raw[place + 3 :])
            try:
                rows = open_rows([tmp_path / "x.parquet"], "text")
                assert [row.texts for row in rows] == [("a",)] * 77
            except DataError as error:
                assert "Fix: fetch or write it again" in str(error)


def test_damaged_files_are_refused_and_the_process_lives(tmp_path):
    done = mutants(tmp_path, 1, 800)
    assert done.stdout.splitlines()[-1] == "survived", (done.stdout[-20:], done.stderr[-2000:])


@pytest.mark.slow
def test_thousands_of_damaged_files_are_refused_and_the_process_lives(tmp_path):
    done = mutants(tmp_path, 2, 30_000)
    assert done.stdout.splitlines()[-1] == "survived", (done.stdout[-20:], done.stderr[-2000:])


def test_metadata_that_end_a_process_are_damage(tmp_path):
    """Statistics of levels that do not fit the column: pyarrow aborts when it is asked for it."""
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [b"x" * 50] * 3}), path)
    raw = path.read_bytes()
    optional = b"\x15\x0c\x25\x02\x18\x05image"  # a column of bytes that may be null, named image
    assert raw.count(optional) == 1
    path.write_bytes(raw.replace(optional, b"\x15\x0c\x25\x00\x18\x05image"))
    (shard,) = open_rows([path], "image").shards
    with pytest.raises(DataError, match="damaged"):
        shard.blocks()
