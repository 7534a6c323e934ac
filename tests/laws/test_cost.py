"""Laws that every registered device, link and availability model keeps, each with a wrong one that it rejects."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.core.registry import Registry
from fedsim.core.types import BoolArray, FloatArray, IntArray
from fedsim.cost.availability import Always, Availability, OnOff, availabilities, diurnal, onoff
from fedsim.cost.compute import Compute, ConstantCompute, computes
from fedsim.cost.compute import lognormal as lognormal_compute
from fedsim.cost.energy import ConstantEnergy, energies
from fedsim.cost.failures import Fault, failures
from fedsim.cost.loading import Prefetch, loaders
from fedsim.cost.network import ConstantNetwork, Network, networks
from fedsim.cost.network import lognormal as lognormal_network
from fedsim.cost.ram import ConstantRam, rams
from fedsim.laws import LAWS, Broken, ask, hold
from fedsim.laws.cost import CLIENTS, answers
from fedsim.laws.kind import filled

TRACES = str(Path(__file__).parents[1] / "traces")
REQUIRED: dict[str, dict[str, dict[str, Any]]] = {
    "compute": {
        **{name: {"gflops": 5.0} for name in ("constant", "exponential", "lognormal", "tiers")}, "trace": {"path": f"{TRACES}/devices.csv"},
    },
    "network": {
        **{name: {"down_mbps": 6.0, "up_mbps": 2.0} for name in ("constant", "lognormal")}, "trace": {"path": f"{TRACES}/links.csv"},
    },
    "energy": {"constant": {"compute_w": 10.0, "up_w": 2.0}, "phone": {"sigma": 0.5}},
    "ram": {name: {"mib": 512.0} for name in ("constant", "lognormal")},
    "loader": {"prefetch": {"examples_per_s": 2000.0}},
    "failure": {
        "hazard": {"per_s": 0.01}, "silent": {"share": 0.3}, **{name: {"probability": 0.3} for name in ("dropout", "corrupted", "empty")},
    },
    "availability": {"onoff": {"mean_on_s": 600.0, "mean_off_s": 1800.0}, "trace": {"path": f"{TRACES}/phones.npz"}},
}  # fmt: skip
EXTREMES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "compute": [
        ("constant", {"gflops": 1e-3, "overhead_s": 10.0}),
        ("lognormal", {"gflops": 5.0, "sigma": 0.0}),
        ("lognormal", {"gflops": 5.0, "sigma": 10.0, "overhead_s": 1.0}),
        ("exponential", {"gflops": 1e6, "overhead_s": 1.0, "step_s": 1e-4}),
        ("lognormal", {"gflops": 5.0, "step_s": 2.0, "speed_data_correlation": -0.7}),
        ("tiers", {"gflops": 5.0, "slower": [1.0, 100.0], "overhead_s": 3.0, "speed_data_correlation": 1.0}),
        ("trace", {"path": f"{TRACES}/devices.csv", "assign": "in_turn", "step_s": 0.1}),
    ],
    "network": [
        ("constant", {"down_mbps": 1e6, "up_mbps": 1e-3, "latency_s": 0.5}),
        ("lognormal", {"down_mbps": 6.0, "up_mbps": 2.0, "sigma": 10.0, "correlation": -1.0}),
        ("lognormal", {"down_mbps": 6.0, "up_mbps": 2.0, "sigma": 0.0, "correlation": 1.0, "latency_s": 0.06}),
        ("trace", {"path": f"{TRACES}/links.csv", "only": "bus", "up_share": 0.1, "latency_s": 0.06, "shifted": False}),
    ],
    "energy": [
        ("constant", {"compute_w": 0.0}), ("phone", {"radio": "lte", "idle_w": 0.0}),
        ("phone", {"radio": "3g", "soc_w": 1e6, "sigma": 3.0}),
    ],
    "ram": [("constant", {"mib": 1e-6}), ("lognormal", {"mib": 512.0, "sigma": 10.0}), ("lognormal", {"mib": 512.0, "sigma": 0.0})],
    "failure": [
        ("dropout", {"probability": 0.99, "what": "app"}), ("dropout", {"probability": 0.0}), ("hazard", {"per_s": 1000.0, "away_s": 1e6}),
        ("hazard", {"per_s": 0.0}), ("silent", {"share": 0.0, "probability": 0.5}), ("silent", {}),
    ],
    "loader": [("prefetch", {"examples_per_s": 1e-6, "sigma": 10.0, "depth": 0})],
    "availability": [
        ("onoff", {"mean_on_s": 50.0, "mean_off_s": 1e9}),
        ("onoff", {"mean_on_s": 1e9, "mean_off_s": 50.0}),
        ("diurnal", {"mean": 1.0, "amplitude": 0.0}),
        ("diurnal", {"mean": 0.0}),
        ("diurnal", {"mean": 0.5, "amplitude": 1.0, "slot_s": 0.1, "period_s": 0.7, "phase_spread_s": 0.7}),
        ("diurnal", {"mean": 0.5, "amplitude": 1.0, "slot_s": 100.1, "period_s": 1000.3, "peak_s": 1e6}),
        ("trace", {"path": f"{TRACES}/phones.npz", "unknown": "off", "slot_s": 0.7, "phase_spread_s": 3.3, "assign": "in_turn"}),
    ],
}
def settings_of(registry: Registry[Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every registered kind with the least it needs, and the corners of what ours take."""
    required = REQUIRED[registry.noun]
    return [*((name, required.get(name, {})) for name in registry), *EXTREMES[registry.noun]]


