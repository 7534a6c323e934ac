"""An algorithm's server half around any strategy that averages: extra arrays are taken off before it aggregates, and sent along after.

Stock classes would average, adapt or clip them like parameters, and move the weights by it. Knows no algorithm by name.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from fedsim.core.errors import RunError, ScenarioError, choices, door
from fedsim.core.state import State
from fedsim.core.types import Params
from fedsim.flower import compat, records
from fedsim.learn.algorithms import Server, Update
from fedsim.learn.algorithms.ending import split
from fedsim.strategy.stock import AT, MEANS, family_of


def check_goes(strategy: Strategy, kind: str, algorithm: str) -> None:
    """Refuse to put *algorithm* around a stock *strategy* that does not average. Raises ScenarioError."""
    family = family_of(type(strategy))
    if family is not None and family not in MEANS:
        raise ScenarioError(
            f"training.algorithm.kind = {algorithm!r}: its server's half goes around a strategy that averages, and {AT}.kind = {kind!r}"
            f" does something else with replies. {choices('', MEANS)}"
        )


@dataclass
class Extras:
    """The server's half at work: *names* are those of the parameters, *down* and *up* of the extra arrays, *params* the first model."""

    server: Server
    names: Sequence[str]
    down: Sequence[str]
    up: Sequence[str]
    params: Params
    state: State = field(init=False)
    """What the half keeps from round to round, by EXTRA/PARAMETER: sealed behind the parameters."""

    def __post_init__(self) -> None:
        """Begin."""
        self.state = self.server.begin({name: self.params[name] for name in self.names})

    def around(self, strategy: Strategy) -> Strategy:
        """Return *strategy*, its training made to carry the extra arrays."""
        configure, aggregate = strategy.configure_train, strategy.aggregate_train
        key = str(getattr(strategy, "weighted_by_key", "num-examples"))
        start: Params = dict(self.params)

        @functools.wraps(configure)
        def configured(server_round: int, arrays: ArrayRecord, *args: Any, **kwargs: Any) -> Iterable[Message]:
            start.update(records.params_of(arrays))
            if isinstance(getattr(strategy, "current_arrays", None), ArrayRecord):  # FedAvgM's own last average, which is no longer
                setattr(strategy, "current_arrays", arrays)  # the model where the server's half has moved it.
            return self._joined(configure(server_round, arrays, *args, **kwargs))

        @functools.wraps(aggregate)
        def aggregated(server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
            replies = list(replies)
            good = [reply for reply in replies if not reply.has_error()]
            updates = [self._update(reply, key) for reply in good]
            if not updates:
                return aggregate(server_round, replies)
            before = {name: start[name] for name in self.names}
            with door("training.algorithm", "its server's before() raised", wrong=RunError):
                seen = self.server.before(before, updates)
            shown = {id(reply): self._shown(reply, params, key) for reply, params in zip(good, seen, strict=True)}
            arrays, metrics = aggregate(server_round, [shown.get(id(reply), reply) for reply in replies])
            if arrays is None:
                return None, metrics
            average = {name: array.astype(start[name].dtype) for name, array in records.params_of(arrays).items()}
            trained = {name: average.get(name, start[name]) for name in self.names}
            with door("training.algorithm", "its server's after() raised", wrong=RunError):
                model, self.state = self.server.after(before, trained, updates, self.state)
            _check_numbers(model)
            return compat.array_record({**average, **model}), metrics

        setattr(strategy, "configure_train", configured)
        setattr(strategy, "aggregate_train", aggregated)
        return strategy

    def _joined(self, messages: Iterable[Message]) -> Iterable[Message]:
        """Return *messages* with the extra arrays behind their parameters; those of one content still have one."""
        extra = {name: self.state[name] for each in self.down for name in (f"{each}/{param}" for param in self.names)}
        if not extra:
            return messages
        made: dict[int, tuple[RecordDict, RecordDict]] = {}  # With what it was made of, so that no other gets its id.
        found: list[Message] = []
        for message in messages:
            if id(message.content) not in made:
                made[id(message.content)] = (message.content, self._with(message.content, extra))
            found.append(compat.with_metadata(made[id(message.content)][1], message.metadata))
        return found

    def _with(self, content: RecordDict, extra: Mapping[str, Any]) -> RecordDict:
        joined = RecordDict()
        for name, record in content.items():
            if isinstance(record, ArrayRecord):
                record = compat.array_record({**records.params_of(record), **extra})
            joined[name] = record
        return joined

    def _update(self, reply: Message, key: str) -> Update:
        arrays, metrics = _only(reply)
        params = records.params_of(arrays)
        try:
            rest, extra = split(params, self.up, self.names)
        except KeyError as missing:
            raise RunError(f"training.algorithm: a reply came without {missing}, which its server's half takes.") from None
        numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
        return Update({name: rest[name] for name in self.names}, extra, numbers.get(key, 1.0), numbers)

    def _shown(self, reply: Message, params: Params, key: str) -> Message:
        """Return *reply* as the strategy is to see it: *params* in the place of what was trained, and no extra arrays."""
        content, taken = RecordDict(), {f"{each}/{name}" for each in self.up for name in self.names}
        for name, record in reply.content.items():
            if isinstance(record, ArrayRecord):
                whole = {array: value for array, value in records.params_of(record).items() if array not in taken}
                record = compat.array_record({**whole, **params})
            elif isinstance(record, MetricRecord) and self.server.weights == "uniform":
                record = MetricRecord({**record, key: 1.0})
            content[name] = record
        return compat.with_metadata(content, reply.metadata)


def _check_numbers(model: Params) -> None:
    for name, array in model.items():
        if not np.isfinite(array).all():
            raise RunError(f"training.algorithm: its server's after() made {name} infinite or no number; try a smaller learning rate.")


def _only(reply: Message) -> tuple[ArrayRecord, MetricRecord]:
    arrays, metrics = list(reply.content.array_records.values()), list(reply.content.metric_records.values())
    return arrays[0], metrics[0]
