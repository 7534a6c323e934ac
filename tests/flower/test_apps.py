"""One client program: the ClientApp on a real node gives the bits of the simulator's reply."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from nodes_here import NodesHere

import fedsim
from clients.client_app import app as client_app
from clients.server_app import app as server_app
from fedsim.client.kept import Kept
from fedsim.client.program import next_task
from fedsim.core.errors import RunError
from fedsim.core.keys import Key
from fedsim.flower import compat, records
from fedsim.learn.engine.queue import here
from fedsim.scenario.build import build
from fedsim.scenario.load import load
from fedsim.session import verify
from fedsim.sim.grid import VirtualGrid


class Deaf:
    """Hears nothing."""

    def task(self, row: Any) -> None: ...

    def round(self, row: Any) -> None: ...

    def version(self, row: Any) -> None: ...

    def heard(self, row: Any) -> None: ...


IID = {"kind": "iid"}
PACED = {"kind": "exponential", "rate": 0.9}


def test_a_task_carries_on_what_its_client_keeps() -> None:
    """Of all that a client keeps, its next task counts itself and its steps, and leaves every other field; one of later versions too."""
    kept = Kept(*range(3, 3 + len(fields(Kept))))  # type: ignore[arg-type]  # Whatever it is, it goes along.
    number, _, after = next_task(0, Key(0), kept, True, 5)

    assert replace(kept, trained=kept.trained + 1, steps=kept.steps + 5) == after and kept.trained == number


@pytest.mark.parametrize("settings", [
    {},
    {"training.schedule": {**PACED, "clock": "local_step", "warmup": 3}},
    {"training.schedule": {**PACED, "clock": "version"}},
    {"clients.ram": {"kind": "lognormal", "mib": 0.0075, "sigma": 0.15}, "training.too_large": "smaller_batch"},
    {"training.epochs": 1.5, "training.batch_size": 4, "training.accumulate": 3, "training.sampling": "replacement"},
    {"server.statistics": "keep_local", "model": {"kind": "mlp", "hidden": [8], "norm": "ghost", "ghost_size": 4}, "data.partition": IID},
    {"training.batch_policy": {"kind": "growing", "every": 1, "clock": "version"}},
    {"training.batch_policy": {"kind": "norm_test"}, "clients.loading": {"kind": "prefetch", "examples_per_s": 50.0}},
    {"training.curriculum": {"begin": 0.3, "over": 2, "clock": "version"}, "training.batch_size": 4,
     "training.mix": {"by": "label", "temperature": 4.0}},
    {"training.mix": {"by": "difficulty", "shares": [3, 2, 1], "draw": "multinomial"}},
], ids=[
    "", "local_step", "version", "fitted", "accumulating", "own statistics", "growing", "norm_test", "curriculum", "mixed",
])  # fmt: skip
def test_a_real_client_answers_as_the_simulated_one(settings: dict[str, Any], scenario_file: Any, go: Any) -> None:
    """Called with Flower messages and contexts, our ClientApp returns the simulator's replies, round after round."""
    path = scenario_file({"data.partition": {"kind": "dirichlet", "alpha": 0.3}, "evaluate.federated_fraction": 0.5, **settings})
    parts = build(load(path))
    grid = VirtualGrid(parts.fleet, here(parts.engine), Deaf())
    contexts = {
        c: Context(1, records.node_of(c), {"partition-id": c}, RecordDict(), {"scenario": str(path)}) for c in range(6)
    }
    arrays: Any = compat.array_record(parts.first)
    for number, kind in ((1, "train"), (1, "evaluate"), (2, "train")):
        config = records.job_config(parts.job) if kind == "train" else ConfigRecord()
        config["server-round"] = number
        if "server-version" in config:
            config["server-version"] = number - 1
        content = RecordDict({"arrays": arrays, "config": config})
        simulated = list(grid.send_and_receive([Message(content, records.node_of(c), kind) for c in range(6)], timeout=1e6))
        real = [client_app(Message(content, records.node_of(c), kind), contexts[c]) for c in range(6)]

        for ours, theirs in zip(simulated, real, strict=True):
            assert dict(theirs.content["metrics"]) == dict(ours.content["metrics"])
            for name, array in ours.content.array_records.get("arrays", {}).items():
                assert np.array_equal(theirs.content["arrays"][name].numpy(), array.numpy())
        if kind == "train":
            arrays = simulated[3].content["arrays"]


def test_the_server_app_on_real_nodes_leaves_the_run_of_the_simulator(scenario_file: Any, tmp_path: Path) -> None:
    """Our ServerApp, given nodes of random ids that answer in any order, leaves the simulated run's parameters, and its work."""
    path = scenario_file({"evaluate.federated_fraction": 0.5})
    run = fedsim.run(path, out=tmp_path / "run")
    words = {"scenario": str(path), "out": str(tmp_path / "real")}
    server_app(NodesHere(client_app, words, [{"partition-id": c} for c in (3, 0, 5, 1, 4, 2)]), Context(5, 1, {}, RecordDict(), words))
    real = fedsim.load(tmp_path / "real")
    same = ["client", "kind", "round", "version", "outcome", "examples", "steps", "flops", "down_bytes", "up_bytes", "loss", "result"]
    tasks, simulated = (r.tasks.sort_values(["round", "kind", "client"])[same].reset_index(drop=True) for r in (real, run))

    assert ("done", "flower") == (real.status, real.manifest["ground"]) and not real.manifest["notes"]
    assert real.manifest["model"]["content"] == run.manifest["model"]["content"]
    assert simulated.equals(tasks)
    assert real.series("accuracy").value.tolist() == run.series("accuracy").value.tolist()
    times = real.tasks[["sent_s", "received_s", "started_s", "computed_s", "arrived_s"]]
    assert (times.diff(axis=1).iloc[:, 1:] >= 0).all(axis=None) and times.notna().all(axis=None)
    with pytest.raises(RunError, match="ran on real clients"):
        verify(tmp_path / "real", tmp_path / "again")