def maker(registry: Registry[Any], name: str, settings: Mapping[str, Any]) -> Callable[[Key], Any]:
    function = registry.get(name, at=f"clients.{registry.noun}.kind")
    return lambda key: registry.call(function, settings, key=key, **filled(registry.noun))


# -- deliberately wrong ------------------------------------------------------------------------------------------


@dataclass
class DrawsInTurn:
    """A device whose time is whatever its generator says next."""

    draws: np.random.Generator

    def gflops(self, clients: IntArray) -> FloatArray:
        return 1.0 + self.draws.random(len(clients))

    def seconds(self, client: int, task: int, flops: float, steps: int = 0) -> float:
        return flops * self.draws.random()


@dataclass
class DrawnRam:
    """A device whose memory is whatever its generator says next."""

    draws: np.random.Generator

    def mib(self, clients: IntArray) -> FloatArray:
        return 1.0 + self.draws.random(len(clients))


@dataclass
class DrawnEnergy:
    """A device that draws whatever its generator says next."""

    draws: np.random.Generator
    constants: Mapping[str, float] = field(default_factory=lambda: {"compute_w": 1.0})

    def compute_j(self, clients: IntArray, seconds: FloatArray) -> FloatArray:
        return seconds * (1.0 + self.draws.random(len(clients)))

    idle_j = compute_j

    def down_j(self, clients: IntArray, sizes_bytes: FloatArray, seconds: FloatArray) -> FloatArray:
        return seconds * (1.0 + self.draws.random(len(clients)))

    up_j = down_j


class Secretive(ConstantEnergy):
    """Devices that do not say what they draw."""

    constants: Mapping[str, float] = {}


class Charging(ConstantEnergy):
    """Devices that are charged while they receive."""

    def down_j(self, clients: IntArray, sizes_bytes: FloatArray, seconds: FloatArray) -> FloatArray:
        return 1e9 - sizes_bytes


@dataclass
class DrawnLoader:
    """A loader whose rate is whatever its generator says next."""

    draws: np.random.Generator
    depth: int = 2

    def examples_per_s(self, clients: IntArray) -> FloatArray:
        return 1.0 + self.draws.random(len(clients))


