"""Helpers of scenarios in which tasks fail: strategies that look or wait, clients that leave at set times, failures that are none."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

from fedsim.cost.failures import Fault


class Looking(FedAvg):
    """FedAvg that notes the codes of the errors it is given."""

    codes: list[int] = []  # noqa: RUF012  # The one list that a test reads.

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        listed = list(replies)
        Looking.codes += [reply.error.code for reply in listed if reply.has_error()]
        return super().aggregate_train(server_round, listed)


class Endless(FedAvg):
    """FedAvg that waits for ever."""

    def start(self, grid: Any, *args: Any, **kwargs: Any) -> Any:
        return super().start(grid, *args, **{**kwargs, "timeout": None})


class Edges:
    """Clients that are away from 4 to 9 s and from 12 to 20 s, and there at all other times."""

    edges = (4.0, 9.0, 12.0, 20.0)

    def available(self, clients: Any, now: float) -> Any:
        return np.full(len(clients), sum(edge <= now for edge in self.edges) % 2 == 0)

    def next_change(self, clients: Any, now: float) -> float:
        return min((edge for edge in self.edges if edge > now), default=math.inf) if len(clients) else math.inf


class Odd:
    """Failures after more work than there is."""

    def fails(self, client: int, task: int, works_s: float) -> Fault:
        return Fault("odd", works_s + 1.0)
