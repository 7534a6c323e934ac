"""Laws of arrival processes: pure, ascending, growing at the end, and as the book says; each with a wrong one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count as counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest

from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.core.types import FloatArray
from fedsim.data.source import finder
from fedsim.data.stream import trace as arrivals_trace
from fedsim.data.stream.arrivals import Arrivals, Diurnal, arrivals, constant, diurnal, mmpp, poisson
from fedsim.data.stream.trace import trace
from fedsim.laws import LAWS, Broken, ask, hold

BURSTS = {"low_per_s": 1.0, "high_per_s": 10.0, "mean_low_s": 15.0, "mean_high_s": 5.0}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("at_start", {}), ("constant", {"per_s": 0.1}), ("poisson", {"per_s": 2.0}), ("diurnal", {"per_s": 0.01}),
    ("mmpp", BURSTS), ("stamps", {"speed": 2.0}), ("trace", {"path": "trace.csv"}),
    ("constant", {"per_s": 1e-9, "rate_sigma": 3.0}),
    ("poisson", {"per_s": 1e9, "rates": "gamma", "rate_sigma": 2.0}),
    ("diurnal", {"per_s": 5.0, "amplitude": 1.0, "period_s": 0.7, "phase_spread_s": 0.7, "rate_sigma": 1.0}),
    ("diurnal", {"per_s": 1e-4, "amplitude": 1.0, "peak_s": 1e6}),
    ("mmpp", {"low_per_s": 0.0, "high_per_s": 3.0, "mean_low_s": 1000.0, "mean_high_s": 0.5}),
    ("mmpp", {"low_per_s": 1e-3, "high_per_s": 1e-3, "mean_low_s": 1.0, "mean_high_s": 1.0, "rate_sigma": 1.0}),
]  # fmt: skip
@pytest.fixture(autouse=True)
def _trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trace.csv").write_text("client,time_s\n0,0\n7,3\n0,2.5\n0,2.5\n7,4\n")
    monkeypatch.chdir(tmp_path)


CALLS = counter()


@dataclass
class Wrong:
    key: Key
    way: str

    def times(self, client: int, count: int) -> FloatArray:
        if self.way == "consumes":
            return poisson(self.key.fold(next(CALLS)), per_s=1.0).times(client, count)
        times = poisson(self.key, per_s=1.0).times(client, count)
        if self.way == "unsorted":
            return times[::-1]
        if self.way == "starts early":
            return times - 1.0
        return times * (count / max(times[-1], 1.0)) if count else times  # Fitted to a span: more items move all.


WRONG = {
    "times_ascend_from_zero": ["unsorted", "starts early"], "asking_changes_nothing": ["consumes"], "more_items_only_append": ["fitted"],
}  # fmt: skip


def test_the_laws_are_asked_of_every_kind() -> None:
    """No registered kind of arrivals is left out below."""
    assert {name for name, _ in SETTINGS} == set(arrivals.names())


@pytest.mark.parametrize("law", LAWS["arrivals"])
@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_every_kind_keeps_every_law(law: str, name: str, settings: dict[str, Any]) -> None:
    """Every kind of arrivals keeps the law, in the corners of its settings too."""
    hold("arrivals", name, settings, laws=[law])


@pytest.mark.parametrize(("law", "way"), [(law, way) for law in LAWS["arrivals"] for way in WRONG[law]])
def test_the_law_has_teeth(law: str, way: str) -> None:
    """The law rejects a process that was made to break it."""
    with pytest.raises(Broken, match=f"breaks the law '{law}'"):
        ask(LAWS["arrivals"][law], lambda key, **_: Wrong(key, way))


# Theory. Each law takes what may be wrong; z below 4, or p above 1 in 1000, at fixed seeds.


def counts(process: Arrivals, until_s: float, most: int, clients: int = 2000) -> FloatArray:
    """How many items each client has by *until_s*."""
    every = [process.times(client, most) for client in range(clients)]
    assert all(len(times) < most or times[-1] > until_s for times in every)
    return np.array([np.searchsorted(times, until_s, side="right") for times in every], dtype=np.float64)


def counts_are_poisson(process: Arrivals) -> None:
    n = counts(process, 40.0, 200)  # Mean 20.
    assert abs(n.mean() - 20.0) < 4.0 * math.sqrt(20.0 / len(n))
    assert abs(n.var() - 20.0) < 4.0 * math.sqrt((20.0 + 2.0 * 20.0**2) / len(n))


def unit_process(process: Arrivals, expected: Callable[[int, FloatArray], FloatArray]) -> None:
    """On the clock of its integrated rate any Poisson process has gaps Exp(1)."""
    gaps = [np.diff(expected(client, process.times(client, 400)), prepend=0.0) for client in range(20)]
    assert kstest(np.concatenate(gaps), "expon").pvalue > 1e-3


def merged_is_the_sum(process: Arrivals) -> None:
    """Thirty clients of rate 0.5 together are one process of rate 15."""
    times = np.sort(np.concatenate([process.times(client, 400) for client in range(30)]))
    gaps = np.diff(times[times < 400.0])
    assert kstest(15.0 * gaps, "expon").pvalue > 1e-3


def dispersion_is_the_formula(process: Arrivals) -> None:
    """Mean rate, and Var/E of counts, of an MMPP-2 from its stationary start (METHODS: Fischer and Meier-Hellstern)."""
    l1, l2, r1, r2, t = 1.0, 10.0, 1 / 15.0, 1 / 5.0, 60.0
    rate = (l1 * r2 + l2 * r1) / (r1 + r2)
    burst = 2.0 * (l1 - l2) ** 2 * r1 * r2 / ((r1 + r2) ** 2 * (l1 * r2 + l2 * r1))
    index = 1.0 + burst * (1.0 - (1.0 - math.exp(-(r1 + r2) * t)) / ((r1 + r2) * t))
    n = counts(process, t, 900)
    assert abs(n.mean() / (rate * t) - 1.0) < 4.0 * math.sqrt(index / (rate * t) / len(n))
    assert abs(n.var() / n.mean() / index - 1.0) < 4.0 * math.sqrt(2.5 / len(n))  # Counts are nearly normal.


@dataclass
class Even:
    """Equal gaps of the right mean."""

    def times(self, client: int, count: int) -> FloatArray:
        return 2.0 * (np.arange(count) + Key(0).uniform_at(client))


@dataclass
class OneLuck:
    """All clients have the draws of client 0."""

    inner: Arrivals

    def times(self, client: int, count: int) -> FloatArray:
        return self.inner.times(0, count)


@dataclass
class Cold:
    """Bursts that always begin quiet: not stationary."""

    key: Key

    def times(self, client: int, count: int) -> FloatArray:
        draws, now, busy, found = self.key.fold(client).numpy(), 0.0, False, []
        while len(found) < count and now < 100.0:
            end = now + draws.exponential(5.0 if busy else 15.0)
            found += sorted(draws.uniform(now, end, draws.poisson((10.0 if busy else 1.0) * (end - now))).tolist())
            now, busy = end, not busy
        return np.array(found[:count])


def test_poisson_counts_have_the_mean_and_the_variance() -> None:
    """Poisson counts have mean and variance rate * t; of constant arrivals only the mean is right."""
    counts_are_poisson(poisson(Key(3), per_s=0.5))
    with pytest.raises(AssertionError):
        counts_are_poisson(Even())
    with pytest.raises(AssertionError):
        counts_are_poisson(poisson(Key(3), per_s=0.5, rate_sigma=0.3))  # A mixture is overdispersed.


def test_time_changed_gaps_are_exponential() -> None:
    """Poisson and diurnal arrivals are a unit process on their own clocks; a diurnal one is not on a Poisson's."""
    day = diurnal(Key(4), per_s=0.01, amplitude=0.9, peak_s=7200.0, phase_spread_s=20_000.0, rate_sigma=0.5)
    unit_process(poisson(Key(4), per_s=0.01), lambda client, t: 0.01 * t)
    unit_process(day, day.expected)
    with pytest.raises(AssertionError):
        unit_process(day, lambda client, t: day.rate.of(client) * t)
    with pytest.raises(AssertionError):  # Swings the other way.
        late = Diurnal(day.rate, 0.9, 86400.0, 7200.0 + 43200.0, 20_000.0, day.key)
        unit_process(late, day.expected)


