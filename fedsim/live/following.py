"""A run that another process makes, followed by what its folder says: manifest and journal, read now and then. Writes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from fedsim.core.errors import RunError
from fedsim.live.teller import Teller
from fedsim.record import looking, manifest
from fedsim.scenario.load import recorded
from fedsim.scenario.stop import Stop
from fedsim.score.run import Run
from fedsim.session import Progress

LOOK_S = 0.5
"""How often a run folder is looked at: its journal is no staler than that while rows come."""
NOT_SCORES = ("rounds", "scored_round")


def watch(run: str | Path, tell: Callable[[Progress], None] | None = None) -> Run:
    """Follow the run in the folder *run*, which another process makes, until it has ended, and return it.

    *tell* hears where it is: each evaluation in order, those of before too, and else what has changed. The run's ``status`` says how it
    ended: done, failed, interrupted, or killed. Raises RunError where there is no run, or none that can be read.
    """
    for news in looks(Path(run)):
        if tell is not None:
            for where in news:
                tell(where)
    return Run(Path(run))


def looks(folder: Path) -> Iterator[list[Progress]]:
    """Yield what is new of the run in *folder*, the newest last, look by look, until it has ended. Raises RunError where there is none."""
    seen, latest = 0, None
    while True:
        about = manifest.read(folder)
        ended = manifest.status(about) != "running"  # Before the rows are read: those that come last are seen by the last look.
        news = looking.newest(folder, seen)
        seen, latest = news.seen, news.scored[-1] if news.scored else latest
        yield _told(about, news, latest)
        if ended:
            return
        time.sleep(LOOK_S)


def teller_of(about: dict[str, Any]) -> Teller:
    """Return what tells of the run that the manifest *about* is of, from when that began; of an app nobody knows how many rounds."""
    name = str(about["scenario"]["name"])
    clock = "wall" if about.get("ground") == "flower" else "virtual"
    with suppress(ValueError):
        age_s = max(0.0, time.time() - datetime.strptime(about["started"], "%Y-%m-%dT%H:%M:%S%z").timestamp())
        return Teller(name, _rounds(about), _stop(about), clock=clock, doing="looking", age_s=age_s)
    raise RunError(f"{name}: its manifest says that it started = {about['started']!r}, which is no time.")


def _told(about: dict[str, Any], news: looking.News, latest: looking.Scored | None) -> list[Progress]:
    """Return what *about* and *news* say: each new evaluation, and where the run is now, whose *latest* evaluation may be of before."""
    rounds = _rounds(about)
    each = [
        Progress(at.round, rounds, at.now_s, at.down_bytes, at.up_bytes, at.scores, scored=at.round, tasks=news.tasks) for at in news.scored
    ]
    final = about["final"]
    scored = latest or looking.Scored(
        int(final.get("scored_round", final.get("rounds", 0))), 0.0, 0, 0,
        {name: value for name, value in final.items() if name not in NOT_SCORES},
    )  # fmt: skip
    # The manifest may be seconds behind the rows; of the newest round that is in these, the aggregation may still be under way.
    now = Progress(
        max(int(final.get("rounds", 0)), scored.round, news.round - 1), rounds, max(about["virtual_s"], scored.now_s, news.now_s),
        max(about["bytes_down"], scored.down_bytes), max(about["bytes_up"], scored.up_bytes), scored.scores,
        scored=scored.round, tasks=news.tasks,
    )  # fmt: skip
    return [*each[:-1], now]


def _rounds(about: dict[str, Any]) -> int:
    return 0 if "app" in about else int(about["scenario"]["server"]["rounds"])


def _stop(about: dict[str, Any]) -> Stop | None:
    return None if "app" in about or "stop" not in about["scenario"] else recorded(about["scenario"])[0].stop
