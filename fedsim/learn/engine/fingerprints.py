"""Fingerprints of stacked arrays, computed where the numbers are: whole numbers, so that no order of summing moves one.

Of each row, LANES times, the sum over its 32-bit words of the word, as a signed number, times an odd 64-bit number that goes by the place
of the word and by the lane, modulo 2^64: one word that differs always shows, and any other difference but for one in about 2^64
(multilinear hashing; Lemire and Kaser 2014, arXiv:1202.4961). Not cryptographic: it tells whether two runs computed the same, not who
tampered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

FORMAT = "fedsim-words-1"
"""What goes before a fingerprint where it is hashed: it stands for the odd numbers, the lanes and the order of words."""
LANES = 2
BLOCK_WORDS = 1 << 24
"""Products that are held at a time: 128 MiB of them."""
_WORDS = {8: torch.int32, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


def fingerprints(tensors: Sequence[Tensor]) -> Tensor:
    """Return the fingerprint of each row of *tensors*, on their device. Shapes: each (rows, ...) -> (rows, LANES), int64."""
    rows = len(tensors[0])
    found = torch.zeros(rows, LANES, dtype=torch.int64, device=tensors[0].device)
    begun = 0
    for tensor in tensors:
        words = _words(tensor)
        step = max(1, BLOCK_WORDS // max(1, rows))
        for first in range(0, words.shape[1], step):
            mine = words[:, first : first + step].to(torch.int64)
            for lane in range(LANES):
                found[:, lane] += (mine * _odd(begun + first, mine.shape[1], lane, tensor.device)).sum(1)
        begun += words.shape[1]
    return found


def _words(tensor: Tensor) -> Tensor:
    """Return the memory of each row as whole numbers of 32 bits, or fewer where its numbers have fewer. Shapes: (rows, words)."""
    flat = tensor.detach().contiguous().reshape(len(tensor), -1)
    if flat.dtype == torch.bool:
        return flat.to(torch.uint8)
    return flat.view(_WORDS[flat.element_size()])


def _odd(first: int, count: int, lane: int, device: torch.device) -> Tensor:
    """Return the odd numbers of *count* places from the *first*, as ``odd`` does, made where they are wanted. Shapes: -> (count,)."""
    mixed = (torch.arange(first, first + count, dtype=torch.int64, device=device) + (1 + (lane << 40))) * _signed(0x9E3779B97F4A7C15)
    mixed = (mixed ^ _right(mixed, 30)) * _signed(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ _right(mixed, 27)) * _signed(0x94D049BB133111EB)
    return (mixed ^ _right(mixed, 31)) | 1


def _signed(number: int) -> int:
    return number - 2**64


def _right(numbers: Tensor, by: int) -> Tensor:
    """Return *numbers* shifted right, as those without a sign are."""
    return (numbers >> by) & ((1 << (64 - by)) - 1)


def odd(places: np.ndarray[Any, np.dtype[np.uint64]], lane: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Return the odd numbers of *places* in a *lane*: splitmix64 of them (Steele et al. 2014), the last bit set."""
    with np.errstate(over="ignore"):
        mixed = (places + np.uint64(1) + (np.uint64(lane) << np.uint64(40))) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)
