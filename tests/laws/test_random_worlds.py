"""A hundred worlds drawn by a key over all kinds of devices, links, availability, failures and energy: what must hold in each holds.

No world computes a number: clients, strategy and clock are asked what takes how long, and every message's row is looked at.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

import fedsim
from conftest import tiny_table
from fedsim.core.keys import Key
from fedsim.cost import availability, compute, energy, failures, meter, network
from fedsim.flower import compat, records
from fedsim.record import digest
from fedsim.rehearsal import _Heard  # pyright: ignore[reportPrivateUsage]
from fedsim.scenario import costs
from fedsim.scenario.build import Parts, build
from fedsim.scenario.load import load
from fedsim.sim.fleet import Fleet
from fedsim.sim.grid import VirtualGrid
from fedsim.sim.invariants import Invariants
from fedsim.sim.leaving import Gone
from fedsim.sim.mail import Delivery
from fedsim.sim.metered import Metered
from fedsim.sim.programs import EVALUATIONS
from fedsim.sim.rows import EnergyRow, TaskRow
from fedsim.sim.world import World
from fedsim.timekeeping import Timekeeper

TRACES = Path(__file__).parents[1] / "traces"
WORLDS, CLIENTS, ROUNDS = 100, 12, 5
Table = dict[str, Any]

COMPUTES: list[Table] = [
    {"kind": "constant", "gflops": 0.0005, "overhead_s": 3.0}, {"kind": "lognormal", "gflops": 0.001, "sigma": 0.8, "step_s": 0.3},
    {"kind": "exponential", "gflops": 0.0003, "overhead_s": 1.0}, {"kind": "field_guide", "gflops": 0.002, "overhead_s": 5.0},
    {"kind": "tiers", "gflops": 0.001, "speed_data_correlation": -0.6}, {"kind": "trace", "path": f"{TRACES}/devices.csv", "step_s": 1.5},
]  # fmt: skip
NETWORKS: list[Table] = [
    {"kind": "ideal"}, {"kind": "constant", "down_mbps": 0.02, "up_mbps": 0.01, "latency_s": 0.1},
    {"kind": "lognormal", "down_mbps": 0.02, "up_mbps": 0.005}, {"kind": "trace", "path": f"{TRACES}/links.csv", "speed": 0.003},
]  # fmt: skip
AVAILABILITIES: list[Table] = [
    {"kind": "always"}, {"kind": "onoff", "mean_on_s": 20.0, "mean_off_s": 8.0},
    {"kind": "diurnal", "mean": 0.5, "period_s": 100.0, "slot_s": 7.0, "phase_spread_s": 30.0},
    {"kind": "trace", "path": f"{TRACES}/phones.npz", "slot_s": 11.0, "phase_spread_s": 50.0},
]  # fmt: skip
FAILURES: list[Table | None] = [
    None, {"kind": "dropout", "probability": 0.3}, {"kind": "dropout", "probability": 0.4, "away_s": 13.0, "state": "lost"},
    {"kind": "dropout", "probability": 0.3, "what": "app"}, {"kind": "hazard", "per_s": 0.05, "away_s": 75.0},
    {"kind": "silent", "share": 0.2, "probability": 0.1}, {"kind": "corrupted", "probability": 0.3}, {"kind": "empty", "probability": 0.3},
]  # fmt: skip
ENERGIES: list[Table] = [
    {"kind": "constant", "compute_w": 5.0, "down_w": 2.0, "up_w": 3.0, "idle_w": 1.0}, {"kind": "phone", "radio": "lte", "sigma": 0.3},
]  # fmt: skip
NOTHING: dict[str, Any] = {
    "clients.failures": {"kind": "dropout", "probability": 0.0, "away_s": 5.0}, "clients.overhead": {"message_bytes": 0, "share": 0.0},
    "server.link": {"egress_mbps": 1e9, "ingress_mbps": 1e9}, "clients.energy": ENERGIES[1],
}  # fmt: skip
"""Settings that make no difference, where a world does not have them."""


def drawn(number: int) -> Table:
    """Return a world, by dotted key, of what kinds there are."""
    key = Key(14).fold("world", number)

    def one(name: str, among: Sequence[Any]) -> Any:
        return among[int(key.fold(name).uniform_at(0) * len(among))]

    world: Table = {
        "clients.compute": one("compute", COMPUTES), "clients.network": one("network", NETWORKS),
        "clients.availability": one("availability", AVAILABILITIES), "clients.energy": one("energy", ENERGIES),
        "server.round_timeout_s": one("timeout", [4.0, 9.0, 15.0, 40.0]), "seed": number, "clients.count": CLIENTS,
    }  # fmt: skip
    if (failing := one("failures", FAILURES)) is not None:
        world["clients.failures"] = failing
    if one("overhead", [False, True]):
        world["clients.overhead"] = {"message_bytes": 300, "share": 0.05, "loss": 0.02}
    leaving = one("leaving", ["finish", "abort", "pause"])
    if leaving == "pause" and world["clients.network"]["kind"] == "trace":
        leaving = "abort"
    if leaving != "finish":
        return {**world, "clients.leaving": leaving}
    if one("transport", [False, False, True]):
        world["transport"] = one("looks", [{}, {"node_poll_s": 1.0, "reply_poll_s": 0.0, "server_s": 0.7}, {"cores": 2.0}])
    if one("link", [False, True]):
        world["server.link"] = {"egress_mbps": 0.05, "ingress_mbps": 0.02}
    if one("cells", [False, False, True]):
        world["clients.cells"] = {"count": 4, "down_mbps": 0.03, "up_mbps": 0.015}
    return world


@functools.cache
def based(streams: bool) -> Parts:
    """Return what all worlds share: examples, a model, the strategy."""
    stream = {"stream.arrivals": {"kind": "constant", "per_s": 1.0}, "stream.trigger": {"kind": "count", "examples": 3}}
    return build(load(tiny_table({"clients.count": CLIENTS, "data.test_fraction": 0.5, **(stream if streams else {})})))


@dataclasses.dataclass
class Heard(_Heard):
    """All that is told of a run."""

    rows: list[TaskRow] = dataclasses.field(default_factory=list[TaskRow])
    charged: list[EnergyRow] = dataclasses.field(default_factory=list[EnergyRow])

    def task(self, row: TaskRow) -> None:
        self.rows.append(row)

    def energy(self, row: EnergyRow) -> None:
        self.charged.append(row)


@dataclasses.dataclass(frozen=True)
class Played:
    """What came of a world: its rows, in the order in which they became certain, their joules, and what the wire had, each way."""

    world: Table
    fleet: Fleet
    rows: list[TaskRow]
    joules: dict[str, np.ndarray]
    wire: tuple[int, int]
    down: Mapping[str, int]
    total_j: float
    end_s: float

    @property
    def digest(self) -> str:
        """Return the digest of all rows."""
        chain = digest.Chain()
        for row in self.rows:
            chain.add(*digest.task(row))
        return chain.value


def play(world: Table, *, turned: bool = False, streams: bool | None = None) -> Played:
    """Let the rounds of *world* pass; *turned* sends the messages of each push the other way round."""
    base = based(world["seed"] % 3 == 0 if streams is None else streams)
    loaded = load(tiny_table(world))
    fleet = dataclasses.replace(base.fleet, **costs.of(loaded, Key(world["seed"]), base.federation))
    heard = Heard()
    assert fleet.energy is not None
    metered = Metered(heard, fleet.energy)
    sent: dict[str, int] = {}
    grid = VirtualGrid(fleet, Timekeeper(), metered, dry=True)  # pyright: ignore[reportArgumentType]
    opened = grid._opened  # pyright: ignore[reportPrivateUsage]

    def noting(delivery: Delivery) -> Delivery:
        sent[delivery.id] = delivery.parcel.down.total
        return opened(delivery)

    grid._opened = noting  # pyright: ignore[reportPrivateUsage]
    key, timeout = Key(world["seed"]).fold("asked"), loaded.scenario.server.round_timeout_s
    first = compat.array_record(base.first)
    for number in range(ROUNDS):
        there = [node for node in grid.get_node_ids() if key.fold(number).uniform_at(node) < 0.8]
        job = records.job_config(base.job)
        job["server-round"] = number + 1
        content = RecordDict({"arrays": first, "config": job})
        kind = "evaluate" if number == 3 else "train"
        messages = [Message(content, node, kind) for node in (reversed(there) if turned else there)]
        if number == 2:  # As an asynchronous strategy does: without waiting for all, and more than one for some.
            ids = [*grid.push_messages(messages), *grid.push_messages([Message(content, node, "train") for node in there[::3]])]
            grid.sleep(timeout / 2)
            grid.pull(ids, timeout=1.0)
        else:
            grid.send_and_receive(messages, timeout=timeout)
    grid.finish(broken=True)  # Nothing is computed of what was late.
    grid.invariants.finished()
    metered.finish(grid.now)
    numbers = np.concatenate([each.messages for each in heard.charged]) if heard.charged else np.zeros(0, dtype=np.int64)
    order = np.argsort(numbers)
    parts = ("compute_j", "down_j", "up_j", "idle_j")
    joules = {
        name: np.concatenate([getattr(each, name) for each in heard.charged])[order] if heard.charged else np.zeros(0) for name in parts
    }
    found = Played(
        world, fleet, heard.rows, joules, (grid.invariants.down_bytes, grid.invariants.up_bytes), sent,
        metered.described()["joules"]["total"], grid.now,
    )  # fmt: skip
    grid.close()
    return found


# What must hold of each.


def bytes_add_up(seen: Played) -> bool:
    """What rows say was sent, each way, is what was put on the wire."""
    down = sum(row.down_bytes + row.down_framing_bytes for row in seen.rows)
    return seen.wire == (down, sum(row.up_bytes + row.up_framing_bytes for row in seen.rows))


def joules_add_up(seen: Played) -> bool:
    """Summed by phase, by message, backwards, or as the messages came: the same to the last bit."""
    each = np.array(list(seen.joules.values()))
    sums = {float(each.sum()), float(each[:, ::-1].sum(axis=0).sum()), float(sum(each.sum(axis=1).tolist())), math.fsum(each.ravel())}
    return sums == {seen.total_j} if seen.rows else True


def one_at_a_time(seen: Played) -> bool:
    """A client works on no message before it has sent, or lost, the one before; seconds of a pause and of being dead included."""
    began = sorted((row for row in seen.rows if row.started_s >= 0), key=lambda row: (row.client, row.started_s, row.message))
    for before, then in zip(began, began[1:], strict=False):
        if before.client == then.client:
            over = before.arrived_s if before.computed_s >= 0 and before.arrived_s >= 0 else max(before.computed_s, before.stopped_s)
            if then.started_s < over or (over < 0 and not before.failure):
                return False
    return True


def time_adds_up(seen: Played) -> bool:
    """A device's own seconds, at work and on the radio, waiting and away, are no more than there were from sending to the end."""
    watts = seen.world["clients.energy"]
    if watts["kind"] != "constant":
        return True
    order = {number: i for i, number in enumerate(sorted(int(row.message[1:]) for row in seen.rows))}
    for row in seen.rows:
        at = order[int(row.message[1:])]
        used = [seen.joules[f"{name}_j"][at] / watts[f"{name}_w"] for name in ("compute", "down", "up", "idle")]
        away = row.down_away_s + row.waiting_away_s + row.work_away_s + row.up_away_s
        last = row.stopped_s if row.stopped_s >= 0 else row.arrived_s if row.arrived_s >= 0 else seen.end_s
        went = 0.0 if row.received_s < 0 and row.arrived_s == row.sent_s else last - row.sent_s
        if not math.isclose(sum(used) + away, went, abs_tol=1e-4):
            return False
    return True