def test_the_integrated_rate_is_the_integral() -> None:
    """What a diurnal client expects is the integral of per_s * (1 + amplitude * cos) from 0, peak and factor its own."""
    day = diurnal(Key(4), per_s=0.01, amplitude=0.9, peak_s=7200.0, phase_spread_s=20_000.0, rate_sigma=0.5)
    t = np.linspace(0.0, 100_000.0, 100_001)
    rate = day.rate.of(3) * (1.0 + 0.9 * np.cos(2.0 * np.pi * (t - day.peak_of(3)) / 86400.0))
    summed = np.concatenate([[0.0], np.cumsum(0.5 * (rate[1:] + rate[:-1]))])

    assert np.allclose(summed, day.expected(3, t), atol=1e-6)


def test_merged_clients_are_one_process() -> None:
    """Clients merge to a Poisson process of the summed rate; clients that share their luck do not."""
    merged_is_the_sum(poisson(Key(5), per_s=0.5))
    with pytest.raises(AssertionError):
        merged_is_the_sum(OneLuck(poisson(Key(5), per_s=0.5)))


def test_bursts_are_as_dispersed_as_the_formula() -> None:
    """MMPP-2 counts have the mean and the index of dispersion of the formula; without bursts, or begun cold, not."""
    dispersion_is_the_formula(mmpp(Key(6), **BURSTS))
    with pytest.raises(AssertionError):
        dispersion_is_the_formula(poisson(Key(6), per_s=3.25))
    with pytest.raises(AssertionError):
        dispersion_is_the_formula(Cold(Key(6)))


