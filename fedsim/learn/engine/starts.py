"""What tasks start from, as tensors of one type on one device. Knows no batch, and not what becomes of a task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.core.errors import RunError
from fedsim.core.state import State
from fedsim.core.types import Params
from fedsim.learn.algorithms.ending import sent_of
from fedsim.learn.engine.rows import Rows
from fedsim.learn.optim import rule
from fedsim.learn.work import Job, Task


class Starts:
    """Makes tensors of arrays called *names*, of which the first *trained* are parameters; what several tasks start from, once."""

    def __init__(self, names: Sequence[str], trained: int, dtype: torch.dtype, device: torch.device) -> None:
        self._names, self._trained, self._dtype, self._device = list(names), trained, dtype, device
        self._known: dict[str, list[Tensor]] = {}

    def of(self, task: Task) -> list[Tensor]:
        """Return the parameters that *task* starts from."""
        content = task.start.content
        if content not in self._known:
            self._known[content] = self.tensors(task.start.params)
        return self._known[content]

    def forget(self) -> None:
        """Let go of all that is known."""
        self._known.clear()

    def rows(self, job: Job, tasks: Sequence[Task]) -> Rows:
        """Return the rows of *tasks*, as they start."""
        sent: dict[str, list[Tensor]] = {}
        for extra in job.algorithm.down if job.algorithm else ():
            each = [self._sent(task, extra) for task in tasks]
            sent[extra] = [torch.stack(list(arrays)) for arrays in zip(*each, strict=True)]
        kept = [task.parts.get("optimizer", {}) | self._algorithms(job, task) for task in tasks] if job.keeping else []
        return Rows(rule(job), self._names, self._stacked(tasks), self._trained, sent=sent, kept=kept, clipping=job.clipping)

    def tensors(self, params: Params) -> list[Tensor]:
        """Return *params* as tensors. Raises RunError where a variance is negative."""
        for name, array in params.items():
            if name.endswith("running_var") and (array < 0).any():
                raise RunError(
                    f"{name} became negative: the server's strategy moves BatchNorm's variance like a parameter. Use a"
                    f" strategy that averages, like FedAvg, or GroupNorm in the model."
                )
        return [torch.tensor(params[name], dtype=self._dtype, device=self._device) for name in self._names]

    def _algorithms(self, job: Job, task: Task) -> State:
        """Return what the client keeps of *task*'s algorithm: what that says it keeps, so that nothing is taken for an optimiser's."""
        kept, keeps = task.parts.get("algorithm", {}), job.algorithm.keeps if job.algorithm else ()
        return {name: array for name, array in kept.items() if name.partition("/")[0] in keeps}

    def _sent(self, task: Task, extra: str) -> list[Tensor]:
        arrays = sent_of(task, extra, self._names[: self._trained])
        return [torch.tensor(array, dtype=self._dtype, device=self._device) for array in arrays.values()]

    def _stacked(self, tasks: Sequence[Task]) -> list[Tensor]:
        """Return the parameters each row starts from; one set, expanded, where all rows start from the same."""
        starts = [self.of(task) for task in tasks]
        if all(start is starts[0] for start in starts):
            return [param.expand(len(tasks), *param.shape) for param in starts[0]]
        return [torch.stack(list(params)) for params in zip(*starts, strict=True)]
