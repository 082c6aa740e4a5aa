"""dimefm extract-features as users meet it: what it writes and says, and one clear line for every bad input."""

import base64
import io
import json
import re
import tarfile

import pytest
import torch
from click.testing import CliRunner

from dimefm.cache import FeatureCache
from dimefm.cli import main

TEACHER = "ResNet-mini-64/random:0"


@pytest.fixture
def raw(tmp_path, picture):
    """Return a folder: photos/{0..3}.png, s.txt, one image and one text TSV with their indices."""
    (tmp_path / "photos").mkdir()
    for i in range(4):
        (tmp_path / "photos" / f"{i}.png").write_bytes(picture(i))
    (tmp_path / "s.txt").write_text("a cat\ntwo dogs\na red boat\n")
    lines = [b"k%d\t%b\n" % (i, base64.b64encode(picture(i))) for i in range(3)]
    tsv(tmp_path, "image_00", lines)
    tsv(tmp_path, "text_00", [b'k%d\t{"captions": ["a cat %d"]}\n' % (i, i) for i in range(3)])
    return tmp_path


def tsv(folder, name, lines, index=None):
    (folder / f"{name}.tsv").write_bytes(b"".join(lines))
    starts = [sum(map(len, lines[:i])) for i in range(len(lines))] if index is None else index
    (folder / f"{name}.lineidx").write_text("".join(f"{start}\n" for start in starts))


