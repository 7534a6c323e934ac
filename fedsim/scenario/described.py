"""What a manifest says of a scenario and its parts, before anything ran. Knows what parts are; knows nothing of how a run goes."""

from __future__ import annotations

from fedsim.learn import kernels
from fedsim.record.composed import Setup
from fedsim.scenario import costs
from fedsim.scenario.build import Parts
from fedsim.scenario.load import Loaded


def described(parts: Parts, loaded: Loaded) -> Setup:
    """Return what *parts* were built of, as the manifest has it.

    Raises RunError, or ScenarioError, where bits are promised everywhere and this process did not load its libraries so.
    """
    rests = kernels.check() if loaded.scenario.engine.everywhere else {}
    scenario, federation, engine, fleet = loaded.scenario, parts.federation, parts.engine, parts.fleet
    flops = fleet.flops
    return Setup(
        scenario=scenario.plain(), scenario_digest=scenario.digest, folder=loaded.folder, seed=scenario.seed,
        model={
            "shape": list(federation.shape), "outputs": federation.outputs, "parameters": flops.parameters,
            "arrays": list(parts.scored(parts.first)), "training_flops_per_example": flops.training,
        },
        executor={
            "kind": scenario.engine.executing["kind"], "device": engine.device, "chunk": engine.chunk, "intra_op_threads": 1,
            "workers": scenario.engine.workers,
        },
        hindsight=federation.hindsight, classes=federation.classes, clients=federation.clients,
        files={**federation.files, **costs.files_of(
            (fleet.compute, fleet.network, fleet.availability, fleet.energy and fleet.energy.intensity,
             fleet.edges and fleet.edges.network)
        )}, asks=loaded.asks, rests=rests,
    )  # fmt: skip
