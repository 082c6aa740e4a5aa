"""Tables of synonyms: one line a word, ``word<TAB>synonym synonym ...``; an underscore in a synonym
is a space.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

from dimefm.errors import DataError
from dimefm.storage.small_files import Unreadable, read_text

BUILT_IN = Path(__file__).parent / "synonyms.tsv"


@dataclass(frozen=True)
class Synonyms:
    """A table: the synonyms of each word in lower case, as they stand in its file."""

    words: dict[str, tuple[str, ...]]

    @staticmethod
    def read(path: str | Path) -> Synonyms:
        """Read the table at ``path``; raise DataError, naming the line, when it is none."""
        try:
            text = read_text(Path(path))
        except (OSError, Unreadable) as error:
            raise DataError(
                f"{path}: no table of synonyms ({error}). Fix: write UTF-8 lines word<TAB>synonym"
                " synonym ..."
            ) from error
        return Synonyms.from_text(text, str(path))

    @staticmethod
    def from_text(text: str, where: str) -> Synonyms:
        """Return the table of a text, which stands at ``where``; raise DataError, naming the line,
        when it is none.

        Empty lines and lines that open with ``#`` are left out.
        """
        words: dict[str, tuple[str, ...]] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            head, _, rest = line.partition("\t")
            word, found = head.strip().lower(), tuple(rest.split())
            if (
                len(word.split()) != 1
                or not found
                or not all(synonym.strip("_") for synonym in found)
            ):
                raise DataError(
                    f"{where}, line {number}: {line[:60]!r} is not word<TAB>synonyms."
                    " Fix: correct the line"
                )
            if word in words:
                raise DataError(
                    f"{where}, line {number}: {word!r} stands there a second time. Fix: put its"
                    " synonyms in one line"
                )
            words[word] = found
        if not words:
            raise DataError(
                f"{where}: holds no word. Fix: write lines word<TAB>synonym synonym ..."
            )
        return Synonyms(words)

    @property
    def text(self) -> str:
        """The table as a text: sorted by word, without comments."""
        return "".join(f"{word}\t{' '.join(found)}\n" for word, found in sorted(self.words.items()))

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of ``text`` in UTF-8."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()

    def known(self, word: str) -> int:
        """Return how many synonyms a word has."""
        return len(self.words.get(word.lower(), ()))

    def pick(self, word: str, number: int) -> str:
        """Return synonym ``number`` < :meth:`known` of a word, its underscores as spaces."""
        return self.words[word.lower()][number].replace("_", " ")


@functools.cache
def built_in() -> Synonyms:
    """Return the table of common words in captions that dimefm brings along."""
    return Synonyms.read(BUILT_IN)
