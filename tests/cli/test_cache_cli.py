"""dimefm cache and extract-features --append, --retry-bad, --estimate as users meet them."""

import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from dimefm import plugins
from dimefm.cache import CacheWriter, FeatureCache
from dimefm.cache.quarantine import quarantined
from dimefm.cli import main

TEACHER = "ResNet-mini-64/random:0"


@pytest.fixture
def raw(tmp_path, picture):
    """Return a folder: photos/{0..5}.png of which 2 is torn, texts/a.txt of 5 lines of which two
    are empty, texts/b.txt.
    """
    (tmp_path / "photos").mkdir()
    for i in range(6):
        (tmp_path / f"photos/{i}.png").write_bytes(picture(i) if i != 2 else b"torn")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("a cat\n\n\ntwo dogs\na red boat\n")
    (tmp_path / "texts/b.txt").write_text("".join(f"photo {i}\n" for i in range(4)))
    return tmp_path


def run(*arguments):
    """Run a command; return (exit code, output)."""
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def done(*arguments):
    code, output = run(*arguments)
    assert code == 0, output
    return output


def refused(*arguments, code=1):
    """Run a command that must fail; return its one line of error."""
    found, output = run(*arguments)
    assert found == code and "Traceback" not in output, output
    error = output[output.index("Error: ") :]
    assert error.count("\n") == 1, output
    return error


def extract(raw, out, *flags, teacher=TEACHER, texts=None):
    sources = [raw / "texts"] if texts is None else texts
    given = ["--images", raw / "photos", "--texts", *sources]
    return [
        "extract-features",
        "--teacher",
        teacher,
        "--device",
        "cpu",
        *given,
        "--out",
        out,
        *flags,
    ]


@pytest.fixture
def cache(raw):
    """Return the folder of a cache of images/ and texts/."""
    done(*extract(raw, raw / "out"))
    return raw / "out"


def tampered(cache, change):
    """Let ``change(rows)`` change the stored rows in place, and write the cache anew so that every
    digest fits.
    """
    old = FeatureCache(cache)
    manifest = old.manifest
    shards = [(info, *old.read(info)) for info in manifest.shards]
    rest = dict(sources=[(info.source, info.source_rows) for info in manifest.shards])
    digests = {info.source: info.source_digest for info in manifest.shards}
    bad = list(quarantined(old.store, manifest))
    shutil.rmtree(cache)
    writer = CacheWriter(
        cache,
        type(manifest).from_fields({**manifest.header(), "shards": ()}),
        digests=digests,
        **rest,
    )
    for info, keys, rows in shards:
        change(rows)
        writer.write(info.source, keys, rows, [row for source, row in bad if source == info.source])
    assert writer.seal().fingerprint == manifest.fingerprint


# verify --against-teacher


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("number", [1, 5, 1000])
def test_a_cache_agrees_with_its_teacher(raw, dtype, number):
    done(*extract(raw, raw / "out", "--dtype", dtype))
    least = ["--min-cosine", "0.99"] if dtype == "int8" else []
    given = ["--images", raw / "photos", "--texts", raw / "texts", "--device", "cpu", *least]
    output = done("cache", "verify", raw / "out", "--against-teacher", number, *given)
    counts = [
        int(found) for found in re.findall(r"(\d+) rows encoded again: cosine at least", output)
    ]
    assert counts == [min(number, 5), min(number, 7)]


def test_features_that_were_tampered_with_do_not_agree_though_every_digest_fits(raw, cache):
    tampered(cache / "texts", lambda rows: np.negative(rows[:1], out=rows[:1]))
    assert "as recorded" in done("cache", "verify", cache / "texts", "--sha256")
    given = ["--texts", raw / "texts", "--device", "cpu"]
    error = refused("cache", "verify", cache / "texts", "--against-teacher", 100, *given)
    assert "cosine -1.0" in error and "a.txt row 0" in error and "extract it again" in error


def test_exchanged_rows_do_not_agree(raw, cache):
    tampered(cache / "texts", lambda rows: np.copyto(rows, np.roll(rows, 1, axis=0)))
    error = refused(
        "cache",
        "verify",
        cache / "texts",
        "--against-teacher",
        100,
        "--texts",
        raw / "texts",
        "--device",
        "cpu",
    )
    assert "expected at least 0.999" in error


def test_another_teacher_is_refused_and_the_field_is_named(raw, cache):
    given = ["--texts", raw / "texts", "--device", "cpu", "--teacher", "ResNet-mini-64/random:1"]
    error = refused("cache", "verify", cache / "texts", "--against-teacher", 3, *given)
    assert "weights_sha256" in error and "--teacher" in error


