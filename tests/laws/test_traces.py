"""What was recorded is gone by exactly, alone and on a shared link, and a file that cannot be is refused where it is wrong."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import simpy

from fedsim.core.errors import RunError, ScenarioError
from fedsim.core.keys import Key
from fedsim.cost.compute import lognormal
from fedsim.cost.network import MBIT_PER_BYTE, Network, way_s
from fedsim.cost.profiles import tiers
from fedsim.cost.recorded import devices, recorded, trace
from fedsim.scenario.costs import Held
from fedsim.sim.links import Shared

TRACES = Path(__file__).parents[1] / "traces"
LINKS, PHONES = str(TRACES / "links.csv"), str(TRACES / "phones.npz")
CLIENTS = np.arange(40)


def found(path: str) -> Path:
    return Path(path)


def rates(network: Network, client: int, times: np.ndarray) -> np.ndarray:
    """Return the rate up in bytes per second at *times*."""
    piece: Callable[[int, float], tuple[float, float]] = getattr(network, "up_piece")
    return np.array([piece(client, float(t))[0] for t in times]) / MBIT_PER_BYTE


@pytest.mark.parametrize("shifted", [False, True])
def test_a_transfer_over_a_rate_that_goes_with_time_is_integrated_exactly(shifted: bool) -> None:
    """Against steps of 5 ms, over two turns of a trace; at its mean rate it would take another time."""
    network, steps = trace(Key(2), found, path=LINKS, shifted=shifted), np.arange(0.0, 90.0, 0.005)
    apart = 0
    for client, now in ((0, 3.3), (3, 0.0), (8, 31.7)):
        sent = rates(network, client, now + steps + 0.0025).cumsum() * 0.005
        for size in (1_000, 300_000, 5_000_000):
            takes = way_s(network, "up", client, size, now)
            assert takes == pytest.approx(float(np.interp(size, sent, steps + 0.005)), abs=0.012)
            apart += abs(takes - network.up_s(client, size)) > 0.05
    assert apart > 4


def test_a_trace_begins_anew_where_it_ends() -> None:
    network = trace(Key(2), found, path=LINKS, shifted=False, assign="in_turn")
    length = network.up[0].length_s

    assert way_s(network, "up", 0, 200_000, 1.0) == pytest.approx(way_s(network, "up", 0, 200_000, 1.0 + 7 * length), rel=1e-9)
    assert network.up_piece(0, 5 * length + 0.5)[0] == network.up_piece(0, 0.5)[0]


def test_rates_that_go_with_time_share_a_link_fairly() -> None:
    """Six clients of traces on a link that is mostly full: their ends, against steps of 2 ms of max-min fair rates."""
    network, capacity = trace(Key(4), found, path=LINKS), 4e5
    sizes = [200_000 + 60_000 * client for client in range(6)]
    env, came = simpy.Environment(), [0.0] * 6
    links = Shared(env, network, None, capacity)

    def one(client: int) -> Any:
        yield env.timeout(0.7 * client)
        yield links.up(client, sizes[client])
        came[client] = float(env.now)

    for client in range(6):
        env.process(one(client))
    env.run()

    step, now, left, ends = 0.002, 0.0, np.array(sizes, dtype=float), np.full(6, math.inf)
    while np.isinf(ends).any():
        there = [c for c in range(6) if now >= 0.7 * c and math.isinf(ends[c])]
        caps, room = {c: network.up_piece(c, now)[0] / MBIT_PER_BYTE for c in there}, capacity
        for done, c in enumerate(sorted(there, key=caps.__getitem__)):
            rate = min(caps[c], room / (len(there) - done))
            room, left[c] = room - rate, left[c] - rate * step
            if left[c] <= 0:
                ends[c] = now + step
        now += step
    np.testing.assert_allclose(came, ends, atol=0.03)
    alone = [0.7 * c + way_s(network, "up", c, sizes[c], 0.7 * c) for c in range(6)]
    assert max(late - own for late, own in zip(came, alone, strict=True)) > 0.3, "the link was never full"


def test_who_comes_and_goes_by_a_trace_is_there_as_often_as_it_says() -> None:
    """Five phones in turn, over two of their days: the share of slots at 1, unknown ones as last known, or off, or on."""
    known = np.load(PHONES)["available"]
    for unknown in ("last", "off", "on"):
        there = recorded(Key(1), found, path=PHONES, unknown=unknown, assign="in_turn")
        seen = np.array([there.available(np.arange(5), 900.0 + 1800.0 * slot) for slot in range(96)])
        sure = np.tile(known, 2).T
        assert (seen[sure == 1]).all()
        assert not seen[sure == 0].any()
        assert unknown == "last" or (seen[sure == -1] == (unknown == "on")).all()
        if unknown == "last":
            again = [(slot, client) for slot in range(49, 96) for client in range(5) if sure[slot, client] == -1]
            assert all(seen[slot, client] == seen[slot - 1, client] for slot, client in again if slot % 48)
    spread = recorded(Key(1), found, path=PHONES, phase_spread_s=7200.0, assign="in_turn")
    assert len({spread.next_change(np.array([client]), 0.0) % 1800.0 for client in range(0, 40, 5)}) > 5


def test_speeds_go_with_volumes_as_far_as_is_said() -> None:
    """The correlation of log speeds and normal scores is the one asked for (n = 20,000: within 0.02), and their spread stays."""
    from scipy.special import ndtri

    clients = np.arange(20_000)
    scores = ndtri((np.random.default_rng(0).permutation(20_000) + 0.5) / 20_000)
    for rho in (-0.8, 0.0, 0.5):
        logs = np.log(lognormal(Key(3), lambda of: scores[of], gflops=5.0, speed_data_correlation=rho).gflops(clients))
        assert abs(np.corrcoef(logs, scores)[0, 1] - rho) < 0.02
        assert abs(logs.std() - 0.6) < 0.01
    tiered = tiers(Key(3), lambda of: scores[of], gflops=8.0, speed_data_correlation=0.9)
    speeds = tiered.gflops(clients)
    assert [round(float((speeds == speed).mean()), 1) for speed in (8.0, 8.0 / 3.0, 1.0)] == [0.3, 0.5, 0.2]
    assert speeds[scores > 1].mean() > 2 * speeds[scores < -1].mean()


BAD: dict[str, tuple[Callable[..., Any], str, dict[str, Any], str]] = {
    "backwards": (trace, "time_s,down_mbps,up_mbps\n0,1,1\n2,1,1\n1,1,1\n", {}, "line 4, 'time_s': 1 does not come after 2"),
    "NaN": (trace, "time_s,down_mbps,up_mbps\n0,1,1\n1,nan,1\n", {}, "line 3, 'down_mbps': 'nan': must be a finite number >= 0"),
    "below 0": (trace, "time_s,down_mbps,up_mbps\n0,1,-2\n", {}, "line 2, 'up_mbps': '-2'"),
    "never above 0": (trace, "time_s,down_mbps,up_mbps\n0,0,1\n9,0,1\n", {}, "down_mbps = 0 at all times"),
    "no rate up": (trace, "time_s,down_mbps\n0,1\n", {}, "Give clients.network.up_share"),
    "no such kind": (trace, "time_s,down_mbps,up_mbps,kind\n0,1,1,bus\n", {"only": "tram"}, "only = 'tram': no trace"),
    "no rows": (trace, "time_s,down_mbps,up_mbps\n", {}, "has no rows"),
    "speed 0": (devices, "gflops\n1.0\n0\n", {}, "line 3, 'gflops': '0': must be a finite number > 0"),
    "neither": (recorded, "time_s,available\n0,1\n5,2\n", {}, "'available' is 2; it is 1"),
    "nobody": (recorded, "time_s,available\n0,0\n5,-1\n", {}, "nobody is ever there"),
    "slots twice": (recorded, "time_s,available\n0,1\n5,0\n", {"slot_s": 5.0}, "slot_s = 5: the file has times of its own"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_gone_by_is_refused_where_it_is_wrong(name: str, tmp_path: Path) -> None:
    make, text, settings, said = BAD[name]
    (tmp_path / "bad.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ScenarioError, match=said):
        make(Key(0), lambda path: tmp_path / path, path="bad.csv", **settings)


def test_a_rate_that_stays_0_is_an_error_and_no_endless_wait() -> None:
    class Dead:
        def down_s(self, client: int, size_bytes: int) -> float:
            return 0.0

        up_s = down_s

        def down_piece(self, client: int, now: float) -> tuple[float, float]:
            return 0.0, math.inf

        up_piece = down_piece

    dead: Any = Dead()
    with pytest.raises(RunError, match=r"1,000 bytes up, client 3's, never arrive: from 5 s on its rate is 0"):
        way_s(dead, "up", 3, 1000, 5.0)


def test_a_scenario_of_traces_runs_and_its_manifest_has_their_marks(go: Any) -> None:
    traced = {
        "clients.network": {"kind": "trace", "path": LINKS, "latency_s": 0.05},
        "clients.compute": {"kind": "trace", "path": str(TRACES / "devices.csv")},
        "clients.availability": {"kind": "trace", "path": PHONES}, "server.strategy.clients_per_round": 2,
    }  # fmt: skip
    one, two = go(traced), go(traced)

    assert one.manifest["digest"] == two.manifest["digest"]
    assert {"links.csv", "phones.npz", "devices.csv"} == {Path(name).name for name in one.manifest["files"]}


def test_what_protocols_add_is_on_the_clock_and_in_the_bytes(go: Any) -> None:
    """Each message has 500 bytes, 10 % of its own and, of all that, a ninth for a tenth that is lost; with none of it nothing moves."""
    over, none, bare = (go({"clients.overhead": table} if table else {}) for table in (
        {"message_bytes": 500, "share": 0.1, "loss": 0.1}, {"message_bytes": 0}, None,
    ))  # fmt: skip
    plain, more = bare.tasks, over.tasks
    whole = plain.up_bytes + plain.up_framing_bytes
    added = 500 + np.ceil(0.1 * whole)
    resent = np.ceil((whole + added) * (0.1 / 0.9))

    assert bare.manifest["digest"] == none.manifest["digest"] != over.manifest["digest"]
    assert (more.up_resent_bytes == resent).all()
    assert (more.up_framing_bytes == plain.up_framing_bytes + added + resent).all()
    assert ((more.arrived_s - more.computed_s) > (plain.arrived_s - plain.computed_s)).all()
    assert over.ledger().resent.sum() == more.up_resent_bytes.sum() + more.down_resent_bytes.sum() > 0
    assert bare.ledger().resent.sum() == 0


def test_clients_that_hold_as_much_differ_as_their_devices_do() -> None:
    """With equal volumes, at a correlation of 0.9, speeds spread as without (sigma 0.6, chances .3, .5, .2), whatever the kinds' order."""
    some: Any = SimpleNamespace(count=20_000, sizes=lambda clients: np.full(len(clients), 30))
    clients, scores = np.arange(20_000), Held(some, Key(9))
    spread = pickle.loads(pickle.dumps(lognormal(Key(3), scores, gflops=5.0, speed_data_correlation=0.9)))  # As a node's kit has it.
    logs = np.log(spread.gflops(clients))
    assert abs(logs.std() - 0.6) < 0.01
    for slower, shares in (([1.0, 3.0, 8.0], [0.3, 0.5, 0.2]), ([8.0, 1.0, 3.0], [0.2, 0.3, 0.5])):
        speeds = tiers(Key(3), scores, gflops=8.0, slower=slower, shares=shares, speed_data_correlation=0.9).gflops(clients)
        assert [round(float((speeds == speed).mean()), 2) for speed in (8.0, 8.0 / 3.0, 1.0)] == [0.3, 0.5, 0.2]
        assert np.corrcoef(np.log(speeds), scores(clients))[0, 1] > 0.7


