"""Laws of streams: functions of (key, client), whatever their order, labels and drift. Knows no kind of any of these.

Each kind is put into a federation beside ours of the others; a law is of the federation's streams.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.core.keys import Key
from fedsim.core.types import IntArray
from fedsim.data.federation import Federation, generated_federation, pool_federation, split
from fedsim.data.partition import iid
from fedsim.data.source import Examples, Generator, Pool
from fedsim.data.stream import Stream, Streams
from fedsim.data.stream.arrivals import poisson
from fedsim.data.stream.change import noise
from fedsim.data.stream.drift import abrupt, synchronous
from fedsim.data.stream.federated import attach, drift_of
from fedsim.data.stream.labelling import exponential
from fedsim.data.stream.order import as_is
from fedsim.laws.broken import Broken, Law, Make, alike, want

KEY = Key(11)
CLIENTS = 6
SHAPE, OUTPUTS = (1, 4, 4), 5
Federate = Callable[..., Federation]
"""Makes a federation anew, of so many clients."""


def _pool() -> Pool:
    rng = np.random.default_rng(5)
    return Pool(Examples(rng.random((600, *SHAPE), dtype=np.float32), rng.integers(OUTPUTS, size=600)), outputs=OUTPUTS)


@dataclass(frozen=True, slots=True)
class Made:
    """Eighty examples for each client, made from its number."""

    shape: tuple[int, ...] = SHAPE
    outputs: int = OUTPUTS

    def sizes(self, clients: IntArray) -> IntArray:
        """Return eighty for each. Shapes: (n,) -> (n,)."""
        return np.full(len(clients), 80)

    def client(self, client: int) -> Examples:
        """Return the examples of *client*."""
        rng = Key(3).fold(client).numpy()
        return Examples(rng.random((80, *self.shape), dtype=np.float32), rng.integers(self.outputs, size=80))


def told(stream: Stream) -> list[Any]:
    """Return all that a stream says."""
    return [stream.arrived_s, stream.labelled_s, stream.positions, stream.concepts, stream.changes_s]


def all_told(federation: Federation, order: Iterable[int] = range(CLIENTS)) -> dict[int, list[Any]]:
    """Return all that the streams of clients say, asked in *order*, and the examples where drift alters them."""
    found: dict[int, list[Any]] = {}
    for client in order:
        found[client] = told(_streams(federation).of(client))
        if federation.arranged:
            examples = federation.examples(client)
            found[client] += [examples.x, examples.y]
    return found


def _streams(federation: Federation) -> Streams:
    if federation.streams is None:
        raise Broken("the federation has no streams")
    return federation.streams


def _each_alike(one: dict[int, list[Any]], two: dict[int, list[Any]], words: str) -> None:
    names = ("arrivals", "labels", "positions", "concepts", "changes", "features", "targets")
    for client in sorted(one.keys() & two.keys()):
        for name, expected, found in zip(names, one[client], two[client], strict=False):
            alike(expected, found, f"{words}: {name} of client {client}")


def whenever_asked_the_same(make: Federate) -> None:
    """Asked again, in another order, or of a federation made anew, each client's stream is the same."""
    one = make()
    first = all_told(one)
    _each_alike(first, all_told(one, reversed(range(CLIENTS))), "asked again, backwards")
    _each_alike(first, all_told(make(), [3, 3, 0, 5, 1, 2, 4]), "made anew, asked in another order")


def wherever_asked_the_same(make: Federate) -> None:
    """On another worker, as a copy that was pickled after the first was asked, a stream is the same."""
    federation = make()
    before = all_told(federation, [2])
    there = pickle.loads(pickle.dumps(_streams(federation)))
    _each_alike({2: before[2][:5]}, {2: told(there.of(2))}, "in another process")


