"""Laws over every algorithm and every optimiser that keeps something: one digest, however it is computed; nothing lost on the way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

import fedsim
from clients.client_app import app as client_app
from fedsim.core.errors import FedsimError, ScenarioError
from fedsim.flower import compat, records
from fedsim.learn.algorithms import algorithms
from fedsim.learn.engine.queue import here
from fedsim.learn.job import Job
from fedsim.scenario.build import build
from fedsim.scenario.kinds import slots
from fedsim.scenario.load import load
from fedsim.sim.grid import VirtualGrid
from fedsim.strategy.stock import MEANS, names

slots()  # Importing registers.
ADAM = {"training.optimizer": {"kind": "adam", "lr": 0.01, "state": "keep"}}
MOMENTUM = {"training.optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9, "state": "keep"}}
LAMB = {
    "training.optimizer": {"kind": "lamb", "lr": 0.01, "state": "keep"}, "training.clipping": {"kind": "norm", "bound": 0.5},
    "training.objective": {"kind": "classification", "label_smoothing": 0.1, "class_weights": [2.0, *[1.0] * 9]},
}  # fmt: skip
KEEPERS: dict[str, dict[str, Any]] = {
    **{name: {"training.algorithm": {"kind": name}} for name in algorithms if name != "fedavg"},
    "adam": ADAM, "momentum": MOMENTUM, "scaffold with adam": {**ADAM, "training.algorithm": {"kind": "scaffold"}},
    "lamb with clipping": LAMB, "rmsprop": {"training.optimizer": {"kind": "rmsprop", "momentum": 0.5, "centered": True, "state": "keep"}},
}  # fmt: skip
RAGGED = {
    "data.partition": {"kind": "dirichlet", "alpha": 0.3}, "model": {"kind": "mlp", "hidden": [8]}, "server.rounds": 3,
    "training.batch_size": 7, "training.epochs": 2,
}  # fmt: skip
LATE = {"server.round_timeout_s": 1.18, "server.rounds": 4}
ONLINE = {
    "stream": {"arrivals": {"kind": "constant", "per_s": 2.0}, "trigger": {"kind": "count", "examples": 5}},
    "clients.replay": {"kind": "reservoir", "capacity": 8}, "training.rehearsal": {"kind": "der"}, "training.batch_size": 4,
    "server.rounds": 3, "training.epochs": 1,
}  # fmt: skip
Go = Callable[..., fedsim.Run]


@pytest.mark.parametrize("around", ["plain", "late", "online"])
@pytest.mark.parametrize("name", sorted(KEEPERS))
def test_one_digest(name: str, around: str, go: Go, hands: None) -> None:
    """The same for one client at a time and for two workers; with tasks that come too late, and on streams with live rehearsal."""
    settings = {**RAGGED, **KEEPERS[name], **{"plain": {}, "late": LATE, "online": ONLINE}[around]}
    serial, spread = go({**settings, "engine.chunk": 1}), go({**settings, "engine.workers": 2})

    assert serial.digest == spread.digest
    assert len(serial.series("train_loss", "training"))
    if around == "late":
        assert {"late", "arrived"} <= set(serial.tasks.outcome)


def test_zeros_know_no_chunk(go: Go) -> None:
    """Momentum that is kept of units that are off is a zero without a sign, however many clients are stacked, some for the first time."""
    settings = {**RAGGED, **MOMENTUM, "data.test_fraction": 0.97, "training.batch_size": 1, "training.epochs": 1, "engine.chunk": 1,
                "server.strategy": {"kind": "FedAvg", "fraction_train": 0.5}, "model": {"kind": "mlp", "hidden": [16], "standardise": True},
                "data.partition": {"kind": "quantity", "sigma": 0.8}, "server.rounds": 4}  # fmt: skip

    assert go(settings).digest == go({**settings, "engine.chunk": 64}).digest


def test_what_is_kept_matters(go: Go) -> None:
    """Each of them is another method than FedAvg with SGD, and keeping another than beginning anew: the digests tell them apart."""
    reset = {"adam reset": {"training.optimizer": {**ADAM["training.optimizer"], "state": "reset"}}, "plain": {}}
    found = {name: go({**RAGGED, **more}).digest for name, more in {**KEEPERS, **reset}.items()}

    assert len(found) == len(set(found.values()))


def test_a_setting_that_is_not_used_moves_no_byte(go: Go) -> None:
    """Naming the algorithm that does nothing, or the state that starts anew, is naming nothing."""
    one = go(RAGGED)
    other = go({**RAGGED, "training.algorithm": {"kind": "fedavg"}, "training.optimizer": {"kind": "sgd", "lr": 0.1, "state": "reset"}})

    assert one.digest == other.digest
    assert one.tasks.down_bytes.tolist() == other.tasks.down_bytes.tolist()


def test_extra_arrays_are_paid_for(go: Go) -> None:
    """SCAFFOLD sends twice the parameters each way, foretold and counted; FedNova eight bytes and a name; evaluation sees neither."""
    plain, scaffold, nova = (
        go({**RAGGED, "training.algorithm": {"kind": kind}}).tasks.iloc[0] for kind in ("fedavg", "scaffold", "fednova")
    )
    names = list(go({"server.rounds": 1}).params())

    assert nova.up_bytes - plain.up_bytes == 8 + len("normaliser")
    assert scaffold.up_bytes - plain.up_bytes == scaffold.down_bytes - plain.down_bytes
    assert 1.9 < scaffold.up_bytes / plain.up_bytes < 2.1
    assert not any("/" in name for name in names)


class Deaf:
    """Hears nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@pytest.mark.parametrize("name", ["scaffold", "feddyn", "adam", "lamb with clipping"])
