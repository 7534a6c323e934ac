"""One client's part of a federation: its examples, its stream, and nothing of anybody else's. Reads no file, and knows no node.

Positions are told anew, in their order, so that what is drawn for the client, and what follows from it, is the same to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedsim.core.errors import RunError, ScenarioError
from fedsim.core.types import IntArray
from fedsim.data.federation import Federation
from fedsim.data.partition import Partition
from fedsim.data.source import Examples
from fedsim.data.stream import Recent, Stream
from fedsim.data.stream.arrivals import Replayed
from fedsim.data.stream.change import Switch
from fedsim.data.stream.federated import ClientStreams


@dataclass(frozen=True, slots=True)
class Held:
    """A generator of one client's examples, which are there."""

    number: int
    held: Examples
    outputs: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one example's features."""
        return self.held.x.shape[1:]

    def sizes(self, clients: IntArray) -> IntArray:
        """Return how many examples each of *clients* holds: none but the one. Shapes: (n,) -> (n,)."""
        return np.where(clients == self.number, len(self.held), 0)

    def client(self, client: int) -> Examples:
        """Return the examples of *client*. Raises RunError for another than the one."""
        _check(client, self.number)
        return self.held


@dataclass(frozen=True, slots=True)
class HeldStream:
    """The stream of one client, which is there."""

    number: int
    stream: Stream

    def of(self, client: int) -> Stream:
        """Return the stream of *client*. Raises RunError for another than the one."""
        _check(client, self.number)
        return self.stream


def part_of(federation: Federation, client: int) -> Federation:
    """Return what *client* needs of *federation*. The test part stays: steps are tried on some of it when they are compiled."""
    streams = federation.streams
    stream = None if streams is None else streams.of(client)
    blank: dict[str, Any] = {"files": {}, "_holdings": {}, "_targets": {}}
    pool = federation.pooled
    if pool is None:
        alone = None if stream is None else HeldStream(client, stream)
        return replace(federation, generator=Held(client, federation.examples(client), federation.outputs), streams=alone, **blank)
    positions = federation.positions(client)
    touched = np.unique(np.concatenate([positions, *(() if stream is None else (stream.positions,))]))
    offsets = np.where(np.arange(federation.count + 1) > client, len(positions), 0)
    return replace(
        federation, pooled=Examples(pool.x[touched], pool.y[touched]), partition=Partition(np.searchsorted(touched, positions), offsets),
        groups=None if federation.groups is None else federation.groups[touched], **blank,
        streams=None if stream is None else HeldStream(client, replace(stream, positions=np.searchsorted(touched, stream.positions))),
    )  # fmt: skip


def with_own(federation: Federation, client: int, examples: Examples, at: str) -> Federation:
    """Return *federation* where *client* holds *examples* in the place of its part; they come to it as the scenario says.

    Raises ScenarioError that begins with *at*, where streams go by what is in the scenario's own data.
    """
    streams = federation.streams
    base = streams.base if isinstance(streams, ClientStreams) else federation
    blank: dict[str, Any] = {"pooled": None, "partition": None, "groups": None, "files": {}, "_holdings": {}, "_targets": {}}
    own = replace(
        base, generator=Held(client, examples, federation.outputs), test_fraction=0.0, test=federation.test, streams=None, **blank
    )
    if streams is None:
        return own
    if not isinstance(streams, ClientStreams):
        raise ScenarioError(f"{at}: the streams of this scenario go by its own data. Leave loader out.")
    for wrong, key in (
        (isinstance(streams.arrivals, Replayed), "stream.arrivals.kind = 'stamps'"), (streams.order.shares, "stream.order.kind = 'offset'"),
        (streams.drift is not None and isinstance(streams.drift.alters, Switch), "stream.drift.change.kind = 'variants'"),
    ):  # fmt: skip
        if wrong:
            raise ScenarioError(f"{at}: {key} goes by the scenario's own data. Leave loader out, or take another.")
    moved = replace(streams, base=own, _recent=Recent())
    alters = streams.drift is not None and streams.drift.alters is not None
    return replace(own, streams=moved, **({"generator": moved, "arranged": True} if alters else {}))


def _check(client: int, number: int) -> None:
    if client != number:
        raise RunError(f"client {number} was asked for what client {client} holds, which is not here. This is a defect of fedsim.")
