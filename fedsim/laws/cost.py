"""Laws of devices, memory, power, links, availability and failures: functions of (key, client, now), in any order. Knows no kind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from fedsim.core.keys import Key
from fedsim.core.types import IntArray
from fedsim.cost.availability import Availability
from fedsim.cost.compute import Compute
from fedsim.cost.energy import Energy
from fedsim.cost.failures import ANSWERS, Failures
from fedsim.cost.loading import Loader
from fedsim.cost.network import Network, pieces
from fedsim.cost.ram import Ram
from fedsim.laws.broken import Law, Make, alike, luck, want

CLIENTS = np.array([0, 1, 2, 3, 7, 40, 41, 999, 123_456], dtype=np.int64)
WORK_S = (0.0, 1e-9, 7.0, 1e6)
EVALUATION = 1 << 22
"""Where a client's evaluations are numbered from."""
TIMES = (0.0, 0.3, 0.1 + 0.2, 1800.0, 1799.9999999999998, 5000.0, 86_400.0, 3e5)


def answers(model: object, clients: IntArray) -> dict[int, list[float]]:
    """Return what any model of these answers about each of *clients*, as numbers."""
    if hasattr(model, "gflops"):
        return _of_compute(cast(Compute, model), clients)
    if hasattr(model, "down_s"):
        return _of_network(cast(Network, model), clients)
    if hasattr(model, "compute_j"):
        return _of_energy(cast(Energy, model), clients)
    if hasattr(model, "mib"):
        return {int(client): [float(size)] for client, size in zip(clients, cast(Ram, model).mib(clients), strict=True)}
    if hasattr(model, "examples_per_s"):
        loader = cast(Loader, model)
        rates = loader.examples_per_s(clients)
        return {int(client): [float(rate), float(loader.depth)] for client, rate in zip(clients, rates, strict=True)}
    if hasattr(model, "fails"):
        return _of_failures(cast(Failures, model), clients)
    return _of_availability(cast(Availability, model), clients)


def _of_failures(failures: Failures, clients: IntArray) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for client in clients.tolist():
        faults = [failures.fails(client, task, works_s) for task in (*range(12), EVALUATION) for works_s in WORK_S]
        found[client] = [
            number
            for each in faults
            for number in ((-1.0,) if each is None else (each.after_s, float(ANSWERS.index(each.answer)), each.away_s, float(each.loses)))
        ]
    return found


def _of_compute(compute: Compute, clients: IntArray) -> dict[int, list[float]]:
    speeds = compute.gflops(clients)
    return {
        int(client): [float(speed), *(compute.seconds(int(client), task, 1e9, steps) for task in (0, 1, 5, 1 << 22) for steps in (0, 7))]
        for client, speed in zip(clients, speeds, strict=True)
    }


def _of_energy(energy: Energy, clients: IntArray) -> dict[int, list[float]]:
    times = [np.full(len(clients), seconds) for seconds in (1.0, 30.5)]
    sizes = np.full(len(clients), 1e6)
    seen = [each(clients, seconds) for each in (energy.compute_j, energy.idle_j) for seconds in times]
    seen += [each(clients, sizes, seconds) for each in (energy.down_j, energy.up_j) for seconds in times]
    said = [float(value) for _, value in sorted(energy.constants.items())]
    return {int(client): [*(float(each[row]) for each in seen), *said] for row, client in enumerate(clients)}


def _of_network(network: Network, clients: IntArray) -> dict[int, list[float]]:
    down, up = network.down_mbps(clients), network.up_mbps(clients)
    return {
        int(client): [float(d), float(u), network.down_s(int(client), 10_000), network.up_s(int(client), 10_000)]
        for client, d, u in zip(clients, down, up, strict=True)
    }


def _of_availability(availability: Availability, clients: IntArray) -> dict[int, list[float]]:
    seen = [availability.available(clients, now) for now in TIMES]
    return {
        int(client): [
            *(float(each[row]) for each in seen),
            *(availability.next_change(clients[row : row + 1], now) for now in TIMES),
        ]
        for row, client in enumerate(clients)
    }


# Of all.


def same_key_same_answer(make: Make) -> None:
    """Asking twice, of this one or of another under the same key, gives the same; clients asked about stay as they are."""
    for seed in range(3):
        asked, drawn = CLIENTS.copy(), luck()
        model = make(key=Key(seed))
        first = answers(model, asked)
        alike(first, answers(model, asked), f"under Key({seed}), asked again")
        alike(first, answers(make(key=Key(seed)), asked), f"under Key({seed}), made again")
        alike(CLIENTS, asked, "the clients that went in")
        want(drawn == luck(), "it draws from numpy's global generator")


