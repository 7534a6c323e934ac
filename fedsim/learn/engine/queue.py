"""The queue before an executor: tasks wait as tickets until somebody reads a result. Knows no cohort, and not who computes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedsim.core.types import Params
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.engine.executors import Executor
from fedsim.learn.engine.executors.local import Local
from fedsim.learn.engine.scoring import total
from fedsim.learn.objectives import scores_of
from fedsim.learn.work import Result, Start, Task

RIDE_BYTES = 2**30
"""Parameters of results that nobody has asked for yet: beyond it, tasks in flight wait for their turn."""


class Queue:
    """An Engine whose tasks an *executor* computes, at the site of *engine*, when they are due; with them others, as memory allows."""

    def __init__(self, engine: CohortEngine, executor: Executor) -> None:
        self._engine, self._executor = engine, executor
        self._pending: dict[int, Task] = {}
        self._done: dict[int, Result] = {}
        self._tickets, self._due = 0, 0
        executor.serve(engine.site)

    def submit(self, task: Task) -> int:
        """Take *task* and return its ticket; nothing is computed yet."""
        self._tickets += 1
        self._pending[self._tickets] = task
        return self._tickets

    def peek(self, ticket: int) -> Result:
        """Return the result of *ticket*, computed if it was not yet, and keep it for whoever will read it."""
        result = self.collect([ticket])[0]
        self._done[ticket] = result
        return result

    def discard(self, ticket: int) -> None:
        """Forget a ticket that no one will read."""
        self._pending.pop(ticket, None)
        self._done.pop(ticket, None)

    def collect(self, tickets: Sequence[int], others: Iterable[int] = ()) -> list[Result]:
        """Return the results of *tickets*, in their order; as many of *others* ride along as memory allows."""
        due = [ticket for ticket in tickets if ticket in self._pending]
        if due:
            room = max(0, RIDE_BYTES // self._engine.result_bytes - len(self._done))
            due += [ticket for ticket in others if ticket in self._pending][:room]
        if due:
            tasks = tuple(self._pending.pop(ticket) for ticket in due)
            self._due = len(tasks)
            try:
                self._done.update(zip(due, self._executor.run(tasks), strict=True))
            finally:
                self._due = 0
        return [self._done.pop(ticket) for ticket in tickets]

    def under_way(self) -> tuple[int, int]:
        """Return how many of the tasks that are being computed now are done, and of how many, to any thread; 0 of 0 where nobody counts."""
        due, done = self._due, getattr(self._executor, "computed", None)
        return (min(done, due), due) if isinstance(done, int) else (0, 0)

    def diagnose(self, task: Task) -> str:
        """Return where the numbers of *task* broke, computed here, whoever computed them."""
        return self._engine.diagnose(task)

    def test(self, params: Params) -> dict[str, float]:
        """Return the scores of *params* over the test part."""
        return scores_of(self._engine.objective, total(self._executor.batch_sums(Start(params), self._engine.test_batches)))


def here(engine: CohortEngine) -> Queue:
    """Return a queue whose tasks *engine* computes itself."""
    return Queue(engine, Local())