def all_takes_its_time(seen: Played) -> bool:
    """What was done took, while its client was there, what its device takes, and its own link where nothing is shared or looked for."""
    fleet, world = seen.fleet, seen.world
    others = ("server.link", "clients.cells", "transport")
    steady = world["clients.network"]["kind"] != "trace" and not any(name in world for name in others)
    for row in seen.rows:
        took: list[tuple[float, float]] = []
        if row.computed_s >= 0 and "cores" not in world.get("transport", {}):
            number = row.number + (EVALUATIONS if row.kind == "evaluate" else 0)
            took.append((row.computed_s - row.started_s - row.work_away_s, fleet.compute.seconds(row.client, number, row.flops, row.steps)))
        if row.received_s >= 0 and steady:
            down = fleet.network.down_s(row.client, seen.down[row.message])
            took.append((row.received_s - row.sent_s - row.down_away_s, down))
        if row.computed_s >= 0 and row.arrived_s >= 0 and steady:
            up = fleet.network.up_s(row.client, row.up_bytes + row.up_framing_bytes)
            took.append((row.arrived_s - row.computed_s - row.up_away_s, up))
        if not all(math.isclose(one, other, abs_tol=1e-6) for one, other in took):
            return False
    return True


CHECKS: tuple[Callable[[Played], bool], ...] = (bytes_add_up, joules_add_up, one_at_a_time, time_adds_up, all_takes_its_time)


