"""What a server asks of its nodes beside the training, and what they tell: the words of both, as Flower records. Knows no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from typing import Any, cast

from flwr.app import ConfigRecord, RecordDict

RECORD = "fedsim"
"""The name of our record in a query, and in its reply."""
BEGIN, END = "begin", "end"
"""What a query asks: who are you, the run begins; and what did you do, the run ends."""
QUERY = "query"
"""Flower's type of such a message."""
NOTES = "fedsim-notes"
"""The name of the record of what a reader must know of how a node trained."""
_RUN, _DIARY = "fedsim-run", "fedsim-diary"


@dataclass(frozen=True, slots=True)
class Begin:
    """What a server says when a run begins: when that was, since 1970 by the clock of the node it is said to; how many seconds of the
    run a real one is, how many clients there are, and the digest of the scenario.
    """

    began_wall_s: float
    time_scale: float
    clients: int
    scenario_digest: str


@dataclass(frozen=True, slots=True)
class Present:
    """What a node answers: which client it is, what its clock shows, since 1970, and the process and the versions that ran there.

    *own_data* says that its examples are its own, and none of the scenario's.
    """

    client: int
    clock_wall_s: float
    examples: int
    host: str
    pid: int
    versions: str
    own_data: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """What a node tells of one message when the run is over: which task it made of it, and when, since 1970 by its clock.

    *message* is the SuperLink's id. Moments come from one look at the clock each message, and durations from one that never jumps.
    *acted_s* is the second of the run that a client on a stream took it to be; -1.0 of others, and of evaluations.
    *cpu_s* are the processor seconds that it took, its process's start included, and *work_s* those of them that the task itself took.
    """

    message: str
    number: int
    received_wall_s: float
    started_wall_s: float
    computed_wall_s: float
    examples: int
    steps: int
    flops: float
    batch_size: int
    acted_s: float
    cpu_s: float
    work_s: float


def record_of(value: Begin | Present) -> ConfigRecord:
    """Return *value* as a record."""
    return ConfigRecord({field.name: getattr(value, field.name) for field in fields(value)})


def begin_of(record: Mapping[str, Any]) -> Begin:
    """Return what *record* says of a run that begins."""
    return Begin(**{field.name: record[field.name] for field in fields(Begin)})


def present_of(record: Mapping[str, Any]) -> Present:
    """Return what *record* says of a node."""
    return Present(**{field.name: record[field.name] for field in fields(Present)})


def run_of(state: RecordDict) -> Begin | None:
    """Return the run that a node was told of, from its state; None where it was told of none."""
    record = state.config_records.get(_RUN)
    return None if record is None else begin_of(cast(Mapping[str, Any], record))


def enter_run(state: RecordDict, begin: Begin) -> None:
    """Write the run that begins into a node's state."""
    state[_RUN] = record_of(begin)


def wrote(state: RecordDict, entry: Entry) -> None:
    """Append *entry* to the diary in a node's state, where it outlives the process."""
    columns = dict(cast(Mapping[str, Any], state.config_records.get(_DIARY, _blank())))
    state[_DIARY] = ConfigRecord({name: [*columns[name], value] for name, value in zip(columns, astuple(entry), strict=True)})


def diary_of(state: RecordDict) -> ConfigRecord:
    """Return the diary in a node's state, as it is told."""
    return state.config_records.get(_DIARY, _blank())


def note(state: RecordDict, said: Iterable[str]) -> None:
    """Write what is *said* of how the node trains into its state, once each."""
    known = notes_of(state)
    if fresh := [each for each in dict.fromkeys(said) if each not in known]:
        state[NOTES] = ConfigRecord({"notes": [*known, *fresh]})


def notes_of(content: RecordDict) -> list[str]:
    """Return the notes in a node's state, or in what it tells."""
    return list(cast(Mapping[str, Any], content.config_records.get(NOTES, {})).get("notes", []))


def entries_of(record: Mapping[str, Any]) -> list[Entry]:
    """Return the entries of a diary that was told."""
    return [Entry(*row) for row in zip(*(record[field.name] for field in fields(Entry)), strict=True)]


def _blank() -> ConfigRecord:
    return ConfigRecord({field.name: list[str]() for field in fields(Entry)})
