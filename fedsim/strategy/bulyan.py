"""Bulyan as its paper has it: the rule selects, what it selected goes, and the rest is scored again."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import strategy as flower

from fedsim.core.types import FloatArray
from fedsim.flower.distances import squared_distances


class BulyanIterated(flower.Bulyan):
    """Bulyan with Krum's choice made n - 2 f times, each among what is left (El Mhamdi et al. 2018, algorithm 1).

    Flower's ``Bulyan`` takes the n - 2 f best of one scoring, in which liars that lie close together can carry each other.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, selection_rule=select)


def select(contents: list[RecordDict], malicious: int, count: int) -> list[RecordDict]:
    """Return *count* of *contents*, in the order in which Krum picks them, each removed before the next is picked."""
    key = next(iter(contents[0].array_records))
    return [contents[i] for i in picks(squared_distances([content.array_records[key] for content in contents]), malicious, count)]


def picks(distances: FloatArray, malicious: int, count: int) -> list[int]:
    """Return what Krum picks *count* times among what it has not picked yet.

    >>> points = np.array([0.0, 1.0, 2.1, 9.0, 9.1])
    >>> picks((points[:, None] - points) ** 2, 1, 2)
    [1, 3]
    """
    left, picked = list(range(len(distances))), list[int]()
    for _ in range(count):
        near = np.sort(distances[np.ix_(left, left)], axis=1)  # Its own distance, 0, comes first.
        closest = max(1, len(left) - malicious - 2)
        picked.append(left.pop(int(np.argmin(near[:, 1 : 1 + closest].sum(axis=1)))))
    return picked
