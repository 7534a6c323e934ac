"""Every stock strategy does in the simulator what it does outside it, and does it again."""

import gc
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import QFedAvg

from fedsim.core.errors import ScenarioError
from fedsim.flower import compat, compat_steps, records
from fedsim.learn.engine.queue import here
from fedsim.scenario.build import build
from fedsim.scenario.load import load
from fedsim.sim.grid import VirtualGrid
from fedsim.strategy import stock

SETTINGS: dict[str, dict[str, Any]] = {
    "FedProx": {"proximal_mu": 0.5},
    "FedAvgM": {"server_momentum": 0.9},
    "QFedAvg": {"client_learning_rate": 0.1, "q": 0.2},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 2},
    "Bulyan": {"num_malicious_nodes": 0},
    "BulyanIterated": {"num_malicious_nodes": 0},
    "AdaptiveClipping": {"noise_multiplier": 0.1, "num_sampled_clients": 6},
    "FixedClipping": {"noise_multiplier": 0.1, "clipping_norm": 0.5},
    "DifferentialPrivacyServerSideFixedClipping": {"noise_multiplier": 0.1, "clipping_norm": 0.5, "num_sampled_clients": 6},
    "DifferentialPrivacyClientSideFixedClipping": {"noise_multiplier": 0.1, "clipping_norm": 0.5, "num_sampled_clients": 6},
    "DifferentialPrivacyServerSideAdaptiveClipping": {"noise_multiplier": 0.1, "num_sampled_clients": 6},
    "DifferentialPrivacyClientSideAdaptiveClipping": {"noise_multiplier": 0.1, "num_sampled_clients": 6},
}  # fmt: skip


def table(kind: str) -> dict[str, Any]:
    """Return a strategy table for *kind* that six clients can satisfy."""
    inner = {"strategy": {"kind": "FedAvg"}} if kind in (*stock.PRIVATE, *stock.OUR_PRIVATE) else {}
    return {"kind": kind, **SETTINGS.get(kind, {}), **inner}


class Deaf:
    def task(self, row: Any) -> None: ...

    def round(self, row: Any) -> None: ...

    def version(self, row: Any) -> None: ...

    def heard(self, row: Any) -> None: ...


def plain(reply: Message, request: Message) -> Message:
    """Return *reply* made by hand of Flower's own, serialised objects."""
    content = RecordDict({
        "arrays": ArrayRecord({n: Array(np.array(a.numpy())) for n, a in reply.content["arrays"].items()}),
        "metrics": MetricRecord(dict(reply.content["metrics"])),
    })  # fmt: skip
    return Message(content, reply_to=request)


@pytest.mark.parametrize("kind", stock.names())
def test_a_strategy_aggregates_as_it_does_outside(kind: str, tiny: Any) -> None:
    """Two rounds in the grid and two on hand-made messages give the same bits."""
    parts = build(load(tiny({"server.strategy": table(kind)})))
    outside, inside = (
        compat_steps.name_draws(compat_steps.keep_types(built.strategy, parts.first), parts.key)
        for built in (stock.build(table(kind), 6, 0.0), parts.strategy)
    )
    grid = VirtualGrid(parts.fleet, here(parts.engine), Deaf(), mods=parts.strategy.mods, writable=parts.strategy.writable)
    ours: Any = compat.array_record(parts.first)
    theirs: Any = ArrayRecord({n: Array(a) for n, a in parts.first.items()})
    gc.freeze()  # As a run does: Flower collects garbage for every reply it turns into numpy arrays.
    for number in (1, 2):
        asked = inside.configure_train(number, ours, records.job_config(parts.job), grid)
        requests = list(outside.configure_train(number, theirs, records.job_config(parts.job), grid))
        replies = list(grid.send_and_receive(asked, timeout=1e6))
        by_node = {m.metadata.dst_node_id: m for m in requests}
        made = [plain(reply, by_node[reply.metadata.src_node_id]) for reply in replies]
        ours, _ = inside.aggregate_train(number, replies)
        theirs, _ = outside.aggregate_train(number, made)

        assert not any(reply.has_error() for reply in replies)
        assert 6 == len(replies)
        for name in parts.first:
            assert np.array_equal(theirs[name].numpy(), ours[name].numpy()), name
            assert not np.array_equal(parts.first[name], ours[name].numpy())
    gc.unfreeze()


@pytest.mark.parametrize("kind", stock.names())
def test_a_strategy_repeats(kind: str, go: Any) -> None:
    """Two runs with the same seed have one digest, noise included."""
    runs = [go({"server.strategy": table(kind)}) for _ in range(2)]

    assert runs[0].digest == runs[1].digest
    assert "done" == runs[0].status


def test_every_name_is_a_class_of_flower() -> None:
    """What we call stock is there, but for what is ours; only the tree strategies are left out."""
    from flwr.serverapp import strategy

    classes = {n for n in strategy.__all__ if n not in ("Strategy", "Result")}

    assert {"FedXgbBagging", "FedXgbCyclic"} == classes - set(stock.names())
    assert set(stock.OURS) == set(stock.names()) - classes


