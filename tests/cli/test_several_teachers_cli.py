"""dimefm extract-features with several teachers, as users meet it; and a student that learns from
all of them.
"""

import json
import re

import pytest
from click.testing import CliRunner

from dimefm.cache import FeatureCache
from dimefm.cli import main
from dimefm.errors import RecipeError
from dimefm.extract.job import folders_of

A, B = "ResNet-mini-64/random:0", "RN-mini-32/random:1"
FOLDERS = ["ResNet-mini-64_random_0", "RN-mini-32_random_1"]


@pytest.fixture
def raw(tmp_path, picture):
    """Return a folder: photos/{0..5}.png, s.txt."""
    (tmp_path / "photos").mkdir()
    for i in range(6):
        (tmp_path / "photos" / f"{i}.png").write_bytes(picture(i))
    (tmp_path / "s.txt").write_text("".join(f"sentence {i}\n" for i in range(6)))
    return tmp_path


def dimefm(*words, code=0):
    """Run the command line; return its output, with errors."""
    result = CliRunner().invoke(main, [*map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    return result.output


def extract(raw, out, *flags, teachers=(A, B), **options):
    words = ("--images", raw / "photos", "--texts", raw / "s.txt", "--device", "cpu", "--out", out)
    return dimefm("extract-features", "--teacher", *teachers, *words, *flags, **options)


def test_one_pass_makes_what_two_commands_make_and_a_student_learns_from_both(raw, digests):
    output = extract(raw, raw / "both")
    assert [line.split()[1] for line in output.splitlines() if line.startswith("teacher ")] == [
        A,
        B,
    ]
    assert output.count("6 rows in = 6 rows out + 0 quarantined") == 4
    for spec, folder in zip((A, B), FOLDERS, strict=True):
        extract(raw, raw / "one" / folder, teachers=(spec,))
    assert digests(raw / "both") == digests(raw / "one")
    assert sorted(path.name for path in (raw / "both").iterdir()) == sorted(FOLDERS)

    caches = [[raw / "both" / folder / kind for folder in FOLDERS] for kind in ("images", "texts")]
    assert {FeatureCache(cache).manifest.encoder.name for cache in caches[0]} == {A, B}
    dimefm(
        *(
            "train",
            "--images",
            raw / "photos",
            "--image-cache",
            *caches[0],
            "--text-cache",
            *caches[1],
        ),
        *(
            "--student",
            "ResNet-mini-32",
            "--steps",
            1,
            "--batch-size",
            2,
            "--crops",
            "center",
            "--device",
            "cpu",
        ),
        *("--out", raw / "run"),
    )
    (line,) = (json.loads(line) for line in (raw / "run/log.jsonl").read_text().splitlines())
    assert line["step"] == 1 and line["total"] > 0


def test_the_option_may_be_repeated_and_the_same_command_again_is_finished(raw, digests):
    extract(raw, raw / "out")
    before = digests(raw / "out")
    output = extract(raw, raw / "out", teachers=(A, "--teacher", B))
    assert output.count("finished already, 6 rows; nothing to do") == 4
    assert digests(raw / "out") == before


def test_one_teacher_has_no_folder_of_its_own(raw):
    extract(raw, raw / "out", teachers=(A,))
    assert sorted(path.name for path in (raw / "out").iterdir()) == ["images", "texts"]


def test_estimates_are_told_for_each_cache_and_nothing_is_written(raw):
    output = extract(raw, raw / "out", "--estimate")
    places = [
        f"{raw / 'out' / folder / kind}, alone:"
        for kind in ("images", "texts")
        for folder in FOLDERS
    ]
    assert [line for line in output.splitlines() if line.endswith("alone:")] == places
    assert (
        output.count("images: 6 rows in 1 shard\n")
        == output.count("texts: 6 rows in 1 shard\n")
        == 2
    )
    assert not (raw / "out").exists()


@pytest.mark.parametrize(
    ("specs", "folders"),
    [
        (["ViT-L-14/openai"], [""]),
        (["ViT-L-14/openai", "runs/first"], ["ViT-L-14_openai", "runs_first"]),
        (["RN50/a b.pt", "s3://x/y z/"], ["RN50_a_b.pt", "s3___x_y_z"]),
        (["../runs/first/", "/", "a/../b"], ["runs_first", "teacher", "a_._b"]),
    ],
)
def test_folders_are_readable_names_of_the_teachers(specs, folders):
    assert folders_of(specs) == folders


def test_two_teachers_of_one_folder_are_refused():
    with pytest.raises(
        RecipeError, match="--teacher / and é/ü: both would write to the folder teacher of --out"
    ):
        folders_of(["/", "é/ü"])


@pytest.mark.parametrize(
    ("teachers", "flags", "code", "message"),
    [
        (
            (A, A),
            (),
            1,
            (
                rf"--teacher {A} and {A}: both would write to the folder {FOLDERS[0]} of --out."
                r" Fix: give each teacher "
            ),
        ),
        ((A, A.replace("/", "_")), (), 1, "both would write to the folder"),
        (
            (A, B),
            ("--text-model", A),
            2,
            "--text-model is the text tower of one teacher. Fix: extract that teacher alone",
        ),
        (
            (A, B),
            ("--batch-size", "auto"),
            1,
            "--batch-size auto measures one teacher. Fix: give several teachers a number",
        ),
        ((A, "ResNet-mini-64"), (), 1, "ResNet-mini-64: an architecture without weights"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(raw, teachers, flags, code, message):
    output = extract(raw, raw / "out", *flags, teachers=teachers, code=code)
    errors = output[output.index("Error: ") :]
    assert re.search(message, errors) and errors.count("\n") == 1
    assert not (raw / "out").exists()


def test_help_says_what_several_teachers_cost_and_where_their_caches_go():
    text = " ".join(dimefm("extract-features", "--help").split())
    assert "--teacher SPEC..." in text and "all of them are in memory at the same time" in text
    assert "with several teachers in a folder of each" in text
