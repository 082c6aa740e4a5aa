"""Resume a run from its newest checkpoint, only where its caches and files are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dimefm.cache import Manifest
from dimefm.data import Shard
from dimefm.errors import BadRow, CacheError, DimefmError, ModelError
from dimefm.storage.files import KeyDigest, to_json
from dimefm.train import checkpoint
from dimefm.train.distributed import DistributedContext
from dimefm.train.early_stopping import EarlyStopping
from dimefm.train.ema import Ema
from dimefm.train.inputs.sources import Sources
from dimefm.train.saved import Damaged, Saved, read
from dimefm.train.saved import restore as restore_saved


def source_fingerprints(sources: Sources) -> dict[str, list[str]]:
    """Return the fingerprints of what a run is trained on, by the key of the recipe.

    They are those of the image and text caches, one for each teacher, and of neighbor graphs and
    token caches. Pairs without teachers have the digests of their files under ``pairs``.
    """
    fingerprints = {
        "image_cache": [cache.manifest.fingerprint for cache in sources.image_caches],
        "text_cache": [cache.manifest.fingerprint for cache in sources.text_caches],
    }
    for key, further in sources.further_fingerprints().items():
        if further:
            fingerprints[key] = further
    if not sources.teachers:
        fingerprints["pairs"] = [shard.digest() for shard in sources.raw.shards]
    return fingerprints


def content_fingerprints(sources: Sources) -> dict[str, list[str]]:
    """Return number format and digest of the shards of each cache, by the key of the recipe.

    The fingerprints of :func:`source_fingerprints` are those of what was computed. These tell how
    it is stored: the same embeddings as float16 and as int8 train different students.
    """
    token_caches = [[rows.cache for rows in column] for column in sources.tokens]
    caches = {
        "image_cache": list(sources.image_caches),
        "text_cache": list(sources.text_caches),
        **dict(zip(("image_tokens", "text_tokens"), token_caches, strict=False)),
    }
    contents = {}
    for key, opened in caches.items():
        if opened:
            contents[key] = [_content_of(cache.manifest) for cache in opened]
    return contents


def _content_of(manifest: Manifest) -> str:
    digest = hashlib.sha256(to_json(manifest.code).encode())
    for shard in manifest.shards:
        digest.update(f"{shard.sha256} {shard.companions_sha256}\n".encode())
    return f"{manifest.dtype} {digest.hexdigest()}"


def verify_sources(sources: Sources) -> list[str]:
    """Read all caches and raw samples in full; return the digest of each raw shard's content.

    The digests of :func:`source_fingerprints` cover a folder's names and sizes, and samples of
    large files. Raises CacheError when the bytes of a cache are not as its manifest says.
    """
    token_caches = [rows.cache for column in sources.tokens for rows in column]
    for cache in (*sources.image_caches, *sources.text_caches, *token_caches):
        cache.verify(sha256=True)
    return [_content_digest(shard) for shard in sources.raw.shards]


def _content_digest(shard: Shard) -> str:
    digest = KeyDigest()
    for number in range(len(shard)):
        try:
            row = shard[number]
        except BadRow:
            digest.add([str(number), "cannot be read"])
            continue
        content = hashlib.sha256(row.image or b"").hexdigest()
        digest.add([str(number), row.key, content, *row.texts])
    return digest.sha256


def machine_of(context: DistributedContext) -> dict[str, int | str]:
    """Return what rounds the sums of a run: another machine trains other weights in the last
    digits.
    """
    return {
        "threads": torch.get_num_threads(),
        "processes": context.size,
        "device": context.device.type,
        "torch": torch.__version__,
    }


@dataclass(frozen=True)
class Expected:
    """What a checkpoint has to be of: the run's caches, its ``steps``, and where it runs now.

    ``raw`` are the digests of all raw shards where they were read in full, see
    :func:`verify_sources`.
    """

    fingerprints: dict[str, list[str]]
    contents: dict[str, list[str]]
    machine: dict[str, int | str]
    steps: int
    raw: list[str] | None = None


@dataclass(frozen=True)
class Restored:
    """The step of a checkpoint, and the digests of the raw shards if the first start had them."""

    step: int = 0
    raw: list[str] | None = None


def restore(
    out: Path,
    expected: Expected,
    fit: Callable[[Saved], tuple[nn.Module, torch.optim.Optimizer, Ema | None]],
    averaged: bool,
    early_stopping: EarlyStopping | None,
    echo: Callable[[str], None],
) -> Restored:
    """Restore the newest whole checkpoint of ``out``; return its step, 0 when there is none.

    ``fit`` returns the student, optimizer and averaged weights of the sizes that a checkpoint has;
    ``averaged`` says whether there are averaged weights.
    A damaged checkpoint is named in a line of its own. Raises CacheError when the run was trained
    on something else than ``expected``, whose weights may have other shapes, and ModelError when
    all checkpoints are damaged.
    """
    damaged: tuple[Path, Damaged] | None = None
    for folder in reversed(checkpoint.folders(out)):
        try:
            saved = read(folder, averaged)
            _refuse_other_caches(saved, expected)
            student, optimizer, ema = fit(saved)
            restore_saved(saved, student, optimizer, ema, early_stopping, expected.steps)
        except Damaged as reason:
            damaged = damaged or (folder, reason)
            echo(
                f"note: {folder}: the checkpoint is damaged ({reason}); it is set aside as"
                f" {folder.name}{checkpoint.SET_ASIDE}, and the one before is used"
            )
            continue
        echo(f"resumed after step {saved.step} from {folder}")
        _say_other_machine(saved, expected.machine, echo)
        raw = saved.state.get("raw")
        if expected.raw is not None and raw is None:
            echo("note: the first start has not recorded the content of its files; this one does")
        return Restored(saved.step, raw)
    if damaged is not None:
        folder, error = damaged
        raise ModelError(
            f"{folder}: the checkpoint is damaged ({error}), and there is no whole one before it."
            f" Fix: restore it from a copy, or remove {folder.parent} to start again"
        )
    return Restored()


def _refuse_other_caches(saved: Saved, expected: Expected) -> None:
    """Raise CacheError when a checkpoint is of other caches, or of caches stored in another way.

    Checkpoints of earlier versions do not say how their caches were stored.
    """
    remedy = "Fix: use the caches and files of the first start, or start a new run"
    if saved.caches != expected.fingerprints:
        raise CacheError(
            f"{saved.folder}: the run was trained on {_list_digests(saved.caches)}, now there are"
            f" {_list_digests(expected.fingerprints)}. {remedy}"
        )
    raw = saved.state.get("raw")
    if None not in (raw, expected.raw) and raw != expected.raw:
        raise CacheError(
            f"{saved.folder}: images or texts of the run have another content now, although their"
            f" names and sizes are the same. {remedy}"
        )
    contents = saved.state.get("contents", expected.contents)
    if contents != expected.contents:
        raise CacheError(
            f"{saved.folder}: the run was trained on the same rows stored in other shards,"
            f" {_list_digests(contents)}; now there are {_list_digests(expected.contents)}."
            f" {remedy}"
        )


def _say_other_machine(
    saved: Saved, machine: dict[str, int | str], echo: Callable[[str], None]
) -> None:
    """Say what rounds sums in another way than before, where the checkpoint has it."""
    before = saved.state.get("machine")
    if not isinstance(before, dict):
        return
    different = []
    for name, value in machine.items():
        if name in before and before[name] != value:
            different.append(f"{name} {before[name]}, now {value}")
    if different:
        echo(
            f"note: the run had {'; '.join(different)}. Sums round in another way, so the weights"
            " will not be those of an undisturbed run to the last bit"
        )


def _list_digests(fingerprints: dict[str, list[str]]) -> str:
    """Return the beginnings of fingerprints on one line, for an error message."""
    parts = []
    for key, values in fingerprints.items():
        if values:
            beginnings = []
            for value in values:
                dtype, _, digest = str(value).rpartition(" ")
                beginnings.append(f"{dtype} {digest[:12]}".strip())
            parts.append(f"{key} {' '.join(beginnings)}")
    return ", ".join(parts) or "none"


def refuse_different_files(context: DistributedContext, out: Path, rows: int, step: int) -> None:
    """Raise DimefmError unless all processes have the same number of ``rows`` and resume step.

    They differ on machines that do not share a disk.
    """
    values = torch.tensor([rows, step], device=context.device)
    per_process = context.gather(values).tolist()
    main_rows, main_step = per_process[0]
    for rank, (peer_rows, peer_step) in enumerate(per_process):
        if (peer_rows, peer_step) != (main_rows, main_step):
            raise DimefmError(
                f"{out}: process 0 found {main_rows:,} rows and the run after step {main_step},"
                f" process {rank} {peer_rows:,} rows and step {peer_step}; all need the same files"
                " and one --out. Fix: put both on a disk that they share"
            )
