"""Text views: what a policy says and refuses, and that a draw depends on the policy, key, view and
sentences alone.
"""

import collections
import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimefm.cli.assignments import assignments
from dimefm.data.views.synonyms import Synonyms, built_in
from dimefm.data.views.text_views import KINDS, TextPolicy, core, kept, replaced, swapped
from dimefm.errors import BadRow, CacheError, DataError, RecipeError
from dimefm.storage.stores import Store


def parsed(count, *settings):
    """Return the policy of ``--text-views`` and ``--text-recipe``."""
    return TextPolicy.parse(count, assignments("--text-recipe", settings, "augment='eda'", KINDS))


EDA = ("augment='eda'",)
POLICY = parsed(5, *EDA, "seed=3", "deletion=0.3")
SENTENCE = "A small dog, and a cat run on the beach"
sentences = st.text(max_size=30).filter(str.strip) | st.lists(
    st.sampled_from([*SENTENCE.split(), "Dog", "(dog)", "bus.", "\u00e9t\u00e9", "\U0001f600"]),
    min_size=1,
    max_size=9,
).map(" ".join)


def read(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_captions_are_shown_in_turn_and_as_they_are():
    policy = TextPolicy.parse(5, {})
    assert [policy.draw("k", view, ("one  dog", "two", "three")) for view in range(5)] == [
        "one  dog",
        "two",
        "three",
        "one  dog",
        "two",
    ]
    assert policy.how() == {"count": 5, "augment": "none", "version": 1}


def test_view_0_is_the_clean_first_caption_and_others_are_made_of_it():
    texts = (SENTENCE, "nothing of this one")
    assert POLICY.draw("k", 0, texts) == SENTENCE
    assert not any(
        {"nothing", "of", "this", "one"} & set(POLICY.draw("k", view, texts).split())
        for view in range(5)
    )
    unclean = dataclasses.replace(POLICY, clean=False)
    assert any(unclean.draw(str(n), 0, texts) != SENTENCE for n in range(9))


def test_the_policy_states_all_that_decides():
    assert POLICY.how() == {
        "count": 5,
        "augment": "eda",
        "seed": 3,
        "deletion": 0.3,
        "clean": True,
        "synonyms": built_in().sha256,
        "version": 1,
    }
    again = TextPolicy.from_manifest(json.loads(json.dumps({"text_views": POLICY.how()})))
    assert again == POLICY
    assert again.table == POLICY.table
    assert json.dumps(parsed(2, *EDA, "deletion=1").how()["deletion"]) == "1.0"
    assert TextPolicy.from_manifest({"views": None}) is TextPolicy.parse(None, {}) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("augmant='eda'",), "--text-recipe augmant: unknown key: did you mean 'augment'?"),
        (("count=3",), "--text-recipe count: unknown key"),
        (("eda",), "--text-recipe eda: expected KEY=VALUE as in TOML, e.g. augment='eda'"),
        (
            ("augment='backtranslation'",),
            "'augment' is 'backtranslation'; expected one of 'none', 'eda'",
        ),
        (("seed=3",), "--text-recipe seed: is of augment='eda' and would do nothing here"),
        ((*EDA, "deletion=1.5"), "'deletion' is 1.5; expected 0 <= deletion <= 1"),
        ((*EDA, "deletion=nan"), "'deletion' is nan; expected 0 <= deletion <= 1"),
        ((*EDA, "clean=1"), "'clean' is 1; expected bool"),
        ((*EDA, "seed=true"), "'seed' is True; expected int"),
    ],
)
def test_mistakes_are_refused_in_one_line(settings, message):
    with pytest.raises(RecipeError, match=message) as error:
        parsed(2, *settings)
    assert "\n" not in str(error.value)


def test_a_recipe_without_a_number_of_views_is_refused():
    with pytest.raises(RecipeError, match="say how many with --text-views K"):
        parsed(None, *EDA)


def test_views_of_another_drawing_function_are_refused():
    with pytest.raises(CacheError, match="drawn by version 2 of the drawing, this dimefm has 1"):
        TextPolicy.from_manifest({"text_views": {**POLICY.how(), "version": 2}})


@pytest.mark.parametrize("wrong", [{"size": 3}, {"table": 1}])
def test_damaged_policies_are_refused(wrong):
    with pytest.raises(CacheError, match="text_views in the manifest are damaged"):
        TextPolicy.from_manifest({"text_views": {**POLICY.how(), **wrong}})


@given(sentences, st.integers(0, 4), st.text(max_size=4))
def test_a_draw_is_pure_not_empty_and_of_the_words_of_its_sentence(sentence, view, key):
    found = POLICY.draw(key, view, (sentence,))
    assert found == TextPolicy.from_manifest({"text_views": POLICY.how()}).draw(
        key, view, (sentence,)
    )
    assert found.strip()
    words, drawn = collections.Counter(sentence.split()), collections.Counter(found.split())
    if view == 0 or len(sentence.split()) == 1:
        assert found == (sentence if view == 0 else " ".join(words))
    elif drawn - words:  # a synonym, for one word wherever it stands
        [gone] = words - drawn
        table = built_in()
        meant = [table.pick(core(gone), n).lower() for n in range(table.known(core(gone)))]
        assert any(synonym in found.lower() for synonym in meant)
        assert sum((words - drawn).values()) == words[gone]


