"""What a row costs on disk and what the cheaper forms do to it, on real CLIP features with their
real keys.
"""

from __future__ import annotations

import lzma
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq

from benchmarks._cache_data import Real, header, real, write
from benchmarks._timing import Line
from dimefm.cache import FeatureCache
from dimefm.cache.convert import convert
from dimefm.cache.int8 import QuantizerFitter

SCALE = 100.0
FORMS = (
    ("hdf5", "float16"),
    ("hdf5", "int8"),
    ("parquet", "float16"),
    ("parquet", "int8"),
    ("tsv", "float32"),
)
GOALS = {
    ("hdf5", "float16"): ("<=", 1.02),
    ("hdf5", "int8"): ("<=", 0.505),
    ("parquet", "float16"): ("<=", 0.9),
}


def sizes_of_rows(data: Path, folder: Path) -> list[Line]:
    """Return bytes a row in units of 2D (float16): of the rows alone, and of the whole shard with
    keys and overhead.
    """
    lines = []
    for name, found in real(data).items():
        count, dim = found.rows.shape
        for format_, dtype in FORMS if name == "images" else GOALS:
            cache = _saved(found, folder / f"{name} {format_} {dtype}", format_, dtype)
            path, goal = cache.root / cache.manifest.shards[0].file, GOALS.get((format_, dtype))
            whole = sum(p.stat().st_size for p in path.parent.glob(path.stem + ".*"))
            for part, size in (
                ("rows alone", _alone(path, cache)),
                ("whole shard with keys", whole),
            ):
                what = f"{name} {count}x{dim}: {format_} {dtype}, {part}"
                item = f"bytes {name} {format_} {dtype}, {part}"
                lines.append(Line(item, what, size / count, "B/row", 2.0 * dim, goal))
            if format_ == "hdf5" and dtype == "float16":
                least = len(lzma.compress("\n".join(found.keys).encode())) / count
                what = (
                    f"{name} {count}x{dim}: hdf5, keys and all overhead, against the keys alone"
                    " in xz"
                )
                lines.append(
                    Line(
                        f"bytes {name} keys",
                        what,
                        (whole - _alone(path, cache)) / count,
                        "B/row",
                        least,
                    )
                )
    return lines


def _saved(found: Real, root: Path, format_: str, dtype: str) -> FeatureCache:
    """Write a set in a format and dtype; int8 by ``convert`` from float16, which fits the code on
    every row.
    """
    if dtype != "int8":
        return found.save(root, format_, dtype)
    convert(
        found.save(root.with_name(root.name + " before"), "hdf5", "float16"),
        root,
        format_=format_,
        dtype="int8",
    )
    return FeatureCache(root)


def _alone(path: Path, cache: FeatureCache) -> int:
    """Return the bytes that the rows take in a shard, without keys and overhead."""
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return file["row"].id.get_storage_size()
    if path.suffix == ".parquet":
        groups = [
            pq.read_metadata(path).row_group(i)
            for i in range(pq.read_metadata(path).num_row_groups)
        ]
        columns = [group.column(i) for group in groups for i in range(group.num_columns)]
        return sum(c.total_compressed_size for c in columns if c.path_in_schema.startswith("row"))
    lines = path.read_bytes().splitlines()
    return sum(len(line.split(b"\t")[1]) for line in lines)


def effects(data: Path, folder: Path) -> list[Line]:
    """Return what each dtype does: the least cosine of a row, and the mean KL of image -> text
    softmaxes at scale 100.

    1,213 images against 1,628 texts (425 sentences, 1,203 class names), all of unit length; exact
    float32 against decoded.
    """
    found = real(data)
    texts = np.concatenate([_unit(found["paired texts"].rows), _unit(found["lvis"].rows)])
    exact = {"image": _unit(found["images"].rows), "text": texts}
    forms = {
        "float16": {kind: rows.astype(np.float16) for kind, rows in exact.items()},
        "int8, fitted on every row (cache convert)": {
            k: _converted(rows, folder / f"effect {k}") for k, rows in exact.items()
        },
        "int8, with the extraction's margin": {kind: _margin(rows) for kind, rows in exact.items()},
        "int8, one scale a row (as others do)": {
            kind: _per_row(rows) for kind, rows in exact.items()
        },
    }
    lines = []
    for name, stored in forms.items():
        cosine = min(
            float((exact[kind] * _unit(stored[kind])).sum(1, dtype=np.float64).min())
            for kind in exact
        )
        loss = _kl(
            exact["image"] @ exact["text"].T, _unit(stored["image"]) @ _unit(stored["text"]).T
        )
        limits = ((">=", 0.9999), ("<=", 5e-4)) if "every row" in name else (None, None)
        lines.append(Line(f"cosine {name}", f"{name}: least cosine", cosine, "", goal=limits[0]))
        lines.append(
            Line(
                f"KL {name}",
                f"{name}: mean KL, 1213 images to 1628 texts",
                loss,
                "nats",
                goal=limits[1],
            )
        )
    return lines


def _converted(rows: np.ndarray, root: Path) -> np.ndarray:
    """Return rows as read back from a float16 cache converted to int8."""
    keys = [str(number) for number in range(len(rows))]
    write(root, header("hdf5", rows.shape[1]), rows.astype(np.float16), keys)
    coded = root.with_name(root.name + " int8")
    convert(FeatureCache(root), coded, dtype="int8")
    return FeatureCache(coded)[:]


def _margin(rows: np.ndarray) -> np.ndarray:
    fit = QuantizerFitter(len(rows))
    fit.add(rows)
    code = fit.code()
    return code.decode(code.encode(rows))


def _per_row(rows: np.ndarray) -> np.ndarray:
    scale = np.abs(rows).max(1, keepdims=True) / 127
    return np.rint(rows / scale).astype(np.float32) * scale


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _kl(exact: np.ndarray, stored: np.ndarray) -> float:
    """Return the mean KL of the rows' softmaxes at scale 100, in float64 from float32 cosines."""
    exact, stored = (
        _log_softmax(SCALE * cosines.astype(np.float64)) for cosines in (exact, stored)
    )
    return float((np.exp(exact) * (exact - stored)).sum(1).mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))
