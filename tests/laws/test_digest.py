"""The digest law: one seed, one digest, whatever is only a matter of how a run is computed, shown or scored.

And what must move it, does; what must not move time, does not.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import fedsim
from fedsim.core.keys import Key
from fedsim.cost.availability import availabilities
from fedsim.cost.compute import computes
from fedsim.cost.network import networks
from fedsim.data.synthetic import leaf_synthetic

TIMES = ["sent_s", "received_s", "started_s", "computed_s", "arrived_s"]
RAGGED = {"clients.count": 8, "data.test_fraction": 0.8, "data.partition": {"kind": "quantity", "sigma": 1.0}}
"""Eight clients of very different sizes, so that rows of a chunk end at different steps with short last batches."""
SKEWED = {"clients.count": 8, "data.test_fraction": 0.8, "data.partition": {"kind": "dirichlet", "alpha": 0.3}}
SAMPLED = {"server.strategy": {"kind": "FedAvg", "fraction_train": 0.5}}

Go = Callable[..., fedsim.Run]


def events(run: fedsim.Run) -> pd.DataFrame:
    """Return who was asked when, and every time of it."""
    return run.tasks[["message", "client", "number", "round", "outcome", *TIMES]]


# Same seed, same digest.


def test_same_seed_same_digest_in_two_processes(tiny: Callable[..., Any], go: Go, tmp_path: Path) -> None:
    """This process, and one with a PYTHONHASHSEED and a number of threads of its own, give the same digests, bit for bit."""
    code = "import sys, json, fedsim; run = fedsim.run(json.loads(sys.argv[1]), out=sys.argv[2]); print(run.digest, run.metrics_digest)"
    overrides = {**RAGGED, **SAMPLED, "model": {"kind": "mlp", "hidden": [8]}}
    said = subprocess.run(
        [sys.executable, "-c", code, json.dumps(tiny(overrides)), str(tmp_path / "other")],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "2"}, timeout=120, check=True,
    )  # fmt: skip
    here = go(overrides)

    assert os.environ.get("PYTHONHASHSEED") != "12345"
    assert [here.digest, here.metrics_digest] == said.stdout.split()


def test_a_second_run_gives_the_same_digest(go: Go) -> None:
    """A run leaves nothing behind in its process that moves the next one: a, b, a gives the digest of a twice."""
    first, other, again = go(SAMPLED), go({"training.optimizer.lr": 0.3}), go(SAMPLED)

    assert (first.digest, first.metrics_digest) == (again.digest, again.metrics_digest)
    assert first.digest != other.digest


def test_global_generators_are_left_alone(go: Go) -> None:
    """The caller's global random, numpy and torch generators neither move a run nor are moved by it."""
    import random

    import torch

    dp = {"kind": "DifferentialPrivacyServerSideFixedClipping", "noise_multiplier": 0.1, "clipping_norm": 1.0,
          "num_sampled_clients": 6, "strategy": {"kind": "FedAvg"}}  # fmt: skip
    digests: list[str] = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = (random.getstate(), repr(np.random.get_state(legacy=False)), torch.get_rng_state().tolist())
        digests.append(go({"server.strategy": dp}).digest)
        after = (random.getstate(), repr(np.random.get_state(legacy=False)), torch.get_rng_state().tolist())

        assert before == after
    assert digests[0] == digests[1]


def test_display_moves_nothing(go: Go) -> None:
    """Somebody who watches sees every round, and the digests are those of an unwatched run."""
    seen: list[int] = []
    watched, alone = go(watch=lambda where: seen.append(where.round)), go()

    assert [0, 1, 2] == seen
    assert (alone.digest, alone.metrics_digest) == (watched.digest, watched.metrics_digest)


MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"model": {"kind": "mlp", "hidden": [16]}},
    "cnn": {"model": {"kind": "cnn"}, "data.test_fraction": 0.97, "server.rounds": 1},
    "momentum and weight decay": {
        "training.optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True},
    },
    "FedProx": {"server.strategy": {"kind": "FedProx", "proximal_mu": 0.5}},
    "full batches": {"training.batch_size": "full", "training.epochs": 2},
    "QFedAvg": {"server.strategy": {"kind": "QFedAvg", "client_learning_rate": 0.1}},
}  # fmt: skip


@pytest.mark.parametrize("name", ["mlp", "cnn", "FedProx", "full batches"])
def test_chunks_move_no_bit(name: str, go: Go) -> None:
    """Ragged clients trained one by one, seven at a time, or all together give the same digests."""
    runs = [go({**RAGGED, **MODELS[name], "engine.chunk": chunk}) for chunk in ((1, 7, 64) if name == "mlp" else (1, 64))]

    assert 6 <= runs[0].tasks.examples.nunique()
    assert 1 == len({(run.digest, run.metrics_digest) for run in runs})


