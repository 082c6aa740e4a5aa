"""``dimefm train``: what is refused, with which words and exit code, and what flags mean."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from dimefm.cli import main
from dimefm.errors import DimefmError
from dimefm.models.encoder import weights_sha256
from dimefm.models.loading import load_encoder
from dimefm.recipe import read

FROM_SCRATCH = Path(__file__).parents[2] / "pipelines/clip_from_scratch.toml"
TEACHER = "ResNet-mini-64/random:0"


def dimefm(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def refusal(*words, code=1):
    """Return the last line of a command that ends with ``code``, without a traceback."""
    result = dimefm(*words)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    last = result.stderr.rstrip("\n").split("\n")[-1]
    assert last.startswith("Error: "), result.stderr
    return last


def extract(teacher, root, out, *words):
    result = dimefm(
        "extract-features", "--teacher", teacher, "--device", "cpu", "--out", root / out, *words
    )
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Images, sentences, and caches of two teachers, made by the tool itself."""
    root = tmp_path_factory.mktemp("made")
    (root / "photos").mkdir()
    for n in range(6):
        Image.new("RGB", (30, 24), (40 * n, 90, 255 - 40 * n)).save(root / "photos" / f"{n}.png")
    (root / "sentences.txt").write_text("".join(f"this is sentence number {n}\n" for n in range(8)))
    config = {
        "embed_dim": 8,
        "vision_cfg": {
            "image_size": 16,
            "layers": 1,
            "width": 16,
            "head_width": 8,
            "patch_size": 8,
        },
    }
    (root / "tiny.json").write_text(json.dumps(config))
    sources = ("--images", root / "photos", "--texts", root / "sentences.txt")
    extract(TEACHER, root, "cache", *sources)
    extract("ResNet-mini-64/random:1", root, "other", *sources)
    return root


@pytest.fixture
def place(made, tmp_path):
    """A copy of it that a test may spoil."""
    shutil.copytree(made, tmp_path / "place")
    return tmp_path / "place"


def words(
    place, *more, images="photos", image_cache="cache/images", text_cache="cache/texts", out="run"
):
    """Return a train command that works, with parts replaced (None: left out)."""
    given = [
        "train",
        "--student",
        place / "tiny.json",
        "--steps",
        2,
        "--batch-size",
        3,
        "--device",
        "cpu",
        "--crops",
        "free",
    ]
    for flag, value in (
        ("--images", images),
        ("--image-cache", image_cache),
        ("--text-cache", text_cache),
    ):
        given += [] if value is None else [flag, place / value]
    return [*given, "--out", place / out, *more]


def losses(place, *more):
    """Return the losses of the recipe that a command resolves to."""
    result = dimefm(*words(place, *more))
    assert result.exit_code == 0, result.output
    return tomllib.loads((place / "run/recipe.toml").read_text())["losses"]


def test_the_released_losses_are_the_default(place):
    assert losses(place, "--use-pvl-loss") == {
        "dime.vl": {"weight": 0.7},
        "dime.pvl": {"weight": 0.3},
    }
    assert (place / "run/run.json").exists()
    assert len((place / "run/log.jsonl").read_text().splitlines()) == 1


def test_flags_set_weights_and_temperatures(place):
    flags = (
        "--use-pvl-loss",
        "--w-vl",
        0.5,
        "--t-pvl",
        2,
        "--use-udist-loss",
        "--w-udist",
        0.1,
        "--t-udist",
        4,
    )
    assert losses(place, *flags) == {
        "dime.vl": {"weight": 0.5},
        "dime.pvl": {"weight": 0.3, "temperature": 2.0},
        "dime.udist": {"weight": 0.1, "temperature": 4.0},
    }


