"""Malformed scenarios: each ends with exit code 2 and one line with the dotted key, the value, and what would work."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PLUGINS = '''
import torch
from torch import nn
import torch.nn.functional as F
from fedsim.learn.objectives import Classification

number = 3.5

def linear(outputs): return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))
def norm(shape, outputs): return nn.Sequential(linear(outputs), nn.BatchNorm1d(outputs))
def counting(shape, outputs): return nn.Sequential(linear(outputs), nn.BatchNorm1d(outputs, momentum=None))
def nothing(shape, outputs): return nn.Flatten()
def text(shape, outputs): return "a model"
def raises(shape, outputs): raise KeyError("weights.pt")
def narrow(shape, outputs): return nn.Sequential(nn.Flatten(), nn.Linear(3, outputs))
def wide(shape, outputs, width: int): return linear(outputs)

class Free(nn.Module):
    def __init__(self, shape, outputs):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(outputs))
    def forward(self, x): return self.bias + 0 * x.flatten(1)[:, :1]

class Vector(Classification):
    def loss(self, outputs, targets): return F.cross_entropy(outputs, targets, reduction="none")

def uneven(labels, clients): return len(labels) // 0
def adam(lr: float): return {"lr": lr}

class Timid:
    def __init__(self, courage: int = 0): pass
'''


@pytest.fixture(autouse=True)
def _plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugins_of_tests.py").write_text(PLUGINS)
    (tmp_path / "plugins_that_break.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    monkeypatch.chdir(tmp_path)  # A refused scenario must not even leave the folder runs/ behind.


LR, KIND, ALPHA, STRATEGY = "training.optimizer.lr", "model.kind", "data.partition.alpha", "server.strategy"
DIRICHLET = {"data.partition.kind": "dirichlet"}
DP = "DifferentialPrivacyServerSideFixedClipping"


def strategy(kind: str, **settings: Any) -> dict[str, Any]:
    return {STRATEGY: {"kind": kind, **settings}}


def private(**settings: Any) -> dict[str, Any]:
    inner = {"kind": "FedAvg"}
    return strategy(DP, **{"strategy": inner, "noise_multiplier": 0.5, "clipping_norm": 1.0, "num_sampled_clients": 6, **settings})


POISSON = {"arrivals": {"kind": "poisson", "per_s": 0.1}}


def online(**overrides: Any) -> dict[str, Any]:
    """Return a stream with a reservoir, *overrides* by key, a double underscore for a dot."""
    return {"stream": POISSON, "clients.replay": {"kind": "reservoir", "capacity": 9}} | {
        key.replace("__", "."): value for key, value in overrides.items()
    }


# name: (overrides, how the line begins, what else it says)
CASES: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    # Wrong types.
    "rounds is text": ({"server.rounds": "ten"}, "server.rounds = 'ten': must be", ["whole number"]),
    "rounds is a fraction": ({"server.rounds": 2.5}, "server.rounds = 2.5: must be", ["whole number"]),
    "rounds is true": ({"server.rounds": True}, "server.rounds = true: must be", ["whole number"]),
    "data is a number": ({"data": 3}, "data = 3: must be", ["a table"]),
    "source is text": ({"data.source": "digits"}, "data.source = 'digits': must be", ["{ kind = 'digits' }"]),
    "strategy is text": ({STRATEGY: "FedAvg"}, "server.strategy = 'FedAvg': must be", ["{ kind = 'FedAvg' }"]),
    "alpha is text": ({**DIRICHLET, ALPHA: "small"}, "data.partition.alpha = 'small': must be", ["a number"]),
    "hidden is a number": ({KIND: "mlp", "model.hidden": 64}, "model.hidden = 64: must be", ["list"]),
    "hidden is empty": ({KIND: "mlp", "model.hidden": []}, "model.hidden = []:", ["at least 1"]),
    "hidden has a text": ({KIND: "mlp", "model.hidden": [64, "x"]}, "model.hidden.1 = 'x': must be", ["whole number"]),
    "name is a number": ({"name": 3}, "name = 3: must be", ["text"]),
    "kind is a number": ({"data.source": {"kind": 3}}, "data.source.kind = 3: must be", ["text"]),
    "strategy kind is a number": ({STRATEGY: {"kind": 3}}, "server.strategy.kind = 3: must be", ["text"]),
    "model kind is a number": ({"model": {"kind": 3}}, "model.kind = 3: must be", ["text"]),
    # Unknown keys.
    "unknown section": ({"servers": {}}, "servers: no such key.", ["Did you mean 'server'?"]),
    "unknown key": ({"server.round": 3}, "server.round: no such key.", ["Did you mean 'rounds'?", "round_timeout_s"]),
    "setting with a dash": ({"training.optimizer.learning-rate": 0.1}, "training.optimizer.learning-rate: 'sgd' has no such setting.", ["lr"]),
    "key with a dash": ({"server.round-timeout": 5.0}, "server.round-timeout: no such key.", ["'round_timeout_s'"]),
    "partition raises": ({"data.partition": {"kind": "plugins_of_tests:uneven"}}, "data.partition.kind = 'plugins_of_tests:uneven'", ["raised ZeroDivisionError"]),
    "unknown setting": ({**DIRICHLET, "data.partition.alhpa": 1.0, ALPHA: 1.0}, "data.partition.alhpa: 'dirichlet' has no such setting.", ["'alpha'"]),
    "setting of a kind that takes none": ({"data.partition.alpha": 1.0}, "data.partition.alpha: 'iid' has no such setting.", ["takes: nothing"]),
    "unknown kind": ({"data.partition.kind": "dirichlt"}, "data.partition.kind = 'dirichlt': no such partition.", ["Did you mean 'dirichlet'?"]),
    "unknown model": ({KIND: "mpl"}, "model.kind = 'mpl': no such model.", ["'mlp'"]),
    "unknown optimizer": ({"training.optimizer": {"kind": "lion", "lr": 0.1}}, "training.optimizer.kind = 'lion'", ["sgd"]),
    "unknown objective": ({"training.objective": {"kind": "ranking"}}, "training.objective.kind = 'ranking'", ["classification"]),
    "unknown availability": ({"clients.availability": {"kind": "sometimes"}}, "clients.availability.kind", ["onoff"]),
    # Missing.
    "setting missing": (DIRICHLET, "data.partition.alpha: missing.", ["'dirichlet' needs it", "number > 0"]),
    "kind missing": ({"clients.network": {"down_mbps": 3.0}}, "clients.network.kind: missing.", ["fedsim list"]),
    "strategy kind missing": ({STRATEGY: {"fraction_train": 0.5}}, "server.strategy.kind: missing.", ["FedAvg"]),
    "partition missing": ({"data": {"source": {"kind": "digits"}}}, "data.partition: missing.", ["{ kind = 'iid' }"]),
    # Out of range.
    "no rounds": ({"server.rounds": 0}, "server.rounds = 0: must be >= 1", []),
    "negative count": ({"clients.count": -4}, "clients.count = -4: must be >= 1", []),
    "negative seed": ({"seed": -1}, "seed = -1: must be >= 0", []),
    "alpha 0": ({**DIRICHLET, ALPHA: 0.0}, "data.partition.alpha = 0.0: must be > 0", ["0.1 is strong, 100 is nearly iid"]),
    "alpha negative": ({**DIRICHLET, ALPHA: -0.3}, "data.partition.alpha = -0.3: must be > 0", ["0.1 is strong"]),
    "lr nan": ({LR: float("nan")}, "training.optimizer.lr = nan: must be a finite number", []),
    "lr infinite": ({LR: float("inf")}, "training.optimizer.lr = inf: must be a finite number", []),
    "lr negative": ({LR: -0.1}, "training.optimizer.lr = -0.1: must be > 0", []),
    "momentum 1.5": ({"training.optimizer.momentum": 1.5}, "training.optimizer.momentum = 1.5: must be", ["< 1", "0.9"]),
    "batch size 0": ({"training.batch_size": 0}, "training.batch_size = 0: must be >= 1", ["'full'"]),
    "batch size half": ({"training.batch_size": "half"}, "training.batch_size = 'half': must be", ["'full'", "whole number"]),
    "test_fraction 1.5": ({"data.test_fraction": 1.5}, "data.test_fraction = 1.5: must be < 1", []),
    "test_fraction leaves nothing": ({"data.test_fraction": 0.99999}, "data.test_fraction = 0.99999: leaves", ["at least one"]),
    "timeout 0": ({"server.round_timeout_s": 0.0}, "server.round_timeout_s = 0.0: must be > 0", []),
    "workers 0": ({"engine.workers": 0}, "engine.workers = 0: must be >= 1", []),
    "workers 65": ({"engine.workers": 65}, "engine.workers = 65: must be <= 64", []),
    "workers half": ({"engine.workers": 1.5}, "engine.workers = 1.5: must be a whole number", []),
    "dtype float16": ({"engine.dtype": "float16"}, "engine.dtype = 'float16': must be 'float32' or 'float64'", []),
    "device cuda": ({"engine.device": "cuda"}, "engine.device = 'cuda': torch finds no CUDA device", ["'auto'"]),
    "every 0": ({"evaluate.every": 0}, "evaluate.every = 0: must be >= 1", []),
    "bad name": ({"name": "my run/1"}, "name = 'my run/1': letters, digits", []),
    "diurnal mean": ({"clients.availability": {"kind": "diurnal", "mean": 0.9}}, "clients.availability.mean = 0.9:", ["0.625"]),
    # What stands against something else.
    "epochs and steps": ({"training": {"epochs": 1, "steps": 3, "optimizer": {"kind": "sgd", "lr": 0.1}}}, "training: give either epochs or steps (both given)", []),
    "stop with two bounds": ({"stop": {"metric": "loss", "at_least": 0.5, "at_most": 1.0}}, "stop: give one of at_least, at_most", []),
    "stop without a bound": ({"stop.metric": "loss"}, "stop: give one of at_least, at_most, plateau, noise_floor (none given)", []),
    "stop two ways": ({"stop": {"metric": "loss", "at_most": 0.1, "plateau": 3}}, "stop: give one of", ["(at_most and plateau given)"]),
    "stop without a metric": ({"stop": {"plateau": 3}}, "stop: give the metric that plateau is of", []),
    "stop in noise by a metric": ({"stop": {"noise_floor": 3, "metric": "loss"}}, "stop: noise_floor goes by no metric", []),
    "stop by least alone": ({"stop": {"metric": "loss", "at_most": 0.1, "least": 0.1}}, "stop: least has no effect without plateau", []),
    "stop in the noise of one": (
        {"stop": {"noise_floor": 5}, "monitor": {}, "server.strategy": {"kind": "FedAvg", "clients_per_round": 1, "min_train_nodes": 1}},
        "stop.noise_floor = 5: goes by the noise between clients of a round, and a round asks 1 client", ["clients_per_round"],
    ),
    "stop in unseen noise": ({"stop": {"noise_floor": 5}}, "stop.noise_floor = 5: goes by the noise between clients", ["[monitor]"]),
    "monitor of one example": ({"monitor": {"examples": 1}}, "monitor.examples = 1", []),
    "monitor of no task": ({"monitor": {"tasks": 0.0}}, "monitor.tasks = 0.0", []),
    "stop metric unknown": ({"stop": {"metric": "acuracy", "at_least": 0.5}}, "stop.metric = 'acuracy'", ["'accuracy'", "loss"]),
    "more clients than examples": ({"clients.count": 500}, "clients.count = 500: more clients than the 180 examples", []),
    "leaf with a partition": ({"data.source.kind": "leaf_synthetic"}, "data.partition: 'leaf_synthetic' makes each client's", ["leave it out"]),
    "natural without groups": ({"data.partition.kind": "natural"}, "data.partition.kind = 'natural'", ["client"]),
    "shards too many": ({"data.partition": {"kind": "shards", "per_client": 100}}, "data.partition.per_client = 100", ["180", "At most 30"]),
    "nesterov alone": ({"training.optimizer.nesterov": True}, "training.optimizer.nesterov = true: needs momentum", ["0.9"]),
    # Strategies.
    "FedAvgg": (strategy("FedAvgg"), "server.strategy.kind = 'FedAvgg': no such strategy.", ["Did you mean 'FedAvg'?"]),
    "FedXgbBagging": (strategy("FedXgbBagging"), "server.strategy.kind = 'FedXgbBagging'", ["trees", "does not train"]),
    "strategy argument": (strategy("FedAvg", beta_1=0.9), "server.strategy.beta_1: 'FedAvg' has no such setting.", ["fraction_train", "clients_per_round"]),
    "strategy argument type": (strategy("FedAvg", fraction_train="all"), "server.strategy.fraction_train = 'all': must be", ["a number"]),
    "fraction_evaluate": (strategy("FedAvg", fraction_evaluate=0.5), "server.strategy.fraction_evaluate = 0.5:", ["evaluate.federated_fraction"]),
    "too many liars for Krum": (strategy("Krum", num_malicious_nodes=5), "server.strategy.num_malicious_nodes = 5:", ["at least 13", "6 clients"]),
    "too many liars for Bulyan": (strategy("Bulyan", num_malicious_nodes=1), "server.strategy.num_malicious_nodes = 1:", ["at least 7"]),
    "more chosen than asked": (strategy("MultiKrum", num_nodes_to_select=9), "server.strategy.num_nodes_to_select = 9:", ["6 clients"]),
    "nobody trains": (strategy("FedAvg", fraction_train=0.0, min_train_nodes=0), "server.strategy.fraction_train = 0.0:", ["no client"]),
    "fraction_train 1.5": (strategy("FedAvg", fraction_train=1.5), "server.strategy.fraction_train = 1.5: must be > 0 and <= 1", []),
    "clients_per_round and fraction": (strategy("FedAvg", clients_per_round=3, fraction_train=0.5), "server.strategy.clients_per_round = 3:", ["fraction_train"]),
    "clients_per_round 0": (strategy("FedAvg", clients_per_round=0), "server.strategy.clients_per_round = 0: must be a whole number >= 1", []),
    "clients_per_round too many": (strategy("FedAvg", clients_per_round=7), "server.strategy.clients_per_round = 7: needs more clients than there are", ["clients.count = 6"]),
    "min_train_nodes too many": (strategy("FedAdam", min_train_nodes=7), "server.strategy.min_train_nodes = 7: needs more clients", ["clients.count = 6"]),
    "one client": ({"clients.count": 1}, "server.strategy.min_available_nodes = 2: needs more clients", ["clients.count = 1"]),
    "strategy without its argument": (strategy("QFedAvg"), "server.strategy.client_learning_rate: missing.", ["'QFedAvg' needs"]),
    "weight that is not reported": (strategy("FedAvg", weighted_by_key="examples"), "server.strategy.weighted_by_key = 'examples'", ["'num-examples'"]),
    "beta_1 of 1": (strategy("FedAdam", beta_1=1.0), "server.strategy.beta_1 = 1.0: must be >= 0 and < 1", []),
    "eta nan": (strategy("FedAdam", eta=float("nan")), "server.strategy.eta = nan: must be a finite number", []),
    "private without inner": (strategy(DP, noise_multiplier=0.5, clipping_norm=1.0, num_sampled_clients=6), "server.strategy.strategy: missing.", ["{ kind = 'FedAvg' }"]),
    "private around text": (private(strategy="FedAvg"), "server.strategy.strategy = 'FedAvg': must be", ["{ kind = 'FedAvg' }"]),
    "private around nonsense": (private(strategy={"kind": "FedAvgg"}), "server.strategy.strategy.kind = 'FedAvgg'", ["'FedAvg'"]),
    "private around private": (private(strategy=private()[STRATEGY]), "server.strategy.strategy.kind = 'Diff", ["is a wrapper itself", "FedAvg,"]),
    "noise negative": (private(noise_multiplier=-1.0), "server.strategy.noise_multiplier = -1.0: must be >= 0", []),
    "clipping norm 0": (private(clipping_norm=0.0), "server.strategy.clipping_norm = 0.0: must be > 0", []),
    "not a strategy": (strategy("plugins_of_tests:Timid"), "server.strategy.kind = 'plugins_of_tests:Timid'", ["Strategy"]),
    "a number for a strategy": (strategy("plugins_of_tests:number"), "server.strategy.kind = 'plugins_of_tests:number'", ["float"]),
    # Models and what else a reader brings along.
    "cnn on flat data": ({"data": {"source": {"kind": "leaf_synthetic"}}, KIND: "cnn"}, "model.kind = 'cnn': wants images", ["'mlp' and 'logreg'"]),
    "module not there": ({KIND: "no_such_module:net"}, "model.kind = 'no_such_module:net': cannot import 'no_such_module'", []),
    "module that breaks": ({KIND: "plugins_that_break:net"}, "model.kind = 'plugins_that_break:net': cannot import", ["a_package_that_is_not_there"]),
    "name not there": ({KIND: "plugins_of_tests:nrom"}, "model.kind = 'plugins_of_tests:nrom'", ["Did you mean 'norm'?"]),
    "path without a name": ({KIND: "plugins_of_tests:"}, "model.kind = 'plugins_of_tests:'", ["'package.module:name'"]),
    "path without a module": ({KIND: ":norm"}, "model.kind = ':norm'", ["'package.module:name'"]),
    "a number for a model": ({KIND: "plugins_of_tests:number"}, "model.kind = 'plugins_of_tests:number'", ["float"]),
    "not a module": ({KIND: "plugins_of_tests:text"}, "model.kind = 'plugins_of_tests:text': returned a str", ["torch.nn.Module"]),
    "model that raises": ({KIND: "plugins_of_tests:raises"}, "model.kind = 'plugins_of_tests:raises'", ["KeyError", "weights.pt"]),
    "model's setting missing": ({KIND: "plugins_of_tests:wide"}, "model.width: missing.", ["needs it"]),
    "no parameters": ({KIND: "plugins_of_tests:nothing"}, "model.kind = 'plugins_of_tests:nothing': has no trainable parameter", []),
    "BatchNorm alone": ({KIND: "plugins_of_tests:norm", "training.batch_size": 1}, "training.batch_size = 1: gives client 0", ["one example", "GroupNorm"]),
    "BatchNorm that counts": ({KIND: "plugins_of_tests:counting"}, "model.kind = 'plugins_of_tests:counting': 1 has momentum = None", ["0.1 is usual"]),
    "model of the wrong width": ({KIND: "plugins_of_tests:narrow"}, "model.kind: Sequential does not take examples", ["shape (1, 8, 8)"]),
    "model without work": ({KIND: "plugins_of_tests:Free"}, "model.kind: Free counts zero", ["flops_per_example"]),
    "loss is a vector": ({"training.objective": {"kind": "plugins_of_tests:Vector"}}, "training.objective.kind = 'plugins_of_tests:Vector': its loss() gives float32 of shape (2,)", ["without dimensions"]),
    "optimizer is a table": ({"training.optimizer": {"kind": "plugins_of_tests:adam", "lr": 0.1}}, "training.optimizer.kind = 'plugins_of_tests:adam'", ["sgd"]),
    "source is a model": ({"data.source": {"kind": "plugins_of_tests:text", "shape": 1, "outputs": 2}}, "data.source.kind = 'plugins_of_tests:text'", ["Pool"]),
    # Streams.
    "unknown trigger": (online(stream__trigger={"kind": "counts", "examples": 3}), "stream.trigger.kind = 'counts': no such trigger.", ["'count'"]),
    "unknown trigger setting": (online(stream__trigger={"kind": "count", "examples": 3, "exampels": 3}), "stream.trigger.exampels: 'count' has no such setting.", ["examples"]),
    "trigger of nothing": (online(stream__trigger={"kind": "count", "examples": 0}), "stream.trigger.examples = 0: must be >= 1", []),
    "trigger at no time": (online(stream__trigger={"kind": "time", "every_s": 0}), "stream.trigger.every_s = 0: must be > 0", []),
    "capacity 0": (online(clients__replay={"kind": "reservoir", "capacity": 0}), "clients.replay.capacity = 0: must be >= 1", ["examples"]),
    "both capacities": (online(clients__replay={"kind": "cbrs", "capacity": 9, "capacity_bytes": 999}), "clients.replay.capacity: both are given.", ["one of the two"]),
    "no capacity": (online(clients__replay={"kind": "fifo"}), "clients.replay.capacity: neither is given.", ["capacity_bytes"]),
    "a ring too small": (online(clients__replay={"kind": "ring", "capacity": 9}), "clients.replay.capacity = 9:", ["At least 10"]),
    "unknown replay": (online(clients__replay={"kind": "reservior", "capacity": 9}), "clients.replay.kind = 'reservior': no such replay.", ["'reservoir'"]),
    "replay without a stream": ({"clients.replay": {"kind": "reservoir", "capacity": 9}}, "clients.replay: works on streams only.", ["[stream]"]),
    "rehearsal without a stream": ({"training.rehearsal": {"kind": "er"}}, "training.rehearsal: works on streams only.", ["[stream]"]),
    "detector without a stream": ({"clients.detector": {"kind": "adwin"}}, "clients.detector: works on streams only.", ["[stream]"]),
    "rehearsal without a memory": ({"stream": POISSON, "training.rehearsal": {"kind": "der"}}, "training.rehearsal.kind = 'der': rehearses what", ["clients.replay"]),
    "nothing but replay": (online(training__rehearsal={"kind": "er", "ratio": 1.0}), "training.rehearsal.ratio = 1.0: must be", ["< 1"]),
    "union and losses": (online(training__rehearsal={"kind": "union"}, clients__replay={"kind": "mir", "capacity": 9}), "training.rehearsal.kind = 'union'", ["losses", "'er'"]),
    "age and losses": (online(clients__replay={"kind": "mir", "capacity": 9, "max_age_s": 3.0}), "clients.replay.max_age_s:", ["losses"]),
    "reaction without a detector": (online(clients__reaction={"kind": "adapt"}), "clients.reaction: reacts to a detector, and there is none.", ["clients.detector"]),
    "reaction replays only": (online(clients__detector={"kind": "ddm"}, clients__reaction={"kind": "adapt", "replay_share": 1.0}), "clients.reaction.replay_share = 1.0: must be < 1", []),
    "reaction replays nothing": ({"stream": POISSON, "clients.detector": {"kind": "ddm"}, "clients.reaction": {"kind": "adapt", "replay_share": 0.5}}, "clients.reaction.replay_share = 0.5: has no effect", ["clients.replay"]),
    "reaction forgets nothing": ({"stream": POISSON, "clients.detector": {"kind": "ddm"}, "clients.reaction": {"kind": "adapt", "buffer": "reset"}}, "clients.reaction.buffer:", ["clients.replay"]),
    "reaction shrinks vectors": (online(clients__replay={"kind": "gss", "capacity": 9}, clients__detector={"kind": "ddm"}, clients__reaction={"kind": "adapt", "buffer": "shrink"}), "clients.reaction.buffer = 'shrink'", ["'reset'"]),
    "by a class that is not there": ({"evaluate.by_classes": [[0, 1], [12]]}, "evaluate.by_classes = [[0, 1], [12]]: there is no class 12", ["0 to 9"]),
    "by no class": ({"evaluate.by_classes": [[]]}, "evaluate.by_classes.0 = []", ["at least 1"]),
    "BatchNorm on a stream": (online(model={"kind": "plugins_of_tests:norm"}), "model.kind: Sequential cannot train on one example", ["more than 1 value", "drop_last", "GroupNorm"]),
    "no epoch": ({"training.epochs": 0}, "training.epochs = 0: must be > 0", []),
    "epochs in words": ({"training.epochs": "half"}, "training.epochs = 'half': must be", ["a number"]),
    "half an epoch and stopping": ({"training.epochs": 1.5, "training.stopping": {"kind": "patience"}}, "training.stopping: stops after an epoch, and training.epochs = 1.5", ["whole number"]),
    "sampling by nobody": ({"training.sampling": "shuffle"}, "training.sampling = 'shuffle': must be 'reshuffle', 'replacement' or 'sequential'", []),
    "draws from all": ({"training.sampling": "replacement", "training.batch_size": "full"}, "training.sampling = 'replacement': draws each", ["'full'"]),
    "accumulates all": ({"training.accumulate": 2, "training.batch_size": "full"}, "training.accumulate = 2: makes an update", ["'full'"]),
    "accumulates nothing": ({"training.accumulate": 0}, "training.accumulate = 0: must be >= 1", []),
    "shuffles a stream": (online(training__sampling="reshuffle"), "training.sampling = 'reshuffle': on a [stream]", ["'sequential'", "'union'"]),
    "draws from a stream": (online(training__sampling="replacement"), "training.sampling = 'replacement': on a [stream]", ["as they arrived"]),
    "accumulates losses": (online(training__accumulate=2, clients__replay={"kind": "mir", "capacity": 9}), "training.accumulate = 2: makes an update", ["clients.replay.kind = 'mir'", "'reservoir'"]),
    "accumulates two means": (online(training__accumulate=2, training__rehearsal={"kind": "er", "mix": "sum"}), "training.accumulate = 2: makes an update", ["mix = 'sum'", "'concat'"]),
    "accumulates DER": (online(training__accumulate=2, training__rehearsal={"kind": "der"}), "training.accumulate = 2: makes an update", ["training.rehearsal.kind = 'der'"]),
    "predicts by nobody": (online(stream__predict="global"), "stream.predict = 'global': must be 'received' or 'local'", []),
    "cuda and workers": ({"engine.device": "cuda", "engine.workers": 2}, "engine.device = 'cuda': torch finds no", ["'cpu' always"]),
    # Files.
    "file missing": ({"data.source": {"kind": "idx", "path": "mnits"}}, "data.source.path = 'mnits': not found.", ["FEDSIM_DATA"]),
    "path too long": ({"data.source": {"kind": "npz", "path": "x" * 5000}}, "data.source.path = 'xxxx", ["File name too long"]),
    "idx corrupt": ({"data.source": {"kind": "idx", "path": "corrupt"}}, "data.source.path = 'corrupt':", ["train-images-idx3-ubyte", "cut short"]),
    "csv without its label": ({"data.source": {"kind": "csv", "path": "a.csv", "label": "clas"}}, "data.source.label = 'clas': no such column", ["'class'"]),
    "csv without a number": ({"data.source": {"kind": "csv", "path": "b.csv", "label": "class"}}, "data.source.path = 'b.csv': line 3, column 'x'", ["'one'"]),
}  # fmt: skip


FINE: dict[str, dict[str, Any]] = {
    "a stream shorter than its trigger": online(stream__trigger={"kind": "count", "examples": 1000}),
    "full batches": online(training__batch_size="full"),
    "half an epoch, as it came": online(training__epochs=0.5, training__sampling="sequential"),
    "momentum": online(training__optimizer={"kind": "sgd", "lr": 0.1, "momentum": 0.9}),
    "a class that the ring never sees": online(
        clients__replay={"kind": "ring", "capacity": 10}, stream={**POISSON, "order": {"kind": "class_incremental", "tasks": [[0, 1]]}}
    ),
    "one new example at a time": online(training__batch_size=1, stream__trigger={"kind": "arrival"}),
}  # fmt: skip


@pytest.mark.parametrize("name", FINE)
def test_what_looks_odd_on_a_stream_and_works(name: str, go: Any) -> None:
    """Odd scenarios that make sense are run to their end: all that comes is trained on."""
    run = go({**FINE[name], "server.rounds": 3})

    assert "done" == run.status
    assert 0 < len(run.tested) <= 180
    assert run.tasks[run.tasks.outcome == "arrived"].loss.notna().all()


def one_line(answer: Any) -> str:
    """Assert that *answer* is exit code 2 with one line for the reader; return the line without its prefix."""
    assert "Traceback" not in answer.err
    assert (2, "", 1) == (answer.code, answer.out, len(answer.err.splitlines())), answer
    assert answer.err.startswith("fedsim: ")
    return answer.err.removeprefix("fedsim: ").rstrip("\n")


@pytest.mark.parametrize("case", CASES)
def test_one_line_says_what_is_wrong_and_what_would_work(
    case: str, cli: Callable[..., Any], scenario_file: Callable[..., Path], tmp_path: Path
) -> None:
    """A malformed scenario ends with 2 and one line: the dotted key, the value, what would have worked; nothing is written."""
    overrides, begins, says = CASES[case]
    _data_files(tmp_path)
    line = one_line(cli("check", scenario_file(overrides)))

    assert line.startswith(begins), line
    assert [] == [words for words in says if words not in line], line
    assert len(line) < 600 and line.endswith((".", ")")), line
    assert not (tmp_path / "runs").exists()


def _data_files(folder: Path) -> None:
    (folder / "corrupt").mkdir()
    (folder / "corrupt" / "train-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x0803, 10, 28, 28) + bytes(100))
    (folder / "corrupt" / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x0801, 10) + bytes(10))
    (folder / "a.csv").write_text("x,class\n1,a\n2,b\n")
    (folder / "b.csv").write_text("x,class\n1,a\none,b\n")


@pytest.mark.parametrize(
    ("key", "needs"),
    [("data", "source"), ("clients", "count"), ("model", "kind"), ("training", "optimizer"), ("server", "rounds"),
     ("clients.count", "missing"), ("server.rounds", "missing"), ("model.kind", "missing"), ("name", "missing")],
)  # fmt: skip
def test_what_is_missing_is_named(
    key: str, needs: str, cli: Callable[..., Any], scenario_file: Callable[..., Path]
) -> None:
    """A section or key that is missing is named, and a missing section with a key that it needs."""
    line = one_line(cli("check", scenario_file(without=(key,))))

    assert line.startswith(f"{key}: missing."), line
    assert needs in line


def test_neither_epochs_nor_steps(cli: Callable[..., Any], scenario_file: Callable[..., Path]) -> None:
    """Training without epochs or steps is refused, and the line shows one that would do."""
    line = one_line(cli("check", scenario_file(without=("training.epochs",))))

    assert "training: give either epochs or steps (neither given), like epochs = 1." == line


@pytest.mark.parametrize(
    ("words", "begins", "says"),
    [
        (["--set", "server.rounds"], "--set 'server.rounds'", "training.optimizer.lr=0.05"),
        (["--set", "=3"], "--set '=3'", "training.optimizer.lr=0.05"),
        (["--set", "server.rounds.many=3"], "server.rounds.many: cannot be set", "server.rounds = 2 is not a table"),
        (["--set", "server.rounds=0"], "server.rounds = 0: must be >= 1", ""),
        (["--set", "server..rounds=3"], "--set 'server..rounds=3'", "training.optimizer.lr=0.05"),
        (["--set", "clients.count=many"], "clients.count = 'many': must be a whole number", ""),
        (["--seed", "-3"], "seed = -3: must be >= 0", ""),
        (["--seed", "abc"], "Invalid value for '--seed': 'abc'", "--help"),
        (["--sed", "3"], "No such option '--sed'", "'--seed'"),
    ],
)
def test_options_are_checked_as_the_file_is(
    words: list[str], begins: str, says: str, cli: Callable[..., Any], scenario_file: Callable[..., Path]
) -> None:
    """A wrong option ends like a wrong scenario: with 2 and one line."""
    line = one_line(cli("check", scenario_file(), *words))

    assert line.startswith(begins) and says in line, line


@pytest.mark.parametrize(
    ("words", "says"),
    [(["rnu", "x.toml"], "run"), (["run"], "SCENARIO"), (["check", "a.toml", "b.toml"], "(b.toml). '"), (["chek"], "'check', 'schema'? '")],
)
def test_wrong_commands_get_one_line(words: list[str], says: str, cli: Callable[..., Any]) -> None:
    """An unknown command, a missing argument and one too many end with 2 and one line that points to --help."""
    line = one_line(cli(*words))

    assert says in line and "--help" in line and line.count("Did you mean") <= 1, line


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("text.toml", "name = quickstart\n", "not valid TOML"),
        ("bytes.toml", "name = '\udcff\udcfe'\n", "not valid TOML"),
        ("twice.toml", "seed = 1\nseed = 2\n", "not valid TOML"),
        ("tinny.toml", None, "no such file. Did you mean"),
        ("nowhere.toml", None, "no such file. A scenario"),
        ("sweep.toml", "scenario = 'tiny.toml'\n[search]\nkind = 'grid'\n", "is the file of a sweep, not of a scenario"),
        ("folder", ..., "is a folder"),
    ],
)
def test_a_file_that_is_no_scenario(
    file: str, content: Any, says: str, cli: Callable[..., Any], scenario_file: Callable[..., Path], tmp_path: Path
) -> None:
    """What is not TOML, not a file, or not there is named, with the nearest scenario beside it."""
    scenario_file()
    if content is ...:
        (tmp_path / file).mkdir()
    elif content is not None:
        (tmp_path / file).write_text(content, encoding="utf-8", errors="surrogateescape")
    line = one_line(cli("check", tmp_path / file))

    assert line.startswith(f"{tmp_path / file}: ") and says in line, line


def test_an_empty_file_lacks_everything(cli: Callable[..., Any], tmp_path: Path) -> None:
    """An empty scenario is told the first key that is missing, and which others are."""
    (tmp_path / "empty.toml").touch()
    line = one_line(cli("check", tmp_path / "empty.toml"))

    assert line.startswith("name: missing.") and line.endswith("(also wrong: data, clients, model, training, server)"), line


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_out_is_never_written_over(
    kind: str, cli: Callable[..., Any], scenario_file: Callable[..., Path], tmp_path: Path
) -> None:
    """A run folder that holds something, or is a file, is refused before anything is written."""
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
        (out / "mine.txt").write_text("precious")
    else:
        out.write_text("precious")
    line = one_line(cli("run", scenario_file(), "--out", out))

    assert line.startswith(f"{out}: is there already") and "new folder (--out, or in Python out=)" in line, line
    assert "precious" == (out / "mine.txt" if kind == "folder" else out).read_text()


def test_out_that_cannot_be_made(cli: Callable[..., Any], scenario_file: Callable[..., Path], tmp_path: Path) -> None:
    """A run folder that cannot be made is named in one line, without a traceback."""
    (tmp_path / "file").touch()
    answer = cli("run", scenario_file(), "--out", tmp_path / "file" / "run")

    assert f"{tmp_path / 'file'}: is a file, not a folder." in answer.err
    assert 0 != answer.code


@pytest.mark.parametrize("command", ["show", "verify", "report"])
def test_a_folder_that_is_no_run(command: str, cli: Callable[..., Any], tmp_path: Path) -> None:
    """What reads a run folder says in one line that this is none."""
    if command == "report":
        pytest.importorskip("fedsim.report.page")
    answer = cli(command, tmp_path)

    assert (2, 1) == (answer.code, len(answer.err.splitlines())), answer
    assert f"{tmp_path}: not a run folder" in answer.err
