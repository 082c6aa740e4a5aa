"""What a cache is and how it was made."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dimefm.cache.int8 import AffineQuantizer
from dimefm.errors import CacheError
from dimefm.storage.stores import Store, open_store, safe

VERSION = 1
FILE = "manifest.json"
SEAL = '  "seal": '  # of the last line: SHA-256 of the text before it
KINDS = ("image", "text")
DTYPES = ("float16", "float32", "int8")
LARGEST_DIM = 1_048_576
EFFECT = ("rows", "min_cosine", "mean_cosine", "kl", "logit_scale")
MOST = 4096  # times that rows may be larger than the compressed file that holds them


@dataclass(frozen=True)
class EncoderCard:
    """Identity of an encoder.

    ``weights_sha256`` is the digest of the tensors, so the same weights in another file have the
    same identity; it is ``None`` for features whose maker is unknown. ``logit_scale`` is the factor
    itself (100 for OpenAI's CLIP), not its log. ``activation`` is "quick_gelu" or "standard": the
    same weights compute other features with the other one. ``borrows`` maps "image" or "text" to
    the identity of the encoder whose tower this one uses as it is: a student has one tower of its
    own and its teacher's other one.
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
    borrows: dict = field(default_factory=dict)

    def identity(self) -> dict:
        """Return what must be equal for two caches to be mixed: everything but the name it was
        called by, and ``borrows``, which the weights' digest covers."""
        fields = dataclasses.asdict(self)
        del fields["name"], fields["borrows"]
        return fields


def encoder_mismatch(images: EncoderCard, texts: EncoderCard) -> list[str]:
    """Return what keeps image features of one encoder and text features of another from being
    compared, as ``"field: a against b"``; nothing when they are one encoder, or one of them borrows
    the tower that made the other's.
    """
    if (
        images.borrows.get("text") == texts.identity()
        or texts.borrows.get("image") == images.identity()
    ):
        return []
    return differences(images.identity(), texts.identity())


@dataclass(frozen=True)
class ShardInfo:
    """One shard: where its rows come from, how many there are, and the proof of its bytes.

    ``source_rows`` rows were read; ``rows`` are stored, in source order; ``bad`` holds the source
    row numbers that were quarantined, ascending. ``source_rows == rows + len(bad)`` always.
    ``keys_sha256`` is over the stored keys. ``source_digest`` tells the content of the source shard
    from another's; "" where it is not known. ``companions_sha256`` is over the shard's companion
    files (an index), "" where the format has none. ``offset`` is the byte at which the rows lie in
    the file as one little-endian array [rows, dim]; None where they do not.
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
                " quarantined; the shard is not whole, extract it again"
            )

    @staticmethod
    def of(fields: dict) -> ShardInfo:
        """Return the shard that a manifest or record describes; raise ValueError naming a field
        that cannot be.
        """
        info = ShardInfo(**{**fields, "bad": tuple(fields["bad"])})
        counts = {name: getattr(info, name) for name in ("source_rows", "rows", "bytes")}
        wrong = next(
            (name for name, value in counts.items() if type(value) is not int or value < 0), None
        )
        if wrong:
            raise ValueError(
                f"shard {info.file!r}: {wrong} is {counts[wrong]!r}, expected a whole number of at"
                " least 0"
            )
        texts = ("sha256", "keys_sha256", "source_digest", "companions_sha256")
        wrong = next((name for name in texts if not isinstance(getattr(info, name), str)), None)
        if wrong:
            raise ValueError(
                f"shard {info.file!r}: {wrong} is {getattr(info, wrong)!r}, expected a text"
            )
        if (
            not isinstance(info.file, str)
            or not safe(info.file)
            or not isinstance(info.source, str)
        ):
            raise ValueError(
                f"shard file {info.file!r} of source {info.source!r} leads outside the cache"
            )
        places = [-1, *info.bad, info.source_rows]
        if any(type(row) is not int for row in info.bad) or any(
            a >= b for a, b in itertools.pairwise(places)
        ):
            raise ValueError(
                f"shard {info.file!r}: bad rows must be ascending numbers below {info.source_rows}"
            )
        if info.offset is not None and (
            type(info.offset) is not int or not 0 <= info.offset <= info.bytes
        ):
            raise ValueError(
                f"shard {info.file!r}: offset {info.offset!r} lies outside its {info.bytes} bytes"
            )
        return info


@dataclass(frozen=True)
class Manifest:
    """The whole description of a cache folder.

    ``how`` holds the settings that decide the vectors (precision, decoder, captions, ...),
    ``libraries`` the versions that computed them. ``code`` is the affine code of int8 rows and
    ``effect`` what it was measured to cost, None for floats.
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
        """Number of rows that each source row has: its augmented views, of an image or its
        sentences, its tokens, or 1.
        """
        several = (self.how.get(name) for name in ("views", "text_views", "tokens"))
        return next(filter(None, several), {"count": 1})["count"]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of what was computed: encoder, settings, rows; not of where it lies, its format,
        dtype or libraries.
        """
        what = [self.kind, self.dim, self.normalized, self.encoder.identity(), self.how]
        digest = hashlib.sha256(json.dumps(what, sort_keys=True)[:-1].encode() + b", [")
        for number, s in enumerate(self.shards):
            shard = json.dumps((s.source, s.source_rows, s.bad, s.keys_sha256, s.source_digest))
            digest.update((", " if number else "").encode() + shard.encode())
        digest.update(b"]]")
        return digest.hexdigest()

    def header(self) -> dict:
        """Return every field but the shards, as plain values."""
        fields = dataclasses.asdict(self)
        del fields["shards"]
        return fields

    def to_json(self) -> str:
        """Return the text of ``manifest.json``: one field a line, one shard a line, at the end the
        digest of all that.
        """
        fields = {**self.header(), "fingerprint": self.fingerprint}
        lines = [
            f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)},\n"
            for name, value in fields.items()
        ]
        shards = [
            f"    {json.dumps(dataclasses.asdict(shard), ensure_ascii=False)}"
            for shard in self.shards
        ]
        text = "{\n" + "".join(lines) + '  "shards": [\n' + ",\n".join(shards) + "\n  ],\n"
        return f'{text}{SEAL}"{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n'

    @staticmethod
    def read(root: str | Path | Store) -> Manifest:
        """Read ``manifest.json`` of a cache folder or URL; raise CacheError when it is absent,
        damaged or newer.
        """
        store = root if isinstance(root, Store) else open_store(root)
        where = store.where(FILE)
        try:
            text = store.read(FILE)
        except UnicodeDecodeError as error:
            raise CacheError(f"{where}: damaged ({error}); restore it or extract again") from error
        if text is None:
            started = store.size(".partial/plan.json") is not None
            remedy = (
                "run the same extract-features command again to finish it"
                if started
                else "check the path"
            )
            raise CacheError(
                f"{store}: no {FILE}, so {'an unfinished' if started else 'no'} cache; {remedy}"
            )
        try:
            fields = json.loads(text, object_hook=_shared({}))
            if fields.get("version") != VERSION:
                raise CacheError(
                    f"{where}: version {fields.get('version')!r}, this dimefm reads version"
                    f" {VERSION}; install a newer dimefm, or extract again"
                )
            stated, seal = fields.pop("fingerprint"), fields.pop("seal")
            manifest = Manifest.of(fields)
        except CacheError as error:
            raise (
                error if str(error).startswith(where) else CacheError(f"{where}: {error}")
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CacheError(f"{where}: damaged ({error}); restore it or extract again") from error
        if (
            hashlib.sha256(text.rpartition(SEAL)[0].encode()).hexdigest() != seal
            or manifest.fingerprint != stated
        ):
            raise CacheError(
                f"{where}: its seal or its fingerprint does not fit it; it was edited, restore it"
                " or extract again"
            )
        return manifest

    @staticmethod
    def of(fields: dict) -> Manifest:
        """Return the manifest of plain values; raise ValueError, KeyError or TypeError for one that
        cannot be.
        """
        encoder = EncoderCard(**fields["encoder"])
        shards = tuple(ShardInfo.of(shard) for shard in fields.get("shards", ()))
        manifest = Manifest(**{**fields, "encoder": encoder, "shards": shards})
        for name, known in (("kind", KINDS), ("dtype", DTYPES), ("normalized", (True, False))):
            if getattr(manifest, name) not in known:
                raise ValueError(
                    f"{name} is {getattr(manifest, name)!r}, expected one of"
                    f" {', '.join(map(repr, known))}"
                )
        if type(manifest.dim) is not int or not 0 < manifest.dim <= LARGEST_DIM:
            raise ValueError(
                f"dim is {manifest.dim!r}, expected a whole number from 1 to {LARGEST_DIM:,}"
            )
        if (
            not isinstance(manifest.how, dict)
            or type(manifest.views) is not int
            or manifest.views < 1
        ):
            raise ValueError(
                "how must be a table, and its views.count a whole number of at least 1"
            )
        manifest._check_types()
        twice = [
            file for file, count in Counter(shard.file for shard in shards).items() if count > 1
        ]
        if twice:
            raise ValueError(f"two shards are in one file, {twice[0]!r}")
        if (manifest.dtype == "int8") != (manifest.code is not None):
            raise ValueError(
                f"dtype {manifest.dtype} with{'out' if manifest.code is None else ''} a code"
            )
        if (
            manifest.code is not None
            and len(AffineQuantizer.of(manifest.code).scale) != manifest.dim
        ):
            raise ValueError(f"code: expected {manifest.dim} scales and offsets")
        return manifest

    def _check_types(self) -> None:
        """Raise ValueError naming a field whose value is of the wrong kind, or rows that no file of
        that size can hold.
        """
        card, number = self.encoder, (int, float)
        for name, value, kind in (
            ("format", self.format, str),
            ("libraries", self.libraries, dict),
            ("encoder.name", card.name, str),
            ("encoder.weights_sha256", card.weights_sha256, str | None),
            ("encoder.logit_scale", card.logit_scale, number),
            ("encoder.borrows", card.borrows, dict),
            *(
                (f"effect.{name}", (self.effect or {}).get(name), number)
                for name in EFFECT
                if self.effect is not None
            ),
        ):
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}")
        width = self.dim * self.itemsize
        for shard in self.shards:
            most = (
                (shard.bytes - shard.offset) // width
                if shard.offset is not None
                else shard.bytes * MOST // width
            )
            if shard.rows > most or shard.source_rows >= 1 << 62:
                raise ValueError(
                    f"shard {shard.file!r}: {shard.rows} rows of {width} bytes in {shard.bytes}"
                    " bytes"
                )
        if self.rows >= 1 << 62:
            raise ValueError(f"{self.rows} rows")

    @property
    def itemsize(self) -> int:
        """Bytes of one stored number."""
        return {"float32": 4, "float16": 2, "int8": 1}[self.dtype]

    def describe(self) -> str:
        """Return a few lines for people."""
        card, bad = self.encoder, sum(len(shard.bad) for shard in self.shards)
        size = sum(shard.bytes for shard in self.shards)
        weights = (
            f"weights {card.weights_sha256[:12]}" if card.weights_sha256 else "weights unknown"
        )
        unit = "unit length" if self.normalized else "not normalised"
        shards = f"{len(self.shards):,} shard{'s' * (len(self.shards) != 1)}"
        lines = [
            f"{self.rows:,} {self.kind} rows of {self.dtype}[{self.dim}], {unit}",
            (
                f"format       {self.format}, {shards}, {size:,} bytes"
                f" ({size / max(self.rows, 1):.0f} a row)"
            ),
            f"encoder      {card.name} ({weights}), logit scale {card.logit_scale:.4g}",
            f"quarantined  {bad:,} of {self.rows + bad:,} rows"
            + (" (dimefm cache quarantine lists them)" if bad else ""),
            (
                "settings    "
                f" {', '.join(f'{k}={_short(v)}' for k, v in self.how.items()) or 'none stated'}"
            ),
            f"fingerprint  {self.fingerprint[:12]}",
        ]
        if self.effect:
            cost = self.effect
            lines.insert(2, f"int8 cost    {describe_effect(cost)}")
        return "\n".join(lines)


def _shared(seen: dict[int, int]) -> Callable[[dict], dict]:
    """Return a hook for JSON that keeps each number of ``bad`` once, however many shards have
    it.
    """

    def hook(fields: dict) -> dict:
        if isinstance(fields.get("bad"), list):
            fields["bad"] = tuple(
                seen.setdefault(row, row) if type(row) is int else row for row in fields["bad"]
            )
        return fields

    return hook


def describe_effect(cost: dict) -> str:
    """Return what a coarser dtype was measured to cost, for people."""
    return (
        f"cosine at least {cost['min_cosine']:.6f}, mean {cost['mean_cosine']:.6f}; KL"
        f" {cost['kl']:.1e} at scale {cost['logit_scale']:.4g} (on {cost['rows']:,} rows)"
    )


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}={_short(v)}" for k, v in value.items()) + "}"
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def differences(ours: dict, theirs: dict, prefix: str = "") -> list[str]:
    """Return ``"field: 'ours' against 'theirs'"`` for each leaf that differs between two
    headers.
    """
    found = []
    for key in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif (
            isinstance(a, list | tuple) and isinstance(b, list | tuple) and max(len(a), len(b)) > 4
        ):
            found += _first_difference(f"{prefix}{key}", list(a), list(b))
        elif a != b and not (
            isinstance(a, list | tuple) and isinstance(b, list | tuple) and list(a) == list(b)
        ):
            found.append(f"{prefix}{key}: {a!r} against {b!r}")
    return found


def _first_difference(name: str, a: list, b: list) -> list[str]:
    """Return how two long lists differ: their lengths and the first entries that differ."""
    lengths = [f"{len(a)} {name} against {len(b)}"] if len(a) != len(b) else []
    pairs = enumerate(itertools.zip_longest(a, b))
    return lengths + [f"{name}[{i}]: {x!r} against {y!r}" for i, (x, y) in pairs if x != y][:1]
