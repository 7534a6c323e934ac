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
    def read(cls, words: str, scores: Iterable[str]) -> Target:
        """Return what ``--target accuracy=0.9`` means; '>=' and '<=' say which way, and '=' is '<=' for a loss.

        Raises ScenarioError for what nobody reports, and for what is no number.

        >>> str(Target.read("accuracy=0.9", ["accuracy", "loss"])), str(Target.read("loss=0.3", ["loss"]))
        ('accuracy >= 0.9', 'loss <= 0.3')
        """
        found = re.fullmatch(r"\s*(.+?)\s*(>=|<=|=)\s*(\S+)\s*", words)
        if not found:
            raise ScenarioError(f"--target {words!r}: must look like accuracy=0.9, or loss<=0.3.")
        metric, sign, text = found.groups()
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ScenarioError(f"--target {words!r}: {text!r} is no number. It must look like accuracy=0.9.")
        if metric not in (known := list(scores)):
            raise ScenarioError(f"--target {words!r}: {metric!r} is not reported here. {choices(metric, known)}")
        return cls(metric, value, sign == ">=" or (sign == "=" and upwards(metric)))


def upwards(metric: str) -> bool:
    """Return whether more of *metric* is better."""
    return "loss" not in metric and "error" not in metric