def test_a_real_client_keeps_the_same(name: str, scenario_file: Any) -> None:
    """Our ClientApp, its state in ``Context.state``, answers as the simulated client, round after round; without its state it does not."""
    path = scenario_file({**RAGGED, **KEEPERS[name]})
    parts = build(load(path))
    grid = VirtualGrid(parts.fleet, here(parts.engine), Deaf())
    contexts = {c: Context(1, records.node_of(c), {"partition-id": c}, RecordDict(), {"scenario": str(path)}) for c in range(2)}
    fresh = {c: Context(1, records.node_of(c), {"partition-id": c}, RecordDict(), {"scenario": str(path)}) for c in range(2)}
    config, model = records.job_config(parts.job), parts.first
    differ = False
    for number in (1, 2, 3):
        config["server-round"] = number
        extra = {} if parts.extras is None else {n: a + np.float32(0.01 * number) for n, a in parts.extras.state.items()}
        content = RecordDict({"arrays": compat.array_record({**model, **extra}), "config": config})
        asked = [Message(content, records.node_of(c), "train") for c in range(2)]
        for ours, message in zip(grid.send_and_receive(asked, timeout=1e6), asked, strict=True):
            client = records.client_of(message.metadata.dst_node_id)
            theirs = client_app(message, contexts[client])
            arrays = records.params_of(ours.content["arrays"])
            assert dict(theirs.content["metrics"]) == dict(ours.content["metrics"])
            assert all(np.array_equal(theirs.content["arrays"][n].numpy(), array) for n, array in arrays.items())
            fresh[client].state = RecordDict()  # Deliberately wrong: a node that forgets.
            other = client_app(message, fresh[client])
            differ = differ or not all(np.array_equal(other.content["arrays"][n].numpy(), array) for n, array in arrays.items())
            model = {n: arrays[n] for n in model}

    assert differ


@pytest.mark.parametrize("kind", names())
def test_an_algorithm_goes_around_what_averages(kind: str, go: Go, tiny: Any) -> None:
    """Around each strategy that averages it runs; any other is refused, by name, with what would have worked."""
    needs: dict[str, dict[str, Any]] = {
        "FedProx": {"proximal_mu": 0.1}, "QFedAvg": {"client_learning_rate": 0.1}, "MultiKrum": {"num_nodes_to_select": 3},
    }  # fmt: skip
    table = {"kind": kind, **needs.get(kind, {})}
    if "Clipping" in kind:
        table |= {"noise_multiplier": 0.1, "num_sampled_clients": 6, "strategy": {"kind": "FedAvg"}}
        table |= {} if "Adaptive" in kind else {"clipping_norm": 1.0}
        own = kind == "FixedClipping"
        table = {name: value for name, value in table.items() if not own or name != "num_sampled_clients"}
    settings = {**RAGGED, "server.rounds": 2, "server.strategy": table, "training.algorithm": {"kind": "scaffold"}}
    if kind in MEANS:
        assert go(settings).status == "done"
    else:
        with pytest.raises(ScenarioError, match=rf"^training\.algorithm\.kind = 'scaffold': .*'{kind}'.*FedAvg"):
            build(load(tiny(settings)))