@pytest.mark.parametrize("rates", ["lognormal", "gamma"])
def test_rates_differ_as_asked(rates: Any) -> None:
    """Log-normal rates have median per_s and the log's deviation, gamma rates the mean and the relative deviation."""
    factors = np.array([constant(Key(7), per_s=2.0, rates=rates, rate_sigma=0.5).rate.of(c) for c in range(4000)]) / 2.0
    found = (np.median(factors), np.std(np.log(factors))) if rates == "lognormal" else (factors.mean(), factors.std())

    assert np.allclose([1.0, 0.5], found, rtol=0.05)


def test_rates_move_no_draw() -> None:
    """A client at twice the rate gets the same items in half the time, so that two scenarios share their luck."""
    slow, fast = poisson(Key(8), per_s=1.0).times(3, 50), poisson(Key(8), per_s=2.0).times(3, 50)

    assert np.allclose(slow, 2.0 * fast)


# Bad input.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["no column 'time_s'"]),
        ("client,time_s\n", ["no rows"]),
        ("client,when\n0,1\n", ["no column 'time_s'", "when"]),
        ("time_s\n1\n2\n1.5\n", ["line 4", "1.5 is earlier", "2"]),
        ("client,time_s\n0,1\n1,5\n0,0.5\n", ["line 4", "of client 0"]),
        ("client,time_s\n0,1,2\n", ["line 2", "3 cells"]),
        ("time_s\nnan\n", ["line 2", "'nan'", ">= 0"]),
        ("time_s\n-1\n", ["line 2", "'-1'", ">= 0"]),
        ("time_s\nsoon\n", ["line 2", "'soon'", ">= 0"]),
        ("client,time_s\nx,1\n", ["line 2", "'x'", "client's number"]),
        ("client,time_s\n-1,1\n", ["line 2", "'-1'", "client's number"]),
        ("client,time_s\n" + "9" * 5000 + ",1\n", ["line 2", "'" + "9" * 60 + "'", "client's number"]),
        ("time_s\n" + "x" * 5000 + "\n", ["line 2", "'" + "x" * 60 + "'", ">= 0"]),
        ("time_s\n1_1\n", ["line 2", "'1_1'", ">= 0"]),
        ("time_s\n" + "1" * 2**26 + "\n", ["a line of more than 67,108,864 characters"]),
    ],
)
def test_a_bad_trace_is_one_line(text: str, words: list[str]) -> None:
    """A trace that is empty, unsorted or not of numbers is refused in one line that names the line."""
    Path("trace.csv").write_text(text)
    with pytest.raises(ScenarioError) as caught:
        trace("trace.csv", finder(Path.cwd()))

    line = str(caught.value)
    assert line.startswith("stream.arrivals.path = 'trace.csv': ") and "\n" not in line
    assert [] == [word for word in words if word not in line], line


def test_a_trace_that_unpacks_to_more_than_the_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few zipped kB that hold many short lines, of one client or of many, stop at a share of the memory."""
    monkeypatch.setattr(arrivals_trace, "memory", lambda: 30_000)
    for text in ("time_s\n" + "1\n" * 2000, "client,time_s\n" + "".join(f"{client},1\n" for client in range(600))):
        Path("trace.csv").write_text(text)
        with pytest.raises(ScenarioError, match=r"^stream\.arrivals\.path = 'trace\.csv': line \d+: more times than fit[^\n]+$"):
            trace("trace.csv", finder(Path.cwd()))


def test_a_trace_is_read() -> None:
    """Each client has the times that the file lists for it, one that it does not name has none; speed divides."""
    listed = trace("trace.csv", finder(Path.cwd()), speed=2.0)

    assert [[0.0, 1.25, 1.25], [1.5, 2.0], []] == [listed.times(client, 9).tolist() for client in (0, 7, 1)]


def test_what_cannot_be_is_refused() -> None:
    """Bursts too short to be seen, an unknown spread, stamps that are not there: one line each."""
    with pytest.raises(ScenarioError, match=r"^stream\.arrivals\.mean_high_s = 1e-06: [^\n]+$"):
        mmpp(Key(0), low_per_s=0.0, high_per_s=1.0, mean_low_s=1.0, mean_high_s=1e-6)
    with pytest.raises(ScenarioError, match=r"^stream\.arrivals\.rates = 'gama': [^\n]+'gamma'[^\n]+$"):
        poisson(Key(0), per_s=1.0, rates="gama")  # type: ignore[arg-type]  # The point.
    with pytest.raises(ScenarioError, match=r"^stream\.arrivals\.kind = 'stamps': [^\n]+$"):
        arrivals.call(arrivals.get("stamps", at=""), {}, stamps=None)
