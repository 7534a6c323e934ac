"""The accuracy matrix of a run: what the global model knew of each group of classes after each concept of the streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fedsim.core.types import BoolArray, FloatArray, Frame, IntArray
from fedsim.score import continual
from fedsim.score.influence import merges, trained

GROUP = "classes "
"""How the scope of a score by classes begins; the classes follow."""
NONE = -1


@dataclass(frozen=True, slots=True)
class AccuracyMatrix:
    """Accuracy by concept and group of classes (``evaluate.by_classes``), measured on the server's test examples.

    Row t is the last evaluation of a model that had learned from concept t and from none after it; NaN, with round -1,
    where no evaluation met such a model. The last row is the end of the run. The scores below take group i for what
    concept i brings, and are over the concepts met; with more concepts than groups (a season that comes again) all but
    ``average_accuracy`` are NaN.
    Shapes: rounds, now_s (concepts,), accuracy (concepts, groups), untrained (groups,) at the start.
    """

    groups: tuple[str, ...]
    rounds: IntArray
    now_s: FloatArray
    accuracy: FloatArray
    untrained: FloatArray
    any_time_accuracy: float

    @property
    def average_accuracy(self) -> float:
        """Return the mean accuracy over all groups at the end."""
        last = self.accuracy[-1:]
        return float(np.nanmean(last)) if np.isfinite(last).any() else float("nan")

    @property
    def forgetting(self) -> float:
        """Return how far earlier groups lie below the best they ever were (Chaudhry et al. 2018)."""
        return continual.forgetting(self._met) if self._comparable else float("nan")

    @property
    def backward_transfer(self) -> float:
        """Return how much later concepts raised the accuracy on earlier groups (Lopez-Paz & Ranzato 2017)."""
        return continual.backward_transfer(self._met) if self._comparable else float("nan")

    @property
    def forward_transfer(self) -> float:
        """Return how much earlier concepts raised the accuracy on later groups above that of the untrained model."""
        met = self._met
        return continual.forward_transfer(met, self.untrained[: len(met)]) if self._comparable else float("nan")

    @property
    def scores(self) -> dict[str, float]:
        """Return all five scores by name."""
        return {
            "average accuracy": self.average_accuracy, "forgetting": self.forgetting,
            "backward transfer": self.backward_transfer, "forward transfer": self.forward_transfer,
            "any-time accuracy": self.any_time_accuracy,
        }  # fmt: skip

    @property
    def frame(self) -> Frame:
        """Return the matrix as a frame: a row per concept, with its round and time, a column per group."""
        columns = {group: self.accuracy[:, i] for i, group in enumerate(self.groups)}
        return pd.DataFrame({"round": self.rounds, "now_s": self.now_s, **columns}).rename_axis("concept")

    @property
    def _met(self) -> FloatArray:
        return self.accuracy[:, : len(self.accuracy)]

    @property
    def _comparable(self) -> bool:
        return 0 < len(self.accuracy) <= len(self.groups)


def accuracy_matrix(metrics: Frame, tested: Frame, drifts: Frame, tasks: Frame, versions: Frame) -> AccuracyMatrix:
    """Return the accuracy matrix of a run's frames, which hold accuracies by classes."""
    by_group = metrics[metrics.scope.str.startswith(GROUP) & (metrics.name == "accuracy")]
    groups = list(dict.fromkeys(by_group.scope))
    table = by_group.pivot(index="round", columns="scope", values="value")[groups]
    numbers, accuracy = table.index.to_numpy(dtype=np.int64), table.to_numpy(dtype=np.float64)
    now_s = by_group.groupby("round").now_s.first().reindex(numbers).to_numpy(dtype=np.float64)
    furthest = _furthest(tested, drifts, tasks, versions)
    made = versions.sort_values("now_s", kind="stable")
    last = np.searchsorted(made.now_s.to_numpy(dtype=np.float64), now_s, side="right") - 1
    reached = furthest[made.version.to_numpy(dtype=np.int64)[np.maximum(last, 0)]]
    concepts = int(max([NONE, *reached])) + 1
    ends = [np.flatnonzero(reached == concept)[-1:] for concept in range(concepts)]
    places = np.array([found[0] if len(found) else len(numbers) for found in ends], dtype=np.int64)
    start = accuracy[(numbers == 0)]
    return AccuracyMatrix(
        groups=tuple(group.removeprefix(GROUP) for group in groups),
        rounds=np.append(numbers, NONE)[places],
        now_s=np.append(now_s, np.nan)[places],
        accuracy=np.vstack([accuracy, np.full(len(groups), np.nan)])[places],
        untrained=start[0] if len(start) else np.full(len(groups), np.nan),
        any_time_accuracy=_any_time(accuracy, reached) if 0 < concepts <= len(groups) else float("nan"),
    )


def _any_time(accuracy: FloatArray, reached: IntArray) -> float:
    seen: BoolArray = np.arange(accuracy.shape[1]) <= reached[:, None]
    return continual.any_time_accuracy(accuracy, seen)


def _furthest(tested: Frame, drifts: Frame, tasks: Frame, versions: Frame) -> IntArray:
    """Return the furthest concept that each model had learned from, -1 while it had from none. Shapes: (models,)."""
    merged = merges(tasks, versions).reset_index(drop=True)
    items = trained(tested, merged)
    concept = _sequence(items, drifts)
    models = int(max([0, *versions.version])) + 1
    into = np.append(merged.merged.to_numpy(), NONE)[items.task.to_numpy(dtype=np.int64)]
    furthest = np.full(models, NONE)
    np.maximum.at(furthest, into[into >= 0], concept[into >= 0])
    return np.maximum.accumulate(furthest)


def _sequence(items: Frame, drifts: Frame) -> IntArray:
    """Return which in the sequence of concepts each item is from: its concept, where no concept ever comes again.

    Where one does, the number of drifts that its client lived through before.
    """
    concept = items.concept.to_numpy(dtype=np.int64)
    client, item = items.client.to_numpy(dtype=np.int64), items.item.to_numpy(dtype=np.int64)
    order = np.lexsort([item, client])
    back = (np.diff(concept[order]) < 0) & (np.diff(client[order]) == 0)
    if not back.any():
        return concept
    passed, arrived_s = np.zeros(len(items), dtype=np.int64), items.arrived_s.to_numpy(dtype=np.float64)
    rows_of: dict[Any, Any] = items.groupby("client").indices
    for number, group in drifts.groupby("client"):
        rows = rows_of.get(number, np.zeros(0, dtype=np.int64))
        passed[rows] = np.searchsorted(np.sort(group.time_s.to_numpy(dtype=np.float64)), arrived_s[rows], side="right")
    return passed