@dataclass
class DrawnFaults:
    """Failures that are whatever their generator says next."""

    draws: np.random.Generator

    def fails(self, client: int, task: int, works_s: float) -> Fault | None:
        return Fault("its generator said so", float(self.draws.random()) * works_s, breaks=True)


@dataclass
class Faulty:
    """Failures of every task, by a rule of how much work it is."""

    rule: Callable[[float], Fault | None]

    def fails(self, client: int, task: int, works_s: float) -> Fault | None:
        return self.rule(works_s)


@dataclass
class FirstComeFirstDrawn:
    """A device that draws a client's speed when it is first asked about, and remembers it."""

    draws: np.random.Generator
    speeds: dict[int, float] = field(default_factory=dict[int, float])

    def gflops(self, clients: IntArray) -> FloatArray:
        return np.array([self.speeds.setdefault(client, self.draws.random() + 1.0) for client in clients.tolist()])

    def seconds(self, client: int, task: int, flops: float, steps: int = 0) -> float:
        return flops / float(self.gflops(np.array([client]))[0])


@dataclass
class Relative:
    """A device whose speed is measured by the fastest of those asked about."""

    inner: Compute

    def gflops(self, clients: IntArray) -> FloatArray:
        speeds = self.inner.gflops(clients)
        return speeds / speeds.max(initial=0.0)

    def seconds(self, client: int, task: int, flops: float, steps: int = 0) -> float:
        return self.inner.seconds(client, task, flops, steps)


@dataclass
class Draining:
    """A device that has less left with each operation: a negative speed."""

    def gflops(self, clients: IntArray) -> FloatArray:
        return np.full(len(clients), -1.0)

    def seconds(self, client: int, task: int, flops: float, steps: int = 0) -> float:
        return 10.0 - flops / 1e16


@dataclass
class Twice:
    """A link whose uploads are said to go at the rate down."""

    inner: Network

    def down_mbps(self, clients: IntArray) -> FloatArray:
        return self.inner.down_mbps(clients)

    def up_mbps(self, clients: IntArray) -> FloatArray:
        return self.inner.down_mbps(clients)

    def down_s(self, client: int, size_bytes: int) -> float:
        return self.inner.down_s(client, size_bytes)

    def up_s(self, client: int, size_bytes: int) -> float:
        return self.inner.up_s(client, size_bytes)


@dataclass
class Warped:
    """An availability with its answers bent by *state* and *change*."""

    inner: Availability
    state: Callable[[Availability, IntArray, float], BoolArray] = lambda inner, *asked: inner.available(*asked)
    change: Callable[[Availability, IntArray, float], float] = lambda inner, *asked: inner.next_change(*asked)

    def available(self, clients: IntArray, now: float) -> BoolArray:
        return self.state(self.inner, clients, now)

    def next_change(self, clients: IntArray, now: float) -> float:
        return self.change(self.inner, clients, now)


@dataclass
class OnlyForward:
    """A process that cannot go back: asked about an earlier time, it answers for the latest one."""

    inner: Availability
    latest: float = 0.0

    def available(self, clients: IntArray, now: float) -> BoolArray:
        self.latest = max(self.latest, now)
        return self.inner.available(clients, self.latest)

    def next_change(self, clients: IntArray, now: float) -> float:
        return self.inner.next_change(clients, now)


@dataclass
class OneArray:
    """An availability that writes every answer into the same array, and hands that out."""

    inner: Availability
    answer: dict[tuple[int, float], BoolArray] = field(default_factory=dict[tuple[int, float], BoolArray])

    def available(self, clients: IntArray, now: float) -> BoolArray:
        return self.answer.setdefault((len(clients), now), self.inner.available(clients, now))

    def next_change(self, clients: IntArray, now: float) -> float:
        return self.inner.next_change(clients, now)


