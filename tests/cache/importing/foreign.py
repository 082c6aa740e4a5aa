"""Feature files as others write them, and adoption of them in one step."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dimefm.cache import EncoderCard, FeatureCache
from dimefm.cache.importing import adopt
from dimefm.cache.importing.adopt import header, pieces, pieces_of
from dimefm.cache.importing.sources import open_vectors

KEYS = [f"photo {i} ü.jpg" for i in range(5)]


def vectors(n=5, dim=8, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(dtype)


def saved(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, rows)
    return path


def take_up(paths, out, kind="image", raw=None, format="hdf5", dtype=None, normalize=False, **how):
    """Adopt ``paths`` under their own names, or under those of the raw shards."""
    opened = open_vectors(paths, kind, **how)
    head = header(opened, kind, EncoderCard("t", None, opened[0].dim, 100.0), format, dtype)
    shards = (
        pieces(opened, [v.path.name for v in opened]) if raw is None else pieces_of(opened, raw)
    )
    return adopt.adopt(shards, head, out, normalize=normalize)


def stored(out):
    """Return (keys, rows) of a whole cache, which must also verify."""
    cache = FeatureCache(out)
    cache.verify(sha256=True)
    found = [cache.read(info) for info in cache.manifest.shards]
    return [key for keys, _ in found for key in keys], np.concatenate([rows for _, rows in found])


def cut(path, keep=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    return path


def clip_retrieval(
    folder, counts=(3, 2, 4), kinds=("image", "text"), columns=("image_path", "caption"), pad=0
):
    """Write what clip-retrieval's NumpyWriter writes; return all vectors by kind, and all paths."""
    found = {kind: [] for kind in kinds}
    paths = []
    for number, count in enumerate(counts):
        if not count:
            continue
        for seed, kind in enumerate(kinds):
            rows = vectors(count, dtype="float16", seed=10 * number + seed)
            begin = {"image": "img_emb", "text": "text_emb"}[kind]
            found[kind].append(
                np.load(saved(folder / begin / f"{begin}_{number:0{pad}d}.npy", rows))
            )
        here = [f"/data/{number}/{i}.jpg" for i in range(count)]
        paths += here
        (folder / "metadata").mkdir(exist_ok=True)
        table = pa.table(
            {
                name: here if name == "image_path" else [f"c{i}" for i in range(count)]
                for name in columns
            }
        )
        pq.write_table(table, folder / "metadata" / f"metadata_{number:0{pad}d}.parquet")
    return {kind: np.concatenate(parts) for kind, parts in found.items()}, paths
