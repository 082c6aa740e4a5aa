"""``--tsv-file-list``: DIME-FM's own four files, checked against each other before they train
anything.
"""

import base64
import shutil

import numpy as np
import pytest

from dimefm.errors import CacheError, DataError, RecipeError
from dimefm.recipe import read
from dimefm.train.inputs.sources import open_sources

LISTS = ["image.list", "image_feat.list", "text.list", "text_feat.list"]


@pytest.fixture
def released(golden_tsv, tmp_path):
    """A copy of DIME-FM's own example that a test may spoil."""
    shutil.copytree(golden_tsv, tmp_path / "data")
    return tmp_path


def opened(released, lists=None, **more):
    recipe = read(
        None,
        dataroot=str(released / "data"),
        tsv_file_list=list(lists or LISTS),
        **{"crops": "free", **more},
    )
    return open_sources(recipe, released / "run")


def features(path, keys):
    """Write a feature TSV of one row per key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    vectors = np.random.default_rng(0).normal(size=(len(keys), 768)).astype("<f4")
    lines = [
        f"{key}\t{base64.b64encode(row.tobytes()).decode()}\n"
        for key, row in zip(keys, vectors, strict=True)
    ]
    path.write_text("".join(lines))
    path.with_suffix(".lineidx").unlink(missing_ok=True)


def keys_of(released, name):
    text = (released / f"data/GCC-3M/tsv/{name}.tsv").read_text()
    return [line.split("\t")[0] for line in text.splitlines()]


def test_four_entries_fit_and_text_shards_have_the_names_of_their_files(released):
    sources = opened(released)
    assert (len(sources), len(sources.text_caches[0])) == (7, 9)
    names = [info.source for info in sources.text_caches[0].manifest.shards]
    assert names == ["GCC-3M/tsv/text_00.tsv", "GCC-3M/tsv/text_01.tsv"]


def test_a_missing_text_file_is_refused(released):
    (released / "data/GCC-3M/tsv/text_01.tsv").unlink()
    with pytest.raises(DataError, match=r"text_01\.tsv: no such file"):
        opened(released)
    with pytest.raises(DataError, match=r"nowhere\.list: no such file"):
        opened(released, [*LISTS[:2], "nowhere.list", LISTS[3]])


def test_another_number_of_text_files_is_refused(released):
    (released / "data/text.list").write_text("GCC-3M/tsv/text_00.tsv\n")
    with pytest.raises(CacheError, match=r"text_feat\.list: 2 feature files for 1 text files"):
        opened(released)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda keys: keys[:-1], "4 rows|5 rows"),
        (lambda keys: [*keys[:2], "other", *keys[3:]], "row 2: .*'other'"),
    ],
)
def test_text_features_of_other_rows_are_refused_and_both_files_named(released, change, reason):
    features(
        released / "data/GCC-3M/vit_l_14_post_proj/text_00.feat.tsv",
        change(keys_of(released, "text_00")),
    )
    with pytest.raises(
        CacheError, match=rf"text_00\.feat\.tsv does not hold .* of .*text_00\.tsv: .*({reason})"
    ):
        opened(released)


def test_text_features_in_the_order_of_other_files_are_refused(released):
    lines = (released / "data/text_feat.list").read_text().split()
    (released / "data/text_feat.list").write_text("\n".join(reversed(lines)))
    with pytest.raises(
        CacheError, match=r"text_01\.feat\.tsv does not hold the features of .*text_00\.tsv"
    ):
        opened(released)


def test_of_three_entries_text_features_of_one_basename_in_two_folders_are_both_used(released):
    folder = released / "data/GCC-3M/vit_l_14_post_proj"
    for i in (0, 1):
        features(folder / f"{i}/text.tsv", [f"t{i}{n}" for n in range(3 + i)])
    (released / "data/text_feat.list").write_text(
        "".join(f"GCC-3M/vit_l_14_post_proj/{i}/text.tsv\n" for i in (0, 1))
    )
    cache = opened(released, [*LISTS[:2], LISTS[3]]).text_caches[0]
    assert len(cache) == 7
    assert [info.source for info in cache.manifest.shards] == [
        f"GCC-3M/vit_l_14_post_proj/{i}/text.tsv" for i in (0, 1)
    ]


@pytest.mark.parametrize(
    ("more", "flag"),
    [
        ({"images": ["x"]}, "--images"),
        ({"image_cache": "x"}, "--image-cache"),
        ({"text_cache": "x"}, "--text-cache"),
    ],
)
def test_two_ways_to_name_the_sources_are_refused(released, more, flag):
    with pytest.raises(
        RecipeError, match=f"--tsv-file-list names .*, and so does {flag}. Fix: leave one out"
    ):
        opened(released, **more)


def test_both_towers_cannot_learn_from_it(released):
    with pytest.raises(RecipeError, match="--tsv-file-list holds none: name pairs with --images"):
        opened(released, text="student", losses={"clip.contrastive": {"weight": 1.0}})