def told(rows: Sequence[TaskRow]) -> list[Any]:
    """Return what happened, whatever the messages are called, and in whatever order what happened at one instant did."""
    plain = [dataclasses.astuple(dataclasses.replace(row, message="", failure=""))[1:] for row in rows]
    return sorted(plain, key=repr)


# Teeth: worlds that are broken on purpose.


class Nobody(dict[int, Any]):
    """Clients that are never busy."""

    def __contains__(self, client: object) -> bool:
        return False

    def __getitem__(self, client: int) -> Any:
        return ()

    def __delitem__(self, client: int) -> None:
        pass


def begin_together(patch: pytest.MonkeyPatch) -> None:
    """A device begins with whatever is there, whatever it is at."""
    made = World.__init__

    def init(world: World, *given: Any, **named: Any) -> None:
        made(world, *given, **named)
        world._busy = Nobody()  # pyright: ignore[reportPrivateUsage]

    patch.setattr(World, "__init__", init)


def forget_away(patch: pytest.MonkeyPatch) -> None:
    """Time away counts as time at work."""
    patch.setattr(Delivery, "_away", lambda delivery, now: ())


def download_dead(patch: pytest.MonkeyPatch) -> None:
    """A device that is dead downloads all the same."""
    patch.setattr(Gone, "__contains__", lambda gone, client: False)
    patch.setattr(World, "_absent", lambda world, client, begin, end: world._gone.between(client, begin, end))  # pyright: ignore


