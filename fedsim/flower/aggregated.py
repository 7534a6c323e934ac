"""What a strategy hands back, looked at before anybody relies on it: one line for what it raises, a note where nothing was learned.

It knows what Flower asks of a strategy, and why its own give rounds up; it changes no number.
"""

from __future__ import annotations

import functools
import numbers
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedsim.core.errors import RunError, door
from fedsim.core.types import Params
from fedsim.flower.rounds import Enough, starts_itself

STEPS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")
PRIVATE: tuple[type[Strategy], ...] = (
    flower.DifferentialPrivacyServerSideFixedClipping, flower.DifferentialPrivacyClientSideFixedClipping,
    flower.DifferentialPrivacyServerSideAdaptiveClipping, flower.DifferentialPrivacyClientSideAdaptiveClipping,
)  # fmt: skip


def bared(strategy: Strategy) -> None:
    """Take off *strategy*, and those that it wraps, what stands around their steps.

    A step that is wrapped knows its strategy, and the strategy it: whatever stood around would wait with them for the collector.
    """
    rule: Any = strategy
    while isinstance(rule, Strategy):
        for name in (*STEPS, "summary", "start"):
            vars(rule).pop(name, None)
        rule = getattr(rule, "strategy", None)


@dataclass(slots=True)
class Watched:
    """Stands around the steps of a strategy, known to its reader as *kind*; *params* are the model's arrays.

    *said* grows by a sentence when something is seen for the first time; ``notes`` tells all of it at any time. *made_nan* says how
    the strategy made numbers of the latest round that are not finite; empty where it made none.
    """

    kind: str
    params: Params
    said: list[str] = field(default_factory=list[str])
    made_nan: str = ""
    _nothing: list[int] = field(default_factory=list[int])
    _why: str = ""
    _kept: str = ""
    _few: list[int] = field(default_factory=list[int])
    _left_out: set[str] = field(default_factory=set[str])

    @property
    def notes(self) -> list[str]:
        """Return what a reader must know of what the strategy handed back."""
        notes = [self._kept] if self._kept else []
        if self._nothing:
            rounds = (
                f"round {self._nothing[0]}"
                if len(self._nothing) == 1
                else f"{len(self._nothing)} rounds, first in round {self._nothing[0]}"
            )
            notes.append(f"Replies came and nothing was aggregated in {rounds}: {self._why} The model stayed as it was.")
        if self._few:
            notes.append(
                f"In {len(self._few)} rounds fewer replies came ({min(self._few)} at least) than {self.kind} is defined for (2"
                f" num_malicious_nodes + 3): what it chose there may be a liar's."
            )
        if self._left_out:
            notes.append(f"Metrics that are no numbers are not recorded: {', '.join(sorted(self._left_out))}.")
        return notes

    def around(self, strategy: Strategy) -> Strategy:
        """Return *strategy*, its steps watched."""
        for name in STEPS:
            setattr(strategy, name, self._step(strategy, name, getattr(strategy, name)))
        setattr(strategy, "summary", self._whole(strategy.summary, "summary"))
        if starts_itself(strategy):  # What calls the grid in rounds of ours is not the strategy, nor are the grid's errors its own.
            setattr(strategy, "start", self._whole(strategy.start, "start"))
        return strategy

    def numbers(self, metrics: Any, server_round: int, step: str) -> list[tuple[str, float]]:
        """Return what a strategy tells by *metrics*, by name; a list has its entries by number: ``losses[0]``."""
        if metrics is None:
            return []
        if not isinstance(metrics, Mapping):
            raise RunError(
                f"{self._at(server_round)}: {step} gave metrics of type {type(metrics).__name__}; it must give a MetricRecord or None."
            )
        found: list[tuple[str, float]] = []
        for name, value in metrics.items():  # pyright: ignore[reportUnknownVariableType]
            many = isinstance(value, Sequence) and not isinstance(value, str | bytes)
            entries: Sequence[Any] = value if many else [value]
            if not all(isinstance(entry, numbers.Real) for entry in entries):
                self._left_out.add(str(name))  # pyright: ignore[reportUnknownArgumentType]
                continue
            found += [(f"{name}[{i}]" if many else str(name), float(entry)) for i, entry in enumerate(entries)]  # pyright: ignore[reportUnknownArgumentType]
        return found

    def _at(self, server_round: int) -> str:
        return f"round {server_round}: server.strategy.kind = {self.kind!r}"

    def _door(self, step: str, server_round: int) -> AbstractContextManager[None]:
        return door(f"server.strategy.kind = {self.kind!r}", f"{step} raised in round {server_round}:", wrong=RunError)

    def _whole(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with door(f"server.strategy.kind = {self.kind!r}", f"{name} raised", wrong=RunError):
                try:
                    return function(*args, **kwargs)
                except Enough as enough:
                    ended = enough
            raise ended

        return call

    def _step(self, strategy: Strategy, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)
        def call(server_round: int, *args: Any, **kwargs: Any) -> Any:
            if name.startswith("configure"):
                with self._door(name, server_round):
                    asked: list[Any] = list(step(server_round, *args, **kwargs))  # A generator would raise elsewhere.
                for message in asked:
                    if not isinstance(message, Message):
                        raise RunError(
                            f"{self._at(server_round)}: {name} gave a {type(message).__name__} among its messages; each must be a"
                            f" flwr Message."
                        )
                return asked
            replies = list(args[0]) if args else list(kwargs.pop("replies"))
            came = sum(not reply.has_error() for reply in replies)  # Now: a strategy may change what it was given.
            with self._door(name, server_round):
                try:
                    result = step(server_round, replies, *args[1:], **kwargs)
                except ZeroDivisionError as error:
                    raise RunError(self._divided(server_round, name, error, came)) from error
            return self._looked_at(strategy, server_round, result, replies, came) if name == "aggregate_train" else result

        return call

    def _divided(self, server_round: int, step: str, error: ZeroDivisionError, came: int) -> str:
        where = traceback.extract_tb(error.__traceback__)[-1]
        fault = (
            "Flower's own code divides by zero there" if "flwr" in where.filename.replace("\\", "/").split("/") else "it divides by zero"
        )
        why = (
            "not one reply came in time, and it divides by how many did. A longer server.round_timeout_s, or more clients a round, avoid it"
            if not came
            else "a sum of weights, or the norm of an update, was 0"
        )
        place = f"{where.name} in {where.filename.rpartition('/')[2]}"
        return f"{self._at(server_round)}: {step} raised ZeroDivisionError ({fault}: {place}): {why}."

    def _looked_at(self, strategy: Strategy, server_round: int, result: Any, replies: list[Message], came: int) -> Any:
        fits = isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], ArrayRecord | None)  # pyright: ignore[reportUnknownArgumentType]
        if not fits:
            raise RunError(
                f"{self._at(server_round)}: aggregate_train gave {_form(result)}; it must give two things: an ArrayRecord (or None,"
                f" to leave the model as it is) and a MetricRecord (or None)."
            )
        arrays, metrics = result  # pyright: ignore[reportUnknownVariableType]
        if not arrays:
            if came:
                self._none(server_round, why(strategy, replies, came))
            return None, metrics  # pyright: ignore[reportUnknownVariableType]
        self._check(server_round, arrays)
        self._look_for_nan(arrays, replies)
        rule = _inner(strategy)
        if isinstance(rule, flower.MultiKrum) and rule.num_malicious_nodes and came < 2 * rule.num_malicious_nodes + 3:
            self._few.append(came)
        return result  # pyright: ignore[reportUnknownVariableType]

    def _check(self, server_round: int, arrays: ArrayRecord) -> None:
        for name, array in arrays.items():
            if name not in self.params:
                raise RunError(
                    f"{self._at(server_round)}: aggregate_train gave an array {name!r}, which the model does not have. It has:"
                    f" {', '.join(list(self.params)[:8])}{' and more' if len(self.params) > 8 else ''}."
                )
            if tuple(array.shape) != self.params[name].shape:
                raise RunError(
                    f"{self._at(server_round)}: aggregate_train gave {name!r} with shape {tuple(array.shape)}; the model has"
                    f" {self.params[name].shape}."
                )
            if np.dtype(array.dtype).kind not in "biuf":
                raise RunError(
                    f"{self._at(server_round)}: aggregate_train gave {name!r} as {array.dtype}; the model has {self.params[name].dtype}."
                )
        kept = [name for name in self.params if name not in arrays]
        if kept and not self._kept:
            some = ", ".join(kept[:4]) + (f" and {len(kept) - 4} more" if len(kept) > 4 else "")
            self._kept = (
                f"The strategy hands back {len(arrays)} of the model's {len(self.params)} arrays; the rest stays as it was: {some}."
            )
            self.said.append(self._kept)

    def _look_for_nan(self, arrays: ArrayRecord, replies: list[Message]) -> None:
        """Keep in mind where the strategy itself, and no client, made what is not finite: training is not to blame for that."""
        self.made_nan = ""
        broken = next((name for name, array in arrays.items() if not np.isfinite(array.numpy()).all()), None)
        if broken is not None and all(
            np.isfinite(array.numpy()).all()
            for reply in replies if not reply.has_error() for record in reply.content.array_records.values() for array in record.values()
        ):  # fmt: skip
            self.made_nan = f"aggregate_train of {self.kind!r} gave {broken!r} with numbers that are not finite, of replies that all are"

    def _none(self, server_round: int, reason: str) -> None:
        if not self._nothing:
            self._why = reason
            self.said.append(f"Round {server_round}: replies came and nothing was aggregated. {reason}")
        self._nothing.append(server_round)


