"""Differentially private means: each update cut to a norm, all weighed alike, noise for those who came, then the wrapped strategy.

What is noised is the mean of the updates, before the wrapped strategy sees it: it is handed one reply, in which that mean
is. Whatever it makes of it (Adam, momentum) can then take nothing of the privacy away, and no rule that looks at single
replies can be wrapped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsim.core.types import Array as NDArray
from fedsim.core.types import FloatArray
from fedsim.flower.compat import with_metadata

Draws = Mapping[str, FloatArray]


class FixedClipping(Strategy):
    """The mean of updates cut to a norm, clients weighed alike, with noise for as many as came (McMahan et al. 2018)."""

    def __init__(self, strategy: Strategy, noise_multiplier: float, clipping_norm: float) -> None:
        if noise_multiplier < 0 or clipping_norm <= 0:
            raise ValueError("noise_multiplier must be >= 0 and clipping_norm > 0")
        self.strategy, self.noise_multiplier, self.clipping_norm = strategy, noise_multiplier, clipping_norm
        self.noise_std = 0.0
        """The standard deviation of the noise in the last round, per number of the model."""
        self._start: ArrayRecord | None = None

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Return what the wrapped strategy sends, and remember the model that updates are taken from."""
        self._start = arrays
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return what the wrapped strategy makes of one reply: the private mean, with the clients' metrics averaged."""
        came = [reply for reply in replies if not reply.has_error()]
        if not came or self._start is None:
            return None, None
        norm = self.clipping_norm
        model = {name: array.numpy() for name, array in self._start.items()}
        total, below = _clipped(model, came, norm)
        self._heard(below, len(came))
        self.noise_std = self.noise_multiplier * norm / len(came)
        arrays = {name: _noised(model[name], total[name] / len(came), self.noise_std) for name in model}
        answer = with_metadata(_reply(came, arrays), came[0].metadata)
        mean, metrics = self.strategy.aggregate_train(server_round, [answer])
        if metrics is not None:
            metrics["clipping_norm"] = norm
        return mean, metrics

    def _heard(self, below: int, came: int) -> None:
        """Take in that *below* of the *came* updates were at or below the norm; a fixed norm stays."""

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Return what the wrapped strategy sends."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return what the wrapped strategy makes of evaluations."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Log the wrapped strategy's summary."""
        self.strategy.summary()


class AdaptiveClipping(FixedClipping):
    """FixedClipping with a norm that follows a quantile of the updates' norms (Andrew et al. 2021, algorithm 1).

    Updates at or below the norm are counted, with noise of their own; the round's noise is that of the norm which cut its
    updates. Flower's adaptive wrappers count those that were cut instead, so that their norm runs away from the quantile.

    *target_clipped_quantile*: the share of updates that shall be at or below the norm
    *num_sampled_clients*: how many clients a round has: the noise on the count is a twentieth of it unless given
    """

    def __init__(
        self,
        strategy: Strategy,
        noise_multiplier: float,
        num_sampled_clients: int,
        initial_clipping_norm: float = 0.1,
        target_clipped_quantile: float = 0.5,
        clip_norm_lr: float = 0.2,
        clipped_count_stddev: float | None = None,
    ) -> None:
        if clipped_count_stddev is None:
            clipped_count_stddev = num_sampled_clients / 20 if noise_multiplier else 0.0
        if noise_multiplier and noise_multiplier >= 2 * clipped_count_stddev:
            raise ValueError(
                f"noise_multiplier = {noise_multiplier:g} must be below 2 clipped_count_stddev = {2 * clipped_count_stddev:g}"
                f" (num_sampled_clients / 20 unless given): the count takes more of the privacy than there is"
            )
        # What the count takes, the updates must make up for: z = (z_updates^-2 + (2 std)^-2)^-1/2.
        rest = (noise_multiplier**-2 - (2 * clipped_count_stddev) ** -2) ** -0.5 if noise_multiplier else 0.0
        super().__init__(strategy, rest, initial_clipping_norm)
        self.num_sampled_clients, self.clipped_count_stddev = num_sampled_clients, clipped_count_stddev
        self.target_clipped_quantile, self.clip_norm_lr = target_clipped_quantile, clip_norm_lr

    def _heard(self, below: int, came: int) -> None:
        share = (below + np.random.normal(0.0, self.clipped_count_stddev)) / came
        self.clipping_norm *= math.exp(-self.clip_norm_lr * (share - self.target_clipped_quantile))


def _clipped(model: Mapping[str, NDArray], replies: Sequence[Message], norm: float) -> tuple[dict[str, FloatArray], int]:
    """Return the sum of the updates in *replies*, each cut to *norm*, and how many were at or below it."""
    total: dict[str, FloatArray] = {name: np.zeros(start.shape) for name, start in model.items()}
    below = 0
    for reply in replies:
        record = next(iter(reply.content.array_records.values()))
        update = {name: record[name].numpy().astype(np.float64) - start for name, start in model.items()}
        length = math.sqrt(sum(float(np.sum(np.square(part))) for part in update.values()))
        below += length <= norm
        for name, part in update.items():
            total[name] += part if length <= norm else part * (norm / length)
    return total, below


def _noised(start: NDArray, mean: FloatArray, std: float) -> NDArray:
    """Return *start* moved by *mean* and noise, in its own type. With no noise nothing is drawn."""
    noise = np.random.normal(0.0, std, start.shape) if std else 0.0
    return np.asarray(start + mean + noise).astype(start.dtype)


def _reply(came: Sequence[Message], arrays: Mapping[str, NDArray]) -> RecordDict:
    """Return the content of one reply of *arrays*, and the mean of each metric of those who *came*."""
    record, told = next(iter(came[0].content.array_records)), next(iter(came[0].content.metric_records))
    all_metrics = [reply.content.metric_records[told] for reply in came]
    means: dict[str, Any] = {
        name: np.mean([cast(Any, metrics[name]) for metrics in all_metrics], axis=0).tolist() for name in all_metrics[0]
    }
    if "num-examples" in means:  # The only reply there is: how many examples clients have is nobody's business.
        means["num-examples"] = 1
    return RecordDict({record: ArrayRecord({name: Array(array) for name, array in arrays.items()}), told: MetricRecord(means)})
