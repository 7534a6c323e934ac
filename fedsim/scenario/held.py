"""What clients hold, in numbers for whoever looks at a run: sizes, labels of some, and one example. Written when a run begins."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fedsim.core.types import Array
from fedsim.data.federation import Federation

FILE = "data.json"
CLIENTS = 60
"""Clients whose labels are counted at most: a picture of more is not read."""
SIZED = 100_000
"""Clients whose sizes are looked at, at most."""
BINS = 40
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
LARGEST = 4096
"""Numbers that an example may have to be kept."""


def held(federation: Federation) -> dict[str, Any]:
    """Return what is held: ``clients``, ``sizes`` (quantiles, and a histogram: edges, counts), ``labels``, ``example``.

    ``labels`` has a row for each of the first CLIENTS clients: how many examples of each class it trains on; none where targets are no
    classes, or come over time. ``example`` has the shape, the values and the target of the first training example of client 0.
    """
    count = federation.count
    sizes = federation.sizes(np.arange(min(count, SIZED)))
    edges = np.unique(np.rint(np.linspace(sizes.min(), sizes.max() + 1, BINS + 1)))
    counts, _ = np.histogram(sizes, edges)
    classes = np.issubdtype(federation.test.y.dtype, np.integer) and federation.streams is None and federation.test.y.ndim == 1
    labels = [
        np.bincount(federation.labels(client), minlength=federation.outputs).tolist() for client in range(min(count, CLIENTS))
    ] if classes and federation.outputs <= 1000 else []  # fmt: skip
    return {
        "clients": count, "looked_at": len(sizes), "train_examples": int(sizes.sum()), "test_examples": len(federation.test),
        "sizes": {"quantiles": np.quantile(sizes, QUANTILES).tolist(), "edges": edges.tolist(), "counts": counts.tolist()},
        "labels": labels, "classes": list(federation.classes), "example": _example(federation),
    }  # fmt: skip


def _example(federation: Federation) -> dict[str, Any] | None:
    positions = federation.train(0)
    if not len(positions) or math.prod(federation.shape) > LARGEST:
        return None
    x: Array = federation.features(0, positions[:1])[0]
    y = federation.targets(0, positions[:1])[0]
    values = x.tolist() if x.dtype.kind in "iu" else np.round(x.astype(np.float64), 4).tolist()
    return {"shape": list(x.shape), "x": values, "y": y.tolist() if isinstance(y, np.ndarray) else int(y)}
