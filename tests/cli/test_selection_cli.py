"""``--rows``, ``--split`` and ``--limit`` from extraction to scores: the same selection fits,
another does not.
"""

import json
import shutil

import pytest
from click.testing import CliRunner
from PIL import Image

from dimefm.cache import FeatureCache
from dimefm.cli import main
from dimefm.data.selection import within

TEACHER = "ResNet-mini-64/random:0"
PHOTOS = [f"photo{number}.png" for number in range(12)]
TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def run(*words):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert "Traceback" not in result.output
    return result


def done(*words):
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*words, code=1):
    result = run(*words)
    assert result.exit_code == code, result.output
    last = result.stderr.rstrip("\n").split("\n")[-1]
    assert last.startswith("Error: ")
    return last


def extract(root, out, *selection, kinds=("images", "texts")):
    sources = {"images": root / "photos", "texts": root / "captions.tsv"}
    given = [word for kind in kinds for word in (f"--{kind}", sources[kind])]
    return (
        "extract-features",
        "--teacher",
        TEACHER,
        "--device",
        "cpu",
        "--out",
        root / out,
        *given,
        *selection,
    )


def train(root, cache, out, *more):
    student = (
        "--student",
        root / "tiny.json",
        "--steps",
        2,
        "--batch-size",
        2,
        "--device",
        "cpu",
        "--crops",
        "free",
    )
    caches = ("--image-cache", root / cache / "images", "--text-cache", root / cache / "texts")
    return (
        "train",
        "--images",
        root / "photos",
        *caches,
        *student,
        "--use-pvl-loss",
        "--out",
        root / out,
        *more,
    )


