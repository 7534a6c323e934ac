"""Edges between a server and its clients: who is behind which, over which links, and how many rounds an edge plays for one of the server's.

Values, and functions of (key, client). Knows no message, and not what an edge does with what it gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedsim.core.keys import Key
from fedsim.core.types import IntArray, Seconds
from fedsim.cost.network import Network, ServerLink

Assign = Literal["blocks", "in_turn", "drawn"]


@dataclass(frozen=True, slots=True)
class Edges:
    """*count* edges. *of* (clients,) is the edge of each client, and *network* their links with the server, one "client" an edge.

    *rounds* is how many rounds an edge plays among its clients before it sends its model up (kappa2 of HierFAVG), *timeout_s* how long it
    waits for them in each, for ever where that is None. *access* is what its own link towards its clients carries. Clients' models are
    weighed by the metric *weight*, as the server's strategy does.
    """

    count: int
    of: IntArray
    network: Network
    rounds: int = 1
    timeout_s: Seconds | None = None
    access: ServerLink | None = None
    weight: str = "num-examples"


def assigned(how: Assign | Sequence[int], clients: int, count: int, key: Key) -> IntArray:
    """Return the edge of each of *clients*: in blocks as even as can be, dealt out in turn, each a draw of its own, or as listed.

    Shapes: -> (clients,).

    >>> assigned("blocks", 5, 2, Key(0)).tolist(), assigned("in_turn", 5, 2, Key(0)).tolist()
    ([0, 0, 0, 1, 1], [0, 1, 0, 1, 0])
    """
    everyone = np.arange(clients, dtype=np.int64)
    if how == "blocks":
        return everyone * count // clients
    if how == "in_turn":
        return everyone % count
    if how == "drawn":
        return np.minimum((key.uniform(everyone) * count).astype(np.int64), count - 1)
    return np.array(how, dtype=np.int64)
