"""``--tsv-file-list``: DIME-FM's own four files, checked against each other before they train
anything.
"""

import base64
import shutil

import numpy as np
import pytest

import dimefm
from dimefm.cache import EncoderCard, FeatureCache
from dimefm.data import open_rows
from dimefm.errors import CacheError, DataError, ModelError, RecipeError
from dimefm.extract.extract import Settings, extract
from dimefm.models.loading import name_of
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
    with pytest.raises(
        RecipeError, match="--tsv-file-list holds none. Fix: name pairs with --images"
    ):
        opened(released, text="student", losses={"clip.contrastive": {"weight": 1.0}})


@pytest.mark.parametrize("name", ["unknown", "unknown (DIME-FM feature TSV)", "unknown ()"])
def test_a_teacher_that_no_file_names_is_asked_for(name):
    card = EncoderCard(name, None, 8, 100.0)
    with pytest.raises(ModelError, match="^run: .*unknown teacher.*Fix: name .* with --teacher$"):
        name_of(card, "run", "--teacher")


@pytest.mark.parametrize("name", ["unknown-b/32", "ViT-B-32/openai", "my unknown"])
def test_a_teacher_with_a_name_is_loaded_by_it(name):
    assert name_of(EncoderCard(name, None, 8, 100.0), "run", "--teacher") == name


def test_a_run_on_their_features_asks_for_its_text_tower(released):
    dimefm.train(
        None,
        released / "run",
        dataroot=str(released / "data"),
        tsv_file_list=LISTS,
        student="ResNet-mini-32",
        steps=1,
        batch_size=4,
        warmup=0,
        device="cpu",
    )
    with pytest.raises(ModelError, match="unknown teacher.*Fix: name the teacher with --text-mod"):
        dimefm.load(released / "run", device="cpu")


FOLDER = "GCC-3M"
FILES = [
    *(f"{FOLDER}/tsv/image_0{number}.tsv" for number in range(2)),
    *(f"{FOLDER}/vit_l_14_post_proj/image_0{number}.feat.tsv" for number in range(2)),
    *(f"{FOLDER}/tsv/text_0{number}.tsv" for number in range(2)),
    *(f"{FOLDER}/vit_l_14_post_proj/text_0{number}.feat.tsv" for number in range(2)),
]


@pytest.mark.parametrize(
    "entries",
    [
        FILES,
        sorted(FILES),
        FILES[::2],
        [file for file in FILES if "/text_" not in file or "feat" in file],
        [FILES[6], FILES[0], FILES[2]],
    ],
    ids=["all", "as the shell lists them", "one of each", "no raw texts", "three in any order"],
)
def test_tsvs_one_by_one_are_told_by_their_names(released, entries):
    sources = opened(released, entries)
    shards = len([file for file in entries if "image" in file]) // 2
    assert len(sources) == (7 if shards == 2 else 4)
    assert len(sources.image_caches[0].manifest.shards) == shards
    texts = [file for file in entries if "text" in file and "feat" in file]
    assert len(sources.text_caches[0]) == (9 if len(texts) == 2 else 5)


@pytest.mark.parametrize("order", [(1, 0, 2, 3), (2, 0, 1, 3), (3, 0, 2, 1), (0, 2, 1, 3)])
def test_lists_in_another_order_are_refused_with_the_right_one(released, order):
    with pytest.raises(CacheError, match="Fix: list image, image_feat, text, text_feat in this"):
        opened(released, [LISTS[place] for place in order])


def test_names_that_tell_nothing_are_refused_unless_they_are_four(released):
    folder = released / "data"
    for number, file in enumerate(FILES[::2]):
        shutil.copy(folder / file, folder / f"{number}.tsv")
    names = [f"{number}.tsv" for number in range(4)]
    assert len(opened(released, names)) == 4
    with pytest.raises(RecipeError, match="has 5 entries.*Fix: name files as DIME-FM does"):
        opened(released, [*names, names[0]])