def run(*arguments, teacher=TEACHER):
    """Run the command; return (exit code, output)."""
    result = CliRunner().invoke(main, ["extract-features", "--teacher", teacher, "--device", "cpu", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def refused(*arguments, code=1, **options):
    """Run a command that must fail; return its one line of error."""
    found, output = run(*arguments, **options)
    assert found == code, output
    assert "Traceback" not in output
    errors = output[output.index("Error: ") :]
    assert errors.count("\n") == 1, errors
    return errors


def test_a_batch_size_that_is_measured(raw):
    assert run("--images", raw / "photos", "--texts", raw / "s.txt", "--out", raw / "auto", "--batch-size", "auto")[0] == 0
    assert run("--images", raw / "photos", "--out", raw / "plain")[0] == 0
    measured, plain = FeatureCache(raw / "auto/images"), FeatureCache(raw / "plain/images")
    assert abs(measured[:].astype("f4") - plain[:].astype("f4")).max() < 1e-3
    assert measured.manifest.how == plain.manifest.how and "compiled" not in plain.manifest.how
    assert "--batch-size" in refused("--images", raw / "photos", "--out", raw / "x", "--batch-size", "0", code=2)


@pytest.mark.slow
def test_compiled_rows_do_not_mix_with_eager_ones(raw):
    from dimefm.errors import ModelError
    from dimefm.models import compiler

    try:
        compiler.check(torch.device("cpu"))
    except ModelError as error:
        pytest.skip(str(error))
    assert run("--images", raw / "photos", "--out", raw / "eager")[0] == 0
    assert run("--images", raw / "photos", "--out", raw / "compiled", "--compile")[0] == 0
    eager, compiled = FeatureCache(raw / "eager/images"), FeatureCache(raw / "compiled/images")
    assert compiled.manifest.how == {**eager.manifest.how, "compiled": True}
    assert abs(compiled[:].astype("f4") - eager[:].astype("f4")).max() < 1e-3
    assert "how.compiled: True against None" in refused("--images", raw / "photos", "--out", raw / "eager", "--compile")


def test_without_a_compiler_nothing_is_written(raw, monkeypatch):
    from dimefm.errors import ModelError
    from dimefm.models import compiler

    def fail(device):
        raise ModelError("--compile: the image tower cannot be compiled (no C++ compiler); leave it out")

    monkeypatch.setattr(compiler, "check", fail)
    assert "leave it out" in refused("--images", raw / "photos", "--out", raw / "out", "--compile")
    assert not (raw / "out").exists()


@pytest.fixture
def machine(monkeypatch):
    """Return ``machine(times)``: from then on this CPU takes so many times as long in fp32-fast as in fp32."""
    from dimefm.models import precision

    def takes(times):
        precision.chosen.cache_clear()
        monkeypatch.setattr(precision, "seconds_of_product", lambda name: 1.0 if name == "fp32" else times)

    yield takes
    precision.chosen.cache_clear()


def test_a_precision_that_gains_nothing_is_named(raw, machine):
    arguments = ("--images", raw / "photos", "--precision")
    note = "note: --precision bf16 is no quicker than fp32 on a CPU, and may be much slower; auto takes fp32-fast"
    assert note in run(*arguments, "bf16", "--out", raw / "bf16")[1]
    machine(1.0)
    slow = run(*arguments, "fp32-fast", "--out", raw / "slow")[1]
    assert "note: --precision fp32-fast is no quicker than fp32 here: on this CPU a product" in slow
    machine(0.3)
    assert "note:" not in run(*arguments, "fp32-fast", "--out", raw / "quick")[1]


def test_a_precision_that_the_machine_chooses_and_the_next_one_takes_over(raw, machine, digests):
    arguments = ("--images", raw / "photos", "--texts", raw / "s.txt", "--out", raw / "out", "--precision")
    machine(0.3)
    code, output = run(*arguments, "auto")
    assert code == 0
    reason = "--precision auto is fp32-fast, on this CPU a product of matrices takes 0.3 times as long in fp32-fast"
    assert [line for line in output.splitlines() if "note:" in line] == [
        f"note: {raw}/out/{kind}: {reason}" for kind in ("images", "texts")
    ]
    assert {FeatureCache(raw / "out" / kind).manifest.how["precision"] for kind in ("images", "texts")} == {"fp32-fast"}
    before = digests(raw / "out")
    machine(4.2)
    output = run(*arguments, "auto")[1]
    assert "auto is fp32-fast, as the cache there says" in output and output.count("finished already") == 2
    assert digests(raw / "out") == before
    assert "how.precision: 'fp32' against 'fp32-fast'" in refused(*arguments, "fp32")
    (raw / "t.txt").write_text("one more\n")
    assert run("--texts", raw / "t.txt", "--out", raw / "out", "--precision", "auto", "--append")[0] == 0
    assert FeatureCache(raw / "out/texts").manifest.how["precision"] == "fp32-fast"


def test_where_nothing_is_gained_an_automatic_precision_is_fp32(raw, machine, digests):
    machine(1.0)
    for precision in ("auto", "fp32"):
        run("--images", raw / "photos", "--out", raw / precision, "--precision", precision)
    assert digests(raw / "auto") == digests(raw / "fp32")
    output = run("--images", raw / "photos", "--out", raw / "new", "--precision", "auto", "--estimate")[1]
    assert "auto is fp32" in output and not (raw / "new").exists()


def test_images_and_sentences_go_to_folders_of_their_own(raw):
    code, output = run("--images", raw / "photos", "--texts", raw / "s.txt", "--out", raw / "out")
    assert code == 0
    images, texts = FeatureCache(raw / "out/images"), FeatureCache(raw / "out/texts")
    assert (images.manifest.kind, len(images), texts.manifest.kind, len(texts)) == ("image", 4, "text", 3)
    assert "4 rows in = 4 rows out + 0 quarantined" in output and "3 rows in = 3 rows out + 0 quarantined" in output
    assert "rows/s" in output and "bytes/row" in output and "ResNet-mini-64/random:0" in output


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_neither_kind_needs_the_other(raw, kind):
    source = raw / ("photos" if kind == "images" else "s.txt")
    assert run(f"--{kind}", source, "--out", raw / "out")[0] == 0
    assert [path.name for path in (raw / "out").iterdir()] == [kind]


def test_several_sources_after_one_flag_or_after_many_are_the_same(raw, digests):
    (raw / "t.txt").write_text("a green tree\n")
    assert run("--texts", raw / "s.txt", raw / "t.txt", "--out", raw / "one")[0] == 0
    assert run("--texts", raw / "s.txt", "--texts", raw / "t.txt", "--out", raw / "two")[0] == 0
    assert digests(raw / "one") == digests(raw / "two")
    assert len(FeatureCache(raw / "one/texts")) == 4


def test_lists_below_a_dataroot_in_dime_fms_way(golden_tsv, tmp_path):
    code, output = run(
        *("--images", "image.list", "--texts", "text.list", "--dataroot", golden_tsv, "--out", tmp_path, "--format", "tsv")
    )
    assert code == 0, output
    assert [info.file for info in FeatureCache(tmp_path / "images").manifest.shards] == [
        "GCC-3M/tsv/image_00.feat.tsv",
        "GCC-3M/tsv/image_01.feat.tsv",
    ]
    assert FeatureCache(tmp_path / "texts").manifest.dtype == "float32"
    assert (tmp_path / "images/GCC-3M/tsv/image_00.feat.lineidx").read_text().startswith("0\n")


def test_float16_tsv_says_that_dime_fm_cannot_read_it(raw):
    _, output = run("--texts", raw / "s.txt", "--out", raw / "out", "--format", "tsv", "--dtype", "float16")
    assert "DIME-FM's own loader reads float32 only" in output


def test_the_same_command_twice_is_finished_already(raw, digests):
    command = ("--images", raw / "photos", "--out", raw / "out")
    run(*command)
    before = digests(raw / "out")
    code, output = run(*command)
    assert code == 0 and "finished already, 4 rows; nothing to do" in output
    assert digests(raw / "out") == before


def test_quarantined_rows_do_not_fail_the_job_and_are_pointed_at(raw):
    (raw / "photos/9.png").write_bytes(b"")
    code, output = run("--images", raw / "photos", "--out", raw / "out")
    assert code == 0
    assert f"5 rows in = 4 rows out + 1 quarantined (listed in {raw / 'out/images/quarantine.jsonl'})" in output
    entry = json.loads((raw / "out/images/quarantine.jsonl").read_text())
    assert (entry["row"], entry["key"], entry["reason"]) == (4, "9.png", "image is empty (0 bytes)")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"k9\n", "has no second column; expected key, tab, value"),
        (b"k9\t@@\n", "second column is not base64"),
        (b"k9\t\n", "image is empty"),
        (b"k9\t" + base64.b64encode(b"<html>") + b"\n", "not an image: 6 bytes that begin with b'<html>'"),
    ],
)
def test_a_bad_tsv_row_is_listed_with_its_reason(raw, line, reason):
    lines = [*(raw / "image_00.tsv").read_bytes().splitlines(keepends=True), line]
    tsv(raw, "image_00", lines)
    code, output = run("--images", raw / "image_00.tsv", "--out", raw / "out")
    assert code == 0 and "3 rows out + 1 quarantined" in output
    entry = json.loads((raw / "out/images/quarantine.jsonl").read_text())
    assert (entry["source"], entry["row"], entry["key"]) == ("image_00.tsv", 3, "k9")
    assert reason in entry["reason"]