def order_of_asking_does_not_matter(make: Make) -> None:
    """Clients asked about backwards, and one by one, are what they are together."""
    first = answers(make(key=Key(4)), CLIENTS)
    alike(first, answers(make(key=Key(4)), CLIENTS[::-1]), "asked backwards")  # Not contiguous either.
    alike(first, answers(make(key=Key(4)), CLIENTS[::-1].copy()), "asked backwards")
    model = make(key=Key(4))
    one_by_one = [answers(model, CLIENTS[row : row + 1]) for row in np.random.default_rng(0).permutation(len(CLIENTS))]
    alike(first, {client: each for answer in one_by_one for client, each in answer.items()}, "asked one by one")


def adding_clients_leaves_the_others(make: Make) -> None:
    """What a client is does not depend on how many others there are."""
    few, many = answers(make(key=Key(5)), np.arange(7)), answers(make(key=Key(5)), np.arange(150))
    alike(few, {client: many[client] for client in range(7)}, "seven clients, among 150")


# Of devices and links.


def tasks_take_finite_time_and_more_for_more(make: Make) -> None:
    """A task takes some seconds, one of more operations more, and one of more steps no fewer."""
    compute, sizes = make(key=Key(6)), (0.0, 1.0, 1e6, 1e9, 2e9, 1e15)
    for client in CLIENTS.tolist():
        for task in range(3):
            times = [compute.seconds(client, task, flops) for flops in sizes]
            words = f"task {task} of client {client} takes {times} s for {sizes} operations"
            want(all(0.0 <= time < math.inf for time in times) and sorted(times) == times and times[-2] < times[-1], words)
            by_steps = [compute.seconds(client, task, 1e6, steps) for steps in (0, 1, 100, 10**6)]
            fine = all(0.0 <= time < math.inf for time in by_steps) and sorted(by_steps) == by_steps and by_steps[0] == times[2]
            want(fine, f"task {task} of client {client} takes {by_steps} s in 0, 1, 100 and 1,000,000 steps, and {times[2]} s unasked")


def speeds_are_positive_and_keep_shape(make: Make) -> None:
    """There is a speed above 0 for each client asked about, in float64."""
    for clients in (CLIENTS, CLIENTS[:1], CLIENTS[:0]):
        speeds = make(key=Key(6)).gflops(clients)
        alike((clients.shape, "float64"), (speeds.shape, str(speeds.dtype)), f"speeds of {len(clients)} clients: their form")
        want(((speeds > 0) & np.isfinite(speeds)).all(), f"speeds of {len(clients)} clients: {speeds.tolist()}")


def sizes_are_positive_and_keep_shape(make: Make) -> None:
    """There is a memory above 0 for each client asked about, in float64."""
    for clients in (CLIENTS, CLIENTS[:1], CLIENTS[:0]):
        sizes = make(key=Key(6)).mib(clients)
        alike((clients.shape, "float64"), (sizes.shape, str(sizes.dtype)), f"memory of {len(clients)} clients: their form")
        want(((sizes > 0) & np.isfinite(sizes)).all(), f"memory of {len(clients)} clients: {sizes.tolist()}")


def rates_are_positive_and_keep_shape(make: Make) -> None:
    """There is a rate above 0 for each client asked about, in float64, and a depth of 0 or more."""
    for clients in (CLIENTS, CLIENTS[:1], CLIENTS[:0]):
        loader = make(key=Key(6))
        rates = loader.examples_per_s(clients)
        alike((clients.shape, "float64"), (rates.shape, str(rates.dtype)), f"rates of {len(clients)} clients: their form")
        want(((rates > 0) & np.isfinite(rates)).all(), f"rates of {len(clients)} clients: {rates.tolist()}")
        want(int(loader.depth) == loader.depth >= 0, f"its depth is {loader.depth!r}")


