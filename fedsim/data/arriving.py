"""What streams bring in all: looked at client by client, as many as there is time for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fedsim.data.federation import Federation

STREAMS_FROM = 200
"""Clients whose streams are looked at, at most."""


@dataclass(frozen=True, slots=True)
class Arriving:
    """What streams bring, from *clients* looked at: items in all, who gets none, the last arrival, and the last arrival or label."""

    clients: int
    items: int
    without: int
    last_s: float
    done_s: float
    unlabelled: int
    drifting: int

    @classmethod
    def of(cls, federation: Federation, wall_s: float) -> Arriving | None:
        """Return what the streams of *federation* bring, looking for *wall_s* at most; None where all is there from the start."""
        streams = federation.streams
        if streams is None:
            return None
        seen = [streams.of(client) for client in looked_at(federation.count, STREAMS_FROM, wall_s)]
        last_s = max([0.0, *(float(stream.arrived_s[-1]) for stream in seen if len(stream))])
        labels = (stream.labelled_s[np.isfinite(stream.labelled_s)] for stream in seen)
        return cls(
            clients=len(seen),
            items=sum(len(stream) for stream in seen),
            without=sum(not len(stream) for stream in seen),
            last_s=last_s,
            done_s=max([last_s, *(float(known.max()) for known in labels if len(known))]),
            unlabelled=sum(int(np.isinf(stream.labelled_s).sum()) for stream in seen),
            drifting=sum(bool(len(stream.changes_s)) for stream in seen),
        )


def looked_at(count: int, most: int, wall_s: float) -> Iterator[int]:
    """Yield at most *most* of *count* clients, spread over them, for as long as *wall_s* lasts, and three at least."""
    began = time.monotonic()
    chosen = np.arange(count)[:: -(-count // most)]
    for seen, client in enumerate(np.random.default_rng(0).permutation(chosen).tolist()):
        if seen >= 3 and time.monotonic() - began > wall_s:
            return
        yield client
