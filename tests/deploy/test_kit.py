"""A client's kit: what a fresh process reads of it gives the bits of the whole scenario, message after message."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore import heartbeat
from nodes_here import NodesHere

import fedsim
from clients.client_app import app as client_app
from clients.server_app import app as server_app
from fedsim.core.errors import ScenarioError
from fedsim.flower import compat, records
from fedsim.learn.engine.frozen import frozen
from fedsim.learn.models import travelling
from fedsim.real import diary, kit
from fedsim.real.client import replied
from fedsim.real.part import part_of
from fedsim.real.server import served
from fedsim.scenario.build import build
from fedsim.scenario.load import load

SKEWED = {"kind": "dirichlet", "alpha": 0.3}
CASES: dict[str, dict[str, Any]] = {
    "scaffold": {"training.algorithm": {"kind": "scaffold"}},
    "FedAdam": {"server.strategy": {"kind": "FedAdam", "eta": 0.05}},
    "adam, kept": {"training.optimizer": {"kind": "adam", "lr": 0.01, "state": "keep"}},
    "dropout": {"model": {"kind": "mlp", "hidden": [8], "dropout": 0.3}},
    "cnn": {"model": {"kind": "cnn", "norm": "batch"}, "training.batch_size": 7},
    "full": {"training.batch_size": "full", "evaluate.federated_fraction": 0.5},
    "bfloat16": {"codec": {"up": {"kind": "bfloat16"}, "down": {"kind": "bfloat16"}}},
    "clipped": {"server.strategy": {
        "kind": "DifferentialPrivacyClientSideFixedClipping", "noise_multiplier": 0.1, "clipping_norm": 1.0, "num_sampled_clients": 6,
        "strategy": {"kind": "FedAvg"}}},
    "generated": {"data": {"source": {"kind": "leaf_synthetic", "alpha": 1.0, "beta": 1.0}}},
    "stopping": {"training.stopping": {"kind": "patience", "epochs": 1}, "training.epochs": 3},
    "mixed": {"training.mix": {"by": "label", "temperature": 4.0}, "training.batch_size": 4},
    "memory": {"clients.ram": {"kind": "lognormal", "mib": 0.0075, "sigma": 0.15}, "training.too_large": "smaller_batch"},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_real_clients_give_the_parameters_of_the_simulation(name: str, scenario_file: Any, tmp_path: Path) -> None:
    """Clients that read their kits, and know no other's data, end with the simulated run's parameters and tasks, whatever the method."""
    path = scenario_file({"data.partition": SKEWED, "server.rounds": 3, **CASES[name]})
    run = fedsim.run(path, out=tmp_path / "run")
    words = {"scenario": str(path), "out": str(tmp_path / "real")}
    nodes = [{"partition-id": c, "state-dir": str(tmp_path / f"state-{c}")} for c in (3, 0, 5, 1, 4, 2)]
    server_app(NodesHere(client_app, words, nodes), Context(5, 1, {}, RecordDict(), words))
    real = fedsim.load(tmp_path / "real")
    same = ["client", "number", "kind", "round", "version", "outcome", "examples", "steps", "flops", "down_bytes", "up_bytes"]
    tasks, simulated = (r.tasks.sort_values(["round", "kind", "client"])[same].reset_index(drop=True) for r in (real, run))

    assert real.manifest["model"]["content"] == run.manifest["model"]["content"]
    assert [] == real.manifest["notes"][len(run.manifest["notes"]) :]
    assert simulated.equals(tasks), (simulated.compare(tasks), name)
    assert not list(tmp_path.glob("state-*/*.kit"))


def test_a_frozen_step_is_the_step(tiny: Any) -> None:
    """What is thawed of a compiled step gives its bits, and a kit's engine compiles nothing that is in it."""
    for settings in ({}, {"model": {"kind": "mlp", "hidden": [8]}}, CASES["cnn"]):
        parts = build(load(tiny(settings)))
        steps = parts.engine.compiled
        cold = frozen(steps)
        assert cold.keys() == steps.keys()
        x, y = parts.engine.parts[2].sample(next(iter(steps))[0])
        for kind, step in steps.items():
            results: list[list[Any]] = []
            for each in (step, cold[kind].thawed()):
                rows = [tensor.detach().clone().unsqueeze(0) for tensor in travelling(parts.model).values()]
                head, gradients = each.run(each.open(rows), x.unsqueeze(0), y.unsqueeze(0), (), -0.1)
                results.append([*rows, each.close(head), *gradients])
            assert all(a.equal(b) for a, b in zip(*results, strict=True))


