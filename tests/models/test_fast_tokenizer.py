"""The memory for words: open_clip's tokens to the last one, for sentences as they are and as nobody
writes them.
"""

import concurrent.futures
import json
import random
import string
import time

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from dimefm.models import fast_tokenizer, long_words, open_clip
from dimefm.models.fast_tokenizer import CachedTokenizer, cached_tokenizer

PLAIN = SimpleTokenizer()
TOKENIZERS = {
    "lower": PLAIN,
    "whitespace": SimpleTokenizer(clean="whitespace", context_length=9),
    "canonicalize": SimpleTokenizer(clean="canonicalize"),
    "specials": SimpleTokenizer(additional_special_tokens=["<mask>", "café"]),
}
FAST = {name: CachedTokenizer(tokenizer) for name, tokenizer in TOKENIZERS.items()}
ODD = [
    "",
    " ",
    "\t a \n b\r\n",
    "It's the dog's, they've said I'll, we'd 'S 'LL n't",
    "&amp; &amp;amp; &amp;amp;amp; &lt;b&gt; &eacute; &nbsp;x &#39;s &copy &notin; a&b AT&T",
    "schön naïve café cafe\u0301 ÅNGSTRÖM ΑΣ ΑΣ. İstanbul ǅ ß ẞ ﬁ ﬂ",
    "“curly” ‘quotes’ — dash… Ｆｕｌｌ　ｗｉｄｔｈ",
    "sÃ© mojibake â€œquotedâ€\x9d Ã¢â‚¬",
    "👍🏽 👩‍👩‍👧 🇩🇪 ❤️❤ a👍b",
    "一只狗在草地上 犬が走る собака भारत ไทย العربية",
    "no\u00a0break\u2003em\u2028line\u0085next\u200bzero\u1680ogham\x1cfile\x1funit",
    "<start_of_text> <END_OF_TEXT>x<end_of_text><|endoftext|> <mask> CAFÉ café",
    "\x1b[31mred\x1b[0m \x00\x07 \x7f",
    "a1b22c333 3.14 1,000 x² ½ Ⅷ ٣",
    "!!!! ?!? ... --- _under_score_ a_b #tag @user http://x.y/z?q=1&r=2",
    "x" * 500,
    "word " * 100,
    "<b>&eacute;</b> & <br/>",
    "half a character \ud800 \udc00x",
]


def same(name: str, sentences: list[str]) -> None:
    """Assert that tokens are open_clip's, and lengths those before truncation."""
    tokenizer = TOKENIZERS[name]
    tokens, lengths = FAST[name].tokenize(sentences)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, tokenizer(sentences))
    assert lengths == [len(tokenizer.encode(sentence)) + 2 for sentence in sentences]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_odd_sentences(name):
    same(name, ODD)
    same(name, ODD)  # from memory


@pytest.mark.parametrize("name", TOKENIZERS)
@given(st.lists(st.text(st.characters(), max_size=60), min_size=1, max_size=5))
@example(["ΑΣ ΑΣ"])
def test_any_sentence(name, sentences):
    same(name, sentences)


PIECES = [
    "&amp;",
    "&",
    "amp;",
    "&lt;",
    "<",
    "'s",
    "'",
    "LL",
    " ",
    "\n",
    "dog",
    "É",
    "é",
    "“",
    "😀",
    "1",
    ".",
    "_",
    "\u00a0",
    "Ã",
    "©",
]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(st.lists(st.sampled_from(PIECES), max_size=20))
def test_any_mixture_of_what_cleaning_looks_for(name, pieces):
    same(name, ["".join(pieces)])


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80))
def test_any_printable_ascii(sentence):
    same("lower", [sentence])


def test_real_sentences(shared_data):
    sentences = pq.read_table(shared_data / "sentences/multi30k_en.parquet")["text"].to_pylist()[
        :8000
    ]
    for path in sorted(shared_data.glob("captions/*/test.parquet")):
        sentences += [
            text for texts in pq.read_table(path)["captions"].to_pylist() for text in texts
        ]
    assert len(sentences) > 9000
    same("lower", sentences)


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(fast_tokenizer, "KEPT_WORDS", 3)
    found = CachedTokenizer(PLAIN)
    sentences = [f"{word} {'x' * 40}" for word in ("one", "two", "three", "four", "five")]
    assert torch.equal(found.tokenize(sentences)[0], PLAIN(sentences))
    assert list(found._known) == ["four", "five"]
    assert len(found._tokenizer.cache) == 2 < len(PLAIN.cache)


