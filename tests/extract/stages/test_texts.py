"""The text stage: which captions become rows, what is quarantined, and how texts are encoded."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from dimefm.data.views.text_views import TextPolicy
from dimefm.errors import RecipeError
from dimefm.extract.stages.base import Settings
from dimefm.extract.stages.texts import Texts

LONG = " ".join(["word"] * 60)
CAPTIONS = [["a cat", "a red cat"], [], ["a dog"], ["", "the sea", LONG], ["\ud800"]]


def test_the_first_caption_of_each_row_is_a_row(tiny_teacher, write_captions):
    stage = Texts(tiny_teacher, Settings())
    index = stage.index(write_captions(CAPTIONS))
    assert stage.row_count(index) == 5
    batch = stage.prepare(index, range(5))
    assert batch.numbers == [0, 2] and batch.keys == ["k0", "k2"]
    assert batch.unused_captions == 1
    reasons = {bad.row: bad.reason for bad in batch.bad}
    assert sorted(reasons) == [1, 3, 4]
    assert reasons[3] == "sentence is empty"
    tokens, _ = tiny_teacher.tokenize(["a cat", "a dog"])
    assert torch.equal(batch.inputs, tokens)


def test_every_caption_is_a_row_with_its_place_in_the_source(tiny_teacher, write_captions):
    stage = Texts(tiny_teacher, Settings(captions="all"))
    index = stage.index(write_captions(CAPTIONS))
    assert stage.row_count(index) == 8  # a row without captions counts as one
    batch = stage.prepare(index, range(8))
    assert batch.keys == ["k0#0", "k0#1", "k2#0", "k3#1"]
    assert batch.numbers == [0, 1, 3, 5]
    assert batch.unused_captions == 0
    too_long = next(bad for bad in batch.bad if bad.row == 6)
    assert too_long.key == "k3#2" and "has 62 tokens" in too_long.reason
    assert too_long.reason.endswith("(source row 3, sentence 2, both counted from 0)")
    some = stage.prepare(index, [1, 5])
    assert some.keys == ["k0#1", "k3#1"]
    assert torch.equal(some.inputs, batch.inputs[[1, 3]])


def test_views_are_rows_of_their_own(tiny_teacher, write_captions):
    stage = Texts(tiny_teacher, Settings(text_views=TextPolicy.parse(2, {})))
    index = stage.index(write_captions(CAPTIONS))
    batch = stage.prepare(index, range(10))
    assert batch.keys == ["k0#0", "k0#1", "k2#0", "k2#1", "k3#1"]
    assert batch.numbers == [0, 1, 4, 5, 7]
    assert batch.unused_captions == 0  # the row with a third caption has no usable first view
    assert batch.input_digests[2] == batch.input_digests[3]  # one caption, seen twice
    assert len(set(batch.input_digests)) == 4


def test_a_text_may_be_as_long_as_the_context(tiny_teacher, write_captions):
    texts = [[" ".join(["word"] * words)] for words in (30, 31)]  # a start and an end are added
    stage = Texts(tiny_teacher, Settings())
    batch = stage.prepare(stage.index(write_captions(texts)), range(2))
    assert batch.inputs.shape[1] == 32
    assert batch.numbers == [0] and [bad.row for bad in batch.bad] == [1]


def test_long_texts_are_cut_when_asked(tiny_teacher, write_captions):
    stage = Texts(tiny_teacher, Settings(long_texts="truncate"))
    batch = stage.prepare(stage.index(write_captions([[LONG], ["a cat"]])), range(2))
    assert batch.numbers == [0, 1] and batch.bad == []


def test_a_batch_has_the_same_vectors_on_one_thread_and_on_several(tiny_teacher, write_captions):
    texts = [[f"a {'very ' * (number % 7)}red cat {number}"] for number in range(40)]
    stage = Texts(tiny_teacher, Settings(batch_size=4))
    index = stage.index(write_captions(texts))
    alone = stage.prepare(index, range(40))
    pooled = stage.prepare(index, range(40))
    stage.start(alone)
    with ThreadPoolExecutor(3) as encode_threads:
        stage.start(pooled, encode_threads)
        vectors, _ = pooled.pending.fetch()
    assert pooled.pending.pieces > 1 and alone.pending.pieces == 1
    np.testing.assert_array_equal(alone.pending.fetch()[0], vectors)
    assert alone.inputs is None and pooled.inputs is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captions": "some"}, "captions is 'some'; expected one of first, all"),
        ({"long_texts": "drop"}, "long_texts is 'drop'; expected one of quarantine, truncate"),
    ],
)
def test_an_unknown_choice_is_refused(tiny_teacher, changes, message):
    with pytest.raises(RecipeError, match=message):
        Texts(tiny_teacher, Settings(**changes))
