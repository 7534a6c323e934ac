"""Joules: closed forms of what devices draw, sums that no order moves, and a run whose numbers stay whoever counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.cost import radio
from fedsim.cost.carbon import Traced
from fedsim.cost.energy import constant, phone
from fedsim.cost.meter import GRAM, JOULE, Meter, Moments
from fedsim.cost.network import constant as links
from fedsim.cost.network import ideal
from fedsim.cost.pieces import Pieces
from fedsim.report.page import write_report
from fedsim.score import spent
from tests.conftest import tiny_table

WATTS = {"kind": "constant", "compute_w": 10.0, "down_w": 1.0, "up_w": 2.0, "idle_w": 0.5}
LATE: dict[str, Any] = {
    "clients.count": 12, "clients.compute": {"kind": "lognormal", "gflops": 0.00003, "sigma": 1.0, "overhead_s": 1.0},
    "clients.network": {"kind": "constant", "down_mbps": 1.0, "up_mbps": 0.5, "latency_s": 0.1},
    "server.strategy": {"kind": "FedAvg", "clients_per_round": 4}, "server.round_timeout_s": 3.0, "server.rounds": 12,
    "evaluate.federated_fraction": 0.3,
}  # fmt: skip
NAN = np.nan


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> fedsim.Run:
    """A run some of whose replies are late, by the constant model and a constant intensity."""
    energy = {"clients.energy": {**WATTS, "intensity": 360.0}}
    return fedsim.run(tiny_table({**LATE, **energy}), out=tmp_path_factory.mktemp("counted") / "run")


def rows(*each: tuple[float, float, float, float, float, float, bool]) -> Moments:
    """Return moments of messages: sent, received, started, computed, arrived, waited for batches, whether the end came first."""
    columns = [np.array(column, dtype=np.float64) for column in zip(*each, strict=True)]
    return Moments(*columns[:6], columns[6].astype(np.bool_))


def charge(meter: Meter, moments: Moments, down: int = 250_000, up: int = 125_000, end_s: float = 100.0) -> Any:
    n = len(moments.sent_s)
    return meter.charge(np.arange(n), moments, np.full(n, down), np.full(n, up), end_s)


def test_the_constant_model_is_watts_by_seconds() -> None:
    """Each phase is its seconds by its watts; waiting for batches is none of the work; what never happened is nothing."""
    meter = Meter("constant", constant(compute_w=10.0, down_w=1.0, up_w=2.0, idle_w=0.5), links(down_mbps=1.0, up_mbps=1.0))
    found = charge(meter, rows(
        (0.0, 2.0, 5.0, 9.0, 10.0, 1.0, False), (0.0, 2.0, 2.0, 6.0, 7.0, 0.0, False), (0.0, 2.0, 2.0, NAN, 2.0, 0.0, False),
    ))  # fmt: skip
    unreached = meter.charge(np.arange(1), rows((3.0, NAN, NAN, NAN, 3.0, 0.0, False)), np.array([0]), np.array([0]), 100.0)

    assert [30.0, 40.0, 0.0] == found.compute_j.tolist()
    assert [2.0, 2.0, 2.0] == found.down_j.tolist()
    assert [0.5 * 4.0, 0.0, 0.0] == found.idle_j.tolist()
    assert [2.0, 2.0] == found.up_j.tolist()[:2]
    assert [0.0] * 4 == [float(each[0]) for each in (unreached.compute_j, unreached.down_j, unreached.up_j, unreached.idle_j)]


def test_a_task_cut_off_counts_what_was_done() -> None:
    """Under way at the end: half a download is half its bytes, work goes on to the end, what had not begun is nothing."""
    lte = Meter("phone", phone(Key(0), radio="lte", idle_w=0.0), links(down_mbps=1.0, up_mbps=1.0))
    found = charge(lte, rows((9.0, NAN, NAN, NAN, NAN, 0.0, True), (0.0, 2.0, 3.0, NAN, NAN, 0.0, True)), up=0, end_s=10.0)

    assert [0.0, 3.0 * 7.0] == found.compute_j.tolist()
    assert found.down_j.tolist() == pytest.approx([1.28804 + 0.05197 * 1.0, 2 * 1.28804 + 0.05197 * 2.0], abs=2 * JOULE)
    assert [0.0, 0.0] == found.up_j.tolist()


def test_radios_draw_what_was_measured() -> None:
    """LTE at 2 Mbit/s up draws 1288.04 + 2 * 438.39 mW, Wi-Fi at 10 down 132.86 + 10 * 137.01: Huang et al. 2012, table 4."""
    one, ten_s = np.array([0]), np.array([10.0])
    power = {
        name: phone(Key(0), radio=name).up_j(one, np.array([2.0 * 10 / 8 * 1e6]), ten_s)[0] / 10 for name in ("wifi", "lte", "3g")
    }

    assert power == pytest.approx({"wifi": 0.13286 + 2 * 0.28317, "lte": 1.28804 + 2 * 0.43839, "3g": 0.81788 + 2 * 0.86898})
    assert phone(Key(0)).down_j(one, np.array([10.0 * 10 / 8 * 1e6]), ten_s)[0] / 10 == pytest.approx(0.13286 + 10 * 0.13701)


def test_grams_follow_the_hour() -> None:
    """Grams are joules by the mean intensity while they are drawn, by fine integration too; a cleaner hour costs less."""
    day = Traced(Pieces.of(np.arange(24) * 3600.0, np.where(np.arange(24) < 12, 100.0, 700.0)), {})
    meter = Meter("constant", constant(compute_w=10.0), ideal(), day)
    noon = 12 * 3600.0
    begins = np.array([0.0, noon, noon - 1800.0, 36 * 3600.0 - 90.0])
    found = charge(meter, rows(*((b, b, b, b + 3600.0, b + 3600.0, 0.0, False) for b in begins.tolist())))
    fine = [np.mean([day.pieces.at(b + t)[0] for t in np.arange(0.5, 3600.0)]) * 36_000 / 3.6e6 for b in begins.tolist()]

    assert found.grams.tolist() == pytest.approx(fine, abs=2 * GRAM)
    assert found.grams.tolist()[:3] == pytest.approx([1.0, 7.0, 4.0], abs=2 * GRAM)


def test_where_clients_look_the_rest_is_waiting() -> None:
    """With a transport a radio is on as long as its link takes, and what a message lay at the server for is idle."""
    meter = Meter("constant", constant(compute_w=0.0, down_w=1.0, up_w=1.0, idle_w=0.25), links(down_mbps=1.0, up_mbps=1.0), brought=False)
    found = charge(meter, rows((0.0, 6.0, 6.0, 7.0, 9.0, 0.0, False)))

    assert (2.0, 1.0, 0.25 * (4.0 + 1.0)) == (found.down_j[0], found.up_j[0], found.idle_j[0])


def sums(table: Any) -> list[Any]:
    return table[["kind", "fate", "compute_j", "down_j", "up_j", "idle_j", "total_j", "grams"]].to_numpy().tolist()


def test_sums_are_exact_in_any_order(counted: fedsim.Run) -> None:
    """By fate, in all, and in the manifest joules are the same to the last bit, whatever order the rows come in."""
    table, told, each = counted.energy(), counted.manifest["energy"], counted.charged
    names = ("compute", "down", "up", "idle")
    for seed in range(5):
        tasks, charged = counted.tasks.sample(frac=1, random_state=seed), each.sample(frac=1, random_state=seed + 50)
        assert sums(table) == sums(spent.energy(tasks, charged))

    assert [told["joules"][name] for name in names] == [table[f"{name}_j"].sum() for name in names]
    assert told["joules"]["total"] == table.total_j.sum() == each[[f"{name}_j" for name in names]].to_numpy().sum()
    assert told["joules"]["wasted"] == table[table.wasted].total_j.sum() > 0
    assert (told["grams"], told["grams_wasted"]) == (table.grams.sum(), table[table.wasted].grams.sum())
    assert table.messages.sum() == len(counted.tasks) == len(each)
    assert {"counted", "late"} <= set(table.fate)
    drawn = np.random.default_rng(0).permutation(each.compute_j.to_numpy() * 1.1)
    assert len({float(np.random.default_rng(s).permutation(drawn).cumsum()[-1]) for s in range(20)}) > 1  # As sums of other floats are not.


def test_who_else_is_charged_moves_no_bit() -> None:
    """A message alone costs what it does among others, in any order."""
    draws = np.random.default_rng(3)
    steps = np.cumsum(draws.exponential(3.0, (5, 300)), axis=0)
    moments = Moments(*steps, np.zeros(300), np.zeros(300, dtype=np.bool_))
    meter, clients = Meter("phone", phone(Key(1), sigma=0.7), links(down_mbps=1.0, up_mbps=1.0)), draws.integers(0, 1000, 300)
    sizes = draws.integers(1, 10**6, 300)
    whole = meter.charge(clients, moments, sizes, sizes, 0.0)
    for order in (draws.permutation(300), np.array([7]), np.arange(299, -1, -1)):
        some = Moments(*(getattr(moments, name)[order] for name in Moments.__slots__ if name not in ("stopped_s", "away_s")))
        part = meter.charge(clients[order], some, sizes[order], sizes[order], 0.0)
        assert all(getattr(part, name).tolist() == getattr(whole, name)[order].tolist() for name in spent.JOULES)


def test_a_run_is_charged_by_its_rows(counted: fedsim.Run) -> None:
    """Each task of a run costs its own phases by the watts, and the ledger's seconds of computing are those of the joules."""
    tasks, each = counted.tasks, spent.charged(counted.tasks, counted.charged)
    done = each[tasks.arrived_s.notna()]
    times = counted.times()[tasks.arrived_s.notna()]

    assert done.compute_j.tolist() == pytest.approx((10.0 * times.training_s).tolist(), abs=1e-5)
    assert done.up_j.tolist() == pytest.approx((2.0 * times.upload_s).tolist(), abs=1e-5)
    assert each.grams.tolist() == pytest.approx((each.total_j * 360.0 / 3.6e6).tolist(), abs=1e-8)
    ledger = counted.ledger()
    assert (10.0 * ledger.compute_s).tolist() == pytest.approx(counted.energy().compute_j.tolist(), abs=1e-3)
    assert 1.0 == pytest.approx(ledger.compute_share.sum())
    assert ledger[ledger.fate != "counted"].compute_s.sum() > 0


