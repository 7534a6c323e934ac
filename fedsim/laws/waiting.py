"""Laws of pacing: how long, and for how many replies, a server waits. Knows no kind of these, and no run."""

from __future__ import annotations

import math

import numpy as np

from fedsim.core.state import State, pack, unpack
from fedsim.core.types import FloatArray
from fedsim.laws.broken import Law, Make, alike, alike_states, keepable, luck, want
from fedsim.strategy.pacing import Lasted, Pacing, Wait

ASKED = (1, 2, 3, 7, 10, 13, 100, 1001)


def _there(wait: Wait, took_s: FloatArray) -> FloatArray:
    """Return which of replies that take *took_s* are there when a wait for them is over, ascending."""
    there = np.sort(took_s[took_s <= wait.until_s])
    return there if wait.enough is None else there[: wait.enough]


def how_it_waits_follows_from_its_state(make: Make) -> None:
    """A wait follows from what is kept, and what is kept from rounds; it can be kept, and is not written to."""
    pacing: Pacing = make()
    drawn, rng, state = luck(), np.random.default_rng(5), keepable(pacing.first(), "its first state")
    alike_states(make().first(), state, "the first state of one made anew")
    for number in range(15):
        before, words = pack(state), f"round {number + 1}"
        waits = [pacing.wait(state, asked) for asked in ASKED]
        for who, again in (("the same one", pacing), ("one made anew", make())):
            others = [again.wait(unpack(before), asked) for asked in reversed(ASKED)]
            want(waits == others[::-1], f"{words}, asked again of {who}: {others[::-1]} came, expected {waits}")
        took_s = rng.exponential(10.0, 13)
        there = _there(waits[ASKED.index(13)], took_s)
        kept = there.copy()
        after = keepable(pacing.learned(state, Lasted(13, there)), f"{words}: what it keeps")
        want(pack(state) == before, f"{words}: it wrote to what it was given")
        alike(kept, there, f"{words}: the times that went in")
        alike_states(after, make().learned(unpack(before), Lasted(13, kept)), f"{words}, learned by one made anew")
        state = after
    want(drawn == luck(), "it draws from numpy's global generator")


def a_wait_can_be_over(make: Make) -> None:
    """A wait takes some time, is for one reply at least, and does not abandon a round that has all that it waited for."""
    pacing: Pacing = make()
    for state in _states(pacing):
        for asked in ASKED:
            wait = pacing.wait(state, asked)
            want(isinstance(wait, Wait), f"{asked} asked: a {type(wait).__name__} came, expected a Wait")  # pyright: ignore[reportUnnecessaryIsInstance]
            most = min(asked, asked if wait.enough is None else wait.enough)
            fine = wait.until_s > 0 and not math.isnan(wait.until_s) and 1 <= most and 0 <= wait.least <= most
            want(fine and (wait.enough is None or int(wait.enough) == wait.enough), f"{asked} asked: {wait}")


def slower_replies_do_not_shorten_the_wait(make: Make) -> None:
    """Where the same clients take longer, the next wait is no shorter: or a deadline would creep down by what it cuts off itself."""
    pacing, rng = make(), np.random.default_rng(8)
    for state in _states(pacing):
        wait = pacing.wait(state, 13)
        for _ in range(20):
            took_s = rng.exponential(10.0, 13)
            waits = [
                pacing.wait(pacing.learned(state, Lasted(13, _there(wait, took_s * times))), 13).until_s for times in (1.0, 1.3, 5.0, 1e9)
            ]
            want(sorted(waits) == waits, f"replies 1, 1.3, 5 and 1e9 times as slow: it waits {waits} s")


def _states(pacing: Pacing) -> list[State]:
    """Return what it keeps before rounds of ever other lengths."""
    rng, found = np.random.default_rng(3), [pacing.first()]
    for scale in (10.0, 1.0, 30.0, 30.0, 0.0, 5.0, 5.0):
        wait = pacing.wait(found[-1], 13)
        found.append(pacing.learned(found[-1], Lasted(13, _there(wait, rng.exponential(1.0, 13) * scale))))
    return found


LAWS: dict[str, tuple[Law, ...]] = {
    "pacing": (how_it_waits_follows_from_its_state, a_wait_can_be_over, slower_replies_do_not_shorten_the_wait),
}