def test_changed_sources_are_refused_and_named(raw, cache):
    (raw / "texts/b.txt").write_text("".join(f"other {i}\n" for i in range(4)))
    error = refused(
        "cache",
        "verify",
        cache / "texts",
        "--against-teacher",
        100,
        "--texts",
        raw / "texts",
        "--device",
        "cpu",
    )
    assert "b.txt: has changed since" in error
    shutil.copy(raw / "texts/b.txt", raw / "texts/c.txt")
    (raw / "texts/b.txt").unlink()
    error = refused(
        "cache",
        "verify",
        cache / "texts",
        "--against-teacher",
        100,
        "--texts",
        raw / "texts",
        "--device",
        "cpu",
    )
    assert "no source called b.txt with 4 rows among those given (a.txt, c.txt)" in error


def test_the_raw_rows_must_be_named(cache):
    code, output = run(
        "cache", "verify", cache / "texts", "--against-teacher", 3, "--device", "cpu"
    )
    assert code == 2 and "name them with --texts" in output


# diff


def test_a_cache_is_equal_to_itself_and_to_one_in_another_format(raw, cache):
    done("cache", "convert", cache / "texts", raw / "other", "--format", "parquet")
    for other in (cache / "texts", raw / "other"):
        output = done("cache", "diff", cache / "texts", other)
        assert (
            "same fingerprint" in output
            and "7 rows in both; of 7 compared, cosine at least 1.000000" in output
        )
    assert "format: 'hdf5' against 'parquet'" in output
    assert "of 3 compared" in done("cache", "diff", cache / "texts", raw / "other", "--rows", 3)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_another_dtype_is_named_and_its_cost_is_measured(raw, cache, dtype):
    output = done("cache", "convert", cache / "texts", raw / "other", "--dtype", dtype)
    assert ("KL" in output) == (dtype == "int8")
    output = done("cache", "diff", cache / "texts", raw / "other")
    assert f"dtype: 'float16' against '{dtype}'" in output
    cosine = float(re.search(r"cosine at least ([\d.]+)", output)[1])
    assert cosine == 1 if dtype == "float32" else 0.99 < cosine < 1


def test_other_rows_quarantined_and_other_shards_are_named_with_exit_code_1(raw, cache):
    (raw / "texts/a.txt").write_text("a cat\na bird\n\ntwo dogs\n\n")
    (raw / "texts/b.txt").rename(raw / "texts/c.txt")
    done(*extract(raw, raw / "other"))
    code, output = run("cache", "diff", cache / "texts", raw / "other/texts")
    assert code == 1 and "different fingerprints" in output
    assert (
        "1 shard only in the first: b.txt" in output
        and "1 shard only in the second: c.txt" in output
    )
    assert "a.txt: rows quarantined only in the first: 1; only in the second: 4" in output
    assert "2 rows in both" in output
    code, output = run("cache", "diff", cache / "texts", cache / "images")
    assert code == 1 and "kind: 'text' against 'image'" in output and "0 rows in both" in output


def test_another_teacher_is_a_difference(raw, cache):
    done(*extract(raw, raw / "other", teacher="ResNet-mini-64/random:1"))
    code, output = run("cache", "diff", cache / "texts", raw / "other/texts")
    assert code == 1 and "encoder.weights_sha256" in output
    assert float(re.search(r"cosine at least (-?[\d.]+)", output)[1]) < 0.99


def test_what_is_no_cache_cannot_be_compared(raw, cache):
    assert "no manifest.json" in refused("cache", "diff", cache / "texts", raw / "photos")


# quarantine


def test_quarantined_rows_are_listed_with_source_row_key_and_reason(cache):
    lines = done("cache", "quarantine", cache).splitlines()
    assert lines[0].endswith("images: 1 of 6 rows quarantined") and lines[2].endswith(
        "texts: 2 of 9 rows quarantined"
    )
    source, row, key, reason = lines[1].split("\t")
    assert (source, row, key) == ("photos", "2", "2.png") and "not an image" in reason
    assert [line.split("\t") for line in lines[3:]] == [
        ["a.txt", "1", "1", "sentence is empty"],
        ["a.txt", "2", "2", "sentence is empty"],
    ]


def test_quarantined_rows_are_counted_by_source(cache):
    lines = done("cache", "quarantine", cache, "--summary").splitlines()
    assert [line for line in lines if "\t" in line] == ["1\tphotos", "2\ta.txt"]


