"""Damage for the tests that throw damaged files at readers."""

import numpy as np


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with a few of them changed, cut off, doubled or removed."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        if not changed:
            break
        start, length = rng.integers(len(changed)), rng.integers(1, 16)
        match rng.integers(5):
            case 0:
                changed[start] ^= 1 << rng.integers(8)
            case 1:
                changed[start : start + length] = rng.bytes(length)
            case 2:
                del changed[start : start + length]
            case 3:
                changed[start:start] = changed[start : start + 4 * length]
            case _:
                del changed[max(1, start) :]
    return bytes(changed)
