"""Laws that every registered replay policy keeps, each with deliberately wrong policies that it rejects."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np
import pytest

from fedsim.core.errors import RunError, ScenarioError
from fedsim.core.keys import Key
from fedsim.core.state import State, pack, unpack
from fedsim.core.types import Array, IntArray, Seconds
from fedsim.data.replay import Arrivals, Drawn, Replay, losses, replays, room, vectors  # noqa: F401  # Importing registers.
from fedsim.data.replay.memory import Memory, Positions, Rule, place, schedule
from fedsim.data.replay.policies import any_leaves
from fedsim.laws import LAWS, Broken, Kind, ask, hold
from fedsim.laws.replay import OUTPUTS, numbers, stream, the_schedule_is_the_steps

Make = Callable[..., Replay]


def full(name: str, **settings: Any) -> dict[str, Any]:
    """Return *settings*, and the least that *name* needs besides."""
    given = settings if "capacity_bytes" in settings else {"capacity": 12, **settings}
    return {} if name == "none" else {"candidates": 6, **given} if name == "mir" else given


def made(name: str, **settings: Any) -> Replay:
    return Kind("replay", name, full(name, **settings))(outputs=OUTPUTS, example_bytes=100)


@dataclass(frozen=True)
class Making:
    """Makes what *function* makes, whatever it is given; its ``max_age_s`` is 15."""

    function: Make
    settings: Mapping[str, Any] = field(default_factory=lambda: {"max_age_s": 15.0})

    def __call__(self, **_: Any) -> Replay:
        return self.function()


KINDS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in replays),
    *((name, {"max_age_s": 15.0}) for name in replays if name != "none"),
    ("reservoir", {"capacity": 1000}),
    ("cbrs", {"capacity": 1}),
    ("gdumb", {"capacity": 4}),
    ("herding", {"capacity": 4}),
    ("prioritised", {"alpha": 0.0}),
    ("loss_aware", {"strength": 5.0}),
    ("gss", {"compared": 1000}),
]


# Policies that are wrong on purpose: a reservoir of 12 with one thing changed.

GOOD = Positions(12, any_leaves, 15.0)


@dataclass
class Wrong:
    """The reservoir, but for what a test replaces."""

    adds: Callable[[State, Arrivals, Key], State] = GOOD.add
    draws: Callable[[State, int, Key, Seconds], Drawn] = GOOD.draw
    capacity: int = 12
    needs: frozenset[str] = frozenset()
    candidates: int = 0
    max_age_s: float = 15.0

    def empty(self) -> State:
        return GOOD.empty()

    def add(self, state: State, new: Arrivals, key: Key, numbers: Mapping[str, Array] | None = None) -> State:
        return self.adds(state, new, key)

    def draw(self, state: State, count: int, key: Key, now: Seconds) -> Drawn:
        return self.draws(state, count, key, now)

    def update(self, state: State, slots: IntArray, numbers: Array) -> State:
        return state

    def held(self, state: State) -> IntArray:
        return state["items"]


def grows(state: State, new: Arrivals, key: Key) -> State:
    return Positions(13, any_leaves, 15.0).add(state, new, key)


def writes_in_place(state: State, new: Arrivals, key: Key) -> State:
    state["items"][:1] = new.items[:1]
    return GOOD.add(state, new, key)


def draws_globally(state: State, new: Arrivals, key: Key) -> State:
    np.random.random()
    return GOOD.add(state, new, key)


def draws_by_call(state: State, new: Arrivals, key: Key) -> State:
    """One generator per call, as one would write it first."""
    shuffled = replace(new, items=np.arange(len(new.items)))
    memory = Memory(state, new, 12)
    memory.take(any_leaves, place(shuffled, key), 15.0, 0, len(new.items))
    return memory.state()


def forgets_who(state: State, new: Arrivals, key: Key) -> State:
    found = GOOD.add(state, new, key)
    return {**found, "items": found["items"] + 1}


def stores_twice(state: State, new: Arrivals, key: Key) -> State:
    found = GOOD.add(state, new, key)
    return {**found, "items": np.where(np.arange(len(found["items"])) == 1, found["items"][0], found["items"])}


def mixes_labels(state: State, new: Arrivals, key: Key) -> State:
    found = GOOD.add(state, new, key)
    return {**found, "labels": found["labels"][::-1].copy()}


CALLS = count()


def consumes(state: State, new: Arrivals, key: Key) -> State:
    return GOOD.add(state, new, key.fold(next(CALLS)))


def hides_state() -> Replay:
    calls = count()
    return Wrong(lambda state, new, key: GOOD.add(state, new, key.fold(next(calls))))


def draws_move_adds() -> Replay:
    drawn: list[int] = []

    def draw(state: State, count: int, key: Key, now: Seconds) -> Drawn:
        drawn.extend([0] * count)
        return GOOD.draw(state, count, key, now)

    return Wrong(lambda state, new, key: GOOD.add(state, new, key.fold(len(drawn))), draw)


def with_replacement(state: State, count: int, key: Key, now: Seconds) -> Drawn:
    r = min(count, len(GOOD.draw(state, count, key, now).slots))
    slots = (key.uniform(np.arange(r)) * len(state["items"])).astype(np.int64)
    return Drawn(slots, state["items"][slots], np.ones(r))


def too_few(state: State, count: int, key: Key, now: Seconds) -> Drawn:
    return GOOD.draw(state, max(count - 1, 0), key, now)


def other_items(state: State, count: int, key: Key, now: Seconds) -> Drawn:
    drawn = GOOD.draw(state, count, key, now)
    return replace(drawn, items=drawn.items + 1)


def deaf(state: State, count: int, key: Key, now: Seconds) -> Drawn:
    return GOOD.draw(state, count, Key(0), now)


def ageless_draw(state: State, count: int, key: Key, now: Seconds) -> Drawn:
    return replace(GOOD, max_age_s=math.inf).draw(state, count, key, now)


def ageless_add(state: State, new: Arrivals, key: Key) -> State:
    return replace(GOOD, max_age_s=math.inf).add(state, new, key)


def keeps_old_of_the_call(state: State, new: Arrivals, key: Key) -> State:
    """Forgets once a call, by the time of its first item."""
    alive = new.arrived_s[:1].max(initial=0.0) - state["arrived_s"] <= 15.0
    kept = {**state, **{name: state[name][alive] for name in ("items", "labels", "arrived_s")}}
    return replace(GOOD, max_age_s=math.inf).add(kept, new, key)


def wrong(adds: Callable[..., State] = GOOD.add, draws: Callable[..., Drawn] = GOOD.draw) -> Make:
    return Making(lambda: Wrong(adds, draws))


WRONG: dict[str, list[Make]] = {
    "capacity_is_never_exceeded": [wrong(grows)], "what_goes_in_stays_as_it_is": [wrong(writes_in_place), wrong(draws_globally)],
    "cuts_do_not_matter": [wrong(draws_by_call), wrong(keeps_old_of_the_call)],
    "only_what_came_is_held_and_once": [wrong(forgets_who), wrong(stores_twice), wrong(mixes_labels)],
    "every_draw_is_of_the_memory": [wrong(draws=with_replacement), wrong(draws=too_few), wrong(draws=other_items)],
    "same_key_same_answer": [wrong(consumes)], "other_key_other_draws": [wrong(draws=deaf)],
    "draws_do_not_move_the_memory": [Making(draws_move_adds)], "the_state_is_all_there_is": [Making(hides_state)],
    "what_is_too_old_is_gone": [wrong(draws=ageless_draw), wrong(ageless_add), wrong(keeps_old_of_the_call)],
    "the_schedule_is_the_steps": [Making(draws_move_adds)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("law", "name", "settings"),
    [
        (law, name, settings)
        for law in WRONG
        for name, settings in KINDS
        if law != "what_is_too_old_is_gone" or "max_age_s" in settings
    ],
)
def test_every_registered_policy_keeps_every_law(law: str, name: str, settings: dict[str, Any]) -> None:
    """Every replay policy in the registry keeps the law."""
    hold("replay", name, full(name, **settings), laws=[law])


@pytest.mark.parametrize(("law", "policy"), [(law, policy) for law, policies in WRONG.items() for policy in policies])
def test_the_law_has_teeth(law: str, policy: Make) -> None:
    """The law rejects a policy that was made to break it."""
    with pytest.raises(Broken, match=f"breaks the law '{law}'"):
        ask(LAWS["replay"][law], policy)


def test_the_reservoir_that_the_wrong_ones_change_is_right() -> None:
    """The wrong policies are wrong in the one thing that each changes."""
    for law in WRONG:
        LAWS["replay"][law](wrong())


def adds_first(
    replay: Replay, state: State, new: Arrivals, sizes: list[int], count: int, key: Key, first: int, now: Seconds
) -> tuple[list[Drawn], State]:
    """A schedule that replays from the mini-batch it reads."""
    found: list[Drawn] = []
    at = 0
    for step, size in enumerate(sizes, first):
        state = replay.add(state, new[at : at + size], key)
        found.append(replay.draw(state, count, key.fold("draw", step), now))
        at += size
    return found, state


def test_the_schedule_law_has_teeth() -> None:
    """A schedule that draws after the mini-batch was added is not the steps."""
    with pytest.raises(Broken):
        the_schedule_is_the_steps(Kind("replay", "reservoir", {"capacity": 12}), adds_first)


def test_a_rule_beyond_the_capacity_breaks() -> None:
    """A rule that names a slot beyond the capacity is stopped where it does."""
    beyond: Rule = lambda memory, label, u: memory.held  # noqa: E731

    with pytest.raises(RunError, match="never exceeds"):
        Positions(3, beyond).add(GOOD.empty(), stream(0), Key(0))


# What a memory costs, and what is refused.


def test_a_thousand_buffers_of_500_take_under_50_megabytes() -> None:
    """States of 500 positions take 12 kB each, as arrays and as bytes, whatever the policy; 50 kB is the bar."""
    rng = np.random.default_rng(0)
    new = Arrivals(np.arange(2000), rng.integers(OUTPUTS, size=2000), np.arange(2000.0))
    for name in replays:
        replay = made(name, capacity=500)
        state = replay.add(replay.empty(), new, Key(0), numbers(new))
        assert len(replay.held(state)) == (0 if name == "none" else 500)
        assert max(sum(array.nbytes for array in state.values()), len(pack(state))) < 50_000


def test_bytes_are_the_same_whatever_the_order_of_names() -> None:
    """A state packs to the same bytes however its dictionary was filled."""
    state = made("prioritised").empty()

    assert pack(state) == pack(dict(reversed(state.items())))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data.replace(b"state 1", b"state 2"),
        lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
        lambda data: b"\x80\x04]\x94.",
    ],
)
def test_damaged_bytes_are_refused(spoil: Callable[[bytes], bytes]) -> None:
    """Bytes that are cut, longer, of another version, or changed in one bit are refused in one line."""
    state = made("reservoir").add(GOOD.empty(), stream(0), Key(0))

    with pytest.raises(RunError, match=r"^a client's memory [^\n]+$"):
        unpack(spoil(pack(state)))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ((None, None, 100), r"capacity: neither is given\. "),
        ((10, 1000, 100), r"capacity: both are given\. "),
        ((0, None, 100), r"capacity = 0: must be >= 1"),
        ((10**9, None, 100), r"capacity = 1000000000: 1000000000 examples are [^\n]+ At most 10000000 work\."),
        ((None, 99, 100), r"capacity_bytes = 99: holds not one example\. An example takes 100 bytes\."),
        ((None, 10**12, 100), r"capacity_bytes = 1000000000000: 10000000000 examples"),
    ],
)
def test_a_capacity_that_makes_no_sense_is_refused(settings: tuple[Any, Any, int], line: str) -> None:
    """None or both of the two settings, room for no example, or for more than a memory can list: one line each."""
    with pytest.raises(ScenarioError, match=rf"^clients\.replay\.{line}[^\n]*$"):
        room(*settings)


def test_capacity_in_bytes_is_what_fits() -> None:
    """A buffer of 1234 bytes holds twelve examples of 100."""
    assert 12 == made("reservoir", capacity_bytes=1234).capacity


def test_a_ring_smaller_than_its_classes_is_refused() -> None:
    """Five slots are not enough for a ring over six classes."""
    with pytest.raises(ScenarioError, match=r"^clients\.replay\.capacity = 5: [^\n]+At least 6 works\.$"):
        made("ring", capacity=5)


def test_an_age_limit_is_positive() -> None:
    """An age limit of no seconds is refused."""
    with pytest.raises(ScenarioError, match=r"^clients\.replay\.max_age_s = 0\.0: must be > 0"):
        made("reservoir", max_age_s=0.0)


def test_a_class_never_seen() -> None:
    """A class that first comes late enters every memory that balances; one the model lacks is refused by the ring."""
    new = Arrivals(np.arange(61), np.r_[np.zeros(60, np.int64), 5], np.arange(61.0))
    for name in ("fifo", "cbrs", "ring", "gdumb", "herding"):
        replay = made(name)
        state = replay.add(replay.empty(), new, Key(0), {"features": np.ones((61, 2))})
        assert 60 in replay.held(state)

    with pytest.raises(RunError, match=r"^replay 'ring': an item of class 6 arrived, and the model knows 0 to 5\.$"):
        made("ring").add(GOOD.empty(), replace(new, labels=new.labels + 1), Key(0))


@pytest.mark.parametrize("name", ["loss_aware", "gss", "herding"])
def test_a_policy_that_is_told_nothing_says_so(name: str) -> None:
    """A policy that depends on numbers names those that did not come."""
    with pytest.raises(RunError, match=rf"^replay '{name}' is told the (losses|gradients|features) of new items: "):
        made(name).add(made(name).empty(), stream(0), Key(0))


def test_losses_that_are_no_number_break_nothing() -> None:
    """A loss that diverged counts as the largest there is, and the memory lives on."""
    new = stream(0)
    for name in ("prioritised", "loss_aware"):
        replay = made(name)
        state = replay.add(replay.empty(), new, Key(0), {"losses": np.full(120, np.nan)})
        state = replay.update(state, np.arange(3), np.array([np.nan, np.inf, 1.0]))
        assert np.isfinite(replay.draw(replay.add(state, new, Key(1), numbers(new)), 5, Key(0), 0.0).weights).all()


def test_twelve_thousand_mini_batches_are_quick() -> None:
    """Split-MNIST in one pass, 10 new and 10 replayed from 5120 (0.3 s when this was written; the bar is 1)."""
    import time

    new = Arrivals(np.arange(120_000), np.arange(120_000) % OUTPUTS, np.arange(120_000.0))
    began = time.process_time()
    found, state = schedule(made("reservoir", capacity=5120), GOOD.empty(), new, [10] * 12_000, 10, Key(0), 0, 0.0)

    assert time.process_time() - began < 3.0  # Three times the bar: a test machine may be slow.
    assert ([0, 10, 10], 5120) == ([len(drawn.items) for drawn in found[:3]], len(state["items"]))
