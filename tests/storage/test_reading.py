"""An error of the machine is no error of the data: a read that fails for a moment is tried again,
and when it goes on failing the job ends with one line, in which no row is left out.
"""

import errno
import os
import stat
import zlib

import pytest

from dimefm.cache import FeatureCache
from dimefm.data import open_rows
from dimefm.data.packed.pack import Settings as Packing
from dimefm.data.packed.pack import pack
from dimefm.errors import BadRow, CacheError, DataError
from dimefm.evaluate.zero_shot import evaluate
from dimefm.models.model import Model
from dimefm.storage import reading
from dimefm.storage.reading import is_row_fault, read_file
from tests.data.images.test_formats import SOURCES
from tests.evaluate.datasets import write
from tests.extract.conftest import keys_of, quarantine, run
from tests.train.conftest import DistributedContext
from tests.train.inputs.test_image_batches import batches

MACHINE = ["EIO", "ESTALE", "EMFILE", "ENFILE", "ENOMEM", "EINTR", "EAGAIN", "ETIMEDOUT", "EBUSY"]
FORBIDDEN = ["EACCES", "EPERM"]
ROW = ["ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "ENAMETOOLONG"]


class FailingDisk:
    """Lets the next reads of some files fail with an error of the operating system."""

    def __init__(self, monkeypatch):
        self.name = ""
        self.number = 0
        self.left = 0
        self.paths = {}  # of open files
        open_, pread = os.open, os.pread

        def failing_open(path, *args, **options):
            descriptor = open_(path, *args, **options)
            self.paths[descriptor] = str(path)
            if not self.reads_tables:
                self.fail(str(path), lambda: os.close(descriptor))
            return descriptor

        def failing_pread(descriptor, *args):
            if self.reads_tables:
                self.fail(self.paths.get(descriptor, ""))
            return pread(descriptor, *args)

        monkeypatch.setattr(os, "open", failing_open)
        monkeypatch.setattr(os, "pread", failing_pread)
        monkeypatch.setattr(reading, "PAUSES", (0, 0, 0))

    def fails(self, name, code, times, reads_tables=False):
        """Let the next ``times`` reads of files of this name fail."""
        self.name, self.number, self.left = name, getattr(errno, code), times
        self.reads_tables = reads_tables

    reads_tables = False

    def fail(self, path, clean=lambda: None):
        if self.left and self.name and path.endswith(self.name):
            self.left -= 1
            clean()
            raise OSError(self.number, os.strerror(self.number), path)


@pytest.fixture
def disk(monkeypatch):
    return FailingDisk(monkeypatch)


def three_photos(picture):
    return {f"{number}.png": picture(number, (24, 20)) for number in range(3)}


FILES = {"folder": "1.png", "csv": "1.png", "jsonl": "1.png"}
TABLES = {"tar": "photos.tar", "tsv": "photos.tsv"}
WAYS = {**FILES, **TABLES}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("code", MACHINE)
def test_a_read_that_fails_twice_loses_no_row(disk, tiny_teacher, picture, tmp_path, way, code):
    rows = open_rows([SOURCES[way](tmp_path, three_photos(picture))], "image")
    disk.fails(WAYS[way], code, 2, way in TABLES)
    assert [row.image for row in rows] == list(three_photos(picture).values())
    assert disk.left == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("code", ["EIO", "EMFILE", "EACCES"])
def test_an_extraction_stops_and_resumes_without_a_gap(
    disk, tiny_teacher, picture, tmp_path, way, code
):
    path = SOURCES[way](tmp_path, three_photos(picture))
    rows = open_rows([path], "image")
    disk.fails(WAYS[way], code, 99, way in TABLES)
    with pytest.raises(DataError, match=rf"{WAYS[way]}: cannot be read \(.*\. Fix: ") as stopped:
        for row in rows:
            assert row
    assert not isinstance(stopped.value, BadRow) and len(str(stopped.value)) <= 500
    with pytest.raises((DataError, OSError)) as stopped:
        run(tiny_teacher, [path], "image", tmp_path / "out")
    assert not isinstance(stopped.value, BadRow)
    with pytest.raises(CacheError):
        FeatureCache(tmp_path / "out")
    disk.fails("", "EIO", 0)
    _, cache = run(tiny_teacher, [path], "image", tmp_path / "out")
    assert len(keys_of(cache)) == 3 and quarantine(tmp_path / "out") == []


def test_a_pack_is_not_finished_without_a_row(disk, picture, tmp_path):
    rows = open_rows([SOURCES["folder"](tmp_path, three_photos(picture))], "image")
    disk.fails("1.png", "ESTALE", 99)
    with pytest.raises(DataError, match=r"1\.png: cannot be read .*tried 4 times"):
        pack(rows, tmp_path / "packed", Packing(size=16, progress=False))
    assert not (tmp_path / "packed/00000.tar").exists()
    disk.fails("1.png", "ESTALE", 2)
    assert pack(rows, tmp_path / "packed", Packing(size=16, progress=False)).bad == []


def test_an_evaluation_scores_all_images_or_none(disk, tiny_teacher, picture, tmp_path):
    folder = tmp_path / "sets/beasts"
    write(folder / "classnames.txt", "cat\ndog\n")
    for number in range(6):
        write(folder / "test" / ("cat", "dog")[number % 2] / f"{number}.png", picture(number))
    options = {"names": ["beasts"], "out": tmp_path / "scores"}
    disk.fails("3.png", "EIO", 99)
    with pytest.raises(DataError, match="cannot be read"):
        evaluate(tiny_teacher, tmp_path / "sets", **options)
    disk.fails("3.png", "EIO", 2)
    (result,) = evaluate(tiny_teacher, tmp_path / "sets", **options)
    assert result.samples == 6
    (result,) = evaluate(tiny_teacher, tmp_path / "sets", **options)
    assert result.samples == 6


def test_an_evaluation_tries_quarantined_images_again(tiny_teacher, picture, tmp_path):
    folder = tmp_path / "sets/beasts"
    write(folder / "classnames.txt", "cat\ndog\n")
    for number in range(6):
        write(folder / "test" / ("cat", "dog")[number % 2] / f"{number}.png", picture(number))
    good = (folder / "test/cat/2.png").read_bytes()
    (folder / "test/cat/2.png").write_bytes(b"x" * len(good))  # the digest is of names and sizes
    options = {"names": ["beasts"], "out": tmp_path / "scores"}
    (result,) = evaluate(tiny_teacher, tmp_path / "sets", **options)
    assert result.samples == 5
    (folder / "test/cat/2.png").write_bytes(good)
    (result,) = evaluate(tiny_teacher, tmp_path / "sets", **options)
    assert result.samples == 6


def test_training_stops_and_leaves_no_row_out(disk, tmp_path):
    world = DistributedContext(tmp_path)
    load = batches(world, world.recipe(batch_size=17))
    disk.fails("image_0.tsv", "EIO", 2, reads_tables=True)
    batch = load(0)
    assert batch.bad == [] and len(batch.places) == 17 and disk.left == 0
    disk.fails("image_1.tsv", "EIO", 99, reads_tables=True)
    with pytest.raises(DataError, match=r"image_1\.tsv: cannot be read"):
        load(1)


def test_a_model_names_the_file(disk, tiny_teacher, picture, tmp_path):
    write(tmp_path / "1.png", picture(1))
    disk.fails("1.png", "EIO", 2)
    assert Model(tiny_teacher).encode_image(tmp_path / "1.png").shape == (128,)
    disk.fails("1.png", "EIO", 99)
    with pytest.raises(DataError, match=r"1\.png: cannot be read \(Input/output error, tried 4"):
        Model(tiny_teacher).encode_image(tmp_path / "1.png")


@pytest.mark.parametrize("code", ROW)
def test_what_is_the_rows_own_fault_is_quarantined_at_once(
    disk, tiny_teacher, picture, tmp_path, code
):
    path = SOURCES["folder"](tmp_path, three_photos(picture))
    disk.fails("1.png", code, 1)
    _, cache = run(tiny_teacher, [path], "image", tmp_path / "out")
    assert len(keys_of(cache)) == 2
    (entry,) = quarantine(tmp_path / "out")
    assert entry["key"].endswith("1.png") and "cannot be read" in entry["reason"]


@pytest.mark.parametrize("code", MACHINE + FORBIDDEN)
def test_whose_fault_a_number_is(code):
    number = getattr(errno, code)
    assert not is_row_fault(OSError(number, os.strerror(number)))


def test_whose_fault_other_errors_are():
    for error in (BadRow("x"), ValueError("x"), UnicodeDecodeError("utf-8", b"x", 0, 1, "x")):
        assert is_row_fault(error)
    for error in (zlib.error("Error -3 while"), OSError("broken data stream"), RecursionError()):
        assert is_row_fault(error)
    for error in (
        MemoryError(),
        KeyboardInterrupt(),
        SystemExit(),
        OSError("out of memory when reading image file"),
        RuntimeError("can't start new thread"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        zlib.error("Error -4 while decompressing data"),
    ):
        assert not is_row_fault(error)


def test_what_is_no_file_is_the_rows_fault_and_stops_nothing(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "null.jpg").symlink_to("/dev/zero")
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(reading.LARGEST_FILE + 1)
    names = ["pipe.jpg", "folder.jpg", "loop.jpg", "null.jpg", "huge.jpg", "none.jpg", "a\0b.jpg"]
    for name in [*names, "n" * 300]:
        with pytest.raises(BadRow, match="cannot be read"):
            read_file(tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe.jpg").stat().st_mode)