def times_are_in_order(make: Federate) -> None:
    """Items come in ascending order from 0, labels never before their items, and what a stream counts is what it lists."""
    federation = make()
    for client in range(CLIENTS):
        stream, words = _streams(federation).of(client), f"the stream of client {client}"
        n = len(stream)
        lengths = [len(array) for array in (stream.labelled_s, stream.positions, stream.concepts)]
        want(n and lengths == [n] * 3, f"{words}: {n} items, with labels, positions and concepts {lengths}")
        want((np.diff(stream.arrived_s) >= 0.0).all() and stream.arrived_s[0] >= 0.0, f"{words}: items go back in time")
        want((stream.labelled_s >= stream.arrived_s).all(), f"{words}: a label comes before its item")
        want(stream.concepts.min() >= 0, f"{words}: concept {stream.concepts.min()}")
        want((np.diff(stream.changes_s) > 0.0).all(), f"{words}: changes at {stream.changes_s.tolist()} s")
        within = (stream.changes_s > stream.arrived_s[0]) & (stream.changes_s <= stream.arrived_s[-1])
        want(within.all(), f"{words}: changes at {stream.changes_s.tolist()} s, items to {stream.arrived_s[-1]} s")
        alike([0, n, n], [stream.arrived(t) for t in (-1.0, stream.arrived_s[-1], math.inf)], f"{words}: items by then")
        counted = all(stream.arrived(arrived_s) >= count for count, arrived_s in enumerate(stream.arrived_s, start=1))
        want(counted, f"{words}: counts and times disagree")


def nobody_trains_on_what_is_kept_back(make: Federate) -> None:
    """No stream brings what its client keeps back to be tested on, or what is not there."""
    federation = make()
    for client in range(CLIENTS):
        kept: Any = federation.validation(client) if federation.kept_back else []
        positions = _streams(federation).of(client).positions
        both = np.intersect1d(positions, kept).tolist()
        want(not both, f"client {client} is given {both[:5]}, which it keeps back")
        held = len(federation.pooled) if federation.pooled is not None else len(federation.examples(client))
        want(0 <= positions.min() and positions.max() < held, f"client {client} is given {positions.max()} of {held} examples")


def others_stay_when_one_comes(make: Federate) -> None:
    """A seventh client, where examples are made client by client, leaves the six others as they were."""
    _each_alike(all_told(make(6)), all_told(make(7)), "with a seventh client")


OF_STREAMS = (whenever_asked_the_same, wherever_asked_the_same, times_are_in_order, nobody_trains_on_what_is_kept_back)


def world(noun: str, make: Make, clients: int | None = None) -> Federation:
    """Return a federation whose streams have the *noun* that *make* makes; one that is made client by client for so many *clients*."""
    source: Any = getattr(make, "given", {}).get("source") or (_pool() if clients is None else Made())
    base = _base(source, clients or CLIENTS)
    given = {"key": KEY.fold(noun), "outputs": base.outputs, "shape": base.shape, "source": source}
    kind = make(**given)
    change, schedule, onset = noise(KEY, sigma=0.5), abrupt(at_s=[20.0]), synchronous(KEY)
    drift = {
        "change": lambda: drift_of(kind, schedule, onset, KEY), "schedule": lambda: drift_of(change, kind, onset, KEY),
        "onset": lambda: drift_of(change, schedule, kind, KEY),
    }.get(noun, lambda: None)()  # fmt: skip
    labels = kind if noun == "labels" else exponential(KEY, delay_s=5.0, missing=0.2)
    return attach(base, poisson(KEY, per_s=1.0), kind if noun == "order" else as_is(), labels, drift)


def _base(source: Pool | Generator, clients: int) -> Federation:
    if not isinstance(source, Pool):
        return generated_federation(source, clients, KEY, 0.1, 0.2)
    train, test, _ = split(source, 0.1, KEY)
    return pool_federation(source, iid(train.y, clients, KEY), test, train, KEY, 0.2)


def _over(noun: str, law: Callable[[Federate], None]) -> Law:
    def asked(make: Make) -> None:
        law(lambda: world(noun, make))

    asked.__name__, asked.__doc__ = law.__name__, law.__doc__
    return asked


def _of_others(noun: str) -> Law:
    def asked(make: Make) -> None:
        if noun == "order" and make(key=KEY, outputs=OUTPUTS).shares:
            return  # It reads what others hold, and where each makes its own there is none of that.
        others_stay_when_one_comes(lambda clients: world(noun, make, clients))

    asked.__name__, asked.__doc__ = others_stay_when_one_comes.__name__, others_stay_when_one_comes.__doc__
    return asked


LAWS: dict[str, tuple[Law, ...]] = {
    noun: (*(_over(noun, law) for law in OF_STREAMS), _of_others(noun)) for noun in ("order", "labels", "change", "schedule", "onset")
}
