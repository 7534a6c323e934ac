"""A client with a policy for its batch sizes and a device of its own: what stands around a program. Knows no stream and no clock."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.client.fitting import Fitting
from fedsim.client.kept import Kept
from fedsim.client.program import Finished, Order, Program
from fedsim.client.sizing import Sizing
from fedsim.core.types import Seconds
from fedsim.learn.job import FULL
from fedsim.learn.work import Result, Task


@dataclass(frozen=True, slots=True)
class Equipped:
    """Client *number*, whose *program* is given orders of the batch size that its policy wants, in batches that its device can hold.

    What fits is decided after what is wanted: a device has the last word. Where there is neither, the program is as it is.
    """

    number: int
    program: Program
    sizing: Sizing | None = None
    fitting: Fitting | None = None

    @property
    def chained(self) -> bool:
        """Return whether a task needs the numbers of the one before: for the program, or for the policy."""
        return self.program.chained or (self.sizing is not None and self.sizing.listens)

    @property
    def leaves(self) -> bool:
        """Return whether a task leaves more than its reply: for the program, or for the policy."""
        return self.program.leaves or (self.sizing is not None and self.sizing.listens)

    @property
    def tells(self) -> tuple[str, ...]:
        """Return what the program says."""
        return self.program.tells

    def ready_s(self, order: Order, kept: Kept, now: Seconds) -> Seconds:
        """Return what the program says."""
        return self.program.ready_s(order, kept, now)

    def ended(self, kept: Kept, now: Seconds) -> bool:
        """Return what the program says."""
        return self.program.ended(kept, now)

    def held(self, kept: Kept) -> tuple[int, int]:
        """Return what the program says."""
        return self.program.held(kept)

    def plan(self, order: Order, kept: Kept, now: Seconds = 0.0) -> tuple[Task, Kept]:
        """Return the program's plan, sized by the policy, then fitted to the device. Raises Unable where no batch fits, or none is to.

        An order for full batches is left to the device.
        """
        job = order.job
        if job.kind != "train":
            return self.program.plan(order, kept, now)
        if self.sizing is None or job.batch_size == FULL:
            return self._fitted(order, kept, now)
        task, after = self._fitted(self.sizing.sized(self.number, order, kept, now), kept, now)
        return self.sizing.gauged(task), after

    def finish(self, task: Task, result: Result, kept: Kept) -> Finished:
        """Return the program's, and what the policy makes of the noise that was measured."""
        finished = self.program.finish(task, result, kept)
        return finished if self.sizing is None else self.sizing.learned(task, result, kept, finished)

    def _fitted(self, order: Order, kept: Kept, now: Seconds) -> tuple[Task, Kept]:
        def planned(order: Order) -> tuple[Task, Kept]:
            return self.program.plan(order, kept, now)

        return planned(order) if self.fitting is None else self.fitting.planned(self.number, order, planned)
