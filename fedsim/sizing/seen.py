"""The rounds of one setting, dry or trained, as arrays; and what so many of them come to: time, bytes, who was heard. Runs nothing."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.types import Array, FloatArray, IntArray, Seconds
from fedsim.record.manifest import whole
from fedsim.score.run import Run
from fedsim.sim.rows import EdgeRow, RoundRow, TaskRow

OUTCOMES = ("arrived", "late", "failed", "in flight")


@dataclass(frozen=True, slots=True)
class Setting:
    """What is searched over: how many clients are asked in a round, None where the strategy has its own way; and how long it waits."""

    clients: int | None
    timeout_s: Seconds

    @property
    def name(self) -> str:
        """Return the beginning of the names of its runs' folders."""
        return f"{'' if self.clients is None else f'{self.clients}-clients-'}{self.timeout_s:g}s"

    @property
    def changes(self) -> dict[str, Any]:
        """Return what it sets, by dotted key."""
        asked = {} if self.clients is None else {"server.strategy.clients_per_round": self.clients}
        return {**asked, "server.round_timeout_s": self.timeout_s}


def _none() -> IntArray:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Seen:
    """Rounds 1 to r of *count* clients, and the messages of these.

    Shapes: begins_s, ends_s (r,); client, round, outcome (a place in OUTCOMES; -1 where nothing was to be trained), down and up
    (bytes), took_s (from sending to the reply, NaN without one) (m,); edge_round, edge_down and edge_up (e,) of what went between the
    server and edges, where there are any: then that is what the server sends and receives.
    """

    count: int
    begins_s: FloatArray
    ends_s: FloatArray
    client: IntArray
    round: IntArray
    outcome: IntArray
    down: IntArray
    up: IntArray
    took_s: FloatArray
    edge_round: IntArray = field(default_factory=_none)
    edge_down: IntArray = field(default_factory=_none)
    edge_up: IntArray = field(default_factory=_none)

    @property
    def rounds(self) -> int:
        """Return how many rounds there are."""
        return len(self.begins_s)

    @classmethod
    def of_run(cls, run: Run) -> Seen:
        """Return those of a run that is done."""
        tasks, rounds = run.tasks, run.rounds
        by_round = rounds.groupby("round")
        down = tasks.down_bytes + tasks.down_framing_bytes
        return cls(
            int(run.manifest["scenario"]["clients"]["count"]),
            by_round.started_s.min().to_numpy(float), by_round.ended_s.max().to_numpy(float),
            tasks.client.to_numpy(np.int64), tasks["round"].to_numpy(np.int64),
            tasks.outcome.map({name: i for i, name in enumerate(OUTCOMES)}).where(tasks.kind == "train", -1).to_numpy(np.int64),
            down.to_numpy(np.int64), (tasks.up_bytes + tasks.up_framing_bytes).to_numpy(np.int64),
            (tasks.arrived_s - tasks.sent_s).to_numpy(np.float64), run.edges["round"].to_numpy(np.int64),
            (run.edges.down_bytes + run.edges.down_framing_bytes).to_numpy(np.int64),
            (run.edges.up_bytes + run.edges.up_framing_bytes).to_numpy(np.int64),
        )  # fmt: skip

    @classmethod
    def read(cls, path: Path) -> Seen:
        """Return those that ``write`` wrote."""
        with np.load(path, allow_pickle=False) as file:
            return cls(int(file["count"]), **{name: file[name] for name in cls.__slots__ if name != "count" and name in file})

    def write(self, path: Path) -> None:
        """Write it, whole or not at all."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {name: np.asarray(getattr(self, name)) for name in self.__slots__}
        np.savez_compressed(buffer, **arrays)
        whole(path, buffer.getvalue())


@dataclass(slots=True)
class Noted:
    """Takes rows as they are told, and makes a Seen of them."""

    count: int
    spans: dict[int, tuple[float, float]] = field(default_factory=dict[int, tuple[float, float]])
    messages: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]])
    took_s: list[float] = field(default_factory=list[float])
    edges: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])

    def __call__(self, row: TaskRow | RoundRow | EdgeRow) -> None:
        """Take a row."""
        if isinstance(row, RoundRow):
            begins, ends = self.spans.get(row.round, (math.inf, -math.inf))
            self.spans[row.round] = (min(begins, row.started_s), max(ends, row.ended_s))
        elif isinstance(row, EdgeRow):
            self.edges.append((row.round, row.down_bytes + row.down_framing_bytes, row.up_bytes + row.up_framing_bytes))
        else:
            self.took_s.append(row.arrived_s - row.sent_s if row.arrived_s >= 0 else math.nan)
            self.messages.append((
                row.client, row.round, OUTCOMES.index(row.outcome) if row.kind == "train" else -1, row.down_bytes + row.down_framing_bytes,
                row.up_bytes + row.up_framing_bytes,
            ))  # fmt: skip

    def seen(self) -> Seen:
        """Return what was told."""
        spans = np.array([self.spans[number] for number in sorted(self.spans)], dtype=np.float64).reshape(-1, 2)
        columns: Array = np.array(self.messages, dtype=np.int64).reshape(-1, 5)
        client, number, outcome, down, up = columns.T
        took_s: FloatArray = np.array(self.took_s, dtype=np.float64)
        edges: Array = np.array(self.edges, dtype=np.int64).reshape(-1, 3)
        return Seen(self.count, spans[:, 0], spans[:, 1], client, number, outcome, down, up, took_s, *edges.T)


@dataclass(frozen=True, slots=True)
class Figures:
    """What *rounds* rounds come to; those beyond the ones that were seen are as these were, in the mean.

    *whole_s* is the virtual time since the run began, *round_s* (r,) that of each round. *late* is the share of messages whose reply missed
    its round, *failed* of those without one. Bytes are both ways, framing included: *client_bytes* of each client (count,); *server_down*
    and *server_up* of all, or of all edges. *unheard* is the share of clients of whom no reply ever counted, *heard* how many replies a
    round took in.
    """

    rounds: float
    whole_s: Seconds
    round_s: FloatArray
    late: float
    failed: float
    heard: float
    client_bytes: FloatArray
    server_down: float
    server_up: float
    unheard: float


def figures(seen: Seen, rounds: float) -> Figures:
    """Return what *rounds* rounds of *seen* come to; a mean of several runs may lie between two."""
    known = min(math.ceil(rounds), seen.rounds)
    begins, ends = seen.begins_s[:known], seen.ends_s[:known]
    lasted: FloatArray = np.append(begins[1:], ends[-1]) - begins
    more = rounds / known
    within = seen.round <= known
    client, outcome = seen.client[within], seen.outcome[within]
    down, up = seen.down[within], seen.up[within]
    counts = {name: int((outcome == i).sum()) for i, name in enumerate(OUTCOMES)}
    asked, heard = (np.bincount(client[which], minlength=seen.count) for which in (outcome >= 0, outcome == OUTCOMES.index("arrived")))
    moved: Any = np.bincount(client, weights=(down + up).astype(np.float64), minlength=seen.count)
    sent = max(1, sum(counts.values()))
    if len(seen.edge_round):
        down, up = (bytes_of[seen.edge_round <= known] for bytes_of in (seen.edge_down, seen.edge_up))
    return Figures(
        rounds, float(begins[0] + (ends[-1] - begins[0]) * more), lasted,  # The wait for the first clients is there once.
        (counts["late"] + counts["in flight"]) / sent, counts["failed"] / sent, counts["arrived"] / known, moved * more,
        float(down.sum()) * more, float(up.sum()) * more, _unheard(asked, heard, more),
    )  # fmt: skip


def _unheard(asked: IntArray, heard: IntArray, more: float) -> float:
    """Return the share of clients never heard in *more* times the rounds: exact for 1; beyond, each goes on as it did.

    Of a client that was asked k times and heard h, a further message brings a reply with probability h / k; how many further ones there
    are is Poisson's, of (*more* - 1) times the mean over all clients, who are asked alike.
    """
    silent = heard == 0
    if more <= 1 or not silent.any():
        return float(silent.mean())
    further = (more - 1) * float(asked.mean())
    tried = asked > 0
    answers = heard[tried] / asked[tried]
    # Who was asked and never heard is taken not to be able to; of who was never asked, as many are able as of those who were.
    never_asked = float((~tried).mean())
    unable = float((silent & tried).mean())
    return unable + never_asked * float(np.exp(-further * answers).mean())
