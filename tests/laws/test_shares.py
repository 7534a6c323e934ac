"""A shared link is max-min fair and exact: against a solver that works everything out at every change, and against queueing theory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import simpy

from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.cost.network import constant, lognormal
from fedsim.scenario.fleet import devices, load_fleet, on_fleet
from fedsim.sim.links import Shared, Unshared
from fedsim.sim.shares import Line


@dataclass(frozen=True)
class Asked:
    """A transfer: when it begins, its bytes, and its own rate."""

    at: float
    size: float
    cap: float


def world(seed: int, count: int = 60) -> tuple[float, list[Asked]]:
    """Return a capacity and transfers drawn at random: some at once, some with no rate of their own, some of equal rates."""
    draw = np.random.default_rng(seed)
    at = np.round(draw.exponential(1.0, count).cumsum(), 1) if seed % 2 else draw.exponential(1.0, count).cumsum()
    caps = np.where(draw.random(count) < 0.2, math.inf, draw.lognormal(2.0, 1.0, count))
    caps[draw.random(count) < 0.2] = 5.0
    capacity, sizes = float(draw.uniform(25.0, 60.0)), draw.exponential(30.0, count)
    return capacity, [Asked(*each) for each in zip(at.tolist(), sizes.tolist(), caps.tolist(), strict=True)]


def max_min(capacity: float, caps: list[float]) -> list[float]:
    """Return max-min fair rates by filling up from the slowest (Bertsekas and Gallager 1992, section 6.5.2)."""
    rates, left = [0.0] * len(caps), capacity
    order = sorted(range(len(caps)), key=caps.__getitem__)
    for done, i in enumerate(order):
        rates[i] = min(caps[i], left / (len(caps) - done))
        left -= rates[i]
    return rates


def equal_shares(capacity: float, caps: list[float]) -> list[float]:
    """Return rates that are fair and waste what the slow ones leave: not max-min."""
    return [min(cap, capacity / len(caps)) for cap in caps]


def solved(capacity: float, asked: list[Asked], fair: Callable[[float, list[float]], list[float]]) -> list[float]:
    """Return when each transfer ends, all rates worked out anew at each change."""
    left, ends, now = [each.size for each in asked], [math.inf] * len(asked), 0.0
    while math.inf in ends:
        there = [i for i, each in enumerate(asked) if each.at <= now and math.isinf(ends[i])]
        rates = fair(capacity, [asked[i].cap for i in there])
        ending = min((left[i] / rate for i, rate in zip(there, rates, strict=True)), default=math.inf)
        coming = min((each.at - now for each in asked if each.at > now), default=math.inf)
        step = min(ending, coming)
        for i, rate in zip(there, rates, strict=True):
            left[i] -= rate * step
            if left[i] <= 1e-9 * asked[i].size or (step == ending and left[i] / rate <= 1e-12):
                ends[i] = now + step
        now += step
    return ends


def carried(capacity: float, asked: list[Asked]) -> list[float]:
    """Return when each ends on a Line, which is only looked at when something begins or ends."""
    line, ends = Line(capacity), [math.inf] * len(asked)
    waiting = sorted(range(len(asked)), key=lambda i: asked[i].at)
    while waiting or len(line):
        due, coming = line.next_s(), asked[waiting[0]].at if waiting else math.inf
        if due <= coming:
            for i, _ in line.end(due):
                ends[i] = due
            continue
        i = waiting.pop(0)
        line.begin(i, asked[i].size, asked[i].cap, coming)
        used = sum(line.rate(j) for j in range(len(asked)) if math.isinf(ends[j]) and j not in waiting)
        assert used <= capacity * (1 + 1e-12)
    return ends


@pytest.mark.parametrize("seed", range(12))
def test_a_line_is_max_min_fair_and_exact(seed: int) -> None:
    """Sixty transfers end when the solver says, to 1e-9; shares that leave over what the slow cannot use end later."""
    capacity, asked = world(seed)
    ends = carried(capacity, asked)

    np.testing.assert_allclose(ends, solved(capacity, asked, max_min), rtol=1e-9)
    assert not np.allclose(ends, solved(capacity, asked, equal_shares), rtol=1e-3)


@pytest.mark.parametrize("k", [1, 2, 7, 1000])
def test_k_equal_transfers_take_k_times_as_long(k: int) -> None:
    assert carried(10.0, [Asked(0.0, 30.0, math.inf)] * k) == pytest.approx([3.0 * k] * k, rel=1e-12)


def test_a_rate_that_changes_is_gone_by_from_then_on() -> None:
    """Two share 10 B/s; one is held to 2 at 1 s and let go at 3 s: it has 5 + 4 bytes by then, the other 5 + 16."""
    line = Line(10.0)
    line.begin(0, 100.0, math.inf, 0.0)
    line.begin(1, 31.0, math.inf, 0.0)
    line.change(0, 2.0, 1.0)
    line.change(0, math.inf, 3.0)

    assert line.next_s() == pytest.approx(3.0 + (31 - 21) / 5)
    assert [(1, True)] == line.end(line.next_s())
    assert line.next_s() == pytest.approx(5.0 + (100 - 9 - 10) / 10)
    assert line.drop(0, 6.0) == pytest.approx(100 - 19 - 10)
    assert math.inf == line.next_s()


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_processor_sharing_takes_as_long_as_theory_says(load: float) -> None:
    """M/M/1-PS: the mean sojourn is 1 / (mu - lambda) (Kleinrock 1976, section 4.4), here with mu = 1, by the means of 40 batches."""
    draw = np.random.default_rng(3)
    count, batches = 60_000, 40
    at = draw.exponential(1.0 / load, count).cumsum()
    sizes = draw.exponential(1.0, count)
    ends = np.array(carried_fast(1.0, at, sizes))
    means = (ends - at)[count // 10 :].reshape(batches, -1).mean(axis=1)

    z = (means.mean() - 1.0 / (1.0 - load)) / (means.std(ddof=1) / math.sqrt(batches))
    assert abs(z) < 4, (means.mean(), z)


def carried_fast(capacity: float, at: np.ndarray, sizes: np.ndarray) -> list[float]:
    line, ends, i = Line(capacity), [0.0] * len(at), 0
    times, bytes_ = at.tolist(), sizes.tolist()
    while i < len(times) or len(line):
        due = line.next_s()
        if i < len(times) and times[i] < due:
            line.begin(i, bytes_[i], math.inf, times[i])
            i += 1
            continue
        for ended, _ in line.end(due):
            ends[ended] = due
    return ends


def arrivals(links: Callable[[simpy.Environment], Shared | Unshared], way: str, sent: list[tuple[float, int, int]]) -> list[float]:
    """Return when each of *sent* (moment, client, bytes) has come."""
    env = simpy.Environment()
    of, found = links(env), [-1.0] * len(sent)

    def one(place: int, at: float, client: int, size: int) -> object:
        yield env.timeout(at)
        yield getattr(of, way)(client, size)
        found[place] = float(env.now)

    for place, each in enumerate(sent):
        env.process(one(place, *each))  # pyright: ignore[reportArgumentType]
    env.run()
    return found


@pytest.mark.parametrize("way", ["down", "up"])
def test_who_is_never_slowed_down_takes_what_the_network_says_to_the_last_bit(way: str) -> None:
    """With room for all, every arrival is that of links of their own; with too little, some come later and none earlier."""
    network = lognormal(Key(3), down_mbps=6.0, up_mbps=2.0, latency_s=0.06)
    draw = np.random.default_rng(1)
    sent = [(float(draw.uniform(0, 20)), int(draw.integers(0, 9)), int(draw.integers(0, 2_000_000))) for _ in range(80)]
    own = arrivals(lambda env: Unshared(env, network), way, sent)

    assert own == arrivals(lambda env: Shared(env, network, 1e9, 1e9), way, sent)
    assert own == arrivals(lambda env: Shared(env, network, None, None), way, sent)
    tight = arrivals(lambda env: Shared(env, network, 1e6, 1e6), way, sent)
    late = [(a, b) for a, b in zip(own, tight, strict=True) if a != b]
    assert len(late) > 20
    assert all(b > a - 1e-9 for a, b in late)


def test_the_latency_comes_after_bytes_that_others_slowed_down() -> None:
    """Two of 1 MB on 8 Mbit/s links behind a server of 8 Mbit/s: 2 s for both, and 0.5 s of latency; one alone takes 1.5 s."""
    network = constant(down_mbps=8.0, up_mbps=8.0, latency_s=0.5)

    assert [2.5, 2.5] == arrivals(lambda env: Shared(env, network, 1e6, None), "down", [(0.0, 0, 1_000_000), (0.0, 1, 1_000_000)])
    assert [1.5, 1.5] == arrivals(lambda env: Shared(env, network, 1e6, None), "up", [(0.0, 0, 1_000_000), (0.0, 1, 1_000_000)])


def test_a_link_that_is_never_full_moves_no_digest_and_a_full_one_is_what_a_round_waits_for(go: Any) -> None:
    """Six clients send each some 2.6 kB a round: at 10 kbit/s all their bytes take 8 bits / 10 kbit/s each, and the round no less."""
    links = {}, {"server.link": {"ingress_mbps": 1e6, "egress_mbps": 1e6}}, {"server.link": {"ingress_mbps": 0.01}}
    alone, roomy, tight = map(go, links)
    sent = tight.tasks[tight.tasks["kind"] == "train"].groupby("round")
    came, bytes_ = sent["arrived_s"].max() - sent["computed_s"].min(), sent["up_bytes"].sum() + sent["up_framing_bytes"].sum()

    assert alone.manifest["digest"] == roomy.manifest["digest"] != tight.manifest["digest"]
    assert (came >= bytes_ * 8e-6 / 0.01 - 1e-6).all()
    assert (came <= bytes_ * 8e-6 / 0.01 + 2.0).all(), "the server's link stood idle"


def test_a_fleet_s_server_has_a_link_too(tmp_path: Any) -> None:
    """A scenario takes it over from a fleet file; one that says nothing of either way is refused in a line."""
    table = {"name": "few", "clients": {"count": 3}, "server": {"link": {"egress_mbps": 5.0}}}

    assert {"egress_mbps": 5.0} == on_fleet(load_fleet(table).fleet)["server.link"]
    assert 625_000.0 == devices(load_fleet(table)).server.egress  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(ScenarioError, match=r"server.link: give egress_mbps, ingress_mbps, or both"):
        load_fleet(table, {"server.link": {}})
    for name, given in (("failures", {"kind": "empty", "probability": 0.1}), ("leaving", "abort"), ("energy", {"kind": "phone"})):
        with pytest.raises(ScenarioError, match=rf"clients\.{name}: a fleet has no failures, leaving, energy, cells\. .*scenarios take it"):
            load_fleet(table, {f"clients.{name}": given})
