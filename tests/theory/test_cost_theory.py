"""Device, link and availability models against what their distributions are known to give: |z| < 4 over fixed seeds."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from fedsim.core.keys import Key
from fedsim.core.types import FloatArray
from fedsim.cost.availability import Diurnal, diurnal, onoff
from fedsim.cost.compute import exponential, lognormal
from fedsim.cost.network import lognormal as links

SEEDS = range(5)
MANY = np.arange(40_000)
EULER_GAMMA = 0.5772156649015329


def z_of_mean(draws: FloatArray, mean: float, sd: float) -> float:
    return float((draws.mean() - mean) / (sd / math.sqrt(len(draws))))


def z_of_share(drawn: float, share: float, n: int) -> float:
    return (drawn - share) / math.sqrt(share * (1.0 - share) / n)


def multipliers(seed: int, clients: int, tasks: int) -> FloatArray:
    """How often its mean time each task takes. Shapes: (tasks, clients)."""
    devices = exponential(Key(seed), gflops=2.0, overhead_s=10.0)  # 2 GFLOP at 2 GFLOP/s: a mean of one second.
    return np.array([[devices.seconds(c, t, 2e9) - 10.0 for c in range(clients)] for t in range(tasks)])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("sigma", [0.3, 0.6, 2.0])
def test_lognormal_speeds_have_their_median_and_sigma(seed: int, sigma: float) -> None:
    """The logarithm of a log-normal speed is normal with mean log(median) and standard deviation sigma."""
    logs = np.log(lognormal(Key(seed), gflops=5.0, sigma=sigma).gflops(MANY))
    n = len(logs)

    assert abs(z_of_mean(logs, math.log(5.0), sigma)) < 4
    assert abs((logs.std() / sigma - 1.0) * math.sqrt(2 * n)) < 4  # The sd of a normal sample's sd is sigma/sqrt(2n).
    assert abs(z_of_share(float((logs < math.log(5.0)).mean()), 0.5, n)) < 4
    assert abs(z_of_share(float((logs > math.log(5.0) + 2 * sigma).mean()), 0.02275013194817921, n)) < 4


@pytest.mark.parametrize("seed", SEEDS)
def test_exponential_tasks_have_mean_and_variance_one(seed: int) -> None:
    """A task's time over its mean is Exp(1): mean 1, variance 1, and a share 1/e above the mean."""
    draws = multipliers(seed, clients=100, tasks=300).ravel()
    n = len(draws)

    assert abs(z_of_mean(draws, 1.0, 1.0)) < 4
    assert abs((draws.var() - 1.0) / math.sqrt(8.0 / n)) < 4  # Fourth central moment 9, so var of the variance 8 / n.
    assert abs(z_of_share(float((draws > 1.0).mean()), math.exp(-1.0), n)) < 4


@pytest.mark.parametrize("seed", SEEDS)
def test_exponential_tasks_are_independent_of_neighbours(seed: int) -> None:
    """Neighbouring tasks of one client, and neighbouring clients at one task, are uncorrelated."""
    draws = multipliers(seed, clients=150, tasks=200)

    for one, other in ((draws[1:], draws[:-1]), (draws[:, 1:], draws[:, :-1])):
        correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
        assert abs(correlation * math.sqrt(one.size)) < 4


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("clients", [10, 100])
def test_a_synchronous_round_takes_a_harmonic_number(seed: int, clients: int) -> None:
    """The slowest of n exponential clients takes H_n mean times, with variance 1 + 1/4 + ... + 1/n**2."""
    slowest = multipliers(seed, clients, tasks=20_000 // clients).max(axis=1)

    harmonic = sum(1 / k for k in range(1, clients + 1))
    variance = sum(1 / k**2 for k in range(1, clients + 1))
    assert abs(z_of_mean(slowest, harmonic, math.sqrt(variance))) < 4
    assert abs(harmonic - math.log(clients) - EULER_GAMMA) < 1 / (2 * clients)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_slowest_of_ten_lognormal_devices_takes_what_quadrature_gives(seed: int) -> None:
    """The slowest of ten devices of sigma 0.6 takes 2.6870 median times (METHODS E.1, X7)."""
    devices = lognormal(Key(seed), gflops=5.0, sigma=0.6)
    slowest = (5.0 / devices.gflops(MANY)).reshape(-1, 10).max(axis=1)

    assert abs(z_of_mean(slowest, 2.6870, float(slowest.std()))) < 4


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("correlation", [-0.5, 0.0, 0.7, 0.95])
def test_rates_have_their_medians_sigma_and_correlation(seed: int, correlation: float) -> None:
    """The logarithms of a client's two rates are normal, of spread sigma each, and correlated as set."""
    network = links(Key(seed), down_mbps=6.0, up_mbps=2.0, correlation=correlation)
    down, up = np.log(network.down_mbps(MANY)), np.log(network.up_mbps(MANY))
    n = len(MANY)

    for logs, median in ((down, 6.0), (up, 2.0)):
        assert abs(z_of_mean(logs, math.log(median), 0.8)) < 4
        assert abs((logs.std() / 0.8 - 1.0) * math.sqrt(2 * n)) < 4
    fisher = math.atanh(float(np.corrcoef(down, up)[0, 1])) - math.atanh(correlation)
    assert abs(fisher * math.sqrt(n - 3)) < 4


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("mean_on_s", "mean_off_s"), [(600.0, 1800.0), (1800.0, 600.0), (60.0, 6000.0)])
def test_clients_that_come_and_go_are_stationary(seed: int, mean_on_s: float, mean_off_s: float) -> None:
    """At any time, the first included, a share mean_on / (mean_on + mean_off) is on."""
    clients = onoff(Key(seed), mean_on_s=mean_on_s, mean_off_s=mean_off_s)

    share = mean_on_s / (mean_on_s + mean_off_s)
    for now in (0.0, 1.0, 300.0, 5_000.0, 40_000.0):
        assert abs(z_of_share(float(clients.available(MANY, now).mean()), share, len(MANY))) < 4


