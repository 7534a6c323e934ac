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
    """What streams bring, from *clients* looked at: items in all, who gets none, the last arrival, and the last arrival or label.

    *ends_s* says when the last arrival or label of each comes.
    """

    clients: int
    items: int
    without: int
    last_s: float
    done_s: float
    unlabelled: int
    drifting: int
    ends_s: tuple[float, ...] = ()

    def going(self, from_s: float, until_s: float) -> float:
        """Return the share of clients whose streams go on, a mean over this stretch of virtual time.

        >>> Arriving(2, 9, 0, 30.0, 30.0, 0, 0, ends_s=(10.0, 30.0)).going(0.0, 20.0)
        0.75
        """
        span_s = max(until_s - from_s, 1e-9)
        return float(np.clip((np.array(self.ends_s) - from_s) / span_s, 0.0, 1.0).mean()) if self.ends_s else 1.0

    @classmethod
    def of(cls, federation: Federation, wall_s: float) -> Arriving | None:
        """Return what the streams of *federation* bring, looking for *wall_s* at most; None where all is there from the start."""
        streams = federation.streams
        if streams is None:
            return None
        seen = [streams.of(client) for client in looked_at(federation.count, STREAMS_FROM, wall_s)]
        last_s = max([0.0, *(float(stream.arrived_s[-1]) for stream in seen if len(stream))])
        labels = [stream.labelled_s[np.isfinite(stream.labelled_s)] for stream in seen]
        ends_s = [
            max(float(stream.arrived_s[-1:].max(initial=0.0)), float(known.max(initial=0.0)))
            for stream, known in zip(seen, labels, strict=True)
        ]
        return cls(
            clients=len(seen),
            items=sum(len(stream) for stream in seen),
            without=sum(not len(stream) for stream in seen),
            last_s=last_s,
            done_s=max(ends_s, default=0.0),
            unlabelled=sum(int(np.isinf(stream.labelled_s).sum()) for stream in seen),
            drifting=sum(bool(len(stream.changes_s)) for stream in seen),
            ends_s=tuple(ends_s),
        )


def looked_at(count: int, most: int, wall_s: float) -> Iterator[int]:
    """Yield at most *most* of *count* clients, spread over them, for as long as *wall_s* lasts, and three at least."""
    began = time.monotonic()
    chosen = np.arange(count)[:: -(-count // most)]
    for seen, client in enumerate(np.random.default_rng(0).permutation(chosen).tolist()):
        if seen >= 3 and time.monotonic() - began > wall_s:
            return
        yield client