def keys(folder):
    cache = FeatureCache(folder)
    return [key for info in cache.manifest.shards for key in cache.read(info)[0]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Twelve photos with two captions each, a cache of all of them, and one of the share 0:0.6."""
    root = tmp_path_factory.mktemp("made")
    (root / "photos").mkdir()
    for number, name in enumerate(PHOTOS):
        Image.new("RGB", (30, 24), (20 * number, 90, 255 - 20 * number)).save(
            root / "photos" / name
        )
    lines = [
        f"{name}#{again}\tphoto {name} again {again}\n" for again in range(2) for name in PHOTOS
    ]
    (root / "captions.tsv").write_text("".join(lines))
    (root / "tiny.json").write_text(json.dumps(TINY))
    done(*extract(root, "all"))
    done(*extract(root, "most", "--split", "0:0.6"))
    return root


@pytest.fixture
def place(made, tmp_path):
    shutil.copytree(made, tmp_path / "place")
    return tmp_path / "place"


def test_both_kinds_hold_the_photos_of_the_split_and_their_captions(made):
    chosen = [name for name in PHOTOS if within(name, (0, 0.6))]
    assert 3 <= len(chosen) <= 9
    assert sorted(keys(made / "most/images")) == sorted(chosen)
    assert sorted(keys(made / "most/texts")) == sorted(
        f"{name}#{again}" for name in chosen for again in range(2)
    )


@pytest.mark.parametrize(
    "selection",
    [("--split", "0:0.6"), ("--rows", "2:9"), ("--rows", ":10", "--split", "0.2:", "--limit", 3)],
)
def test_the_same_selection_trains(place, selection):
    done(*extract(place, "same", *selection))
    done(*train(place, "same", "run", *selection))
    cached = FeatureCache(place / "same/images")
    assert json.loads((place / "run/run.json").read_text())["rows"] == len(cached) < len(PHOTOS)
    assert done(*extract(place, "same", *selection)).count("finished already") == 2
    given = ("--images", place / "photos", "--device", "cpu", *selection)
    assert f"{len(cached)} rows encoded again" in done(
        "cache", "verify", place / "same/images", "--against-teacher", 99, *given
    )


@pytest.mark.parametrize("cache", ["most", "all"])
@pytest.mark.parametrize(
    "selection", [(), ("--split", "0:0.6"), ("--split", "0.6:1"), ("--limit", 5)]
)
def test_another_selection_than_the_caches_does_not_train(place, cache, selection):
    if selection == {"most": ("--split", "0:0.6"), "all": ()}[cache]:
        return
    line = refused(*train(place, cache, "run", *selection))
    assert "--rows, --split and --limit that the extraction had" in line
    assert "photos" in line


def test_as_many_but_other_rows_do_not_train(place):
    done(*extract(place, "some", "--rows", "0:5"))
    line = refused(*train(place, "some", "run", "--rows", "5:10"))
    assert (
        "the two are not the same rows. Fix: give the --rows, --split and --limit that the"
        " extraction had" in line
    )


def test_a_cache_is_not_gone_on_with_under_another_selection(place):
    line = refused(*extract(place, "most", "--split", "0:0.7", "--limit", 2))
    assert "already holds a cache made otherwise (rows of source photos: 2 against " in line


def test_a_cache_of_a_split_grows_by_the_same_split_of_further_sources(place):
    first, second = place / "one.tsv", place / "two.tsv"
    first.write_text("".join(f"{name}\tone {name}\n" for name in PHOTOS))
    second.write_text("".join(f"{name}\ttwo {name}\n" for name in reversed(PHOTOS)))
    words = (
        "extract-features",
        "--teacher",
        TEACHER,
        "--device",
        "cpu",
        "--out",
        place / "grown",
        "--split",
        "0.6:",
    )
    done(*words, "--texts", first)
    done(*words, "--texts", first, second, "--append")
    held = [name for name in PHOTOS if not within(name, (0, 0.6))]
    assert keys(place / "grown/texts") == [*held, *reversed(held)]


def test_verifying_without_the_selection_names_it(place):
    line = refused(
        "cache",
        "verify",
        place / "most/images",
        "--against-teacher",
        3,
        "--images",
        place / "photos",
        "--device",
        "cpu",
    )
    assert "with its --dataroot, --rows, --split and --limit" in line


def test_an_estimate_counts_the_selected_rows(place):
    said = done(*extract(place, "none", "--limit", 4, "--estimate"))
    assert "images: 4 rows in 1 shard" in said and "texts: 4 rows in 1 shard" in said
    assert not (place / "none").exists()


def test_a_recipe_may_say_the_selection_and_flags_win(place):
    (place / "r.toml").write_text('split = "0.6:1"\nlimit = 3\n')
    done(*extract(place, "some", "--split", "0.6:1", "--limit", 2))
    done(*train(place, "some", "run", "--recipe", place / "r.toml", "--limit", 2))
    assert 'split = "0.6:1"\nlimit = 2\n' in (place / "run/recipe.toml").read_text()


def test_a_text_tower_learns_from_the_sentences_of_the_split(place):
    words = (
        "--texts",
        place / "captions.tsv",
        "--text",
        f"student:{place / 'tiny.json'}",
        "--device",
        "cpu",
    )
    words += ("--image-cache", place / "all/images", "--steps", 2, "--batch-size", 2)
    contrastive = ("--no-vl-loss", "--set", 'losses={"clip.contrastive"={weight=1.0}}')
    done("train", *words, *contrastive, "--split", "0:0.6", "--out", place / "pairs")
    chosen = [name for name in PHOTOS if within(name, (0, 0.6))]
    assert json.loads((place / "pairs/run.json").read_text())["rows"] == len(chosen)
    words += ("--text-cache", place / "most/texts", "--use-pvl-loss", "--out")
    done("train", *words, place / "texts", "--split", "0:0.6")
    assert json.loads((place / "texts/run.json").read_text())["rows"] == 2 * len(chosen)
    line = refused("train", *words, place / "wrong")
    assert "--rows, --split and --limit that the extraction had" in line


@pytest.mark.parametrize("selection", [("--split", "0:0.5"), ("--rows", "0:5"), ("--limit", 5)])
def test_dime_fms_form_takes_no_selection(place, selection):
    line = refused(
        "train", "--tsv-file-list", "a", "b", "c", "d", "--out", place / "run", *selection
    )
    assert line.startswith(f"Error: {selection[0]} ")
    assert "--tsv-file-list takes feature files up whole. Fix: leave the selection out" in line


def test_prompts_from_labels_take_no_selection(place):
    line = refused(
        "train",
        "--images",
        place / "photos",
        "--text",
        "student",
        "--captions",
        "label",
        "--limit",
        5,
        "--no-vl-loss",
        "--set",
        'losses={"clip.contrastive"={weight=1.0}}',
        "--out",
        place / "run",
    )
    assert "--limit 5: --captions label reads the labels of whole files" in line


@pytest.mark.parametrize(
    ("selection", "code", "message"),
    [
        (("--split", "0.9"), 1, "--split 0.9: expected A:B with 0 <= A < B <= 1"),
        (("--rows", "5:2"), 1, "--rows 5:2: expected A:B, row numbers from 0 with A < B"),
        (
            ("--rows", "12:"),
            1,
            "--rows 12:: selects none of the 12 rows of photos. Fix: select more of them",
        ),
        (("--limit", 0), 2, "--limit"),
    ],
)
def test_what_selects_nothing_is_refused_by_both_commands(place, selection, code, message):
    assert message in refused(*extract(place, "none", *selection, kinds=["images"]), code=code)
    assert message in refused(*train(place, "all", "run", *selection), code=code)
    assert not (place / "none").exists() and not (place / "run/run.json").exists()


def test_retrieval_is_scored_on_a_split_and_says_so(place):
    caches = ("--images", place / "all/images", "--texts", place / "all/texts")
    said = done("eval", "retrieval", *caches, "--split", "0.6:1", "--out", place / "scores")
    held = [name for name in PHOTOS if not within(name, (0, 0.6))]
    note = f"Only the {len(held)} images and {2 * len(held)} texts in split 0.6:1.0 were compared."
    assert note in said and note in (place / "scores/report.md").read_text()
    found = json.loads((place / "scores/scores.json").read_text())
    assert found["split"] == [0.6, 1.0]
    assert [score["candidates"] for score in found["scores"]] == [len(held), 2 * len(held)]
    assert "expected A:B with 0 <= A < B <= 1" in refused(
        "eval", "retrieval", *caches, "--split", "60:100"
    )
    assert "in split" not in done("eval", "retrieval", *caches, "--out", place / "scores")
    assert json.loads((place / "scores/scores.json").read_text())["split"] is None


def test_retrieval_on_a_split_equals_that_of_caches_of_the_split(place):
    for out, *selection in (("whole", "--split", "0:0.6"), ("part",)):
        cache = "all" if out == "whole" else "most"
        done(
            "eval",
            "retrieval",
            "--images",
            place / cache / "images",
            "--texts",
            place / cache / "texts",
            *selection,
            "--out",
            place / out,
        )
    whole, part = (
        json.loads((place / out / "scores.json").read_text()) for out in ("whole", "part")
    )
    assert whole["scores"] == part["scores"]


def test_a_split_that_a_cache_has_no_rows_of_is_refused(place):
    most = place / "most"
    line = refused(
        "eval",
        "retrieval",
        "--images",
        most / "images",
        "--texts",
        most / "texts",
        "--split",
        "0.6:1",
    )
    assert "none of its" in line and "in split 0.6:1.0" in line