def test_counting_moves_nothing(counted: fedsim.Run, go: Callable[..., fedsim.Run]) -> None:
    """Whether joules are counted or not, a run has the same digests; uncounted it has no joules, and its manifest no word of them."""
    bare = go(LATE)

    assert (bare.digest, bare.metrics_digest) == (counted.digest, counted.metrics_digest)
    assert "energy" not in bare.manifest and not len(bare.energy()) and not len(bare.charged)
    assert "Where the joules went" not in write_report(bare).read_text("utf-8")


def test_every_constant_is_shown(counted: fedsim.Run) -> None:
    """The page has a part on joules with every number that they rest on."""
    page = write_report(counted).read_text("utf-8")

    assert "Where the joules went" in page
    assert "compute_w = 10, down_w = 1, up_w = 2, idle_w = 0.5, g_per_kwh = 360. " in page


def test_stragglers_waste_joules(tmp_path: Path, cli: Any) -> None:
    """A deadline costs: of the shipped scenario's joules some are for nothing; the terminal and --json say so."""
    file = Path(__file__).parents[2] / "scenarios/stragglers.toml"
    settings = ("--set", "clients.energy.kind=phone", "--set", "clients.energy.intensity=world", "--set", "server.rounds=3")
    done = cli("run", file, *settings, "--out", tmp_path / "run")
    run = fedsim.load(tmp_path / "run")

    assert 0 == done.code
    table = run.energy()
    assert 0 < table[table.wasted].share.sum() < 1
    assert {"counted", "late", "cut off"} == set(table[table.total_j > 0].fate)
    assert "of it wasted" in cli("show", tmp_path / "run").out and " of CO2" in cli("show", tmp_path / "run").out


