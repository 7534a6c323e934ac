"""What tasks start from, as tensors of one type on one device. Knows no batch, and not what becomes of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedsim.core.errors import RunError
from fedsim.core.state import State
from fedsim.core.types import Array, Params
from fedsim.learn.algorithms.ending import sent_of
from fedsim.learn.engine.rows import Rows
from fedsim.learn.job import Job
from fedsim.learn.norms import is_variance
from fedsim.learn.optim import rule
from fedsim.learn.work import Task


class Starts:
    """Makes tensors of arrays called as in *built*, of which the first *trained* are parameters; what several tasks start from, once.

    A buffer that no message brings is the client's own, or at first as in *built*.
    """

    def __init__(self, built: Mapping[str, Tensor], trained: int, dtype: torch.dtype, device: torch.device) -> None:
        self._names, self._trained, self._dtype, self._device = list(built), trained, dtype, device
        self._built = {name: tensor.detach().clone() for name, tensor in list(built.items())[trained:]}
        self._known: dict[str, list[Tensor]] = {}

    def of(self, task: Task) -> list[Tensor]:
        """Return the parameters that *task* starts from, and its buffers."""
        content = task.start.content
        if content not in self._known:
            self._known[content] = self.tensors(task.start.params)
        return self.own(task, self._known[content])

    def local(self, task: Task, params: Params) -> list[Tensor]:
        """Return *params*, the client's own model, as tensors."""
        return self.own(task, self.tensors(params))

    def own(self, task: Task, tensors: list[Tensor]) -> list[Tensor]:
        """Return *tensors* with the buffers that the client of *task* keeps in the place of theirs, where it keeps any."""
        mine = task.parts.get("statistics") if task.job.own_statistics else None
        if not mine:
            return tensors
        return [*tensors[: self._trained], *(self._tensor(mine[name]) for name in self._names[self._trained :])]

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
        """Return *params* as tensors; buffers that are not among them as they were built. Raises RunError where a variance is negative."""
        for name, array in params.items():
            if is_variance(name) and (array < 0).any():
                raise RunError(
                    f"{name} became negative: the server moves BatchNorm's variance like a parameter. Use a strategy that averages, like"
                    f" FedAvg, or GroupNorm in the model."
                )
        return [self._built[name] if name not in params and name in self._built else self._tensor(params[name]) for name in self._names]

    def _tensor(self, array: Array) -> Tensor:
        return torch.tensor(array, dtype=self._dtype, device=self._device)

    def _algorithms(self, job: Job, task: Task) -> State:
        """Return what the client keeps of *task*'s algorithm: what that says it keeps, so that nothing is taken for an optimiser's."""
        kept, keeps = task.parts.get("algorithm", {}), job.algorithm.keeps if job.algorithm else ()
        return {name: array for name, array in kept.items() if name.partition("/")[0] in keeps}

    def _sent(self, task: Task, extra: str) -> list[Tensor]:
        return [self._tensor(array) for array in sent_of(task, extra, self._names[: self._trained]).values()]

    def _stacked(self, tasks: Sequence[Task]) -> list[Tensor]:
        """Return the parameters each row starts from; one set, expanded, where all rows start from the same."""
        starts = [self.of(task) for task in tasks]
        if all(start is starts[0] for start in starts):
            return [param.expand(len(tasks), *param.shape) for param in starts[0]]
        return [torch.stack(list(params)) for params in zip(*starts, strict=True)]
