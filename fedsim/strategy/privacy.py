"""What noise a run's updates really had: whom it was taken for, how much a single client could weigh, and what follows from it.

Flower's wrappers divide their noise by ``num_sampled_clients``, whoever came, and weigh replies by examples. Here the
first is set right for a round to which fewer came; the second is measured, and said.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedsim.flower.aggregated import PRIVATE
from fedsim.strategy.clipping import FixedClipping

ADAPTIVE = (flower.DifferentialPrivacyServerSideAdaptiveClipping, flower.DifferentialPrivacyClientSideAdaptiveClipping)
SLACK = 1e-6
"""How far a ratio of weights may be from 1 by rounding."""
NONE = "none: no epsilon is computed. A round draws a fixed number of clients, without replacement."
ABOUT = "one client added or removed; for one replaced by another the multiplier is half as large"


@dataclass(frozen=True, slots=True)
class Release:
    """One noised mean: of how many replies, the norm they were cut to, the largest weight of one, the noise's deviation."""

    replies: int
    norm: float
    weight: float
    std: float

    @property
    def multiplier(self) -> float:
        """Return the noise in units of what one client can move the mean by."""
        return self.std / (self.norm * self.weight)


@dataclass(slots=True)
class Privacy:
    """Stands around a private *strategy*, corrects its noise where fewer came than it counts on, and keeps account."""

    strategy: Any
    asked: float = 0.0
    wanted: float = 0.0
    counted_on: int | None = None
    releases: list[Release] = field(default_factory=list[Release])

    def __post_init__(self) -> None:
        self.wanted = float(self.strategy.noise_multiplier)  # Of an adaptive wrapper: what is left of the one asked for the updates.
        self.counted_on = getattr(self.strategy, "num_sampled_clients", None)

    @property
    def flowers(self) -> bool:
        """Return whether the wrapper is one of Flower's."""
        return isinstance(self.strategy, PRIVATE)

    def around(self) -> Strategy:
        """Return the strategy, its aggregation accounted for."""
        setattr(self.strategy, "aggregate_train", self._counted(self.strategy.aggregate_train))
        return self.strategy

    def _counted(self, aggregate: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(aggregate)
        def call(server_round: int, replies: Any) -> Any:
            strategy, replies = self.strategy, list(replies)
            came = [reply for reply in replies if not reply.has_error()]
            norm, weight = float(strategy.clipping_norm), self._largest(came)
            flowers = self.flowers
            if flowers and came and self.counted_on is not None:  # The noise for those who came: fewer need more.
                strategy.num_sampled_clients = min(self.counted_on, len(came))
            try:
                result = aggregate(server_round, replies)
                if result[0] is not None:
                    # Flower's adaptive wrappers draw with the norm that they have just moved.
                    std = strategy.noise_std if not flowers else self.wanted * strategy.clipping_norm / strategy.num_sampled_clients
                    self.releases.append(Release(len(came), norm, weight, float(std)))
                return result
            finally:
                if flowers:
                    strategy.num_sampled_clients = self.counted_on

        return call

    def _largest(self, came: Sequence[Message]) -> float:
        """Return the largest share of one reply in the mean, 1 where that cannot be told."""
        if not came:
            return 1.0
        if isinstance(self.strategy, FixedClipping):
            return 1.0 / len(came)
        key = str(getattr(self.strategy.strategy, "weighted_by_key", ""))
        weights: list[Any] = [dict(next(iter(reply.content.metric_records.values()))).get(key, 0) for reply in came]
        numbers = [float(weight) for weight in weights if isinstance(weight, int | float)]
        return max(numbers) / sum(numbers) if len(numbers) == len(came) and sum(numbers) > 0 else 1.0

    @property
    def averages(self) -> bool:
        """Return whether what is noised is a mean of replies, as the noise takes it to be."""
        inner = self.strategy.strategy
        return isinstance(self.strategy, FixedClipping) or type(inner).aggregate_train is flower.FedAvg.aggregate_train

    def reasons(self) -> list[str]:
        """Return why the noise is not what its multiplier says; nothing where it is."""
        if not self.wanted:
            return ["no noise is added (noise_multiplier = 0)."]
        found: list[str] = []
        inner = type(self.strategy.strategy).__name__
        if not self.averages:
            found.append(
                f"the noise is that of a mean of replies, and {inner} hands back something else. FixedClipping noises the mean before."
            )
        weak = [release for release in self.releases if release.multiplier < self.wanted * (1 - SLACK)]
        if self.averages and weak:
            worst = min(weak, key=lambda release: release.multiplier)
            found.append(
                f"replies are weighed by {self.strategy.strategy.weighted_by_key} (up to {max(r.weight for r in weak):.2g} for one, where"
                f" {1 / worst.replies:.2g} is assumed), so in {len(weak)} of {len(self.releases)} rounds the noise was that of a"
                f" smaller multiplier,"
                f" down to {worst.multiplier:.3g} of {self.wanted:.3g}. FixedClipping and AdaptiveClipping weigh clients alike."
            )
        if isinstance(self.strategy, ADAPTIVE):
            found.append(
                "Flower's adaptive clipping counts updates the wrong way round, and its norm runs away. AdaptiveClipping is as in"
                " the paper."
            )
        return found

    def section(self) -> dict[str, Any]:
        """Return what the manifest says of a run's privacy."""
        reasons, releases = self.reasons(), self.releases
        return {
            "unit": "client",
            "mechanism": "Gaussian noise on the mean of clipped updates, added by the server",
            "noise_multiplier": self.asked,
            "noise_multiplier_of_updates": self.wanted,
            "smallest_noise_multiplier_of_updates": min((r.multiplier for r in releases), default=None) if self.averages else None,
            "about": ABOUT,
            "releases": len(releases),
            "replies": _ends([r.replies for r in releases]),
            "clipping_norm": _ends([r.norm for r in releases]),
            "largest_weight": max((r.weight for r in releases), default=None),
            "noise_std": _ends([r.std for r in releases]),
            "fewer_than_counted_on": sum(r.replies < self.counted_on for r in releases) if self.counted_on else 0,
            "accounting": NONE,
            "not_noised": "metrics: losses and their like are averages without noise",
            "holds": not reasons,
            "why_not": reasons,
        }

    @property
    def notes(self) -> list[str]:
        """Return what a reader must know: where there is noise, and less of it than its multiplier says."""
        if not self.wanted:
            return []
        found = [f"Privacy is weaker than server.strategy.noise_multiplier says: {reason}" for reason in self.reasons() if self.releases]
        fewer = [release.replies for release in self.releases if self.counted_on and release.replies < self.counted_on]
        if fewer and self.flowers:
            found.append(
                f"In {len(fewer)} rounds fewer clients than num_sampled_clients = {self.counted_on} answered ({min(fewer)} at least): the"
                f" noise was taken for those who did."
            )
        return found


def privacy_of(strategy: Strategy, asked: float) -> Privacy | None:
    """Return the account of *strategy*, asked for a noise multiplier of *asked*; None where it adds no noise to updates."""
    return Privacy(strategy, asked) if isinstance(strategy, (*PRIVATE, FixedClipping)) else None


def _ends(values: Sequence[float]) -> list[float] | None:
    return [min(values), max(values)] if values else None
