"""Caches that hold together but lie: after any damage every digest and size in the manifest is made
to fit again.

As a program it is a reader that reads such caches in forked children of bounded memory and time,
and says what came of it: a line ``{"root": ...}`` in, a line ``{"code": ..., "peak": MiB, "found":
{operation: outcome}}`` out.
"""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from dimefm import plugins
from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest
from dimefm.cache.compare import compare
from dimefm.cache.int8 import QuantizerFitter
from dimefm.cache.manifest import SEAL
from dimefm.cache.quarantine import quarantined
from dimefm.cache.writer import Bad
from dimefm.errors import CacheError
from dimefm.storage.files import companions_sha256, sha256_file

MEMORY = 3 << 30  # bytes of address space that a reader may have
SECONDS = 20  # that it may take
CARD = EncoderCard(
    "test/card",
    "ab" * 32,
    4,
    100.0,
    preprocess={"size": [8, 8]},
    tokenizer="words",
    context_length=9,
)


def make(root, format_, dtype="float16", counts=(6, 6), dim=4, seed=0, prefix="k"):
    """Write a cache of shards ``0.tar``, ``1.tar``, ..., each with one quarantined row more; return
    its rows.
    """
    rows = np.random.default_rng(seed).standard_normal((sum(counts), dim)).astype(np.float32)
    code = None
    if dtype == "int8":
        fit = QuantizerFitter(len(rows))
        fit.add(rows)
        code = fit.code().fields()
    effect = (
        {"rows": 9, "min_cosine": 0.9, "mean_cosine": 0.99, "kl": 1e-4, "logit_scale": 100.0}
        if code
        else None
    )
    how = {"decoder": "pil", "views": {"count": 1}}
    header = Manifest(
        "image",
        format_,
        dtype,
        dim,
        True,
        CARD,
        how,
        {"numpy": "2"},
        code=code,
        quantization_error=effect,
    )
    sources = [(f"{i}.tar", n + 1) for i, n in enumerate(counts)]
    writer, start = CacheWriter(root, header, sources, {name: "cd" * 32 for name, _ in sources}), 0
    for (name, _), n in zip(sources, counts, strict=True):
        writer.write(
            name,
            [f"{prefix}-{i}" for i in range(start, start + n)],
            rows[start : start + n],
            [Bad(1, "b", "torn")],
        )
        start += n
    writer.seal()
    return rows


def forge(root, edit=None):
    """Let ``edit(fields)`` change ``manifest.json``, then make sizes, digests and fingerprint fit
    what is on disk.

    What ``edit`` gives for ``bytes``, ``sha256`` and ``companions_sha256`` stays when it differs
    from before.
    """
    path = Path(root) / "manifest.json"
    fields = json.loads(path.read_text("utf-8"))
    suffixes = plugins.module("caches", fields["format"]).SUFFIXES
    for shard in fields["shards"]:
        file = Path(root) / shard["file"]
        if file.is_file():
            shard["bytes"], shard["sha256"] = file.stat().st_size, sha256_file(file)
            companions = [
                Path(str(file).removesuffix(suffixes[-1]) + suffix) for suffix in suffixes[:-1]
            ]
            if all(each.exists() for each in companions):
                shard["companions_sha256"] = companions_sha256(map(sha256_file, companions))
    fields = (edit(fields) if edit else None) or fields
    path.write_text(sealed(signed(fields)), "utf-8")


def signed(fields):
    """Return the fields with the fingerprint that they have by their own account, where they have
    one.
    """
    try:
        encoder = {
            name: value
            for name, value in fields["encoder"].items()
            if name not in ("name", "borrows")
        }
        encoder = {
            name: encoder.get(name, default)
            for name, default in {**_DEFAULTS, **encoder}.items()
            if name != "borrows"
        }
        names = ("source", "source_rows", "bad", "keys_sha256", "source_digest")
        shards = [[shard.get(name, "") for name in names] for shard in fields["shards"]]
        what = [fields["kind"], fields["dim"], fields["normalized"], encoder, fields["how"], shards]
        return {
            **fields,
            "fingerprint": hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest(),
        }
    except (KeyError, TypeError, AttributeError):
        return fields


_DEFAULTS = {
    name: value
    for name, value in CARD.identity().items()
    if name not in ("weights_sha256", "dim", "logit_scale")
}


def sealed(fields):
    """Return the text of a manifest with these fields and a seal that fits it."""
    text = (
        json.dumps({name: value for name, value in fields.items() if name != "seal"}, indent=2)[:-2]
        + ",\n"
    )
    return f'{text}{SEAL}"{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n'


OPERATIONS = {
    "describe": lambda root: Manifest.read(root).describe(),
    "read": lambda root: [
        check(*FeatureCache(root).read(info)) for info in Manifest.read(root).shards
    ],
    "rows": lambda root: FeatureCache(root)[:],
    "some": lambda root: (
        FeatureCache(root)[[0, -1 + len(FeatureCache(root))]] if len(FeatureCache(root)) else None
    ),
    "verify": lambda root: FeatureCache(root).verify(),
    "verify all": lambda root: FeatureCache(root).verify(sha256=True),
    "quarantined": lambda root: list(quarantined(FeatureCache(root).store, Manifest.read(root))),
    "compare": lambda root: compare(FeatureCache(root), FeatureCache(root)).describe(),
}


def check(keys, rows):
    """Fail where a key has no row or a row has no key."""
    assert len(keys) == len(rows), f"{len(keys)} keys of {len(rows)} rows"


def outcome(operation, root):
    """Return "fine", "CacheError: ..." or the name and text of what else was raised."""
    try:
        operation(root)
    except CacheError as error:
        return f"CacheError: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error!s:.300}"
    return "fine"


def peak():
    """Return the most MiB that this program has had in memory; what started it does not count."""
    try:
        status = Path("/proc/self/status").read_text()
        return (
            next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
            >> 10
        )
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (
            20 if sys.platform == "darwin" else 10
        )


class Reader:
    """Reads forged caches in a process of its own; memory, time and crashes are of one child."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, root):
        """Return operation -> outcome; fail when the child crashed, hung, or took more than 400
        MiB.
        """
        self.process.stdin.write(json.dumps({"root": str(root)}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert answer["code"] == 0, (
            f"the reader ended with {answer['code']} while it did '{answer['last']}'"
        )
        assert answer["peak"] < 400, f"the reader took {answer['peak']} MiB"
        others = {
            name: text
            for name, text in answer["found"].items()
            if text != "fine" and not text.startswith("CacheError: ")
        }
        assert not others, others
        return answer["found"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def serve():
    import h5py  # noqa: F401  before the fork
    import pyarrow.parquet  # noqa: F401

    for name in plugins.names("caches"):
        plugins.module("caches", name)
    for line in sys.stdin:
        root = json.loads(line)["root"]
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            signal.alarm(SECONDS)
            for name, operation in OPERATIONS.items():
                os.write(write_end, (json.dumps([name, None]) + "\n").encode())
                os.write(
                    write_end, (json.dumps([name, outcome(operation, root)[:2000]]) + "\n").encode()
                )
            os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end) as pipe:
            said = [json.loads(text) for text in pipe]
        _, status, used = os.wait4(child, 0)
        found = {name: text for name, text in said if text is not None}
        code, last = os.waitstatus_to_exitcode(status), said[-1][0] if said else None
        print(
            json.dumps({"code": code, "last": last, "peak": used.ru_maxrss >> 10, "found": found}),
            flush=True,
        )


if __name__ == "__main__":
    serve()