def test_clipping_mods_clip(go: Any, tiny: Any) -> None:
    """With client-side clipping at a tiny norm and no noise the model moves by no more than that norm a round."""
    private = {
        "kind": "DifferentialPrivacyClientSideFixedClipping", "noise_multiplier": 0.0, "clipping_norm": 1e-3,
        "num_sampled_clients": 6, "strategy": {"kind": "FedAvg"},
    }  # fmt: skip
    run = go({"server.strategy": private, "server.rounds": 1})
    first = build(load(tiny({}))).first
    moved = np.sqrt(sum(((run.params()[n] - first[n]) ** 2).sum() for n in first))

    assert 1e-4 < moved <= 1.001e-3


def test_the_proximal_term_is_the_squared_distance(go: Any, tiny: Any) -> None:
    """FedProx with mu = 1 and two full-batch steps ends where the squared term says, not where its root would."""
    settings = {
        "server.strategy": {"kind": "FedProx", "proximal_mu": 1.0}, "server.rounds": 1, "clients.count": 2,
        "training.epochs": 2, "training.batch_size": "full", "engine.dtype": "float64",
    }  # fmt: skip
    run = go(settings)
    import torch

    from fedsim.learn.models import load_params

    parts = build(load(run.manifest["scenario"]))
    ends, sizes = [], []
    for client in range(2):
        model = load_params(parts.model, parts.first)
        start = [p.detach().clone() for p in model.parameters()]
        places = parts.federation.train(client)
        pooled: Any = parts.federation.pooled
        x, y = torch.tensor(pooled.x[places]).double(), torch.tensor(pooled.y[places])
        for _ in range(2):
            model.zero_grad()
            distance = sum(((p - s) ** 2).sum() for p, s in zip(model.parameters(), start, strict=True))
            (torch.nn.functional.cross_entropy(model(x), y) + 0.5 * distance).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
        ends.append([p.detach().numpy().copy() for p in model.parameters()])
        sizes.append(len(places))
    expected = [np.average([a, b], axis=0, weights=sizes) for a, b in zip(*ends, strict=True)]

    assert all(np.abs(e - run.params()[n]).max() < 1e-12 for e, n in zip(expected, parts.first, strict=True))


def test_a_fedadam_step_is_flowers_own() -> None:
    """One step on planted deltas gives the numbers of METHODS X21: flwr's FedAdam corrects bias with exponent t + 1."""
    compat.set_identity()
    strategy: Any = stock.build({"kind": "FedAdam", "eta": 0.1, "tau": 1e-3, "min_train_nodes": 2}, 2, 0.0).strategy
    strategy.current_arrays = {"w": np.zeros(3)}
    replies = [
        Message(RecordDict({"arrays": ArrayRecord({"w": Array(np.array(d))}), "metrics": MetricRecord({"num-examples": 1})}), 5, "train")
        for d in ([2.0, 0.5, 0.5], [3.0, 0.5, 0.5])
    ]  # fmt: skip
    arrays, _ = strategy.aggregate_train(1, replies)

    assert np.allclose([0.073950, 0.072790, 0.072790], arrays["w"].numpy(), atol=2e-6)


def test_arguments_that_belong_elsewhere_say_where() -> None:
    """``fraction_evaluate`` is refused, with the key that does its work."""
    with pytest.raises(ScenarioError, match="evaluate.federated_fraction"):
        stock.build({"kind": "FedAvg", "fraction_evaluate": 0.5}, 6, 0.0)


def test_qfedavg_is_given_the_loss_before_training(go: Any) -> None:
    """QFedAvg's clients report ``initial_loss``, and pay for the forward pass that it takes."""
    fair = go({"server.strategy": table("QFedAvg"), "server.rounds": 1})
    average = go({"server.rounds": 1})

    assert {"train_loss", "initial_loss"} == set(fair.metrics[fair.metrics.scope == "training"].name)
    assert (fair.tasks.flops.to_numpy() > average.tasks.flops.to_numpy()).all()


class OwnQ(QFedAvg):
    """A reader's own, which changes nothing."""


def test_a_subclass_is_what_its_base_is(go: Any) -> None:
    """A subclass of QFedAvg that changes nothing gives QFedAvg's digest: losses before training come with it."""
    table = {"kind": "QFedAvg", "q": 0.2, "client_learning_rate": 0.1}
    stock = go({"server.strategy": table})
    own = go({"server.strategy": {**table, "kind": f"{__name__}:OwnQ"}})

    assert stock.digest == own.digest


def test_bulyan_is_refused_where_it_would_never_aggregate() -> None:
    """Bulyan needs 4 f + 3 replies, f = 0 included: with two clients it would return nothing for ever."""
    with pytest.raises(ScenarioError, match=r"num_malicious_nodes = 0: Bulyan needs at least 3 replies"):
        stock.build({"kind": "Bulyan", "num_malicious_nodes": 0}, 2, 0.0)


def test_the_key_that_asks_too_much_is_named() -> None:
    """With one client and min_available_nodes = 1 it is min_train_nodes, by its default, that asks for two."""
    with pytest.raises(ScenarioError, match=r"server.strategy.min_train_nodes = 2"):
        stock.build({"kind": "FedAvg", "min_available_nodes": 1}, 1, 0.0)
