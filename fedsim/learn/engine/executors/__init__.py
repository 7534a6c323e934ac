"""Executors: who computes the tasks that are due. Knows no cohort, no clock and no message.

Whoever computes, a result has the same bits: tasks hold all that it depends on, and an engine of the same site does the arithmetic.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol

from fedsim.core import answers, own
from fedsim.core.registry import Registry
from fedsim.learn.arithmetic import PLAIN, Arithmetic
from fedsim.learn.work import Result, Start, Task

if TYPE_CHECKING:
    from torch import nn

    from fedsim.learn.engine.cohort import CohortEngine
    from fedsim.learn.objectives import Objective
    from fedsim.learn.store import Store


@dataclass(frozen=True)
class Site:
    """What an engine computes with, wherever it stands: model, objective and examples, how many clients it stacks, how, and where.

    It can be pickled where these can. Another process unpickles it whole, and finds a reader's own modules by it.
    """

    model: nn.Module
    objective: Objective
    store: Store
    chunk: int
    many_sizes: bool
    arithmetic: Arithmetic = PLAIN
    device: str = "cpu"

    @classmethod
    def of(cls, engine: CohortEngine, *parts: Any) -> Site:
        """Return the site of *parts*, where *engine* stands already."""
        site = cls(*parts)
        site.__dict__["engine"] = engine
        return site

    @cached_property
    def engine(self) -> CohortEngine:
        """Return the engine that stands here, whose ``run`` and ``batch_sums`` compute; made when it is first asked for."""
        from fedsim.learn.engine.cohort import CohortEngine  # It knows this file.

        return CohortEngine(
            self.model, self.objective, self.store, chunk=self.chunk, many_sizes=self.many_sizes, arithmetic=self.arithmetic
        )

    def __reduce__(self) -> tuple[Callable[..., Site], tuple[Any, ...]]:
        """Return it without its engine, in a form that is read only once a reader's modules can be found."""
        parts = (self.model, self.objective, self.store, self.chunk, self.many_sizes, self.arithmetic, self.device)
        return _arrived, ([place or os.getcwd() for place in sys.path], dict(own.worlds()), pickle.dumps(parts))


def _arrived(path: Sequence[str], worlds: Mapping[str, tuple[str, dict[str, str]]], parts: bytes) -> Site:
    sys.path += [place for place in path if place not in sys.path]
    own.settle(worlds)
    return Site(*pickle.loads(parts))


class Executor(Protocol):
    """Whoever computes: this process, others, other machines. Opened before a scenario is built, closed whatever happens."""

    def serve(self, site: Site) -> None:
        """Compute at *site* from now on. Raises ScenarioError where it cannot."""
        ...

    def run(self, tasks: Sequence[Task]) -> list[Result]:
        """Return the results of *tasks*, in their order."""
        ...

    def batch_sums(self, start: Start, batches: int) -> list[dict[str, float]]:
        """Return the sums of the first *batches* batches of the test part, in order."""
        ...

    def close(self) -> None:
        """Let go of whatever it holds; it is not asked again."""
        ...


def _results(given: Any, tasks: Sequence[Task]) -> list[Result]:
    """Return results, one for each of *tasks*, in their order, with what each is to hold."""
    found = _listed(given, len(tasks), "results")
    for at, (result, task) in enumerate(zip(found, tasks, strict=True)):
        if not isinstance(result, Result):
            raise ValueError(f"a {type(result).__name__} at [{at}], expected a Result")
        if result.mark != task.mark:
            whose = "no task" if result.mark is None else "client {1}, task {2} ({0})".format(*result.mark)
            raise ValueError(f"the result of {whose} at [{at}], expected that of {task.label} ({task.job.kind}): results go by their tasks")
        lacking = [name for name, form in _forms(task).items() if name not in result.params or result.params[name].shape != form]
        if lacking:
            raise ValueError(f"the result of {task.label} without {lacking[0]}, or of another shape than {_forms(task)[lacking[0]]}")
    return found


def _forms(task: Task) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters that the result of *task* is to hold, by name."""
    if task.job.kind != "train":
        return {}
    down = task.job.algorithm.down if task.job.algorithm else ()
    return {name: array.shape for name, array in task.start.params.items() if name.partition("/")[0] not in down}


def _sums(given: Any, _: Start, batches: int) -> list[dict[str, float]]:
    """Return named numbers, of each of *batches*."""
    found = _listed(given, batches, "sums, one of each batch")
    for at, sums in enumerate(found):
        if not isinstance(sums, Mapping) or not all(isinstance(value, Real) for value in sums.values()):
            raise ValueError(f"{sums!r:.60} at [{at}], expected numbers by name")
    return found


def _listed(given: Any, count: int, what: str) -> list[Any]:
    if not isinstance(given, list | tuple):
        raise ValueError(f"a {type(given).__name__}, expected a list of {what}")
    if len(given) != count:
        raise ValueError(f"{len(given)} {what}, expected {count}")
    return list(given)


executors: Registry[Callable[..., Executor]] = Registry(
    "executor", ["workers"], key="engine.executor",
    gives=answers.Gives("an Executor", ("serve", "run", "batch_sums", "close"), {"run": _results, "batch_sums": _sums}),
)  # fmt: skip
