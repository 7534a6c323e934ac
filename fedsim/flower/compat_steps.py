"""What stands around the steps of any of Flower's strategies: the types of a model kept, draws by name, a dry run that aggregates nothing.

Knows what the steps are called and what they return; knows no message.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from fedsim.core.borrowed import borrowed
from fedsim.core.keys import Key
from fedsim.core.types import Params
from fedsim.flower.compat import array_record, type_name


def keep_types(strategy: Strategy, params: Params) -> Strategy:
    """Return *strategy*, its aggregates whole, and cast to the types of *params*: the model's own are what travels.

    With numpy 2 some stock strategies (FedOpt's family) hand out float64 arrays for a float32 model, which would
    double every download; casting rounds once, at the server, where a client would round on loading. Arrays that a
    strategy leaves out (layers that are not shared) stay as they were in the model that it last sent.
    """
    configure, aggregate, sent = strategy.configure_train, strategy.aggregate_train, array_record(params)

    @functools.wraps(configure)
    def remembered(server_round: int, arrays: ArrayRecord, *args: Any, **kwargs: Any) -> Any:
        nonlocal sent
        sent = arrays
        return configure(server_round, arrays, *args, **kwargs)

    @functools.wraps(aggregate)
    def typed(server_round: int, replies: Any) -> Any:
        arrays, metrics = aggregate(server_round, replies)
        if arrays is None or all(name in arrays and arrays[name].dtype == type_name(a.dtype) for name, a in params.items()):
            return arrays, metrics
        whole = {name: (arrays if name in arrays else sent)[name].numpy() for name in params}
        return ArrayRecord({name: Array(a.astype(params[name].dtype)) for name, a in whole.items()}), metrics

    setattr(strategy, "configure_train", remembered)
    setattr(strategy, "aggregate_train", typed)
    return strategy


def asks_only(strategy: Strategy) -> Strategy:
    """Return *strategy*, made to aggregate nothing: in a dry run there are no replies that it could."""
    setattr(strategy, "aggregate_train", lambda server_round, replies: (None, None))  # pyright: ignore[reportUnknownLambdaType]
    setattr(strategy, "aggregate_evaluate", lambda server_round, replies: None)  # pyright: ignore[reportUnknownLambdaType]
    return strategy


Heard = Callable[[str, int, Any], None]
"""Told (step, round, what the step returned) each time a strategy has done a step."""


def name_draws(strategy: Strategy, key: Key, heard: Heard = lambda *_: None) -> Strategy:
    """Return *strategy*, its steps made to draw from generators named by step and round, and *heard* to be told.

    Flower samples nodes from the global ``random`` and differential-privacy noise from the global
    ``numpy.random``; both are set for the call and given back as they were.
    """
    for step in ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate"):
        setattr(strategy, step, named_step(step, getattr(strategy, step), key.fold("strategy", step), heard))
    return strategy


def named_step(name: str, step: Callable[..., Any], key: Key, heard: Heard) -> Callable[..., Any]:
    """Return the *step* of a strategy called *name*, made to draw from generators named by *key* and round, and *heard* to be told."""

    @functools.wraps(step)
    def call(server_round: int, *args: Any, **kwargs: Any) -> Any:
        named = key.fold("round", server_round)
        with borrowed():
            random.seed(named.seed64())
            np.random.seed(named.seed64() % 2**32)
            result = step(server_round, *args, **kwargs)
            if name.startswith("configure"):
                result = list(result)  # A generator would draw later, when the names are gone.
        heard(name, server_round, result)
        return result

    return call