def test_a_part_holds_nothing_of_others(tiny: Any) -> None:
    """A client's part has its own examples, by new positions in the old order, and its program plans what it planned."""
    parts = build(load(tiny({"data.partition": SKEWED, "evaluate.federated_fraction": 0.5})))
    for client in range(6):
        whole, part = parts.federation, part_of(parts.federation, client)
        assert part.pooled is not None and whole.pooled is not None
        assert len(part.pooled) == len(whole.positions(client)) < len(whole.pooled)
        for positions in ("train", "validation"):
            mine, theirs = getattr(part, positions)(client), getattr(whole, positions)(client)
            assert np.array_equal(part.pooled.x[mine], whole.pooled.x[theirs])


def test_a_fresh_process_answers_from_the_kit_alone(scenario_file: Any, tmp_path: Path) -> None:
    """A process that finds a kit answers with the bits of the process that made it, without scikit-learn and torch's tracer."""
    path = scenario_file({"data.partition": SKEWED})
    parts = build(load(path))
    words = {"scenario": str(path)}
    context = Context(5, 9, {"partition-id": 2, "state-dir": str(tmp_path / "state")}, RecordDict(), words)
    compat.set_identity()
    begin = diary.Begin(0.0, 1.0, 6, load(path).scenario.digest)
    said = ConfigRecord({"ask": diary.BEGIN, **diary.record_of(begin)})
    assert not client_app(Message(RecordDict({diary.RECORD: said}), 9, "query"), context).has_error()
    np.savez(tmp_path / "first.npz", **parts.first)
    (tmp_path / "began.json").write_text(json.dumps(words))
    reply = client_app(_train(parts.first, parts), context)
    for file in (tmp_path / "state").glob("*.kept"):  # Else it is the next task that the other process does.
        file.unlink()
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path), records.digest_of_reply(reply)], check=False, capture_output=True, text=True,
        cwd=Path(fedsim.__file__).parents[1], env=dict(os.environ),
    )  # fmt: skip

    assert "same, light" == child.stdout.strip(), child.stdout + child.stderr


def _train(first: Any, parts: Any) -> Message:
    return Message(RecordDict({"arrays": compat.array_record(first), "config": records.job_config(parts.job)}), 9, "train")


_CHILD = """
import json
import sys
from pathlib import Path
import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from clients.client_app import app
from fedsim.real import diary
from fedsim.flower import compat, records
place = Path(sys.argv[1])
compat.set_identity()
words = json.loads((place / "began.json").read_text())
context = Context(5, 9, {"partition-id": 2, "state-dir": str(place / "state")}, RecordDict(), words)
from fedsim.scenario.load import load
begin = diary.Begin(0.0, 1.0, 6, load(context.run_config["scenario"]).scenario.digest)
diary.enter_run(context.state, begin)
with np.load(place / "first.npz") as file:
    arrays = compat.array_record(dict(file))
reply = app(Message(RecordDict({"arrays": arrays, "config": ConfigRecord({})}), 9, "train"), context)
same = not reply.has_error() and records.digest_of_reply(reply) == sys.argv[2]
heavy = [name for name in ("sklearn", "torch._dynamo", "fedsim.scenario.build") if name in sys.modules]
print("same" if same else reply, "light" if not heavy else heavy, sep=", ")
"""


