"""The panel: where a run stands, in a few lines of any width. Values in, lines out; reads no clock and draws nothing itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.text import Text

from fedsim.report.units import duration, megabytes

SPARK, PLAIN_SPARK = "▁▂▃▄▅▆▇█", "_.-~=+*#"
"""Eight heights, and the same for terminals that know ASCII alone."""
SPARKS = 16
"""Columns of a sparkline."""
BAR = (8, 30)
"""Columns that a bar takes at least, and at most."""
NAME = 28
"""Columns that a run's name takes at most."""
OTHERS = 2
"""How many scores stand beside the leading one."""
GAP = "  "


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands. *rounds* is 0 where nobody knows how many there will be, *counts* what they are called: round, or version.

    *doing* is what is done before the first round, and empty from then on. *values* are the leading score, *score*, from the first
    evaluation on, *others* the newest of the others. *clock* says whose seconds *now_s* are. *done* of *due* tasks that are computed now
    are. *share* is how much of the run is done; *left_s* what it is going to take, at most so long where it may learn enough sooner.
    """

    name: str
    doing: str = ""
    counts: str = "round"
    round: int = 0
    rounds: int = 0
    clock: str = "virtual"
    now_s: float = 0.0
    down_bytes: int = 0
    up_bytes: int = 0
    score: str = ""
    values: Sequence[float] = ()
    others: Mapping[str, float] = field(default_factory=dict[str, float])
    tasks: int = 0
    tasks_per_s: float | None = None
    done: int = 0
    due: int = 0
    wall_s: float = 0.0
    share: float = 0.0
    left_s: float | None = None
    at_most: bool = False


def lines(at: Standing, width: int, *, ascii_only: bool = False) -> list[Text]:
    """Return the panel of a run that stands *at* so, in lines of at most *width* columns."""
    name = Text(at.name if len(at.name) <= NAME else f"{at.name[: NAME - 3]}...", "bold")
    if at.doing:
        return _packed([name, Text(at.doing), Text(clock(at.wall_s), "dim")], width)
    time = [Text(clock(at.wall_s), "dim"), *([Text(left(at))] if at.left_s is not None else [])]
    head = [name, Text(reached(at), "cyan")]
    room = width - sum(len(piece) + len(GAP) for piece in (*head, *time))
    if at.rounds and room >= BAR[0]:
        head.append(_bar(at.share, min(room, BAR[1]), ascii_only=ascii_only))
    scores: list[Text] = []
    if at.score:
        scores.append(Text(f"{at.score} {_number(at.values[-1])} ") + Text(sparkline(at.values, ascii_only=ascii_only), "green"))
        scores += [Text(f"{name} {_number(value)}", "dim") for name, value in [*at.others.items()][:OTHERS]]
    return [*_packed([*head, *time], width), *_packed(scores, width), *_packed([Text(each) for each in costs(at)], width)]


def costs(at: Standing) -> list[str]:
    """Return what it came to so far, in a few words each."""
    said = [f"{at.clock} {duration(at.now_s)}", f"{megabytes(at.down_bytes)} down, {megabytes(at.up_bytes)} up"]
    if at.tasks:
        rate = at.tasks_per_s
        pace = "" if rate is None else f", {f'{rate:,.0f}' if rate >= 100 else f'{rate:.3g}'} a second"
        said.append(f"{at.tasks:,} tasks{pace}")
    return [*said, *([f"computing {at.done:,} of {at.due:,}"] if at.due else [])]


def reached(at: Standing) -> str:
    """Return how far it is, like ``round 3 of 30``."""
    return f"{at.counts} {at.round:,}{f' of {at.rounds:,}' if at.rounds else ''}"


def left(at: Standing) -> str:
    """Return what is left, like ``about 0:20 left``; empty where nobody knows."""
    return "" if at.left_s is None else f"{'at most' if at.at_most else 'about'} {clock(at.left_s)} left"


def clock(seconds: float) -> str:
    """Return wall time as a clock shows it.

    >>> clock(7.9), clock(754), clock(36_000)
    ('0:07', '12:34', '10:00:00')
    """
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def sparkline(values: Sequence[float], columns: int = SPARKS, *, ascii_only: bool = False) -> str:
    """Return *values* as heights from the lowest to the highest of them; where there are more than *columns*, means of neighbours.

    >>> sparkline([0.1, 0.5, 0.9]), sparkline([3.0, 3.0]), sparkline([])
    ('▁▅█', '▁▁', '')
    """
    heights = PLAIN_SPARK if ascii_only else SPARK
    cuts = [len(values) * i // columns for i in range(columns + 1)] if len(values) > columns else [*range(len(values) + 1)]
    means = [math.fsum(values[a:b]) / (b - a) for a, b in zip(cuts, cuts[1:], strict=False)]
    known = [value for value in means if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(heights) - 1) / (high - low) if high > low else 0.0
    return "".join(heights[math.floor((value - low) * scale + 0.5)] if math.isfinite(value) else " " for value in means)


def _number(value: float) -> str:
    return f"{value:.3f}" if 0.001 <= abs(value) < 1000 or not value else f"{value:.3g}"


def _bar(share: float, columns: int, *, ascii_only: bool) -> Text:
    full, rest = ("#", "-") if ascii_only else ("━", "─")
    done = math.floor(columns * min(1.0, max(0.0, share)))
    return Text(full * done, "green") + Text(rest * (columns - done), "dim")


def _packed(pieces: Iterable[Text], width: int) -> list[Text]:
    """Return *pieces* side by side, as many in a line as fit into *width*; one that alone does not is cut."""
    found: list[Text] = []
    for piece in pieces:
        if found and len(found[-1]) + len(GAP) + len(piece) <= width:
            found[-1].append(GAP).append_text(piece)
        else:
            found.append(piece.copy())
            found[-1].truncate(width, overflow="crop")
    return found
