"""Edges between clients and server: HierFAVG's numbers against FedAvg's, times and bytes by hand, and what a deadline makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

import fedsim
from fedsim.core.errors import RunError, ScenarioError
from fedsim.core.keys import Key
from fedsim.cost.edges import assigned
from fedsim.cost.failures import Fault
from fedsim.flower import compat
from fedsim.flower.compat_lazy import mean_arrays
from fedsim.flower.records import client_of
from fedsim.preview import preview
from fedsim.real.folder import write_app
from fedsim.report.page import write_report
from fedsim.scenario.load import load
from fedsim.sim import edges as at_work
from fedsim.sim.invariants import Invariants

Go = Callable[..., fedsim.Run]
SLOW = {"kind": "constant", "down_mbps": 1.0, "up_mbps": 0.5, "latency_s": 0.1}
PRIVATE = {
    "kind": "FixedClipping", "noise_multiplier": 1.0, "clipping_norm": 1.0, "strategy": {"kind": "FedAvg"},
}  # fmt: skip
UNEVEN = {"data.partition": {"kind": "quantity", "sizes": "lognormal", "sigma": 1.0}}
EVEN = {
    "clients.compute": {"kind": "constant", "gflops": 5.0, "overhead_s": 2.0},
    "clients.network": {"kind": "constant", "down_mbps": 2.0, "up_mbps": 1.0, "latency_s": 0.05},
}


class Some(FedAvg):
    """FedAvg that asks three clients, from *first* on."""

    def __init__(self, first: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.first = first

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        asked = super().configure_train(server_round, arrays, config, grid)
        return [message for message in asked if 0 <= client_of(message.metadata.dst_node_id) - self.first < 3]


class Nested(FedAvg):
    """FedAvg that is handed means of pairs, as a server of edges might be: as right, and with other last bits."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        means: list[RecordDict] = []
        for first in range(0, len(replies), 2):
            pair = [reply.content for reply in replies[first : first + 2]]
            count = sum(int(each["metrics"]["num-examples"]) for each in pair)  # pyright: ignore
            means.append(RecordDict({"arrays": mean_arrays(pair, "num-examples"), "metrics": MetricRecord({"num-examples": count})}))
        return mean_arrays(means, "num-examples"), None


class Each(FedAvg):
    """FedAvg that sends each client another config."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        for message in super().configure_train(server_round, arrays, config, grid):
            node = message.metadata.dst_node_id
            yield Message(RecordDict({"arrays": arrays, "config": ConfigRecord({**config, "to": node})}), node, "train")


@dataclass(frozen=True)
class Nth:
    """Every client's task *nth* fails, and its server hears so at once."""

    nth: int

    def fails(self, client: int, task: int, works_s: float) -> Fault | None:
        """Return the fault of the task."""
        return Fault("planted", works_s, answer="raised", breaks=True) if task == self.nth else None

    def silent(self, clients: Any) -> Any:
        """Return that nobody is."""
        return np.zeros(len(clients), dtype=np.bool_)


class Mute:
    """Client 5 never answers."""

    def fails(self, client: int, task: int, works_s: float) -> Fault | None:
        """Return the fault of the task."""
        return Fault("mute", works_s, answer="never") if client == 5 else None


def mute() -> Mute:
    """Return failures of client 5."""
    return Mute()


def nth(nth: int) -> Nth:
    """Return failures of every client's task *nth*."""
    return Nth(nth)


def edges(count: int, **settings: Any) -> dict[str, Any]:
    """Return the setting of so many edges behind slow links."""
    return {"edges": {"count": count, "network": SLOW, **settings}}


def model(run: fedsim.Run) -> str:
    """Return what stands for the parameters that a run ended with."""
    return str(run.manifest["model"]["content"])


def whole(rows: Any) -> int:
    """Return all bytes of the *rows* of a table."""
    return int(rows[["down_bytes", "down_framing_bytes", "up_bytes", "up_framing_bytes"]].to_numpy().sum())


# Numbers.