def test_set_losses_replaces_those_of_the_recipe(place):
    (place / "r.toml").write_text(
        '[losses]\n"dime.vl" = { weight = 2.0 }\n"dime.pvl" = { weight = 3.0 }\n'
    )
    settings = ("--set", 'losses={"dime.pvl"={weight=0.5,temperature=2.0}}')
    assert losses(place, "--recipe", place / "r.toml", *settings) == {
        "dime.pvl": {"weight": 0.5, "temperature": 2.0}
    }


def test_without_a_switch_only_vl_is_used_at_its_own_weight(place):
    assert losses(place) == {"dime.vl": {"weight": 0.7}}


def test_vl_can_be_left_out(place):
    assert losses(place, "--no-vl-loss", "--use-pvl-loss") == {"dime.pvl": {"weight": 0.3}}


def test_flags_win_over_the_recipe(place):
    (place / "r.toml").write_text(
        'lr = 0.5\n[losses]\n"dime.vl" = { weight = 2.0 }\n"dime.pvl" = { weight = 3.0 }\n'
    )
    assert losses(place, "--recipe", place / "r.toml", "--w-pvl", 4, "--lr", 0.25) == {
        "dime.vl": {"weight": 2.0},
        "dime.pvl": {"weight": 4.0},
    }
    assert tomllib.loads((place / "run/recipe.toml").read_text())["lr"] == 0.25


def test_the_last_line_on_stdout_names_the_run_folder(place):
    result = dimefm(*words(place))
    assert result.stdout.strip().endswith(str(place / "run"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--use-udist-loss",),
            (
                "--use-udist-loss with weight 0 would do nothing (DIME-FM's default for it). Fix:"
                " set --w-udist"
            ),
        ),
        (("--w-pvl", 0.3), "--w-pvl does nothing without --use-pvl-loss"),
        (("--t-pvl", 2.0), "--t-pvl does nothing without --use-pvl-loss"),
        (("--w-udist", 0.3), "--w-udist does nothing without --use-udist-loss"),
        (("--no-vl-loss", "--w-vl", 1), "--w-vl does nothing without --use-vl-loss"),
        (("--no-vl-loss",), "no loss is given"),
        (("--use-pvl-loss", "--w-pvl", -1), "loss 'dime.pvl' has weight -1"),
        (
            ("--use-pvl-loss", "--t-pvl", 0),
            "loss 'dime.pvl': temperature is 0.0; expected a positive number",
        ),
        (("--steps", 0), "'steps' is 0; expected a positive number"),
        (("--batch-size", -3), "'batch_size' is -3; expected a positive number"),
        (("--lr", "nan"), "'lr' is nan; expected a positive number"),
        (
            ("--small",),
            (
                "--small asks for a [small] table, which only a recipe file has. Fix: name one with"
                " --recipe"
            ),
        ),
        (("--device", "cuda:99"), "--device cuda:99: this machine has"),
        (
            ("--student", "ResNet-mini-46"),
            "unknown architecture 'ResNet-mini-46': did you mean 'ResNet-mini-64'?",
        ),
        (("--student", "none.json"), "none.json: cannot be read as an open_clip config"),
        (
            ("--set", "crop_scal=[0.5,1.0]"),
            "--set crop_scal: unknown key: did you mean 'crop_scale'?",
        ),
        (("--set", "crop_scale"), "--set crop_scale: expected KEY=VALUE"),
        (("--set", "view=free"), "e.g. crop_scale=[0.5,1.0], and words in quotes ("),
        (("--set", "small={steps=1}"), "--set small: that table is the recipe file's"),
        (("--set", "path='x'"), "--set path: unknown key: known: "),
        (("--set", "losses=3"), "'losses' is 3; expected dict"),
        (("--set", "losses={'dime.vl'=3}"), "loss 'dime.vl' is 3; expected a table with a weight"),
        (
            ("--student", "timm/test_vit", "--image-size", 47),
            "timm/test_vit at 47 pixels: cannot encode an image: Input",
        ),
        (
            ("--student", "timm/levit_128s", "--image-size", 50),
            "timm/levit_128s at 50 pixels: cannot encode an image: ",
        ),
        (
            ("--student", "timm/test_resnet", "--image-size", 32, "--batch-size", 1),
            "cannot learn from 1 image a step",
        ),
        (("--student", "timm/tset_vit"), "unknown timm model 'tset_vit': did you mean 'test_vit'?"),
        (("--text", "student"), "holds 6 images and no NAME.txt next to any NAME.jpg"),
        (("--dataroot", "/no/such/root"), "--dataroot /no/such/root: there is no such folder"),
        (("--input-format", "hdf"), "unknown input format 'hdf'"),
    ],
)
def test_flags_that_cannot_be_are_refused_in_one_line(place, flags, message):
    assert message in refusal(*words(place, *flags))
    assert not (place / "run/run.json").exists()
    assert not (place / "run/log.jsonl").exists()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"images": None}, "no images are given. Fix: name them with --images"),
        ({"images": "nowhere"}, "nowhere: no such file or folder"),
        (
            {"image_cache": None},
            "--image-cache is not given; the student learns from cached teacher features",
        ),
        ({"text_cache": None}, "--text-cache is not given"),
        ({"image_cache": "cache"}, "cache: no manifest.json, so no cache. Fix: name "),
        ({"image_cache": "cache"}, "/cache/images, if that is meant"),
        ({"text_cache": "cache"}, "/cache/texts, if that is meant"),
        ({"image_cache": "nowhere"}, "nowhere: no manifest.json, so no cache. Fix: check the path"),
        (
            {"image_cache": "cache/texts"},
            "cache/texts: holds text features, image features are needed. Fix: swap the folders",
        ),
        (
            {"text_cache": "cache/images"},
            "cache/images: holds image features, text features are needed. Fix: swap the folders",
        ),
        ({"text_cache": "other/texts"}, "were made by different teachers (weights_sha256: "),
        ({"image_cache": "other/images"}, "extract one of them again with the other's teacher"),
    ],
)
def test_sources_that_do_not_fit_are_refused_in_one_line(place, parts, message):
    assert message in refusal(*words(place, "--use-pvl-loss", **parts))
    assert not (place / "run/run.json").exists()


