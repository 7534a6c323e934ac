"""Drift detectors: what a client makes of the stream of its own errors. Each is river's; none changes a model.

State in, state out: a detector's state is bytes, so that it fits Flower's ``Context.state``, crosses processes, and is
never changed behind anybody's back. (It is a pickle of river's object. A client reads back what it wrote itself.) An
alarm resets the detector, as river has it. river is imported when the first detector starts.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, Protocol, TypeAlias

import numpy as np

from fedsim.core import answers
from fedsim.core.errors import RunError, ScenarioError
from fedsim.core.keys import Key
from fedsim.core.registry import Registry
from fedsim.core.types import Array, BoolArray, Count, FloatArray, IntArray, Positive, Range

AT = "clients.detector"
"""Where a scenario names its detector."""
Confidence: TypeAlias = Annotated[float, Range(gt=0, lt=1, why="the chance of an alarm about nothing; smaller is slower and surer")]


class Detector(Protocol):
    """A test for change in a stream of numbers. Feeding a stream in pieces gives what feeding it at once gives."""

    @property
    def takes_losses(self) -> bool:
        """Return whether it reads any numbers; otherwise only 0 (right) and 1 (wrong)."""
        ...

    def start(self, key: Key) -> bytes:
        """Return the state before the first example; what is drawn at random comes from *key*."""
        ...

    def feed(self, state: bytes, errors: BoolArray | FloatArray) -> tuple[bytes, IntArray]:
        """Return the state after *errors*, and the indices in *errors* at which drift was signalled, in order.

        Shapes: errors (n,) -> (alarms,). Raises RunError for what the detector cannot read.
        """
        ...


def _fed(given: Any, _state: bytes, errors: Array) -> tuple[bytes, Array]:
    state, alarms = answers.pair(given)
    if not isinstance(state, bytes):
        raise ValueError(f"a state of type {type(state).__name__}, expected bytes")
    found = answers.whole(alarms, most=len(errors) - 1)
    answers.wrong(found[1:], np.diff(found) <= 0, "each alarm once, in order")
    return state, found


detectors: Registry[Callable[..., Detector]] = Registry(
    "detector", key="clients.detector",
    gives=answers.Gives(
        "a Detector", ("start", "feed", "takes_losses"), {"feed": _fed, "start": answers.octets, "takes_losses": answers.truth}
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Never:
    """No detector. See ``none``."""

    takes_losses: bool = True

    def start(self, key: Key) -> bytes:
        """Return nothing."""
        return b""

    def feed(self, state: bytes, errors: BoolArray | FloatArray) -> tuple[bytes, IntArray]:
        """Return no alarm."""
        return state, np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class River:
    """The detector called *name* in *module* of river, with *settings*. Only values, so that it travels to workers.

    *level* names the attribute that holds the level which the detector sees; if given, only alarms with which the level
    rose count.
    """

    module: str
    name: str
    settings: Mapping[str, Any]
    takes_losses: bool = False
    seeded: bool = False
    level: str = ""

    def start(self, key: Key) -> bytes:
        """Return a fresh detector's state."""
        seed = {"seed": key.seed64()} if self.seeded else {}
        return pickle.dumps(getattr(import_module(self.module), self.name)(**self.settings, **seed), protocol=5)

    def feed(self, state: bytes, errors: BoolArray | FloatArray) -> tuple[bytes, IntArray]:
        """Return the state after *errors*, and the indices of the alarms."""
        numbers = np.asarray(errors, dtype=np.float64)
        if not np.isfinite(numbers).all():
            raise RunError(f"detector {self.name!r}: an error of {numbers[~np.isfinite(numbers)][0]} at a client: its model diverged.")
        if not self.takes_losses and not np.isin(numbers, (0.0, 1.0)).all():
            raise RunError(f"detector {self.name!r}: reads errors (0 or 1), not losses; adwin, page_hinkley and kswin read both.")
        detector, alarms, before = pickle.loads(state), list[int](), 0.0
        for i, number in enumerate(numbers.tolist() if self.takes_losses else numbers.astype(np.int64).tolist()):
            if self.level:
                before = getattr(detector, self.level)
            detector.update(number)
            if detector.drift_detected and (not self.level or getattr(detector, self.level) > before):
                alarms.append(i)
        return pickle.dumps(detector, protocol=5), np.array(alarms, dtype=np.int64)