def test_a_million_messages_are_charged_at_once() -> None:
    """A million rows take seconds: nothing goes one by one."""
    import time

    n, draws = 1_000_000, np.random.default_rng(0)
    moments = Moments(*np.cumsum(draws.random((5, n)), axis=0), np.zeros(n), np.zeros(n, dtype=np.bool_))
    meter, sizes = Meter("phone", phone(Key(0), sigma=0.3), links(down_mbps=1.0, up_mbps=1.0)), np.full(n, 1000)
    began = time.process_time()
    found = meter.charge(np.arange(n), moments, sizes, sizes, 0.0)

    assert time.process_time() - began < 10.0
    assert len(found.compute_j) == n


BAD: list[tuple[dict[str, Any], str]] = [
    ({"kind": "phon"}, r"clients\.energy\.kind = 'phon': no such energy\. Did you mean 'phone'\?"),
    ({"kind": "phone", "radio": "5g"}, r"clients\.energy\.radio = '5g': must be .*'3g'"),
    ({"kind": "phone", "soc_w": -1.0}, r"clients\.energy\.soc_w = -1\.0: must be >= 0"),
    ({"kind": "phone", "watts": 1.0}, r"clients\.energy\.watts: 'phone' has no such setting"),
    ({"kind": "constant"}, r"clients\.energy\.compute_w: missing"),
    ({"kind": "phone", "intensity": -3.0}, r"clients\.energy\.intensity = -3\.0: must be >= 0"),
    ({"kind": "phone", "intensity": "nowhere.csv"}, r"clients\.energy\.intensity = .*nowhere\.csv"),
    ({"kind": "phone", "intensity": "back.csv"}, r"clients\.energy\.intensity = 'back\.csv': line 3, 'hour': 0 does not come after 1"),
    ({"kind": "phone", "intensity": "nan.csv"}, r"clients\.energy\.intensity = 'nan\.csv': line 2, 'g_per_kwh': 'nan': must be a finite"),
    ({"kind": "phone", "intensity": "other.csv"}, r"clients\.energy\.intensity = 'other\.csv': has no column 'g_per_kwh'"),
]


