"""What the journal of a run that goes says by now: the newest rows, and no table as a whole. For whoever looks again and again."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from fedsim.core.errors import RunError, reason
from fedsim.record.journal import FILE


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of the model after a round, and what the run had come to by then."""

    round: int
    now_s: float
    down_bytes: int
    up_bytes: int
    scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class News:
    """What is new since row *seen* of the scores was the last: evaluations on the server, in order, and the last row *seen* now.

    *tasks* is how many tasks of clients have a fate so far. *round* is the last of which replies were handed over, at *now_s*.
    """

    scored: list[Scored]
    seen: int
    tasks: int
    round: int
    now_s: float


def newest(folder: Path, seen: int = 0) -> News:
    """Return what is new in *folder* since *seen*; nothing where there is no journal yet. Raises RunError where it cannot be read.

    The file is opened for the look alone: whoever holds it keeps the run from tidying up at its end.
    """
    if not (folder / FILE).is_file():
        return News([], seen, 0, 0, 0.0)
    try:
        with closing(sqlite3.connect(f"{(folder / FILE).resolve().as_uri()}?mode=ro", uri=True)) as file:
            file.execute("BEGIN")  # One moment for all that is read.
            there = {name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not {"metrics", "tasks", "rounds"} <= there:
                return News([], seen, 0, 0, 0.0)
            rows = file.execute(
                "SELECT rowid, round, now_s, name, value, down_bytes, up_bytes FROM metrics WHERE rowid > ? AND scope = 'central'"
                " ORDER BY rowid", [seen],
            ).fetchall()  # fmt: skip
            last = file.execute("SELECT round, ended_s FROM rounds WHERE kind = 'train' ORDER BY rowid DESC LIMIT 1").fetchone()
            tasks = file.execute("SELECT max(rowid) FROM tasks").fetchone()[0] or 0  # No count: that would read them all.
    except sqlite3.Error as error:
        raise RunError(f"{folder / FILE}: cannot be read ({reason(error)}).") from None
    scored: dict[int, Scored] = {}
    for _, number, now_s, name, value, down_bytes, up_bytes in rows:
        at = scored.setdefault(number, Scored(number, now_s, down_bytes, up_bytes, {}))
        at.scores[name] = float("nan") if value is None else value
    number, now_s = last or (0, 0.0)
    return News([*scored.values()], max([seen, *(row[0] for row in rows)]), tasks, number, now_s)
