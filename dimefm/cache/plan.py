"""What a cache is to become: its plan, the names of its files, and which processes are making
it.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from dimefm.cache.manifest import FILE, Manifest
from dimefm.errors import CacheError
from dimefm.storage.files import remove_new_dirs_on_error
from dimefm.storage.locks import Claim
from dimefm.storage.stores import Store, open_store

QUARANTINE = "quarantine.jsonl"
SYNONYMS = (  # the table that text views were drawn with, where it is not the built-in one
    "synonyms.tsv"
)
PARTIAL = ".partial"
PLAN = f"{PARTIAL}/plan.json"
REPLACED = f"{PARTIAL}/replaced.json"


def read_plan(root: str | Path, scratch: str | Path | None = None) -> Manifest | None:
    """Return the manifest of the cache at ``root``, the header (no shards) of an unfinished one,
    None when there is none.
    """
    store = open_store(root, scratch)
    if store.size(FILE) is not None:
        return Manifest.read(store)
    text = text_of(store, PLAN)
    return None if text is None else header_of(store.where(PLAN), text)


@contextlib.contextmanager
def write_lock(
    root: str | Path, *, shared: bool, scratch: str | Path | None = None
) -> Iterator[None]:
    """Claim the cache at ``root`` for writing, alone or together with others that write ``shared``,
    until the block ends.

    A block that ends in an error before any shard is finished leaves no plan behind, and no folder
    that was not there; an interrupt is no error. Raises CacheError when another process writes
    there. A finished cache is not claimed to share the making of it.
    """
    store = open_store(root, scratch)
    if shared and store.size(FILE) is not None:
        yield
        return
    with remove_new_dirs_on_error(store.root):
        with plan_lock(root, scratch):
            found = _claimed(store, shared)
        try:
            yield
        except Exception:
            with plan_lock(root, scratch):
                if found.last():
                    _forget_idle(store)
                found.release()
            raise
        finally:
            found.release()


def _claimed(store: Store, shared: bool) -> Claim:
    try:
        found = store.claim(f"{PARTIAL}/writers", shared=shared)
    except OSError:
        return Claim()  # nothing can be written there, as the writer will say
    if found is None:
        raise CacheError(
            f"{store}: another process is writing there; wait until it has ended, or stop it"
        )
    return found


def _forget_idle(store: Store) -> None:
    """Remove the plan of a cache of which no shard is finished: it binds nobody."""
    records = {path.name for path in (store.root / PARTIAL).glob("*.json")} - {
        Path(PLAN).name,
        Path(REPLACED).name,
    }
    if records or store.size(FILE) is not None:
        return
    with contextlib.suppress(OSError):
        if store.size(PLAN) is not None:
            store.remove(SYNONYMS)
        store.remove(PARTIAL)


def plan_lock(root: str | Path, scratch: str | Path | None = None) -> Claim:
    """Claim the planning of a cache, once whoever holds that has released it."""
    try:
        return open_store(root, scratch).claim(f"{PARTIAL}/plan.lock", wait=True) or Claim()
    except OSError:
        return Claim()


def text_of(store: Store, name: str) -> str | None:
    """Return a text file of a store, None when it is not there; raise CacheError when it is no
    text.
    """
    try:
        return store.read(name)
    except UnicodeDecodeError as error:
        raise CacheError(
            f"{store.where(name)}: damaged ({error}); restore it, or remove the folder and run"
            " again"
        ) from error


def header_of(where: str, text: str) -> Manifest:
    """Return the manifest without shards that the text of a plan states; raise CacheError when it
    is damaged.
    """
    try:
        fields = json.loads(text)
        return Manifest.from_fields(
            {name: value for name, value in fields.items() if name != "sources"}
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CacheError(
            f"{where}: damaged ({error}); remove the folder and run the same command again"
        ) from error


def shard_files(sources: Sequence[str], suffix: str) -> dict[str, str]:
    """Return source name -> shard file: the source's last extension replaced by ``.feat`` and the
    format's suffix.

    Sources that would share a file keep their extension in its name, so that each has its own.
    """
    stems = {
        name: name.rsplit(".", 1)[0] if "." in name.rsplit("/", 1)[-1] else name for name in sources
    }
    while len(shared := {stem for stem, count in Counter(stems.values()).items() if count > 1}):
        stems = {name: name if stem in shared else stem for name, stem in stems.items()}
    return {name: f"{stem}.feat{suffix}" for name, stem in stems.items()}


def next_name(file: str, suffix: str) -> str:
    """Return a further name for a shard: ``a.feat.h5``, ``a.r1.feat.h5``, ``a.r2.feat.h5``, ..."""
    stem = file.removesuffix(f".feat{suffix}")
    head, dot, number = stem.rpartition(".r")
    stem, count = (head, int(number)) if dot and number.isdecimal() else (stem, 0)
    return f"{stem}.r{count + 1}.feat{suffix}"
