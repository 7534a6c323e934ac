"""Where a task's numbers broke: the step, and which of loss, gradient and parameter was the first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from test_engine import federation, net, tasks
from torch import Tensor, nn

from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.job import Job
from fedsim.learn.objectives import Classification
from fedsim.learn.store import Store
from fedsim.learn.work import Task


class Rooted(nn.Module):
    """A finite loss whose gradient is none: the root of a parameter that is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.root, self.out = nn.Parameter(torch.zeros(1)), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.flatten(1)) + self.root.sqrt()


def diagnosed(model: nn.Module, job: Job, change: Callable[[Task], Task] = lambda task: task) -> str:
    fed = federation("")
    engine = CohortEngine(model, Classification(), Store(fed, torch.float32, torch.device("cpu")))
    return engine.diagnose(change(tasks(model, job, fed)[0]))


def poisoned(task: Task) -> Task:
    """Return a task that starts from a parameter which is none."""
    params = {name: array.copy() for name, array in task.start.params.items()}
    next(iter(params.values())).flat[0] = np.nan
    return dataclasses.replace(task, start=type(task.start)(params))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_names_what_broke_first(accumulate: int) -> None:
    """A gradient that is none beside a finite loss; a step too far; a loss of parameters that are too large; a bad start."""
    job = Job(epochs=2, batch_size=4, lr=0.1, accumulate=accumulate)
    last = 2 * -(-24 // (4 * accumulate))
    first = f"was the first to break, in local step 1 of {last}"
    assert diagnosed(Rooted(), job) == f"the gradient of root {first}"
    assert diagnosed(net("mlp", torch.float32), dataclasses.replace(job, lr=3e38, weight_decay=3e38)).startswith("the parameter ")
    huge = diagnosed(net("mlp", torch.float32), dataclasses.replace(job, lr=1e30))
    assert huge.endswith(f"in local step 2 of {last}") and huge.startswith("the loss ")
    assert "was none when it came" in diagnosed(net("mlp", torch.float32), job, poisoned)
    assert diagnosed(net("mlp", torch.float32), job) == ""
