"""Embeddings of an evaluation, and the folder that keeps them for the next one.

Images and prompts are kept under the fingerprint of their encoder. What is kept is checked before
it is used, and made again when it is damaged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dimefm.cache import FeatureCache
from dimefm.cache.plan import WRITERS, write_lock
from dimefm.data import Rows
from dimefm.errors import CacheError
from dimefm.evaluate.benchmark import Benchmark, prompts_of
from dimefm.evaluate.classifier import class_weights
from dimefm.extract.extract import Settings, extract
from dimefm.models.encoder import Encoder
from dimefm.models.inference.text_batches import WINDOW, encode_sentences
from dimefm.models.open_clip import transform_of, without_resize
from dimefm.runtime.progress import Progress
from dimefm.storage.files import sha256_keys, write_bytes
from dimefm.storage.npy import array_of
from dimefm.storage.reading import is_row_fault

DEFAULT_DECODER = "turbo"
LONGEST_NAME = 100
"""Bytes of a dataset's name in the name of a folder."""

MANY_PROMPTS = 10_000
"""Prompts from which on their progress is shown."""

UNIT = 1e-3
"""How far the length of a kept class embedding may be from 1."""


def for_benchmark(encoder: Encoder, benchmark: Benchmark) -> Encoder:
    """Return the encoder with this benchmark's preprocessing: without cropping for KITTI."""
    if benchmark.crop:
        return encoder
    preprocess = {**without_resize(encoder.image_preprocess), "resize_mode": "squash"}
    card = dataclasses.replace(encoder.card, preprocess=preprocess)
    return dataclasses.replace(encoder, card=card, preprocess=transform_of(preprocess))