@pytest.mark.parametrize(("table", "line"), BAD, ids=lambda word: str(word)[:60])
def test_bad_words_are_named(table: dict[str, Any], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be counted by is refused in a line with the file's own word, before anything runs."""
    for name, text in {"back": "hour,g_per_kwh\n1,5\n0,5\n", "nan": "hour,g_per_kwh\n1,nan\n", "other": "hour,grams\n1,5\n"}.items():
        (tmp_path / f"{name}.csv").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScenarioError, match=line):
        fedsim.run(tiny_table({"clients.energy": table}), out=tmp_path / "run")


OWN = """
class Mine:
    constants = {"watts": 4.0}
    def compute_j(self, clients, seconds):
        return 4.0 * seconds if not WRONG else seconds[:-1]
    def down_j(self, clients, sizes_bytes, seconds):
        return 0.0 * seconds
    up_j = down_j
    def idle_j(self, clients, seconds):
        return 0.0 * seconds

def mine():
    return Mine()
"""


def test_a_model_of_ones_own_is_used_and_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, go: Callable[..., fedsim.Run]) -> None:
    """A class beside the scenario charges; one that answers for too few clients is named with its method."""
    (tmp_path / "right_watts.py").write_text(OWN.replace("WRONG", "False"))
    (tmp_path / "wrong_watts.py").write_text(OWN.replace("WRONG", "True"))
    monkeypatch.chdir(tmp_path)
    run = go({"clients.energy": {"kind": "right_watts:mine"}})

    assert {"watts": 4.0} == run.manifest["energy"]["constants"]
    assert run.energy().compute_j.sum() == pytest.approx(4.0 * run.times().training_s.sum(), abs=1e-4)
    with pytest.raises(fedsim.FedsimError, match=r"clients.energy.kind = 'wrong_watts:mine': its compute_j\(\)"):
        go({"clients.energy": {"kind": "wrong_watts:mine"}})


def test_a_trace_is_in_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, go: Callable[..., fedsim.Run]) -> None:
    """A grid's file is named with its mark, as other traces are, and what it comes to stands among the constants."""
    (tmp_path / "grid.csv").write_text("hour,g_per_kwh\n0,100\n1,300\n")
    monkeypatch.chdir(tmp_path)
    run = go({"clients.energy": {**WATTS, "intensity": "grid.csv"}})

    assert any(name.endswith("grid.csv") for name in run.manifest["files"])
    assert 200.0 == run.manifest["energy"]["constants"]["mean_g_per_kwh"]
    assert run.manifest["energy"]["grams"] == run.energy().grams.sum() > 0


def test_a_meter_that_counts_what_never_was_is_seen(counted: fedsim.Run) -> None:
    """Teeth: a journal that charges a message twice, or one that came late as if it had counted, does not add up."""
    each, tasks = counted.charged, counted.tasks
    twice = spent.energy(tasks, each.assign(compute_j=each.compute_j * 2))
    forgiven = spent.energy(tasks.assign(outcome="arrived"), each)

    assert twice.total_j.sum() != counted.manifest["energy"]["joules"]["total"]
    assert forgiven[forgiven.wasted].total_j.sum() == 0 < counted.manifest["energy"]["joules"]["wasted"]