OWN = """
from dataclasses import dataclass
import numpy as np
import torch
from fedsim.learn.algorithms import Ended, FedAvg
from fedsim.learn.terms import Momentum

class Signs:
    keeps = ()
    def apply(self, gradient, param, start, state, sent, step):
        return gradient.sign()
    def flops(self, parameters):
        return 1.0 * parameters

class SignSgd:
    # Not a dataclass, and its rate is numpy's.
    lr, state = np.float32(0.01), "reset"
    def terms(self, job):
        return (Signs(),)

def signs():
    return SignSgd()

class Flat:
    keeps = ()
    def apply(self, gradient, param, start, state, sent, step):
        return gradient[:1]
    def flops(self, parameters):
        return 0.0

class Broken(SignSgd):
    def __init__(self, how):
        self.how = how
        self.lr = {"rate": -1.0}.get(how, 0.01)
        self.state = {"state": "sometimes"}.get(how, "reset")
    def terms(self, job):
        return {"none": None, "text": ("a",), "raises": 1 / (self.how != "raises"), "shape": (Flat(),)}.get(self.how, (Signs(),))

def broken(how):
    return Broken(how)

@dataclass(frozen=True)
class Own(FedAvg):
    how: str = ""
    def finish(self, job, start, params, sent, kept, rates):
        if self.how == "raises":
            raise KeyError("boo")
        return {"none": None, "extra": Ended({"more": {}}), "metrics": Ended(metrics={"x": 1.0})}.get(self.how, Ended())

def own(how=""):
    return Own(how=how)

class Half:
    weights = "uniform"
    def __init__(self, how):
        self.how = how
        self.weights = "bla" if how == "weights" else "uniform"
    def begin(self, params):
        return [] if self.how == "begin" else {}
    def before(self, start, updates):
        return [] if self.how == "before" else [update.params for update in updates]
    def after(self, start, average, updates, state):
        if self.how == "after raises":
            raise KeyError("ouch")
        if self.how == "after":
            return average
        return ({n: a.reshape(-1)[:1] for n, a in average.items()} if self.how == "shape" else average), state

@dataclass(frozen=True)
class Served(FedAvg):
    how: str = ""
    keeps: tuple = ()
    def finish(self, job, start, params, sent, kept, rates):
        return Ended(kept={"old/" + n: a for n, a in params.items()} if self.how == "keeps" else {})
    def server(self, clients):
        return object() if self.how == "server" else Half(self.how)

def served(how=""):
    return Served(how=how, keeps=("momentum",) if how == "name" else ())
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have mine.py in the folder."""
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)


def test_a_strangers_optimiser_is_used(mine: None, go: Go, hands: None) -> None:
    """Its terms are the rule: after one step each parameter has moved by the rate or not at all; with two workers too."""
    settings = {"training.optimizer": {"kind": "mine:signs"}, "server.rounds": 1, "training.epochs": None, "training.steps": 1,
                "server.strategy": {"kind": "FedAvg", "clients_per_round": 1, "min_available_nodes": 1}}  # fmt: skip
    run, first = go(settings), build(load(fedsim_tiny(settings))).first
    moved = np.concatenate([(run.params()[name] - first[name]).ravel() for name in first])

    assert np.allclose(np.abs(moved[moved != 0]), 0.01, rtol=1e-3)
    assert (moved != 0).mean() > 0.5
    assert run.digest == go({**settings, "engine.workers": 2}).digest


def fedsim_tiny(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the tiny scenario with *settings*."""
    from tests.conftest import tiny_table

    return tiny_table(settings)


@pytest.mark.parametrize("how", ["rate", "state", "none", "text", "raises", "shape"])
def test_a_wrong_optimiser_is_named(how: str, mine: None, go: Go) -> None:
    """What it gives is refused by its name, before anything runs."""
    with pytest.raises(ScenarioError, match=r"^training\.optimizer\.kind = 'mine:broken': its (lr|state|terms\(\)|term Flat) "):
        go({"training.optimizer": {"kind": "mine:broken", "how": how}})


@pytest.mark.parametrize("how", ["none", "extra", "metrics", "raises"])
def test_a_wrong_algorithm_is_named(how: str, mine: None, go: Go) -> None:
    """What its halves give is refused in one line by the scenario's key."""
    with pytest.raises(FedsimError, match=r"^training\.algorithm[^\n]*finish\(\)[^\n]*$"):
        go({"training.algorithm": {"kind": "mine:own", "how": how}})


@pytest.mark.parametrize("how", ["server", "weights", "begin", "before", "after", "after raises", "shape", "keeps", "name"])
def test_a_wrong_server_half_is_named(how: str, mine: None, tiny: Any) -> None:
    """What it gives, or what its client half keeps, is refused by its own name, before anything runs; a right one runs."""
    build(load(tiny({"training.algorithm": {"kind": "mine:served"}})))
    said = r"^training\.algorithm\.kind = 'mine:served': it(s server|s finish\(\) keeps| keeps 'momentum')[^\n]*$"
    with pytest.raises(ScenarioError, match=said):
        build(load(tiny({"training.algorithm": {"kind": "mine:served", "how": how}})))


@pytest.mark.parametrize("kind", ["scaffold", "fednova"])
def test_what_does_not_go_with_an_algorithm_is_said(kind: str, tiny: Any) -> None:
    """Adam, and momentum that is kept, are no sums of gradients; SGD and momentum begun anew are."""
    others = ((ADAM, True), (MOMENTUM, True), (LAMB, True))
    for optimizer, said in (*others, ({"training.optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9}}, False)):
        notes = build(load(tiny({"training.algorithm": {"kind": kind}, **optimizer}))).notes
        assert said == any(note.startswith(f"training.algorithm.kind = '{kind}': takes a client's update for") for note in notes)


def test_nothing_to_keep_is_said(go: Go) -> None:
    """SGD without momentum has no state."""
    with pytest.raises(ScenarioError, match=r"training\.optimizer\.state = 'keep': there is nothing to keep without momentum"):
        go({"training.optimizer": {"kind": "sgd", "lr": 0.1, "state": "keep"}})


def test_only_what_is_kept_travels_with_a_job() -> None:
    """What a job reads of its client is what its optimiser and algorithm keep."""
    assert () == Job().keeping