def test_one_round_of_edges_for_each_of_the_servers_is_fedavg_to_the_bit(go: Go) -> None:
    """With rounds = 1 the model has FedAvg's bits, and so has every client's reply, however late it comes (METHODS A16b)."""
    flat, hierarchical = go(UNEVEN), go({**UNEVEN, **edges(3)})
    results = [run.tasks.set_index(["round", "client"]).result.sort_index() for run in (flat, hierarchical)]

    assert model(flat) == model(hierarchical)
    assert results[0].equals(results[1])
    assert flat.manifest["virtual_s"] < hierarchical.manifest["virtual_s"]
    assert model(flat) != model(go({**UNEVEN, **edges(3, rounds=2)}))
    assert model(flat) != model(go({**UNEVEN, **edges(3), "server.strategy": {"kind": f"{__name__}:Nested"}}))


def test_one_edge_at_hand_is_not_there(go: Go) -> None:
    """One edge whose link takes no time leaves the digest, and with it every moment, as it was."""
    flat, same = go({**UNEVEN, "server.rounds": 3}), go({**UNEVEN, "server.rounds": 3, "edges": {"count": 1}})

    assert flat.digest == same.digest
    assert flat.manifest["metrics_digest"] == same.manifest["metrics_digest"]


def unweighted(content: Any, replies: list[Any], weight: str) -> Any:
    """Return the mean of *replies* by heads: wrong where clients hold different numbers of examples."""
    found = [at_work.records.params_of(next(iter(reply.array_records.values()))) for reply in replies]
    mean = {name: np.mean([each[name] for each in found], axis=0, dtype=found[0][name].dtype) for name in found[0]}
    return type(content)({name: compat.array_record(mean) if isinstance(each, ArrayRecord) else each for name, each in content.items()})


