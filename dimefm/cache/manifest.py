"""What a cache is and how it was made."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path

from dimefm.cache.files import to_json
from dimefm.errors import CacheError

VERSION = 1
FILE = "manifest.json"


@dataclass(frozen=True)
class EncoderCard:
    """Identity of an encoder.

    ``weights_sha256`` is the digest of the tensors, so the same weights in another file have the same identity; it is
    ``None`` for features whose maker is unknown. ``logit_scale`` is the factor itself (100 for OpenAI's CLIP), not its
    log. ``activation`` is "quick_gelu" or "standard": the same weights compute other features with the other one.
    """

    name: str
    weights_sha256: str | None
    dim: int
    logit_scale: float
    logit_bias: float | None = None
    preprocess: dict = field(default_factory=dict)
    tokenizer: str | None = None
    context_length: int | None = None
    activation: str | None = None

    def identity(self) -> dict:
        """Return what must be equal for two caches to be mixed: everything but the name it was called by."""
        fields = dataclasses.asdict(self)
        del fields["name"]
        return fields


@dataclass(frozen=True)
class ShardInfo:
    """One shard: where its rows come from, how many there are, and the proof of its bytes.

    ``source_rows`` rows were read; ``rows`` are stored, in source order; ``bad`` holds the source row numbers that were
    quarantined, ascending. ``source_rows == rows + len(bad)`` always. ``keys_sha256`` is over the stored keys.
    ``source_digest`` tells the content of the source shard from another's; "" where it is not known.
    ``companions_sha256`` is over the shard's companion files (an index), "" where the format has none.
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

    def __post_init__(self):
        if self.source_rows != self.rows + len(self.bad):
            raise CacheError(
                f"{self.file}: {self.source_rows} rows in, but {self.rows} out and {len(self.bad)} quarantined; "
                "the shard is not whole, extract it again"
            )


@dataclass(frozen=True)
class Manifest:
    """The whole description of a cache folder.

    ``how`` holds the settings that decide the vectors (precision, decoder, captions, ...), ``libraries`` the versions that
    computed them. ``code`` is the affine code of int8 rows and ``effect`` what it was measured to cost, None for floats.
    """

    kind: str
    format: str
    dtype: str
    dim: int
    normalized: bool
    encoder: EncoderCard
    how: dict
    libraries: dict
    shards: tuple[ShardInfo, ...] = ()
    version: int = VERSION
    code: dict | None = None
    effect: dict | None = None

    @property
    def rows(self) -> int:
        """Number of stored rows."""
        return sum(shard.rows for shard in self.shards)

    @property
    def views(self) -> int:
        """Number of rows that each source image has: its augmented views, or 1."""
        return (self.how.get("views") or {"count": 1})["count"]

    @property
    def fingerprint(self) -> str:
        """Digest of what was computed: encoder, settings, rows; not of where it lies, its format, dtype or libraries."""
        shards = [(s.source, s.source_rows, list(s.bad), s.keys_sha256, s.source_digest) for s in self.shards]
        what = [self.kind, self.dim, self.normalized, self.encoder.identity(), self.how, shards]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def header(self) -> dict:
        """Return every field but the shards, as plain values."""
        fields = dataclasses.asdict(self)
        del fields["shards"]
        return fields

    def to_json(self) -> str:
        """Return the text of ``manifest.json``."""
        fields = self.header()
        fields["fingerprint"] = self.fingerprint
        fields["shards"] = [dataclasses.asdict(shard) for shard in self.shards]
        return to_json(fields)

    @staticmethod
    def read(root: Path) -> Manifest:
        """Read ``root/manifest.json``; raise CacheError when it is absent, damaged or of another version."""
        path = root / FILE
        if not path.is_file():
            started = (root / ".partial").is_dir()
            remedy = "run the same extract-features command again to finish it" if started else "check the path"
            raise CacheError(f"{root}: no {FILE}, so {'an unfinished' if started else 'no'} cache; {remedy}")
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields.get("version") != VERSION:
                raise CacheError(
                    f"{path}: version {fields.get('version')}, this dimefm reads version {VERSION}; extract again"
                )
            stated = fields.pop("fingerprint")
            fields["encoder"] = EncoderCard(**fields["encoder"])
            fields["shards"] = tuple(ShardInfo(**{**shard, "bad": tuple(shard["bad"])}) for shard in fields["shards"])
            manifest = Manifest(**fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CacheError(f"{path}: damaged ({error}); restore it or extract again") from error
        if manifest.fingerprint != stated:
            raise CacheError(f"{path}: fingerprint {stated[:12]} does not fit its fields; it was edited, extract again")
        return manifest

    def describe(self) -> str:
        """Return a few lines for people."""
        card, bad = self.encoder, sum(len(shard.bad) for shard in self.shards)
        size = sum(shard.bytes for shard in self.shards)
        weights = f"weights {card.weights_sha256[:12]}" if card.weights_sha256 else "weights unknown"
        unit = "unit length" if self.normalized else "not normalised"
        lines = [
            f"{self.rows:,} {self.kind} rows of {self.dtype}[{self.dim}], {unit}",
            f"format       {self.format}, {len(self.shards)} shards, {size:,} bytes ({size / max(self.rows, 1):.0f} a row)",
            f"encoder      {card.name} ({weights}), logit scale {card.logit_scale:.4g}",
            f"quarantined  {bad:,} of {self.rows + bad:,} rows" + (" (see quarantine.jsonl)" if bad else ""),
            f"settings     {', '.join(f'{k}={v}' for k, v in self.how.items()) or 'none stated'}",
            f"fingerprint  {self.fingerprint[:12]}",
        ]
        return "\n".join(lines)


def differences(ours: dict, theirs: dict, prefix: str = "") -> list[str]:
    """Return ``"field: 'ours' against 'theirs'"`` for each leaf that differs between two headers."""
    found = []
    for key in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and max(len(a), len(b)) > 4:
            found += _first_difference(f"{prefix}{key}", list(a), list(b))
        elif a != b and not (isinstance(a, list | tuple) and isinstance(b, list | tuple) and list(a) == list(b)):
            found.append(f"{prefix}{key}: {a!r} against {b!r}")
    return found


def _first_difference(name: str, a: list, b: list) -> list[str]:
    """Return how two long lists differ: their lengths and the first entries that differ."""
    lengths = [f"{len(a)} {name} against {len(b)}"] if len(a) != len(b) else []
    pairs = enumerate(itertools.zip_longest(a, b))
    return lengths + [f"{name}[{i}]: {x!r} against {y!r}" for i, (x, y) in pairs if x != y][:1]