def test_an_unfinished_cache_is_refused(place):
    (place / "cache/images/.partial").mkdir()
    (place / "cache/images/.partial/plan.json").write_text("{}")
    (place / "cache/images/manifest.json").unlink()
    assert (
        "an unfinished cache. Fix: run the same extract-features command again to finish it"
        in refusal(*words(place))
    )


def test_an_interrupted_extraction_never_trains(place, monkeypatch):
    """The real thing: extraction is interrupted while it writes its first shard."""
    from dimefm.cache import CacheWriter

    def interrupted(self, *rest):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "write", interrupted)
        result = dimefm(
            "extract-features",
            "--teacher",
            TEACHER,
            "--images",
            place / "photos",
            "--device",
            "cpu",
            "--out",
            place / "half",
        )
    assert result.exit_code == 130
    assert "unfinished cache" in refusal(*words(place, image_cache="half/images"))


def test_a_wrong_key_names_the_row(place):
    (place / "photos/3.png").rename(place / "photos/3b.png")
    line = refusal(*words(place))
    assert "row 3: the raw row has key '3b.png', its feature row in" in line
    assert "has '3.png'" in line


def test_a_source_that_has_grown_is_refused(place):
    shutil.copy(place / "photos/3.png", place / "photos/9.png")
    line = refusal(*words(place))
    assert "has no features for a shard named photos/added-00000" in line


def test_another_folder_is_refused(place):
    (place / "photos").rename(place / "pictures")
    assert "has no features for a shard named pictures" in refusal(*words(place, images="pictures"))


def test_a_shard_that_is_cut_short_is_refused(place):
    shard = next((place / "cache/images").rglob("*.h5"))
    shard.write_bytes(shard.read_bytes()[:-40])
    line = refusal(*words(place))
    assert str(shard) in line
    assert "cut short" in line


