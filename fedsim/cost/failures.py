"""Failures: which tasks of which clients break off or are answered wrongly, when in the task's work, and what the server hears of it.

Pure functions of (key, client, task): asked twice, in any order, they answer the same. Knows no clock and no message.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, get_args

import numpy as np

from fedsim.core import answers
from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.core.registry import Registry
from fedsim.core.types import BoolArray, IntArray, NonNegative, Range, Seconds

Answer = Literal["never", "missed", "crashed", "raised", "garbled"]
"""What the server hears. never: nothing at all. missed: Flower's error 5, once the SuperLink misses the device's heartbeats. crashed: error
8, once the SuperNode misses its app's. raised: error 2, at once. garbled: the reply, which cannot be read, so that an error takes its
place; Flower has no code for that, and it is 0."""

ANSWERS: tuple[str, ...] = get_args(Answer)
HEARTBEATS_S: Seconds = 60.0
"""How long Flower takes to miss somebody: two heartbeats of 30 s (``HEARTBEAT_PATIENCE`` and ``HEARTBEAT_DEFAULT_INTERVAL``, flwr 1.41)."""
_TASKS = 1 << 32  # Draws per client: with more tasks than that, a client would share the next one's luck.


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with a task: *cause* in words, *after_s* seconds of its work, of which more are not done.

    *breaks* says that the client then has nothing of the task: what it keeps is as before, or lost where the fault *loses* it. Otherwise it
    has done all of it, and only its reply is wrong. For *away_s* more it takes no other message.
    """

    cause: str
    after_s: Seconds
    answer: Answer = "never"
    breaks: bool = False
    away_s: Seconds = 0.0
    loses: bool = False


class Failures(Protocol):
    """The failures of all clients: equal arguments, equal answers, whatever was asked before."""

    def fails(self, client: int, task: int, works_s: Seconds) -> Fault | None:
        """Return what goes wrong with the *task*-th own task of *client*, which is *works_s* of work; None where nothing does.

        Evaluations are numbered apart, from 2**22 on, as with devices.
        """
        ...


def _fault(given: Any, _client: int, _task: int, works_s: Seconds) -> Fault | None:
    if given is None:
        return None
    if not isinstance(given, Fault):
        raise ValueError(f"a {type(given).__name__}, expected a fedsim.cost.failures.Fault or None")
    for name in ("after_s", "away_s"):
        answers.one(getattr(given, name), least=0.0)
    if given.after_s > works_s:
        raise ValueError(f"a Fault after {given.after_s} s of work, expected {works_s} at the most")
    if given.answer not in ANSWERS:
        raise ValueError(f"a Fault answered {given.answer!r}, expected one of {', '.join(ANSWERS)}")
    if given.loses and not given.breaks:
        raise ValueError("a Fault that loses what its client keeps and breaks nothing, expected breaks=True with it")
    if not isinstance(given.cause, str) or not given.cause:  # pyright: ignore[reportUnnecessaryIsInstance]  # A stranger's.
        raise ValueError(f"a Fault of cause {given.cause!r}, expected words")
    return given


failures: Registry[Callable[..., Failures]] = Registry(
    "failure", given=["key"], key="clients.failures", gives=answers.Gives("Failures", ("fails",), {"fails": _fault}),
)  # fmt: skip
"""Functions that return Failures. Given: ``key``."""

Chance = Annotated[float, Range(ge=0, lt=1, why="of a task to fail: were it certain, nobody would ever be heard")]
What = Literal["device", "app"]
Keeps = Literal["kept", "lost"]


def silent_for_ever(given: Failures | None, count: int) -> bool:
    """Return whether it is known of each of *count* clients that it never answers; by the method ``mute``, where there is one."""
    mute: Callable[[IntArray], BoolArray] | None = getattr(given, "mute", None)
    return mute is not None and bool(mute(np.arange(count)).all())


def _drawn(key: Key, client: int, task: int) -> float:
    return key.uniform_at(client * _TASKS + task)


@dataclass(frozen=True, slots=True)
class Dropout:
    """Tasks that break off, each by its own luck. See ``dropout``."""

    probability: float
    what: What
    away_s: Seconds
    state: Keeps
    whether: Key
    when: Key

    def fails(self, client: int, task: int, works_s: Seconds) -> Fault | None:
        """Return a break at a moment drawn evenly in the work, or None."""
        if _drawn(self.whether, client, task) >= self.probability:
            return None
        return _break("dropped out", self.what, _drawn(self.when, client, task) * works_s, self.away_s, self.state)


@dataclass(frozen=True, slots=True)
class Hazard:
    """Tasks that break off at a constant rate. See ``hazard``."""

    per_s: float
    what: What
    away_s: Seconds
    state: Keeps
    when: Key

    def fails(self, client: int, task: int, works_s: Seconds) -> Fault | None:
        """Return a break where its exponential moment comes before the end of the work."""
        if not self.per_s:
            return None
        after_s = -math.log(_drawn(self.when, client, task)) / self.per_s
        return None if after_s >= works_s else _break("crashed", self.what, after_s, self.away_s, self.state)


@dataclass(frozen=True, slots=True)
class Silent:
    """Clients, or tasks, of which nothing is heard. See ``silent``."""

    share: float
    probability: float
    whom: Key
    whether: Key

    def mute(self, clients: IntArray) -> BoolArray:
        """Return which of *clients* never answer. Shapes: (n,) -> (n,)."""
        return self.whom.uniform(clients) < self.share

    def fails(self, client: int, task: int, works_s: Seconds) -> Fault | None:
        """Return silence once the work is done, or None."""
        mute = self.whom.uniform_at(client) < self.share
        return Fault("never answers", works_s) if mute or _drawn(self.whether, client, task) < self.probability else None


