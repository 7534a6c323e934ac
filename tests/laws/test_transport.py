"""Polls and shared cores: when processes look for messages, and how long work takes beside other work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simpy

from fedsim.core.types import Seconds
from fedsim.cost.transport import look_s
from fedsim.sim.host import Alone, Host, Shared

Job = tuple[Seconds, Seconds]
"""When work begins, and how long it takes alone."""


def jobs(seed: int, count: int) -> list[Job]:
    draw = np.random.default_rng(seed)
    return [(float(draw.integers(0, 20)) / 4, float(draw.exponential(2.0)) if draw.random() > 0.1 else 0.0) for _ in range(count)]


def ends(host: Callable[[simpy.Environment], Host], asked: list[Job]) -> list[float]:
    """Return when each of *asked* ends on *host*."""
    env = simpy.Environment()
    having, found = host(env), [-1.0] * len(asked)

    def one(place: int, begin: Seconds, takes: Seconds) -> Any:
        yield env.timeout(begin)
        yield having.work(takes)
        found[place] = env.now

    for place, (begin, takes) in enumerate(asked):
        env.process(one(place, begin, takes))
    env.run()
    return found


def by_hand(cores: float, asked: list[Job], crowd: tuple[int, float] = (1000, 1.0)) -> list[float]:
    """Return the same by going from change to change over all jobs: no heap, no virtual time."""
    left, found, now = dict(enumerate(takes for _, takes in asked)), [-1.0] * len(asked), 0.0
    while left:
        active = [place for place in left if asked[place][0] <= now]
        for place in [p for p in active if left[p] <= 1e-12]:
            found[place] = now
            del left[place]
            active.remove(place)
        rate = min(1.0, cores / len(active)) / (crowd[1] if len(active) >= crowd[0] else 1.0) if active else 0.0
        coming = [asked[place][0] - now for place in left if asked[place][0] > now]
        step = min([*coming, *(left[place] / rate for place in active)], default=0.0)
        for place in active:
            left[place] -= step * rate
        now += step
    return found


class Queue:
    """One after the other on each core: as busy, and not fair. Not shared."""

    def __init__(self, env: simpy.Environment, cores: float) -> None:
        self._env, self._cores = env, simpy.Resource(env, max(1, int(cores)))

    def work(self, seconds: Seconds) -> simpy.Event:
        return self._env.process(self._turn(seconds))

    def _turn(self, seconds: Seconds) -> Any:
        with self._cores.request() as turn:
            yield turn
            yield self._env.timeout(seconds)


@pytest.mark.parametrize("cores", [1, 2, 3.5])
@pytest.mark.parametrize("seed", range(5))
def test_shared_cores_are_shared_equally(cores: float, seed: int) -> None:
    """Twenty jobs end when a walk from change to change says; a queue as busy lets them end at other times."""
    asked = jobs(seed, 20)

    np.testing.assert_allclose(ends(lambda env: Shared(env, cores), asked), by_hand(cores, asked), rtol=0, atol=1e-9)
    assert not np.allclose(ends(lambda env: Queue(env, cores), asked), by_hand(cores, asked))


@pytest.mark.parametrize("seed", range(5))
def test_a_crowd_is_slower_while_it_lasts(seed: int) -> None:
    """From three at once on each takes 1.3 times its processor time, and no longer than there are three; a slower computer is not that."""
    asked = jobs(seed, 20)
    found = ends(lambda env: Shared(env, 2, 3, 1.3), asked)

    np.testing.assert_allclose(found, by_hand(2, asked, (3, 1.3)), rtol=0, atol=1e-9)
    assert not np.allclose(found, ends(lambda env: Shared(env, 2 / 1.3), asked))


def test_as_many_cores_as_jobs_are_devices_of_their_own() -> None:
    """With nobody to share with, work takes what it takes, to the last bit where it begins at 0."""
    asked = [(0.0, takes) for _, takes in jobs(9, 20)]

    assert ends(Alone, asked) == ends(lambda env: Shared(env, 20), asked)


def test_equal_work_ends_together() -> None:
    """Three processes of one second on two cores take a second and a half each."""
    assert [1.5] * 3 == pytest.approx(ends(lambda env: Shared(env, 2), [(0.0, 1.0)] * 3))


def test_who_looks_finds_what_is_there_and_nothing_before() -> None:
    """A look is never before now, never more than a period after, and always a whole number of periods after the first."""
    draw = np.random.default_rng(0)
    for since, every, later in draw.uniform([-5.0, 0.01, 0.0], [50.0, 4.0, 100.0], (500, 3)):
        look = look_s(since, every, since + later)
        periods = (look - since) / every

        assert since + later <= look < since + later + every * (1 + 1e-9)
        assert abs(periods - round(periods)) < 1e-6 * max(1.0, periods)


FAST: dict[str, Any] = {
    "clients.compute": {"kind": "constant", "gflops": 5.0, "overhead_s": 1.25}, "clients.network": {"kind": "ideal"},
    "server.strategy": {"kind": "FedAvg", "fraction_train": 1.0},
}  # fmt: skip


def test_a_round_lasts_as_long_as_the_polls_let_it(go: Any) -> None:
    """Clients of 1.25 s whose nodes look each 3 s, replies looked for each half second, by a server that looks each 3 s.

    Worked out by hand: after the first round every node is free when it sent its reply, and looks 3 s after that.
    """
    polls = {"node_poll_s": 3.0, "reply_poll_s": 0.5, "server_poll_s": 3.0}
    brought, fetched = go(FAST), go({**FAST, "transport": polls})
    rounds, tasks = fetched.rounds, fetched.tasks
    took = (rounds.ended_s - rounds.started_s).to_numpy()

    assert brought.params().keys() == fetched.params().keys()
    assert all(np.array_equal(array, fetched.params()[name]) for name, array in brought.params().items())
    assert (1.25 < (brought.rounds.ended_s - brought.rounds.started_s)).all()
    assert np.allclose(took / 3.0, np.round(took / 3.0)) and (took >= 3.0).all()
    assert ((tasks.received_s - tasks.sent_s) < 3.0).all() and tasks.received_s.nunique() > len(rounds)
    again = tasks[tasks["round"] > 1]
    before = tasks[tasks["round"] < tasks["round"].max()]
    looks = again.received_s.to_numpy() - before.arrived_s.to_numpy()
    assert np.allclose(looks / 3.0, np.round(looks / 3.0))


def test_clients_of_one_computer_slow_each_other_down(go: Any) -> None:
    """All clients on one core end as late as their work lasts together; the model is the same."""
    alone, together = go(FAST), go({**FAST, "transport": {"node_poll_s": 0.0, "reply_poll_s": 0.0, "server_poll_s": 0.0, "cores": 1}})
    first = alone.tasks[alone.tasks["round"] == 1]
    work = float((first.computed_s - first.started_s).sum())

    assert work == pytest.approx(float(together.tasks[together.tasks["round"] == 1].computed_s.max()))
    assert all(np.array_equal(array, together.params()[name]) for name, array in alone.params().items())


def test_a_server_that_takes_its_time_sends_later(go: Any) -> None:
    """Between two rounds lie the seconds that the server takes."""
    polls = {"node_poll_s": 0.0, "reply_poll_s": 0.0, "server_poll_s": 0.0, "server_s": 7.0}
    rounds = go({**FAST, "transport": polls}).rounds

    assert np.allclose(rounds.started_s.to_numpy()[1:] - rounds.ended_s.to_numpy()[:-1], 7.0)