def test_empty_and_over_long_sentences_are_listed(raw):
    (raw / "s.txt").write_text("fine\n\n" + "word " * 40 + "\n")
    code, output = run("--texts", raw / "s.txt", "--out", raw / "out")
    assert code == 0 and "3 rows in = 1 rows out + 2 quarantined" in output
    reasons = [json.loads(line)["reason"] for line in (raw / "out/texts/quarantine.jsonl").read_text().splitlines()]
    assert reasons[0] == "sentence is empty" and "42 tokens, the encoder reads 32" in reasons[1]
    assert run("--texts", raw / "s.txt", "--out", raw / "cut", "--long-texts", "truncate")[0] == 0
    assert len(FeatureCache(raw / "cut/texts")) == 2


BAD_USAGE = [
    (["--out", "o"], "nothing to extract: give --images, --texts or both"),
    (["--texts", "s.txt"], "Missing option '--out'"),
    (["--texts", "s.txt", "--out", "o", "--batch-size", "0"], "--batch-size"),
    (["--texts", "s.txt", "--out", "o", "--dtype", "int4"], "'int4' is not one of 'float16', 'float32', 'int8'"),
    (["--texts", "s.txt", "--out", "o", "--precision", "half"], "'half' is not one of"),
    (["--texts", "s.txt", "--out", "o", "--format", "hdf"], "'hdf' is not one of 'hdf5', 'parquet', 'tsv'"),
    (["--texts", "s.txt", "--out", "o", "--captionz", "all"], "No such option"),
]


def test_every_cache_format_can_be_chosen():
    from dimefm import plugins
    from dimefm.cli.extract_features import command

    (option,) = (parameter for parameter in command.params if "--format" in parameter.opts)
    assert list(option.type.choices) == plugins.names("caches")


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
        (["--images", "photos", "--dataroot", "nowhere"], "--dataroot nowhere: there is no such folder"),
        (["--images", "photos", "--input-format", "fodler"], "unknown input format 'fodler': did you mean 'folder'"),
        (["--texts", "photos/0.png"], r"0\.png: cannot tell its format for text rows.*say --input-format"),
        (["--texts", "s.txt", "s.txt"], r"s\.txt is named twice"),
    ],
)
def test_a_source_that_is_not_there_or_not_known_is_one_line(raw, monkeypatch, arguments, message):
    monkeypatch.chdir(raw)
    assert re.search(message, refused(*arguments, "--out", "o"))
    assert not (raw / "o/images").exists() and not (raw / "o/texts").exists()


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("ResNet-mini-64", "an architecture without weights; say ResNet-mini-64/TAG .* or ResNet-mini-64/random:SEED"),
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
    error = refused("--texts", raw / "s.txt", "--out", raw / "o", teacher=f"ResNet-mini-64/{raw / 'weights.safetensors'}")
    assert "weights.safetensors" in error and "cannot be loaded" in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_missing_gpu_is_one_line_with_a_remedy(raw, device):
    error = refused("--texts", raw / "s.txt", "--out", raw / "o", "--device", device)
    assert f"--device {device}: this machine has 0 CUDA devices" in error and "--device cpu" in error