def test_a_manifest_that_was_edited_is_refused(place):
    manifest = place / "cache/texts/manifest.json"
    manifest.write_text(manifest.read_text().replace('"dim": 128', '"dim": 64'))
    assert "cache/texts/manifest.json" in refusal(*words(place))


def test_images_that_cannot_be_read_any_more_are_refused(place):
    for path in (place / "photos").iterdir():
        path.write_bytes(b"nothing")
    line = refusal(*words(place))
    assert "its content has digest" in line
    assert "the source has changed since, extract it again" in line


def test_a_finished_run_is_not_overwritten(place):
    assert dimefm(*words(place)).exit_code == 0
    before = (place / "run/image_tower.safetensors").read_bytes()
    assert "finished already; nothing to do" in dimefm(*words(place, "--resume")).output
    for more in ((), ("--resume", "--seed", 1), ("--seed", 1)):
        line = refusal(*words(place, *more))
        assert "holds a finished run already. Fix: choose another --out" in line
    assert (place / "run/image_tower.safetensors").read_bytes() == before


def test_a_recipe_with_an_unknown_key_names_file_and_nearest_key(place):
    (place / "r.toml").write_text("leraning_rate = 1.0\nbatchsize = 3\n")
    line = refusal(*words(place, "--recipe", place / "r.toml"))
    assert f"{place / 'r.toml'}: unknown recipe key 'leraning_rate'" in line
    (place / "r.toml").write_text("batchsize = 3\n")
    assert "did you mean 'batch_size'?" in refusal(*words(place, "--recipe", place / "r.toml"))


def test_a_recipe_with_an_unknown_loss_or_option_is_refused(place):
    for text, message in (
        ('"dime.pvll" = { weight = 1.0 }', "unknown loss 'dime.pvll': did you mean 'dime.pvl'?"),
        ('"dime.pvl" = { weight = 1.0, temprature = 2 }', "did you mean 'temperature'?"),
        ('"clip.contrastive" = { weight = 1.0 }', "loss 'clip.contrastive' needs pairs"),
    ):
        (place / "r.toml").write_text(f"[losses]\n{text}\n")
        assert message in refusal(*words(place, "--recipe", place / "r.toml"))


def test_pairs_have_no_teacher_for_dime_fms_losses(place):
    flags = ("--recipe", FROM_SCRATCH, "--use-pvl-loss")
    line = refusal(*words(place, *flags, image_cache=None, text_cache=None))
    assert "loss 'dime.pvl' needs teacher" in line


def test_made_sentences_have_no_cache(place):
    line = refusal(*words(place, "--recipe", FROM_SCRATCH))
    assert "no --text-cache holds. Fix: leave the caches out, or say --captions text" in line


def test_an_out_below_a_file_is_refused(place):
    assert "cannot be made (Not a directory). Fix: choose another --out" in refusal(
        *words(place, out="tiny.json/run")
    )


@pytest.mark.parametrize("lists", [["a"], ["a", "b"], ["a", "b", "c", "d", "e"]])
def test_dime_fms_form_takes_four_lists(place, lists):
    line = refusal("train", "--tsv-file-list", *lists, "--out", place / "run", "--use-pvl-loss")
    assert (
        f"--tsv-file-list has {len(lists)} entries; expected image, image_feat, text, text_feat"
        in line
    )


@pytest.mark.parametrize(
    "more",
    [
        ("--stepz", 3),
        ("--steps", "three"),
        ("--crops", "left"),
        ("--recipe", "none.toml"),
        ("--precision", "fp8"),
    ],
)
def test_bad_usage_ends_with_2(place, more):
    assert more[0] in refusal(*words(place, *more), code=2)


def test_a_missing_out_is_bad_usage():
    assert "--out" in refusal("train", code=2)