def joules_go_with_time_and_bytes(make: Make) -> None:
    """There are joules, 0 at the least, for each client asked about, in float64; no fewer for a longer time, or for more bytes."""
    times, sizes = (0.0, 0.5, 1.0, 60.0, 1e6), (0.0, 1.0, 1e4, 1e9)
    for clients in (CLIENTS, CLIENTS[:1], CLIENTS[:0]):
        energy: Energy = make(key=Key(6))
        by_time = {
            "compute_j": [energy.compute_j(clients, np.full(len(clients), time)) for time in times],
            "idle_j": [energy.idle_j(clients, np.full(len(clients), time)) for time in times],
        }
        for name in ("down_j", "up_j"):
            way = getattr(energy, name)
            by_time[f"{name} of 1 MB"] = [way(clients, np.full(len(clients), 1e6), np.full(len(clients), time)) for time in times]
            by_time[f"{name} in 60 s"] = [way(clients, np.full(len(clients), size), np.full(len(clients), 60.0)) for size in sizes]
        for name, found in by_time.items():
            for each in found:
                alike((clients.shape, "float64"), (each.shape, str(each.dtype)), f"{name} of {len(clients)} clients: their form")
            rising = np.array(found)
            fine = np.isfinite(rising).all() and (rising >= 0).all() and (np.diff(rising, axis=0) >= 0).all()
            want(bool(fine), f"{name} of {len(clients)} clients, for ever more of it: {rising.tolist()}")


def constants_are_said(make: Make) -> None:
    """Every number that joules rest on can be shown: finite ones by name, and some where anything is drawn at all."""
    energy: Energy = make(key=Key(6))
    said = dict(energy.constants)
    want(all(isinstance(name, str) and math.isfinite(value) for name, value in said.items()), f"its constants are {said}")  # pyright: ignore[reportUnnecessaryIsInstance]  # A reader's.
    drawn = float(energy.compute_j(CLIENTS, np.full(len(CLIENTS), 60.0)).sum())
    want(bool(said) or not drawn, f"it draws {drawn} J in a minute by no constant that it says")


def messages_take_finite_time_and_more_for_more(make: Make) -> None:
    """A message takes some seconds, and a longer one no fewer."""
    network, sizes = make(key=Key(6)), (0, 1, 1000, 796_840, 10**9)
    for client in CLIENTS.tolist():
        for name in ("down_s", "up_s"):
            times = [getattr(network, name)(client, size) for size in sizes]
            words = f"{name} of client {client} is {times} s for {sizes} bytes"
            want(all(0.0 <= time < math.inf for time in times) and sorted(times) == times, words)


def times_follow_from_rates(make: Make) -> None:
    """A message takes its bits by the rate that is said, besides what an empty one takes."""
    network = make(key=Key(6))
    for name, rates in (("down", network.down_mbps(CLIENTS)), ("up", network.up_mbps(CLIENTS))):
        way = getattr(network, f"{name}_s")
        want((rates > 0).all(), f"{name}_mbps: {rates.tolist()}")
        took = np.array([way(client, 10**9) - way(client, 0) for client in CLIENTS.tolist()])
        expected = 8e9 / (rates * 1e6)
        want(np.allclose(took, expected, rtol=1e-9, atol=1e-12), f"1 GB {name}: {took.tolist()} s, by {name}_mbps {expected.tolist()} s")


LONG_S, LONG = 20_000.0, 200
"""How long, and for how many changes, a rate that goes with time is looked at: until both are over."""


def pieces_go_on_and_mean_out(make: Make) -> None:
    """A rate that goes with time holds until a later moment, is the same until there, and is the rate that is said over a long time."""
    network = cast(Network, make(key=Key(6)))
    for way, piece in (pieces(network) or {}).items():
        said = getattr(network, f"{way}_mbps")(CLIENTS)
        for client, mean in zip(CLIENTS[:4].tolist(), said.tolist(), strict=False):
            began_s = now = 12.3
            sent, changes = 0.0, 0
            while now < LONG_S or changes < LONG:  # Of rates that go by the hour some days are seen.
                rate, until = piece(client, now)
                want(until > now, f"the rate {way} of client {client} at {now!r} s is said to hold until {until!r} s")
                last = max(now, math.nextafter(until, -math.inf))
                alike(rate, piece(client, last)[0], f"the rate {way} of client {client} before {until!r} s")
                end = max(LONG_S, now + 1.0) if math.isinf(until) else until
                sent, now, changes = sent + rate * (end - now), end, LONG if math.isinf(until) else changes + 1
            found = sent / (now - began_s)
            want(abs(found - mean) < 0.05 * mean, f"client {client} is said to have {mean} Mbit/s {way}, and has {found} in {now:,.0f} s")


# Of failures.