@detectors.register("none")
def none() -> Detector:
    """No detector: drift goes unnoticed."""
    return Never()


@detectors.register("adwin")
def adwin(*, delta: Confidence = 0.002, clock: Count = 32, only_worse: bool = True) -> Detector:
    """An adaptive window, cut where its halves differ (ADWIN, Bifet & Gavalda 2007); looks every *clock* examples.

    It notices change both ways; with *only_worse* a model that gets better, as every fresh one does, raises no alarm.
    """
    settings = {"delta": delta, "clock": clock}
    return River("river.drift", "ADWIN", settings, takes_losses=True, level="estimation" if only_worse else "")


@detectors.register("page_hinkley")
def page_hinkley(
    *, min_instances: Count = 30, delta: Annotated[float, Range(ge=0)] = 0.005, threshold: Positive = 50.0,
    alpha: Annotated[float, Range(gt=0, le=1)] = 0.9999, only_worse: bool = True,
) -> Detector:  # fmt: skip
    """A sum of what exceeds the mean by *delta*, against *threshold* (Page 1954); both ways without *only_worse*."""
    settings = {"min_instances": min_instances, "delta": delta, "threshold": threshold, "alpha": alpha}
    return River("river.drift", "PageHinkley", {**settings, "mode": "up" if only_worse else "both"}, takes_losses=True)


@detectors.register("kswin")
def kswin(*, alpha: Confidence = 0.005, window_size: Count = 100, stat_size: Count = 30) -> Detector:
    """A Kolmogorov-Smirnov test of the last *stat_size* numbers against as many drawn from the window (Raab et al. 2020).

    Meant for losses: errors are only 0 and 1, on which it is weak. Notices change both ways. Slow: a test per example.
    """
    if 2 * stat_size > window_size:
        raise ScenarioError(f"{AT}.stat_size = {stat_size}: must be at most half of window_size = {window_size}.")
    settings = {"alpha": alpha, "window_size": window_size, "stat_size": stat_size}
    return River("river.drift", "KSWIN", settings, takes_losses=True, seeded=True)


@detectors.register("ddm")
def ddm(*, warm_start: Count = 30, drift_threshold: Positive = 3.0) -> Detector:
    """An error rate *drift_threshold* standard deviations above its minimum (DDM, Gama et al. 2004)."""
    return River("river.drift.binary", "DDM", {"warm_start": warm_start, "drift_threshold": drift_threshold})


@detectors.register("eddm")
def eddm(*, warm_start: Count = 30, beta: Annotated[float, Range(gt=0, lt=1)] = 0.9) -> Detector:
    """Errors that come closer together, down to *beta* of their widest (EDDM, Baena-Garcia et al. 2006); many false alarms."""
    return River("river.drift.binary", "EDDM", {"warm_start": warm_start, "alpha": max(beta, 0.95), "beta": beta})


@detectors.register("hddm_a")
def hddm_a(*, drift_confidence: Confidence = 0.001) -> Detector:
    """Hoeffding's bound on the difference of two averages (HDDM-A, Frias-Blanco et al. 2015)."""
    return River("river.drift.binary", "HDDMA", {"drift_confidence": drift_confidence})


@detectors.register("hddm_w")
def hddm_w(*, drift_confidence: Confidence = 0.001, decay: Annotated[float, Range(gt=0, lt=1)] = 0.05) -> Detector:
    """McDiarmid's bound on weighted averages, recent errors weighing more (HDDM-W, Frias-Blanco et al. 2015)."""
    return River("river.drift.binary", "HDDMW", {"drift_confidence": drift_confidence, "lambda_val": decay})
