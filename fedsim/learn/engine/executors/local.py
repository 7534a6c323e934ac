"""The executor that is this process. Knows no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedsim.learn.engine.executors import Site, executors
from fedsim.learn.work import Result, Start, Task

if TYPE_CHECKING:
    from fedsim.learn.engine.cohort import CohortEngine


class Local:
    """Computes by the engine that was built here."""

    _engine: CohortEngine

    def serve(self, site: Site) -> None:
        """Compute at *site* from now on."""
        self._engine = site.engine

    @property
    def computed(self) -> int:
        """Return how many tasks of the latest ``run`` are computed so far."""
        return self._engine.computed

    def run(self, tasks: Sequence[Task]) -> list[Result]:
        """Return the results of *tasks*, in their order."""
        return self._engine.run(list(tasks))

    def batch_sums(self, start: Start, batches: int) -> list[dict[str, float]]:
        """Return the sums of the first *batches* batches of the test part, in order."""
        return [self._engine.batch_sums(start, batch) for batch in range(batches)]

    def close(self) -> None:
        """Nothing is held open."""


@executors.register("local")
def local() -> Local:
    """This process: what computes unless engine.workers asks for more, and the one that trains on a GPU."""
    return Local()