def test_what_is_lost_of_answers_is_resent_too(go: Any) -> None:
    """With loss and nothing else, all that framing grew by was sent again, answers to replies included; a reply has one handshake."""
    bare, lossy, hands = (go({"clients.overhead": table}) for table in ({}, {"loss": 0.2}, {"message_bytes": 500}))
    framing = [int((run.tasks.down_framing_bytes + run.tasks.up_framing_bytes).sum()) for run in (bare, lossy, hands)]

    assert framing[1] - framing[0] == lossy.ledger().resent.sum() > 0
    assert framing[2] - framing[0] == 2 * 500 * len(bare.tasks)


def test_rows_of_several_kinds_are_no_trace_of_one(tmp_path: Path) -> None:
    (tmp_path / "mixed.csv").write_text("time_s,down_mbps,up_mbps,kind\n0,1,1,bus\n1,9,9,tram\n", encoding="utf-8")
    with pytest.raises(ScenarioError, match="one trace in 'mixed.csv' is of several kinds"):
        trace(Key(0), lambda path: tmp_path / path, path="mixed.csv", only="bus")


def test_a_file_keeps_its_clock_where_it_is_asked_to(tmp_path: Path) -> None:
    """Seconds since midnight, from 8 h on, of a whole day: a run begins at midnight, or with the first row; who is there goes with it."""
    rows = "time_s,down_mbps,up_mbps,available\n28800,1,1,1\n64800,2,1,0\n79200,4,1,1\n"  # 8 h, 18 h, 22 h; the last is as long as 4 h.
    (tmp_path / "day.csv").write_text(rows)

    def find(path: str) -> Path:
        return tmp_path / path

    one, length_s = np.array([0]), 18 * 3600.0
    first = trace(Key(0), find, path="day.csv", shifted=False)
    zero = trace(Key(0), find, path="day.csv", shifted=False, begins="zero")
    there = recorded(Key(0), find, path="day.csv", begins="zero")

    assert first.down_piece(0, 0.0) == (1.0, 36000.0)
    for hour, mbps, on in ((8.0, 1.0, True), (17.9, 1.0, True), (18.0, 2.0, False), (21.9, 2.0, False), (22.0, 4.0, True)):
        assert zero.down_piece(0, hour * 3600)[0] == mbps and there.available(one, hour * 3600)[0] == on
    assert zero.down_piece(0, 0.0) == (2.0, 4 * 3600.0)  # As at the end of the turn before: 18 h of it, at 18 h.
    assert zero.down_mbps(one)[0] == pytest.approx(first.down_mbps(one)[0]) and zero.down[0].length_s == length_s
    with pytest.raises(ScenarioError, match=r"clients\.network\.begins = 'zero': .* shifted = false"):
        trace(Key(0), find, path="day.csv", begins="zero")
