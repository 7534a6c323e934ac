"""What goes with what in a scenario, and what its clients will keep between messages, in bytes: from shapes, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.core.state import State
from fedsim.learn.models import buffers
from fedsim.scenario.build import Parts

STEPS_BYTES = 8
"""What a client's count of the steps that its optimiser has seen takes."""
PLAIN_RULES = ("none", "er", "er_ace", "a_gem")
"""Ways of rehearsing that keep nothing of the last task besides the memory."""


@dataclass(frozen=True, slots=True)
class Keeps:
    """What a client keeps between messages at most: bytes by the part of ``Kept``, and names of parts whose size nobody knows before.

    ``algorithm``: its extra arrays, like SCAFFOLD's control variate. ``optimizer``: moments that stay. ``statistics``: the model's
    buffers. ``local``: a model of the client's own. ``replay``: as many slots as there is room for, and examples come.
    """

    each: Mapping[str, int]
    unknown: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Return what all parts of a client come to."""
        return sum(self.each.values())


def keeps(parts: Parts, items: float) -> Keeps:
    """Return what each client of *parts* keeps at most, to whom *items* examples come."""
    job, online = parts.job, parts.fleet.online
    trained = sum(parts.first[name].nbytes for name in parts.fleet.trained)
    each, unknown = dict[str, int](), list[str]()
    if job.algorithm is not None and job.algorithm.keeps:
        each["algorithm"] = len(job.algorithm.keeps) * trained
    if job.optimizer is not None and job.optimizer.state == "keep":
        each["optimizer"] = STEPS_BYTES + sum(len(term.keeps) for term in job.optimizer.terms(job)) * trained
    if job.own_statistics:
        each["statistics"] = sum(tensor.numel() * tensor.element_size() for tensor in buffers(parts.model).values())
    if online is not None:
        if online.replay.capacity:
            each["replay"] = math.ceil(min(online.replay.capacity, items)) * _slot_bytes(online.replay.empty())
        if online.predict == "local":
            each["local"] = sum(array.nbytes for array in parts.first.values())
        if (parts.scenario.training.rehearsal or {"kind": "er"})["kind"] not in PLAIN_RULES:
            unknown.append("rehearsal")
        if (parts.scenario.clients.detector or {"kind": "none"})["kind"] != "none":
            unknown.append("watch")
    if parts.fleet.coding is not None and ":" in str(((parts.scenario.codec and parts.scenario.codec.up) or {"kind": ""})["kind"]):
        unknown.append("codec")
    return Keeps({name: size for name, size in each.items() if size}, tuple(unknown))


def touched(clients: int, asked: float, rounds: int, seen: int) -> float:
    """Return how many of *clients* train at least once in *rounds* that ask *asked* each, drawn alike; *seen* did already.

    >>> [round(touched(100, 10.0, rounds, 0)) for rounds in (1, 7, 1000)]
    [10, 52, 100]
    """
    return max(float(seen), clients * (1.0 - (1.0 - min(1.0, asked / clients)) ** rounds))


def together(parts: Parts) -> dict[str, str]:
    """Return what goes with what, in words, by what it is about: only what the scenario has."""
    scenario, job, found = parts.scenario, parts.job, dict[str, str]()
    strategy = str(scenario.server.strategy["kind"])
    if job.algorithm is not None and scenario.training.algorithm:
        down, up = job.algorithm.down, job.algorithm.up
        sent = ", ".join([*([f"sends {' and '.join(down)} along"] if down else []), *([f"gets {' and '.join(up)} back"] if up else [])])
        half = f"its server's half stands around {strategy}" if parts.extras else f"{strategy} aggregates"
        found["algorithm"] = f"{scenario.training.algorithm['kind']}: {half}{f', {sent}' if sent else ''}"
    if (edges := parts.fleet.edges) is not None:
        played = "a round" if edges.rounds == 1 else f"{edges.rounds} rounds"
        found["edges"] = f"{edges.count:,} edges play {played} among their clients for each round of the server's"
    if (asked := scenario.training.schedule) is not None:
        warm = f", after a warm-up of {asked.warmup:g}" if asked.warmup else ""
        found["rate"] = f"{asked.table['kind']} from {job.lr:g}, on the clock {asked.clock!r}{warm}"
    if (coding := parts.fleet.coding) is not None:
        plain = (_bytes(coding.down_forms), _bytes(coding.up_forms))
        sent_bytes = (_bytes(coding.down.forms(coding.down_forms)), _bytes(coding.up.forms(coding.up_forms)))
        said = [f"{way} {100 * (1 - now / before):.0f} % less" for way, before, now in zip(("down", "up"), plain, sent_bytes, strict=True)
                if now != before]  # fmt: skip
        found["codec"] = f"of the arrays, {', '.join(said) or 'as many bytes as without'}"
    if (online := parts.fleet.online) is not None and online.replay.capacity:
        kinds = (scenario.training.rehearsal or {"kind": "er"})["kind"], (scenario.clients.replay or {"kind": "none"})["kind"]
        found["replay"] = f"{kinds[0]} trains on a memory of up to {online.replay.capacity:,} examples, by {kinds[1]}"
    return found


def _bytes(forms: Mapping[str, Any]) -> int:
    return sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape in forms.values())


def _slot_bytes(empty: State) -> int:
    """Return what a slot of a memory takes whose state is *empty*: a row of each of its columns."""
    return sum(array.itemsize * math.prod(array.shape[1:]) for array in empty.values() if array.ndim and not len(array))
