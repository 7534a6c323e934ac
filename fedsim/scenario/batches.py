"""What of batch sizes and of loading them only shows when the parts of a scenario meet: refused, or told, in the reader's words."""

from __future__ import annotations

import numpy as np

from fedsim.core.errors import ScenarioError
from fedsim.cost.compute import step_s
from fedsim.learn.batch_policies import BatchPolicy
from fedsim.learn.job import FULL
from fedsim.scenario import judge
from fedsim.scenario.schema import Scenario
from fedsim.sim.fleet import Fleet

LOADERS_OF = 100_000
"""Clients whose loaders are looked at before a run, at most."""


def check_policy(scenario: Scenario, policy: BatchPolicy, *, own_start: bool) -> None:
    """Refuse a batch-size policy where there is no size to go from, somebody else changes it too, or its clock cannot be read."""
    training, at = scenario.training, f"training.batch_policy.kind = {(scenario.training.batch_policy or {}).get('kind')!r}"
    if training.batch_size == "full":
        raise ScenarioError(f"{at}: goes from training.batch_size, and that is 'full', all that a client holds. Set a number.")
    for clock in policy.clocks:
        judge.check_clock(scenario, "training.batch_policy", clock, own_start=own_start)


def loading_bound(fleet: Fleet) -> str:
    """Return whose loaders cannot keep up with their steps, in a sentence; empty where there are no loaders.

    That is who loads fewer examples a second than the device trains on, in batches of the job's size.
    """
    loader, count = fleet.loader, fleet.federation.count
    if loader is None:
        return ""
    clients = np.arange(min(count, LOADERS_OF))
    size = np.maximum(1, fleet.federation.sizes(clients) if fleet.job.batch_size == FULL else fleet.job.batch_size * fleet.job.accumulate)
    at_work_s = (fleet.flops.training * size + fleet.flops.update(fleet.job)) / (fleet.compute.gflops(clients) * 1e9)
    at_work_s = at_work_s + np.array([step_s(fleet.compute, client) for client in clients.tolist()])
    load_s = size / loader.examples_per_s(clients)
    bound = load_s > at_work_s
    share = float(np.median(at_work_s / (load_s + at_work_s if not loader.depth else np.maximum(load_s, at_work_s))))
    who = "" if len(clients) == count else f" first {len(clients):,}"
    what = "loading and steps take turns" if not loader.depth else f"{bound.sum():,} of the{who} {len(clients):,} clients are loading bound"
    return f"clients.loading: {what}; a step is at work {100 * share:.0f} % of the time, in the median."