def test_an_unknown_device_is_one_line(raw):
    assert "no such device; expected auto, cpu" in refused("--texts", raw / "s.txt", "--out", raw / "o", "--device", "gpu")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            [0, 40, 9999999],
            r"text_00\.lineidx, row 2: offset 9999999 does not fit text_00\.tsv of \d+ bytes; remove the index",
        ),
        ([5, 40], r"text_00\.lineidx, row 0"),
        ([0], r"text_00\.tsv, row 0: bytes 0 to \d+ are not one line.*text_00\.lineidx does not fit"),
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
    assert re.search(r"x\.csv: no text column; expected one of .*found: url, words; name it with --text-column", error)
    assert run("--texts", raw / "x.csv", "--out", raw / "o", "--text-column", "words")[0] == 0


def test_a_table_row_that_leaves_its_folder_is_one_line(raw):
    (raw / "photos/x.csv").write_text("filepath\n0.png\n../s.txt\n")
    error = refused("--images", raw / "photos/x.csv", "--out", raw / "o")
    assert re.search(r"x\.csv, row 1: '\.\./s\.txt' leads outside .*--dataroot", error)


@pytest.mark.parametrize("separator", ["\\t", "tab", "\t"])
def test_a_tab_can_be_named_as_separator(raw, separator):
    (raw / "x.csv").write_text("filepath\ttitle\nphotos/0.png\ta cat\n")
    assert run("--texts", raw / "x.csv", "--separator", separator, "--out", raw / "o")[0] == 0


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
def test_a_folder_with_a_cache_made_otherwise_is_one_line_that_names_the_field(raw, changes, named, digests):
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


def test_debug_shows_the_traceback(raw):
    result = CliRunner().invoke(main, ["--debug", "extract-features", "--teacher", TEACHER, "--texts", "none", "--out", "o"])
    assert type(result.exception).__name__ == "DataError"


@pytest.fixture
def cache(raw):
    run("--images", raw / "photos", "--texts", raw / "s.txt", "--out", raw / "o")
    return raw / "o"


def verify(*arguments):
    return CliRunner().invoke(main, ["cache", *map(str, arguments)])


def test_cache_info_tells_rows_teacher_and_settings(cache):
    for root, expected in ((cache, ["4 image rows", "3 text rows"]), (cache / "texts", ["3 text rows"])):
        result = verify("info", root)
        assert result.exit_code == 0
        assert [text for text in ("4 image rows", "3 text rows") if text in result.output] == expected
    assert "ResNet-mini-64/random:0" in result.output and "float16[128]" in result.output


@pytest.mark.parametrize("flags", [[], ["--sha256"]])
def test_cache_verify_passes_a_whole_cache(cache, flags):
    result = verify("verify", cache, *flags)
    assert result.exit_code == 0 and result.output.count("as recorded") == 2


def test_cache_verify_finds_a_cut_and_a_changed_shard(cache):
    features = FeatureCache(cache / "texts")
    shard = cache / "texts" / features.manifest.shards[0].file
    raw = shard.read_bytes()
    place = raw.index(features[0].tobytes())
    shard.write_bytes(raw[:-1])
    result = verify("verify", cache)
    assert result.exit_code == 1 and re.search(
        rf"{shard.name}: {len(raw) - 1} bytes, the manifest says {len(raw)}", result.output
    )
    changed = bytearray(raw)
    changed[place] ^= 1
    shard.write_bytes(changed)
    assert verify("verify", cache).exit_code == 0
    result = verify("verify", cache, "--sha256")
    assert result.exit_code == 1 and "SHA-256" in result.output and result.output.count("Error") == 1


def test_cache_commands_on_something_else_are_one_line(cache):
    for folder in (cache.parent / "photos",):
        for command in ("info", "verify"):
            result = verify(command, folder)
            assert result.exit_code == 1 and "no manifest.json" in result.output
    result = verify("verify", cache / "nowhere")
    assert result.exit_code == 1 and "no manifest.json, so no cache; check the path" in result.output
