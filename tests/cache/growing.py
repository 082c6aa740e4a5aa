"""Raw shards some of whose rows cannot be used, and what must hold of a cache of them after every
extraction.
"""

import dataclasses
import json

from dimefm.cache import FeatureCache
from dimefm.cache.quarantine import quarantined
from dimefm.data import open_rows
from dimefm.extract.extract import Settings, extract

QUIET = Settings(progress=False, batch_size=4)


def text_shard(path, sentences):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{sentence}\n" for sentence in sentences), encoding="utf-8")


def table_shard(path, sentences):
    """Write a TSV with its index."""
    lines = [f"k{i}\t{json.dumps({'captions': [text]})}\n" for i, text in enumerate(sentences)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))
    path.with_suffix(".lineidx").write_text(
        "".join(f"{sum(map(len, lines[:i]))}\n" for i in range(len(lines)))
    )


SOURCES = {
    "text": (text_shard, ".txt", "text"),
    "tsv": (table_shard, ".tsv", "text"),
    "folder": (None, "", "image"),
}


class Raw:
    """Raw shards of one kind, some rows of which cannot be used."""

    def __init__(self, folder, source, picture):
        self.folder, self.source, self.picture = folder, source, picture
        self.write, self.suffix, self.kind = SOURCES[source]

    def shard(self, name, n, bad=(), same_size=True):
        """Write (again) shard ``name`` of n rows, of which ``bad`` cannot be used."""
        if self.source != "folder":
            texts = ["" if i in bad else f"photo {i} of {name}" for i in range(n)]
            self.write(self.folder / f"{name}{self.suffix}", texts)
            return
        for i in range(n):
            path = self.folder / name / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = self.picture(1000 * sum(map(ord, name)) + i)
            path.write_bytes((bytes(len(image)) if same_size else b"torn") if i in bad else image)

    def rows(self, *names):
        """Open these shards, by default all."""
        every = names or sorted({path.name.split(".")[0] for path in self.folder.iterdir()})
        return open_rows(
            [self.folder / f"{name}{self.suffix}" for name in every],
            self.kind,
            dataroot=self.folder,
        )


def run(encoder, rows, kind, out, mode="create", **changes):
    """Extract; return (report, cache)."""
    report = extract(encoder, rows, kind, out, dataclasses.replace(QUIET, **changes), mode=mode)
    return report, FeatureCache(out, out.with_name("flat"))


def stamps(cache):
    """Return shard file -> (inode, time of change), companions too."""
    files = [
        file for info in cache.manifest.shards for file in (info.file, *cache.companions(info))
    ]
    return {
        file: ((cache.root / file).stat().st_ino, (cache.root / file).stat().st_mtime_ns)
        for file in files
    }


def named(cache):
    """Return (source, source row) -> (key, stored row as bytes) of every stored row."""
    found = {}
    for info in cache.manifest.shards:
        keys, rows = cache.read(info)
        good = sorted(set(range(info.source_rows)) - set(info.bad))
        found |= {
            (info.source, at): (key, row.tobytes())
            for at, key, row in zip(good, keys, rows, strict=True)
        }
    return found


def bad_rows(cache):
    return [(source, bad.row) for source, bad in quarantined(cache.store, cache.manifest)]


def assert_adds_up(cache):
    """Rows in are rows out and rows quarantined; the list is the manifest's; nothing is left
    over.
    """
    for info in cache.manifest.shards:
        assert info.source_rows == info.rows + len(info.bad)
    listed = cache.root / "quarantine.jsonl"
    entries = (
        [json.loads(line) for line in listed.read_text("utf-8").splitlines()]
        if listed.exists()
        else []
    )
    assert [(entry["source"], entry["row"]) for entry in entries] == bad_rows(cache)
    assert listed.exists() == bool(entries) and all(entry["reason"] for entry in entries)
    there = {
        path.relative_to(cache.root).as_posix() for path in cache.root.rglob("*") if path.is_file()
    }
    assert there == {*stamps(cache), "manifest.json", *(["quarantine.jsonl"] if entries else [])}
    assert cache.verify(sha256=True) == len(cache.manifest.shards)


BAD = {
    "a": [0, 2, 3, 7],
    "b": [],
    "c": [4],
    "d": [0, 1],
}  # first, last, several beside each other; a whole shard
ROWS = {"a": 8, "b": 3, "c": 9, "d": 2}
ALL = [(name, row) for name, rows in BAD.items() for row in rows]


def damaged(raw, mended=(), **options):
    for name, n in ROWS.items():
        raw.shard(name, n, [row for row in BAD[name] if (name, row) not in mended], **options)
