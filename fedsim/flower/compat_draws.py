"""Flower's threads beside an app draw from a generator of their own: touches of its private names. Canary: ``tests/flower``.

A SuperLink's and a SuperNode's processes send heartbeats from a thread, and pause for random times before they try again. They draw
those from Python's global generator, which is one for all threads: in the middle of a trace, of a model's own draws, or of a sample
of nodes that a strategy takes.
"""

from __future__ import annotations

import importlib
import random
from contextlib import suppress
from typing import Any

DRAWERS = ("flwr.supercore.heartbeat", "flwr.supercore.retry.retry_invoker", "flwr.supercore.inflatable.inflatable_utils")
"""The modules whose threads draw, by the name ``random``."""

_APART = random.Random()


def keep_apart() -> None:
    """Let Flower's own threads leave the global generator alone. Process-wide, hence constant; nothing that is drawn for an app changes."""
    for name in DRAWERS:
        with suppress(ImportError):  # A flwr that has no such module draws nothing in it.
            module: Any = importlib.import_module(name)
            if getattr(module, "random", None) is random:
                module.random = _APART
