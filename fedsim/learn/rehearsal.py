"""Rehearsal: how new and remembered examples train a model together. Settings, and what follows from counts alone.

What a policy remembers is replay's matter (data/replay.py); the steps are the engine's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from fedsim.core import answers
from fedsim.core.errors import ScenarioError, choices
from fedsim.core.keys import Key
from fedsim.core.registry import Registry
from fedsim.core.types import IntArray, NonNegative, Positive, Range, Seconds
from fedsim.data.replay import Arrivals, Replay
from fedsim.learn.work import Mix

Ratio = Annotated[float, Range(ge=0, lt=1, why="the replayed share of a mini-batch; 0.5 replays one for each new example")]
Method = Literal["er", "union", "er_ace", "der", "der++", "a_gem", "lwf", "ewc"]
METHODS: tuple[str, ...] = get_args(Method)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """A method and its weights. *ratio* is the replayed share of a mini-batch, beside ``batch_size`` new examples."""

    method: Method
    ratio: float = 0.5
    mix: Mix = "concat"
    alpha: float = 0.0
    beta: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a method that the engine does not have: it would train as if there were none."""
        if self.method not in METHODS:
            raise ScenarioError(f"training.rehearsal: there is no method {self.method!r}. {choices(str(self.method), METHODS)}")

    @property
    def numeric(self) -> bool:
        """Return whether its steps need more than one loss over given positions, so that the engine takes them singly."""
        return self.method in ("der", "der++", "a_gem", "lwf", "ewc")

    @property
    def draws(self) -> int:
        """Return how many independent draws from memory a mini-batch takes."""
        return {"lwf": 0, "ewc": 0, "der++": 2}.get(self.method, 1)

    def replayed(self, fresh: int) -> int:
        """Return how many examples one draw replays beside *fresh* new ones.

        >>> er().replayed(10), er(ratio=0.2).replayed(8), er(ratio=0).replayed(8)
        (10, 2, 0)
        """
        return round(fresh * self.ratio / (1 - self.ratio))


rehearsals: Registry[Callable[..., Rehearsal]] = Registry(
    "rehearsal", key="training.rehearsal",
    gives=answers.Gives(
        "a Rehearsal", ("method", "ratio", "mix"),
        fields={
            "ratio": answers.within(ge=0, lt=1), "mix": answers.among(*get_args(Mix)), "alpha": answers.within(ge=0),
            "beta": answers.within(ge=0), "temperature": answers.within(gt=0),
        },
    ),
    own="Your own, 'package.module:name', returns a Rehearsal: one of these methods, with weights of your choice.",
)  # fmt: skip


@rehearsals.register("er")
def er(*, ratio: Ratio = 0.5, mix: Literal["concat", "sum"] = "concat") -> Rehearsal:
    """Experience replay: one loss over new and replayed examples, as one mean or as the sum of two.

    Without a memory this is plain training on mini-batches as they arrive. The two mixes weigh new examples differently
    while the memory fills. Reference: Chaudhry et al. 2019, arXiv:1902.10486.
    """
    return Rehearsal("er", ratio, mix)


@rehearsals.register("union")
def union() -> Rehearsal:
    """Epochs over all new and all remembered examples together, reshuffled: FedAvg on what the client has."""
    return Rehearsal("union")


@rehearsals.register("er_ace")
def er_ace(*, ratio: Ratio = 0.5) -> Rehearsal:
    """ER-ACE: new examples are compared among the classes new in the mini-batch only, replayed ones among all.

    Reference: Caccia et al. 2022, arXiv:2104.05025.
    """
    return Rehearsal("er_ace", ratio, "ace")


@rehearsals.register("der")
def der(*, alpha: NonNegative = 0.3, ratio: Ratio = 0.5) -> Rehearsal:
    """Dark experience replay: remembered examples keep the outputs that the model had for them.

    The squared distance to those, a mean over the outputs, times *alpha*, is added to the loss (the paper's code does so too).
    Reference: Buzzega et al. 2020, arXiv:2004.07211.
    """
    return Rehearsal("der", ratio, alpha=alpha)


@rehearsals.register("der++")
def der_plus_plus(*, alpha: NonNegative = 0.2, beta: NonNegative = 0.5, ratio: Ratio = 0.5) -> Rehearsal:
    """DER, plus *beta* times the cross-entropy of a second, independent draw (Buzzega et al. 2020)."""
    return Rehearsal("der++", ratio, alpha=alpha, beta=beta)


@rehearsals.register("a_gem")
def a_gem(*, ratio: Ratio = 0.5) -> Rehearsal:
    """A-GEM: the new gradient gives up what would raise the loss of a draw from memory (Chaudhry et al. 2019, arXiv:1812.00420)."""
    return Rehearsal("a_gem", ratio)


@rehearsals.register("lwf")
def lwf(*, alpha: NonNegative = 1.0, temperature: Positive = 2.0) -> Rehearsal:
    """Learning without forgetting: stay near the outputs of the model that was received (Li & Hoiem 2016, arXiv:1606.09282)."""
    return Rehearsal("lwf", alpha=alpha, temperature=temperature)


@rehearsals.register("ewc")
def ewc(*, strength: NonNegative = 100.0, decay: Annotated[float, Range(ge=0, le=1)] = 0.9) -> Rehearsal:
    """Online EWC: stay near the parameters after the client's last task, most where its Fisher information is large.

    The Fisher information of each task is added to *decay* times that before. Reference: Kirkpatrick et al. 2017,
    arXiv:1612.00796; Schwarz et al. 2018, arXiv:1805.06370.
    """
    return Rehearsal("ewc", alpha=strength, beta=decay)


@dataclass(frozen=True, slots=True)
class Live:
    """Rehearsal whose numbers only the engine knows: everything else that its steps depend on.

    *new* are the task's new items in order; step s trains on ``new[begins[s] : begins[s] + fresh[s]]``, and hands the
    first *inserted[s]* of these to the memory. *planned* are the items that each draw replays, step by step, where the
    policy needs no numbers, and *kept* those remembered in the end; otherwise the engine asks *replay*. *places* are
    the positions of the stream's items. *candidates* counts those of all steps among which the most interfered are
    chosen (MIR).
    """

    rehearsal: Rehearsal
    replay: Replay
    new: Arrivals
    begins: IntArray
    fresh: IntArray
    inserted: IntArray
    sizes: IntArray
    planned: tuple[tuple[IntArray, ...], ...] | None
    kept: IntArray | None
    places: IntArray
    key: Key
    first_step: int
    now: Seconds
    candidates: int = 0

    @property
    def beside(self) -> tuple[int, int]:
        """Return how many examples pass besides those of mini-batches: forward only, and with a gradient."""
        trained, told = int(self.fresh.sum()), len(self.new.items) + int((self.sizes - self.fresh).sum())
        forward, training = 2 * self.candidates, trained if self.candidates else 0
        forward += trained * (self.rehearsal.method == "lwf") + told * ("features" in self.replay.needs)
        training += len(self.new.items) * (self.rehearsal.method == "ewc") + told * ("gradients" in self.replay.needs)
        return forward, training
