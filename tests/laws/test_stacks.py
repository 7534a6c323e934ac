"""Stacks: a result's parameters stay where they were made until somebody reads them, and are then the row's own."""

from __future__ import annotations

import pickle

import numpy as np
import torch
from torch import Tensor

from fedsim.core.types import Params
from fedsim.learn.engine.stack import Stack
from fedsim.learn.work import Result, Row

NAMES = ["weight", "bias", "count"]


def tensors() -> list[Tensor]:
    """Return arrays of three clients: a matrix, a vector and a number each."""
    return [torch.arange(18.0).view(3, 2, 3), torch.arange(6.0).view(3, 2) - 9, torch.tensor([5, 6, 7])]


class Counted:
    """A stack that counts how often it is read."""

    def __init__(self, stack: Stack) -> None:
        self.stack, self.read = stack, 0

    def mark(self, _: int) -> str:
        return ""

    def row(self, i: int) -> Params:
        self.read += 1
        return self.stack.row(i)

    def digest(self, i: int, salt: str) -> str:
        return self.stack.digest(i, salt)


class Shifted(Counted):
    """A wrong one: it hands out a neighbour's row."""

    def row(self, i: int) -> Params:
        return self.stack.row(i - 1)


class Mistaken(Counted):
    """Another one: it hands out what it should, and a neighbour's digest."""

    def digest(self, i: int, salt: str) -> str:
        return self.stack.digest(i - 1, salt)


def agrees(result: Result, i: int) -> bool:
    """Return whether *result* is what client *i* alone would have, in arrays and in digest."""
    alone = {name: tensor[i].numpy().copy() for name, tensor in zip(NAMES, tensors(), strict=True)}
    same = all(np.array_equal(result.params[name], array) and isinstance(result.params[name], np.ndarray) for name, array in alone.items())
    return same and list(result.params) == NAMES and result.digest == Result({"loss": 1.0}, alone).digest


def test_a_row_of_a_stack_is_what_a_client_alone_would_have() -> None:
    """Arrays, their order, and the digest, however they lie in memory; a stack that hands out another's row or digest is seen."""
    aside = [tensor.transpose(0, -1).contiguous().transpose(0, -1) for tensor in tensors()]
    for i in range(3):
        assert agrees(Result({"loss": 1.0}, Row(Stack(NAMES, tensors()), i)), i)
        assert agrees(Result({"loss": 1.0}, Row(Stack(NAMES, aside), i)), i)
        for wrong in (Shifted, Mistaken):
            assert not agrees(Result({"loss": 1.0}, Row(wrong(Stack(NAMES, tensors())), i)), i)


def test_no_array_is_copied_on_a_cpu() -> None:
    """What is read lies in the memory that was trained in."""
    made = tensors()
    read = Stack(NAMES, made).row(1)

    assert [made[k][1].data_ptr() for k in range(3)] == [array.ctypes.data for array in read.values()]


def test_parameters_are_read_once_and_only_when_somebody_asks() -> None:
    """Making a result, looking at what else is in it, and its digest read nothing; a pickle or ``params`` does."""
    stacks = [Counted(Stack(NAMES, tensors())) for _ in range(4)]
    results = [Result({"loss": 1.0}, Row(stack, 2), mark=("train", 2, 0)) for stack in stacks]
    _ = [(result.metrics, result.outputs, result.parts, result.mark, repr(result)) for result in results]
    assert [0, 0, 0, 0] == [stack.read for stack in stacks]

    _, first, copy = results[1].digest, results[2].params, pickle.loads(pickle.dumps(results[3]))
    assert [0, 0, 1, 1] == [stack.read for stack in stacks]
    assert first is results[2].params and agrees(copy, 2) and copy.mark == ("train", 2, 0)
    assert 1 == stacks[2].read
