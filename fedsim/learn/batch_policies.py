"""Batch-size policies: with which batch size a client trains at a task. Pure functions of state; which task and device, others say.

What a policy is told of a task's noise counts from the client's next task on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Protocol

import numpy as np

from fedsim.core import answers
from fedsim.core.errors import ScenarioError
from fedsim.core.registry import Registry
from fedsim.core.state import State
from fedsim.core.types import Count, Positive, Range
from fedsim.learn.pace import CLOCKS, Clock, When

STATISTICS = ("trace", "square")
"""What a policy may be told of a client's last task: tr(Sigma) and |G|^2, without bias, of the gradients of single examples. They are
the new ones of its first mini-batch, at the parameters that it received; that costs the device their gradients once more. A mini-batch
of one example tells nothing."""
EXAMPLES = "examples"
"""What it is told besides: from how many gradients these are."""
LARGEST = 1_000_000_000
"""The largest batch size that a scenario can name."""
AHEAD = 1.5
"""By what factor the norm test takes a larger size than the last estimates ask for: the signal falls as they grow old."""
GROWTH = 2.0
"""By what factor a size that follows an estimate moves at most from a task to the next: a single estimate is noisy."""

Above1 = Annotated[float, Range(gt=1, why="by what the size is multiplied")]
Left = Annotated[float, Range(ge=0, lt=1, why="the share of the past in a moving average")]


@dataclass(frozen=True, slots=True)
class Situation:
    """What a policy may go by where a task is planned: what the clocks show, and what steps cost the client's device.

    *speed* is that of the device over the median device's; *fixed* what a step costs besides its examples, in examples; *per_s* how
    many examples a second the device trains on, apart from that; *loads_per_s* how many its loader brings.
    """

    when: When
    speed: float = 1.0
    fixed: float = 0.0
    per_s: float = 1.0
    loads_per_s: float = math.inf

    def step_s(self, size: float) -> float:
        """Return how long a step on *size* examples takes, those of the next being loaded meanwhile."""
        return max((size + self.fixed) / self.per_s, size / self.loads_per_s)


class BatchPolicy(Protocol):
    """How a client's batch size goes: the new examples that one update is made from."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Return which of STATISTICS it is told; where it needs none, sizes follow from time and device alone."""
        ...

    @property
    def clocks(self) -> tuple[Clock, ...]:
        """Return the clocks that it goes by."""
        ...

    def size(self, ordered: int, situation: Situation, kept: State) -> int:
        """Return the batch size of a task, where the message orders *ordered*; *kept* is empty until something was learned."""
        ...

    def learned(self, kept: State, size: int, statistics: Mapping[str, float]) -> State:
        """Return what is kept once a task in batches of *size* has told its *statistics*: what it needs, and ``examples``."""
        ...


def _size(given: Any, *_: Any) -> int:
    size = answers.count(1)(given)
    if size > LARGEST:
        raise ValueError(f"{size}, expected a whole number up to {LARGEST}")
    return size