def faults_lie_within_the_work(make: Make) -> None:
    """A task breaks off within its work, or is answered wrongly after all of it, for a cause; one that is over sooner is not all done."""
    for seed in range(3):
        failures = cast(Failures, make(key=Key(seed)))
        for client in CLIENTS.tolist():
            for task in (*range(40), EVALUATION):
                for works_s in WORK_S:
                    fault = failures.fails(client, task, works_s)
                    if fault is None:
                        continue
                    words = f"task {task} of client {client}, of {works_s} s: {fault}"
                    want(0.0 <= fault.after_s <= works_s and 0.0 <= fault.away_s < math.inf, words)
                    want(fault.breaks or fault.after_s == works_s, f"{words}: it breaks nothing, and not all is done")
                    want(fault.breaks or not fault.loses, f"{words}: it breaks nothing, and what its client keeps is lost")
                    want(bool(fault.cause) and fault.answer in ANSWERS, words)


def more_work_fails_no_less(make: Make) -> None:
    """A task that fails fails where it is longer, too; otherwise a slow device would be safer than a fast one."""
    failures = cast(Failures, make(key=Key(9)))
    for client in CLIENTS.tolist():
        for task in range(200):
            failed = [failures.fails(client, task, works_s) is not None for works_s in (1.0, 30.0, 1000.0)]
            want(failed == sorted(failed), f"task {task} of client {client} fails at 1, 30 and 1000 s of work: {failed}")


# Of availability.


def _changes(make: Make) -> Iterator[tuple[Availability, IntArray, float, float]]:
    """Yield availability, clients, a time, and the change that is said to come next: chains of changes, one from each."""
    for seed in range(3):
        availability = make(key=Key(seed))
        for clients in (CLIENTS, CLIENTS[3:4], np.arange(500)):
            for start in (0.0, 0.1, 5e4, 1e7 / 3):
                now = start
                for _ in range(20):
                    change = availability.next_change(clients, now)
                    yield availability, clients, now, change
                    if math.isinf(change) or change <= now:
                        break
                    now = change


def next_change_is_later(make: Make) -> None:
    """The next change comes after now."""
    for _, _, now, change in _changes(make):
        want(now < change, f"at {now!r} s the next change is said to come at {change!r} s")


def something_changes_there(make: Make) -> None:
    """Where the next change is said to be, somebody is there who was not, or the other way round."""
    for availability, clients, now, change in _changes(make):
        if not math.isinf(change):
            before, after = availability.available(clients, now), availability.available(clients, change)
            want((before != after).any(), f"from {now!r} s to the change at {change!r} s nobody of {len(clients)} changes")


def nothing_changes_before(make: Make) -> None:
    """Until the next change everybody is as now."""
    for availability, clients, now, change in _changes(make):
        horizon = now + 1e6 if math.isinf(change) else change
        between = np.linspace(now, horizon, 7, endpoint=False).tolist()
        for time in (*between, max(now, math.nextafter(horizon, -math.inf))):
            still = availability.available(clients, now).tolist() == availability.available(clients, time).tolist()
            want(still, f"at {now!r} s the next change is said to come at {change!r} s, and by {time!r} s somebody has changed")


def answers_stay_as_given(make: Make) -> None:
    """What was handed out is the asker's: scribbling on it changes nobody's answer. Nobody at all is an answer too."""
    availability = make(key=Key(8))
    given = [availability.available(CLIENTS, now) for now in TIMES]
    kept = [each.copy() for each in given]
    for each in given:
        each[:] = ~each
    for now, each in zip(TIMES, kept, strict=True):
        alike(each, availability.available(CLIENTS, now), f"at {now} s, after the answer was written to")
        empty: Any = availability.available(CLIENTS[:0], now)
        alike(("bool", (0,)), (str(empty.dtype), empty.shape), "nobody asked about: the answer's form")
        alike(math.inf, availability.next_change(CLIENTS[:0], now), "nobody asked about: the next change")


_ALL: tuple[Law, ...] = (same_key_same_answer, order_of_asking_does_not_matter, adding_clients_leaves_the_others)
LAWS: dict[str, tuple[Law, ...]] = {
    "energy": (*_ALL, joules_go_with_time_and_bytes, constants_are_said),
    "ram": (*_ALL, sizes_are_positive_and_keep_shape),
    "loader": (*_ALL, rates_are_positive_and_keep_shape),
    "failure": (*_ALL, faults_lie_within_the_work, more_work_fails_no_less),
    "compute": (*_ALL, tasks_take_finite_time_and_more_for_more, speeds_are_positive_and_keep_shape),
    "network": (
        *_ALL, messages_take_finite_time_and_more_for_more, times_follow_from_rates, pieces_go_on_and_mean_out,
    ),
    "availability": (*_ALL, next_change_is_later, something_changes_there, nothing_changes_before, answers_stay_as_given),
}
