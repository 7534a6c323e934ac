"""Where in a scenario a key has its place: for hints when somebody puts it elsewhere."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from fedsim.core.errors import ScenarioError
from fedsim.core.registry import Registry
from fedsim.scenario.kinds import slots
from fedsim.scenario.schema import Scenario
from fedsim.strategy import stock

NAMED = 3
"""Places that a hint names at most."""
OTHER_WORDS = {
    "learning_rate": "lr", "local_epochs": "epochs", "num_epochs": "epochs", "local_steps": "steps", "num_rounds": "rounds",
    "num_clients": "count", "batch": "batch_size", "bs": "batch_size", "timeout": "round_timeout_s",
    "timeout_s": "round_timeout_s", "deadline_s": "round_timeout_s", "wd": "weight_decay", "memory": "capacity",
    "accumulate_steps": "accumulate", "gradient_accumulation_steps": "accumulate", "accumulation": "accumulate", "shuffle": "sampling",
    "optim": "optimizer", "loss": "objective", "dataset": "source", "bandwidth": "down_mbps", "latency": "latency_s",
}  # fmt: skip
"""What others call our keys."""


def elsewhere(key: str) -> str:
    """Return the end of an error line about *key*, which is not there: where keys of its name are; nothing if nowhere.

    >>> elsewhere("training.lr")
    ' There is training.optimizer.lr.'
    >>> elsewhere("server.fraction_train"), elsewhere("training.colour")
    (' There is server.strategy.fraction_train.', '')
    """
    above, _, name = key.rpartition(".")
    word = name.replace("-", "_").casefold()
    found = _places().get(word) or _places().get(OTHER_WORDS.get(word, "")) or {}
    near = sorted(found, key=lambda place: (-_shared(above, place), place))
    if near and above:  # Of a name that is in many places, those of the section at hand.
        best = _shared(above, near[0])
        near = [place for place in near if _shared(above, place) == best]
    named = [f"{place}{_of(found[place])}" for place in near[:NAMED] if place != key or found[place]]
    return f" There is {', or '.join(named)}." if named else ""


def _shared(above: str, place: str) -> int:
    """Return how many words two keys begin with in common."""
    both = zip(above.split("."), place.split("."), strict=False)
    return next((i for i, (a, b) in enumerate(both) if a != b), min(len(above.split(".")), len(place.split("."))))


def _of(kinds: tuple[str, ...]) -> str:
    return f" (of {', '.join(map(repr, kinds))})" if kinds else ""


@cache
def _places() -> dict[str, dict[str, tuple[str, ...]]]:
    """Return, by the last word of a key, the whole keys, and of which kinds each is a setting where only few have it."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for key in _sections(Scenario):
        found.setdefault(key.rpartition(".")[2], {})[key] = ()
    for key, every in _kinds():
        for name in dict.fromkeys(name for names in every.values() for name in names):
            having = tuple(kind for kind, names in every.items() if name in names)
            few = len(having) < len(every) and len(having) <= NAMED
            found.setdefault(name, {})[f"{key}.{name}"] = having if few else ()
    return found


def _sections(model: type[BaseModel], above: str = "") -> Iterator[str]:
    for name, about in model.model_fields.items():
        yield f"{above}{name}"
        for hint in (about.annotation, *get_args(about.annotation)):
            if inspect.isclass(hint) and issubclass(hint, BaseModel):
                yield from _sections(hint, f"{above}{name}.")


def _kinds() -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Yield each slot's key, and the settings of each of its kinds."""
    for slot in slots().values():
        found = {kind: _settings(slot.registry, kind) for kind in slot.registry.names()}
        yield from ((key, found) for key in slot.keys)
    yield stock.AT, {kind: [*stock.arguments(kind), "clients_per_round"] for kind in stock.names()}


def _settings(registry: Registry[Any], kind: str) -> list[str]:
    try:
        return list(registry.settings(registry.get(kind, at=registry.noun)))
    except ScenarioError:  # An installed kind that cannot be imported is no reason for a second error.
        return []
