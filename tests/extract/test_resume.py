"""Extraction into a folder that holds a cache already: finished, gone on with to the same bytes, or
refused.
"""

import dataclasses

import pytest

from dimefm import plugins
from dimefm.cache import FeatureCache
from dimefm.data import open_rows
from dimefm.errors import CacheError
from dimefm.extract.extract import extract
from dimefm.extract.sharding import Share
from dimefm.extract.stages import base
from dimefm.models.loading import load_encoder
from tests.extract.conftest import QUIET, run

FORMATS = plugins.names("caches")


@pytest.mark.parametrize("format_", FORMATS)
def test_the_same_command_twice_says_finished_and_changes_nothing(
    tiny_teacher, shards, tmp_path, format_, digests
):
    run(tiny_teacher, [shards], "text", tmp_path / "out", format=format_)
    before = digests(tmp_path / "out")
    again = extract(
        tiny_teacher,
        open_rows([shards], "text"),
        "text",
        tmp_path / "out",
        dataclasses.replace(QUIET, format=format_),
    )
    assert again.already_finished and again.rows_done == 0
    assert "finished already, 16 rows; nothing to do" in again.describe()
    assert digests(tmp_path / "out") == before


class Cut:
    """An encoder that is interrupted when it has encoded ``batches`` batches; with ``one_lane`` the
    first ones.
    """

    def __init__(self, encoder, batches):
        self.encoder, self.left = encoder, batches

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def encode_text(self, tokens):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.encoder.encode_text(tokens)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("batches", [0, 2, 3, 4, 5])
def test_an_interrupted_extraction_goes_on_and_ends_with_the_same_bytes(
    tiny_teacher, shards, tmp_path, format_, batches, digests, one_lane
):
    run(tiny_teacher, [shards], "text", tmp_path / "whole", format=format_)
    with pytest.raises(KeyboardInterrupt):
        run(Cut(tiny_teacher, batches), [shards], "text", tmp_path / "cut", format=format_)
    finished = sum(
        1 for end in (3, 4, 4) if batches >= end
    )  # shard 0 takes three batches, shard 1 one, shard 2 none
    with pytest.raises(CacheError, match="unfinished cache"):
        FeatureCache(tmp_path / "cut")
    report, _ = run(tiny_teacher, [shards], "text", tmp_path / "cut", format=format_)
    assert report.resumed == finished
    assert report.rows_done == 16 - sum((9, 1, 0)[:finished])
    assert not list(tmp_path.rglob(".flat"))
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dtype": "float32"}, "dtype: 'float32' against 'float16'"),
        ({"format": "parquet"}, "format: 'parquet' against 'hdf5'"),
        ({"captions": "all"}, "how.captions: 'all' against 'first'"),
        ({"long_texts": "truncate"}, "how.long_texts: 'truncate' against 'quarantine'"),
    ],
)
@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
def test_other_settings_in_the_same_folder_are_refused_and_named(
    tiny_teacher, shards, tmp_path, changes, named, finished, one_lane
):
    if finished:
        run(tiny_teacher, [shards], "text", tmp_path / "out")
    else:
        with pytest.raises(KeyboardInterrupt):
            run(Cut(tiny_teacher, 3), [shards], "text", tmp_path / "out")
    with pytest.raises(CacheError) as caught:
        run(tiny_teacher, [shards], "text", tmp_path / "out", **changes)
    assert named in str(caught.value) and "give another --out" in str(caught.value)


def test_another_teacher_precision_or_source_in_the_same_folder_is_refused_and_named(
    tiny_teacher, shards, tmp_path
):
    run(tiny_teacher, [shards], "text", tmp_path / "out")
    other = load_encoder("ResNet-mini-64/random:1", "cpu")
    with pytest.raises(CacheError, match="encoder.weights_sha256"):
        run(other, [shards], "text", tmp_path / "out")
    rounded = dataclasses.replace(tiny_teacher, precision="bf16")
    with pytest.raises(CacheError, match=r"how\.precision: 'bf16' against 'fp32'"):
        run(rounded, [shards], "text", tmp_path / "out")
    with pytest.raises(CacheError, match="sources only in the folder"):
        run(tiny_teacher, [shards / "0.txt"], "text", tmp_path / "out")
    (shards / "3.txt").write_text("one more\n" * 7)
    with pytest.raises(CacheError, match=r"rows of source 3\.txt: 7 against"):
        run(tiny_teacher, [shards], "text", tmp_path / "out")


def test_a_source_that_changed_under_the_same_keys_is_not_taken_for_finished(
    tiny_teacher, tmp_path
):
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("a red cat\na blue dog\n")
    run(tiny_teacher, [sentences], "text", tmp_path / "out")
    sentences.write_text("a blue dog\na red cat\n")
    with pytest.raises(
        CacheError,
        match="already holds a cache made otherwise .content of source sentences.txt: digest",
    ):
        run(tiny_teacher, [sentences], "text", tmp_path / "out")


def test_who_goes_on_takes_the_precision_of_the_plan(tiny_teacher, shards, tmp_path, monkeypatch):
    settings, rows = dataclasses.replace(QUIET, auto_precision=True), open_rows([shards], "text")
    for part, precision in enumerate(("bf16", "fp32")):  # the second machine would choose otherwise
        monkeypatch.setattr(
            base,
            "chosen",
            lambda device, compiled, precision=precision: (precision, "a test says so"),
        )
        extract(
            tiny_teacher, rows, "text", tmp_path / "out", settings, share=Share(part=part, parts=2)
        )
    rounded = dataclasses.replace(tiny_teacher, precision="bf16")
    _, whole = run(rounded, [shards], "text", tmp_path / "whole")
    assert FeatureCache(tmp_path / "out").manifest.fingerprint == whole.manifest.fingerprint
