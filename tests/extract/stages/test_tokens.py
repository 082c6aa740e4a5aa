"""The token stage: each sample becomes as many rows as it has tokens, whichever were asked for."""

import pytest
import torch

from dimefm.data.views.patch_tokens import TokenPolicy
from dimefm.errors import RecipeError
from dimefm.extract.stages.base import Settings
from dimefm.extract.stages.images import Images
from dimefm.extract.stages.texts import Texts
from dimefm.extract.stages.tokens import PatchTokenStage, check_settings

COUNT = 3
TOKENS = TokenPolicy(COUNT)


def test_each_image_gives_the_rows_of_its_tokens(tiny_teacher, photo_shard):
    inner = Images(tiny_teacher, Settings(batch_size=2))
    stage = PatchTokenStage(inner, TOKENS)
    index = stage.index(photo_shard)
    assert stage.row_count(index) == 5 * COUNT and stage.chunk_size() == 2 * COUNT
    batch = stage.prepare(index, range(5 * COUNT))
    assert batch.numbers == [*range(6), *range(9, 15)]
    assert batch.keys[:4] == ["0.png#0", "0.png#1", "0.png#2", "1.png#0"]
    assert [(bad.row, bad.key) for bad in batch.bad] == [
        (6, "2.png#0"),
        (7, "2.png#1"),
        (8, "2.png#2"),
    ]
    vectors = stage.encode(batch.inputs)
    assert len(vectors) == len(batch.numbers)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


def test_a_sample_is_prepared_whole_when_one_of_its_rows_is_asked_for(tiny_teacher, photo_shard):
    stage = PatchTokenStage(Images(tiny_teacher, Settings()), TOKENS)
    batch = stage.prepare(stage.index(photo_shard), [4, 5])
    assert batch.numbers == [3, 4, 5]
    assert len(batch.inputs) == 1


def test_tokens_of_every_caption(tiny_teacher, write_captions):
    stage = PatchTokenStage(Texts(tiny_teacher, Settings(captions="all")), TOKENS)
    index = stage.index(write_captions([["a cat", "a red cat"], ["a cat"]]))
    assert stage.row_count(index) == 3 * COUNT
    batch = stage.prepare(index, range(3 * COUNT))
    assert batch.numbers == list(range(3 * COUNT))
    assert batch.keys[3] == "k0#1#0"
    assert batch.input_digests == []  # rows of equal captions are all encoded
    vectors = stage.encode(batch.inputs).reshape(3, COUNT, -1)
    torch.testing.assert_close(vectors[0], vectors[2])
    assert not torch.allclose(vectors[0], vectors[1])


@pytest.mark.parametrize("name", ["--views", "--text-views", "--compile"])
def test_settings_that_exclude_tokens_are_named(name):
    given = [name == flag for flag in ("--views", "--text-views", "--compile")]
    with pytest.raises(RecipeError, match=f"--tokens and {name} exclude each other"):
        check_settings(*given)
    check_settings(None, None, False)
