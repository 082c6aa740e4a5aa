"""The image stage: which rows of a shard are prepared, what is quarantined, and the pixels."""

import torch

from dimefm.data.images.decode import decode
from dimefm.data.views.image_views import ViewPolicy
from dimefm.extract.stages.base import Settings
from dimefm.extract.stages.images import Images
from dimefm.models.loading import load_encoder

VIEWS = ViewPolicy(3, seed=5)


def test_each_photo_is_a_row_and_a_damaged_one_is_quarantined(tiny_teacher, photo_shard):
    stage = Images(tiny_teacher, Settings())
    index = stage.index(photo_shard)
    assert stage.row_count(index) == 5
    batch = stage.prepare(index, range(5))
    assert batch.numbers == [0, 1, 3, 4]
    assert batch.keys == ["0.png", "1.png", "3.png", "4.png"]
    assert [(bad.row, bad.key) for bad in batch.bad] == [(2, "2.png")]
    assert len(batch.inputs) == 4
    assert batch.read_seconds > 0 and batch.decode_seconds > 0


def test_the_pixels_are_those_of_open_clip_with_its_own_decoder(tiny_teacher, photo_shard):
    stage = Images(tiny_teacher, Settings(decoder="pil"))
    batch = stage.prepare(stage.index(photo_shard), [3])
    expected = tiny_teacher.preprocess(decode(photo_shard[3].image))
    pixels = stage.decoder.finish(batch.inputs, torch.device("cpu"))
    torch.testing.assert_close(pixels[0], expected, rtol=0, atol=0)


def test_views_are_rows_of_their_own_and_any_of_them_can_be_prepared(tiny_teacher, photo_shard):
    stage = Images(tiny_teacher, Settings(views=VIEWS))
    index = stage.index(photo_shard)
    assert stage.row_count(index) == 15
    whole = stage.prepare(index, range(15))
    assert whole.numbers == [*range(6), *range(9, 15)]
    assert whole.keys[:4] == ["0.png#0", "0.png#1", "0.png#2", "1.png#0"]
    assert [bad.row for bad in whole.bad] == [6, 7, 8]
    assert [bad.key for bad in whole.bad] == ["2.png#0", "2.png#1", "2.png#2"]
    some = stage.prepare(index, [1, 7, 11])
    assert some.numbers == [1, 11] and [bad.row for bad in some.bad] == [7]
    places = [whole.numbers.index(number) for number in some.numbers]
    assert torch.equal(some.inputs, whole.inputs[places])
    assert not torch.equal(whole.inputs[0], whole.inputs[1])


def test_rows_of_damaged_photos_only_have_no_inputs(tiny_teacher, photo_shard):
    stage = Images(tiny_teacher, Settings())
    batch = stage.prepare(stage.index(photo_shard), [2])
    assert batch.inputs is None and len(batch.bad) == 1
    stage.start(batch)
    assert batch.pending is None


def test_shared_preparation_gives_each_stage_what_it_prepares_alone(tiny_teacher, photo_shard):
    small_teacher = load_encoder("RN-mini-32/random:1", "cpu")
    stages = [Images(encoder, Settings(views=VIEWS)) for encoder in (tiny_teacher, small_teacher)]
    index = stages[0].index(photo_shard)
    shared = stages[0].prepare_shared(stages[1:], index, range(15))
    assert shared[0].inputs.shape[1:] != shared[1].inputs.shape[1:]  # 64 and 32 pixels
    for stage, batch in zip(stages, shared, strict=True):
        alone = stage.prepare(index, range(15))
        assert torch.equal(batch.inputs, alone.inputs)
        assert batch.numbers == alone.numbers and batch.keys == alone.keys
        assert batch.bad == alone.bad
    assert shared[1].read_seconds == 0


def test_a_measured_batch_size_replaces_the_given_one(tiny_teacher):
    assert Images(tiny_teacher, Settings(batch_size=7)).chunk_size() == 7
    measured = Images(tiny_teacher, Settings(batch_size=7, auto_batch=True))
    assert measured.chunk_size() == tiny_teacher.fitting_batch_size
