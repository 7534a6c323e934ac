"""Fingerprints and sums of stacks that stay on their device: on a CPU's tensors here, by the code that runs on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.learn.engine import cohort, fingerprints, sums
from fedsim.learn.engine.stack import Stack
from fedsim.learn.weighted import weighted
from fedsim.learn.work import Result, Row

SHAPES = {"weight": (7, 33), "number": (), "one": (1,), "wide": (3, 90)}
M64 = (1 << 64) - 1


def stack_of(rows: int, dtype: Any, seed: int = 0) -> list[Tensor]:
    """Return arrays of large and small numbers: sums of them round."""
    draw = np.random.default_rng(seed)
    arrays = [draw.normal(size=(rows, *s)) * 10.0 ** draw.integers(-4, 5, (rows, *[1] * len(s))) for s in SHAPES.values()]
    return [torch.from_numpy(array.astype(dtype)) for array in arrays]


def by_hand(row: Sequence[np.ndarray[Any, Any]]) -> list[int]:
    """Return the fingerprint of one row by Python's own whole numbers."""
    words = [int(word) for array in row for word in np.frombuffer(array.tobytes(), "<i4")]
    found: list[int] = []
    for lane in range(fingerprints.LANES):
        total = 0
        for place, word in enumerate(words):
            mixed = (place + 1 + (lane << 40)) * 0x9E3779B97F4A7C15 & M64
            mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & M64
            mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & M64
            total += word * ((mixed ^ mixed >> 31) | 1)
        found.append(total & M64)
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("block", [fingerprints.BLOCK_WORDS, 40])
def test_a_fingerprint_is_what_whole_numbers_give(dtype: Any, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row's is that of Python's own numbers, whatever is held at a time, and however many rows stand beside it."""
    monkeypatch.setattr(fingerprints, "BLOCK_WORDS", block)
    tensors = stack_of(5, dtype)
    told = fingerprints.fingerprints(tensors).numpy().view(np.uint64)

    for i in range(5):
        assert by_hand([tensor[i].numpy() for tensor in tensors]) == told[i].tolist()
        assert torch.equal(fingerprints.fingerprints(tensors)[i], fingerprints.fingerprints([t[i : i + 1] for t in tensors])[0])


def test_any_bit_and_any_order_shows() -> None:
    """One bit, two numbers or two rows that change places, a zero's sign: another fingerprint. Without the places, order would not show."""
    tensors = stack_of(2, np.float32)
    before = fingerprints.fingerprints(tensors)
    for bit in (0, 13, 31):
        changed = [tensor.clone() for tensor in tensors]
        changed[0].view(torch.int32)[1, 3, 4] ^= torch.tensor(1 << bit if bit < 31 else -(1 << 31), dtype=torch.int32)
        after = fingerprints.fingerprints(changed)
        assert torch.equal(before[0], after[0]) and (before[1] != after[1]).all()
    swapped = [tensor.clone() for tensor in tensors]
    swapped[0][0, 0, [0, 1]] = swapped[0][0, 0, [1, 0]]
    assert (before[0] != fingerprints.fingerprints(swapped)[0]).all()
    zeros, minus = torch.zeros(1, 4), torch.tensor([[0.0, -0.0, 0.0, 0.0]])
    assert (fingerprints.fingerprints([zeros]) != fingerprints.fingerprints([minus])).all()

    blind = [sum(by_hand([np.float32([a]), np.float32([b])])[0] * 0 + int(np.float32(v).view(np.int32)) for v in (a, b))
             for a, b in ((1.5, 2.5), (2.5, 1.5))]  # fmt: skip
    assert blind[0] == blind[1]  # Teeth: a plain sum of words.


def test_what_goes_by_the_place_is_odd_and_other_in_each_lane() -> None:
    """So a word that differs always shows, in both of two sums that know nothing of each other."""
    lanes = [fingerprints.odd(np.arange(1000, dtype=np.uint64), lane) for lane in range(fingerprints.LANES)]

    assert all((lane & 1).all() and len(set(lane.tolist())) == 1000 for lane in lanes)
    assert not set(lanes[0].tolist()) & set(lanes[1].tolist())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("block", [sums.BLOCK_BYTES, 3000, 1])
def test_sums_on_the_device_have_the_bits_of_one_by_one(dtype: Any, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of several stacks in any order: what torch adds where they lie is what numpy adds; another order is not."""
    monkeypatch.setattr(sums, "BLOCK_BYTES", block)
    draw = np.random.default_rng(1)
    here = [Row(stack, i) for k, n in enumerate((9, 1, 13)) for stack in [Stack(list(SHAPES), stack_of(n, dtype, k))] for i in range(n)]
    there = [Row(stack, i) for k, n in enumerate((9, 1, 13)) for stack in [Stack(list(SHAPES), stack_of(n, dtype, k), away=True)]
             for i in range(n)]  # fmt: skip
    order, factors = draw.permutation(23), draw.dirichlet(np.ones(23)).tolist()

    plain = weighted([here[i] for i in order], factors)
    mine = weighted([there[i] for i in order], factors)
    turned = weighted([there[i] for i in order[::-1]], factors[::-1])
    assert plain is not None and mine is not None and turned is not None
    assert all(plain[name].tobytes() == mine[name].tobytes() and plain[name].shape == mine[name].shape for name in SHAPES)
    assert any(plain[name].tobytes() != turned[name].tobytes() for name in SHAPES)


def test_nobody_looks_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest and a sum of rows on a device read no array; ``params`` does, once for all rows, and gives the same numbers."""
    stack = Stack(list(SHAPES), stack_of(4, np.float32), away=True)
    results = [Result({"loss": float(i)}, Row(stack, i), parts={"kept": {"n": np.arange(i)}}) for i in range(4)]
    digests = [result.digest for result in results]
    assert weighted([Row(stack, i) for i in range(4)], [0.25] * 4) is not None
    assert "_arrays" not in vars(stack) and 4 == len(set(digests))

    assert np.array_equal(results[2].params["weight"], stack_of(4, np.float32)[0][2].numpy())
    assert digests == [result.digest for result in results]  # The same, whether somebody has looked or not.
    alone = Stack(list(SHAPES), [tensor[2:3] for tensor in stack_of(4, np.float32)], away=True)
    assert digests[2] == Result({"loss": 2.0}, Row(alone, 0), parts={"kept": {"n": np.arange(2)}}).digest
    assert digests[2] != Result({"loss": 2.0}, Row(alone, 0)).digest
    renamed = Stack(["weight", "number", "one", "other"], [tensor[2:3] for tensor in stack_of(4, np.float32)], away=True)
    assert digests[2] != Result({"loss": 2.0}, Row(renamed, 0), parts={"kept": {"n": np.arange(2)}}).digest


def test_a_run_whose_results_stay_is_the_same_run(go: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, stacks stay and have fingerprints: the model is that of arrays on the host, bit for bit, and so are all rows but those
    fingerprints; a second run, in other chunks, has the same digest."""
    plain = go()
    monkeypatch.setattr(cohort, "Stack", partial(Stack, away=True))
    runs = [go(), go({"engine.chunk": 2})]

    assert runs[0].digest == runs[1].digest != plain.digest
    for name, tensor in plain.model().state_dict().items():
        assert torch.equal(tensor, runs[0].model().state_dict()[name])
    assert (plain.tasks.loss == runs[0].tasks.loss).all() and (plain.tasks.result != runs[0].tasks.result).all()