def why(strategy: Any, replies: Sequence[Message], came: int) -> str:
    """Return, as a sentence, why *strategy* made nothing of *replies*, of which *came* were no errors."""
    name = type(strategy).__name__
    errors = [reply.error.reason for reply in replies if reply.has_error()]
    if isinstance(strategy, PRIVATE) and errors:
        first = str(errors[0] or "no reason given")
        return (
            f"{name} (Flower's) gives a round up when a single reply is an error, and {len(errors)} of {len(replies)} were ({first[:120]})."
        )
    strategy = _inner(strategy)
    if isinstance(strategy, flower.Bulyan):
        least = 4 * strategy.num_malicious_nodes + 3
        if came < least:
            return f"Bulyan needs at least {least} replies (4 num_malicious_nodes + 3), and {came} came."
    return f"{type(strategy).__name__} returned no arrays, and does not say why."


def _inner(strategy: Any) -> Any:
    """Return what decides: the strategy that a wrapper wraps."""
    while isinstance(inner := getattr(strategy, "strategy", None), Strategy):
        strategy = inner
    return strategy


def _form(result: Any) -> str:
    if isinstance(result, tuple):
        return f"a tuple of {', '.join(type(item).__name__ for item in result) or 'nothing'}"  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return "None" if result is None else f"a {type(result).__name__}"
