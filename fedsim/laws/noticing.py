"""Laws of detectors and reactions: what a client on a stream notices, and what it does then. Knows no kind of either."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.client.detectors import Detector
from fedsim.client.reactions import Reaction
from fedsim.core.keys import Key
from fedsim.laws.broken import Law, Make, alike, luck, want

MOST_BYTES = 8192
"""What a detector's state may take: it lies in every client."""


def errors(seed: int = 0, before: int = 300, after: int = 400) -> Any:
    """Return mistakes of a client whose error rate goes from 0.2 to 0.5. Shapes: -> (before + after,)."""
    noise = Key(11).fold(seed).numpy().random(before + after)
    return noise < np.where(np.arange(before + after) < before, 0.2, 0.5)


def fed(make: Make, stream: Any, cuts: tuple[int, ...] = (), seed: int = 0) -> tuple[bytes, list[int]]:
    """Return the state in the end and the alarms, of a detector that is made anew at each of *cuts*."""
    detector: Detector = make()
    state, found = detector.start(Key(seed)), list[int]()
    for begin, end in zip((0, *cuts), (*cuts, len(stream)), strict=True):
        detector = make()
        state, at = detector.feed(state, stream[begin:end])
        found += [begin + int(i) for i in at]
    return state, found


def a_stream_may_be_cut_anywhere(make: Make) -> None:
    """Fed in pieces, by a detector made anew for each, it raises the alarms and ends in the state, to the byte, of feeding at once."""
    stream = errors()
    state, alarms = fed(make, stream)
    for cuts in ((1,), (317, 317), tuple(range(10, len(stream), 10))):
        one, found = fed(make, stream, cuts)
        alike(alarms, found, f"700 examples in {len(cuts) + 1} pieces: alarms")
        want(state == one, f"700 examples in {len(cuts) + 1} pieces: the state in the end is another")


def states_are_small_and_stay(make: Make) -> None:
    """A state takes under 8 kB, and feeding the same to an old one twice answers the same twice."""
    detector: Detector = make()
    stream, drawn = errors(1), luck()
    state, _ = fed(make, stream[:300])
    want(len(state) < MOST_BYTES, f"after 300 examples its state takes {len(state)} bytes")
    one, two = (detector.feed(state, stream[300:]) for _ in range(2))
    alike(one[1].tolist(), two[1].tolist(), "the same state fed twice: alarms")
    want(one[0] == two[0], "the same state fed twice: the states are two")
    want(drawn == luck(), "it draws from numpy's global generator")


def a_step_has_one_rate(make: Make) -> None:
    """The factor on the rate so many steps after an alarm does not depend on what else is asked, nor on how often."""
    reaction: Reaction = make(at="clients.reaction")
    steps = np.array([0, 1, 2, 3, 7, 49, 50, 51, 10_000])
    whole = np.asarray(reaction.lr_scale(steps))
    want(whole.shape == steps.shape and (whole > 0).all(), f"{steps.tolist()} steps after an alarm: factors {whole.tolist()}")
    for words, found in (
        ("asked one by one", [float(reaction.lr_scale(steps[i : i + 1])[0]) for i in range(len(steps))]),
        ("asked backwards", reaction.lr_scale(steps[::-1].copy())[::-1].tolist()),
        ("made anew", make(at="clients.reaction").lr_scale(steps).tolist()),
    ):
        alike(whole.tolist(), found, f"{steps.tolist()} steps after an alarm, {words}: factors")
    for name in ("keep_share", "replay_share", "tell"):
        alike(getattr(make(at="clients.reaction"), name), getattr(reaction, name), f"{name} of one that was asked before")


LAWS: dict[str, tuple[Law, ...]] = {
    "detector": (a_stream_may_be_cut_anywhere, states_are_small_and_stay), "reaction": (a_step_has_one_rate,),
}  # fmt: skip
