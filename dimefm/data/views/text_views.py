"""Text views that a cache can promise and a student can replay: what view v of a row's sentences
says, for all time.
"""

from __future__ import annotations

import dataclasses
import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dimefm.cache.plan import SYNONYMS, text_of
from dimefm.data.views.synonyms import Synonyms, built_in
from dimefm.errors import BadRow, CacheError, RecipeError, did_you_mean
from dimefm.runtime.seeding import seed_of
from dimefm.storage.stores import Store

VERSION = (
    1  # of the function that draws: TextPolicy.draw; a cache of another version is not replayed
)
AUGMENTS = ("none", "eda")
KINDS = {
    "augment": str,
    "seed": int,
    "deletion": float,
    "clean": bool,
    "synonyms": str,
}  # of the values of --text-recipe


@dataclass(frozen=True)
class TextPolicy:
    """``count`` views of each row's sentences, drawn from ``seed``, the row's key, the number of
    the view and the sentence.

    With ``augment`` "none", view v is sentence v mod n of the n that the row has, its words as they
    are. With "eda" it is the row's first sentence with one operation done to it, chosen uniformly
    among those that it allows: a word replaced by a synonym, two words swapped, or each word
    deleted with probability ``deletion``; with ``clean``, view 0 is the sentence as it is.
    ``synonyms`` is the SHA-256 of the ``table`` they are from; ``version`` is that of the drawing
    function.

    Words are what white space divides. A sentence of one word stays as it is, and one without a
    word of the table is swapped or has words deleted. Source: DeCLIP (ICLR 2022), released
    prototype/model/declip.py:204-212, which does one of these operations of EDA (Wei and Zou, 2019)
    to the first caption of an image. Deviations: a choice among operations that would do nothing is
    not made; two different places are always swapped; and deletion never returns a list.
    """

    count: int
    augment: str = "none"
    seed: int = 0
    deletion: float = 0.1
    clean: bool = True
    synonyms: str | None = None
    version: int = VERSION
    table: Synonyms | None = field(default=None, compare=False, repr=False)

    @staticmethod
    def parse(count: int | None, settings: Mapping[str, Any]) -> TextPolicy | None:
        """Return the policy of ``--text-views COUNT --text-recipe KEY=VALUE...``, None without a
        count.

        Raises RecipeError for settings without a count, an unknown key, and an impossible value;
        DataError for a table of synonyms that cannot be read.
        """
        if count is None:
            for key, value in settings.items():
                raise RecipeError(
                    f"--text-recipe {key}={value!r}: describes text views. Fix: say how many with"
                    " --text-views K"
                )
            return None
        for key, value in settings.items():
            _check(key, value)
        given = dict(settings)
        if given.get("augment", "none") == "none":
            idle = next((key for key in given if key != "augment"), None)
            if idle is not None:
                raise RecipeError(
                    f"--text-recipe {idle}: is of augment='eda' and would do nothing here. Fix:"
                    " leave it out"
                )
            return TextPolicy(count)
        path = given.pop("synonyms", None)
        table = built_in() if path is None else Synonyms.read(path)
        given = {key: KINDS[key](value) for key, value in given.items()}
        return TextPolicy(count, **given, synonyms=table.sha256, table=table)

    @staticmethod
    def from_manifest(how: dict, store: Store | None = None) -> TextPolicy | None:
        """Return the policy of a manifest's ``how``, None for a cache of one sentence a row.

        The ``store`` of the cache is needed to draw with a table of synonyms that is not the
        built-in one, which lies there. Raises CacheError when the views were drawn by another
        version of the drawing function or with another table than lies there, or are damaged.
        """
        fields = how.get("text_views")
        if fields is None:
            return None
        if fields.get("version") != VERSION:
            raise CacheError(
                f"the text views were drawn by version {fields.get('version')} of the drawing, this"
                f" dimefm has {VERSION}. Fix: use the dimefm that extracted them, or extract the"
                " sentences again"
            )
        try:
            return TextPolicy(**fields, table=_table(fields.get("synonyms"), store))
        except TypeError as error:
            raise CacheError(
                f"text_views in the manifest are damaged ({error}). Fix: extract the sentences"
                " again"
            ) from error

    def keep(self, store: Store) -> None:
        """Put the table of synonyms into the cache at ``store``, unless it is the built-in one or
        there already.
        """
        if self.table is not None and self.table != built_in() and store.size(SYNONYMS) is None:
            store.write(SYNONYMS, self.table.text)

    def how(self) -> dict:
        """Return the policy as the manifest states it: plain JSON values, those that decide
        something.
        """
        names = [part.name for part in dataclasses.fields(self) if part.name != "table"]
        names = names if self.augment == "eda" else ["count", "augment", "version"]
        return {name: getattr(self, name) for name in names}

    def place(self, view: int, sentences: int) -> int:
        """Return which of a row's ``sentences`` (at least 1) view 0 <= ``view`` < count is made
        of.
        """
        return view % sentences if self.augment == "none" else 0

    def draw(self, key: str, view: int, texts: Sequence[str]) -> str:
        """Return view 0 <= ``view`` < count of the row with this key and these sentences.

        A pure function of the policy and the arguments. Raises BadRow when the sentence is empty,
        CacheError when the table of synonyms is not at hand.
        """
        text = texts[self.place(view, len(texts))] if texts else ""
        if not text.strip():
            raise BadRow("sentence is empty")
        return self.vary(key, view, text)

    def vary(self, key: str, view: int, text: str) -> str:
        """Return the sentence ``text``, not empty, as view ``view`` of the row ``key`` has it."""
        if self.augment == "none" or (self.clean and view == 0):
            return text
        if self.table is None:
            raise CacheError(
                "the text views were drawn with a table of synonyms of SHA-256"
                f" {str(self.synonyms)[:12]}, and no {SYNONYMS} in the cache holds it. Fix: put it"
                " back there, or extract the sentences again"
            )
        return " ".join(
            _eda(
                text.split(),
                self.table,
                self.deletion,
                random.Random(seed_of(self.seed, view, key)),
            )
        )


