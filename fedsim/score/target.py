"""A score that counts as learned, and which way a score is better: words and numbers, no run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedsim.core.errors import ScenarioError, choices


@dataclass(frozen=True, slots=True)
class Target:
    """A score that counts as learned: the central *metric* at least, or at most, *value*."""

    metric: str
    value: float
    upwards: bool

    @property
    def stop(self) -> dict[str, Any]:
        """Return it as a scenario's [stop]."""
        return {"metric": self.metric, "at_least" if self.upwards else "at_most": self.value}

    def holds(self, score: float) -> bool:
        """Return whether *score* is good enough."""
        return score >= self.value if self.upwards else score <= self.value

    def __str__(self) -> str:
        return f"{self.metric} {'>=' if self.upwards else '<='} {self.value:g}"

    @classmethod
    def of(cls, stop: Mapping[str, Any] | None) -> Target | None:
        """Return the target that a scenario's table [stop] names; None where there is none, or it stops by something else."""
        least, most, metric = ((stop or {}).get(name) for name in ("at_least", "at_most", "metric"))
        value = most if least is None else least
        return None if value is None or metric is None else cls(metric, float(value), least is not None)

    @classmethod
    def read(cls, words: str, scores: Iterable[str], objective: str = "", said_as: str = "--target") -> Target:
        """Return what ``--target accuracy=0.9`` means; '>=' and '<=' say which way, and '=' is '<=' for a loss.

        *objective* is the kind whose *scores* they are, *said_as* where the words stand. Raises ScenarioError for what nobody reports, what
        is no number, and what no score can ever be.

        >>> str(Target.read("accuracy=0.9", ["accuracy", "loss"])), str(Target.read("loss=0.3", ["loss"]))
        ('accuracy >= 0.9', 'loss <= 0.3')
        """
        found = re.fullmatch(r"\s*(.+?)\s*(>=|<=|=)\s*(\S+)\s*", words)
        if not found:
            raise ScenarioError(f"{said_as} {words!r}: must look like accuracy=0.9, or loss<=0.3.")
        metric, sign, text = found.groups()
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ScenarioError(f"{said_as} {words!r}: {text!r} is no number. It must look like accuracy=0.9.")
        if metric not in (known := list(scores)):
            raise ScenarioError(f"{said_as} {words!r}: {metric!r} is not reported here. {choices(metric, known)}")
        found = cls(metric, value, sign == ">=" or (sign == "=" and upwards(metric)))
        if why := beyond(metric, value, rises=found.upwards, objective=objective):
            raise ScenarioError(f"{said_as} {words!r}: {why}")
        return found


def beyond(metric: str, value: float, *, rises: bool, objective: str) -> str:
    """Return why no *metric* of an objective of the kind *objective* is ever as good as *value*; empty where one may be, or nobody knows.

    >>> beyond("accuracy", 97.0, rises=True, objective="classification")
    'can never hold, since no accuracy is above 1 (90 % are 0.9).'
    >>> beyond("loss", -1.0, rises=False, objective="classification"), beyond("loss", -1.0, rises=False, objective="mine:Margin")
    ('can never hold, since no loss is below 0.', '')
    """
    if metric not in RANGES or objective != OURS:
        return ""
    low, high = RANGES[metric]
    if rises and value > high:
        return f"can never hold, since no {metric} is above {high:g}{' (90 % are 0.9)' if high == 1 else ''}."
    return f"can never hold, since no {metric} is below {low:g}." if not rises and value < low else ""


OURS = "classification"
"""The objective of which the scores are known; another's may have any range, whatever their names."""
RANGES = {"accuracy": (0.0, 1.0), "loss": (0.0, math.inf)}
"""Between what its scores lie."""


def upwards(metric: str) -> bool:
    """Return whether more of *metric* is better."""
    return "loss" not in metric and "error" not in metric