batch_policies: Registry[Callable[..., BatchPolicy]] = Registry(
    "batch_policy", key="training.batch_policy",
    gives=answers.Gives(
        "a BatchPolicy", ("needs", "clocks", "size", "learned"),
        {"needs": answers.some_of(STATISTICS), "clocks": answers.some_of(CLOCKS), "size": _size, "learned": answers.state},
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bounds:
    """The sizes that a policy may take: from *least* to *most*, powers of two where it says so.

    Each size has a compiled step of its own, and a client's short last batch besides; powers of two leave few of them.
    """

    least: int
    most: int
    powers_of_two: bool

    @classmethod
    def of(cls, least: int, most: int | None, powers_of_two: bool) -> Bounds:
        """Return the bounds that a scenario gives. Raises ScenarioError where nothing lies between them."""
        bounds = cls(least, LARGEST if most is None else most, powers_of_two)
        if bounds.most < least:
            raise ScenarioError(f"training.batch_policy.most = {most}: is less than training.batch_policy.least = {least}.")
        if powers_of_two and bounds.within(float(least), up=True) > bounds.most:
            raise ScenarioError(
                f"training.batch_policy.most = {most}: no power of two lies from training.batch_policy.least = {least} to it. Set"
                f" powers_of_two = false, or most = {bounds.within(float(least), up=True)}."
            )
        return bounds

    def within(self, size: float, *, up: bool = False) -> int:
        """Return the size nearest to *size* that is allowed; with *up* none below it, unless that is beyond the most.

        >>> bounds = Bounds(4, 100, True)
        >>> [bounds.within(size) for size in (1.0, 10.0, 12.0, 1e9)], bounds.within(9.0, up=True)
        ([4, 8, 16, 64], 16)
        """
        size = min(max(size, 1.0), float(LARGEST))
        if not self.powers_of_two:
            return min(max(math.ceil(size) if up else round(size), self.least), self.most)
        low, high = (self.least - 1).bit_length(), max((self.least - 1).bit_length(), self.most.bit_length() - 1)
        power = (math.ceil(size) - 1).bit_length() if up else round(math.log2(size))
        return 1 << min(max(power, low), high)

    @property
    def all(self) -> list[int]:
        """Return the sizes that there are to choose from: powers of two, or whole numbers that lie 5 % apart."""
        if self.powers_of_two:
            first = self.within(float(self.least), up=True)
            return [first << i for i in range((self.most // first).bit_length())]
        steps = math.ceil(math.log(self.most / self.least) / math.log(1.05)) + 1
        return sorted({min(self.most, round(self.least * 1.05**i)) for i in range(steps + 1)})


@dataclass(frozen=True, slots=True)
class Timely:
    """A policy of time and device alone: it is told nothing, and keeps nothing."""

    wanted: Callable[[int, Situation], float]
    bounds: Bounds
    clocks: tuple[Clock, ...] = ()
    needs: tuple[str, ...] = ()

    def size(self, ordered: int, situation: Situation, kept: State) -> int:
        """Return the size nearest to what is wanted."""
        return self.bounds.within(self.wanted(ordered, situation))

    def learned(self, kept: State, size: int, statistics: Mapping[str, float]) -> State:
        """Return what was kept."""
        return kept


@dataclass(frozen=True, slots=True)
class Following:
    """A policy that follows the moving averages of tr(Sigma) and |G|^2: *wanted* of the size before, the two and the situation.

    Averages are divided, and ratios never averaged; an estimate counts by the examples that it is from, since one from few is all noise.
    Where |G|^2 comes out at 0 or below, the signal is lost in noise, and the size grows. What is kept is the size of the last task and
    the two averages, each up to a factor.
    """

    wanted: Callable[[float, float, float, int, Situation], float]
    bounds: Bounds
    memory: float
    up: bool = False
    clocks: tuple[Clock, ...] = ()
    needs: tuple[str, ...] = STATISTICS

    def size(self, ordered: int, situation: Situation, kept: State) -> int:
        """Return what is ordered until something was learned, then what is wanted, at most GROWTH times more or less than before."""
        if not kept:
            return self.bounds.within(float(ordered), up=self.up)
        before, trace, square = (float(kept[name][0]) for name in ("size", *STATISTICS))
        wanted = self.wanted(before, trace, square, ordered, situation)
        return self.bounds.within(min(max(wanted, before / GROWTH), before * GROWTH), up=self.up)

    def learned(self, kept: State, size: int, statistics: Mapping[str, float]) -> State:
        """Return the size, and the averages with what was told: up to one factor, which is the same for both."""
        weight = statistics[EXAMPLES]
        after = {name: (self.memory * float(kept[name][0]) if kept else 0.0) + weight * statistics[name] for name in STATISTICS}
        return {name: np.array([value]) for name, value in {"size": float(size), **after}.items()}


@batch_policies.register("growing")
def growing(
    *, every: Positive, factor: Above1 = 2.0, clock: Clock = "round", least: Count = 1, most: Count | None = None,
    powers_of_two: bool = False,
) -> Timely:  # fmt: skip
    """The ordered size times *factor* after every *every*, in the place of a learning rate that falls (Smith et al. 2018).

    Reference: arXiv:1711.00489. B_t = min(most, B_0 factor^floor(t / every)), t being what *clock* shows when a task begins.
    """
    return Timely(partial(_growing, every, factor, clock), Bounds.of(least, most, powers_of_two), clocks=(clock,))


@batch_policies.register("even")
def even(*, least: Count = 1, most: Count | None = None, powers_of_two: bool = False) -> Timely:
    """A size for each device such that all take as long for a step: the ordered one on the median device, in proportion to speed.

    What a step costs besides its examples is allowed for. Reference: Ye et al. 2020 (DBS), arXiv:2007.11831. With *powers_of_two*
    steps are only within a factor of 1.5 of each other's time.
    """
    return Timely(_even, Bounds.of(least, most, powers_of_two))


@batch_policies.register("norm_test")
def norm_test(
    *, theta: Positive = 0.5, memory: Left = 0.5, least: Count = 1, most: Count | None = None, powers_of_two: bool = True
) -> Following:
    """Grow while the noise in a batch's gradient is large beside its signal: while tr(Sigma) / B > *theta*^2 |G|^2 (Byrd et al. 2012).

    Reference: Mathematical Programming 134. It never shrinks. Sigma and G are estimated from each task's first mini-batch.
    """
    return Following(partial(_normed, theta), Bounds.of(least, most, powers_of_two), memory, up=True)


@batch_policies.register("noise_scale")
def noise_scale(
    *, times: Positive = 1.0, memory: Left = 0.9, least: Count = 1, most: Count | None = None, powers_of_two: bool = True
) -> Following:
    """The size that is *times* the gradient noise scale tr(Sigma) / |G|^2, up and down (McCandlish et al. 2018).

    Reference: arXiv:1812.06162, equation 2.9. Sigma and G are moving averages over tasks, of each one's first mini-batch.
    """
    return Following(partial(_scaled, times), Bounds.of(least, most, powers_of_two), memory)


@batch_policies.register("goodput")
def goodput(*, memory: Left = 0.9, least: Count = 1, most: Count | None = None, powers_of_two: bool = True) -> Following:
    """The size of the largest goodput: examples a second, times what each still teaches, (phi + B_0) / (phi + B) (Pollux 2021).

    Reference: Qiao et al., OSDI 2021, section 3. phi is the noise scale tr(Sigma) / |G|^2, B_0 the ordered size, and how long a step
    takes is what the clock says of the client's device, its loader included.
    """
    bounds = Bounds.of(least, most, powers_of_two)
    return Following(partial(_best, bounds), bounds, memory)


def _growing(every: float, factor: float, clock: Clock, ordered: int, situation: Situation) -> float:
    times = situation.when.shows(clock) // every
    return ordered * factor**times if times * math.log(factor) < math.log(LARGEST) else float(LARGEST)


def _even(ordered: int, situation: Situation) -> float:
    return situation.speed * (ordered + situation.fixed) - situation.fixed


def _normed(theta: float, before: float, trace: float, square: float, ordered: int, situation: Situation) -> float:
    return max(before, AHEAD * trace / (theta**2 * square)) if square > 0 else before * GROWTH


def _scaled(times: float, before: float, trace: float, square: float, ordered: int, situation: Situation) -> float:
    return times * trace / square if square > 0 else before * GROWTH


def _best(bounds: Bounds, before: float, trace: float, square: float, ordered: int, situation: Situation) -> float:
    if square <= 0:
        return before * GROWTH
    phi = trace / square
    return float(max(bounds.all, key=lambda size: size / situation.step_s(size) * (phi + ordered) / (phi + size)))
