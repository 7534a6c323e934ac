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


class Far:
    """Links on which any message takes 3 s, or so many."""

    def __init__(self, takes_s: float = 3.0) -> None:
        self.takes_s = takes_s

    def down_mbps(self, clients: Any) -> Any:
        return np.full(len(clients), 1.0)

    up_mbps = down_mbps

    def down_s(self, client: int, size_bytes: int) -> float:
        return self.takes_s

    up_s = down_s


class Steady:
    """Devices that take *work_s* for any task."""

    def __init__(self, work_s: float) -> None:
        self.work_s = work_s

    def gflops(self, clients: Any) -> Any:
        return np.full(len(clients), 1.0)

    def seconds(self, client: int, task: int, flops: float, steps: int = 0) -> float:
        return self.work_s


class Odd:
    """Failures after more work than there is."""

    def fails(self, client: int, task: int, works_s: float) -> Fault:
        return Fault("odd", works_s + 1.0)


class Once:
    """Failures of a client's first task, after a second of it: its device is away for so long."""

    def __init__(self, away_s: float = 60.0) -> None:
        self.away_s = away_s

    def fails(self, client: int, task: int, works_s: float) -> Fault | None:
        return Fault("died once", 1.0, breaks=True, away_s=self.away_s) if task == 0 else None