class Steps(ConstantNetwork):
    """Links that rest every other second: of a mean that is said wrong, or of pieces that end at once."""

    def __init__(self, key: Key, *, later: float = 1.0, mean: float = 1.0) -> None:
        super().__init__(mean, mean, 0.0)
        self.later: float
        object.__setattr__(self, "later", later)

    def down_piece(self, client: int, now: float) -> tuple[float, float]:
        return 2.0 * (math.floor(now) % 2), math.floor(now) + self.later

    up_piece = down_piece


def sometimes(key: Key) -> Availability:
    return onoff(key, mean_on_s=600.0, mean_off_s=1800.0)


def skips_one(inner: Availability, clients: IntArray, now: float) -> float:
    return inner.next_change(clients, inner.next_change(clients, now))


def by_the_clients_asked(inner: Availability, clients: IntArray, now: float) -> BoolArray:
    return np.arange(len(clients)) % 2 == 0


def unchanging(key: Key) -> Compute:
    return lognormal_compute(key, gflops=5.0)


def fresh(key: Key) -> np.random.Generator:
    return key.numpy()


SHARED: dict[str, list[Callable[[Key], Any]]] = {
    "same_key_same_answer": [lambda key: DrawsInTurn(fresh(key)), lambda key: OnlyForward(sometimes(key))],
    "order_of_asking_does_not_matter": [
        lambda key: FirstComeFirstDrawn(fresh(key)), lambda key: Warped(sometimes(key), state=by_the_clients_asked),
    ],
    "adding_clients_leaves_the_others": [lambda key: Relative(unchanging(key))],
}  # fmt: skip
WRONG: dict[str, dict[str, list[Callable[[Key], Any]]]] = {
    "compute": {
        **SHARED,
        "tasks_take_finite_time_and_more_for_more": [
            lambda key: Draining(), lambda key: ConstantCompute(-1.0, 0.0), lambda key: ConstantCompute(5.0, 10.0, -1e-6),
        ],
        "speeds_are_positive_and_keep_shape": [lambda key: Draining()],
    },
    "network": {
        **SHARED,
        "messages_take_finite_time_and_more_for_more": [lambda key: ConstantNetwork(-1.0, 1.0, 0.0)],
        "pieces_go_on_and_mean_out": [lambda key: Steps(key, later=0.0), lambda key: Steps(key, mean=2.0)],
        "times_follow_from_rates": [lambda key: Twice(lognormal_network(key, down_mbps=6.0, up_mbps=2.0))],
    },
    "energy": {
        "same_key_same_answer": [lambda key: DrawnEnergy(fresh(key))],
        "order_of_asking_does_not_matter": [lambda key: DrawnEnergy(fresh(key))],
        "adding_clients_leaves_the_others": [lambda key: DrawnEnergy(fresh(key))],
        "joules_go_with_time_and_bytes": [
            lambda key: ConstantEnergy(1.0, 1.0, -1.0, 1.0), lambda key: Charging(1.0, 1.0, 1.0, 1.0), lambda key: DrawnEnergy(fresh(key)),
        ],
        "constants_are_said": [lambda key: Secretive(3.0, 0.0, 0.0, 0.0), lambda key: ConstantEnergy(math.inf, 0.0, 0.0, 0.0)],
    },
    "ram": {
        "same_key_same_answer": [lambda key: DrawnRam(fresh(key))],
        "order_of_asking_does_not_matter": [lambda key: DrawnRam(fresh(key))],
        "adding_clients_leaves_the_others": [lambda key: DrawnRam(fresh(key))],
        "sizes_are_positive_and_keep_shape": [lambda key: ConstantRam(0.0)],
    },
    "loader": {
        "same_key_same_answer": [lambda key: DrawnLoader(fresh(key))],
        "order_of_asking_does_not_matter": [lambda key: DrawnLoader(fresh(key))],
        "adding_clients_leaves_the_others": [lambda key: DrawnLoader(fresh(key))],
        "rates_are_positive_and_keep_shape": [lambda key: Prefetch(0.0, 0.0, 2, key), lambda key: Prefetch(1.0, 0.5, -1, key)],
    },
    "failure": {
        "same_key_same_answer": [lambda key: DrawnFaults(fresh(key))],
        "order_of_asking_does_not_matter": [lambda key: DrawnFaults(fresh(key))],
        "adding_clients_leaves_the_others": [lambda key: DrawnFaults(fresh(key))],
        "faults_lie_within_the_work": [
            lambda key: Faulty(lambda works_s: Fault("late", works_s + 1.0, breaks=True)),
            lambda key: Faulty(lambda works_s: Fault("before", -1.0, breaks=True)),
            lambda key: Faulty(lambda works_s: Fault("half done, and all kept", works_s / 2)),
            lambda key: Faulty(lambda works_s: Fault("", works_s)),
        ],
        "more_work_fails_no_less": [lambda key: Faulty(lambda works_s: Fault("short", works_s) if works_s < 10.0 else None)],
    },
    "availability": {
        **SHARED,
        "next_change_is_later": [lambda key: Warped(sometimes(key), change=lambda inner, clients, now: now)],
        "something_changes_there": [
            lambda key: Warped(Always(), change=lambda inner, clients, now: now + 60.0),
            lambda key: Warped(sometimes(key), change=lambda inner, clients, now: math.nextafter(
                inner.next_change(clients, now), 0.0)),
        ],
        "nothing_changes_before": [lambda key: Warped(sometimes(key), change=skips_one)],
        "answers_stay_as_given": [lambda key: OneArray(sometimes(key))],
    },
}  # fmt: skip
REGISTRIES: list[Registry[Any]] = [computes, networks, energies, rams, loaders, availabilities, failures]


