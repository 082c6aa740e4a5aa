"""Seeds and permutations as pure functions: the same on every machine and version."""

from __future__ import annotations

import hashlib

import numpy as np

ROUNDS = 6
# constants of the mixing function, two multipliers of splitmix64
MULTIPLIER_1 = np.uint64(0x9E3779B97F4A7C15)
MULTIPLIER_2 = np.uint64(0xBF58476D1CE4E5B9)
XOR_SHIFT = np.uint64(29)
UPPER_HALF = np.uint64(32)


def seed_of(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part; stable across machines and versions."""
    text = "/".join(map(str, parts))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def permute(positions: np.ndarray, n: int, key: int) -> np.ndarray:
    """Return where a permutation of 0..n-1 moves each position; int64, same shape.

    ``key`` selects the permutation. It is a Feistel network over the smallest even number of bits
    that holds n; a value outside 0..n-1 passes through it again until it lies inside. So it is a
    bijection that needs constant memory, and computes a few million positions a second.
    """
    if n < 1:
        raise ValueError(f"a permutation of {n} rows")
    bits = (n - 1).bit_length()
    half_bits = max(1, (bits + 1) // 2)
    round_keys = []
    for number in range(ROUNDS):
        odd_seed = seed_of(key, number) | 1
        round_keys.append(np.uint64(odd_seed))

    values = np.asarray(positions, dtype=np.uint64).copy()
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half_bits, round_keys)
        outside = values >= n
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half_bits: int, round_keys: list[np.uint64]) -> np.ndarray:
    """Permute ``values`` of 2 * ``half_bits`` bits: a bijection, whatever the mixing function."""
    shift = np.uint64(half_bits)
    mask = np.uint64((1 << half_bits) - 1)
    left = values >> shift
    right = values & mask
    with np.errstate(over="ignore"):
        for key in round_keys:
            mixed = _mix(right + key)
            new_right = left ^ (mixed & mask)
            left = right
            right = new_right
    return (left << shift) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """Return 32-bit numbers that depend on every bit of 64-bit ``values``."""
    mixed = values * MULTIPLIER_1
    shifted = mixed >> XOR_SHIFT
    mixed = mixed ^ shifted
    mixed = mixed * MULTIPLIER_2
    return mixed >> UPPER_HALF
