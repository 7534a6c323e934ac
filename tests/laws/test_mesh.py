"""Transfers that cross several links at once are max-min fair and exact: by linear programs, by bottlenecks, and as one link does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simpy
from scipy.optimize import linprog

from fedsim.core.errors import RunError, ScenarioError
from fedsim.core.keys import Key
from fedsim.core.types import FloatArray
from fedsim.cost.cells import Cells
from fedsim.cost.network import MBIT_PER_BYTE, ServerLink, constant, lognormal
from fedsim.sim import mesh
from fedsim.sim.links import Shared, Unshared, crossing
from fedsim.sim.mesh import Mesh, max_min
from fedsim.sim.shares import Line

Fair = Callable[[FloatArray, FloatArray, Any], FloatArray]


def case(seed: int) -> tuple[FloatArray, FloatArray, Any]:
    """Return capacities, rates of transfers' own, and routes of one to three links, drawn at random; some alike, some without a rate."""
    draw = np.random.default_rng(seed)
    links, n = int(draw.integers(1, 6)), int(draw.integers(1, 13))
    caps = np.where(draw.random(n) < 0.4, math.inf, np.round(draw.lognormal(1.0, 1.0, n), 1) + 0.1)
    return np.round(draw.uniform(2.0, 20.0, links)), caps, draw.integers(0, links, (n, int(draw.integers(1, 4))))


def by_programs(capacities: FloatArray, caps: FloatArray, routes: Any) -> FloatArray:
    """Return max-min fair rates by linear programs: the least as large as can be, then whoever cannot have more stays, and so on."""
    n = len(caps)
    crosses = np.zeros((len(capacities), n))
    for i, route in enumerate(routes):
        crosses[route, i] = 1.0
    fixed = np.full(n, np.nan)

    def most(what: Any, least: FloatArray, rising: Any) -> Any:
        """Maximise *what* where those *rising* have the last variable at least, and all at least *least*."""
        rows = [np.append(row, 0.0) for row in crosses] + [np.append(-np.eye(n)[i], 1.0) for i in np.flatnonzero(rising)]
        limits = np.append(capacities, np.zeros(int(rising.sum())))
        top = np.where(np.isnan(fixed), np.where(np.isinf(caps), 1e6, caps), fixed)
        bounds = [*zip(np.minimum(least, top), top, strict=True), (0.0, 1e6)]
        return linprog(-np.asarray(what), A_ub=np.array(rows), b_ub=limits, bounds=bounds, method="highs").x

    while np.isnan(fixed).any():
        open_ = np.isnan(fixed)
        level = most(np.append(np.zeros(n), 1.0), np.where(open_, 0.0, fixed), open_)[-1]
        least = np.where(open_, level * (1 - 1e-9), fixed * (1 - 1e-9))
        for i in np.flatnonzero(open_):
            if most(np.append(np.eye(n)[i], 0.0), least, np.zeros(n, dtype=bool))[i] <= level * (1 + 1e-6) + 1e-7:
                fixed[i] = level
    return fixed


def local(capacities: FloatArray, caps: FloatArray, routes: Any) -> FloatArray:
    """Return an equal share of the fullest link, whatever others leave of it: feasible, and not max-min."""
    count = np.zeros(len(capacities))
    for route in routes:
        count[list({*route.tolist()})] += 1
    return np.array([min(cap, *(capacities[link] / count[link] for link in route)) for cap, route in zip(caps, routes, strict=True)])


def test_shares_are_those_of_linear_programs() -> None:
    """Of 40 random cases all rates are those found by maximising the least, to 1e-6; equal shares of the fullest link are not."""
    others = 0
    for seed in range(40):
        asked = case(seed)
        found, wanted = max_min(*asked), by_programs(*asked)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6, err_msg=str(seed))
        others += not np.allclose(local(*asked), wanted, rtol=1e-3)

    assert others > 12


@pytest.mark.parametrize("seed", range(20))
def test_who_is_slower_than_it_could_be_is_held_by_a_full_link_on_which_it_is_the_fastest(seed: int) -> None:
    """Max-min fairness by its bottlenecks (Bertsekas and Gallager 1992, 6.5.2), among three hundred transfers; no link is exceeded."""
    draw = np.random.default_rng(seed)
    capacities, routes = draw.uniform(20.0, 90.0, 12), draw.integers(0, 12, (300, 2))
    caps = np.where(draw.random(300) < 0.3, math.inf, draw.lognormal(0.0, 1.0, 300))
    rates = max_min(capacities, caps, routes)
    used = np.array([rates[(routes == link).any(axis=1)].sum() for link in range(12)])

    assert (used <= capacities * (1 + 1e-9)).all()
    for rate, cap, route in zip(rates, caps, routes, strict=True):
        full = [link for link in route if used[link] >= capacities[link] * (1 - 1e-9)]
        assert rate == cap or any(rate >= rates[(routes == link).any(axis=1)].max() * (1 - 1e-9) for link in full)


