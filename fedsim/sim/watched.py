"""What was watched of training, as rows: local steps, single examples' gradients, and the noise between clients. Knows no message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.core.state import State
from fedsim.core.types import Params, Seconds
from fedsim.learn.signal import of_updates
from fedsim.learn.work import STEP_COLUMNS
from fedsim.sim.rows import ExaminedRow, NoiseRow, StepRow


@dataclass(frozen=True, slots=True)
class Head:
    """Which training task it was: the number of its *message*, the client and its own number there, the round and the version."""

    message: int
    client: int
    number: int
    round: int
    version: int


def steps_of(seen: Sequence[tuple[Head, State]]) -> StepRow:
    """Return the row of the steps that were *seen* of tasks, at least one."""
    heads = [(head.message, head.client, head.number, head.round, head.version) for head, _ in seen]
    lengths = [state["steps"].shape[1] for _, state in seen]
    table = np.concatenate([state["steps"] for _, state in seen], axis=1)
    return StepRow(*np.repeat(np.array(heads), lengths, axis=0).T, *table)


def examined_of(message: str, head: Head, seen: State) -> ExaminedRow | None:
    """Return the row of the single examples that were *seen* of a task; None where there were none."""
    if "noise" not in seen:
        return None
    signal, trace, examples = seen["noise"].tolist()
    batch = int(seen["steps"][STEP_COLUMNS.index("batch"), 0])
    return ExaminedRow(message, head.client, head.number, head.round, head.version, batch, int(examples), signal, trace)


@dataclass(frozen=True, slots=True)
class Made:
    """What one client made of a version, and how many *examples* that counts for."""

    params: Params
    examples: int


def noise_of(at: tuple[int, int, Seconds], start: Params, made: Sequence[Made], names: Sequence[str]) -> NoiseRow | None:
    """Return the row of signal and noise between the clients that *made* their own of *start*; None where they are fewer than two.

    *at* are round, version and moment; *names* the arrays that are parameters.
    """
    counting = [each for each in made if each.examples]
    if len(counting) < 2:
        return None
    signal, trace, counted = of_updates(start, [each.params for each in counting], [each.examples for each in counting], names)
    return NoiseRow(*at, len(counting), counted, signal, trace)
