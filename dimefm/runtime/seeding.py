"""Seeds and permutations as pure functions: the same on every machine and version."""

from __future__ import annotations

import hashlib

import numpy as np

ROUNDS = 6


def seed_of(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part; stable across machines and versions."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def permute(positions: np.ndarray, n: int, key: int) -> np.ndarray:
    """Return where each position goes in a permutation of 0..n-1 that ``key`` selects; int64, same
    shape.

    A Feistel network over the smallest even number of bits that holds n, walked until the value is
    below n: a bijection of constant memory, a few million indices a second.
    """
    if n < 1:
        raise ValueError(f"a permutation of {n} rows")
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = [np.uint64(seed_of(key, i) | 1) for i in range(ROUNDS)]
    found = np.asarray(positions, dtype=np.uint64).copy()
    todo = np.ones(found.shape, dtype=bool)
    while todo.any():
        found[todo] = _feistel(found[todo], half, mask, keys)
        todo = found >= n
    return found.astype(np.int64)


def _feistel(value: np.ndarray, half: int, mask: np.uint64, keys: list[np.uint64]) -> np.ndarray:
    shift, mix = np.uint64(half), np.uint64(29)
    left, right = value >> shift, value & mask
    with np.errstate(over="ignore"):
        for key in keys:
            scrambled = (right + key) * np.uint64(0x9E3779B97F4A7C15)
            scrambled = (scrambled ^ (scrambled >> mix)) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((scrambled >> np.uint64(32)) & mask)
    return (left << shift) | right
