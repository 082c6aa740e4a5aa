"""Several teachers in one pass: each cache has the bytes that its teacher makes alone, and an image
is decoded once.
"""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import torch

from dimefm.cache import FeatureCache
from dimefm.data import open_rows
from dimefm.data.views.image_views import ViewPolicy
from dimefm.errors import BadRow, RecipeError
from dimefm.extract.extract import Settings, extract, extract_several, stage_of
from dimefm.extract.sharding import Share
from dimefm.extract.stages.images import Images
from dimefm.extract.stream import ShardTask, encoded
from dimefm.models import preprocess
from dimefm.models.encoder import Encoder
from dimefm.models.loading import load_encoder

QUIET = Settings(progress=False, batch_size=3)
VIEWS = ViewPolicy(2, seed=5)


@pytest.fixture(scope="module")
def teachers(tiny_teacher):
    """Two teachers of other architectures, sizes (64 and 32 pixels) and weights."""
    return {"a": tiny_teacher, "b": load_encoder("RN-mini-32/random:1", "cpu")}


@pytest.fixture
def photos(tmp_path, picture):
    """Two folders of eight photos of different shapes and formats, with a damaged and an empty one
    in the middle of each.
    """
    for i in range(16):
        format = ("PNG", "JPEG", "WEBP", "GIF")[i % 4]
        path = tmp_path / f"photos/{i // 8}/{i:02d}.{format.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = picture(i, (20 + 7 * i, 140 - 5 * i), format)
        path.write_bytes(data[: len(data) // 2] if i % 8 == 3 else b"" if i % 8 == 4 else data)
    return tmp_path / "photos"


@pytest.fixture
def sentences(tmp_path):
    """Three files of sentences: one with an empty and a long sentence, one without any."""
    for i, lines in enumerate(
        (["a cat", "", "word " * 20, "two dogs", "a red boat"], [], ["the sea", "a cat"])
    ):
        path = tmp_path / f"texts/{i}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))
    return tmp_path / "texts"


def shards_of(source, kind):
    """Open each photo folder, or each text file, as a shard."""
    return open_rows(sorted(source.iterdir()), kind)


def together(teachers, source, kind, out, settings=QUIET, **how):
    """Extract with all teachers in one pass into out/NAME; return their reports."""
    caches = [(encoder, out / name) for name, encoder in teachers.items()]
    return extract_several(caches, shards_of(source, kind), kind, settings, **how)


def alone(teachers, source, kind, out, settings=QUIET, **how):
    """Extract with one teacher after another into out/NAME; return their reports."""
    return [
        extract(encoder, shards_of(source, kind), kind, out / n, settings, **how)
        for n, encoder in teachers.items()
    ]


def quarantine(out):
    return [
        json.loads(line)
        for line in (out / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    ]


@pytest.fixture
def opened(monkeypatch):
    """Count how often each image is decoded, by its bytes."""
    counted = Counter()
    for kind in preprocess.DECODERS.values():

        def counting(self, data, original=kind.open):
            counted[data] += 1
            return original(self, data)

        monkeypatch.setattr(kind, "open", counting)
    return counted


@pytest.mark.parametrize("views", [None, VIEWS], ids=["plain", "views"])
@pytest.mark.parametrize("decoder", preprocess.DECODERS)
def test_image_caches_are_those_of_each_teacher_alone(
    teachers, photos, tmp_path, digests, decoder, views, opened
):
    settings = dataclasses.replace(
        QUIET, decoder=decoder, views=views, batch_size=3 if views is None else 4
    )
    reports = together(teachers, photos, "image", tmp_path / "together", settings)
    assert (
        set(opened.values()) == {1, 2} and opened.total() == 16
    )  # the two empty files have the same bytes
    alone(teachers, photos, "image", tmp_path / "alone", settings)
    assert opened.total() == 48
    assert digests(tmp_path / "together") == digests(tmp_path / "alone")
    per_image = 1 if views is None else 2
    assert [report.manifest.rows for report in reports] == [12 * per_image] * 2
    assert len(quarantine(tmp_path / "together/b")) == 4 * per_image
    caches = [FeatureCache(tmp_path / "together" / name) for name in teachers]
    assert caches[0].manifest.encoder != caches[1].manifest.encoder


@pytest.mark.parametrize("captions", ["first", "all"])
def test_text_caches_are_those_of_each_teacher_alone(
    teachers, sentences, tmp_path, digests, captions
):
    settings = dataclasses.replace(QUIET, captions=captions)
    together(teachers, sentences, "text", tmp_path / "together", settings)
    alone(teachers, sentences, "text", tmp_path / "alone", settings)
    assert digests(tmp_path / "together") == digests(tmp_path / "alone")


class Short(Encoder):
    """An encoder that reads ten tokens."""

    def tokenize(self, sentences):
        tokens, lengths = super().tokenize(sentences)
        return tokens[:, :10], lengths


def test_a_sentence_too_long_for_one_teacher_is_quarantined_for_that_one_only(
    teachers, sentences, tmp_path, digests
):
    b = teachers["b"]
    both = {
        "a": teachers["a"],
        "b": Short(**{field.name: getattr(b, field.name) for field in dataclasses.fields(b)}),
    }
    reports = together(both, sentences, "text", tmp_path / "together")
    assert [report.manifest.rows for report in reports] == [6, 5]
    assert [
        [entry["row"] for entry in quarantine(tmp_path / "together" / name)] for name in both
    ] == [[1], [1, 2]]
    assert "the encoder reads 10" in quarantine(tmp_path / "together/b")[1]["reason"]
    alone(both, sentences, "text", tmp_path / "alone")
    assert digests(tmp_path / "together") == digests(tmp_path / "alone")


def test_an_image_that_one_teacher_cannot_resize_is_quarantined_for_that_one_only(
    teachers, photos, tmp_path, monkeypatch
):
    whole = preprocess.Turbo.whole

    def refuse(self, photo):
        if (self._height, self._width) == (32, 32) and photo.pixels.shape[1] == 27:
            raise BadRow("no")
        return whole(self, photo)

    monkeypatch.setattr(preprocess.Turbo, "whole", refuse)
    together(teachers, photos, "image", tmp_path)
    shards = [FeatureCache(tmp_path / name).manifest.shards for name in teachers]
    assert [[shard.bad for shard in held] for held in shards] == [
        [(3, 4), (3, 4)],
        [(1, 3, 4), (3, 4)],
    ]
    assert quarantine(tmp_path / "b")[0] == {
        "source": "0",
        "row": 1,
        "key": "01.jpeg",
        "reason": "no",
    }


def test_a_finished_cache_is_left_alone_and_the_other_one_is_made(
    teachers, photos, tmp_path, digests
):
    alone({"a": teachers["a"]}, photos, "image", tmp_path / "out")
    reports = together(teachers, photos, "image", tmp_path / "out")
    assert [report.already_finished for report in reports] == [True, False]
    assert [report.rows_done for report in reports] == [0, 16]
    alone(teachers, photos, "image", tmp_path / "alone")
    assert digests(tmp_path / "out") == digests(tmp_path / "alone")


def test_a_shard_that_one_cache_has_is_done_for_the_other_only(
    teachers, photos, tmp_path, digests, opened
):
    """The first teacher is interrupted in its second shard; then both go on in one pass."""
    with pytest.MonkeyPatch.context() as patch:
        prepared = Images.prepare_shared

        def interrupt(self, others, index, numbers):
            if index.shard.path.name == "1" and 2 in numbers:
                raise KeyboardInterrupt
            return prepared(self, others, index, numbers)

        patch.setattr(Images, "prepare_shared", interrupt)
        with pytest.raises(KeyboardInterrupt):
            alone({"a": teachers["a"]}, photos, "image", tmp_path / "out")
    opened.clear()
    reports = together(teachers, photos, "image", tmp_path / "out")
    assert [report.resumed for report in reports] == [1, 0]
    assert [report.rows_done for report in reports] == [8, 16]
    assert opened.total() == 16
    alone(teachers, photos, "image", tmp_path / "alone")
    assert digests(tmp_path / "out") == digests(tmp_path / "alone")


def test_quarantined_rows_are_tried_again_for_each_that_has_them(
    teachers, photos, tmp_path, picture, digests, opened
):
    together(teachers, photos, "image", tmp_path / "together")
    alone(teachers, photos, "image", tmp_path / "alone")
    (photos / "0/03.gif").write_bytes(picture(3))
    opened.clear()
    reports = together(teachers, photos, "image", tmp_path / "together", mode="retry")
    assert (
        opened.total() == 8 + 2
    )  # all of the shard that has changed, and the bad rows of the other
    assert [(report.tried, report.recovered) for report in reports] == [(4, 1), (4, 1)]
    alone(teachers, photos, "image", tmp_path / "alone", mode="retry")
    assert digests(tmp_path / "together") == digests(tmp_path / "alone")


def test_more_shards_are_added_to_each(teachers, photos, tmp_path, digests):
    first = open_rows([photos / "0"], "image")
    extract_several(
        [(encoder, tmp_path / "out" / name) for name, encoder in teachers.items()],
        first,
        "image",
        QUIET,
    )
    together(teachers, photos, "image", tmp_path / "out", mode="append")
    alone(teachers, photos, "image", tmp_path / "alone")
    assert digests(tmp_path / "out") == digests(tmp_path / "alone")


def test_parts_finish_all_caches_with_the_last(teachers, photos, tmp_path, digests):
    early, _ = together(teachers, photos, "image", tmp_path / "out", share=Share(0, 2))
    assert early.missing == 1 and not (tmp_path / "out/a/manifest.json").exists()
    together(teachers, photos, "image", tmp_path / "out", share=Share(1, 2))
    alone(teachers, photos, "image", tmp_path / "alone")
    assert digests(tmp_path / "out") == digests(tmp_path / "alone")


def test_int8_codes_are_those_of_each_teacher_alone(teachers, photos, tmp_path, digests):
    settings = dataclasses.replace(QUIET, dtype="int8")
    together(teachers, photos, "image", tmp_path / "together", settings)
    alone(teachers, photos, "image", tmp_path / "alone", settings)
    assert digests(tmp_path / "together") == digests(tmp_path / "alone")


def test_beside_a_gpu_batches_of_all_teachers_are_in_flight_in_order(teachers, photos, opened):
    """Any device but a CPU has readers; what they prepare is encoded in the thread that asks."""
    shards = shards_of(photos, "image").shards
    stages = [stage_of("image", encoder, QUIET) for encoder in teachers.values()]
    groups = [
        [ShardTask(stage, stage.index(shard), range(8)) for stage in stages] for shard in shards
    ]
    found = [*encoded(groups, torch.device("meta"), 2)]
    assert [(job.stage, job.shard) for job, _ in found] == [
        (s, shard) for shard in shards for _ in range(3) for s in stages
    ]
    assert [batch.last for _, batch in found] == [False] * 4 + [True] * 2 + [False] * 4 + [True] * 2
    assert opened.total() == 16
    for job, batch in found:
        (again,) = job.stage.batches(job.index, batch.numbers)
        np.testing.assert_array_equal(
            batch.pending.fetch()[0], job.stage.encode(again.inputs).numpy()
        )


def test_a_batch_size_is_not_measured_for_several(teachers, photos, tmp_path):
    with pytest.raises(
        RecipeError,
        match="--batch-size auto measures one teacher. Fix: give several teachers a number",
    ):
        together(
            teachers, photos, "image", tmp_path / "out", dataclasses.replace(QUIET, auto_batch=True)
        )
    assert not (tmp_path / "out").exists()