def test_a_reason_of_many_lines_and_tabs_is_one_field(cache):
    path = cache / "texts/quarantine.jsonl"
    lines = [json.loads(line) | {"reason": "one\n\ttwo"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = done("cache", "quarantine", cache / "texts")
    assert [line.split("\t")[3] for line in output.splitlines() if "\t" in line] == [
        "one two",
        "one two",
    ]


def test_a_damaged_or_lost_list_of_quarantined_rows(cache):
    path = cache / "texts/quarantine.jsonl"
    path.unlink()
    assert done("cache", "quarantine", cache / "texts").count("not listed in quarantine.jsonl") == 2
    path.write_text("{\n")
    assert "quarantine.jsonl, line 1: cannot be read" in refused(
        "cache", "quarantine", cache / "texts"
    )


# convert


@pytest.mark.parametrize("format_", plugins.names("caches"))
def test_convert_keeps_rows_reasons_and_fingerprint(raw, cache, format_):
    output = done("cache", "convert", cache / "texts", raw / "new", "--format", format_)
    old, new = FeatureCache(cache / "texts"), FeatureCache(raw / "new", raw / "scratch")
    dtype = "float32" if format_ == "parquet" else "float16"
    assert (
        f"7 rows of {dtype}[128] as {format_}" in output and old.manifest.fingerprint[:12] in output
    )
    assert np.array_equal(new[:], old[:])
    assert (raw / "new/quarantine.jsonl").read_bytes() == (
        cache / "texts/quarantine.jsonl"
    ).read_bytes()
    assert "as recorded" in done("cache", "verify", raw / "new", "--sha256")
    assert done("cache", "info", raw / "new").count("2 of 9 rows") == 1


def test_convert_into_itself_or_another_cache_is_one_line(cache):
    assert "is the cache to convert" in refused(
        "cache", "convert", cache / "texts", cache / "texts"
    )
    assert "made otherwise" in refused("cache", "convert", cache / "texts", cache / "images")


def test_info_tells_what_int8_costs(raw, cache):
    done("cache", "convert", cache / "texts", raw / "new", "--dtype", "int8")
    assert re.search(
        r"int8 cost    cosine at least 0\.99.*KL .* \(on 7 rows\)",
        done("cache", "info", raw / "new"),
    )


# extract-features


def test_append_names_its_flag_and_adds_the_new_shards(raw, cache):
    (raw / "texts/c.txt").write_text("a bird\n\n")
    assert "--append" in refused(*extract(raw, cache))
    output = done(*extract(raw, cache, "--append"))
    assert (
        "9 rows in" not in output
        and "11 rows in = 8 rows out + 3 quarantined" in output
        and "finished already" in output
    )
    assert "finished already" in done(*extract(raw, cache, "--append"))
    assert "finished already" in done(*extract(raw, cache))


def test_retry_bad_says_how_many_rows_were_recovered(raw, cache, picture):
    output = done(*extract(raw, cache, "--retry-bad"))
    assert (
        "0 of 1 quarantined rows were recovered" in output
        and "0 of 2 quarantined rows were recovered" in output
    )
    (raw / "photos/2.png").write_bytes(picture(2))
    (raw / "texts/a.txt").write_text("a cat\na bird\n\ntwo dogs\na red boat\n")
    output = done(*extract(raw, cache, "--retry-bad"))
    assert (
        "1 of 1 quarantined rows were recovered" in output
        and "1 of 2 quarantined rows were recovered" in output
    )
    assert (
        "6 rows in = 6 rows out + 0 quarantined" in output
        and "9 rows in = 8 rows out + 1 quarantined" in output
    )
    given = ["--images", raw / "photos", "--texts", raw / "texts", "--device", "cpu"]
    assert (
        done("cache", "verify", cache, "--sha256", "--against-teacher", 100, *given).count(
            "encoded again"
        )
        == 2
    )


def test_append_and_retry_bad_together_are_bad_usage(raw, cache):
    code, output = run(*extract(raw, cache, "--append", "--retry-bad"))
    assert code == 2 and "one after the other" in output


@pytest.mark.parametrize("flag", ["--append", "--retry-bad"])
def test_append_and_retry_bad_need_a_finished_cache(raw, flag):
    assert f"which {flag} needs" in refused(*extract(raw, raw / "out", flag))


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("format_", plugins.names("caches"))
def test_estimate_tells_rows_bytes_and_time_and_writes_nothing(raw, format_, dtype, digests):
    before = digests(raw)
    flags = ["--format", format_, "--dtype", dtype, "--estimate"]
    output = done(*extract(raw, raw / "out", *flags))
    assert digests(raw) == before and not (raw / "out").exists()
    assert "images: 6 rows in 1 shard" in output and "texts: 9 rows in 2 shards" in output
    assert output.count(" are free") == 2 and output.count("rows/s (probe of") == 2
    stated = [float(text.replace(",", "")) for text in re.findall(r"([\d,]+) bytes/row", output)]
    done(*extract(raw, raw / "out", *flags[:-1]))
    for kind, each in zip(("images", "texts"), stated, strict=True):
        manifest = FeatureCache(raw / "out" / kind).manifest
        size = sum(info.bytes for info in manifest.shards)
        rows = sum(info.source_rows for info in manifest.shards)
        assert 0.6 * size < each * rows < 1.6 * size


def test_estimate_of_rows_that_cannot_be_encoded_is_one_line(raw):
    (raw / "texts/a.txt").write_text("\n\n")
    error = refused(*extract(raw, raw / "out", "--estimate", texts=[raw / "texts/a.txt"]))
    assert "none of the 2 text rows of the probe could be encoded" in error
    assert not (raw / "out").exists()
