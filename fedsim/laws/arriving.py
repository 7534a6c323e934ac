"""Laws of arrivals and of triggers: when items come to a client, and when it has enough of them. Knows no item."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from fedsim.core.keys import Key
from fedsim.core.types import FloatArray
from fedsim.data.source import finder
from fedsim.data.stream import Stream
from fedsim.data.stream.arrivals import Arrivals
from fedsim.data.stream.trigger import Trigger, upcoming
from fedsim.laws.broken import Law, Make, alike, want

CLIENTS = (0, 1, 7, 123_456)


class Hourly:
    """Recorded times: one an hour, one to five of them."""

    def of(self, client: int) -> FloatArray:
        """Return those of *client*."""
        return 3600.0 * np.arange(client % 5 + 1.0, dtype=np.float64)


def _arrivals(make: Make) -> Arrivals:
    return make(key=Key(1), find=finder(Path.cwd(), "stream.arrivals.path"), stamps=Hourly())


def times_ascend_from_zero(make: Make) -> None:
    """Times are finite, 0 or later, never go back, and are no more than were asked for."""
    for client in CLIENTS:
        times, words = _arrivals(make).times(client, 200), f"200 times of client {client}"
        want(len(times) <= 200, f"{words}: {len(times)} came")
        want(np.isfinite(times).all() and (times >= 0.0).all(), f"{words}: one is below 0 or no number")
        want((np.diff(times) >= 0.0).all(), f"{words}: they go back")


def asking_changes_nothing(make: Make) -> None:
    """Asked again, in another order, or of one made anew: the same times."""
    asked = _arrivals(make)
    first = {client: asked.times(client, 60) for client in CLIENTS}
    for client in reversed(CLIENTS):
        alike(first[client], asked.times(client, 60), f"60 times of client {client}, asked again")
        alike(first[client], _arrivals(make).times(client, 60), f"60 times of client {client}, made anew")


def more_items_only_append(make: Make) -> None:
    """Asking for more items moves none of the first."""
    for client in CLIENTS:
        every = _arrivals(make).times(client, 500)
        for count in (0, 1, 2, 33, 129):
            alike(every[:count], _arrivals(make).times(client, count), f"{count} times of client {client} and not 500: these")


def streams() -> dict[str, Stream]:
    """Return streams of all sorts, by what is said of them: of one item, of ties, with labels that are late, or never come."""
    rng = np.random.default_rng(3)
    even, drawn = np.arange(40.0), np.sort(rng.exponential(20.0, 60))
    late = drawn + rng.exponential(30.0, 60)
    some = np.where(rng.random(60) < 0.3, np.inf, late)
    times = {
        "one item": (even[:1], even[:1]), "even": (even, even), "ties": (np.floor(drawn), np.floor(drawn)), "late labels": (drawn, late),
        "missing labels": (drawn, some), "no label at all": (even, np.full(40, np.inf)),
    }  # fmt: skip
    none = np.zeros(60, dtype=np.int64)
    return {name: Stream(came, told, np.arange(len(came)), none[: len(came)]) for name, (came, told) in times.items()}


MOMENTS = [(until, now) for until in (-math.inf, 0.0, 3.5, 17.0, 38.0, 1e6) for now in (0.0, 3.5, 20.0, 1e6) if until <= now]


def it_holds_when_it_says(make: Make) -> None:
    """It holds now or later; asked again by then it holds at that moment; and there is a new example with its label."""
    for name, stream in streams().items():
        for until, now in MOMENTS:
            trigger: Trigger = make()
            ready, words = trigger.ready_s(stream, until, now), f"stream '{name}', last task at {until:g} s, asked at {now:g} s"
            want(ready >= now, f"{words}: it holds at {ready:g} s, which is past")
            if ready < math.inf:
                alike(ready, trigger.ready_s(stream, until, ready), f"{words}, and again when it was to hold")
                want((upcoming(stream, until) <= ready).any(), f"{words}: it holds at {ready:g} s, when no new example has its label")


def what_is_left_is_enough(make: Make) -> None:
    """It never holds once no label is to come, and does some time where one is."""
    for name, stream in streams().items():
        for until, now in MOMENTS:
            left, ready = len(upcoming(stream, until)), make().ready_s(stream, until, now)
            words = f"stream '{name}', last task at {until:g} s, {left} labels to come: it holds at {ready:g} s"
            want((ready < math.inf) == (left > 0), words)


def a_trigger_hides_nothing(make: Make) -> None:
    """What it answers follows from stream, last task and now, whatever it was asked before."""
    trigger: Trigger = make()
    for name, stream in streams().items():
        for until, now in MOMENTS:
            words = f"stream '{name}', last task at {until:g} s, asked at {now:g} s: one that was asked of others before"
            alike(make().ready_s(stream, until, now), trigger.ready_s(stream, until, now), words)


LAWS: dict[str, tuple[Law, ...]] = {
    "arrivals": (times_ascend_from_zero, asking_changes_nothing, more_items_only_append),
    "trigger": (it_holds_when_it_says, what_is_left_is_enough, a_trigger_hides_nothing),
}