def test_rounds_of_the_only_edge_are_rounds_of_fedavg(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one edge, k rounds of which make one of the server's, R rounds have the bits of FedAvg's k R; a mean by heads has not."""
    flat, nested = go({**UNEVEN, "server.rounds": 6}), {**UNEVEN, **edges(1, rounds=3), "server.rounds": 2}
    run = go(nested)

    assert model(flat) == model(run)
    assert flat.tasks.sort_values(["client", "number"]).result.tolist() == run.tasks.sort_values(["client", "number"]).result.tolist()
    assert [0, 0, 0, 1, 1, 1] == run.tasks[run.tasks.client == 0].version.tolist()
    assert [0, 1, 2, 0, 1, 2] == run.tasks[run.tasks.client == 0].edge_round.tolist()
    monkeypatch.setattr(at_work, "averaged", unweighted)
    assert model(flat) != model(go(nested))


def test_the_mean_of_edges_means_is_the_mean_of_all(go: Go) -> None:
    """What two edges come to, each by itself with FedAvg, weighed by their examples, is what the server makes of them, to 1e-12."""
    exact = {**UNEVEN, "engine.dtype": "float64"}
    run = go({**exact, **edges(2, rounds=2), "server.rounds": 1})
    held = run.tasks[run.tasks.edge_round == 0].set_index("client").examples.sort_index()
    alone, weights = list[Mapping[str, Any]](), list[int]()
    for first in (0, 3):
        strategy = {"kind": f"{__name__}:Some", "first": first}
        alone.append(go({**exact, "server.strategy": strategy, "server.rounds": 2}).params())
        weights.append(int(held.loc[first : first + 2].sum()))
    mean = {name: np.average([each[name] for each in alone], axis=0, weights=weights) for name in alone[0]}
    by_heads = {name: np.mean([each[name] for each in alone], axis=0) for name in alone[0]}
    found = run.params()

    assert all(np.abs(found[name] - mean[name]).max() < 1e-12 for name in mean)
    assert any(np.abs(found[name] - by_heads[name]).max() > 1e-6 for name in mean)


def test_an_edge_nobody_answers_in_its_last_round_sends_the_model_it_has(go: Go) -> None:
    """Where every client's second task fails, the server gets the edges' models of the first round: FedAvg's after one."""
    flat = go({**UNEVEN, "server.rounds": 1})
    failures = {"clients.failures": {"kind": f"{__name__}:nth", "nth": 1}}
    run = go({**UNEVEN, **failures, **edges(2, rounds=2), "server.rounds": 1})

    assert model(flat) == model(run)
    assert ["arrived"] * 6 + ["failed"] * 6 == sorted(run.tasks.outcome)
    assert (6, 0) == tuple(run.rounds[["arrived", "missed"]].iloc[0])
    assert ["arrived"] * 2 == run.edges.outcome.tolist()
    none = go({**UNEVEN, **failures, "clients.failures.nth": 0, **edges(2), "server.rounds": 1})
    assert {"failed"} == {*none.edges.outcome} == {*none.tasks.outcome}
    assert 0 == none.edges.up_bytes.sum()


# Times.


def test_times_are_the_sums_they_are_by_hand(go: Go) -> None:
    """On links and devices that are all alike a round is down + k (down + work + up) + up, on two tiers; two edges' share a server."""
    run = go({**EVEN, **edges(2, rounds=3), "server.rounds": 2})
    task, edge = run.tasks.iloc[0], run.edges.iloc[0]
    up, work = int(task.up_bytes + task.up_framing_bytes), float(task.computed_s - task.started_s)
    down = round((task.received_s - task.sent_s - 0.05) * 2e6 / 8)  # What goes down later is the answer to what comes up.
    leg = (0.05 + down * 8 / 2e6) + work + (0.05 + up * 8 / 1e6)
    round_s = (0.1 + down * 8 / 1e6) + 3 * leg + (0.1 + up * 8 / 0.5e6)

    assert 2 * round_s == pytest.approx(run.manifest["virtual_s"], rel=1e-12)
    assert edge.answered_s - edge.received_s == pytest.approx(3 * leg, rel=1e-12)
    shared = go({**EVEN, **edges(2, rounds=3), "server.rounds": 1, "server.link": {"ingress_mbps": 0.5, "egress_mbps": 1.0}})
    behind = shared.edges.iloc[0]
    assert behind.received_s == pytest.approx(0.1 + 2 * down * 8 / 1e6, rel=1e-9)
    assert behind.arrived_s - behind.answered_s == pytest.approx(0.1 + 2 * up * 8 / 0.5e6, rel=1e-9)


def test_the_clients_of_an_edge_share_what_it_carries_and_no_other(go: Go) -> None:
    """Of an edge that carries as much as one client's link, k clients' transfers take k times as long; the next edge's are its own."""
    assign = [0, 0, 0, 0, 1, 1]
    alone: Any = go({**EVEN, **edges(2, assign=assign), "server.rounds": 1}).tasks.set_index("client")
    run = go({**EVEN, **edges(2, assign=assign, access={"egress_mbps": 2.0, "ingress_mbps": 1.0}), "server.rounds": 1})
    shared: Any = run.tasks.set_index("client")
    for client, times in enumerate([4, 4, 4, 4, 2, 2]):
        for begin, end in (("sent_s", "received_s"), ("computed_s", "arrived_s")):
            takes = alone[end][client] - alone[begin][client] - 0.05
            assert shared[end][client] - shared[begin][client] - 0.05 == pytest.approx(times * takes, rel=1e-9)


def own_pace(tasks: Any, of: Any) -> bool:
    """Return whether each edge begins its next round when its own clients have answered, whatever others do."""
    for edge in {*of.tolist()}:
        mine = tasks[of[tasks.client] == edge]
        for _, group in mine.groupby("round"):
            by_round = group.groupby("edge_round")
            over, first, last = by_round.arrived_s.max(), by_round.sent_s.min(), by_round.sent_s.max()
            if first.tolist() != last.tolist() or over.tolist()[:-1] != first.tolist()[1:]:
                return False
    return True


def test_edges_go_at_their_own_pace(go: Go) -> None:
    """An edge sends anew once its own clients have answered, while others still wait; one that waits for all edges is not at its own."""
    run = go({**edges(3, rounds=3), "server.rounds": 2, "clients.compute.sigma": 1.5})
    tasks, of = run.tasks, assigned("blocks", 6, 3, Key(0))
    together = tasks.assign(sent_s=tasks.groupby(["round", "edge_round"]).sent_s.transform("max"))

    assert own_pace(tasks, of)
    assert not own_pace(together, of)
    assert run.edges.groupby("round").answered_s.nunique().eq(3).all()


# Bytes.


def test_bytes_by_tier_are_those_counted_by_hand(go: Go) -> None:
    """Between server and edges goes one message and one reply an edge and round; between edges and clients k for each client."""
    flat, run = go({"server.rounds": 1}), go({**edges(2, rounds=3), "server.rounds": 2})
    each, tiers = whole(flat.tasks) // 6, run.tiers().set_index("tier")

    assert (2 * 2 * each, 2 * 3 * 6 * each) == (tiers.total["server-edge"], tiers.total["edge-client"])
    assert (2 * 2, 2 * 3 * 6) == (tiers.messages["server-edge"], tiers.messages["edge-client"])
    assert run.manifest["edges"]["bytes_down"] + run.manifest["edges"]["bytes_up"] == tiers.total["server-edge"] == whole(run.edges)
    assert run.manifest["bytes_down"] + run.manifest["bytes_up"] == tiers.total["edge-client"]
    assert tiers.total["edge-client"] == run.rounds[["down_bytes", "up_bytes"]].sum().sum()
    assert {*run.tasks.message.str[1:].astype(int)} == {*np.concatenate(run.edges.messages.tolist()).tolist()}
    assert ["server-client"] == flat.tiers().tier.tolist()


def test_a_byte_between_server_and_edges_that_nobody_counts_stops_the_run(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """A world in which one byte more goes over an edge's link than rows tell breaks an invariant, and names the event."""
    passed = Invariants.passed
    monkeypatch.setattr(Invariants, "passed", lambda self, *, down=0, up=0: passed(self, down=down + bool(down), up=up))  # pyright: ignore

    with pytest.raises(RunError, match="invariant broken at the end of a round of edges: .* bytes passed between server and edges"):
        go(edges(2))


def test_what_a_dry_run_foretells_comes_true(go: Go, tiny: Any) -> None:
    """Time and bytes on both tiers are foretold exactly, and said in the command's words."""
    table = tiny({**edges(3, rounds=2), "clients.compute.sigma": 1.0})
    told, run = preview(load(table)), go({**edges(3, rounds=2), "clients.compute.sigma": 1.0})
    between = run.manifest["edges"]

    assert told.foretold.exact
    assert told.foretold.virtual_s == run.manifest["virtual_s"]
    assert (told.foretold.down_bytes, told.foretold.up_bytes) == (run.manifest["bytes_down"], run.manifest["bytes_up"])
    assert {"bytes_down_per_round": between["bytes_down"] / 2, "bytes_up_per_round": between["bytes_up"] / 2} == told.plain()["edges"]
    assert "3 edges play 2 rounds among their clients for each round of the server's" == told.plain()["together"]["edges"]


def test_the_page_and_the_lines_tell_both_tiers(go: Go, cli: Any) -> None:
    """The report has a section on edges, and the summary a line; without edges there is neither."""
    run = go(edges(2, rounds=2))
    page, shown, told = write_report(run).read_text(encoding="utf-8"), cli("show", run.path), cli("show", run.path, "--json")

    assert all(word in page for word in ("By way of edges", "server-edge", "plays 2 rounds among its clients"))
    assert "server to edges" in shown.out
    assert "By way of edges" not in write_report(go({})).read_text(encoding="utf-8")
    assert {"count", "rounds", "bytes_down", "bytes_up", "bytes_wasted"} == {*json.loads(told.out)["edges"]}


# What goes wrong.


def test_what_of_an_edge_is_not_there_by_the_deadline_is_late(go: Go) -> None:
    """All that a slow edge's clients did is late and wasted, the rounds before its last too, and no version takes any of it in."""
    slow = {**EVEN, "clients.compute": {"kind": f"{__name__}:halved", "slow": 3}, "server.round_timeout_s": 12.0}
    run = go({**slow, **edges(2, rounds=2), "server.rounds": 2})
    late = run.tasks[run.tasks.client >= 3]
    merged = {int(number) for numbers in run.versions.merged for number in numbers}

    assert {"arrived"} == {*run.tasks[run.tasks.client < 3].outcome}
    assert "arrived" not in {*late.outcome}
    assert {"arrived"} == {*run.edges[run.edges.edge == 0].outcome}
    assert "arrived" not in {*run.edges[run.edges.edge == 1].outcome}
    assert [3, 3] == run.rounds.missed.tolist()
    assert merged.isdisjoint(late.message.str[1:].astype(int))
    assert run.manifest["bytes_wasted"] == whole(late)
    assert run.manifest["edges"]["bytes_wasted"] == whole(run.edges[run.edges.edge == 1]) > 0


@dataclass(frozen=True)
class Halved:
    """Devices that take 1 s for a task below client *slow*, and 7 s from there on."""

    slow: int

    def gflops(self, clients: Any) -> Any:
        """Return one speed for all."""
        return np.ones(len(clients))

    def seconds(self, client: int, task: int, flops: float, steps: int = 0) -> float:
        """Return what a task takes."""
        return 7.0 if client >= self.slow else 1.0


def halved(slow: int) -> Halved:
    """Return devices of two speeds."""
    return Halved(slow)


def test_an_edge_that_waits_no_longer_goes_on_without_the_slow(go: Go) -> None:
    """With timeout_s an edge averages what is there by then; the others' replies come later, and are late."""
    slow = {**EVEN, "clients.compute": {"kind": f"{__name__}:halved", "slow": 5}}
    run = go({**slow, **edges(2, rounds=2, timeout_s=3.0), "server.rounds": 1})
    last = run.edges[run.edges.edge == 1].iloc[0]

    assert {"arrived"} == {*run.tasks[run.tasks.client < 5].outcome} == {*run.edges.outcome}
    assert {"late", "in flight"} >= {*run.tasks[run.tasks.client == 5].outcome}
    assert float(last["answered_s"]) - float(last["received_s"]) == pytest.approx(6.0)
    assert [1] == run.rounds.missed.tolist()


def test_an_edge_waits_for_who_never_answers_and_a_note_says_so(go: Go) -> None:
    """Without timeout_s one silent client makes all of its edge's round late; the run's notes say what would help, and it does."""
    silent = {**edges(2), "clients.failures": {"kind": f"{__name__}:mute"}, "server.round_timeout_s": 20.0, "server.rounds": 1}
    run, helped = go(silent), go({**silent, "edges.timeout_s": 9.0})

    assert ["arrived"] * 3 + ["late"] * 3 == run.tasks.sort_values("client").outcome.tolist()
    assert ["arrived"] * 5 + ["late"] == helped.tasks.sort_values("client").outcome.tolist()
    assert any(note.startswith("edges.timeout_s: not given") for note in run.manifest["notes"])
    assert not any(note.startswith("edges.timeout_s") for note in helped.manifest["notes"])


@pytest.mark.parametrize("seed", range(8))
def test_whatever_goes_wrong_every_byte_is_accounted_for(seed: int, go: Go) -> None:
    """Worlds drawn at random, with failures, clients that leave, deadlines and federated evaluation, keep every invariant, twice alike."""
    draw = np.random.default_rng(seed)
    failing = [{"kind": "dropout", "probability": 0.3}, {"kind": "silent", "probability": 0.2}, {"kind": "corrupted", "probability": 0.3}]
    own: dict[str, Any] = {
        "rounds": int(draw.integers(1, 4)), "timeout_s": float(draw.uniform(1.0, 6.0)) if draw.random() < 0.5 else None,
        "assign": str(draw.choice(["blocks", "in_turn", "drawn"])),
    }  # fmt: skip
    if shared := draw.random() < 0.5:
        own["access"] = {"ingress_mbps": 0.5}
    world = {
        **edges(int(draw.integers(1, 5)), **{name: value for name, value in own.items() if value is not None}),
        "clients.compute.sigma": 1.0, "server.round_timeout_s": float(draw.uniform(3.0, 20.0)), "server.rounds": 4,
        "evaluate.federated_fraction": float(draw.random() < 0.5), "clients.failures": failing[seed % 3],
        "clients.availability": {"kind": "onoff", "mean_on_s": 20.0, "mean_off_s": 5.0},
        "clients.leaving": "finish" if shared else str(draw.choice(["finish", "abort", "pause"])),
    }  # fmt: skip
    run, again = go(world), go(world)

    assert run.digest == again.digest
    assert whole(run.tasks) == run.manifest["bytes_down"] + run.manifest["bytes_up"]
    assert whole(run.edges) == run.manifest["edges"]["bytes_down"] + run.manifest["edges"]["bytes_up"]
    assert run.rounds[["down_bytes", "up_bytes"]].sum().sum() == whole(run.tasks)


def test_streams_replay_and_another_chunk_move_nothing(go: Go) -> None:
    """Clients on streams, and cohorts of another size, train behind edges as elsewhere, with one digest."""
    online = {
        **edges(2, rounds=2), "data.test_fraction": 0.2, "stream": {"arrivals": {"kind": "poisson", "per_s": 2.0}},
        "clients.replay": {"kind": "reservoir", "capacity": 20},
    }  # fmt: skip
    runs = [go({**online, "engine.chunk": chunk}) for chunk in (1, 4)]

    assert runs[0].digest == runs[1].digest
    assert len(runs[0].tested) > 0


# What does not go with it.


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"edges.count": 7}, r"edges\.count = 7: more edges than the 6 clients"),
        ({"edges.assign": [0, 1]}, r"edges\.assign: lists the edges of 2 clients, and clients\.count = 6"),
        ({"edges.assign": [0, 1, 2, 0, 1, 2]}, r"edges\.assign: client 2 has edge 2, and edges\.count = 2"),
        ({"edges.network": {"kind": "constant"}}, r"edges\.network\.down_mbps"),
        ({"edges.links": 3}, r"edges\.links"),
        ({"codec": {"up": {"kind": "bfloat16"}}}, r"edges: .*\[codec\]"),
        ({"transport": {}}, r"edges: .*\[transport\]"),
        ({"server.strategy": {"kind": "FedMedian"}}, r"server\.strategy\.kind = 'FedMedian': looks at each client's reply, and \[edges\]"),
        ({"server.strategy": PRIVATE}, r"server\.strategy\.kind = 'FixedClipping': looks at each client's reply"),
        ({"training.algorithm": {"kind": "scaffold"}}, r"training\.algorithm\.kind = 'scaffold': has a server's half"),
        ({"edges.access": {"ingress_mbps": 1.0}, "clients.leaving": "abort"}, r"clients\.leaving = 'abort': .*edges\.access"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_edges_do_not_go_with_is_refused_in_a_line(change: dict[str, Any], line: str, go: Go) -> None:
    """What looks at single replies, travels otherwise, or names edges that are not there, is refused by its key."""
    with pytest.raises(ScenarioError, match=line) as caught:
        go({**edges(2), **change})

    assert "\n" not in str(caught.value)


def test_one_copy_cannot_say_other_things_to_each_client(go: Go) -> None:
    """A strategy that sends each client of an edge another config breaks the run in a line; without edges it may."""
    with pytest.raises(RunError, match=r"sends the clients of edge . other things than each other"):
        go({**edges(2), "server.strategy": {"kind": f"{__name__}:Each"}})


def test_real_clients_have_none(tiny: Any, tmp_path: Any) -> None:
    """A deployment, and the folder of a Flower app, are refused by the section."""
    with pytest.raises(ScenarioError, match=r"edges: real clients are a SuperLink's"):
        write_app(tmp_path / "app", load(tiny(edges(2))))