@dataclass(frozen=True, slots=True)
class Wrong:
    """Replies that are none. See ``corrupted`` and ``empty``."""

    cause: str
    answer: Answer
    probability: float
    whether: Key

    def fails(self, client: int, task: int, works_s: Seconds) -> Fault | None:
        """Return an error in the place of the reply, once the work is done, or None."""
        return Fault(self.cause, works_s, self.answer) if _drawn(self.whether, client, task) < self.probability else None


def _break(cause: str, what: What, after_s: Seconds, away_s: Seconds, state: Keeps) -> Fault:
    answer: Answer = "crashed" if what == "app" else "missed" if away_s >= HEARTBEATS_S else "never"
    loses = state == "lost"
    return Fault(f"{cause} while working{', its state lost' * loses}", after_s, answer, breaks=True, away_s=away_s, loses=loses)


def _check_app(what: What, away_s: Seconds, state: Keeps) -> None:
    if what == "app" and away_s:
        raise ScenarioError(f"clients.failures.away_s = {away_s:g}: goes with what = 'device'; where an app dies its device stays.")
    if what == "app" and state == "lost":
        raise ScenarioError("clients.failures.state = 'lost': goes with what = 'device'; what an app keeps is its SuperNode's.")


@failures.register("dropout")
def dropout(
    key: Key, *, probability: Chance, what: What = "device", away_s: NonNegative = 0.0, state: Keeps = "kept"
) -> Dropout:  # fmt: skip
    """Return tasks that break off with a *probability* each, at a moment drawn evenly in their work.

    The client loses the task, keeps what it had before, and takes no message for *away_s*. With the device the reply is lost for good:
    its message was taken off the SuperLink. A SuperNode that is back within 60 s is never missed, and the server learns of it by its
    deadline alone; of one that is away longer it hears after 60 s, by error 5, NODE_UNAVAILABLE. Where only the app dies, its SuperNode
    says so once it misses the app's heartbeats, after 60 s: error 8, CLIENT_APP_CRASHED; until then it takes no other message.

    Flower keeps what an app keeps (``Context.state``) in the SuperNode's process, and an app may put it on the disk. With *state* "lost" a
    device comes back without it, wiped or with an empty SuperNode: no replay memory, no optimizer's or algorithm's state, no model of its
    own, no detector's past; it is as a client that was never asked. Where it is in its stream stays: nothing streams by twice.

    >>> breaks = dropout(Key(0), probability=0.5)
    >>> [breaks.fails(0, task, 10.0) is None for task in range(4)]
    [False, False, True, False]
    """
    _check_app(what, away_s, state)
    return Dropout(probability, what, away_s, state, key.fold("whether"), key.fold("when"))


@failures.register("hazard")
def hazard(
    key: Key, *, per_s: Annotated[float, Range(ge=0, le=1000, why="crashes per second of work")], what: What = "device",
    away_s: NonNegative = 0.0, state: Keeps = "kept",
) -> Hazard:  # fmt: skip
    """Return tasks that crash at a rate of *per_s* while they are worked on: of works_s seconds a share 1 - exp(-per_s * works_s) does.

    So long tasks, and slow devices, crash more often. What the server hears of it, and what *state* means, is as with ``dropout``.

    >>> round(hazard(Key(0), per_s=0.01).fails(0, 0, 1000.0).after_s, 3)
    20.792
    """
    _check_app(what, away_s, state)
    return Hazard(per_s, what, away_s, state, key.fold("when"))


@failures.register("silent")
def silent(key: Key, *, share: Annotated[float, Range(ge=0, lt=1, why="of clients")] = 0.0, probability: Chance = 0.0) -> Silent:
    """Return a *share* of clients that never answer anything, and tasks that are not answered with a *probability* each.

    They do their work, and keep what it leaves them; what they send never leaves the device. Flower has no error for that: a SuperNode
    whose heartbeats go on is there. The server learns of it by its deadline alone.

    >>> silent(Key(0), share=0.5).mute(np.arange(6)).tolist()
    [True, True, True, True, False, False]
    """
    return Silent(share, probability, key.fold("whom"), key.fold("whether"))


@failures.register("corrupted")
def corrupted(key: Key, *, probability: Chance) -> Wrong:
    """Return replies that arrive with a *probability* each so that they cannot be read: an error takes their place.

    Their bytes are on the wire and count. Flower, which knows its objects by their hashes, has no error of its own for it: code 0, UNKNOWN.

    >>> corrupted(Key(0), probability=0.0).fails(0, 0, 1.0) is None
    True
    """
    return Wrong("the reply was corrupted", "garbled", probability, key.fold("whether"))


@failures.register("empty")
def empty(key: Key, *, probability: Chance) -> Wrong:
    """Return apps that have worked and hand back nothing with a *probability* each: Flower takes that for an exception of theirs.

    The server hears error 2, CLIENT_APP_RAISED_EXCEPTION, once the work is done; it weighs nothing, like all errors here.

    >>> empty(Key(0), probability=0.0).fails(0, 0, 1.0) is None
    True
    """
    return Wrong("the app answered with nothing", "raised", probability, key.fold("whether"))
