"""The memory for words: open_clip's tokens to the last one, for sentences as they are and as nobody
writes them.
"""

import concurrent.futures
import json

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from dimefm.models import fast_tokenizer, open_clip
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
