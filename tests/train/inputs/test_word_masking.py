"""Words are hidden by seed: shares, what is never hidden, and what random words may be."""

import numpy as np
import pytest

from dimefm.errors import DataError
from dimefm.train.inputs.word_masking import NOT_HIDDEN, Masking

BEGIN, END = 49406, 49407


def sentences(count, length, width=77):
    """Return tokens of sentences of ``length`` words of ids 1 to 9999, padded with 0."""
    words = np.random.default_rng(0).integers(1, 10_000, (count, length))
    edge = np.ones((count, 1), dtype=np.int64)
    rest = np.zeros((count, width - length - 2), dtype=np.int64)
    return np.concatenate([edge * BEGIN, words, edge * END, rest], axis=1)


def test_shares_are_those_of_the_paper():
    tokens = sentences(2000, 40)
    shown, labels = Masking()(tokens, range(2000))
    hidden = labels != NOT_HIDDEN
    assert hidden.sum() / (2000 * 40) == pytest.approx(0.15, abs=0.005)
    assert (shown[hidden] == 0).mean() == pytest.approx(0.8, abs=0.015)
    assert (shown[hidden] == labels[hidden]).mean() == pytest.approx(0.1, abs=0.015)
    assert np.array_equal(labels[hidden], tokens[hidden])
    assert np.array_equal(shown[~hidden], tokens[~hidden])


@pytest.mark.parametrize("words", ["ordinary", "any"])
def test_ends_and_padding_are_never_hidden(words):
    tokens = sentences(50, 9)
    tokens[0, 1:] = [END, *[0] * 75]  # a sentence without words
    shown, labels = Masking(share=1.0, words=words)(tokens, range(50))
    assert (labels[1:, 1:10] != NOT_HIDDEN).all()
    assert (labels[1:, [0]] == NOT_HIDDEN).all()
    assert (labels[1:, 10:] == NOT_HIDDEN).all()
    assert (labels[0] == NOT_HIDDEN).all()
    assert np.array_equal(shown[:, 10:], tokens[:, 10:])
    assert np.array_equal(shown[0], tokens[0])


def test_random_words_are_ordinary_unless_as_published():
    tokens = sentences(400, 9)
    small = {"mask": 5, "begin": BEGIN, "end": END, "share": 1.0}
    drawn = [
        Masking(**small, words=words).draw(tokens, range(400)).words
        for words in ("ordinary", "any")
    ]
    assert not np.isin(drawn[0], [5, BEGIN, END]).any()
    assert drawn[0].max() < 49408
    few = Masking(mask=1, begin=3, end=4, vocabulary=5)
    chances = np.linspace(0, 1, 100, endpoint=False)
    assert set(few._words(chances)) == {0, 2}
    assert set(Masking(mask=1, begin=3, end=4, vocabulary=5, words="any")._words(chances)) == {
        0,
        1,
        2,
        3,
        4,
    }


def test_the_place_of_pooling_stays():
    """The largest id is still the sentence's end: open_clip's towers pool there."""
    tokens = sentences(300, 20)
    shown, _ = Masking(share=1.0)(tokens, range(300))
    assert np.array_equal(shown.argmax(axis=1), tokens.argmax(axis=1))


def test_a_seed_hides_the_same_words_in_any_company_and_padding():
    tokens = sentences(6, 12)
    shown, labels = Masking(0.5)(tokens, [11, 12, 13, 14, 15, 16])
    one, its = Masking(0.5)(tokens[2:3, :14], [13])
    assert np.array_equal(one[0], shown[2, :14])
    assert np.array_equal(its[0], labels[2, :14])
    assert not np.array_equal(Masking(0.5)(tokens[2:3], [14])[1], labels[2:3])
    assert Masking()(tokens[:0], [])[0].shape == (0, 77)


def test_tokens_of_another_tokenizer_are_refused():
    with pytest.raises(DataError, match="sentence 1 of a batch have no end, id 49407"):
        Masking()(np.array([[BEGIN, 3, END], [1, 2, 3]]), [0, 1])
