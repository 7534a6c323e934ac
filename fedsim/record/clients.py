"""Clients over time: what each took part in and told of itself, round by round, and what its device did. Read into columns; knows no score.

A million rows must fit: replies are read as they lie, an array a batch, and of the tasks only those that brought none.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from fedsim.core.errors import RunError, door
from fedsim.core.types import Array, IntArray
from fedsim.record import journal
from fedsim.sim.rows import Outcome

if TYPE_CHECKING:
    import pandas as pd

OUTCOMES: tuple[str, ...] = get_args(Outcome)
COLUMNS: dict[str, tuple[str, str]] = {
    "round": ("", "the server's round that asked"),
    "client": ("", "the client, from 0"),
    "version": ("", "version of the model that it was sent to train, or else to evaluate"),
    "outcome": ("", "what came of being asked to train: arrived, late, failed, in flight; none where it was not asked"),
    "examples": ("examples", "how many its training reply says that it is of, by which strategies weigh it"),
    "weight": ("share of 1", "these over those of all training replies that arrived in the round"),
    "train_loss": ("loss", "mean loss of its mini-batches while it trained"),
    "evaluation": ("", "what came of being asked to evaluate; none where it was not asked"),
    "eval_examples": ("examples", "how many of its own, kept back, it evaluated the model on"),
    "loss": ("loss", "mean loss of these"),
    "accuracy": ("share of 1", "how many of these were classified correctly"),
}
"""The columns that are always there, each with its unit and what it says. Other metrics of replies stand after them."""
UNTOLD = (
    "This folder was written before replies' metrics were recorded: what there is comes from its tasks, which know examples and loss,"
    " and no accuracy."
)
SIDES = ("train", "evaluate")
_INTS = ("client", "round", "version")
"""As the query of ``_side`` has them."""
_CHUNK = 20_000
_COUNTS = ("num_examples", "examples")


def frame(folder: Path) -> pd.DataFrame:
    """Return a row per client and round in which it was asked, sorted by both: COLUMNS, and a column for each further metric.

    Those of training replies begin with ``train_``. A client that was asked several times in a round has as many rows, in the order of
    asking. NaN is what was not told. ``attrs["note"]`` says where a folder is older than what it would have to hold. Raises RunError.
    """
    import pandas as pd

    with journal.reading(folder) as file, door(f"{folder / journal.FILE}: table heard", "cannot be read:", wrong=RunError):
        there = journal.columns_of(file)
        if "heard" in there:
            journal.check(folder, file, "heard")
        whole = _whole(file, there)
        trained, evaluated = (_side(file, kind, there, whole=whole) for kind in SIDES)
    size, (ours, theirs) = _matched([trained, evaluated])
    columns: dict[str, Any] = {}
    for name in ("round", "client", "version"):
        columns[name] = np.full(size, -1, dtype=np.int32)
        columns[name][theirs] = evaluated.pop(name)  # First: where it did both, the version is that which it trained.
        columns[name][ours] = trained.pop(name)
    for name in (*COLUMNS, *sorted({*trained, *evaluated} - {*COLUMNS})):
        if name in columns:
            continue
        if name == "weight":
            columns[name] = _shares(columns["round"], columns["examples"])
            continue
        at, side = (ours, trained) if name in trained else (theirs, evaluated)
        values = side.pop(name, None)  # Gone as soon as it is placed: two of everything would be twice the memory.
        if name in ("outcome", "evaluation"):
            codes = np.full(size, -1, dtype=np.int8)
            codes[at] = values if values is not None else -1
            columns[name] = pd.Categorical.from_codes(codes, categories=list(OUTCOMES))  # pyright: ignore
        else:
            columns[name] = np.full(size, math.nan)
            if values is not None:
                columns[name][at] = values
    found = pd.DataFrame(columns, copy=False)
    if "heard" not in there:
        found.attrs["note"] = UNTOLD
    return found


def devices(folder: Path) -> pd.DataFrame:
    """Return a row per client, sorted: client, examples (that it trains on), gflops (how fast its device is).

    Where the folder does not say (real clients, an app's, fleets beyond 100,000, folders of before 2026-11-30), of the clients that were
    asked to train: the mean over their tasks, and the speed reached over all, waiting for data apart; NaN where no work has a known size.
    Raises RunError.
    """
    import pandas as pd

    with journal.reading(folder) as file, door(f"{folder / journal.FILE}: table devices", "cannot be read:", wrong=RunError):
        there = journal.columns_of(file)
        if "devices" in there and (row := file.execute("SELECT clients, held, gflops FROM devices LIMIT 1").fetchone()) is not None:
            known = journal.arrays(dict(zip(("clients", "held", "gflops"), row, strict=True)))
            return pd.DataFrame({"client": known["clients"], "examples": known["held"].astype(np.float64), "gflops": known["gflops"]})
        waited = "waited_s" if "waited_s" in there["tasks"] else "0.0"
        worked = "computed_s >= 0 AND flops > 0"
        query = (
            "SELECT client, avg(CASE WHEN examples > 0 THEN examples END),"
            f" sum(CASE WHEN {worked} THEN flops END) / 1e9 / nullif(sum(CASE WHEN {worked} THEN computed_s - started_s - {waited} END), 0)"
            f" FROM ({_tasks(there, waited)}) WHERE kind = 'train' OR kind LIKE 'train.%' GROUP BY client ORDER BY client"
        )
        rows = file.execute(query).fetchall()
    found = pd.DataFrame(rows, columns=["client", "examples", "gflops"])
    return found.astype({"client": "int64", "examples": "float64", "gflops": "float64"})


def _tasks(there: Mapping[str, Sequence[str]], waited: str = "0.0") -> str:
    """Return the query of all tasks, those included of which a server knows the fate and its nodes have not told the rest."""
    names = f"message, client, round, version, kind, outcome, examples, loss, flops, started_s, computed_s, {waited} AS waited_s"
    known = f"SELECT {names} FROM tasks"
    if "settled" not in there:
        return known
    return f"{known} UNION ALL SELECT {names} FROM settled WHERE message NOT IN (SELECT message FROM tasks)"


def _whole(file: sqlite3.Connection, there: Mapping[str, Sequence[str]]) -> bool:
    """Return whether what replies told is there of every task that arrived: then only the others need be looked for."""
    if "heard" not in there or not _empty(file, "settled", there):
        return False
    heard = file.execute("SELECT coalesce(sum(length(clients)), 0) / 8 FROM heard").fetchone()[0]
    others = file.execute("SELECT count(*) FROM tasks WHERE outcome != 'arrived'").fetchone()[0]  # By an index, as the next by numbers.
    return heard + others == file.execute("SELECT coalesce(max(rowid), 0) FROM tasks").fetchone()[0]


def _side(file: sqlite3.Connection, kind: str, there: Mapping[str, Sequence[str]], *, whole: bool) -> dict[str, Array]:
    """Return the columns of all messages of a *kind*: those whose replies told something, then the others."""
    of_kind = f"(kind = '{kind}' OR kind LIKE '{kind}.%')"
    heard, names = 0, list[str]()
    if "heard" in there:
        heard = int(file.execute(f"SELECT coalesce(sum(length(clients)), 0) FROM heard WHERE {of_kind}").fetchone()[0]) // 8
        told = [json.loads(text) for (text,) in file.execute(f"SELECT DISTINCT names FROM heard WHERE {of_kind}")]
        names = list(dict.fromkeys(column(name, kind) for each in told for name in each))
    tasks = "tasks" if _empty(file, "settled", there) else f"({_tasks(there)})"
    rest = _rest(file, tasks, of_kind, None if whole else _messages(file, of_kind, heard))
    state, counted, loss = ("outcome", "examples", "train_loss") if kind == "train" else ("evaluation", "eval_examples", "loss")
    size = heard + len(rest["client"])
    found: dict[str, Array] = {name: np.empty(size, dtype=np.int32) for name in _INTS}
    found |= {state: np.zeros(size, dtype=np.int8)} | {name: np.full(size, math.nan) for name in (*names, counted, loss)}
    start = 0
    query = f"SELECT names, clients, rounds, versions, told FROM heard WHERE {of_kind} ORDER BY rowid"
    for text, *blobs, told in file.execute(query) if heard else ():
        row = [np.frombuffer(blob, "<i8") for blob in blobs]
        end, here = start + len(row[0]), [column(name, kind) for name in json.loads(text)]
        for name, values in zip(_INTS, row, strict=True):
            found[name][start:end] = values
        values = np.frombuffer(told, "<f8").reshape(len(here), end - start)
        for name, line in reversed(list(zip(here, values, strict=True))):  # Of two that come to one name the first counts.
            found[name][start:end] = line
        start = end
    for name in _INTS:
        found[name][heard:] = rest[name]
    found[state][heard:], found[counted][heard:], found[loss][heard:] = rest["outcome"], rest["examples"], rest["loss"]
    return found


def column(name: str, kind: str) -> str:
    """Return what a metric called *name* in replies of a *kind* is called as a column.

    >>> column("num-examples", "train"), column("train_loss", "train"), column("steps", "train"), column("eval-acc", "evaluate")
    ('examples', 'train_loss', 'train_steps', 'accuracy')
    """
    plain = name.replace("-", "_")
    if plain in _COUNTS:
        return "examples" if kind == "train" else "eval_examples"
    plain = plain.removeprefix("train_" if kind == "train" else "eval_")
    plain = "accuracy" if plain == "acc" else plain
    if kind == "train":
        return f"train_{plain}"
    return plain if plain in ("loss", "accuracy") or plain not in COLUMNS else f"eval_{plain}"


def _empty(file: sqlite3.Connection, table: str, there: Mapping[str, Sequence[str]]) -> bool:
    return table not in there or file.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is None


def _messages(file: sqlite3.Connection, of_kind: str, heard: int) -> IntArray:
    rows = file.execute(f"SELECT messages FROM heard WHERE {of_kind}") if heard else ()
    return np.concatenate([np.zeros(0, dtype=np.int64), *(np.frombuffer(blob, "<i8") for (blob,) in rows)])


def _rest(file: sqlite3.Connection, tasks: str, of_kind: str, heard: IntArray | None) -> dict[str, Array]:
    """Return the columns of messages whose replies told nothing: nobody was given one, or (where *heard* says whose) nobody noted it."""
    where = "" if heard is not None else " AND outcome != 'arrived'"
    codes = " ".join(f"WHEN '{name}' THEN {code}" for code, name in enumerate(OUTCOMES))
    cursor = file.execute(
        f"SELECT CAST(substr(message, 2) AS INTEGER), client, round, version, CASE outcome {codes} END,"
        f" CASE WHEN outcome = 'arrived' THEN CAST(examples AS REAL) END, loss FROM {tasks} WHERE {of_kind}{where}"
    )
    chunks: list[Array] = []
    while rows := cursor.fetchmany(_CHUNK):
        chunk = np.array(rows, dtype=np.float64)  # Whole numbers of messages and clients are exact up to 2 ** 53.
        keep = slice(None) if heard is None else ~np.isin(chunk[:, 0], heard) | (chunk[:, 4] != 0)
        chunks.append(chunk[keep])
    whole = np.concatenate([np.zeros((0, 7)), *chunks])
    return dict(zip(("message", *_INTS, "outcome", "examples", "loss"), whole.T, strict=True))


def _matched(sides: Sequence[Mapping[str, Array]]) -> tuple[int, list[IntArray]]:
    """Return how many rows *sides* make, and the place of each one's messages among them: by round, client, and which of the client's."""
    pairs = [side["round"].astype(np.int64) << 32 | side["client"] for side in sides]
    first = len(pairs[0])
    numbers = [_numbered(each) for each in pairs]
    many = max([1, *(int(each.max()) + 1 for each in numbers if len(each))])
    count, places = _ranked(np.concatenate(pairs))
    if many > 1:
        count, places = _ranked(places * many + np.concatenate(numbers))
    return count, [places[:first], places[first:]]


def _ranked(values: IntArray) -> tuple[int, IntArray]:
    """Return how many different *values* there are, and which of them, in order, each is. Fast where they are almost sorted.

    >>> count, places = _ranked(np.array([70, 30, 70, 90]))
    >>> count, places.tolist()
    (3, [1, 0, 1, 2])
    """
    order = np.argsort(values, kind="stable")
    ranks = np.cumsum(_new(values[order]), dtype=np.int64) - 1
    found = np.empty_like(ranks)
    found[order] = ranks
    return int(ranks[-1]) + 1 if len(ranks) else 0, found


def _numbered(values: IntArray) -> IntArray:
    """Return of each value how many equal ones stand before it.

    >>> _numbered(np.array([7, 3, 7, 7, 3])).tolist()
    [0, 0, 1, 2, 1]
    """
    if (values[1:] > values[:-1]).all():
        return np.zeros(len(values), dtype=np.int64)
    order, places = np.argsort(values, kind="stable"), np.arange(len(values))
    new = _new(values[order])
    if new.all():
        return np.zeros(len(values), dtype=np.int64)
    found = np.empty(len(values), dtype=np.int64)
    found[order] = places - np.maximum.accumulate(np.where(new, places, 0))
    return found


def _new(ranked: IntArray) -> Array:
    """Return of each of sorted values whether it is another than the one before."""
    found = np.ones(len(ranked), dtype=np.bool_)
    np.not_equal(ranked[1:], ranked[:-1], out=found[1:])
    return found


def _shares(rounds: IntArray, examples: Array) -> Array:
    """Return each reply's part of the *examples* of its round; NaN where there was no reply. *rounds* are sorted."""
    numbers, inverse = np.unique(rounds, return_inverse=True)
    # As floats: of nothing at all, numpy counts in whole numbers.
    totals = np.bincount(inverse, weights=np.nan_to_num(examples), minlength=len(numbers)).astype(np.float64)
    totals[totals == 0] = math.nan
    return examples / totals[inverse]
