"""dimefm extract-features on bad input: one clear line, and nothing that could pass for a cache."""

import io
import re
import tarfile

import pytest
import torch

from tests.cli.conftest import refused, run, tsv

BAD_USAGE = [
    (["--out", "o"], "nothing to extract: give --images, --texts or both"),
    (["--texts", "s.txt"], "Missing option '--out'"),
    (["--texts", "s.txt", "--out", "o", "--batch-size", "0"], "--batch-size"),
    (
        ["--texts", "s.txt", "--out", "o", "--dtype", "int4"],
        "'int4' is not one of 'float16', 'float32', 'int8'",
    ),
    (["--texts", "s.txt", "--out", "o", "--precision", "half"], "'half' is not one of"),
    (
        ["--texts", "s.txt", "--out", "o", "--format", "hdf"],
        "'hdf' is not one of 'hdf5', 'parquet', 'tsv'",
    ),
    (["--texts", "s.txt", "--out", "o", "--captionz", "all"], "No such option"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_USAGE)
def test_bad_usage_is_exit_code_2(raw, monkeypatch, arguments, message):
    monkeypatch.chdir(raw)
    assert message in refused(*arguments, code=2)
    assert not (raw / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "nowhere"], r"source nowhere: no such file or folder.*check --dataroot"),
        (["--images", "*.tar"], r"\*\.tar: no such file or folder, and no pattern that matches"),
        (
            ["--images", "photos", "--dataroot", "nowhere"],
            "--dataroot nowhere: there is no such folder",
        ),
        (
            ["--images", "photos", "--input-format", "fodler"],
            "unknown input format 'fodler': did you mean 'folder'",
        ),
        (
            ["--texts", "photos/0.png"],
            r"0\.png: cannot tell its format for text rows.*pass --input-format",
        ),
        (["--texts", "s.txt", "s.txt"], r"s\.txt is listed twice"),
    ],
)
def test_a_source_that_is_not_there_or_not_known_is_one_line(raw, monkeypatch, arguments, message):
    monkeypatch.chdir(raw)
    assert re.search(message, refused(*arguments, "--out", "o"))
    assert not (raw / "o/images").exists() and not (raw / "o/texts").exists()


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (
            "ResNet-mini-64",
            (
                "an architecture without weights. Fix: say ResNet-mini-64/TAG .* or"
                " ResNet-mini-64/random:SEED"
            ),
        ),
        ("ResNet-mini-46/random:0", "unknown architecture 'ResNet-mini-46': did you mean"),
        ("ResNet-mini-64/random:x", "expected ResNet-mini-64/random:SEED with a whole number"),
        ("ViT-B-32/opneai", r"'opneai' is neither a tag of ViT-B-32 .*openai.* nor a file"),
        ("photos", "unknown architecture 'photos'"),
    ],
)
def test_a_teacher_that_cannot_be_is_one_line(raw, teacher, message):
    error = refused("--texts", raw / "s.txt", "--out", raw / "o", teacher=teacher)
    assert re.search(message, error)


def test_a_teacher_file_that_is_damaged_is_one_line(raw):
    (raw / "weights.safetensors").write_bytes(b"not weights")
    error = refused(
        "--texts",
        raw / "s.txt",
        "--out",
        raw / "o",
        teacher=f"ResNet-mini-64/{raw / 'weights.safetensors'}",
    )
    assert "weights.safetensors" in error and "cannot be loaded" in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_missing_gpu_is_one_line_with_a_remedy(raw, device):
    error = refused("--texts", raw / "s.txt", "--out", raw / "o", "--device", device)
    assert (
        f"--device {device}: this machine has 0 CUDA devices" in error and "--device cpu" in error
    )


def test_an_unknown_device_is_one_line(raw):
    assert "no such device. Fix: use auto, cpu" in refused(
        "--texts", raw / "s.txt", "--out", raw / "o", "--device", "gpu"
    )


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            [0, 40, 9999999],
            (
                r"text_00\.lineidx, row 2: offset 9999999 does not fit text_00\.tsv of \d+ bytes."
                r" Fix: remove the index"
            ),
        ),
        ([5, 40], r"text_00\.lineidx, row 0"),
        (
            [0],
            r"text_00\.tsv, row 0: bytes 0 to \d+ are not one line.*text_00\.lineidx does not fit",
        ),
        ([0, 11, 32], r"text_00\.tsv, row 0: bytes 0 to 11 are not one line"),
        (["zero"], r"text_00\.lineidx: expected one decimal byte offset per line"),
    ],
)
def test_an_index_that_does_not_fit_is_one_line(raw, index, message):
    tsv(raw, "text_00", [b'k%d\t{"captions": ["a cat %d"]}\n' % (i, i) for i in range(3)], index)
    assert re.search(message, refused("--texts", raw / "text_00.tsv", "--out", raw / "o"))
    assert not (raw / "o/texts/manifest.json").exists()


