"""What must hold at every moment of a run; checked while it runs, always. A breach is our mistake, and stops it."""

from __future__ import annotations

from collections.abc import Iterable

from fedsim.core.errors import RunError
from fedsim.core.types import Seconds
from fedsim.sim.rows import EdgeRow, TaskRow

ROUNDING = 1e-9
"""By what share seconds away, a sum, may be more than the phase in which they lie."""


class Invariants:
    """Watches the clock, the versions, the bytes, each way, what clients were away, and the memories."""

    def __init__(self) -> None:
        self.now: Seconds = 0.0
        """When it is, as far as anybody said."""
        self.down_bytes = 0
        self.up_bytes = 0
        self.edge_down_bytes = 0
        self.edge_up_bytes = 0
        self.edge_settled_bytes = 0
        self.settled_down_bytes = 0
        self.settled_up_bytes = 0

    def at(self, now: Seconds, event: str) -> None:
        """Check that the clock does not go back."""
        if now < self.now:
            raise _broken(event, f"the clock went back from {self.now} to {now} s")
        self.now = now

    def sent(self, *, down: int = 0, up: int = 0) -> None:
        """Count bytes put on the wire."""
        self.down_bytes += down
        self.up_bytes += up

    def passed(self, *, down: int = 0, up: int = 0) -> None:
        """Count bytes put on the links between the server and its edges."""
        self.edge_down_bytes += down
        self.edge_up_bytes += up

    def balanced(self, event: str, open_bytes: int) -> None:
        """Check that what passed between the server and its edges is settled or among the *open_bytes*: received, lost, or in flight."""
        sent = self.edge_down_bytes + self.edge_up_bytes
        if sent != self.edge_settled_bytes + open_bytes:
            raise _broken(event, f"{sent} bytes passed between server and edges, {self.edge_settled_bytes + open_bytes} accounted for")

    def edge(self, row: EdgeRow) -> None:
        """Check what passed between the server and an edge, once its fate is sealed."""
        last, now = 0.0, self.now
        for moment in (row.sent_s, row.received_s, row.answered_s, row.arrived_s):
            if moment >= 0:
                if not last <= moment <= now:
                    raise _broken(f"edge {row.edge} in round {row.round}", f"its times are out of order at {now} s: {row}")
                last = moment
        self.edge_settled_bytes += row.wire_bytes

    def settled(self, row: TaskRow, version: int) -> None:
        """Check a task whose fate is sealed, against the newest model *version*."""

        def event() -> str:
            return f"{row.kind} message {row.message} to client {row.client}"

        if row.version > version:
            raise _broken(event(), f"an update from the future: version {row.version} while the server is at {version}")
        last, now = 0.0, self.now
        for moment in (row.sent_s, row.received_s, row.started_s, row.computed_s, row.arrived_s):
            if moment >= 0:
                if not last <= moment <= now:
                    raise _broken(event(), f"its times are out of order: {_times(row)} at {now} s")
                last = moment
        if row.stopped_s >= 0:
            since = max(row.sent_s, row.received_s, row.started_s, row.computed_s)
            if not since <= row.stopped_s <= (row.arrived_s if row.arrived_s >= 0 else now):
                raise _broken(event(), f"it was stopped at {row.stopped_s}, its times being {_times(row)} at {now} s")
        if row.down_resent_bytes or row.up_resent_bytes:
            if not (0 <= row.down_resent_bytes <= row.down_framing_bytes and 0 <= row.up_resent_bytes <= row.up_framing_bytes):
                raise _broken(event(), f"of its framing, {_framing(row)} bytes, more was sent again: {_resent(row)}")
        if row.down_away_s or row.waiting_away_s or row.work_away_s or row.up_away_s:
            self._away(row, event())
        self.settled_down_bytes += row.down_bytes + row.down_framing_bytes
        self.settled_up_bytes += row.up_bytes + row.up_framing_bytes

    def finished(self) -> None:
        """Check that every byte sent, down and up, was received, lost, or still in flight at the end."""
        ways = (("down", self.down_bytes, self.settled_down_bytes), ("up", self.up_bytes, self.settled_up_bytes))
        for way, sent, settled in ways:
            if sent != settled:
                raise _broken("the end of the run", f"{sent} bytes were sent {way}, {settled} accounted for")

    def _away(self, row: TaskRow, event: str) -> None:
        """Check that its client was away for no longer than each phase took."""
        last = row.stopped_s if row.stopped_s >= 0 else row.arrived_s if row.arrived_s >= 0 else self.now
        moments = (row.sent_s, row.received_s, row.started_s, row.computed_s, row.arrived_s)
        away = (row.down_away_s, row.waiting_away_s, row.work_away_s, row.up_away_s)
        for begin, end, away_s in zip(moments, moments[1:], away, strict=False):
            lasted = max(0.0, (end if end >= 0 else last) - begin) if begin >= 0 else 0.0
            if not 0.0 <= away_s <= lasted * (1.0 + ROUNDING):
                raise _broken(event, f"its client was away for {away_s} s of a phase that took {lasted} s: {_times(row)} at {self.now} s")

    @staticmethod
    def remembered(event: str, held: int, capacity: int) -> None:
        """Check that a client remembers no more examples than its memory holds."""
        if held > capacity:
            raise _broken(event, f"the client remembers {held} examples, and its memory holds {capacity}")

    @staticmethod
    def weights(round_number: int, weights: Iterable[float]) -> None:
        """Check that the weights of an average exist: none negative, and not all zero."""
        listed = list(weights)
        if listed and (min(listed) < 0 or sum(listed) <= 0):
            raise _broken(f"round {round_number}", f"weights {listed[:5]} cannot be made to sum to one")


def _framing(row: TaskRow) -> tuple[int, int]:
    return row.down_framing_bytes, row.up_framing_bytes


def _resent(row: TaskRow) -> tuple[int, int]:
    return row.down_resent_bytes, row.up_resent_bytes


def _times(row: TaskRow) -> list[Seconds]:
    return [t for t in (row.sent_s, row.received_s, row.started_s, row.computed_s, row.arrived_s) if t >= 0]


def _broken(event: str, what: str) -> RunError:
    return RunError(f"invariant broken at {event}: {what}. This is a defect of fedsim; please report it.")