def test_a_client_that_crashes_draws_power_until_it_does(go: Any) -> None:
    """Half of the tasks crash: each is charged, at 4 W, for the seconds from its start to the crash, and that is wasted."""
    run = go({
        "clients.energy": {"kind": "constant", "compute_w": 4.0}, "server.round_timeout_s": 30.0, "server.rounds": 4,
        "clients.failures": {"kind": "dropout", "probability": 0.5}, "server.strategy.min_available_nodes": 1,
    })  # fmt: skip
    tasks, charged = run.tasks, run.charged
    broke = tasks.stopped_s.notna() & tasks.started_s.notna()
    worked_s = tasks.stopped_s.where(broke, tasks.computed_s) - tasks.started_s
    assert 3 < broke.sum() < len(tasks) - 3
    np.testing.assert_allclose(charged.compute_j, 4.0 * worked_s, atol=2e-6)
    assert run.ledger().query("fate != 'counted'").compute_s.sum() == pytest.approx(worked_s[broke].sum())


def test_a_transfer_that_its_client_broke_off_is_charged_as_far_as_it_came() -> None:
    """1 MB on 1 Mbit/s takes 8 s; who left after 1 s sent an eighth by LTE: its slope's watts and its base for one second, no more."""
    def of(value: float) -> np.ndarray:
        return np.array([value])

    nan, meter = np.nan, Meter("phone", phone(Key(0), radio="lte"), links(down_mbps=8.0, up_mbps=1.0))
    gone = Moments(of(0.0), of(0.0), of(0.0), of(0.0), of(nan), of(0.0), np.array([False]), of(1.0))
    found = meter.charge(np.array([0]), gone, np.array([0]), np.array([1_000_000]), end_s=99.0)

    assert found.up_j[0] == pytest.approx(0.43839 + 1.28804, rel=1e-5)


class Stairs:
    """Links of 8 Mbit/s in the first half of each 10 s, and of 1 in the second; half a second besides. Means would be 4.5."""

    def down_mbps(self, clients: np.ndarray) -> np.ndarray:
        return np.full(len(clients), 4.5)

    up_mbps = down_mbps

    def down_s(self, client: int, size_bytes: int) -> float:
        return 0.5 + size_bytes * 8e-6 / 4.5

    up_s = down_s

    def down_piece(self, client: int, now: float) -> tuple[float, float]:
        half = int(now // 5.0)
        return (8.0, 1.0)[half % 2], (half + 1) * 5.0

    up_piece = down_piece


def test_radios_over_links_that_go_with_time_are_on_as_long_as_the_transfer_took() -> None:
    """By hand: 1 MB, 8 Mbit, at 1 Mbit/s and 8: where clients look, where a run ends, and where a client leaves; and against a fine sum."""
    nan, stairs = np.nan, Stairs()

    def of(*values: float) -> np.ndarray:
        return np.array(values)

    # Received at 11.5 s: half a second of latency, 1 s at 8 Mbit/s, all of it since 10 s. Up at 14.25: 6 Mbit till 15 s, 2 s for the rest.
    watts = constant(compute_w=0.0, down_w=1.0, up_w=1.0, idle_w=100.0)
    looked = Meter("constant", watts, stairs, brought=False)
    seen = Moments(of(0.0), of(11.5), of(11.5), of(12.0), of(17.5), of(0.0), np.array([False]))
    found = looked.charge(np.array([0]), seen, np.array([1_000_000]), np.array([1_000_000]), end_s=99.0)
    assert (found.down_j[0], found.up_j[0]) == pytest.approx((1.5, 3.25), abs=1e-5)
    assert found.idle_j[0] == pytest.approx(100.0 * (10.0 + 2.25), abs=1e-4)

    phones = Meter("phone", phone(Key(0), radio="lte"), stairs)
    for begun, cut, mbit in ((4.5, 6.0, 5.0), (6.0, 8.0, 2.0), (0.0, 0.75, 6.0)):
        gone = Moments(of(0.0), of(0.0), of(0.0), of(begun), of(nan), of(0.0), np.array([True]))
        assert phones.charge(np.array([0]), gone, np.array([0]), np.array([1_000_000]), end_s=cut).up_j[0] == pytest.approx(
            1.28804 * (cut - begun) + 0.43839 * mbit, rel=1e-5)  # fmt: skip

    steps = 20_000
    for begin, end, size in ((0.0, 23.0, 3_000_000), (3.0, 17.0, 1_500_000), (7.0, 12.0, 400_000)):
        grid = np.linspace(begin, end - 0.5, steps + 1)[:-1] + (end - 0.5 - begin) / steps / 2
        rates = np.array([stairs.up_piece(0, now)[0] for now in grid.tolist()]) * (end - 0.5 - begin) / steps
        back = int(np.searchsorted(np.cumsum(rates[::-1]), size * 8e-6))
        assert radio.took_s(stairs, "up", 0, size, begin, end) == pytest.approx(0.5 + back * (end - 0.5 - begin) / steps, abs=2e-3)
