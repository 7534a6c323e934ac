"""Laws of whole runs: one digest, however a run is computed, and clients that go on from what they keep. Knows no kind."""

from __future__ import annotations

import math
from typing import cast

from fedsim.client.kept import Kept
from fedsim.client.program import Finished, Order
from fedsim.laws.broken import Law, Make, alike, want
from fedsim.laws.kind import Kind
from fedsim.learn.work import Start
from fedsim.scenario.build import Parts

TASKS = 3


def one_digest(make: Make) -> None:
    """A run has one digest: a second time, with one client computed at a time, and by two workers."""
    kind = cast(Kind, make)
    first = kind.digest()
    for words, more in (("a second time", {}), ("one client at a time", {"chunk": 1}), ("by two workers", {"workers": 2})):
        found = kind.digest(**more)
        want(found == first, f"the same scenario run {words} has another digest: {found[:12]}, and not {first[:12]}")


def a_client_goes_on_from_what_it_keeps(make: Make) -> None:
    """A client that is built anew before each message, from what it keeps and as on a real node after a restart, answers the same."""
    kind = cast(Kind, make)
    parts, kept, others, now = kind.parts(), Kept(), Kept(), 0.0
    for number in range(TASKS):
        fresh = Kept.unpacked(kept.packed())
        ready_s = parts.fleet.client(0).ready_s(_order(parts), kept, now)
        if ready_s == math.inf:
            break
        expected, kept = _answered(parts, 0, kept, ready_s)
        found, after = _answered(kind.parts(), 0, fresh, ready_s)
        words = f"task {number} of a client that is built anew from what it keeps"
        for name in ("params", "metrics"):
            alike(dict(getattr(expected.reply, name)), dict(getattr(found.reply, name)), f"{words}: its {name}")
        want(kept.packed() == after.packed(), f"{words}: it keeps something else")
        alike(_alarms(expected), _alarms(found), f"{words}: its alarms")
        _, others = _answered(parts, 1, others, max(ready_s, parts.fleet.client(1).ready_s(_order(parts), others, ready_s)))
        now = ready_s


def _order(parts: Parts) -> Order:
    extra = parts.extras.state if parts.extras else {}
    down = parts.job.algorithm.down if parts.job.algorithm else ()
    return Order(parts.job, Start({**parts.first, **{name: array for name, array in extra.items() if name.partition("/")[0] in down}}))


def _answered(parts: Parts, client: int, kept: Kept, now: float) -> tuple[Finished, Kept]:
    program = parts.fleet.client(client)
    task, kept = program.plan(_order(parts), kept, now)
    finished = program.finish(task, parts.engine.run([task])[0], kept)
    return finished, kept.having(finished.parts)


def _alarms(finished: Finished) -> list[int]:
    return [] if finished.news is None else finished.news.alarms.tolist()


def it_computes_what_this_process_does(make: Make) -> None:
    """A run has the digest of the one that is computed here, whoever computes it."""
    kind = cast(Kind, make)
    found, here = kind.digest(), Kind("executor", "local", {}, kind.around, {}).digest(workers=1)
    want(found == here, f"the same scenario has the digest {found[:12]} computed by it, and {here[:12]} in this process")


LAWS: dict[str, tuple[Law, ...]] = {
    "executor": (it_computes_what_this_process_does,),
    **dict.fromkeys(("model", "objective"), (one_digest,)),
    **dict.fromkeys(
        ("replay", "detector", "reaction", "rehearsal", "optimizer", "clipping", "algorithm", "stopping", "batch_policy"),
        (a_client_goes_on_from_what_it_keeps, one_digest),
    ),
}
