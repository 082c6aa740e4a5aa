"""Caches of every format that is there, in every stored dtype: rows and keys that are known, and
how they were coded.
"""

import subprocess
import sys

import numpy as np
import pytest

from dimefm import plugins
from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest
from dimefm.cache.int8 import QuantizerFitter

FORMATS = plugins.names("caches")
CARD = EncoderCard(
    "test/card",
    "ab" * 32,
    4,
    100.0,
    preprocess={"size": [8, 8]},
    tokenizer="words",
    context_length=9,
)
KEYS = ["plain", "with space", "café/naïve 你好.jpg", "\U0001f600", "", "plain", "quote\"'\\"]


@pytest.fixture(params=FORMATS)
def format_(request):
    return request.param


@pytest.fixture(params=["float16", "float32"])
def dtype(request):
    return request.param


def header(format_="hdf5", dtype="float16", dim=4, **fields):
    given = {
        "kind": "image",
        "normalized": True,
        "encoder": CARD,
        "how": {"decoder": "pil"},
        "libraries": {"numpy": "2"},
    }
    return Manifest(format=format_, dtype=dtype, dim=dim, **{**given, **fields})


def vectors(n, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def keys_of(n, start=0):
    return [f"{KEYS[i % len(KEYS)]}-{i}" for i in range(start, start + n)]


def make(root, counts, format_="hdf5", dtype="float16", dim=4, seed=0):
    """Write a cache of shards with ``counts`` rows; return (cache, its rows in the stored dtype,
    its keys).
    """
    sources = [(f"part/{i:03d}.tar", n) for i, n in enumerate(counts)]
    writer = CacheWriter(root, header(format_, dtype, dim), sources)
    rows, keys = vectors(sum(counts), dim, seed), keys_of(sum(counts))
    start = 0
    for name, n in sources:
        writer.write(name, keys[start : start + n], rows[start : start + n])
        start += n
    writer.seal()
    return FeatureCache(root), rows.astype(dtype), keys


def fitted(rows, margin=0.5):
    fit = QuantizerFitter(len(rows))
    fit.add(rows)
    return fit.code(margin)


def run_program(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()
