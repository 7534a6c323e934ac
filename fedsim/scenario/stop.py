"""The section [stop]: when a run ends before its last round. Knows its own keys, and no other section."""

from __future__ import annotations

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


class Stop(Section):
    """When the run has learned enough: a score of the central evaluation crosses a line, or gets no better; or noise is all there is."""

    metric: Annotated[str | None, Field(description="A score of the central evaluation, like accuracy or loss.")] = None
    at_least: Annotated[float | None, Field(description="Stop once the metric is so high.")] = None
    at_most: Annotated[float | None, Field(description="Stop once the metric is so low.")] = None
    plateau: Annotated[int | None, Field(ge=1, le=1_000_000_000, description=_PLATEAU)] = None
    least: Annotated[float | None, Field(ge=0, description=_LEAST)] = None
    goal: Annotated[Literal["min", "max"] | None, Field(description=_GOAL)] = None
    noise_floor: Annotated[int | None, Field(ge=3, le=1_000_000_000, description=_FLOOR)] = None

    @model_validator(mode="after")
    def _one_way(self) -> Stop:
        given = [name for name in WAYS if getattr(self, name) is not None]
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

    @property
    def words(self) -> str:
        """Return what must be so, like ``accuracy >= 0.97``."""
        if self.plateau is not None:
            least = f" by {self.least:g}" if self.least else ""
            return f"{self.metric} no better{least} for {self.plateau} evaluation{'s' if self.plateau > 1 else ''}"
        if self.noise_floor is not None:
            return f"no signal between clients for {self.noise_floor} rounds"
        return f"{self.metric} >= {self.at_least}" if self.at_least is not None else f"{self.metric} <= {self.at_most}"


WAYS = ("at_least", "at_most", "plateau", "noise_floor")
"""The ways to say when a run stops, of which one is given."""