def _table(sha256: str | None, store: Store | None) -> Synonyms | None:
    """Return the table of this SHA-256, None for none and when it is not at hand; raise CacheError
    for another one.
    """
    if sha256 is None or sha256 == built_in().sha256:
        return None if sha256 is None else built_in()
    text = None if store is None else text_of(store, SYNONYMS)
    if text is None:
        return None
    table = Synonyms.from_text(text, store.where(SYNONYMS))
    if table.sha256 != sha256:
        raise CacheError(
            f"{store.where(SYNONYMS)}: has SHA-256 {table.sha256[:12]}, the text views were drawn"
            f" with {sha256[:12]}. Fix: put that table back, or extract the sentences again"
        )
    return table


def _check(key: str, value: Any) -> None:
    """Raise RecipeError unless ``value`` is possible for a key of ``--text-recipe``."""
    if key not in KINDS:
        raise RecipeError(f"--text-recipe {key}: unknown key: {did_you_mean(key, KINDS)}")
    kind = KINDS[key]
    if type(value) not in ((int, float) if kind is float else (kind,)):
        raise RecipeError(f"--text-recipe: '{key}' is {value!r}; expected {kind.__name__}")
    if key == "augment" and value not in AUGMENTS:
        raise RecipeError(
            f"--text-recipe: 'augment' is {value!r}; expected one of"
            f" {', '.join(map(repr, AUGMENTS))}"
        )
    if key == "deletion" and not 0 <= value <= 1:
        raise RecipeError(f"--text-recipe: 'deletion' is {value}; expected 0 <= deletion <= 1")


def _eda(words: list[str], table: Synonyms, deletion: float, draw: random.Random) -> list[str]:
    """Return the words after one operation; every choice takes one number of ``draw.random``, which
    Python keeps stable.
    """
    if len(words) < 2:
        return words

    def below(end: int) -> int:
        return int(draw.random() * end)

    known = [word for word in dict.fromkeys(words) if table.known(core(word))]
    operation = below(3) if known else 1 + below(2)
    if operation == 0:
        word = known[below(len(known))]
        return replaced(words, word, table.pick(core(word), below(table.known(core(word)))))
    if operation == 1:
        first, second = below(len(words)), below(len(words) - 1)
        return swapped(words, first, second + (second >= first))
    return kept(words, [draw.random() for _ in words], deletion, below(len(words)))


def core(word: str) -> str:
    """Return a word without the punctuation around it, as the table looks it up."""
    return word.strip(string.punctuation)


def replaced(words: Sequence[str], word: str, synonym: str) -> list[str]:
    """Return the words with every ``word`` replaced, but for the punctuation around it; capitalised
    where it was.
    """
    inner = core(word)
    synonym = synonym[:1].upper() + synonym[1:] if inner[:1].isupper() else synonym
    before, _, after = word.partition(inner)
    return [f"{before}{synonym}{after}" if other == word else other for other in words]


def swapped(words: Sequence[str], first: int, second: int) -> list[str]:
    """Return the words with those at two places swapped."""
    found = list(words)
    found[first], found[second] = found[second], found[first]
    return found


def kept(words: Sequence[str], draws: Sequence[float], deletion: float, spared: int) -> list[str]:
    """Return the words whose draw [0, 1) is above ``deletion``; when none is, the word at place
    ``spared``.
    """
    return [word for word, draw in zip(words, draws, strict=True) if draw > deletion] or [
        words[spared]
    ]