def test_a_student_file_without_towers_is_refused(place):
    (place / "s.json").write_text('{"embed_dim": 8, "vision_cfg": 3}')
    assert "s.json: no table 'vision_cfg'; expected an open_clip" in refusal(
        *words(place, "--student", place / "s.json")
    )


def test_a_misspelt_command_is_bad_usage_with_the_nearest_one():
    assert "no command 'trian': did you mean 'train'?" in refusal("trian", code=2)


def test_debug_shows_where_an_error_came_from(place):
    result = dimefm("--debug", *words(place, image_cache="nowhere"))
    assert isinstance(result.exception, DimefmError)


def test_two_teachers_train_one_student_that_speaks_the_firsts_language(place):
    both = []
    for kind in ("image", "text"):
        both += [f"--{kind}-cache", place / f"cache/{kind}s", place / f"other/{kind}s"]
    result = dimefm(*words(place, *both, image_cache=None, text_cache=None))
    assert result.exit_code == 0, result.output
    record = json.loads((place / "run/run.json").read_text())
    assert [teacher["name"] for teacher in record["teachers"]] == [
        TEACHER,
        "ResNet-mini-64/random:1",
    ]
    encoder = load_encoder(str(place / "run"), "cpu")
    assert (
        weights_sha256(encoder.text_model)
        == record["teacher"]["weights_sha256"]
        == record["teachers"][0]["weights_sha256"]
    )
    line = refusal(*words(place, *both[:3], image_cache=None, out="odd"))
    assert "--image-cache names 2 caches and --text-cache 1" in line


def test_free_views_must_be_said_and_dime_fms_form_says_them(place):
    command = [word for word in words(place) if word not in ("--crops", "free")]
    assert "say --crops free to show the student crops that the teacher did not see" in refusal(
        *command
    )
    lists = {"tsv_file_list": ("a.list", "b.list", "c.list", "d.list")}
    (place / "r.toml").write_text('crops = "center"\n')
    for path, more, crops in (
        (None, {}, "free"),
        (place / "r.toml", {}, "center"),
        (None, {"crops": "replay"}, "replay"),
    ):
        given = {**lists, **more}
        assert read(path, **given).crops == crops


@pytest.mark.parametrize("separator", ["\t", ";"])
def test_tables_train_with_the_columns_and_the_dataroot_that_they_were_extracted_with(
    place, separator
):
    """The table lies elsewhere and names its images relative to the data root."""
    (place / "tables").mkdir()
    lines = [
        separator.join(("nr", "bild")),
        *(separator.join((f"n{n}", f"photos/{n}.png")) for n in range(6)),
    ]
    (place / "tables/x.csv").write_text("\n".join(lines) + "\n")
    columns = ["--dataroot", place, "--image-column", "bild", "--key-column", "nr"]
    columns += [] if separator == "\t" else ["--separator", separator]
    extract(TEACHER, place, "table", "--images", place / "tables/x.csv", *columns)
    result = dimefm(*words(place, *columns, images="tables/x.csv", image_cache="table/images"))
    assert result.exit_code == 0, result.output
    recipe = tomllib.loads((place / "run/recipe.toml").read_text())
    assert (recipe["image_column"], recipe["key_column"]) == ("bild", "nr")
    assert json.loads((place / "run/run.json").read_text())["rows"] == 6


def test_dime_fms_form_on_the_command_line_takes_the_place_of_the_recipes_sources(place):
    (place / "r.toml").write_text('images = ["photos"]\nimage_cache = "a"\ntext_cache = "b"\n')
    lists = ("--tsv-file-list", "image.list", "image_feat.list", "text.list", "text_feat.list")
    command = words(
        place, "--recipe", place / "r.toml", *lists, images=None, image_cache=None, text_cache=None
    )
    assert "image.list: no such file or folder" in refusal(*command)
    assert "and so does --images. Fix: leave one out" in refusal(*command, "--images", "photos")
