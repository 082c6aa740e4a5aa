"""Words and punctuation of an English text, by the conventions of the Penn Treebank.

ELEVATER's toolkit passes definitions through NLTK's ``word_tokenize`` before they become prompts.
Here a text is cut in the same places without NLTK, and without its download at import. The tokens
of a sentence are those of NLTK's ``NLTKWordTokenizer``. Sentences end by a rule, where NLTK has a
trained model (Punkt): behind ``.``, ``?`` or ``!`` before a capital letter, except behind an
abbreviation. A different end of a sentence changes one token, ``them.`` for ``them .``, which the
tokenizer of CLIP cuts alike.
"""

from __future__ import annotations

import re

OPENERS = "([{<«“‘„`"
CLOSING = re.compile(r"[\])}>\"'»”’\s]*")
"""What may stand behind the period of a sentence."""

SENTENCE_END = re.compile(r"[.?!][\])}\"'»”’]*\s+(?=[\"'(\[«“‘]*[A-Z])")
ABBREVIATION = re.compile(
    r"(?:^|[\s(\[])(?:[A-Za-z]|(?:[A-Za-z]\.)+[A-Za-z]|etc|vs|cf|ca|approx|esp|usu|Mr|Mrs|Ms|Dr|St"
    r"|Jr|Sr|Prof|Gen|Col|Mt|Fig|No|Vol|Inc|Co|Corp|Ltd|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sep|Sept|Oct"
    r"|Nov|Dec)\.$"
)

PIECE = re.compile(
    r"(?P<quote>[«“‘„»”’]|``?)"
    r"|(?P<double>\"|'')"
    r"|(?P<run>\.{2,}|--)"
    r"|(?P<mark>[\]\[(){}<>;@#$%&?!*]|[:,](?!\d))"
    r"|(?P<period>\.)"
    r"|(?P<word>[^«“‘„»”’`\"\]\[(){}<>;@#$%&?!*.:,'-]+|[:,'-])"
)

CLITIC = re.compile(r"(?<=[^'])('(?:s|S|m|M|d|D|ll|LL|re|RE|ve|VE)|n't|N'T|')$")
"""A short form at the end of a word, which is a token of its own."""

OPENING_MARK = re.compile(r"'(?!(?:re|ve|ll|m|t|s|d|n)\b)\w", re.IGNORECASE)

TWO_WORDS = {
    "cannot": 3,
    "d'ye": 1,
    "gimme": 3,
    "gonna": 3,
    "gotta": 3,
    "lemme": 3,
    "more'n": 4,
    "wanna": 3,
}
"""Words that are two, and the letters of the first."""


def word_tokenize(text: str) -> list[str]:
    """Return the words and marks of a text; double quotes become two accents or apostrophes."""
    tokens: list[str] = []
    for sentence in sentences(text):
        tokens += tokens_of_sentence(sentence)
    return tokens


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, without the blanks between them."""
    found = []
    start = 0
    for end in SENTENCE_END.finditer(text):
        before = text[start : end.start() + 1]
        if ABBREVIATION.search(before):
            continue
        found.append(text[start : end.end()].strip())
        start = end.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


def tokens_of_sentence(sentence: str) -> list[str]:
    """Return the tokens of one sentence; only the period at its end is a token."""
    tokens: list[str] = []
    for chunk in re.finditer(r"\S+", sentence):
        tokens += _tokens_of_chunk(chunk.group(), sentence[chunk.end() :])
    return tokens


def _tokens_of_chunk(chunk: str, rest: str) -> list[str]:
    """Return the tokens of a text without blanks; ``rest`` is what follows in the sentence."""
    tokens: list[str] = []
    word = ""
    for piece in PIECE.finditer(chunk):
        kind = piece.lastgroup
        found = piece.group()
        if kind == "period":
            behind = chunk[piece.end() :] + rest
            if CLOSING.fullmatch(behind):
                kind = "mark"
        if kind in ("word", "period"):
            word += found
            continue
        tokens += _words_of(word)
        word = ""
        if kind == "double":
            is_opening = piece.start() == 0 or chunk[piece.start() - 1] in OPENERS
            found = "``" if is_opening else "''"
        tokens.append(found)
    return tokens + _words_of(word)


def _words_of(word: str) -> list[str]:
    """Return a word and the short forms behind it."""
    if not word:
        return []
    clitic = CLITIC.search(word)
    if clitic is not None and clitic.start():
        return [*_words_of(word[: clitic.start()]), clitic.group()]
    opening = OPENING_MARK.match(word)
    if opening is not None:
        return ["'", *_words_of(word[1:])]
    place = TWO_WORDS.get(word.lower())
    if place is not None:
        return [word[:place], word[place:]]
    return [word]