@pytest.mark.parametrize("seed", SEEDS)
def test_being_on_is_forgotten_exponentially(seed: int) -> None:
    """Of those on now, p + (1 - p) exp(-t / tau) are on t later, where 1 / tau = 1 / mean_on + 1 / mean_off."""
    clients = onoff(Key(seed), mean_on_s=600.0, mean_off_s=1800.0)

    for later_s in (10.0, 450.0, 2_000.0):
        on = MANY[clients.available(MANY, 1_000.0)]
        still = float(clients.available(on, 1_000.0 + later_s).mean())
        expected = 0.25 + 0.75 * math.exp(-later_s * (1 / 600 + 1 / 1800))
        assert abs(z_of_share(still, expected, len(on))) < 4


@pytest.mark.parametrize("seed", SEEDS)
def test_clients_stay_on_and_off_for_exponential_times(seed: int) -> None:
    """Times on and times off are exponential: each mean its own, standard deviation equal to the mean, median ln 2."""
    clients, lengths = onoff(Key(seed), mean_on_s=600.0, mean_off_s=1800.0), {True: [0.0], False: [0.0]}
    for client in range(40):
        one, changes = np.array([client]), [0.0]
        while len(changes) < 52:
            changes.append(clients.next_change(one, changes[-1]))
        for start, end in pairwise(changes[1:]):  # From the first change on: a period seen from inside is no fair one.
            lengths[bool(clients.available(one, start)[0])].append(end - start)

    for on, mean in ((True, 600.0), (False, 1800.0)):
        drawn = np.array(lengths[on][1:]) / mean
        assert len(drawn) == 1000
        assert abs(z_of_mean(drawn, 1.0, 1.0)) < 4
        assert abs((drawn.var() - 1.0) / math.sqrt(8.0 / len(drawn))) < 4
        assert abs(z_of_share(float((drawn < math.log(2)).mean()), 0.5, len(drawn))) < 4


@pytest.mark.parametrize("seed", SEEDS)
def test_four_times_as_many_are_there_at_the_peak_as_in_the_trough(seed: int) -> None:
    """At amplitude 0.6, four times as many clients are available around the peak as twelve hours later."""
    clients = diurnal(Key(seed))
    assert isinstance(clients, Diurnal)

    for day in (0, 3):
        at = [day * 86_400.0 + hour * 3600.0 for hour in (2, 8, 14, 20)]
        shares = [float(clients.available(MANY, now).mean()) for now in at]
        for now, share in zip(at, shares, strict=True):
            middle = (now // 1800.0 + 0.5) * 1800.0
            expected = 0.3 * (1.0 + 0.6 * math.cos(2 * math.pi * (middle - 7200.0) / 86_400.0))
            assert abs(z_of_share(share, expected, len(MANY))) < 4
        # Of log(peak / trough), by the delta method; the slot's middle is 15 minutes off the peak: 3.987, not 4.
        sd = math.sqrt(sum((1 - share) / (share * len(MANY)) for share in (shares[0], shares[2])))
        assert abs((math.log(shares[0] / shares[2]) - math.log(3.987)) / sd) < 4
    assert math.isclose(4.0, float(clients.share(MANY[:1], 7_200.0)[0] / clients.share(MANY[:1], 50_400.0)[0]))


@pytest.mark.parametrize("seed", SEEDS)
def test_time_zones_over_a_whole_day_leave_no_day(seed: int) -> None:
    """With peaks spread over a whole period a share *mean* of the clients is available at any hour."""
    clients = diurnal(Key(seed), phase_spread_s=86_400.0)

    for hour in range(0, 24, 4):
        assert abs(z_of_share(float(clients.available(MANY, hour * 3600.0).mean()), 0.3, len(MANY))) < 4


@pytest.mark.parametrize("seed", SEEDS)
def test_slots_are_drawn_independently(seed: int) -> None:
    """Without an amplitude, being available in one slot says nothing about the next."""
    clients = diurnal(Key(seed), mean=0.3, amplitude=0.0)
    one, two = clients.available(MANY, 0.0), clients.available(MANY, 1800.0)

    assert abs(z_of_share(float((one & two).mean()), 0.09, len(MANY))) < 4


@pytest.mark.parametrize(("mean_on_s", "mean_off_s"), [(600.0, 1800.0), (1800.0, 600.0)])
def test_in_the_long_run_a_client_is_there_for_its_share_of_the_time(mean_on_s: float, mean_off_s: float) -> None:
    """Over n cycles of on and off, exponential both, the share of time is m / (m + k), its variance 2 m^2 k^2 / (n (m + k)^4)."""
    there, client, now, on_s = onoff(Key(5), mean_on_s=mean_on_s, mean_off_s=mean_off_s), np.array([3]), 0.0, 0.0
    share, cycles = mean_on_s / (mean_on_s + mean_off_s), 3000
    for _ in range(2 * cycles):
        then = there.next_change(client, now)
        on_s += (then - now) * bool(there.available(client, now)[0])
        now = then
    sd = mean_on_s * mean_off_s / (mean_on_s + mean_off_s) ** 2 * np.sqrt(2 / cycles)

    assert abs(on_s / now - share) < 4 * sd
    assert abs(on_s / now - mean_on_s / mean_off_s) > 4 * sd