def test_threads_share_a_memory(monkeypatch):
    monkeypatch.setattr(fast_tokenizer, "KEPT_WORDS", 5)
    found, sentences = CachedTokenizer(PLAIN), ODD + [f"word{n} number {n}" for n in range(200)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        several = list(pool.map(lambda _: found.tokenize(sentences)[0], range(8)))
    assert all(torch.equal(tokens, PLAIN(sentences)) for tokens in several)


def test_tokenizers_whose_tokens_are_not_of_words_are_left_alone():
    assert isinstance(cached_tokenizer(PLAIN), CachedTokenizer)
    assert cached_tokenizer(SimpleTokenizer(reduction_mask="simple")) is None
    assert cached_tokenizer(SimpleTokenizer(additional_special_tokens=["<two words>"])) is None
    assert cached_tokenizer(HFTokenizer.__new__(HFTokenizer)) is None
    assert cached_tokenizer(lambda sentences: None) is None


def test_open_clips_tokenizer_is_made_once_for_a_config_and_anew_for_a_changed_one(tmp_path):
    config, found = open_clip.config_of("ResNet-mini-64"), []
    for length in (32, 32, 9):
        config["text_cfg"]["context_length"] = length
        (tmp_path / open_clip.CONFIG).write_text(
            json.dumps({"model_cfg": config, "preprocess_cfg": {}})
        )
        found.append(open_clip.tokenizer_of(open_clip.folder_config(tmp_path)))
        assert open_clip.tokenizer_for(config) is found[-1]
    assert found[0] is found[1]
    assert [tokenizer(["a dog"]).shape for tokenizer in found] == [(1, 32), (1, 32), (1, 9)]


LONG_WORDS = long_words.LongWords(PLAIN)
LETTERS = st.sampled_from([*string.ascii_lowercase, "e", "t", "é", "ß", "你", "я", "1", "'", "."])


@given(st.text(LETTERS, min_size=1, max_size=150))
@example("a" * 77)
@example("ab" * 50)
def test_long_words_are_merged_as_short_ones_are(word):
    letters = "".join(PLAIN.byte_encoder[byte] for byte in word.encode())
    expected = SimpleTokenizer.bpe(PLAIN, letters).split(" ")
    assert LONG_WORDS.pieces(letters) == expected


def endless_words():
    """Return words of some thousand letters: random, of one letter, of syllables, of any script."""
    draw = random.Random(0)
    pieces = [piece for piece in PLAIN.encoder if piece.isalpha()]
    alphabets = [string.ascii_lowercase, "ab", "z", pieces, "你好世界", ["the", "ing", "er"], "a1'"]
    words = []
    for alphabet in alphabets:
        length = draw.randrange(300, 600)
        words.append("".join(draw.choice(alphabet) for _ in range(length))[: 2 * length])
    return words


@pytest.mark.parametrize("word", endless_words())
@pytest.mark.parametrize("form", ["{}", "a photo of {} and more", "{}!!! {}"])
def test_the_tokens_that_fit_are_open_clips_however_long_a_word_is(monkeypatch, word, form):
    monkeypatch.setattr(fast_tokenizer, "LONG_WORD", 150)
    sentence = form.replace("{}", word)
    tokens, (length,) = FAST["lower"].tokenize([sentence])
    assert torch.equal(tokens, PLAIN([sentence]))
    assert length > tokens.shape[1]


@given(
    st.lists(
        st.sampled_from(["a dog", "&amp;amp; <b>", "caf\u00c3\u00a9", " ", "x" * 90]), max_size=30
    )
)
def test_the_beginning_of_a_long_text_decides_its_tokens(lines):
    sentence = "\n".join(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_tokenizer, "LONG_TEXT", 40)
        tokens, (length,) = FAST["lower"].tokenize([sentence])
    assert torch.equal(tokens, PLAIN([sentence]))
    assert (length > 77) == (len(PLAIN.encode(sentence)) + 2 > 77)


ENDLESS = {
    "random letters": lambda draw: "".join(draw.choices(string.ascii_letters, k=20_000)),
    "a protein": lambda draw: "".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=200_000)),
    "one letter": lambda draw: "a" * 200_000,
    "two letters": lambda draw: "ab" * 100_000,
    "digits": lambda draw: "".join(draw.choices(string.digits, k=200_000)),
    "signs": lambda draw: "".join(draw.choices("!?.,;-_", k=200_000)),
    "no spaces": lambda draw: "\u4f60\u597d" * 100_000,
    "words": lambda draw: " ".join("".join(draw.choices("abcdef", k=8)) for _ in range(100_000)),
    "entities": lambda draw: "&amp;amp;" * 50_000,
    "white space": lambda draw: " " * 2_000_000 + "a",
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_no_text_takes_minutes(kind):
    started = time.monotonic()
    _, (length,) = CachedTokenizer(PLAIN).tokenize([ENDLESS[kind](random.Random(0))])
    assert (length > 77) == (kind != "white space")
    assert time.monotonic() - started < 60


def test_a_tokenizer_that_draws_tokens_reads_long_words_as_well():
    config = open_clip.config_of("ResNet-mini-64")
    config["text_cfg"]["tokenizer_kwargs"] = {"reduction_mask": "shuffle"}
    tokenizer = open_clip.tokenizer_for(config)
    word = "".join(random.Random(0).choices(string.ascii_lowercase, k=20_000))
    started = time.monotonic()
    assert tokenizer([word]).shape == (1, config["text_cfg"]["context_length"])
    assert time.monotonic() - started < 60
    assert tokenizer.encode(f"a {word[:300]}") == PLAIN.encode(f"a {word[:300]}")
