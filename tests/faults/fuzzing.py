"""Feeds mutated shards and manifests to the readers: ``fuzzing.py TARGET FORMAT FIRST COUNT
FOLDER``.

The seed is written to FOLDER/seed before each input, so that a crash of the process names its
input. Ends with one JSON object: how many inputs were refused and how many read, the peak memory,
and every seed that raised what it should not.
"""

import json
import random
import resource
import shutil
import signal
import sys
from pathlib import Path

import forging

from dimefm.cache import FeatureCache
from dimefm.cache.compare import compare
from dimefm.errors import CacheError

NUMBERS = [
    value.to_bytes(size, "little")
    for size in (1, 2, 4, 8)
    for value in (0, 1, (1 << 8 * size) - 1, 1 << (8 * size - 1))
]
VALUES = [
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    10**40,
    1.5,
    1e308,
    "",
    "x",
    "\0",
    [],
    {},
    [[]],
    float("nan"),
    float("inf"),
]


def mutated(raw, draw):
    """Return bytes with a few changes, mostly where they are not zero."""
    raw = bytearray(raw)
    busy = [i for i, byte in enumerate(raw) if byte] or [0]
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        place, length = (
            (draw.choice(busy) if draw.random() < 0.7 else draw.randrange(len(raw) or 1)),
            draw.randrange(1, 24),
        )
        place = min(place, max(0, len(raw) - 1))
        kind = draw.randrange(7)
        if kind == 0 and raw:
            raw[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            number = draw.choice(NUMBERS)
            raw[place : place + len(number)] = number
        elif kind == 2:
            raw[place : place + length] = draw.randbytes(length)
        elif kind == 3:
            other = draw.randrange(len(raw) or 1)
            raw[place : place + length] = raw[other : other + length]
        elif kind == 4 and draw.random() < 0.3:
            del raw[place : place + length]
        elif kind == 5 and draw.random() < 0.3:
            raw[place:place] = draw.randbytes(length)
        elif kind == 6 and draw.random() < 0.1:
            del raw[place:]
    return bytes(raw)


def shards(root, whole, draw):
    """Mutate one file of a shard, and forge the manifest."""
    file = draw.choice(sorted(root.glob("0.feat.*")))
    file.write_bytes(mutated((whole / file.name).read_bytes(), draw))
    forging.forge(root)


def manifests(root, whole, draw):
    """Mutate the manifest: its bytes, or a few of its values, signed anew."""
    text = (whole / "manifest.json").read_bytes()
    if draw.random() < 0.3:
        (root / "manifest.json").write_bytes(mutated(text, draw))
        return
    fields = json.loads(text)
    for _ in range(draw.choice((1, 1, 2, 3))):
        change(fields, draw)
    (root / "manifest.json").write_text(forging.sealed(forging.signed(fields)))


def tables(root, whole, draw):
    """Mutate the int8 code and its effect, signed anew."""
    fields = json.loads((whole / "manifest.json").read_bytes())
    for _ in range(draw.choice((1, 1, 2, 3))):
        change(
            fields,
            draw,
            ["code", draw.choice(("scale", "offset"))] if draw.random() < 0.7 else ["effect"],
        )
    (root / "manifest.json").write_text(forging.sealed(forging.signed(fields)))


def change(fields, draw, way=()):
    """Set, remove, repeat or add a value somewhere inside."""
    place = fields
    for step in way:
        if not isinstance(place, dict) or not isinstance(place.get(step), dict | list):
            break
        place = place[step]
    while place:
        step = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if isinstance(place[step], dict | list) and place[step] and draw.random() < 0.8:
            place = place[step]
            continue
        kind = draw.randrange(5)
        if kind == 0:
            del place[step]
        elif kind == 1 and isinstance(place, list):
            place.append(place[step])
        elif kind == 2 and type(place[step]) in (int, float):
            place[step] = draw.choice(
                (place[step] + 1, -place[step], place[step] * 10**6, 1e-300 * place[step])
            )
        else:
            place[step] = draw.choice(VALUES)
        return


def use(root, flat):
    """Use a cache in every way; return whether anything was refused. Whatever is not a CacheError
    comes out.
    """
    shutil.rmtree(flat, ignore_errors=True)
    done = 0
    for work in (
        lambda cache: [forging.check(*cache.read(info)) for info in cache.manifest.shards],
        lambda cache: cache[:],
        lambda cache: cache[[len(cache) - 1, 0]] if len(cache) else None,
        lambda cache: cache.verify(sha256=True),
        lambda cache: cache.manifest.describe(),
        lambda cache: compare(cache, cache),
    ):
        try:
            work(FeatureCache(root, flat))
            done += 1
        except CacheError:
            pass
    return done < 6


def main(target, format_, first, count, folder):
    resource.setrlimit(resource.RLIMIT_AS, (forging.MEMORY, forging.MEMORY))
    whole, root = folder / "whole", folder / "cache"
    forging.make(whole, format_, "int8" if target == "tables" else "float16")
    wrong, refused = {}, 0
    for seed in range(first, first + count):
        (folder / "seed").write_text(f"{target} {format_} {seed}")
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(whole, root)
        {"shards": shards, "manifests": manifests, "tables": tables}[target](
            root, whole, random.Random(f"{target} {format_} {seed}")
        )
        signal.alarm(30)
        try:
            refused += use(root, folder / "flat")
        except Exception as error:
            wrong[seed] = f"{type(error).__name__}: {error!s:.200}"
    peak = forging.peak()
    print(
        json.dumps(
            {"refused": refused, "read": count - refused - len(wrong), "peak": peak, "wrong": wrong}
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
