"""A selection is a pure function of the keys and the order, and a selected shard is a shard like
any other.
"""

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimefm.data import open_rows, subshards
from dimefm.data.rows import Rows
from dimefm.data.selection import Selected, Selection, parse_split, place, select, within
from dimefm.errors import DataError, RecipeError
from tests.data.listed import Listed

KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SOURCES = st.lists(st.lists(KEYS, max_size=6), min_size=1, max_size=5)
EDGES = st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True), unique=True, max_size=4).map(
    sorted
)


def rows_of(sources):
    return Rows([Listed(f"{number}.txt", keys) for number, keys in enumerate(sources)])


def keys_of(rows):
    return [key for shard in rows.shards for key in shard.keys()]


def selected(raw, *flags, **named):
    """Return the selected rows, none when there is none."""
    try:
        return select(raw, Selection.parse(*flags, **named))
    except DataError:
        return Rows([])


@given(SOURCES, EDGES)
def test_the_parts_of_a_split_hold_every_row_once_and_in_order(sources, edges):
    rows = rows_of(sources)
    pairs = [f"{low}:{high}" for low, high in itertools.pairwise([0.0, *edges, 1.0])]
    found = [selected(rows, split=split) for split in pairs]
    assert sum(map(len, found)) == len(rows)
    for part in found:
        for shard in part.shards:
            whole = next(each for each in rows.shards if each.name == shard.name)
            numbers = [int(shard[row].texts[0]) for row in range(len(shard))]
            assert numbers == sorted(set(numbers))
            assert shard.keys() == [whole.keys()[number] for number in numbers]


@given(SOURCES, SOURCES, st.randoms(use_true_random=False), st.floats(0.01, 0.99))
def test_a_rows_side_does_not_depend_on_the_other_rows(sources, others, random, edge):
    split = (0.0, edge)
    chosen = {key for keys in sources for key in keys if within(key, split)}
    mixed = [list(keys) for keys in [*sources, *others]]
    random.shuffle(mixed)
    for keys in mixed:
        random.shuffle(keys)
    known = {key for keys in sources for key in keys}
    found = keys_of(selected(rows_of(mixed), split=f"0:{edge}"))
    assert {key for key in found if key in known} == chosen


@given(KEYS, st.lists(st.integers(0, 10**6), min_size=1, max_size=3))
def test_sentences_have_the_place_of_their_photo(key, numbers):
    assert place(key + "".join(f"#{number}" for number in numbers)) == place(key)
    assert 0 <= place(key) < 1


def test_a_place_is_the_same_for_ever_and_places_are_spread_evenly():
    known = {"photo.jpg": 0.0466589852642, "0": 0.1109611769502, "héllo": 0.9087319630859}
    assert {key: round(place(key), 13) for key in known} == known
    counts, _ = np.histogram([place(f"{number}.jpg") for number in range(20_000)], 20, (0, 1))
    assert abs(counts - 1000).max() < 150
    assert place("photo.jpg#x") != place("photo.jpg")


@given(
    SOURCES,
    st.none() | st.integers(0, 12),
    st.none() | st.integers(0, 12),
    st.none() | st.integers(1, 12),
)
def test_rows_and_limit_are_a_slice_of_all_rows(sources, first, stop, limit):
    rows = rows_of(sources)
    if first is not None and stop is not None and stop <= first or stop == 0:
        first = stop = None
    flags = f"{'' if first is None else first}:{'' if stop is None else stop}"
    assert list(selected(rows, rows=flags, limit=limit)) == list(rows)[first:stop][:limit]


@given(SOURCES, st.integers(1, 12), st.floats(0.1, 0.9))
def test_rows_come_before_split_and_split_before_limit(sources, limit, edge):
    rows = rows_of(sources)
    expected = [row for row in list(rows)[1:9] if within(row.key, (0.0, edge))][:limit]
    assert list(selected(rows, "1:9", f":{edge}", limit)) == expected


@given(st.lists(KEYS, min_size=1, max_size=9), st.data())
def test_a_selected_shard_is_a_shard(keys, data):
    numbers = np.array(
        sorted(data.draw(st.sets(st.sampled_from(range(len(keys))), min_size=1))), dtype=np.int64
    )
    whole = Listed("a.txt", keys)
    shard = Selected(whole, numbers)
    assert (shard.name, shard.path, len(shard)) == (whole.name, whole.path, len(numbers))
    assert list(shard) == [whole[number] for number in numbers]
    assert shard.keys() == [row.key for row in shard] == [keys[number] for number in numbers]
    assert shard.digest() == Selected(whole, numbers.copy()).digest() != whole.digest()
    assert shard.digest() != Selected(Listed("a.txt", [*keys, "more"]), numbers).digest()
    with pytest.raises(IndexError):
        shard[len(shard)]
    copy = pickle.loads(pickle.dumps(shard))
    assert (list(copy), copy.digest()) == (list(shard), shard.digest())


