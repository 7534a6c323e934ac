"""Room: how many clients of a chunk memory holds, learned where it ran out; and what errors of a memory or a device mean.

Knows no step, and of tasks how they are called. How they are grouped moves no bit, so a chunk that does not fit is as well trained in
halves.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

from fedsim.core.errors import RunError


class Labelled(Protocol):
    """A task, as far as it matters here."""

    @property
    def label(self) -> str:
        """Return how error lines call it."""
        ...


T = TypeVar("T", bound=Labelled)
R = TypeVar("R")

_FULL = ("out of memory", "allocate memory", "not enough memory", "status_alloc_failed")
_ASSERT = "device-side assert"
"""What torch says where an index on a GPU lies beyond what is indexed: the data's fault, and no device's."""


def is_full(error: BaseException) -> bool:
    """Return whether *error* says that a memory is full: the computer's or a GPU's.

    >>> is_full(RuntimeError("CUDA error: an illegal memory access was encountered")), is_full(MemoryError())
    (False, True)
    """
    said = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in said for words in _FULL)


def failed_device(error: BaseException) -> str:
    """Return what the failure of a GPU that *error* tells of means, and what would work, by its key; empty where it tells of none."""
    return f"engine.device = 'cuda': {meant}" if (meant := meant_by(error)) else ""


def meant_by(error: BaseException) -> str:
    """Return the same without the key."""
    said = str(error)
    if not any(name in said for name in ("CUDA", "CUBLAS", "cuDNN", "CUDNN")) or is_full(error):
        return ""
    if "no kernel image" in said:
        return "this GPU is older than the kernels of this torch. Take a torch built for it, or device = 'cpu'."
    if _ASSERT in said:
        return "an index or a class lies beyond what there is. device = 'cpu' names it."
    return "the GPU failed, or is gone. nvidia-smi tells whether it is there; device = 'cpu' works without."


@contextmanager
def minding(device: torch.device | str) -> Generator[None]:
    """Within, a GPU's failure is one line. Raises RunError for it."""
    try:
        yield
    except RuntimeError as error:  # torch has no type of its own for all of them.
        if not (told := failed_device(error)):
            raise
        raise RunError(f"{line_of(error)} on {device}. {told}") from error


def line_of(error: BaseException) -> str:
    """Return the first line of what *error* says, without its full stop."""
    return (str(error).splitlines() or ["no more memory"])[0][:200].removesuffix(".")


class Room:
    """How many clients at most are trained at once, where memory did not hold more; nothing is known at first."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.most: int | None = None
        """How many fitted after more did not; None where all did."""
        self._first = 0
        self.freed: Callable[[bool], bool] = lambda _: False
        """Lets go of what an engine keeps to be quick, when memory is short; for good where it is told so. Returns whether that helps."""

    @property
    def notes(self) -> list[str]:
        """Return what a reader should know of it."""
        if self.most is None:
            return []
        return [
            f"A chunk of {self._first} clients did not fit into the memory of {self._device}: from there on at most {self.most} were"
            f" trained at once, which is slower and moves no bit. engine.chunk = {self.most} begins so."
        ]

    def chunks(
        self, tasks: Sequence[T], rows: Sequence[int], width: int, train: Callable[[list[T]], list[R]]
    ) -> Iterator[tuple[list[int], list[R]]]:
        """Yield (places, results) of chunks of at most *width* of the *tasks* at *rows*; one that memory does not hold is halved.

        Raises RunError where one task alone does not fit, or something else broke.
        """
        first = 0
        while first < len(rows):
            places = list(rows[first : first + min(width, self.most or width)])
            results = self._tried([tasks[i] for i in places], train)
            if results is None:  # Outside of the handler: there the error would keep alive what is to be freed.
                self._shrunk(len(places))
                continue
            yield places, results
            first += len(places)

    def _tried(self, tasks: list[T], train: Callable[[list[T]], list[R]]) -> list[R] | None:
        """Return the results of *tasks*; None where memory does not hold them, and something can be done about it."""
        try:
            return train(tasks)
        except (RuntimeError, MemoryError) as error:  # torch reports a full memory as a RuntimeError
            full = is_full(error)
            if full and (len(tasks) > 1 or self.freed(True)):
                traceback.clear_frames(error.__traceback__)
                return None
            names = "; ".join(task.label for task in tasks[:3]) + ("; ..." if len(tasks) > 3 else "")
            hint = " One client alone does not fit. Try smaller batches, training.checkpointing = true, or a smaller model." if full else ""
            told = failed_device(error)
            raise RunError(f"training broke in {names}: {line_of(error)}.{hint}{f' {told}' if told else ''}") from error

    def _shrunk(self, count: int) -> None:
        if count > 1:
            self._first = self._first or count
            self.most = count // 2
            self.freed(False)
        gc.collect()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
