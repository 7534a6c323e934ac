"""What clients told of themselves in replies that were handed over, as rows. Knows no grid, and judges no metric."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedsim.core.types import Seconds
from fedsim.sim.mail import Delivery
from fedsim.sim.rows import HeardRow


class Said(NamedTuple):
    """One reply: which *message* of which *kind* it answers, whose it is, from which *round* and *version*, and the numbers in it.

    A tuple, since there is one for each message of a run.
    """

    kind: str
    message: int
    client: int
    round: int
    version: int
    told: Mapping[str, float]


def said_in(delivery: Delivery, told: Mapping[str, float]) -> Said:
    """Return what was *told* in the reply to a delivery."""
    parcel = delivery.parcel
    return Said(parcel.kind, delivery.number, delivery.client, parcel.round, parcel.version, told)


def heard_of(said: Sequence[Said], now: Seconds) -> Iterator[HeardRow]:
    """Yield the rows of what was *said* in replies that are handed over *now*, one for each kind of message."""
    for kind in dict.fromkeys(each.kind for each in said):
        these = [each for each in said if each.kind == kind]
        names = list(dict.fromkeys(name for each in these for name in each.told))
        messages, clients, rounds, versions = np.array([(each.message, each.client, each.round, each.version) for each in these]).T
        told = np.array([each.told.get(name, math.nan) for name in names for each in these], dtype=np.float64)
        yield HeardRow(kind, now, json.dumps(names), messages, clients, rounds, versions, told)
