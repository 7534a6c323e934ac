"""The ledger: which deliveries are open, and the fate of each, told once it is certain. Knows no number of a reply, and moves no clock."""

from __future__ import annotations

from fedsim.sim.invariants import Invariants
from fedsim.sim.mail import Delivery
from fedsim.sim.rows import Observer, Outcome
from fedsim.sim.versions import Versions


class Ledger:
    """Keeps what was sent until its fate is sealed, and tells *observer* of each."""

    def __init__(self, observer: Observer, invariants: Invariants) -> None:
        self.versions = Versions(observer)
        self._observer, self._invariants = observer, invariants
        self._open: dict[str, Delivery] = {}  # Everything sent whose fate is not sealed.
        self._newest = -1
        self.arrived = 0
        """Replies that a strategy was given."""

    @property
    def open(self) -> list[Delivery]:
        """Return what has no fate yet, in the order of sending."""
        return list(self._open.values())

    def opened(self, delivery: Delivery, newest: int) -> None:
        """Take that *delivery* was sent, *newest* being the newest model sent by then: its fate will be told."""
        self._newest = newest
        self.versions.sent(newest, delivery.sent_s)
        self._open[delivery.id] = delivery

    def settle(self, delivery: Delivery, outcome: Outcome, loss: float | None = None, result: str = "") -> None:
        """Seal the fate of *delivery*."""
        if delivery.stage == "returning":
            self._invariants.sent(up=delivery.up.total, down=delivery.up.back)  # On the wire, though it never arrives.
        del self._open[delivery.id]
        row = delivery.settle(outcome, loss, result, self._invariants.now)
        self.arrived += outcome == "arrived"
        self._invariants.settled(row, self._newest)
        self._observer.task(row)

    def finish(self) -> None:
        """Settle what has no fate yet: the run is over."""
        for delivery in self.open:
            self.settle(delivery, "failed" if delivery.failure else "late" if delivery.lost else "in flight")
        self.versions.finish()
