"""What a reader's optimiser and algorithm are tried for before a run: the rule on two rows of zeros, and how a task ends.

Knows no model but by its arrays, and no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fedsim.core.errors import RunError, ScenarioError, door
from fedsim.core.keys import Key
from fedsim.core.types import Params
from fedsim.learn.algorithms.ending import ended_by, named
from fedsim.learn.engine.rows import Rows
from fedsim.learn.optim import Optimizer
from fedsim.learn.work import Job, Start, Task


def try_rule(job: Job, params: Params, at: str, whose: Optimizer) -> None:
    """Refuse an optimiser whose terms are none, or do not work on parameters like *params*; *at* is the reader's word for it."""
    _try_terms(job, whose, params, at, ())


def try_algorithm(job: Job, params: Params, at: str) -> None:
    """Refuse an algorithm whose halves do not give what they say; *params* are those that are trained."""
    algorithm = job.algorithm
    if algorithm is None:
        return
    for name in ("down", "up", "metrics", "keeps"):
        given = getattr(algorithm, name)
        if not isinstance(given, tuple) or not all(isinstance(each, str) for each in given):  # pyright: ignore[reportUnknownVariableType]
            raise ScenarioError(f"{at}: its {name} is {given!r}, expected a tuple of names.")
    _try_terms(job, algorithm, params, at, algorithm.down)
    zeros = {extra: {name: np.zeros_like(array) for name, array in params.items()} for extra in algorithm.down}
    task = Task(0, 0, job, Start({**params, **named(zeros)}), np.zeros(1, dtype=np.int64), Key(0))
    try:
        with door(at, "its finish() raised"):
            ended_by(algorithm, task, params, list(params))
    except RunError as error:
        raise ScenarioError(str(error).replace("training.algorithm:", f"{at}:")) from error


def _try_terms(job: Job, whose: Any, params: Params, at: str, down: Sequence[str]) -> None:
    with door(at, "its terms() raised"):
        terms: Any = whose.terms(job)
    if not isinstance(terms, list | tuple):
        raise ScenarioError(f"{at}: its terms() gives a {type(terms).__name__}, expected a sequence of terms.")
    for term in terms:  # pyright: ignore[reportUnknownVariableType]
        if not all(hasattr(term, name) for name in ("keeps", "apply", "flops")):  # pyright: ignore[reportUnknownArgumentType]
            raise ScenarioError(f"{at}: its terms() gives {term!r}, expected a term: keeps, apply and flops.")
        with door(at, f"its term {type(term).__name__} does not work on two rows of parameters:"):  # pyright: ignore[reportUnknownArgumentType]
            starts = [torch.from_numpy(np.array(array)).expand(2, *array.shape) for array in params.values()]
            sent = {extra: [torch.zeros_like(start) for start in starts] for extra in down}
            rows = Rows([term], list(params), starts, len(starts), sent=sent)
            rows.step(slice(0, 2), [torch.zeros_like(start) for start in starts], 0, job.lr)
            flops = float(term.flops(1))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        if not flops >= 0:
            raise ScenarioError(f"{at}: its term {type(term).__name__} gives flops() = {flops}, expected a number >= 0.")  # pyright: ignore[reportUnknownArgumentType]
