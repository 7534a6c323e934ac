"""Running statistics at the server: kept out of steps that are made for parameters, never negative, or measured anew.

A mean or a variance is no parameter: momentum and adaptive steps carry a variance below zero. Knows no layer and no client.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from fedsim.core.types import Params
from fedsim.flower import compat, records
from fedsim.learn.norms import is_variance
from fedsim.strategy.stock import AT, STEPPING, family_of

Aggregated = tuple[ArrayRecord | None, MetricRecord | None]


def beside(strategy: Strategy, names: Sequence[str]) -> Strategy:
    """Return *strategy*; the buffers *names* go beside it where what decides in it steps, and are averaged plainly.

    That is so whatever wraps it: the rule at the heart of a wrapper is handed parameters only, what the wrapper made of replies. What
    only averages or chooses keeps all that travels in its hands, and so do a reader's own.
    """
    rule: Any = strategy
    while isinstance(inner := getattr(rule, "strategy", None), Strategy):
        rule = inner
    if names and family_of(type(rule)) in STEPPING:
        _Beside(names).around(rule)
    return strategy


@dataclass
class _Beside:
    """Takes the arrays *names* off what a strategy sees, and puts their mean, weighed as replies are, beside what it makes."""

    names: Sequence[str]

    def around(self, strategy: Any) -> None:
        """Let *strategy* see parameters only."""
        configure, aggregate = strategy.configure_train, strategy.aggregate_train
        key = str(getattr(strategy, "weighted_by_key", "num-examples"))

        @functools.wraps(configure)
        def configured(server_round: int, arrays: ArrayRecord, *args: Any, **kwargs: Any) -> Iterable[Message]:
            if isinstance(held := getattr(strategy, "current_arrays", None), ArrayRecord):  # An algorithm's half may have put it there.
                strategy.current_arrays = self._parted(held)[0]
            params, rest = self._parted(arrays)
            made: dict[int, tuple[RecordDict, RecordDict]] = {}  # With what it was made of, so that no other gets its id.
            found: list[Message] = []
            for message in configure(server_round, params, *args, **kwargs):
                if id(message.content) not in made:
                    made[id(message.content)] = message.content, _each(message.content, lambda record: _joined(record, rest))
                found.append(compat.with_metadata(made[id(message.content)][1], message.metadata))
            return found

        @functools.wraps(aggregate)
        def aggregated(server_round: int, replies: Iterable[Message]) -> Aggregated:
            seen: list[Message] = []
            came: list[tuple[Params, float]] = []
            for reply in replies:
                if reply.has_error():
                    seen.append(reply)
                    continue
                record = next(iter(reply.content.array_records.values()))
                came.append((records.params_of(self._parted(record)[1]), _weight(reply, key)))
                content = _each(reply.content, lambda record: self._parted(record)[0])
                seen.append(compat.with_metadata(content, reply.metadata))
            arrays, metrics = aggregate(server_round, seen)
            return (None if arrays is None else _joined(arrays, compat.array_record(_mean(came)))), metrics

        strategy.configure_train, strategy.aggregate_train = configured, aggregated

    def _parted(self, record: ArrayRecord) -> tuple[ArrayRecord, ArrayRecord]:
        """Return *record* without the arrays that go beside, and these."""
        two = ArrayRecord(), ArrayRecord()
        for name, array in record.items():
            two[name in self.names][name] = array
        return two


def _mean(came: Sequence[tuple[Params, float]]) -> Params:
    """Return the weighted mean of arrays, in their own type and in the order of replies: FedAvg's, to the bit."""
    total = sum(weight for _, weight in came)
    found: Params = {}
    for name in came[0][0] if came else ():
        parts = [np.asarray(arrays[name] * (weight / total)) for arrays, weight in came]
        found[name] = functools.reduce(np.add, parts)
    return found


def _weight(reply: Message, key: str) -> float:
    value: Any = next(iter(reply.content.metric_records.values()))[key]
    return float(value)


def _each(content: RecordDict, change: Callable[[ArrayRecord], ArrayRecord]) -> RecordDict:
    found = RecordDict()
    for name, record in content.items():
        found[name] = change(record) if isinstance(record, ArrayRecord) else record
    return found


def _joined(record: ArrayRecord, more: ArrayRecord) -> ArrayRecord:
    found = ArrayRecord()
    for name, array in (*record.items(), *more.items()):
        found[name] = array
    return found


@dataclass
class Statistics:
    """Stands around a whole strategy: no variance leaves it negative, and *measure*, where there is one, makes the statistics anew.

    *kind* is its reader's word for the strategy, *params* the first model.
    """

    kind: str
    params: Params
    measure: Callable[[Params], Params] | None = None
    _negative: dict[str, int] = field(default_factory=dict[str, int])
    """By name: how many entries came out negative, over all rounds."""

    @property
    def notes(self) -> list[str]:
        """Return what a reader must know of what was set right."""
        if not self._negative:
            return []
        entries = sum(self._negative.values())
        return [
            f"{AT}.kind = {self.kind!r}: made {entries} entr{'y' if entries == 1 else 'ies'} of {', '.join(self._negative)} negative, which"
            f" a variance never is; each stayed as it was in the model that was sent."
        ]

    def around(self, strategy: Strategy) -> Strategy:
        """Return *strategy*, its aggregates with statistics that can be ones."""
        configure, aggregate = strategy.configure_train, strategy.aggregate_train
        sent: Params = dict(self.params)

        @functools.wraps(configure)
        def configured(server_round: int, arrays: ArrayRecord, *args: Any, **kwargs: Any) -> Iterable[Message]:
            sent.update(records.params_of(arrays))
            return configure(server_round, arrays, *args, **kwargs)

        @functools.wraps(aggregate)
        def aggregated(server_round: int, replies: Iterable[Message]) -> Aggregated:
            arrays, metrics = aggregate(server_round, replies)
            if arrays is None:
                return arrays, metrics
            if self.measure is not None:
                # In the model's types; names that are not its are for whoever watches the strategy to tell of.
                known = {name: array.numpy().astype(self.params[name].dtype) for name, array in arrays.items() if name in self.params}
                return _joined(arrays, compat.array_record(self.measure({**sent, **known}))), metrics
            wrong = self._set_right(arrays, sent)
            return (_joined(arrays, compat.array_record(wrong)) if wrong else arrays), metrics

        setattr(strategy, "configure_train", configured)
        setattr(strategy, "aggregate_train", aggregated)
        return strategy

    def _set_right(self, arrays: ArrayRecord, sent: Params) -> Params:
        """Return the variances among *arrays* of which entries were negative, these as they were in what was *sent*."""
        found: Params = {}
        for name in filter(is_variance, arrays):
            array = arrays[name].numpy()
            if name in sent and array.shape == sent[name].shape and (below := array < 0).any():
                self._negative[name] = self._negative.get(name, 0) + int(below.sum())
                found[name] = np.where(below, sent[name], array)
        return found