def test_each_operation_comes_as_often():
    """Each of four words is deleted, so that a deletion shows; a swap of two different words and a
    synonym always do.
    """
    policy = parsed(2, *EDA, "deletion=1.0")
    words = "dog under seven things".split()
    found = [policy.draw(str(n), 1, (" ".join(words),)).split() for n in range(3000)]
    kinds = collections.Counter(
        "deletion" if len(each) == 1 else "swap" if set(each) == set(words) else "synonym"
        for each in found
    )
    assert min(kinds.values()) > 900
    assert collections.Counter(each[0] for each in found if len(each) == 1).keys() == set(words)
    swaps = collections.Counter(
        tuple(each) for each in found if len(each) == 4 and set(each) == set(words)
    )
    assert len(swaps) == 6
    assert min(swaps.values()) > 120


def test_without_a_known_word_another_operation_is_done():
    found = {parsed(2, *EDA, "deletion=1.0").draw(str(n), 1, ("xyzzy frob",)) for n in range(40)}
    assert found == {"frob xyzzy", "xyzzy", "frob"}


DRAWN = [
    "A small dog, and a cat run on the beach",
    "A dog, and a cat run on the beach",
    "A small dog, and a cat run on the shore",
    "A small dog, and a feline run on the beach",
    "A small dog, and a cat run on the seaside",
    "and small dog, A a cat run on the beach",
]


def test_seed_key_and_view_each_matter():
    policies = (POLICY, dataclasses.replace(POLICY, seed=4))
    found = [
        tuple(p.draw(f"{k}{n}", v, (SENTENCE,)) for n in range(8))
        for p in policies
        for k in "ab"
        for v in (1, 2)
    ]
    assert len(set(found)) == len(found)


def test_the_number_of_views_does_not_matter_so_that_more_can_be_drawn_later():
    assert dataclasses.replace(POLICY, count=9).draw("a", 2, (SENTENCE,)) == POLICY.draw(
        "a", 2, (SENTENCE,)
    )


def test_draws_are_those_of_version_1():
    """A change here makes every cache of text views unusable: raise VERSION with it."""
    assert built_in().sha256 == "c4dffc26d9f063b0db12f63840d2abf390094da4609d819ec6768e5802d4764c"
    policy = parsed(3, *EDA)
    assert [
        policy.draw(key, view, (SENTENCE,)) for key in ("x.jpg", "\u00e9", "7") for view in (1, 2)
    ] == DRAWN


@pytest.mark.parametrize("texts", [(), ("",), (" \t ", "a dog")])
def test_an_empty_sentence_is_a_bad_row(texts):
    with pytest.raises(BadRow, match="sentence is empty"):
        POLICY.draw("k", 1, texts)


def test_operations():
    words = "Dog, a dog".split()
    assert replaced(words, "Dog,", "old hound") == ["Old hound,", "a", "dog"]
    assert replaced(["a", "cat", "cat"], "cat", "kitty") == ["a", "kitty", "kitty"]
    assert swapped(words, 0, 2) == ["dog", "a", "Dog,"]
    assert kept(words, [0.5, 0.1, 0.0], 0.1, 2) == ["Dog,"]
    assert kept(words, [0.0, 0.1, 0.0], 0.1, 2) == ["dog"]


def test_a_table_of_ones_own_travels_with_the_cache(tmp_path):
    path = read(tmp_path / "mine.tsv", "# mine\n\nDog\told_friend\r\nfrog\ttoad\n")
    policy = parsed(2, *EDA, f"synonyms='{path}'")
    drawn = [policy.draw(str(n), 1, ("the dog sits",)) for n in range(12)]
    assert "the old friend sits" in drawn
    store, how = Store(tmp_path / "cache"), {"text_views": policy.how()}
    assert TextPolicy.from_manifest(how, store) == TextPolicy.from_manifest(how) == policy
    with pytest.raises(CacheError, match=r"no synonyms.tsv in the cache holds it"):
        [TextPolicy.from_manifest(how, store).draw(str(n), 1, ("the dog sits",)) for n in range(12)]
    policy.keep(store)
    path.unlink()
    assert [
        TextPolicy.from_manifest(how, store).draw(str(n), 1, ("the dog sits",)) for n in range(12)
    ] == drawn
    store.write("synonyms.tsv", "dog\thound\n")
    with pytest.raises(
        CacheError, match=r"cache.synonyms.tsv: has SHA-256 .* the text views were drawn with"
    ):
        TextPolicy.from_manifest(how, store)


def test_the_built_in_table_is_not_copied(tmp_path):
    POLICY.keep(Store(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_the_built_in_table_is_clean():
    table = built_in()
    assert 150 <= len(table.words) <= 400
    for word, found in table.words.items():
        assert word == word.lower()
        assert len(set(found)) == len(found)
        assert word not in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog hound\n", "line 1: 'dog hound' is not word<TAB>synonym"),
        ("dog\thound\n\t\n\tx\n", "line 3: "),
        ("dog\t\n", "line 1: "),
        ("dog\t__\n", "line 1: "),
        ("hot dog\tsausage\n", "line 1: 'hot dog"),
        ("dog\thound\nDOG\tpooch\n", "line 2: 'dog' stands there a second time"),
        ("# nothing\n", "holds no word"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as error:
        Synonyms.read(read(tmp_path / "table.tsv", text))
    assert "\n" not in str(error.value)


def test_a_table_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "latin.tsv").write_bytes(b"caf\xe9\tbar\n")
    for name in ("none.tsv", "latin.tsv", "."):
        with pytest.raises(DataError, match="no table of synonyms"):
            parsed(2, *EDA, f"synonyms='{tmp_path / name}'")