def test_a_kit_of_another_run_is_not_read(tmp_path: Path, tiny: Any) -> None:
    """A kit is read for the run, the node and the code that it was made for; one that cannot be written says why."""
    parts = build(load(tiny()))
    made = kit.Kit("mark", 0, parts.fleet.client(0), parts.job, parts.engine.parts, (), None, parts.fleet.flops, False)
    assert "" == kit.put(made, tmp_path / "a.kit")
    assert kit.get(tmp_path / "a.kit", "other") is None and kit.get(tmp_path / "b.kit", "mark") is None
    found = kit.get(tmp_path / "a.kit", "mark")
    assert found is not None and found.job == parts.job
    (tmp_path / "file").write_text("")
    assert "NotADirectoryError" in kit.put(made, tmp_path / "file" / "a.kit")
    bad = dataclasses.replace(made, mods=(lambda message, context, app: app(message, context),))
    assert kit.put(bad, tmp_path / "a.kit") and kit.get(tmp_path / "a.kit", "mark") is not None


OWN = """
import numpy as np

def mine(node):
    rows = 20 + node["partition-id"]
    x = np.full((rows, 1, 8, 8), 0.1 * (1 + node["partition-id"]), dtype="float32")
    return x, np.arange(rows) % 10

def short(node):
    return np.zeros((3, 5), dtype="float32"), np.zeros(3, dtype=int)

def odd(node):
    return np.zeros((3, 1, 8, 8), dtype="float32"), np.array([0, 1, 99])

def broken(node):
    return 1 / 0
"""


@pytest.mark.parametrize("stream", [False, True])
def test_a_node_trains_on_its_own_data(stream: bool, scenario_file: Any, tmp_path: Path) -> None:
    """A loader's examples take the place of the node's part of the scenario's, as they are or as they come."""
    settings: dict[str, Any] = {"clients.count": 2, "server.rounds": 2}
    if stream:
        settings["stream"] = {"arrivals": {"kind": "constant", "per_s": 1e4}, "trigger": {"kind": "count", "examples": 20}}
    path = scenario_file(settings)
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    words = {"scenario": str(path), "out": str(tmp_path / "real")}
    nodes = [{"partition-id": 0, "loader": "own:mine"}, {"partition-id": 1}]
    app, server = _apps(tmp_path)
    server(NodesHere(app, words, [{**n, "state-dir": str(tmp_path / f"s{i}")} for i, n in enumerate(nodes)]), _context(words))
    tasks = fedsim.load(tmp_path / "real").tasks

    assert 20 == int(tasks[tasks.client == 0].examples.iloc[0]) != int(tasks[tasks.client == 1].examples.iloc[0])


@pytest.mark.parametrize(("loader", "said"), [
    ("own:short", "loader = 'own:short': x has rows of shape (5,), and the scenario's examples are (1, 8, 8)."),
    ("own:odd", "loader = 'own:odd': train.y[2] = 99"),
    ("own:broken", "loader = 'own:broken': raised ZeroDivisionError"),
    ("own:none", "loader = 'own:none': 'own' has no 'none'"),
    ("own", "loader = 'own': must look like 'package.module:function'."),
])  # fmt: skip
def test_what_is_wrong_with_own_data_is_said(loader: str, said: str, scenario_file: Any, tmp_path: Path) -> None:
    """The server hears of a loader that is wrong in a line that names it, and trains nothing."""
    path = scenario_file({"clients.count": 1, "server.strategy": {"kind": "FedAvg", "clients_per_round": 1}})
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    words = {"scenario": str(path), "out": str(tmp_path / "real")}
    app, server = _apps(tmp_path)
    with pytest.raises(fedsim.RunError) as caught:
        server(NodesHere(app, words, [{"partition-id": 0, "loader": loader, "state-dir": str(tmp_path / "s")}]), _context(words))

    assert said in str(caught.value) and "cannot take part" in str(caught.value)
    assert "failed" == fedsim.load(tmp_path / "real").status


