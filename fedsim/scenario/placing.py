"""On which device a scenario is computed: the one it names, or by a rule of sizes the faster of those that are there."""

from __future__ import annotations

import numpy as np

from fedsim.core.errors import ScenarioError
from fedsim.data.federation import Federation
from fedsim.learn.engine import devices
from fedsim.learn.engine.chunks import chunk_rule
from fedsim.learn.engine.devices import Module, Picked, Work
from fedsim.learn.job import FULL, Job
from fedsim.learn.models import trainable
from fedsim.scenario import judge
from fedsim.scenario.schema import Scenario

SEEN = 1000
"""Clients whose numbers of examples are looked at, where a batch is all that a client has."""


def placed(scenario: Scenario, model: Module, job: Job, federation: Federation, asked: int) -> Picked:
    """Return the device that *scenario* is computed on, of which a round asks *asked* clients. Raises ScenarioError where it cannot be."""
    engine = scenario.engine
    there = engine.device != "cpu" and devices.there()
    judge.check_device(engine, gpu=there)
    picked = Picked(engine.device) if engine.device != "auto" else _by_size(scenario, model, job, federation, asked, there=there)
    if picked.device == "cuda" and (wrong := devices.broken("cuda")):
        if engine.device == "cuda":
            raise ScenarioError(f"engine.device = 'cuda': {wrong}")
        picked = Picked("cpu", f"the GPU does not work: {wrong}")
    lowers = engine.precision != "bfloat16" or picked.device == "cpu" or devices.lowers()
    judge.check_precision(engine, picked, lowers=lowers)
    return picked


def note(scenario: Scenario, picked: Picked) -> str:
    """Return what a reader should know of how the device was *picked*; empty where the scenario names it."""
    return f"engine.device = 'auto' picked {picked.device!r}: {picked.why}." if scenario.engine.device == "auto" else ""


def work_of(scenario: Scenario, model: Module, job: Job, federation: Federation, asked: int) -> Work:
    """Return what a step of *scenario* has to do."""
    params = list(trainable(model).values())
    at_once = chunk_rule(sum(p.numel() * p.element_size() for p in params), "cuda")
    count = federation.count if not asked else min(asked, federation.count)
    held = federation.sizes(np.arange(min(federation.count, SEEN))) if job.batch_size == FULL else np.zeros(0)
    batch = int(np.median(held)) if len(held) else job.batch_size
    return Work(
        sum(p.numel() for p in params), max(1, batch), min(scenario.engine.chunk or at_once, count), devices.convolves(model),
        alone=scenario.stream is not None,
    )  # fmt: skip


def _by_size(scenario: Scenario, model: Module, job: Job, federation: Federation, asked: int, *, there: bool) -> Picked:
    if scenario.engine.elsewhere and scenario.engine.executing["kind"] != "processes":
        return Picked("cpu", f"engine.executor.kind = {scenario.engine.executing['kind']!r} computes on CPUs")
    found = devices.faster(work_of(scenario, model, job, federation, asked))
    return found if there or found.device == "cpu" else Picked("cpu", "torch finds no CUDA device on this machine")
