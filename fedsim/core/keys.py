"""Keys: randomness that is named, not consumed.

One seed, and every draw comes from the key folded with what the draw is *about*. No generator is shared, so
nothing that is drawn moves because something else was drawn before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim.core.types import FloatArray, IntArray

_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_WEYL = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Key:
    """A seed and a path of names and whole numbers.

    Equal paths give equal draws in every process, whatever Python's hash seed; different paths give
    independent ones (BLAKE2b of the typed parts).

    >>> Key(7).fold("client", 17, "task", 3) == Key(7).fold("client", 17).fold("task", 3)
    True
    >>> Key(7).fold("client", 1) == Key(7).fold("client", "1")
    False
    """

    digest: bytes

    def __init__(self, seed: int) -> None:
        object.__setattr__(self, "digest", hashlib.blake2b(_encode(seed), digest_size=16).digest())

    def fold(self, *parts: str | int) -> Key:
        """Return the child named by *parts*, one after the other."""
        digest = self.digest
        for part in parts:
            digest = hashlib.blake2b(_encode(part), digest_size=16, key=digest).digest()
        return _of(digest)

    def seed64(self) -> int:
        """Return a non-negative 63-bit number, for generators that take one (torch's, Python's)."""
        return int.from_bytes(self.digest[:8], "little") >> 1

    def numpy(self) -> np.random.Generator:
        """Return a fresh numpy generator (PCG64); asking twice gives the same draws."""
        return np.random.Generator(np.random.PCG64(int.from_bytes(self.digest, "little")))

    def uniform(self, ids: NDArray[np.integer] | int) -> FloatArray:
        """Return one number in the open interval (0, 1) per id, each a function of this key and that id alone.

        Counter-based (two rounds of the SplitMix64 finaliser over 128 bits of key, Steele et al. 2014), so that
        a property of a million clients costs nothing until they are touched. Shapes: ids (n,) -> (n,).

        >>> bool(Key(1).uniform(np.arange(3))[1] == Key(1).uniform(1)[0])
        True
        """
        low = np.uint64(int.from_bytes(self.digest[:8], "little"))
        high = np.uint64(int.from_bytes(self.digest[8:], "little"))
        with np.errstate(over="ignore"):
            z = _finalise(np.atleast_1d(np.asarray(ids)).astype(np.uint64) * _WEYL + low)
            z = _finalise(z ^ high)
        return ((z >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52

    @property
    def words(self) -> tuple[int, int]:
        """Return the key's 128 bits as two 64-bit words, for draws over many keys at once."""
        return int.from_bytes(self.digest[:8], "little"), int.from_bytes(self.digest[8:], "little")

    def uniform_at(self, number: int) -> float:
        """Return ``uniform(number)`` for one id, the same to the last bit, without numpy's overhead.

        >>> Key(1).uniform_at(2**40) == float(Key(1).uniform(2**40)[0])
        True
        """
        z = _finalise_one((number * 0x9E3779B97F4A7C15 + int.from_bytes(self.digest[:8], "little")) & _64)
        return ((_finalise_one(z ^ int.from_bytes(self.digest[8:], "little")) >> 12) + 0.5) * 2.0**-52


def _of(digest: bytes) -> Key:
    key = object.__new__(Key)
    object.__setattr__(key, "digest", digest)
    return key


def folded(keys: Sequence[Key], *parts: str | int) -> list[Key]:
    """Return ``key.fold(*parts)`` of each of *keys*.

    >>> folded([Key(1), Key(2)], "batches", 0) == [Key(1).fold("batches", 0), Key(2).fold("batches", 0)]
    True
    """
    digests = [key.digest for key in keys]
    for part in parts:
        told = _encode(part)
        digests = [hashlib.blake2b(told, digest_size=16, key=digest).digest() for digest in digests]
    return [_of(digest) for digest in digests]


_64 = 2**64 - 1


def _finalise_one(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _64
    return z ^ (z >> 31)


def shuffles(keys: Sequence[Key], sizes: IntArray) -> IntArray:
    """Return one permutation of 0 .. size - 1 per key, each a function of its key and size alone.

    The permutation sorts 64-bit hashes of the numbers, so that many are drawn at once; a generator per key would
    cost more than the sort. Shapes: n keys, sizes (n,) -> (n, max size), rows padded with their own size and on.

    >>> shuffles([Key(1), Key(2)], np.array([4, 3]))[1].tolist() == shuffles([Key(2)], np.array([3]))[0].tolist() + [3]
    True
    """
    words = _words(keys)
    numbers = np.arange(int(sizes.max()), dtype=np.uint64)
    with np.errstate(over="ignore"):
        hashes = _finalise(_finalise(numbers * _WEYL + words[:, :1]) ^ words[:, 1:])
    hashes >>= np.uint64(1)  # Room above every hash for the padding, which so comes last, in order.
    hashes[numbers >= sizes[:, None]] = np.uint64(2**64 - 1)
    return hashes.argsort(axis=1, kind="stable")


def picks(keys: Sequence[Key], sizes: IntArray, count: int) -> IntArray:
    """Return *count* draws from 0 .. size - 1, with replacement, per key: each a function of its key, size and place alone.

    More draws only append. Counter-based as ``Key.uniform``, so that many keys are drawn at once; a number's chance is off by
    at most size / 2**52. Shapes: n keys, sizes (n,) -> (n, count).

    >>> few, more = picks([Key(1)], np.array([4]), 2), picks([Key(2), Key(1)], np.array([9, 4]), 5)
    >>> few[0].tolist() == more[1, :2].tolist()
    True
    """
    words = _words(keys)
    numbers = np.arange(count, dtype=np.uint64)
    with np.errstate(over="ignore"):
        hashes = _finalise(_finalise(numbers * _WEYL + words[:, :1]) ^ words[:, 1:])
    return (((hashes >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52 * sizes[:, None]).astype(np.int64)


def _words(keys: Sequence[Key]) -> NDArray[np.uint64]:
    """Return ``words`` of each of *keys*. Shapes: n keys -> (n, 2)."""
    return np.frombuffer(b"".join([key.digest for key in keys]), dtype="<u8").astype(np.uint64).reshape(-1, 2)


def _finalise(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def _encode(part: str | int) -> bytes:
    # Typed and length-free: BLAKE2b takes one part at a time, so "1" and 1 differ by their first byte only.
    return b"s" + part.encode() if isinstance(part, str) else b"i" + int(part).to_bytes(17, "little", signed=True)
