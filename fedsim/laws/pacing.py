"""Laws of what moves learning rates, orders and batch sizes: schedules, controllers at the server, policies. Knows no kind of these."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedsim.core.state import State, pack, unpack
from fedsim.laws.broken import Law, Make, alike, alike_states, keepable, luck, want
from fedsim.learn.batch_policies import EXAMPLES, STATISTICS, BatchPolicy, Situation
from fedsim.learn.controllers import Changes, Controller
from fedsim.learn.pace import CLOCKS, When
from fedsim.learn.schedules import Schedule

TIMES = np.array([0.0, 0.5, 1.0, 2.0, 3.0, 9.0, 10.0, 10.5, 31.0, 99.0, 100.0, 101.0, 1e4, 1e6])


def a_time_has_one_factor(make: Make) -> None:
    """The factor at a time is a finite number >= 0 that does not depend on what else is asked, nor on how often, nor on luck."""
    schedule: Schedule = make()
    given, drawn = TIMES.copy(), luck()
    whole = np.asarray(schedule.factor(given))
    want(whole.shape == TIMES.shape, f"{len(TIMES)} times: factors of shape {whole.shape} came")
    want(np.isfinite(whole).all() and (whole >= 0).all(), f"times {TIMES.tolist()}: factors {whole.tolist()}")
    alike(TIMES, given, "the times that went in")
    for words, found in (
        ("asked one by one", [float(schedule.factor(TIMES[i : i + 1])[0]) for i in range(len(TIMES))]),
        ("asked backwards", schedule.factor(TIMES[::-1].copy())[::-1].tolist()),
        ("asked in two parts", [*schedule.factor(TIMES[:5]).tolist(), *schedule.factor(TIMES[5:]).tolist()]),
        ("made anew", make().factor(TIMES.copy()).tolist()),
    ):
        alike(whole.tolist(), found, f"times {TIMES.tolist()}, {words}: factors")
    want(drawn == luck(), "it draws from numpy's global generator")


def what_it_wants_follows_from_its_state(make: Make) -> None:
    """What a controller wants follows from its state and the metrics; the state can be kept, and is not written to."""
    controller: Controller = make()
    luck_before, state = luck(), keepable(controller.first(), "its first state")
    alike_states(make().first(), state, "the first state of one made anew")
    rng = np.random.default_rng(5)
    for version in range(25):
        metrics = {name: float(1.0 + rng.exponential() * (version < 8)) for name in controller.metrics}
        before, told = pack(state), dict(metrics)
        after, changes = controller.next(state, version, metrics)
        words = f"version {version}, metrics {told}"
        want(pack(state) == before and metrics == told, f"{words}: it wrote to what it was given")
        others = sorted(set(changes) - set(controller.changes))
        want(not others, f"{words}: it changes {others}, and says that it changes {controller.changes}")
        for who, again in (("the same one", controller), ("one made anew", make())):
            _asked_alike(again, unpack(before), version, metrics, (after, changes), f"{words}, asked again of {who}")
        state = keepable(after, f"{words}: its state")
    want(luck_before == luck(), "it draws from numpy's global generator")


def _asked_alike(
    controller: Controller, state: State, version: int, metrics: dict[str, float], expected: tuple[State, Changes], words: str
) -> None:
    after, changes = controller.next(state, version, metrics)
    alike_states(expected[0], after, f"{words}: the state")
    alike(dict(expected[1]), dict(changes), f"{words}: the changes")


SITUATIONS = [
    Situation(When(steps, number, version, now), speed, fixed, 1e4 * speed, loads)
    for steps, number, version, now, speed, fixed, loads in (
        (0, 1, 0, 0.0, 1.0, 0.3, np.inf), (30, 3, 2, 9.5, 0.2, 0.3, 500.0), (10**9, 10**6, 10**6, 1e9, 7.0, 40.0, 1e6),
    )
]  # fmt: skip
"""Where a task may be planned: at the begin, early on a slow device, and late on a fast one."""


def a_size_follows_from_what_is_kept(make: Make) -> None:
    """A size is a whole number from 1 and follows from order, situation and state; what is kept can be, and is not written to."""
    policy: BatchPolicy = make()
    luck_before, rng = luck(), np.random.default_rng(5)
    for situation in SITUATIONS:
        kept: State = {}
        for number in range(12):
            before, words = pack(kept), f"task {number} at {situation}"
            sizes = {ordered: policy.size(ordered, situation, kept) for ordered in (1, 10, 3000)}
            want(all(int(size) == size >= 1 for size in sizes.values()), f"{words}: sizes {sizes}")
            for who, again in (("the same one", policy), ("one made anew", make())):
                found = {ordered: again.size(ordered, situation, unpack(before)) for ordered in (3000, 10, 1)}
                alike(sizes, dict(reversed(found.items())), f"{words}, asked again of {who}: sizes")
            told = {EXAMPLES: 10.0, **dict(zip(policy.needs, rng.normal(1.0, 2.0, len(policy.needs)).tolist(), strict=True))}
            after = keepable(policy.learned(kept, sizes[10], dict(told)), f"{words}: what is kept")
            want(pack(kept) == before, f"{words}: it wrote to what it was given")
            alike_states(after, make().learned(unpack(before), sizes[10], dict(told)), f"{words}, learned by one made anew")
            kept = after
    others = sorted({*policy.needs} - {*STATISTICS})
    want(not others, f"it needs {others}, and a task tells {', '.join(STATISTICS)}")
    want(luck_before == luck(), "it draws from numpy's global generator")


def it_goes_by_the_clocks_that_it_names(make: Make) -> None:
    """A clock that it does not name moves no size: what it shows is not even sent."""
    policy: BatchPolicy = make()
    late = {"local_step": {"steps": 10**6}, "round": {"round": 500}, "version": {"version": 500}, "virtual_s": {"now_s": 1e6}}
    for situation in SITUATIONS[:2]:
        size = policy.size(10, situation, {})
        for clock in CLOCKS:
            if clock not in policy.clocks:
                moved = replace(situation, when=replace(situation.when, **late[clock]))
                alike(size, policy.size(10, moved, {}), f"it names the clocks {policy.clocks}, and {clock} moves on: its size")


LAWS: dict[str, tuple[Law, ...]] = {
    "lr_schedule": (a_time_has_one_factor,), "controller": (what_it_wants_follows_from_its_state,),
    "batch_policy": (a_size_follows_from_what_is_kept, it_goes_by_the_clocks_that_it_names),
}  # fmt: skip
