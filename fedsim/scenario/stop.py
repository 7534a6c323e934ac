"""The section [stop]: when a run ends before its last round. Knows its own keys, and no other section."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedsim.scenario.section import Section

_PLATEAU = "How many central evaluations in a row may pass in which the metric did not become better."
_LEAST = "With plateau: by how much the metric must become better to count; 0 unless given."
_GOAL = "With plateau: whether less or more of the metric is better; of losses and accuracies it is known."
_FLOOR = (
    "Over how many rounds the signal between clients must have been lost in noise: a one-sided 95 % interval of the estimates of |G|^2"
    " does not lie above 0. Wants a [monitor]."
)


_VIRTUAL = "Stop after the first round at whose end so many virtual seconds are over (on real clients: seconds of the run's clock)."
_MEGABYTES = (
    "Stop after the first round at whose end all together have sent so much, down and up, framing included, in megabytes of 10^6 bytes."
)


class Stop(Section):
    """When a run ends before its last round: it has learned enough, noise is all there is, or time or bytes are spent; what comes first.

    The score is of the central evaluation, and crosses a line, or gets no better. Time and bytes are looked at after each round.
    """

    metric: Annotated[str | None, Field(description="A score of the central evaluation, like accuracy or loss.")] = None
    at_least: Annotated[float | None, Field(description="Stop once the metric is so high.")] = None
    at_most: Annotated[float | None, Field(description="Stop once the metric is so low.")] = None
    plateau: Annotated[int | None, Field(ge=1, le=1_000_000_000, description=_PLATEAU)] = None
    least: Annotated[float | None, Field(ge=0, description=_LEAST)] = None
    goal: Annotated[Literal["min", "max"] | None, Field(description=_GOAL)] = None
    noise_floor: Annotated[int | None, Field(ge=3, le=1_000_000_000, description=_FLOOR)] = None
    virtual_s: Annotated[float | None, Field(gt=0, description=_VIRTUAL)] = None
    megabytes: Annotated[float | None, Field(gt=0, description=_MEGABYTES)] = None

    @model_validator(mode="after")
    def _one_way(self) -> Stop:
        given = [name for name in WAYS if getattr(self, name) is not None]
        bounds = [name for name in BOUNDS if getattr(self, name) is not None]
        if not given and bounds:
            if idle := [name for name in ("metric", "least", "goal") if getattr(self, name) is not None]:
                raise ValueError(f"{idle[0]} has no effect without one of {', '.join(WAYS[:3])}; {' and '.join(bounds)} go by no score")
            return self
        if not given and self.metric is None:
            raise ValueError(f"give one of {', '.join(WAYS)}, or {' or '.join(BOUNDS)} (none given), like virtual_s = 3600.0")
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ValueError(f"give one of {', '.join(WAYS)} ({got} given), like at_least = 0.97")
        if (self.metric is None) != (self.noise_floor is not None):
            floor = "noise_floor goes by no metric; leave it out"
            raise ValueError(floor if self.metric is not None else f"give the metric that {given[0]} is of, like metric = 'accuracy'")
        for name in ("least", "goal"):
            if getattr(self, name) is not None and self.plateau is None:
                raise ValueError(f"{name} has no effect without plateau")
        return self

    def holds(self, value: float) -> bool:
        """Return whether *value* has crossed the line; False where there is none."""
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most

    def spent(self, now_s: float, sent_bytes: float) -> str:
        """Return which of time and bytes is spent, like ``3,600 s of virtual time``; empty where there is more of both, or no end of it."""
        if self.virtual_s is not None and now_s >= self.virtual_s:
            return self.bounds[0]
        return self.bounds[-1] if self.megabytes is not None and sent_bytes >= self.megabytes * MEGABYTE else ""

    def share(self, now_s: float, sent_bytes: float) -> float:
        """Return which share of time or bytes is spent, whichever is more; 0 where neither ends the run."""
        shares = (now_s / self.virtual_s if self.virtual_s else 0.0, sent_bytes / (self.megabytes * MEGABYTE) if self.megabytes else 0.0)
        return max(shares)

    def left(self, now_s: float, sent_bytes: float) -> tuple[float, float]:
        """Return how many virtual seconds and bytes are left; infinitely many where these do not end the run."""
        left_s = math.inf if self.virtual_s is None else self.virtual_s - now_s
        return left_s, math.inf if self.megabytes is None else self.megabytes * MEGABYTE - sent_bytes

    @property
    def words(self) -> str:
        """Return what ends the run, like ``accuracy >= 0.97 or 3,600 s of virtual time``."""
        return " or ".join([*([self.learned] if self.learned else []), *self.bounds])

    @property
    def bounds(self) -> list[str]:
        """Return what it may take, in words; nothing where it may take any time and bytes."""
        time = [] if self.virtual_s is None else [f"{self.virtual_s:,.10g} s of virtual time"]
        return [*time, *([] if self.megabytes is None else [f"{self.megabytes:,.10g} MB sent"])]

    @property
    def learned(self) -> str:
        """Return what must be so of scores or noise, like ``accuracy >= 0.97``; empty where the run ends by time and bytes alone."""
        if self.plateau is not None:
            least = f" by {self.least:g}" if self.least else ""
            return f"{self.metric} no better{least} for {self.plateau} evaluation{'s' if self.plateau > 1 else ''}"
        if self.noise_floor is not None:
            return f"no signal between clients for {self.noise_floor} rounds"
        if self.at_least is None and self.at_most is None:
            return ""
        return f"{self.metric} >= {self.at_least}" if self.at_least is not None else f"{self.metric} <= {self.at_most}"


WAYS = ("at_least", "at_most", "plateau", "noise_floor")
"""The ways to say when a run has learned enough, of which one at most is given."""
BOUNDS = ("virtual_s", "megabytes")
"""What it may take until then, of which each may be given, alone or beside one of these."""
MEGABYTE = 1e6
