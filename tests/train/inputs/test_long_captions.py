"""Captions longer than the student's context are cut as open_clip cuts them, or left out."""

import pytest
from open_clip.tokenizer import SimpleTokenizer

from dimefm.errors import BadRow
from dimefm.models.fast_tokenizer import CachedTokenizer
from dimefm.train.inputs.pair_sentences import Sentences
from dimefm.train.inputs.sources import open_sources

TOKENIZER = SimpleTokenizer(context_length=9)
CAPTIONS = ["a cat", "one two three four five six seven", "one two three four five six seven eight"]


@pytest.fixture(params=["open_clip's", "the fast one"])
def tokenize(request):
    """Return a tokenizer of nine places."""
    return TOKENIZER if request.param == "open_clip's" else CachedTokenizer(TOKENIZER)


def sentences(world, tokenize, **over):
    """Return the captions of a table of pairs, of which the last one does not fit."""
    recipe = world.clip_recipe(images=[str(world.pairs(CAPTIONS))], **over)
    return Sentences(open_sources(recipe, world.root / "out"), recipe, tokenize)


def test_by_default_long_captions_are_cut_as_open_clip_cuts_them(world, tokenize):
    found = sentences(world, tokenize)
    chosen = [found.choose(n, found.sources.raw[n], n, 0) for n in range(3)]
    assert chosen == [[caption] for caption in CAPTIONS]
    tokens, _ = found.tokens(chosen, range(3))
    assert tokens.tolist() == TOKENIZER(CAPTIONS).tolist()


def test_long_captions_are_left_out_as_an_extraction_leaves_them_out(world, tokenize):
    found = sentences(world, tokenize, long_texts="quarantine")
    for number in range(2):
        assert found.choose(number, found.sources.raw[number], number, 0) == [CAPTIONS[number]]
    with pytest.raises(BadRow, match="has 10 tokens, the student reads 9 .*truncate"):
        found.choose(2, found.sources.raw[2], 2, 0)
