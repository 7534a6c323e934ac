"""Laws of replay policies: pure functions of (memory, key), whatever they choose. Knows no policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedsim.core.keys import Key
from fedsim.core.state import State, pack, unpack
from fedsim.core.types import Array, IntArray
from fedsim.data.replay import Arrivals, Drawn, Replay
from fedsim.data.replay.memory import schedule
from fedsim.laws.broken import Law, Make, alike, alike_states, luck, setting, want

OUTPUTS = 6


def stream(seed: int, n: int = 120) -> Arrivals:
    """Return *n* items of skewed classes, of which the last appears late; some item numbers are missing, arrivals tie."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.geometric(0.4, n), OUTPUTS - 1) - 1
    labels[-n // 4 :: 3] = OUTPUTS - 1
    return Arrivals(np.cumsum(rng.integers(1, 3, n)), labels, np.floor(np.cumsum(rng.exponential(1.0, n))))


def numbers(new: Arrivals) -> dict[str, Array]:
    """Return losses, gradients and features that depend on the item alone."""
    drawn = np.random.default_rng(5).standard_normal((2000, 4))[new.items]
    return {"losses": np.abs(drawn[:, 0]), "gradients": drawn, "features": drawn}


def told(replay: Replay, state: State, slots: IntArray) -> Array:
    """Return what *replay* needs to know of *slots*."""
    items = replay.held(state)[slots]
    known = numbers(Arrivals(items, items, np.zeros(len(items))))
    return known[next(iter(replay.needs), "losses")]


def walked(make: Make, new: Arrivals, sizes: Sequence[int], key: Key, draws: int = 4) -> list[tuple[State, Drawn]]:
    """Return the memory and what it replayed at each step: draw, update, add."""
    replay = _made(make)
    state = replay.empty()
    found: list[tuple[State, Drawn]] = []
    at = 0
    for step, size in enumerate(sizes):
        batch = new[at : at + size]
        now = float(batch.arrived_s[0])
        drawn = replay.draw(state, draws, key.fold("draw", step), now)
        state = replay.update(state, drawn.slots, told(replay, state, drawn.slots))
        state = replay.add(state, batch, key, numbers(batch))
        found.append((state, drawn))
        at += size
    return found


def _made(make: Make) -> Replay:
    return make(outputs=OUTPUTS, example_bytes=100)


def _tens(new: Arrivals) -> list[int]:
    return [10] * (len(new.items) // 10)


def capacity_is_never_exceeded(make: Make) -> None:
    """No more is held than the capacity, and no more drawn than asked for."""
    replay = _made(make)
    for seed in range(3):
        for step, (state, drawn) in enumerate(walked(make, stream(seed), [1] * 120, Key(seed))):
            held = len(replay.held(state))
            want(held <= replay.capacity, f"after item {step} of stream {seed} it holds {held}, and its capacity is {replay.capacity}")
            want(len(drawn.items) <= max(4, replay.candidates), f"at item {step} of stream {seed} a draw of 4 gives {len(drawn.items)}")


def what_goes_in_stays_as_it_is(make: Make) -> None:
    """The memory and the arrivals that go in are not written to, and no global generator is drawn from."""
    replay, new, key = _made(make), stream(1), Key(1)
    state = replay.add(replay.empty(), new[:60], key, numbers(new[:60]))
    before, items, drawn_before = unpack(pack(state)), new.items.copy(), luck()
    drawn = replay.draw(state, 5, key.fold("draw"), 0.0)
    replay.update(state, drawn.slots, 7.0 + told(replay, state, drawn.slots))
    replay.add(state, new[60:], key, numbers(new[60:]))
    alike_states(before, state, "after a draw, an update and an add: the memory that went in")
    alike(items, new.items, "after an add: the items that went in")
    want(drawn_before == luck(), "it draws from numpy's global generator")
    alike_states(_made(make).empty(), replay.empty(), "after 120 items: an empty memory")


def cuts_do_not_matter(make: Make) -> None:
    """The memory does not depend on how arrivals were cut into mini-batches, but for policies by features, which choose among these."""
    if _made(make).needs & {"features"}:
        return
    for seed in range(3):
        new, key, whole = stream(seed), Key(seed), None
        for sizes in ([120], [1] * 120, _tens(new), [7, 53, 60]):
            replay = _made(make)
            state, at = replay.empty(), 0
            for size in sizes:
                state = replay.add(state, new[at : at + size], key, numbers(new[at : at + size]))
                at += size
            whole = state if whole is None else whole
            alike_states(whole, state, f"stream {seed} in {len(sizes)} pieces and not in one: the memory")


def only_what_came_is_held_and_once(make: Make) -> None:
    """Items held have come, none is held twice, and labels that are kept are theirs."""
    replay = _made(make)
    for seed in range(3):
        new = stream(seed)
        label = dict(zip(new.items.tolist(), new.labels.tolist(), strict=True))
        for step, (state, _) in enumerate(walked(make, new, _tens(new), Key(seed)), 1):
            held = replay.held(state).tolist()
            strange = set(held) - set(new.items[: 10 * step].tolist())
            want(not strange, f"after {10 * step} items of stream {seed} it holds {sorted(strange)[:5]}, which have not come")
            want(len(set(held)) == len(held), f"after {10 * step} items of stream {seed} it holds an item twice")
            if "labels" in state:
                alike([label[item] for item in held], state["labels"].tolist(), f"after {10 * step} items of stream {seed}: labels")


def every_draw_is_of_the_memory(make: Make) -> None:
    """A draw gives as many as were asked for and are held, each from its slot, once where it does not weigh."""
    for seed in range(3):
        new, replay, key = stream(seed), _made(make), Key(seed)
        state = replay.add(replay.empty(), new, key, numbers(new))
        now, least, held = float(new.arrived_s[-1]), replay.candidates, replay.held(state)
        for r in (0, 1, 5, 400):
            drawn, words = replay.draw(state, r, key.fold(r), now), f"a draw of {r} from {len(held)} held"
            alike([min(max(r, least), len(held))] * 2, [len(drawn.items), len(drawn.slots)], f"{words}: how many")
            alike(held[drawn.slots].tolist(), drawn.items.tolist(), f"{words}: the items in its slots")
            want(((drawn.weights > 0) & (drawn.weights <= 1)).all(), f"{words}: weights are not above 0 and up to 1")
            if (drawn.weights == 1).all() and not state.get("priorities", np.zeros(0)).size:
                want(len(set(drawn.slots.tolist())) == len(drawn.slots), f"{words}: a slot comes twice")


def same_key_same_answer(make: Make) -> None:
    """The same stream under the same key gives the same memories and draws."""
    new = stream(3)
    one, two = walked(make, new, _tens(new), Key(3)), walked(make, new, _tens(new), Key(3))
    for step, ((a, drew), (b, draws)) in enumerate(zip(one, two, strict=True)):
        alike_states(a, b, f"asked twice, after step {step}: the memory")
        alike(drew.items, draws.items, f"asked twice, at step {step}: what is drawn")


def other_key_other_draws(make: Make) -> None:
    """Under other keys other items are drawn, where more than one is held."""
    new, replay = stream(4), _made(make)
    state = replay.add(replay.empty(), new, Key(4), numbers(new))
    drawn = {tuple(replay.draw(state, 3, Key(4).fold(step), 0.0).items.tolist()) for step in range(40)}
    want(len(drawn) > 1 or len(replay.held(state)) < 2, f"40 draws of 3 under 40 keys are all {next(iter(drawn))}")


def draws_do_not_move_the_memory(make: Make) -> None:
    """However many are drawn, the same items are remembered."""
    new, replay = stream(5), _made(make)
    few, many = (walked(make, new, _tens(new), Key(5), draws)[-1][0] for draws in (0, 9))
    alike(replay.held(few), replay.held(many), "with draws of 9 and not of 0: what is held in the end")


def the_state_is_all_there_is(make: Make) -> None:
    """A policy made anew goes on from the memory's bytes as the old one would have, as on a real node after a restart."""
    new, key = stream(6), Key(6)
    replay = _made(make)
    whole = revived = replay.empty()
    for at in range(0, 120, 10):
        batch = new[at : at + 10]
        whole = replay.add(whole, batch, key, numbers(batch))
        other = _made(make)
        revived = other.add(unpack(pack(revived)), batch, key, numbers(batch))
        alike_states(whole, revived, f"begun anew from its bytes before item {at}: the memory")
        one, two = replay.draw(whole, 5, key.fold(at), 0.0), other.draw(revived, 5, key.fold(at), 0.0)
        alike(one.items, two.items, f"begun anew from its bytes before item {at}: what is drawn")


def what_is_too_old_is_gone(make: Make) -> None:
    """With the setting ``max_age_s`` nothing older is held once something comes, or drawn ever."""
    age = setting(make, "max_age_s")
    if age is None:
        return
    for seed in range(3):
        new, replay, key = stream(seed), _made(make), Key(seed)
        arrived = dict(zip(new.items.tolist(), new.arrived_s.tolist(), strict=True))
        for step, (state, drawn) in enumerate(walked(make, new, _tens(new), key), 1):
            last, begin = float(new.arrived_s[10 * step - 1]), float(new.arrived_s[10 * (step - 1)])
            words = f"in step {step} of stream {seed}, with max_age_s = {age:g}"
            want(all(last - arrived[item] <= age for item in replay.held(state).tolist()), f"{words}: it holds what is too old")
            want(all(begin - arrived[item] <= age for item in drawn.items.tolist()), f"{words}: it draws what is too old")
            for now in (last, last + age / 2, last + 2 * age):
                later = replay.draw(state, 12, key, now).items.tolist()
                want(all(now - arrived[item] <= age for item in later), f"{words}: it draws what is too old at {now:g} s")
                want(bool(later) == (now <= last + age) or not replay.held(state).size, f"{words}: {len(later)} are drawn at {now:g} s")


def the_schedule_is_the_steps(make: Make, run: Callable[..., tuple[list[Drawn], State]] = schedule) -> None:
    """A task planned at once, as is done where no numbers are needed, draws and remembers what its steps would one by one."""
    if _made(make).needs:
        return
    new, key, sizes = stream(7), Key(7), [10, 0, 1, 9, 60, 0, 40]
    replay = _made(make)
    at, by_hand, drawn = 0, replay.empty(), list[Drawn]()
    for step, size in enumerate(sizes, 3):
        drawn.append(replay.draw(by_hand, 5, key.fold("draw", step), 30.0))
        by_hand = replay.add(by_hand, new[at : at + size], key)
        at += size
    found, state = run(replay, replay.empty(), new, sizes, 5, key, 3, 30.0)
    alike_states(by_hand, state, "planned at once: the memory")
    for name in ("items", "slots", "weights"):
        expected: list[Any] = [getattr(one, name).tolist() for one in drawn]
        alike(expected, [getattr(one, name).tolist() for one in found], f"planned at once: the {name} drawn")


LAWS: dict[str, tuple[Law, ...]] = {
    "replay": (
        capacity_is_never_exceeded, what_goes_in_stays_as_it_is, cuts_do_not_matter, only_what_came_is_held_and_once,
        every_draw_is_of_the_memory, same_key_same_answer, other_key_other_draws, draws_do_not_move_the_memory,
        the_state_is_all_there_is, what_is_too_old_is_gone, the_schedule_is_the_steps,
    )
}  # fmt: skip
