"""Laws: what every kind of a noun keeps, whoever wrote it. Knows how laws are asked of a kind; those of a noun are in files beside.

Each kind of ours is held to them by the tests; the author of another holds it to them with one call, in a test of theirs or not::

    import fedsim.laws

    fedsim.laws.hold("replay", "my_package.rules:ring", {"capacity": 12})
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

from fedsim.core.errors import ScenarioError, choices, reason
from fedsim.laws import (
    algorithm,
    arriving,
    codec,
    cost,
    noticing,
    optimizer,
    pacing,
    partition,
    replay,
    run,
    source,
    stream,
    training,
    waiting,
)
from fedsim.laws.broken import Broken, Law
from fedsim.laws.kind import Kind

__all__ = ["LAWS", "Broken", "Kind", "Law", "ask", "hold"]

_ROOMS = (source, partition, replay, cost, arriving, stream, noticing, codec, optimizer, algorithm, training, pacing, waiting, run)
LAWS: Mapping[str, Mapping[str, Law]] = {
    noun: {law.__name__: law for law in chain.from_iterable(room.LAWS.get(noun, ()) for room in _ROOMS)}
    for noun in sorted({noun for room in _ROOMS for noun in room.LAWS})
}
"""By noun, as registries have it, its laws by name: functions of a kind, which raise Broken."""


def hold(
    noun: str, kind: str, settings: Mapping[str, Any] | None = None, *, around: Mapping[str, Any] | None = None, laws: Iterable[str] = (),
    **given: Any,
) -> list[str]:
    """Hold *kind* of *noun*, with *settings* as a scenario has them, to *laws*, or to all; return the names of those that it keeps.

    *kind* is a registered name or 'package.module:name', looked up as by a scenario in the current folder. Laws of runs put it into a
    small scenario, with *around* by dotted key set as well; *given* stands in the place of what else the simulator fills in. Raises
    Broken for the first law that it breaks, in one line, and ScenarioError where there is no such noun, kind or law.

    >>> hold("compute", "constant", {"gflops": 5.0}, laws=["same_key_same_answer"])
    ['same_key_same_answer']
    >>> hold("codec", "plain")[:2]
    ['what_travels_was_foretold', 'decoding_loses_nothing_more']
    """
    if noun not in LAWS:
        raise ScenarioError(f"laws: there are none of {noun!r}. {choices(noun, LAWS)}")
    of_noun, held = LAWS[noun], Kind(noun, kind, settings or {}, around or {}, given)
    for name in (names := list(laws) or list(of_noun)):
        if name not in of_noun:
            raise ScenarioError(f"laws: there is no law {name!r} of {noun!r}. {choices(name, of_noun)}")
        ask(of_noun[name], held, f"{noun} {kind!r}")
    return names


def ask(law: Law, make: Callable[..., Any], whose: str = "it") -> None:
    """Ask *law* of what *make* makes, called *whose*. Raises Broken, in one line that names both, whatever comes of asking."""
    try:
        law(make)
    except Broken as broken:
        raise Broken(f"{whose} breaks the law {law.__name__!r}: {broken}") from broken
    except Exception as error:
        raise Broken(f"{whose} cannot be held to the law {law.__name__!r}: {reason(error)}") from error
