"""Laws of what moves learning rates and orders: schedules, and controllers at the server. Knows no kind of either."""

from __future__ import annotations

import numpy as np

from fedsim.core.state import State, pack, unpack
from fedsim.laws.broken import Law, Make, alike, alike_states, keepable, luck, want
from fedsim.learn.controllers import Changes, Controller
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


LAWS: dict[str, tuple[Law, ...]] = {
    "lr_schedule": (a_time_has_one_factor,), "controller": (what_it_wants_follows_from_its_state,),
}  # fmt: skip