@pytest.mark.parametrize(
    ("noun", "name", "settings", "law"),
    [
        pytest.param(registry.noun, name, settings, law, id=f"{registry.noun}-{name}-{number}-{law}")
        for registry in REGISTRIES
        for number, (name, settings) in enumerate(settings_of(registry))
        for law in LAWS[registry.noun]
    ],
)
def test_every_registered_kind_keeps_every_law(noun: str, name: str, settings: dict[str, Any], law: str) -> None:
    """Every device, link and availability model in the registries keeps the law."""
    hold(noun, name, settings, laws=[law])


@pytest.mark.parametrize(
    ("noun", "law", "wrong"),
    [
        pytest.param(noun, law, wrong, id=f"{law}-{number}")
        for noun, law in {law: (noun, law) for noun in WRONG for law in LAWS[noun]}.values()
        for number, wrong in enumerate(WRONG[noun][law])
    ],
)
def test_the_law_has_teeth(noun: str, law: str, wrong: Callable[[Key], Any]) -> None:
    """The law rejects a model that was made to break it."""
    with pytest.raises(Broken, match=f"'{law}'"):
        ask(LAWS[noun][law], wrong)


def test_a_number_drawn_alone_has_the_bits_of_the_vector() -> None:
    """Key.uniform_at gives what Key.uniform gives, to the last bit, for any 64-bit id."""
    for seed in range(5):
        key = Key(seed).fold("any")
        ids = np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, size=2000)
        ids[:4] = [0, 1, -1, 2**63 - 1]

        assert key.uniform(ids).tolist() == [key.uniform_at(id) for id in ids.tolist()]


def test_one_device_alone_has_the_speed_that_it_has_among_many() -> None:
    """A log-normal device takes, to the last bit, the time that its speed in the vector says."""
    devices, clients = lognormal_compute(Key(1), gflops=5.0, overhead_s=1.0), np.arange(3000)

    expected = (1.0 + 1e9 / (devices.gflops(clients) * 1e9)).tolist()
    assert expected == [devices.seconds(client, 0, 1e9) for client in clients.tolist()]


