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
from dimefm.cache.shard_info import ShardInfo
from dimefm.errors import CacheError
from dimefm.runtime.text import first_few
from dimefm.storage.small_files import parse_json
from dimefm.storage.stores import Store, open_store

VERSION = 1
FILE = "manifest.json"
SEAL = '  "seal": '  # start of the last line, which has the SHA-256 of the text before it
KINDS = ("image", "text")
DTYPES = ("float16", "float32", "int8")
UNKNOWN = "unknown"  # name of an encoder that nobody stated; " (REASON)" may follow
LARGEST_DIM = 1_048_576
LARGEST_ROWS = 1 << 62
LARGEST_EXPANSION = 4096  # how many times larger the rows may be than a compressed file of them
LONGEST_VALUE = 80  # characters of a value in a message
QUANTIZATION_ERROR = ("rows", "min_cosine", "mean_cosine", "kl", "logit_scale")
# attributes that have another name in JSON
CARD_KEYS = {"shared_towers": "borrows"}
MANIFEST_KEYS = {"quantization_error": "effect"}


@dataclass(frozen=True)
class EncoderCard:
    """Identity of an encoder.

    ``weights_sha256`` is the digest of the tensors, so the same weights in another file have the
    same identity; it is ``None`` when the encoder is unknown. ``logit_scale`` is the factor itself
    (100 for OpenAI's CLIP), not its log. ``activation`` is "quick_gelu" or "standard": the same
    weights compute other features with the other activation. ``shared_towers`` maps "image" or
    "text" to the identity of the encoder whose tower this encoder uses unchanged: a student may
    have one tower of its own and its teacher's other tower. Its key in JSON is ``borrows``.
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
    shared_towers: dict = field(default_factory=dict)

    @property
    def is_named(self) -> bool:
        """Whether the name says which encoder it is."""
        return self.name != UNKNOWN and not self.name.startswith(f"{UNKNOWN} (")

    @staticmethod
    def from_fields(fields: dict) -> EncoderCard:
        """Return the card of plain values from JSON; raise TypeError for a wrong field."""
        return EncoderCard(**_attributes(fields, CARD_KEYS))

    def check_types(self, prefix: str = "") -> None:
        """Raise ValueError naming a field, after ``prefix``, whose value has the wrong type."""
        number = (int, float)
        nothing = type(None)
        _check_type(f"{prefix}name", self.name, str)
        _check_type(f"{prefix}weights_sha256", self.weights_sha256, (str, nothing))
        _check_type(f"{prefix}dim", self.dim, int)
        _check_type(f"{prefix}logit_scale", self.logit_scale, number)
        _check_type(f"{prefix}logit_bias", self.logit_bias, (*number, nothing))
        _check_type(f"{prefix}preprocess", self.preprocess, dict)
        _check_type(f"{prefix}tokenizer", self.tokenizer, (str, nothing))
        _check_type(f"{prefix}context_length", self.context_length, (int, nothing))
        _check_type(f"{prefix}activation", self.activation, (str, nothing))
        _check_type(f"{prefix}borrows", self.shared_towers, dict)

    def fields(self) -> dict:
        """Return plain values for JSON."""
        return _json_fields(dataclasses.asdict(self), CARD_KEYS)

    def identity(self) -> dict:
        """Return the fields that must be equal for two caches to be used together.

        These are all fields but the name, and ``shared_towers``, which ``weights_sha256`` covers.
        """
        fields = dataclasses.asdict(self)
        del fields["name"]
        del fields["shared_towers"]
        return fields


def encoder_mismatch(images: EncoderCard, texts: EncoderCard) -> list[str]:
    """Return why image features of one encoder cannot be compared with text features of another.

    Each reason is ``"field: a against b"``. There is none when both cards are of one encoder, or
    one encoder shares the tower that made the features of the other.
    """
    if images.shared_towers.get("text") == texts.identity():
        return []
    if texts.shared_towers.get("image") == images.identity():
        return []
    return differences(images.identity(), texts.identity())


@dataclass(frozen=True)
class Manifest:
    """The whole description of a cache folder.

    ``how`` holds the settings that decide the vectors (precision, decoder, captions, ...),
    ``libraries`` the versions that computed them. ``code`` is the affine code of int8 rows and
    ``quantization_error`` its measured cost (``effect`` in JSON); both are None for floats.
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
    quantization_error: dict | None = None

    @property
    def rows(self) -> int:
        """Number of stored rows."""
        return sum(shard.rows for shard in self.shards)

    @property
    def views(self) -> int:
        """Number of rows of each source row: of its views (image or text), its tokens, or 1."""
        for name in ("views", "text_views", "tokens"):
            setting = self.how.get(name)
            if setting:
                return setting["count"]
        return 1

    @property
    def itemsize(self) -> int:
        """Bytes of one stored number."""
        return {"float32": 4, "float16": 2, "int8": 1}[self.dtype]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of what was computed: encoder, settings, rows.

        It does not depend on where the cache lies, nor on its format, dtype or libraries.
        """
        what = [self.kind, self.dim, self.normalized, self.encoder.identity(), self.how]
        unclosed = json.dumps(what, sort_keys=True)[:-1]
        # the digest of one JSON text, whose last entry is the list of the shards
        digest = hashlib.sha256(unclosed.encode() + b", [")
        separator = ""
        for shard in self.shards:
            identity = (
                shard.source,
                shard.source_rows,
                shard.bad,
                shard.keys_sha256,
                shard.source_digest,
            )
            text = separator + json.dumps(identity)
            digest.update(text.encode())
            separator = ", "
        digest.update(b"]]")
        return digest.hexdigest()

    def header(self) -> dict:
        """Return every field but the shards, as plain values for JSON."""
        without_shards = dataclasses.replace(self, shards=())
        fields = dataclasses.asdict(without_shards)
        del fields["shards"]
        fields["encoder"] = self.encoder.fields()
        return _json_fields(fields, MANIFEST_KEYS)

    def to_json(self) -> str:
        """Return the text of ``manifest.json``.

        It has one field a line, one shard a line, and at the end the digest of all before it.
        """
        fields = {**self.header(), "fingerprint": self.fingerprint}
        text = "{\n"
        for name, value in fields.items():
            text += f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)},\n"
        shard_lines = []
        for shard in self.shards:
            shard_fields = dataclasses.asdict(shard)
            shard_lines.append(f"    {json.dumps(shard_fields, ensure_ascii=False)}")
        text += '  "shards": [\n' + ",\n".join(shard_lines) + "\n  ],\n"
        seal = hashlib.sha256(text.encode()).hexdigest()
        return f'{text}{SEAL}"{seal}"\n}}\n'

    @staticmethod
    def read(root: str | Path | Store) -> Manifest:
        """Read ``manifest.json`` of a cache folder or URL.

        Raises CacheError when it is absent, damaged or newer.
        """
        store = root if isinstance(root, Store) else open_store(root)
        where = store.where(FILE)
        text = _read_text(store)
        try:
            fields = parse_json(text, _number_sharing_hook())
            version = fields.get("version")
            if version != VERSION:
                raise CacheError(
                    f"{where}: version {version!r}, this dimefm reads version {VERSION}. Fix:"
                    " install a newer dimefm, or extract again"
                )
            fingerprint = fields.pop("fingerprint")
            seal = fields.pop("seal")
            manifest = Manifest.from_fields(fields)
        except CacheError as error:
            if str(error).startswith(where):
                raise
            raise CacheError(f"{where}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _damaged(where, error) from error
        sealed_text = text.rpartition(SEAL)[0]
        computed_seal = hashlib.sha256(sealed_text.encode()).hexdigest()
        if computed_seal != seal or manifest.fingerprint != fingerprint:
            raise CacheError(
                f"{where}: its seal or its fingerprint does not fit it; it was edited. Fix:"
                " restore it, or extract again"
            )
        return manifest

    @staticmethod
    def from_fields(fields: dict) -> Manifest:
        """Return the manifest of plain values, as JSON holds them.

        Raises ValueError, KeyError or TypeError for values that no manifest has.
        """
        attributes = _attributes(fields, MANIFEST_KEYS)
        attributes["encoder"] = EncoderCard.from_fields(fields["encoder"])
        attributes["shards"] = tuple(
            ShardInfo.from_fields(shard) for shard in fields.get("shards", ())
        )
        manifest = Manifest(**attributes)
        manifest._check_choices()
        manifest._check_dim_and_views()
        manifest._check_types()
        manifest._check_sizes()
        manifest._check_files()
        manifest._check_code()
        return manifest

    def _check_choices(self) -> None:
        choices = {"kind": KINDS, "dtype": DTYPES, "normalized": (True, False)}
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                expected = ", ".join(map(repr, known))
                raise ValueError(f"{name} is {value!r}, expected one of {expected}")

    def _check_dim_and_views(self) -> None:
        if type(self.dim) is not int or not 0 < self.dim <= LARGEST_DIM:
            raise ValueError(
                f"dim is {self.dim!r}, expected a whole number from 1 to {LARGEST_DIM:,}"
            )
        if not isinstance(self.how, dict) or type(self.views) is not int or self.views < 1:
            raise ValueError(
                "how must be a table, and its views.count a whole number of at least 1"
            )

    def _check_types(self) -> None:
        """Raise ValueError naming a field whose value has the wrong type."""
        number = (int, float)
        _check_type("format", self.format, str)
        _check_type("libraries", self.libraries, dict)
        self.encoder.check_types("encoder.")
        if self.quantization_error is not None:
            for name in QUANTIZATION_ERROR:
                _check_type(f"effect.{name}", (self.quantization_error or {}).get(name), number)

    def _check_sizes(self) -> None:
        """Raise ValueError when a shard has more rows than a file of its size can hold."""
        row_bytes = self.dim * self.itemsize
        for shard in self.shards:
            if shard.offset is not None:
                most = (shard.bytes - shard.offset) // row_bytes
            else:
                most = shard.bytes * LARGEST_EXPANSION // row_bytes
            if shard.rows > most or shard.source_rows >= LARGEST_ROWS:
                raise ValueError(
                    f"shard {shard.file!r}: {shard.rows} rows of {row_bytes} bytes in"
                    f" {shard.bytes} bytes"
                )
        if self.rows >= LARGEST_ROWS:
            raise ValueError(f"{self.rows} rows")

    def _check_files(self) -> None:
        counts = Counter(shard.file for shard in self.shards)
        for file, count in counts.items():
            if count > 1:
                raise ValueError(f"two shards are in one file, {file!r}")

    def _check_code(self) -> None:
        if self.dtype == "int8" and self.code is None:
            raise ValueError("dtype int8 without a code")
        if self.code is None:
            return
        if self.dtype != "int8":
            raise ValueError(f"dtype {self.dtype} with a code")
        quantizer = AffineQuantizer.from_fields(self.code)
        if len(quantizer.scale) != self.dim:
            raise ValueError(f"code: expected {self.dim} scales and offsets")

    def describe(self) -> str:
        """Return a human-readable summary of a few lines."""
        card = self.encoder
        bad = sum(len(shard.bad) for shard in self.shards)
        size = sum(shard.bytes for shard in self.shards)
        row_bytes = size / max(self.rows, 1)
        unit = "unit length" if self.normalized else "not normalised"
        plural = "s" if len(self.shards) != 1 else ""
        shards = f"{len(self.shards):,} shard{plural}"
        weights = "weights unknown"
        if card.weights_sha256:
            weights = f"weights {card.weights_sha256[:12]}"
        quarantined = f"quarantined  {bad:,} of {self.rows + bad:,} rows"
        if bad:
            quarantined += " (dimefm cache quarantine lists them)"
        settings = ", ".join(f"{name}={_short(value)}" for name, value in self.how.items())
        lines = [
            f"{self.rows:,} {self.kind} rows of {self.dtype}[{self.dim}], {unit}",
            f"format       {self.format}, {shards}, {size:,} bytes ({row_bytes:.0f} a row)",
            f"encoder      {card.name} ({weights}), logit scale {card.logit_scale:.4g}",
            quarantined,
            f"settings     {settings or 'none stated'}",
            f"fingerprint  {self.fingerprint[:12]}",
        ]
        if self.quantization_error:
            cost = describe_quantization_error(self.quantization_error)
            lines.insert(2, f"int8 cost    {cost}")
        return "\n".join(lines)


def _json_fields(attributes: dict, json_keys: dict[str, str]) -> dict:
    """Return ``attributes`` in their order, under the names that they have in JSON."""
    return {json_keys.get(name, name): value for name, value in attributes.items()}


def _attributes(fields: dict, json_keys: dict[str, str]) -> dict:
    """Return the ``fields`` of JSON under the names of the attributes."""
    if not isinstance(fields, dict):
        raise TypeError(f"{fields!r} is no table")
    attribute_names = {key: name for name, key in json_keys.items()}
    attributes = {}
    for key, value in fields.items():
        if key in json_keys:
            raise TypeError(f"unknown field {key!r}")
        attributes[attribute_names.get(key, key)] = value
    return attributes


def _check_type(name: str, value: object, expected: type | tuple[type, ...]) -> None:
    """Raise ValueError unless ``value`` has an ``expected`` type; a bool is no number."""
    if not isinstance(value, expected) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}")


def _read_text(store: Store) -> str:
    """Return the text of ``manifest.json``; raise CacheError when it is absent or is no text."""
    where = store.where(FILE)
    try:
        text = store.read(FILE)
    except UnicodeDecodeError as error:
        raise _damaged(where, error) from error
    if text is not None:
        return text
    is_started = store.size(".partial/plan.json") is not None
    if is_started:
        raise CacheError(
            f"{store}: no {FILE}, so an unfinished cache. Fix: run the same extract-features"
            " command again to finish it"
        )
    raise CacheError(f"{store}: no {FILE}, so no cache. Fix: check the path")


def _damaged(where: str, error: Exception) -> CacheError:
    return CacheError(f"{where}: damaged ({error}). Fix: restore it, or extract again")


def _number_sharing_hook() -> Callable[[dict], dict]:
    """Return a hook for JSON that keeps equal numbers of ``bad`` as one object.

    Many shards may have the same bad rows; this bounds the memory of their numbers.
    """
    seen: dict[int, int] = {}

    def shared(row):
        return seen.setdefault(row, row) if type(row) is int else row

    def hook(fields: dict) -> dict:
        if isinstance(fields.get("bad"), list):
            fields["bad"] = tuple(shared(row) for row in fields["bad"])
        return fields

    return hook


def describe_quantization_error(cost: dict) -> str:
    """Return a human-readable summary of what a coarser dtype was measured to cost."""
    return (
        f"cosine at least {cost['min_cosine']:.6f}, mean {cost['mean_cosine']:.6f}; KL"
        f" {cost['kl']:.1e} at scale {cost['logit_scale']:.4g} (on {cost['rows']:,} rows)"
    )


def _short(value: object) -> str:
    if isinstance(value, dict):
        entries = [f"{key}={_short(entry)}" for key, entry in value.items()]
        return "{" + ", ".join(entries) + "}"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def differences(first: dict, second: dict, prefix: str = "") -> list[str]:
    """Return ``"field: a against b"`` for each leaf that differs between two headers."""
    lines = []
    for key in sorted(first.keys() | second.keys()):
        name = f"{prefix}{key}"
        a = first.get(key)
        b = second.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{name}.")
        elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
            lines += _list_differences(name, a, b)
        elif a != b:
            lines.append(f"{name}: {_shown(a)} against {_shown(b)}")
    return lines


def _shown(value: object) -> str:
    """Return a value for a message: a table as its keys, a long text by its beginning."""
    if isinstance(value, dict):
        keys = first_few(sorted(map(str, value)), 4)
        return f"a table of {keys or 'nothing'}"
    text = repr(value)
    if len(text) > LONGEST_VALUE:
        text = text[:LONGEST_VALUE] + "..."
    return text


def _list_differences(name: str, a: list | tuple, b: list | tuple) -> list[str]:
    """Return how two lists differ; of long lists, the lengths and the first differing entries."""
    if max(len(a), len(b)) <= 4:
        return [] if list(a) == list(b) else [f"{name}: {_shown(a)} against {_shown(b)}"]
    lines = []
    if len(a) != len(b):
        lines.append(f"{len(a)} {name} against {len(b)}")
    for place, (x, y) in enumerate(itertools.zip_longest(a, b)):
        if x != y:
            lines.append(f"{name}[{place}]: {_shown(x)} against {_shown(y)}")
            break
    return lines