def world(seed: int, count: int = 25) -> tuple[FloatArray, list[tuple[float, float, float, tuple[int, ...]]]]:
    """Return capacities, and transfers in the order of coming: moment, bytes, own rate, route."""
    draw = np.random.default_rng(seed)
    at = np.round(draw.exponential(0.5, count).cumsum(), 1 if seed % 2 else 6)
    caps = np.where(draw.random(count) < 0.3, math.inf, draw.lognormal(2.0, 1.0, count))
    routes = [tuple(draw.choice(4, int(draw.integers(1, 4)), replace=False).tolist()) for _ in range(count)]
    return draw.uniform(10.0, 40.0, 4), [*zip(at.tolist(), draw.exponential(30.0, count).tolist(), caps.tolist(), routes, strict=True)]


def carried(line: Mesh | Line, asked: list[tuple[float, float, float, tuple[int, ...]]]) -> list[float]:
    """Return when each ends, looked at only when something begins or ends."""
    ends, waiting = [math.inf] * len(asked), list(range(len(asked)))
    while waiting or len(line):
        due, coming = line.next_s(), asked[waiting[0]][0] if waiting else math.inf
        if due <= coming:
            for i, _ in line.end(due):
                ends[i] = due
            continue
        i = waiting.pop(0)
        _, size, cap, route = asked[i]
        line.begin(i, size, cap, coming, *([route] if isinstance(line, Mesh) else []))
    return ends


def solved(capacities: FloatArray, asked: list[tuple[float, float, float, tuple[int, ...]]], fair: Fair) -> list[float]:
    """Return when each ends, in small steps from change to change, all rates worked out anew."""
    left, ends, now = [each[1] for each in asked], [math.inf] * len(asked), 0.0
    while math.inf in ends:
        there = [i for i, each in enumerate(asked) if each[0] <= now and math.isinf(ends[i])]
        routes = np.array([[*asked[i][3], *[asked[i][3][0]] * (3 - len(asked[i][3]))] for i in there]).reshape(-1, 3)
        rates = fair(capacities, np.array([asked[i][2] for i in there]), routes).tolist() if there else []
        ending = min((left[i] / rate for i, rate in zip(there, rates, strict=True)), default=math.inf)
        step = min(ending, min((each[0] - now for each in asked if each[0] > now), default=math.inf))
        for i, rate in zip(there, rates, strict=True):
            left[i] -= rate * step
            if left[i] <= 1e-9 * asked[i][1] or (step == ending and left[i] / rate <= 1e-12):
                ends[i] = now + step
        now += step
    return ends