def image_features(
    encoder: Encoder, benchmark: Benchmark, rows: Rows, store: Path, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit embeddings [n, D] of a benchmark's readable images, kept in ``store``.

    The second array, int64 [n], holds the numbers of these images among all rows. Images that could
    not be read before are tried again. Kept embeddings that are damaged are made again.

    Raises CacheError when another process is writing to the folder of these embeddings, or it
    cannot be written, and DataError when no image can be read.
    """
    return row_features(for_benchmark(encoder, benchmark), benchmark.name, rows, store, settings)


def row_features(
    encoder: Encoder, name: str, rows: Rows, store: Path, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit embeddings [n, D] of the readable images of a dataset of this name, and their
    numbers, int64 [n]; kept and raising as :func:`image_features` does.
    """
    short_name = name.encode()[:LONGEST_NAME].decode(errors="ignore")
    name = os.fsdecode(short_name.encode())  # the same bytes in any locale
    decoder = "" if settings.decoder == DEFAULT_DECODER else f"-{settings.decoder}"
    folder = store / _fingerprint(encoder) / f"{name}-{_digest_of(rows)[:12]}{decoder}"
    try:
        return _extracted(encoder, rows, folder, settings)
    except CacheError as error:
        is_of_machine = error.__cause__ is not None and not is_row_fault(error.__cause__)
        if is_of_machine or not folder.exists():
            raise
        _clear(folder)  # damaged, or left by another version
        return _extracted(encoder, rows, folder, settings)


def _clear(folder: Path) -> None:
    """Remove all files in a folder of kept features.

    Raises CacheError when another process is writing there.
    """
    with write_lock(folder, shared=False):
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                with contextlib.suppress(OSError):  # the claim is in it
                    path.rmdir()
            elif path != folder / WRITERS:
                path.unlink(missing_ok=True)


def _extracted(
    encoder: Encoder, rows: Rows, folder: Path, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """Return the embeddings in the cache at ``folder``, which is made if there is none."""
    report = extract(encoder, rows, "image", folder, settings)
    if report.already_finished and _bad_rows(report.manifest.shards):
        report = extract(encoder, rows, "image", folder, settings, mode="retry")
    cache = FeatureCache(folder)
    for shard in cache.manifest.shards:
        cache.check_sha256(shard)
    unreadable = _bad_rows(cache.manifest.shards)
    readable = np.setdiff1d(np.arange(len(rows)), unreadable)
    return cache[:], readable


def _bad_rows(shards) -> list[int]:
    """Return the numbers of the quarantined rows among all rows."""
    numbers: list[int] = []
    start = 0
    for shard in shards:
        numbers += [start + row for row in shard.bad]
        start += shard.source_rows
    return numbers


def _digest_of(rows: Rows) -> str:
    """Return a digest of the shards' names, contents and keys."""
    identities = []
    for shard in rows.shards:
        identities.append(f"{shard.name}:{shard.digest()}:{sha256_keys(shard.keys())}")
    return sha256_keys(identities)


def prompt_weights(
    encoder: Encoder, benchmark: Benchmark, store: Path, settings: Settings
) -> np.ndarray:
    """Return class weights [C, D], from ``store`` when these prompts were encoded before."""
    digest = _digest_of_prompts(benchmark)
    path = store / _fingerprint(encoder) / f"prompts-{digest[:16]}.npy"
    shape = (len(benchmark.classes), encoder.card.dim)
    weights = _kept_weights(path, shape)
    if weights is None:
        encode = _encoded_weights_of_any if benchmark.added else _encoded_weights
        weights = encode(encoder, benchmark, settings)
        _keep(path, weights)
    return weights


def _digest_of_prompts(benchmark: Benchmark) -> str:
    """Return a digest of all prompts in their order: that of the lists of prompts as JSON."""
    digest = hashlib.sha256(b"[")
    for number in range(len(benchmark.classes)):
        comma = ", " if number else ""
        digest.update(f"{comma}{json.dumps(prompts_of(benchmark, number))}".encode())
    digest.update(b"]")
    return digest.hexdigest()


def _prompts_in_order(benchmark: Benchmark) -> Iterator[str]:
    for name in benchmark.classes:
        for template in benchmark.templates:
            yield template.replace("{}", name)


def _encoded_weights_of_any(
    encoder: Encoder, benchmark: Benchmark, settings: Settings
) -> np.ndarray:
    """Return class weights [C, D] of classes with different numbers of prompts."""
    weights = []
    for number in range(len(benchmark.classes)):
        texts = prompts_of(benchmark, number)
        embeddings = []
        for start in range(0, len(texts), settings.batch_size):
            tokens, _ = encoder.tokenize(texts[start : start + settings.batch_size])
            embeddings.append(encoder.encode_text(tokens).cpu().numpy())
        weights.append(class_weights([np.concatenate(embeddings)], first_class=number))
    return np.concatenate(weights).astype(np.float32)


def _encoded_weights(encoder: Encoder, benchmark: Benchmark, settings: Settings) -> np.ndarray:
    """Return class weights [C, D]; only the embeddings of one batch and one class are in memory."""
    texts = _prompts_in_order(benchmark)
    n_templates = len(benchmark.templates)
    n_prompts = len(benchmark.classes) * n_templates
    weights = np.empty((len(benchmark.classes), encoder.card.dim), dtype=np.float32)
    waiting: list[np.ndarray] = []
    n_waiting = 0
    done = 0
    quiet = not settings.progress or n_prompts < MANY_PROMPTS
    with Progress(n_prompts, "prompts", "prompt", quiet=quiet) as bar:
        while batch := list(itertools.islice(texts, settings.batch_size)):
            tokens, _ = encoder.tokenize(batch)
            waiting.append(encoder.encode_text(tokens).cpu().numpy())
            n_waiting += len(batch)
            bar.update(len(batch))
            complete = n_waiting // n_templates
            if not complete:
                continue
            embeddings = np.concatenate(waiting)
            n_used = complete * n_templates
            of_classes = embeddings[:n_used].reshape(complete, n_templates, -1)
            weights[done : done + complete] = class_weights(of_classes, first_class=done)
            waiting = [embeddings[n_used:]]
            n_waiting -= n_used
            done += complete
    return weights


def caption_features(
    encoder: Encoder, captions: Sequence[str], store: Path, settings: Settings
) -> tuple[np.ndarray, int]:
    """Return the unit embeddings [N, D] of captions, and how many were cut at the context's end.

    They are taken from ``store`` when these captions were encoded before. As in open_clip, a cut
    caption keeps its first tokens and ends with the end token.
    """
    path = store / _fingerprint(encoder) / f"captions-{sha256_keys(captions)[:16]}.npy"
    shape = (len(captions), encoder.card.dim)
    kept = _kept_captions(path, shape)
    if kept is not None:
        return kept
    embeddings = np.empty(shape, dtype=np.float32)
    n_cut = 0
    step = settings.batch_size * WINDOW
    quiet = not settings.progress or len(captions) < MANY_PROMPTS
    with Progress(len(captions), "captions", "caption", quiet=quiet) as bar:
        for start in range(0, len(captions), step):
            part = list(captions[start : start + step])
            tokens, lengths = encoder.tokenize(part)
            n_cut += sum(length > tokens.shape[1] for length in lengths)
            rows = encode_sentences(encoder, tokens, settings.batch_size)
            embeddings[start : start + len(part)] = rows.cpu().numpy()
            bar.update(len(part))
    _keep(path, embeddings, f" {n_cut}".encode())
    return embeddings, n_cut


def _kept_captions(path: Path, shape: tuple[int, int]) -> tuple[np.ndarray, int] | None:
    """Return the embeddings in a file and the number behind them, None where there are none."""
    try:
        embeddings, behind = array_of(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    digest, _, n_cut = behind.partition(b" ")
    is_whole = embeddings.shape == shape and embeddings.dtype == np.float32
    if not is_whole or digest != _digest_of_weights(embeddings) or not n_cut.isdigit():
        return None
    return embeddings, int(n_cut)


def _kept_weights(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Return the class weights in a file, None when there is none or it is damaged.

    The digest behind the array is checked where there is one: earlier versions wrote none.
    """
    try:
        weights, digest = array_of(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if weights.shape != shape or weights.dtype != np.float32:
        return None
    lengths = np.linalg.norm(weights.astype(np.float64), axis=1)
    if not np.all(np.abs(lengths - 1) < UNIT):  # also for NaN
        return None
    if digest and digest != _digest_of_weights(weights):
        return None
    return weights


def _keep(path: Path, array: np.ndarray, behind: bytes = b"") -> None:
    """Write an array, and behind it its digest and ``behind``."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    file.write(_digest_of_weights(array) + behind)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, file.getvalue())


def _digest_of_weights(weights: np.ndarray) -> bytes:
    return hashlib.sha256(weights.tobytes()).hexdigest().encode()


def _fingerprint(encoder: Encoder) -> str:
    """Return a short digest of the encoder's weights, preprocessing and precision."""
    identity = json.dumps([encoder.card.identity(), encoder.precision], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
