"""Laws of sources of data: functions of their key, and of the client where they make examples for each. Knows no source."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np

from fedsim.core.keys import Key
from fedsim.data.source import Generator, Pool, finder
from fedsim.laws.broken import Law, Make, alike, luck, want


def a_source_is_a_function_of_its_key(make: Make) -> None:
    """Made again under the same key it holds the same, each client's asked in whatever order; no global generator is drawn from."""
    drawn = luck()
    one, two = (cast("Pool | Generator", make(key=Key(3), find=finder(Path.cwd()))) for _ in range(2))
    if isinstance(one, Pool) and isinstance(two, Pool):
        for name in ("train", "test"):
            a, b = getattr(one, name), getattr(two, name)
            want((a is None) == (b is None), f"made again: there is a part '{name}' once and not twice")
            if a is not None:
                alike((a.x, a.y), (b.x, b.y), f"made again: the part '{name}'")
        alike(one.outputs, two.outputs, "made again: outputs")
    else:
        first: Any = one
        other: Any = two
        clients = [0, 1, 7, 40]
        given = {client: first.client(client) for client in clients}
        sizes = first.sizes(np.array(clients))
        for client, size in zip(reversed(clients), reversed(sizes.tolist()), strict=True):
            again = other.client(client)
            alike((given[client].x, given[client].y), (again.x, again.y), f"made again and asked backwards: client {client}")
            alike(size, len(again), f"sizes() and client() of client {client}: how many examples")
    want(drawn == luck(), "it draws from numpy's global generator")


LAWS: dict[str, tuple[Law, ...]] = {"source": (a_source_is_a_function_of_its_key,)}
