"""Where a run is, as a value, for whoever watches it. Knows no run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fedsim.core.types import Params


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is, for whoever watches it."""

    round: int
    rounds: int
    now_s: float
    down_bytes: int
    up_bytes: int
    scores: Mapping[str, float]
    said: Sequence[str] = ()
    scored: int = 0
    """The round that the scores are of."""
    tasks: int = 0
    """How many replies of clients the strategy was given so far; 0 where nobody counts."""
    counts: str = "round"
    """What is counted: rounds, or versions, where a strategy has a ``start`` of its own."""
    under_way: Callable[[], tuple[int, int]] = lambda: (0, 0)
    """Tells how many tasks are done of those that are being computed; may be asked at any time, from any thread."""
    model: Params = field(default_factory=dict[str, Any])
    """What travels, as it is now: to be looked at, not to be kept for long or written into."""


Watch: TypeAlias = Callable[[Progress], None]
