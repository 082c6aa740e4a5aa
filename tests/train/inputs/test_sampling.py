"""The orders of a run: what source_weights, shuffle and weights in lists make of a recipe's own
sources.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimefm.data import open_rows, subshards
from dimefm.data.formats import parquet
from dimefm.data.selection import Selection, select
from dimefm.errors import DataError, RecipeError
from dimefm.recipe import read
from dimefm.train.inputs import sampling
from dimefm.train.inputs.sampler import Shuffled, ShuffledBlocks, WeightedOrder
from dimefm.train.inputs.sampling import student_order, unpaired_order
from dimefm.train.inputs.sources import Sources, open_sources

ROWS, TEXTS = (10, 7), 9
HOLES = {0, 3, 4, 9, 10, 16}
KILOBYTE = b"x" * 1000


def opened(world, **over):
    recipe = world.recipe(**over)
    return open_sources(recipe, world.root / "out"), recipe


def raw_rows(sources, order, count):
    return sources.locate(order.take(0, count)[0])[0]


def same(order, other):
    for ours, theirs in zip(order.take(3, 500), other.take(3, 500), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    return len(order) == len(other)


def both(world):
    return [str(world.root / name) for name in world.names]


def grouped(path, rows, group, first=0):
    """Write a Parquet file of rows that tell their own number, a kilobyte each, in row groups of
    ``group``.
    """
    numbers = range(first, first + rows)
    images = [str(n).encode() + KILOBYTE for n in numbers]
    pq.write_table(
        pa.table({"key": [f"k{n}" for n in numbers], "image": images}), path, row_group_size=group
    )
    return str(path)


def little_memory(monkeypatch, kilobytes):
    monkeypatch.setattr(sampling, "BYTES_KEPT", kilobytes * 1000)
    monkeypatch.setattr(parquet, "BYTES_KEPT", kilobytes * 1000)


def test_without_a_mix_every_row_is_dealt_once_an_epoch_as_ever(world):
    sources, recipe = opened(world, seed=5)
    assert same(student_order(sources, recipe), Shuffled(sum(ROWS), 5, "images"))
    assert same(unpaired_order(sources, recipe), Shuffled(TEXTS, 5, "texts"))


def test_a_text_tower_deals_sentences_and_beside_them_images(world):
    recipe = world.text_recipe()
    sources = open_sources(recipe, world.root / "out")
    assert same(student_order(sources, recipe), Shuffled(TEXTS, 0, "texts"))
    assert same(unpaired_order(sources, recipe), Shuffled(sum(ROWS), 0, "images"))


def test_pairs_by_key_deal_images_and_nothing_beside_them(world):
    recipe = world.text_recipe(per_row=2)
    sources = open_sources(recipe, world.root / "out")
    assert same(student_order(sources, recipe), Shuffled(sum(ROWS), 0, "images"))
    assert unpaired_order(sources, recipe) is None


def test_raw_pairs_deal_all_rows_and_nothing_beside_them(world):
    recipe = world.clip_recipe(images=[str(world.pairs([f"number {n}" for n in range(8)]))])
    sources = open_sources(recipe, world.root / "out")
    assert same(student_order(sources, recipe), Shuffled(8, 0, "images"))
    assert unpaired_order(sources, recipe) is None


@pytest.mark.parametrize("shuffle", ["rows", "blocks"])
@pytest.mark.parametrize("holes", [set(), HOLES])
def test_a_mix_gives_each_source_its_share_and_deals_all_of_its_usable_rows(world, shuffle, holes):
    world.images("mixed", quarantined=holes)
    over = {
        "images": both(world),
        "image_cache": str(world.root / "mixed"),
        "source_weights": [3, 1],
        "shuffle": shuffle,
    }
    sources, recipe = opened(world, **over)
    order = student_order(sources, recipe)
    assert len(order) == sum(ROWS) - len(holes)
    rows, epochs = order.take(0, 3000)
    raw = sources.locate(rows)[0]
    for pattern in raw.reshape(3, 1000):
        assert (pattern < ROWS[0]).sum() == 750
    for here, numbers in ((raw < ROWS[0], range(10)), (raw >= ROWS[0], range(10, 17))):
        usable = sorted(set(numbers) - holes)
        whole = here.sum() // len(usable)
        for epoch in range(whole):
            dealt = raw[here][epoch * len(usable) : (epoch + 1) * len(usable)]
            assert sorted(dealt.tolist()) == usable
        np.testing.assert_array_equal(epochs[here], np.arange(here.sum()) // len(usable))


def test_a_row_of_weight_3_comes_three_times_as_often(world):
    world.write_images()
    listed = world.root / "weighed.list"
    listed.write_text("image_0.tsv\nimage_1.tsv weight=3  \n")
    sources, recipe = opened(world, images=[str(listed)])
    raw = raw_rows(sources, student_order(sources, recipe), 6_200)
    assert [shard.weight for shard in sources.raw.shards] == [1.0, 3.0]
    counts = np.bincount(raw, minlength=17)
    np.testing.assert_allclose(counts[:10], 200, atol=2)  # 10 * 1 + 7 * 3 = 31
    np.testing.assert_allclose(counts[10:], 600, atol=2)


def test_equal_weights_change_nothing(world):
    listed = world.root / "weighed.list"
    listed.write_text("image_0.tsv weight=2\nimage_1.tsv weight=2\n")
    sources, recipe = opened(world, images=[str(listed)])
    assert same(student_order(sources, recipe), Shuffled(17, 0, "images"))


def test_weights_count_within_the_share_of_their_source(world):
    (world.root / "few").mkdir()
    more = grouped(world.root / "more.parquet", 20, 5)
    (world.root / "x.list").write_text("image_0.tsv\nimage_1.tsv weight=0.5\n")
    recipe = read(None, images=[str(world.root / "x.list"), more], source_weights=[0.4, 0.6])
    sources = Sources(open_rows(recipe.images, "image"))
    assert [shard.entry for shard in sources.raw.shards] == [0, 0, 1]
    order = student_order(sources, recipe)
    counts = np.histogram(order.take(0, 20_000)[0], bins=[0, 10, 17, 37])[0] / 20_000
    np.testing.assert_allclose(counts, [0.4 * 10 / 13.5, 0.4 * 3.5 / 13.5, 0.6], atol=0.001)


@pytest.mark.parametrize(
    ("kilobytes", "kind", "window"),
    [(10_000, Shuffled, None), (250, ShuffledBlocks, 5), (50, ShuffledBlocks, 2)],
)
def test_parquet_goes_in_blocks_where_its_groups_do_not_stay_in_memory(
    tmp_path, monkeypatch, kilobytes, kind, window
):
    little_memory(monkeypatch, kilobytes)
    recipe = read(None, images=[grouped(tmp_path / "a.parquet", 300, 10)])
    order = student_order(Sources(open_rows(recipe.images, "image")), recipe)
    assert type(order) is kind
    if window:
        rows = order.take(0, 300)[0]
        assert sorted(rows.tolist()) == list(range(300))
        blocks = {
            len(set(rows[start : start + window * 10] // 10))
            for start in range(0, 300, window * 10)
        }
        assert blocks == {window}
    assert (
        type(student_order(Sources(open_rows(recipe.images, "image")), read(None, shuffle="rows")))
        is Shuffled
    )


def test_blocks_read_each_row_group_about_once_an_epoch(tmp_path, monkeypatch):
    little_memory(monkeypatch, 200)
    found = [grouped(tmp_path / f"{i}.parquet", 100, 10, 100 * i) for i in range(3)]
    groups = []
    real = parquet.ParquetShard._read
    monkeypatch.setattr(
        parquet.ParquetShard, "_read", lambda *of: groups.append(of[1]) or real(*of)
    )
    seen = {}
    for shuffle in ("auto", "rows"):
        recipe = read(None, images=found, shuffle=shuffle)
        raw = open_rows(recipe.images, "image")
        rows = student_order(Sources(raw), recipe).take(0, 600)[0].tolist()
        groups.clear()
        assert all(raw[row].image == str(row).encode() + KILOBYTE for row in rows)
        seen[shuffle] = len(groups)
        assert sum(len(shard._kept) for shard in raw.shards) <= 20
    assert 30 <= seen["auto"] <= 60  # two epochs of 30 groups
    assert seen["rows"] > 150


def test_row_groups_of_files_that_are_gone_make_room(tmp_path, monkeypatch):
    little_memory(monkeypatch, 100)
    for i in range(5):
        raw = open_rows([grouped(tmp_path / f"{i}.parquet", 100, 10)], "image")
        for row in (*range(0, 100, 10), 95):
            assert raw[row].image == str(row).encode() + KILOBYTE
        assert 4 <= len(raw.shards[0]._kept) <= 10


@given(rows=st.integers(1, 60), group=st.integers(1, 20), data=st.data())
@settings(max_examples=30, deadline=None)
def test_selected_rows_and_parts_keep_the_blocks_of_their_file(tmp_path_factory, rows, group, data):
    path = grouped(tmp_path_factory.mktemp("blocks") / "a.parquet", rows, group)
    start = data.draw(st.integers(0, rows - 1))
    split = data.draw(st.sampled_from([None, "0:0.5"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subshards, "ROWS_PER_PART", data.draw(st.sampled_from([7, 1_000_000])))
        raw = open_rows([path], "image")
    try:
        raw = select(raw, Selection.parse(f"{start}:", split))
    except DataError:
        return  # no row hashes to the half
    for shard in raw.shards:
        starts, sizes = shard.blocks()
        numbers = [int(key[1:]) // group for key in shard.keys()]
        changes = [i for i in range(len(numbers)) if i == 0 or numbers[i] != numbers[i - 1]]
        assert starts.tolist() == changes and len(sizes) == len(starts) and (sizes > 0).all()
    order = student_order(Sources(raw), read(None, shuffle="blocks"))
    assert sorted(order.take(0, len(raw))[0].tolist()) == list(range(len(raw)))


def test_blocks_follow_row_groups_past_rows_without_features(world, monkeypatch):
    little_memory(monkeypatch, 8)
    path = grouped(world.root / "big.parquet", 30, 3)
    gone = {0, 1, 2, 7, 13, 29}
    world.cache("big", "image", [("big.parquet", 30)], quarantined=gone)
    sources, recipe = opened(world, images=[path], image_cache=str(world.root / "big"))
    order = student_order(sources, recipe)
    assert type(order) is ShuffledBlocks
    raw = raw_rows(sources, order, 24).tolist()
    assert sorted(raw) == sorted(set(range(30)) - gone)
    groups = [row // 3 for row in raw]
    left, windows = groups, []
    while left:  # two groups of up to 3 rows at a time, the group without a usable row is none
        here = dict.fromkeys(left)
        first = next(
            i for i in range(len(left) + 1) if i == len(left) or list(here).index(left[i]) > 1
        )
        windows.append(set(left[:first]))
        left = left[first:]
    assert (
        len(windows) == 5
        and set.union(*windows) == set(range(1, 10))
        and sum(map(len, windows)) == 9
    )


def test_each_list_of_a_mix_in_blocks_has_its_part_of_the_memory(tmp_path, monkeypatch):
    little_memory(monkeypatch, 400)
    found = [grouped(tmp_path / f"{i}.parquet", 300, 10, 300 * i) for i in range(2)]
    recipe = read(None, images=found, source_weights=[0.5, 0.5])
    order = student_order(Sources(open_rows(found, "image")), recipe)
    assert isinstance(order, WeightedOrder)
    rows = order.take(0, 100)[0]
    assert (
        len({row // 10 for row in rows.tolist() if row < 300}) <= 10
    )  # at most the windows of 5 of the first list


def refused(world, error, **over):
    sources, recipe = opened(world, **over)
    with pytest.raises(error) as found:
        student_order(sources, recipe)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_a_mix_that_does_not_fit_the_sources_is_refused(world):
    pattern = str(world.root / "image_*.tsv")
    said = refused(world, RecipeError, images=[pattern], source_weights=[0.5, 0.5])
    assert said.startswith(
        f"source_weights has 2 shares, --images names 1 sources ({pattern}). Fix: give one share"
        " for each"
    )
    assert "source_weights has 1 shares, --images names 2" in refused(
        world, RecipeError, images=both(world), source_weights=[1]
    )
    said = refused(
        world,
        DataError,
        images=both(world),
        source_weights=[0.5, 0.5],
        limit=10,
        image_cache=str(first_ten(world)),
    )
    assert said.startswith(f"--images {both(world)[1]}: holds no usable rows to mix.")
    said = refused(world, DataError, images=both(world), source_weights=[1, 1e-9])
    assert said.startswith(
        "image_1.tsv: its share of the mix is 1.0e-09, less than a row of 100,000."
    )


def first_ten(world):
    world.cache("ten", "image", [("image_0.tsv", 10)])
    return world.root / "ten"


@pytest.mark.parametrize("mix", [[1, 0], [1, -2.0], [float("nan")], [float("inf"), 1]])
def test_shares_that_are_not_positive_are_refused(mix):
    with pytest.raises(
        RecipeError,
        match=r"^'source_weights' is \[.*\]; expected positive numbers, one for each source$",
    ):
        read(None, source_weights=mix)
    with pytest.raises(
        RecipeError, match="'shuffle' is 'all'; expected one of 'auto', 'rows', 'blocks'"
    ):
        read(None, shuffle="all")


@pytest.mark.parametrize("asked", [{"source_weights": [1.0]}, {"shuffle": "blocks"}])
def test_pairs_by_key_cannot_be_mixed(world, asked):
    recipe = world.text_recipe(per_row=2, **asked)
    with pytest.raises(
        RecipeError, match="sentences without --text-cache are dealt by the images of their keys"
    ):
        student_order(open_sources(recipe, world.root / "out"), recipe)


@pytest.mark.parametrize("weight", ["0", "-1", "two", "nan", "inf", ""])
def test_weights_in_lists_are_positive_numbers(world, weight):
    (world.root / "x.list").write_text(f"# of two\nimage_0.tsv weight={weight}\nimage_1.tsv\n")
    with pytest.raises(
        DataError,
        match=rf"x\.list, line 2: weight '{weight}'; expected a positive number\. Fix: write e\.g\."
        " image_0",
    ):
        open_rows([world.root / "x.list"], "image")


def test_a_mix_survives_the_recipe_file(tmp_path):
    recipe = read(None, images=["a.list", "own/"], source_weights=[0.7, 0.3], shuffle="rows")
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    assert read(tmp_path / "recipe.toml") == recipe
