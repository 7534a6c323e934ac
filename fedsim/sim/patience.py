"""How long a strategy may wait for clients that never come, told by what it finds each time it looks. Knows no clock but the wall's."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedsim.core.errors import RunError
from fedsim.core.types import Seconds

SAME = 10_000
"""Looks in a row that may find the same clients: the end of a slot need not change who is there."""
LOOKS = 100_000
"""Looks without a message sent between them that are waited for in any case; with many clients, LOOKS_EACH for each of them."""
LOOKS_EACH = 1_000
SOME = 1_000
"""Looks that a rehearsal whose time is over still waits for."""


@dataclass(slots=True)
class Patience:
    """One strategy's wait among *clients*; a rehearsal sets *ends_wall_s*, by ``time.monotonic()``."""

    clients: int
    ends_wall_s: float = math.inf
    _looks: int = 0
    _same: int = 0
    _most: int = 0
    _found: Sequence[int] = field(default_factory=list[int])

    def asked(self) -> None:
        """Take that somebody was sent a message: the wait is over."""
        self._looks = self._same = self._most = 0

    def looked(self, now_s: Seconds, nodes: Sequence[int], change_s: Seconds) -> None:
        """Take who is available now, and not enough, until *change_s*. Raises RunError when there is no sense in waiting on."""
        if math.isinf(change_s):
            raise RunError(
                f"server.strategy: waits for more clients than the {len(nodes)} that are available at {now_s:.0f} s, and no other will"
                f" ever come."
            )
        self._same = self._same + 1 if nodes == self._found else 0
        self._looks, self._most, self._found = self._looks + 1, max(self._most, len(nodes)), nodes
        if self._same > SAME:
            raise RunError(
                f"clients.availability: a strategy waits for more clients than the {len(nodes)} that are available at {now_s:,.0f} s, and"
                f" next_change has promised another answer {SAME:,} times, and none came."
            )
        over = self._looks > SOME and time.monotonic() > self.ends_wall_s
        if over or self._looks > max(LOOKS, LOOKS_EACH * self.clients):
            raise RunError(
                f"server.strategy: waits for more clients than were ever available at once: at most {self._most} of {self.clients} in"
                f" {self._looks:,} looks, the last at {now_s:,.0f} s of virtual time. Ask for fewer (clients_per_round,"
                f" min_available_nodes), or for clients that are there more of the time."
            )
