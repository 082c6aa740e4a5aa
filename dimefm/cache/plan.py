"""The files of an unfinished cache: its plan, its shards' names, and the locks of its writers."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from dimefm.cache.manifest import FILE, Manifest
from dimefm.errors import CacheError
from dimefm.storage.files import remove_abandoned, remove_new_dirs_on_error
from dimefm.storage.locks import PLATFORM_HAS_LOCKS, Claim
from dimefm.storage.out_folder import refuse_foreign
from dimefm.storage.small_files import parse_json
from dimefm.storage.stores import Store, open_store

QUARANTINE = "quarantine.jsonl"
SKIPPED = "skipped.json"  # what the sources hold besides rows
SYNONYMS = "synonyms.tsv"  # the table of synonyms of text views, when it is not the built-in one
PARTIAL = ".partial"
RESERVED = (PARTIAL, ".flat")  # folders of a cache that hold no shards
LONGEST_STEM = 200  # bytes of a name; endings follow, and file systems take 255
KEPT_OF_LONG = 160  # bytes that are kept of a longer one
PLAN = f"{PARTIAL}/plan.json"
REPLACED = f"{PARTIAL}/replaced.json"
WRITERS = f"{PARTIAL}/writers"  # the claim of the processes that write to the cache


def read_plan(root: str | Path, scratch: str | Path | None = None) -> Manifest | None:
    """Return the manifest of the cache at ``root``, without shards when it is unfinished.

    Returns None when there is no cache.
    """
    store = open_store(root, scratch)
    if store.size(FILE) is not None:
        return Manifest.read(store)
    text = text_of(store, PLAN)
    return None if text is None else header_of(store.where(PLAN), text)


@contextlib.contextmanager
def write_lock(
    root: str | Path,
    *,
    shared: bool,
    scratch: str | Path | None = None,
    needs_lock: bool = False,
) -> Iterator[None]:
    """Claim the cache at ``root`` for writing until the block ends.

    Several processes may hold ``shared`` claims. A block that ends in an error before any shard is
    finished leaves no plan and no new folder behind; an interrupt is no error. Raises CacheError
    when another process writes there, and, with ``needs_lock``, when the disk has no locks to tell
    that. A shared claim of a finished cache claims nothing.
    """
    store = open_store(root, scratch)
    if shared and store.size(FILE) is not None:
        yield
        return
    refuse_foreign(root, "cache", [FILE, PARTIAL, "*.feat.*"])
    with remove_new_dirs_on_error(store.root):
        with plan_lock(root, scratch):
            claim = _claim_writing(store, shared, needs_lock)
        remove_abandoned(store.root)
        try:
            yield
        except Exception:
            with plan_lock(root, scratch):
                if claim.last():
                    _remove_unused_plan(store)
                claim.release()
            raise
        finally:
            claim.release()


def _claim_writing(store: Store, shared: bool, needs_lock: bool) -> Claim:
    try:
        claim = store.claim(WRITERS, shared=shared)
    except OSError:
        return Claim()  # the folder cannot be written; the writer raises the error
    if claim is None:
        raise CacheError(
            f"{store}: another process is writing there. Fix: wait until it has ended, or stop it"
        )
    if needs_lock and PLATFORM_HAS_LOCKS and not claim.is_locked:
        claim.release()
        store.remove(WRITERS)
        raise CacheError(
            f"{store}: the disk has no locks (flock), so two processes could write one shard. Fix:"
            " give each process a part of its own with --shard-range I/N (0/1 when there is only"
            " one process), or use another --out"
        )
    return claim


def _remove_unused_plan(store: Store) -> None:
    """Remove the plan of a cache without finished shards, so that another plan can follow."""
    not_records = {Path(PLAN).name, Path(REPLACED).name}
    names = {path.name for path in (store.root / PARTIAL).glob("*.json")}
    has_finished_shards = bool(names - not_records)
    if has_finished_shards or store.size(FILE) is not None:
        return
    with contextlib.suppress(OSError):
        if store.size(PLAN) is not None:
            store.remove(SYNONYMS)
        store.remove(PARTIAL)


def plan_lock(root: str | Path, scratch: str | Path | None = None) -> Claim:
    """Claim the planning of a cache; wait until no other process holds it."""
    try:
        return open_store(root, scratch).claim(f"{PARTIAL}/plan.lock", wait=True) or Claim()
    except OSError:
        return Claim()


def text_of(store: Store, name: str) -> str | None:
    """Return a text file of a store, None when it does not exist.

    Raises CacheError when the file is no text.
    """
    try:
        return store.read(name)
    except UnicodeDecodeError as error:
        raise CacheError(
            f"{store.where(name)}: damaged ({error}). Fix: restore it, or remove the folder and run"
            " again"
        ) from error


def header_of(where: str, text: str) -> Manifest:
    """Return the manifest, without shards, in the text of a plan.

    Raises CacheError when the plan is damaged.
    """
    try:
        fields = parse_json(text)
        header = {name: value for name, value in fields.items() if name != "sources"}
        return Manifest.from_fields(header)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CacheError(
            f"{where}: damaged ({error}). Fix: remove the folder and run the same command again"
        ) from error


def shard_files(sources: Sequence[str], suffix: str) -> dict[str, str]:
    """Return source name -> shard file.

    The source's last extension is replaced by ``.feat`` and the format's suffix. Sources that would
    share a file keep their extension in its name. A name that no file of a cache can have is
    changed, see :func:`_storable`.
    """
    stems = {name: _without_extension(name) for name in sources}
    while True:
        counts = Counter(stems.values())
        shared = {stem for stem, count in counts.items() if count > 1}
        if not shared:
            break
        for name, stem in stems.items():
            if stem in shared:
                stems[name] = name
    return {name: f"{_storable(stem)}.feat{suffix}" for name, stem in stems.items()}


def _storable(stem: str) -> str:
    """Return a stem as a file of a cache may have it.

    The folders that a cache has itself, backslashes, drives and long names are replaced; a digest
    at the end then keeps names apart.
    """
    first, slash, rest = stem.partition("/")
    if slash and first.casefold() in RESERVED:
        first = f"%2E{first[1:]}"
    changed = f"{first}{slash}{rest}".replace("\\", "%5C")
    if changed[1:2] == ":":
        changed = f"{changed[0]}%3A{changed[2:]}"
    folder, slash, last = changed.rpartition("/")
    if len(last.encode()) > LONGEST_STEM:
        last = _shortened(last)
        changed = f"{folder}{slash}{last}"
    if changed == stem:
        return stem
    return f"{changed}-{_digest(stem)}"


def flat_name(file: str) -> str:
    """Return the one name, without folders, by which a file of a cache is known."""
    name = file.replace("%", "%25").replace("/", "%2F")
    if len(name.encode()) <= LONGEST_STEM:
        return name
    return f"{_shortened(name)}-{_digest(file)}"


def _shortened(name: str) -> str:
    """Return the start of a name."""
    return name.encode()[:KEPT_OF_LONG].decode("utf-8", "ignore")


def _digest(name: str) -> str:
    """Return a few digits that tell a name from others."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def _without_extension(name: str) -> str:
    _, _, last_part = name.rpartition("/")
    if "." not in last_part:
        return name
    stem, _, _ = name.rpartition(".")
    return stem


def next_name(file: str, suffix: str) -> str:
    """Return the next name for a shard: ``a.feat.h5``, ``a.r1.feat.h5``, ``a.r2.feat.h5``, ..."""
    stem = file.removesuffix(f".feat{suffix}")
    head, separator, number = stem.rpartition(".r")
    if separator and number.isdecimal():
        return f"{head}.r{int(number) + 1}.feat{suffix}"
    return f"{stem}.r1.feat{suffix}"