def test_chunks_move_no_bit_under_label_skew(go: Go) -> None:
    """Clients of one size with Dirichlet label skew give the same digests one by one, seven at a time, or together."""
    runs = [go({**SKEWED, "engine.chunk": chunk}) for chunk in (1, 7, 64)]

    assert 1 == len({(run.digest, run.metrics_digest) for run in runs})


def test_scoring_every_fifth_round_moves_no_bit(go: Go) -> None:
    """Central evaluation every round, every fifth, or only at the end: same digest, and the same last score."""
    runs = [go({"server.rounds": 6, "evaluate.every": every}) for every in (1, 5, 100)]

    assert 1 == len({run.digest for run in runs})
    assert 1 == len({run.final["accuracy"] for run in runs})
    assert [[0, 1, 2, 3, 4, 5, 6], [0, 5, 6], [0, 6]] == [run.series("loss")["round"].tolist() for run in runs]


# What must move it, does.


@pytest.mark.parametrize(
    "change",
    [{"seed": 8}, {"training.optimizer.lr": 0.10000001}, {"clients.network.latency_s": 0.0600001}, {"server.rounds": 3},
     {"training.batch_size": 9}, {"server.strategy": {"kind": "FedAvg", "fraction_train": 0.5}}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_matters_moves_the_digest(change: dict[str, Any], go: Go) -> None:
    """Another seed, learning rate, latency, length, batch size or sample gives another digest."""
    assert go().digest != go(change).digest


def test_federated_evaluation_leaves_training_numbers(go: Go) -> None:
    """Asking clients to evaluate takes time, and moves no draw and no number of training."""
    alone = go({"evaluate.client_test_fraction": 0.2})
    asked = go({"evaluate.federated_fraction": 1.0, "server.rounds": 2, "evaluate.client_test_fraction": 0.2})
    train = asked.tasks[asked.tasks.kind == "train"]

    assert alone.tasks.client.tolist() == train.client.tolist()
    assert alone.manifest["virtual_s"] < asked.manifest["virtual_s"]


# What must not move time, does not.


@pytest.mark.parametrize(
    "change",
    [{"training.optimizer.lr": 0.5}, {"server.strategy": {"kind": "FedAdam", "fraction_train": 0.5}},
     {"server.strategy": {"kind": "FedMedian", "fraction_train": 0.5}}],
    ids=["lr", "FedAdam", "FedMedian"],
)  # fmt: skip
def test_numbers_move_no_event(change: dict[str, Any], go: Go) -> None:
    """Another learning rate or server optimizer asks the same clients at the same moments, to the last bit."""
    common = {**RAGGED, **SAMPLED, "server.rounds": 4, "clients.compute": {"kind": "exponential", "gflops": 0.001}}
    before, after = go(common), go({**common, **change})

    pd.testing.assert_frame_equal(events(before), events(after), check_exact=True)
    assert before.digest != after.digest


DEVICES: dict[str, Callable[[Key, int], Any]] = {
    "lognormal devices": lambda key, n: computes.get("lognormal", at="")(key, gflops=5.0, sigma=0.6).gflops(np.arange(n)),
    "exponential tasks": lambda key, n: [
        computes.get("exponential", at="")(key, gflops=5.0).seconds(client, task, 1e9) for client in range(n) for task in (0, 3)
    ],
    "links": lambda key, n: [
        (link.down_s(c, 10**6), link.up_s(c, 10**6))
        for link in [networks.get("lognormal", at="")(key, down_mbps=6.0, up_mbps=2.0, sigma=0.8, latency_s=0.06)]
        for c in range(n)
    ],
    "onoff": lambda key, n: _comings(availabilities.get("onoff", at="")(key, mean_on_s=60.0, mean_off_s=40.0), n),
    "diurnal": lambda key, n: _comings(availabilities.get("diurnal", at="")(key), n),
}  # fmt: skip


def _comings(model: Any, clients: int) -> Any:
    return np.stack([model.available(np.arange(clients), now) for now in np.linspace(0, 86_400, 40)], axis=1)


@pytest.mark.parametrize("name", DEVICES)
def test_a_new_client_leaves_the_others(name: str) -> None:
    """Adding client 101 leaves the device, link and availability of clients 1 to 100 as they were, to the last bit."""
    of, key = DEVICES[name], Key(7).fold(name)
    few, many = np.asarray(of(key, 100)), np.asarray(of(key, 101))

    assert np.array_equal(few, many[: len(few)])
    assert len(np.unique(few)) > 1


def test_a_new_client_leaves_the_others_data_where_it_is_made() -> None:
    """Data made client by client depend on no other client: asked alone, late, or among many, they are the same."""
    one, two = leaf_synthetic(1, 1), leaf_synthetic(1, 1)
    _ = [two.client(client) for client in (100, 3, 7)]

    for client in (0, 7, 99):
        a, b = one.client(client), two.client(client)
        assert np.array_equal(a.x, b.x) and np.array_equal(a.y, b.y)
    assert one.sizes(np.arange(100)).tolist() == one.sizes(np.arange(101))[:100].tolist()


def test_a_new_client_leaves_the_others_in_a_run(go: Go) -> None:
    """In a run with a client more, who is in the fleet from the start, the first six take exactly as long as before."""
    leaf = {"data": {"source": {"kind": "leaf_synthetic"}}, "clients.availability": {"kind": "always"}}
    six, seven = go(leaf).tasks, go({**leaf, "clients.count": 7}).tasks
    columns = ["client", "examples", "steps", "flops", *TIMES]
    first = six[six["round"] == 1][columns].sort_values("client", ignore_index=True)
    same = seven[(seven["round"] == 1) & (seven.client < 6)][columns].sort_values("client", ignore_index=True)

    pd.testing.assert_frame_equal(first, same, check_exact=True)


# Teeth: the comparison rejects luck that is consumed instead of named.


class Consumed(Key):
    """A key as it must not be: draws come from one stream, in the order of the calls."""

    stream: Iterator[float] = iter(())

    def uniform(self, ids: Any) -> Any:
        return np.array([next(Consumed.stream) for _ in np.atleast_1d(ids)])

    def uniform_at(self, *_: Any) -> float:
        return next(Consumed.stream)

    def fold(self, *parts: str | int) -> Key:
        return self

    @classmethod
    def begin(cls) -> Consumed:
        draws = np.random.default_rng(0)
        cls.stream = iter(lambda: float(draws.uniform(0.01, 0.99)), None)
        return cls(0)


@pytest.mark.parametrize("name", sorted(set(DEVICES) - {"lognormal devices"}))
def test_teeth_draws_in_call_order_are_caught(name: str) -> None:
    """A key that draws in the order of calls gives the others another link, task time or availability; the law sees it."""
    of = DEVICES[name]
    few, many = np.asarray(of(Consumed.begin(), 100)), np.asarray(of(Consumed.begin(), 101))
    in_order = name in ("exponential tasks", "links")  # Asked client by client, the new one comes last: ask twice.
    again = np.asarray(of(Consumed(0), 100)) if in_order else many[: len(few)]

    assert not np.array_equal(few, again)


def test_teeth_a_run_that_consumes_its_luck_is_caught(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """With task times from one shared stream, a federated evaluation in between moves the times of training; with names not."""
    exponential = type(computes.get("exponential", at="")(Key(0), gflops=1.0))
    draws = np.random.default_rng(0)
    common = {"clients.compute": {"kind": "exponential", "gflops": 0.001}, "server.rounds": 2}
    asking = {**common, "evaluate.federated_fraction": 1.0}

    def durations(run: fedsim.Run) -> list[float]:
        train = run.tasks[run.tasks.kind == "train"].sort_values(["round", "client"])
        return np.round(((train.computed_s - train.started_s) / train.flops).to_numpy() * 1e12).tolist()

    assert durations(go(common)) == durations(go(asking))

    monkeypatch.setattr(exponential, "seconds", lambda self, client, task, flops, steps: draws.exponential() * flops / 1e6)
    assert durations(go(common)) != durations(go(asking))


def test_teeth_a_chunk_dependent_step_is_caught(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step whose last bit depends on how many rows are stacked, as grouped convolutions have it, gives another digest."""
    from fedsim.learn.engine.rows import Rows

    step = Rows.step

    def sloppy(self: Rows, rows: Any, gradients: list[Any], at: int, rate: float, ours: Any = ()) -> None:
        step(self, rows, [gradient * (1 + 1e-7 * (len(gradient) > 1)) for gradient in gradients], at, rate, ours)

    monkeypatch.setattr(Rows, "step", sloppy)
    heavy = {**RAGGED, "training.optimizer.momentum": 0.5}  # Plain SGD's update is inside the compiled step.
    one, seven = (go({**heavy, "engine.chunk": chunk}) for chunk in (1, 7))

    assert one.digest != seven.digest


def test_a_digest_covers_every_column(go: Go) -> None:
    """The hash chain over the journal's training rows and the final parameters is the digest, so no column is left out."""
    from fedsim.learn.work import digest_of
    from fedsim.record.digest import TASK, Chain
    from fedsim.record.journal import read
    from fedsim.sim.rows import TaskRow

    run = go()
    columns, rows = read(run.path, "tasks")
    chain = Chain()
    for row in rows:
        chain.add(*row[: len(TASK)])  # Those that came later are at their default.
    chain.add(digest_of(run.params()))

    assert [field.name for field in dataclasses.fields(TaskRow)] == columns
    assert run.digest == chain.value