def idle_dead(patch: pytest.MonkeyPatch) -> None:
    """A device that is away draws power as if it waited."""
    patch.setattr(meter.Spans, "lasted_s", property(
        lambda spans: tuple(end - begin for begin, end in (spans.down, spans.waiting, spans.work, spans.up))))  # fmt: skip


def round_nothing(patch: pytest.MonkeyPatch) -> None:
    """Joules are any numbers, and sums go by their order."""
    patch.setattr(meter, "JOULE", 1e-18)


def lose_bytes(patch: pytest.MonkeyPatch) -> None:
    """Rows forget the framing of the way up."""
    settle = Delivery.settle
    none = {"up_framing_bytes": 0, "up_resent_bytes": 0}
    patch.setattr(Delivery, "settle", lambda *given, **named: dataclasses.replace(settle(*given, **named), **none))


def mistake_directions(patch: pytest.MonkeyPatch) -> None:
    """What went up is said to have gone down."""
    settle = Delivery.settle

    def turned(*given: Any, **named: Any) -> TaskRow:
        row = settle(*given, **named)
        return dataclasses.replace(row, up_bytes=0, down_bytes=row.down_bytes + row.up_bytes)

    patch.setattr(Delivery, "settle", turned)


BROKEN: Mapping[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "begins together": (begin_together, "one_at_a_time"), "forgets away": (forget_away, "all_takes_its_time"),
    "downloads dead": (download_dead, "all_takes_its_time"), "idles dead": (idle_dead, "time_adds_up"),
    "rounds nothing": (round_nothing, "joules_add_up"), "loses bytes": (lose_bytes, "bytes_add_up"),
    "mistakes directions": (mistake_directions, "bytes_add_up"),
}  # fmt: skip