# Feature TSVs that dimefm wrote


@pytest.fixture
def own(tmp_path, picture, tiny_teacher):
    """Return a folder with raw TSVs, one bad row each, and the caches that dimefm made of them."""
    for kind in ("image", "text"):
        for number in range(2):
            lines = []
            for row in range(5):
                value = base64.b64encode(picture(10 * number + row)).decode()
                if kind == "text":
                    value = f"sentence {row} of {number}"
                if row == 1 + number:
                    value = "" if kind == "text" else "bm8gaW1hZ2U="
                lines.append(f"k{number}{row}\t{value}\n")
            (tmp_path / f"{kind}_{number}.tsv").write_text("".join(lines))
        rows = open_rows([str(tmp_path / f"{kind}_*.tsv")], kind, input_format="tsv")
        extract(tiny_teacher, rows, kind, tmp_path / f"{kind}s", Settings(format="tsv"))
        for name, pattern in ((kind, f"{kind}_*.tsv"), (f"{kind}_feat", f"{kind}s/*.feat.tsv")):
            files = sorted(path.relative_to(tmp_path) for path in tmp_path.glob(pattern))
            text = "".join(f"{file.as_posix()}\n" for file in files)
            (tmp_path / f"{name}.list").write_text(text)
    return tmp_path


def opened_own(root, lists=LISTS, out="run"):
    recipe = read(None, dataroot=str(root), tsv_file_list=list(lists), crops="free")
    return open_sources(recipe, root / out)


@pytest.mark.parametrize("lists", [LISTS, [*LISTS[:2], LISTS[3]]])
def test_tsvs_of_our_own_keep_their_teacher_and_their_quarantined_rows(own, tiny_teacher, lists):
    sources = opened_own(own, lists)
    assert len(sources) == 8
    for cache in (*sources.image_caches, *sources.text_caches):
        card = cache.manifest.encoder
        assert card == tiny_teacher.card
        assert card.logit_scale == pytest.approx(float(tiny_teacher.card.logit_scale))
        assert cache.manifest.normalized
        assert [info.bad for info in cache.manifest.shards] == [(1,), (2,)]
    images = FeatureCache(own / "images")
    usable = np.arange(8)
    raw_rows, (columns,) = sources.locate(usable)
    np.testing.assert_array_equal(sources.image_caches[0][columns], images[:])
    assert raw_rows.tolist() == [0, 2, 3, 4, 5, 6, 8, 9]
    assert len(opened_own(own, lists)) == 8


def test_other_raw_rows_than_they_were_made_from_are_refused(own):
    lines = (own / "image_0.tsv").read_text().splitlines(keepends=True)
    (own / "image_0.tsv").write_text("".join([lines[0], *lines[3:1:-1], lines[1], lines[4]]))
    (own / "image_0.lineidx").unlink(missing_ok=True)
    with pytest.raises(CacheError, match="image_0"):
        opened_own(own)


def test_a_tsv_that_was_changed_is_refused(own):
    path = own / "images/image_0.feat.tsv"
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    with pytest.raises(CacheError, match=r"image_0\.feat\.tsv: SHA-256"):
        opened_own(own)


def test_lists_in_another_order_and_mixed_files_are_refused(own):
    with pytest.raises(CacheError, match="holds text features, image features are needed"):
        opened_own(own, [LISTS[0], LISTS[3], LISTS[2], LISTS[1]])
    (own / "elsewhere").mkdir()
    shutil.copy(own / "images/image_1.feat.tsv", own / "elsewhere")
    (own / "image_feat.list").write_text("images/image_0.feat.tsv\nelsewhere/image_1.feat.tsv\n")
    with pytest.raises(CacheError, match=r"has no manifest\.json next to it"):
        opened_own(own)


def test_a_manifest_of_something_else_is_none(released):
    (released / "data/manifest.json").write_text('{"name": "a web page"}')
    assert len(opened(released)) == 7
