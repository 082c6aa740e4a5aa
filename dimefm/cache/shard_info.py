"""What a manifest records of one shard."""

from __future__ import annotations

from dataclasses import dataclass

from dimefm.errors import CacheError
from dimefm.storage.stores import safe


@dataclass(frozen=True)
class ShardInfo:
    """One shard: where its rows come from, how many there are, and the digests of its bytes.

    ``source_rows`` rows were read; ``rows`` are stored, in source order; ``bad`` holds the source
    row numbers that were quarantined, ascending. ``source_rows == rows + len(bad)`` always.
    ``keys_sha256`` is over the stored keys. ``source_digest`` is a digest of the source shard's
    content; "" when it is unknown. ``companions_sha256`` is over the shard's companion files (an
    index), "" when the format has none. ``offset`` is the byte at which the rows start in the file
    as one little-endian array [rows, dim]; None when the file has no such array.
    """

    file: str
    source: str
    source_rows: int
    rows: int
    bad: tuple[int, ...]
    bytes: int
    sha256: str
    keys_sha256: str
    source_digest: str = ""
    companions_sha256: str = ""
    offset: int | None = None

    def __post_init__(self):
        if self.source_rows != self.rows + len(self.bad):
            raise CacheError(
                f"{self.file}: {self.source_rows} rows in, but {self.rows} out and {len(self.bad)}"
                " quarantined; the shard is not whole. Fix: extract it again"
            )

    @staticmethod
    def from_fields(fields: dict) -> ShardInfo:
        """Return the shard that a manifest or record describes; raise ValueError when it cannot be.

        The error names the field.
        """
        bad = tuple(fields["bad"])
        info = ShardInfo(**{**fields, "bad": bad})
        info._check_counts()
        info._check_texts()
        info._check_names()
        info._check_bad_rows()
        info._check_offset()
        return info

    def _check_counts(self) -> None:
        for name in ("source_rows", "rows", "bytes"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(
                    f"shard {self.file!r}: {name} is {value!r}, expected a whole number of at"
                    " least 0"
                )

    def _check_texts(self) -> None:
        for name in ("sha256", "keys_sha256", "source_digest", "companions_sha256"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ValueError(f"shard {self.file!r}: {name} is {value!r}, expected a text")

    def _check_names(self) -> None:
        file_is_safe = isinstance(self.file, str) and safe(self.file)
        if not file_is_safe or not isinstance(self.source, str):
            raise ValueError(
                f"shard file {self.file!r} of source {self.source!r} leads outside the cache"
            )

    def _check_bad_rows(self) -> None:
        previous = -1
        for row in self.bad:
            if type(row) is not int or not previous < row < self.source_rows:
                raise ValueError(
                    f"shard {self.file!r}: bad rows must be ascending numbers below"
                    f" {self.source_rows}"
                )
            previous = row

    def _check_offset(self) -> None:
        if self.offset is None:
            return
        if type(self.offset) is not int or not 0 <= self.offset <= self.bytes:
            raise ValueError(
                f"shard {self.file!r}: offset {self.offset!r} lies outside its {self.bytes} bytes"
            )