@pytest.mark.parametrize(("broken", "check"), BROKEN.values(), ids=BROKEN.keys())
def test_a_check_has_teeth(broken: Callable[[pytest.MonkeyPatch], None], check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was broken on purpose is found by the check that is for it, in more than one world."""
    broken(monkeypatch)
    monkeypatch.setattr(Invariants, "finished", lambda invariants: None)  # It would be the first to say so.
    found = sum(not globals()[check](play(drawn(number))) for number in range(0, WORLDS, 5))

    assert found > 1


def test_luck_of_the_moment_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teeth: devices that draw from a generator of the process have another digest the second time, and another in another order."""
    generator = np.random.default_rng(0)
    monkeypatch.setattr(compute.ConstantCompute, "seconds", lambda *given, **named: float(generator.random()))
    monkeypatch.setattr(compute.ConstantCompute, "many_s", None, raising=False)
    world = {**drawn(0), "clients.compute": COMPUTES[0], "clients.availability": {"kind": "always"}}
    seen, again, turned = play(world), play(world), play(world, turned=True)

    assert seen.digest != again.digest and told(turned.rows) != told(seen.rows)


def test_settings_that_make_a_difference_are_found_out() -> None:
    """Teeth: a link that is full, a chance that is not 0 and a byte for each message move the digest."""
    world = {name: value for name, value in drawn(0).items() if name not in ("clients.failures", "clients.leaving", "clients.overhead")}
    world["clients.availability"] = {"kind": "always"}
    more: list[Table] = [
        {"clients.failures": {"kind": "dropout", "probability": 0.1}}, {"clients.overhead": {"message_bytes": 1}},
        {"server.link": {"egress_mbps": 0.01}},
    ]  # fmt: skip

    assert len({play({**world, **each}).digest for each in ({}, *more)}) == 4


@pytest.mark.parametrize("number", [2, 11])
def test_a_world_that_trains_has_the_same_books(number: int, go: Callable[..., fedsim.Run]) -> None:
    """Some worlds with real numbers: the same checks hold of what is in the folder, and a second run has the digest."""
    world = {
        **drawn(number), "server.rounds": 3, "server.strategy": {"kind": "FedAvg", "min_available_nodes": 2}, "evaluate.every": 3,
        "clients.availability": AVAILABILITIES[1],
    }  # fmt: skip
    del world["seed"]
    run, again = go(world), go(world)
    energy, ledger = run.energy(), run.ledger()

    assert run.digest == again.digest and run.metrics_digest == again.metrics_digest
    assert energy.total_j.sum() == run.manifest["energy"]["joules"]["total"]
    assert energy[energy.wasted].total_j.sum() == run.manifest["energy"]["joules"]["wasted"]
    assert ledger.total.sum() == run.tasks[["down_bytes", "down_framing_bytes", "up_bytes", "up_framing_bytes"]].sum().sum()


@functools.cache
def played(number: int) -> Played:
    return play(drawn(number))


@pytest.mark.parametrize("number", range(WORLDS))
def test_a_world_keeps_its_books(number: int) -> None:
    """No invariant breaks; bytes, joules and seconds add up; a client does one thing at a time."""
    seen = played(number)

    assert [check.__name__ for check in CHECKS if not check(seen)] == [], drawn(number)


@pytest.mark.parametrize("number", range(0, WORLDS, 3))
def test_a_second_run_and_settings_of_nothing_have_the_digest(number: int) -> None:
    """A second run is the first to the last bit; so is one with a setting that makes no difference, where the world has no such."""
    seen, world = played(number), drawn(number)
    key = Key(15).fold(number)
    nothing = [name for name in NOTHING if name not in world or name == "clients.energy"]
    nothing = [name for name in nothing if not (name == "server.link" and "clients.leaving" in world)]
    more = nothing[int(key.uniform_at(0) * len(nothing))]

    assert play(world).digest == seen.digest
    assert play({**world, more: NOTHING[more]}).digest == seen.digest, (more, world)


@pytest.mark.parametrize("number", range(1, WORLDS, 3))
def test_the_order_of_what_happens_at_once_moves_no_total(number: int) -> None:
    """Messages of a push sent the other way round: where nobody shares a link or a computer, every row is the same but for its name."""
    world = drawn(number)
    shared = ("server.link", "clients.cells", *(("transport",) if "cores" in world.get("transport", {}) else ()))
    world = {name: value for name, value in world.items() if name not in shared}
    seen, turned = play(world), play(world, turned=True)

    assert told(turned.rows) == told(seen.rows)
    assert turned.wire == seen.wire and turned.total_j == seen.total_j


def test_all_kinds_are_drawn() -> None:
    """No registered kind, and no setting, is left out of the sample."""
    worlds = [drawn(number) for number in range(WORLDS)]
    registries = {
        "compute": compute.computes, "network": network.networks, "availability": availability.availabilities,
        "failures": failures.failures, "energy": energy.energies,
    }  # fmt: skip
    for name, registry in registries.items():
        kinds = {world[f"clients.{name}"]["kind"] for world in worlds if f"clients.{name}" in world}
        assert {kind for kind in registry.names() if ":" not in kind} <= kinds, name
    for name in ("clients.overhead", "clients.leaving", "clients.cells", "transport", "server.link"):
        assert 5 < sum(name in world for world in worlds) < WORLDS - 5, name


def test_all_kinds_of_fates_come_up() -> None:
    """Worlds are no idle ones: replies arrive, are late, fail, and are cut off; clients leave, pause, crash and come back."""
    rows = [row for number in range(WORLDS) for row in played(number).rows]
    causes = {row.cause for row in rows}

    assert {row.outcome for row in rows} == {"arrived", "late", "failed", "in flight"}
    assert {"left while working", "left while downloading", "never answers", "crashed while working"} <= causes
    assert "dropped out while working, its state lost" in causes
    assert all(sum(getattr(row, f"{name}_away_s") > 0 for row in rows) > 5 for name in ("down", "work", "up"))
    assert sum(row.outcome == "arrived" for row in rows) > len(rows) / 5