@pytest.mark.parametrize("seed", range(2))
def test_transfers_end_when_a_solver_says_and_no_byte_is_lost(seed: int) -> None:
    """Transfers over four links end as found by linear programs at every change, to 1e-6; by equal shares they end later."""
    capacities, asked = world(seed)
    ends = carried(Mesh(capacities.tolist()), asked)

    np.testing.assert_allclose(ends, solved(capacities, asked, by_programs), rtol=1e-6)
    assert not np.allclose(ends, solved(capacities, asked, local), rtol=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_a_route_of_one_link_is_the_line_that_it_was(seed: int) -> None:
    """Over one link a mesh is a Line: transfers end at the same moments, to 1e-12."""
    _, asked = world(seed, 200)
    over = [(at, size, cap, (0,)) for at, size, cap, _ in asked]

    np.testing.assert_allclose(carried(Mesh([25.0]), over), carried(Line(25.0), over), rtol=1e-12)


def test_shares_that_exceed_a_link_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mesh in which everybody goes at its own rate breaks an invariant."""
    monkeypatch.setattr(mesh, "_filled", lambda capacities, caps, routes: caps.copy())

    with pytest.raises(RunError, match="the shares of a link exceed it"):
        carried(Mesh([5.0]), [(0.0, 10.0, 4.0, (0,)), (0.0, 10.0, 4.0, (0,))])


def arrivals(links: Any, sent: list[tuple[float, int, int]], way: str = "up") -> list[float]:
    """Return when each of *sent* (moment, client, bytes) has come."""
    env = simpy.Environment()
    of, found = links(env), [-1.0] * len(sent)

    def one(place: int, at: float, client: int, size: int) -> Any:
        yield env.timeout(at)
        yield getattr(of, way)(client, size)
        found[place] = float(env.now)

    for place, each in enumerate(sent):
        env.process(one(place, *each))
    env.run()
    return found


@pytest.mark.parametrize("way", ["down", "up"])
def test_who_is_never_slowed_down_takes_what_the_network_says_to_the_last_bit(way: str) -> None:
    """With room for all every arrival is that of links of their own; one cell for all is the server's link that it stands for."""
    network = lognormal(Key(3), down_mbps=6.0, up_mbps=2.0, latency_s=0.06)
    draw = np.random.default_rng(1)
    sent = [(float(draw.uniform(0, 20)), int(draw.integers(0, 9)), int(draw.integers(0, 2_000_000))) for _ in range(80)]
    thirds, one = np.arange(9) // 3, np.zeros(9, dtype=np.int64)
    roomy = crossing(Cells(3, thirds, 1e4, 1e4), ServerLink(1e4, 1e4))
    alike = crossing(Cells(1, one, 1e6 * MBIT_PER_BYTE, 1e6 * MBIT_PER_BYTE), None)

    assert arrivals(lambda env: Unshared(env, network), sent, way) == arrivals(lambda env: roomy(env, network), sent, way)
    shared = arrivals(lambda env: Shared(env, network, 1e6, 1e6), sent, way)
    np.testing.assert_allclose(arrivals(lambda env: alike(env, network), sent, way), shared, rtol=1e-9)


def test_two_links_at_once_by_hand() -> None:
    """Three households of 3, 2 and 1 clients send 1 MB each over 6 Mbit/s a house and a server of 12: 3 x 2, then 2 x 3, and 0.

    The first house gives each 2 Mbit/s, the second 3, the third what the server leaves, nothing; once the server is full, all have
    level 12 / 6 = 2, since no house holds anybody below it. Then six go at 2 Mbit/s each for 4 s.
    """
    network, of = constant(down_mbps=100.0, up_mbps=100.0), np.array([0, 0, 0, 1, 1, 2])
    lay = crossing(Cells(3, of, None, 6.0), ServerLink(None, 12.0))
    tight = crossing(Cells(3, of, None, 4.5), ServerLink(None, 12.0))

    assert [4.0] * 6 == pytest.approx(arrivals(lambda env: lay(env, network), [(0.0, client, 1_000_000) for client in range(6)]))
    # 1.5 each in the first house; of the server's other 7.5, 2.25 each in the second, 3 for the third.
    assert arrivals(lambda env: tight(env, network), [(0.0, client, 1_000_000) for client in range(6)]) == pytest.approx(
        [16 / 3] * 3 + [32 / 9] * 2 + [8 / 3]
    )


def test_a_run_behind_cells_goes_by_them(go: Any) -> None:
    """A cell that is never full moves no digest; a full one is what its clients' rounds wait for, behind a server and behind edges."""
    slow = {"count": 2, "up_mbps": 0.02}
    flat, roomy = go({}), go({"clients.cells": {"count": 3, "down_mbps": 1e6}})
    tight, both = go({"clients.cells": slow}), go({"clients.cells": slow, "server.link": {"ingress_mbps": 0.01}})
    edged = go({"clients.cells": slow, "edges": {"count": 2, "access": {"ingress_mbps": 0.01}}})

    assert flat.digest == roomy.digest != tight.digest
    each = (tight.tasks.up_bytes + tight.tasks.up_framing_bytes).iloc[0] * 8e-6
    sent = tight.tasks[tight.tasks["round"] == 1]
    assert float(sent.arrived_s.max()) > 3 * each / 0.02
    assert flat.manifest["model"]["content"] == tight.manifest["model"]["content"] == edged.manifest["model"]["content"]
    assert both.manifest["virtual_s"] > tight.manifest["virtual_s"] + 2 * (6 * each / 0.01 - 3 * each / 0.02) - 3.0
    first = edged.tasks[edged.tasks["round"] == 1]
    assert 3 * each / 0.01 <= float(first.arrived_s.max() - first.computed_s.min()) <= 3 * each / 0.01 + 2.5


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"clients.cells": {"count": 2}}, r"clients\.cells: give down_mbps, up_mbps, or both"),
        ({"clients.cells": {"count": 9, "up_mbps": 1.0}}, r"clients\.cells\.count = 9: more cells than the 6 clients"),
        ({"clients.cells": {"count": 2, "up_mbps": 1.0, "assign": [0, 1]}}, r"clients\.cells\.assign: lists the cells of 2 clients"),
        ({"clients.cells": {"count": 2, "up_mbps": 1.0}, "clients.leaving": "abort"}, r"clients\.leaving = 'abort': .*clients\.cells"),
    ],
)  # fmt: skip
def test_cells_that_cannot_be_are_refused(change: dict[str, Any], line: str, go: Any) -> None:
    """Cells that carry anything, more of them than clients, or lists of other lengths are refused by their keys."""
    with pytest.raises(ScenarioError, match=line):
        go(change)