def test_one_link_alone_has_the_rate_that_it_has_among_many() -> None:
    """A log-normal link takes, to the last bit, the time that its rates in the vectors say."""
    links, clients = lognormal_network(Key(1), down_mbps=6.0, up_mbps=2.0, latency_s=0.06), np.arange(3000)

    expected = (0.06 + 12_345 * 8e-6 / links.up_mbps(clients)).tolist()
    assert expected == [links.up_s(client, 12_345) for client in clients.tolist()]
    expected = (0.06 + 12_345 * 8e-6 / links.down_mbps(clients)).tolist()
    assert expected == [links.down_s(client, 12_345) for client in clients.tolist()]


def test_another_key_is_another_luck() -> None:
    """Each kind that asks for a key answers otherwise under another key."""
    for registry in REGISTRIES:
        for name in registry:
            make = maker(registry, name, REQUIRED[registry.noun].get(name, {}))
            drawn = name not in ("always", "constant", "field_guide", "ideal", "prefetch")  # Loaders differ where there is a sigma.

            assert drawn == (answers(make(Key(0)), CLIENTS) != answers(make(Key(1)), CLIENTS))


def test_one_setting_of_a_link_leaves_the_other_rate() -> None:
    """The correlation moves rates up alone, so that two scenarios are compared on the same luck down."""
    one = lognormal_network(Key(2), down_mbps=6.0, up_mbps=2.0, correlation=0.0)
    two = lognormal_network(Key(2), down_mbps=6.0, up_mbps=2.0, correlation=0.9)

    assert one.down_mbps(CLIENTS).tolist() == two.down_mbps(CLIENTS).tolist()
    assert one.up_mbps(CLIENTS).tolist() != two.up_mbps(CLIENTS).tolist()


def test_time_moves_on_where_a_period_is_shorter_than_a_float() -> None:
    """A change comes strictly later, and changes something, where periods are too short to be told apart."""
    clients, one = OnOff(1e-30, 1e-30, Key(0), Key(1)), np.array([0])
    now = clients.next_change(one, 0.0)
    for _ in range(50):
        change = clients.next_change(one, now)
        assert now < change
        assert clients.available(one, now)[0] != clients.available(one, change)[0]
        now = change


def test_slots_begin_where_they_say() -> None:
    """A slot's first instant is in the slot, and the float before it is not, also where the quotient rounds."""
    for slot_s in (0.1, 0.3, 1.1, 100.1, 1e5 / 3):
        clients, all_of_them = diurnal(Key(0), slot_s=slot_s, period_s=1e6), np.arange(200)
        for slot in range(1, 2000):
            edge = slot * slot_s
            before = clients.available(all_of_them, math.nextafter(edge, 0.0))
            after = clients.available(all_of_them, math.nextafter(edge, math.inf))

            assert after.tolist() == clients.available(all_of_them, edge).tolist()
            assert before.tolist() != after.tolist()


def test_more_clients_than_there_are_is_an_error() -> None:
    """A mean and an amplitude that make more than all clients available are refused in the reader's words."""
    with pytest.raises(ScenarioError, match=r"^clients\.availability\.mean = 0\.7: .* Must be <= .* = 0\.625\.$"):
        diurnal(Key(0), mean=0.7)


def test_a_slot_longer_than_half_a_day_is_an_error() -> None:
    """Slots too long to see the period are refused in the reader's words."""
    with pytest.raises(ScenarioError, match=r"^clients\.availability\.slot_s = 50000: must be <= period_s / 2 = 43200"):
        diurnal(Key(0), slot_s=50_000.0)


def test_the_memo_forgets_nothing_and_adds_nothing() -> None:
    """On and off clients answer a fresh model's answers in every order of asking about four times."""
    times, clients = (0.0, 700.0, 40_000.0, 90_000.0), np.arange(40)
    alone = {now: sometimes(Key(3)).available(clients, now).tolist() for now in times}
    for order in permutations(times):
        model = sometimes(Key(3))
        for now in order:
            assert alone[now] == model.available(clients, now).tolist()
        for earlier, later in pairwise(sorted(times)):
            assert earlier < model.next_change(clients, earlier) <= model.next_change(clients, later)
