"""Write what sources are made of, and read all of a source."""

import io
import tarfile

from dimefm.errors import BadRow


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_tar(path, members, links=()):
    with tarfile.open(path, "w") as file:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
        for name, target, kind in links:
            entry = tarfile.TarInfo(name)
            entry.type = kind
            entry.linkname = target
            file.addfile(entry)
    return path


def read(rows):
    """Return (key -> row, key -> why it is none)."""
    good = {}
    bad = {}
    for shard in rows.shards:
        for index, key in enumerate(shard.keys()):
            try:
                good[key] = shard[index]
            except BadRow as error:
                bad[key] = str(error)
    assert len(good) + len(bad) == len(rows)
    return good, bad