def test_a_cut_tar_is_one_line(raw, picture):
    with tarfile.open(raw / "x.tar", "w") as file:
        for i in range(3):
            entry = tarfile.TarInfo(f"{i}.png")
            entry.size = len(picture(i))
            file.addfile(entry, io.BytesIO(picture(i)))
    whole = (raw / "x.tar").read_bytes()
    third = whole.index(picture(2))
    for size in (100, 600, third - 200, third - 512, third + 20, third + len(picture(2))):
        (raw / "x.tar").write_bytes(whole[:size])
        error = refused("--images", raw / "x.tar", "--out", raw / "o")
        assert re.search(r"x\.tar: not a whole, uncompressed tar .*fetch or write it again", error)


def test_a_table_without_the_column_is_one_line(raw):
    (raw / "x.csv").write_text("url,words\nx,y\n")
    error = refused("--texts", raw / "x.csv", "--out", raw / "o")
    assert re.search(
        r"x\.csv: no text column; expected one of .*found: url, words. Fix: name it with"
        r" --text-column",
        error,
    )
    assert run("--texts", raw / "x.csv", "--out", raw / "o", "--text-column", "words")[0] == 0


def test_a_table_row_that_leaves_its_folder_is_one_line(raw):
    (raw / "photos/x.csv").write_text("filepath\n0.png\n../s.txt\n")
    error = refused("--images", raw / "photos/x.csv", "--out", raw / "o")
    assert re.search(r"x\.csv, row 1: '\.\./s\.txt' leads outside .*--dataroot", error)


def test_sources_of_bad_rows_only_are_one_line(raw):
    (raw / "s.txt").write_text("\n\n")
    error = refused("--texts", raw / "s.txt", "--out", raw / "o")
    assert "none of the 2 rows could be used" in error and "sentence is empty" in error


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["--dtype", "float32"], "dtype: 'float32' against 'float16'"),
        (["--format", "parquet"], "format: 'parquet' against 'hdf5'"),
        (["--captions", "all"], "how.captions: 'all' against 'first'"),
        (["--precision", "bf16"], "how.precision: 'bf16' against 'fp32'"),
    ],
)
def test_a_folder_with_a_cache_made_otherwise_is_one_line_that_names_the_field(
    raw, changes, named, digests
):
    assert run("--texts", raw / "s.txt", "--out", raw / "o")[0] == 0
    before = digests(raw / "o")
    error = refused("--texts", raw / "s.txt", "--out", raw / "o", *changes)
    assert named in error and "give another --out, or remove that folder" in error
    assert digests(raw / "o") == before


def test_a_folder_with_the_cache_of_another_teacher_is_one_line(raw):
    run("--texts", raw / "s.txt", "--out", raw / "o")
    error = refused("--texts", raw / "s.txt", "--out", raw / "o", teacher="ResNet-mini-64/random:1")
    assert "encoder.weights_sha256: " in error and "give another --out" in error


def test_a_folder_with_features_of_another_source_is_one_line_of_bearable_length(raw):
    (raw / "many").mkdir()
    for i in range(60):
        (raw / "many" / f"{i:02d}.txt").write_text("a cat\n")
    run("--texts", raw / "many", "--out", raw / "o")
    (raw / "many/50.txt").write_text("a cat\na dog\n")
    error = refused("--texts", raw / "many", "--out", raw / "o")
    assert "rows of source 50.txt: 2 against 1" in error and len(error) < 600
    (raw / "many/00.txt").unlink()
    error = refused("--texts", raw / "many", "--out", raw / "o")
    assert "sources only in the folder: 00.txt" in error


def test_out_at_or_below_a_file_is_one_line(raw):
    assert "cannot be written" in refused("--texts", raw / "s.txt", "--out", raw / "s.txt")
    assert "cannot be written" in refused("--texts", raw / "s.txt", "--out", raw / "s.txt/o")
