"""The engine: tasks go in as they are made, results come out when someone reads them, computed in cohorts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from fedsim.learn.work import Result, Task


class Engine(Protocol):
    """Tasks to results. A result depends on its task alone, never on what else was submitted or when."""

    def submit(self, task: Task) -> int:
        """Take *task* and return its ticket; nothing is computed yet."""
        ...

    def collect(self, tickets: Sequence[int], others: Iterable[int] = ()) -> list[Result]:
        """Return the results of *tickets*, in their order, computing what is not yet computed.

        *others* are tickets that will be read later: they may ride in the same cohort.
        """
        ...

    def peek(self, ticket: int) -> Result | None:
        """Return the result of *ticket*, computed if it was not yet; it stays to be collected or discarded.

        None from an engine that computes nothing.
        """
        ...

    def diagnose(self, task: Task) -> str:
        """Return which step of a task, whose result is no number, broke first, and what of it; empty where nobody can tell."""
        ...

    def discard(self, ticket: int) -> None:
        """Forget a ticket that no one will read; its task is not computed if it was not yet."""
        ...
