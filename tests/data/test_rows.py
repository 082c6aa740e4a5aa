"""One guard around each row: whatever a library raises on a bad row is that row's own error."""

import errno
import lzma
import zlib

import pytest

from dimefm.data.rows import MOST_DIGITS, Row, Shard, label_of, row_guard
from dimefm.errors import BadRow, DataError


class Raising(Shard):
    """Three rows; the second raises a given error."""

    def __init__(self, error):
        super().__init__("/raw/shard", "shard")
        self.error = error

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 1:
            raise self.error
        return Row(("a", "b", "c")[index])

    def keys(self):
        return ["a", "b", "c"]


FAULTS_OF_A_ROW = [
    ValueError("a cell\nof two lines"),
    RecursionError("maximum recursion depth exceeded"),
    OverflowError("Python int too large"),
    zlib.error("Error -3"),
    lzma.LZMAError("Corrupt input data"),
    KeyError("column"),
    IndexError("list index out of range"),
    OSError("cannot identify image"),
    SystemError("a library's own"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ValueError("x" * 100_000),
    ValueError(),
]


@pytest.mark.parametrize("error", FAULTS_OF_A_ROW, ids=repr)
def test_what_a_library_raises_on_a_row_is_a_bad_row(error):
    shard = Raising(error)
    with pytest.raises(BadRow) as caught:
        shard[1]
    message = str(caught.value)
    assert type(error).__name__ in message
    assert "\n" not in message
    assert len(message) < 300
    assert [shard[0].key, shard[2].key] == ["a", "c"]
    with pytest.raises(BadRow), row_guard():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        OSError(errno.EMFILE, "Too many open files"),
        DataError("leads outside"),
        BadRow("a reason"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_errors_of_the_machine_and_of_dimefm_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught:
        Raising(error)[1]
    assert caught.value is error
    with pytest.raises(type(error)) as caught, row_guard():
        raise error
    assert caught.value is error


def test_a_shard_still_ends_where_it_ends():
    shard = Raising(ValueError())
    with pytest.raises(IndexError):
        shard[3]


def test_a_label_is_a_number_a_name_or_too_long():
    assert label_of("7") == 7
    assert label_of("cat") == "cat"
    assert label_of("9" * MOST_DIGITS) == int("9" * MOST_DIGITS)
    with pytest.raises(BadRow, match="5,000 digits"):
        label_of("1" * 5_000)