def _apps(folder: Path) -> tuple[Any, Any]:
    from fedsim.real import apps

    return apps.client_app(folder), apps.server_app(folder)


def _context(words: Any) -> Context:
    return Context(5, 1, {}, RecordDict(), words)


def test_words_are_checked(tmp_path: Path) -> None:
    """Each word of a run's or a node's configuration that cannot be is named, with what would work."""
    from fedsim.real.words import NodeWords, RunWords

    for config, said in (
        ({}, "scenario: missing"), ({"scenario": 3}, "scenario = 3: must be text"), ({"nodes": -1}, "nodes = -1"),
        ({"time-scale": 0}, "time-scale = 0: must be > 0"), ({"wait-s": "x"}, "wait-s = 'x': must be a number"),
        ({"seed": 1.5}, "seed = 1.5: must be a whole number"), ({"set": "[1]"}, "set = '[1]': set takes a list"),
        ({"set": "a=b"}, "set = 'a=b': set takes a list"),
    ):  # fmt: skip
        with pytest.raises(ScenarioError) as caught:
            RunWords.of({**({"scenario": "s.toml"} if config else {}), **config}, tmp_path)
        assert str(caught.value).startswith(said)
    for config, said in (
        ({}, "partition-id: missing"), ({"partition-id": 3}, "partition-id = 3: the run has 3 clients; partition ids are 0 to 2."),
        ({"partition-id": "0"}, "partition-id = '0'"), ({"partition-id": 0, "num-partitions": 4}, "num-partitions = 4: the run has 3"),
        ({"partition-id": 0, "loader": 7}, "loader = 7: must be text"),
    ):  # fmt: skip
        with pytest.raises(ScenarioError) as caught:
            NodeWords.of(config, 3)
        assert str(caught.value).startswith(said)


def test_what_clients_predicted_is_told_at_the_end(scenario_file: Any, tmp_path: Path) -> None:
    """A stream of real clients leaves what they predicted, item by item, and a report; replayed at its times it is the simulation's."""
    stream = {"arrivals": {"kind": "constant", "per_s": 40.0}, "trigger": {"kind": "count", "examples": 12}}
    settings = {"clients.count": 3, "server.rounds": 6, "stream": stream, "clients.replay": {"kind": "reservoir", "capacity": 12}}
    words = {"scenario": str(scenario_file(settings)), "out": str(tmp_path / "real")}
    nodes = [{"partition-id": c, "state-dir": str(tmp_path / f"s{c}")} for c in range(3)]
    server_app(NodesHere(client_app, words, nodes), _context(words))
    real = fedsim.load(tmp_path / "real")
    run = fedsim.run(words["scenario"], out=tmp_path / "run")
    tested, simulated = (r.tested.sort_values(["client", "item"]) for r in (real, run))

    items, wanted = (sorted(zip(rows.client, rows.item, strict=True)) for rows in (tested, simulated))
    assert real.status == "done" and items == wanted
    assert tested.y.tolist() == simulated.y.tolist() and (tested.time_s >= tested.arrived_s).all()
    assert real.prequential().shape == run.prequential().shape and (tmp_path / "real" / "report.html").is_file()
    assert not list(tmp_path.glob("s*/*.news"))


def test_flowers_threads_draw_apart_from_the_first_message_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever a client's or a server's process is asked first, a heartbeat beside it moves no generator of models or samples."""
    for heard in (
        lambda: replied(Message(RecordDict(), 1, "query"), Context(5, 1, {}, RecordDict(), {}), tmp_path),
        lambda: served(cast(Any, None), Context(5, 1, {}, RecordDict(), {"seed": "none"}), tmp_path),
    ):
        monkeypatch.setattr(heartbeat, "random", random)
        with suppress(ScenarioError):
            heard()
        assert heartbeat.__dict__["random"] is not random
