"""How a task ends by its algorithm: what came with its message, what the client's half makes of it, and whether that is what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.core.errors import RunError
from fedsim.core.types import Params
from fedsim.learn.algorithms import Algorithm, Ended
from fedsim.learn.work import Task


def named(extra: Mapping[str, Params]) -> Params:
    """Return *extra* arrays by the names under which they travel.

    >>> import numpy as np
    >>> list(named({"control": {"weight": np.zeros(1)}}))
    ['control/weight']
    """
    return {f"{name}/{param}": array for name, arrays in extra.items() for param, array in arrays.items()}


def split(params: Params, extras: Sequence[str], names: Sequence[str]) -> tuple[Params, dict[str, Params]]:
    """Return *params* without its *extras*, and these by name and parameter; *names* are those of parameters. ``named`` undoes it.

    Raises KeyError where an extra array is missing.
    """
    extra = {each: {name: params[f"{each}/{name}"] for name in names} for each in extras}
    gone = {f"{each}/{name}" for each in extras for name in names}
    return {name: array for name, array in params.items() if name not in gone}, extra


def sent_of(task: Task, extra: str, names: Sequence[str]) -> Params:
    """Return the arrays called *extra* that came with the parameters of *task*. Raises RunError where they did not."""
    found = {name: task.start.params.get(f"{extra}/{name}") for name in names}
    missing = [name for name, array in found.items() if array is None]
    if missing:
        raise RunError(
            f"training.algorithm: the message to {task.label} came without {extra}/{missing[0]}, which the algorithm takes. The server's"
            f" half sends it; a strategy that makes messages of its own must put in what configure_train was given."
        )
    return {name: array for name, array in found.items() if array is not None}


def ended_by(algorithm: Algorithm, task: Task, params: Params, names: Sequence[str]) -> Ended:
    """Return what *algorithm* makes of *task*, which came to *params*; *names* are those that were trained.

    Raises RunError where it is not what the algorithm says that it gives.
    """
    sent = {extra: sent_of(task, extra, names) for extra in algorithm.down}
    start, trained = ({name: arrays[name] for name in names} for arrays in (task.start.params, params))
    ended: Any = algorithm.finish(task.job, start, trained, sent, task.parts.get("algorithm", {}), task.step_rates)
    if not isinstance(ended, Ended):
        raise RunError(f"training.algorithm: its finish() gives a {type(ended).__name__}, expected an Ended.")
    if set(ended.extra) != set(algorithm.up):
        raise RunError(f"training.algorithm: its finish() gives {sorted(ended.extra)}, and it says that it sends {sorted(algorithm.up)}.")
    if set(ended.metrics) != set(algorithm.metrics):
        raise RunError(
            f"training.algorithm: its finish() gives the metrics {sorted(ended.metrics)}, and it says that it has"
            f" {sorted(algorithm.metrics)}."
        )
    for extra, arrays in ended.extra.items():
        for name in names:
            form = None if name not in arrays else (str(arrays[name].dtype), arrays[name].shape)
            if form != (str(trained[name].dtype), trained[name].shape):
                raise RunError(
                    f"training.algorithm: its finish() gives {form or 'nothing'} for {extra}/{name}, expected"
                    f" {(str(trained[name].dtype), trained[name].shape)}."
                )
    return ended