@given(st.sets(st.sets(st.integers(0, 7), min_size=1).map(frozenset), min_size=2, max_size=6))
def test_a_digest_tells_which_rows_were_selected(choices):
    whole = Listed("a.txt", [str(number) for number in range(8)])
    digests = {Selected(whole, np.array(sorted(numbers))).digest() for numbers in choices}
    assert len(digests) == len(choices)


def test_a_digest_does_not_tell_how_the_rows_were_selected():
    rows = rows_of([["a", "b", "c", "d"]])
    low, high = sorted(map(place, "abcd"))[:2]
    (first,) = select(rows, Selection(split=(low, high))).shards
    number = int(first[0].texts[0])
    (same,) = select(rows, Selection(rows=(number, number + 1))).shards
    assert isinstance(same, Selected) and isinstance(same.numbers, range)
    assert same.digest() == first.digest()


def test_whole_shards_stay_as_they_are_and_empty_ones_are_left_out():
    rows = rows_of([["a", "b"], [], ["c"], ["d", "e"], ["f"]])
    found = select(rows, Selection.parse("0:4"))
    assert [shard.name for shard in found.shards] == ["0.txt", "2.txt", "3.txt"]
    assert found.shards[:2] == (rows.shards[0], rows.shards[2])
    assert list(found) == list(rows)[:4]
    assert select(rows, Selection()) is rows
    assert [
        shard.name for shard in select(rows, Selection.parse(split="0:1", rows=":")).shards
    ] == [shard.name for shard in rows.shards]


def test_keys_are_read_only_for_a_split_and_only_as_far_as_the_limit(monkeypatch):
    rows, read = rows_of([["a", "b"], ["c", "d"], ["e", "f"]]), []
    monkeypatch.setattr(Listed, "keys", lambda self: read.append(self.name) or list(self._keys))
    assert len(select(rows, Selection.parse("1:5", limit=3))) == 3
    assert read == []
    assert len(select(rows, Selection.parse("2:", "0:0.9999", 1))) == 1
    assert read == ["1.txt"]


def test_parts_of_a_file_are_counted_through(tmp_path, monkeypatch):
    monkeypatch.setattr(subshards, "ROWS_PER_PART", 3)
    path = tmp_path / "x.txt"
    path.write_text("".join(f"sentence {number}\n" for number in range(7)))
    rows = open_rows([path], "text")
    found = select(rows, Selection.parse("2:7"))
    assert [shard.name for shard in found.shards] == ["x.txt/00000", "x.txt/00001", "x.txt/00002"]
    assert [row.texts[0] for row in found] == [f"sentence {number}" for number in range(2, 7)]
    assert found.shards[1] is rows.shards[1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "5:5",
        "7:3",
        "-1:4",
        "0:-1",
        "1:2:3",
        "a:b",
        "1.5:3",
        ":0",
        " 1:2",
        "0:" + "9" * 5000,
    ],
)
def test_rows_that_cannot_be_are_refused_in_one_line(text):
    with pytest.raises(
        RecipeError, match=r"^--rows .*: expected A:B, row numbers from 0 with A < B. Fix: say .*$"
    ):
        Selection.parse(rows=text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0.5",
        "0.5:0.5",
        "1:0",
        "-0.1:1",
        "0:1.1",
        "nan:1",
        "0:nan",
        "0:inf",
        "0:0.5:1",
        "a:b",
        "1:",
    ],
)
def test_splits_that_cannot_be_are_refused_in_one_line(text):
    with pytest.raises(
        RecipeError, match=r"^--split .*: expected A:B with 0 <= A < B <= 1. Fix: say .*$"
    ):
        parse_split(text)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("9:", None, None),
            "--rows 9:: selects none of the 3 rows of 0.txt, 1.txt. Fix: select more of them",
        ),
        (
            (None, "0:1e-9", 7),
            (
                "--split 0.0:1e-09 --limit 7: selects none of the 3 rows of 0.txt, 1.txt. Fix:"
                " select more of them"
            ),
        ),
    ],
)
def test_a_selection_of_nothing_is_refused_in_one_line(flags, said):
    with pytest.raises(DataError) as error:
        select(rows_of([["a", "b"], ["c"]]), Selection.parse(*flags))
    assert str(error.value) == said


def test_a_selection_says_its_flags():
    assert str(Selection.parse("2:", "0.5:", 3)) == "--rows 2: --split 0.5:1.0 --limit 3"
    assert str(Selection()) == ""
    assert Selection.parse(":", "0:1") == Selection.parse() == Selection()
