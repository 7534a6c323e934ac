"""The rows of a run folder as pandas frames: what the journal's tables hold, laid out for a reader. Knows no score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.core.errors import RunError, door
from fedsim.record import journal

if TYPE_CHECKING:
    import pandas as pd

EVENTS = ("received_s", "started_s", "computed_s", "arrived_s")
"""Columns of the table ``tasks`` that hold -1.0 for what never happened; ``Frames.tasks`` holds NaN there."""
SINGULAR = {"items": "item", "concepts": "concept", "alarms": "item", "drifts_s": "drift_s"}
"""What arrays of the table ``tested`` are called where each entry is a row."""


@dataclass(frozen=True)
class Frames:
    """The frames of a run folder; ``Run`` says what is in each. Raises RunError where the journal cannot be read."""

    folder: Path

    @property
    def tasks(self) -> pd.DataFrame:
        """Return the tasks, with NaN for what never happened."""
        tasks = self.table("tasks")
        times: Any = tasks[list(EVENTS)]
        return tasks.assign(**times.where(times >= 0))

    @property
    def rounds(self) -> pd.DataFrame:
        """Return the batches of messages, with the bytes of what was sent then."""
        rounds, tasks = self.table("rounds"), self.table("tasks")
        down = tasks.down_bytes + tasks.down_framing_bytes
        up = tasks.up_bytes + tasks.up_framing_bytes
        wasted = (down + up).where(tasks.outcome != "arrived", 0)
        sums = tasks.assign(down_bytes=down, up_bytes=up, wasted_bytes=wasted).groupby(["round", "kind", "sent_s"], sort=False)
        totals: Any = sums[["down_bytes", "up_bytes", "wasted_bytes"]].sum()
        return rounds.join(totals, on=["round", "kind", "started_s"])

    @property
    def metrics(self) -> pd.DataFrame:
        """Return the scores."""
        return self.table("metrics")

    @property
    def tested(self) -> pd.DataFrame:
        """Return what was predicted, a row per example."""
        return self._entries(["items", "arrived_s", "labelled_s", "y", "prediction", "loss", "concepts"])

    @property
    def alarms(self) -> pd.DataFrame:
        """Return the detectors' signals."""
        found: Any = self._entries(["alarms"])
        return found[["client", "round", "time_s", "item"]]

    @property
    def drifts(self) -> pd.DataFrame:
        """Return the true drifts."""
        found: Any = self._entries(["drifts_s"])
        return found.assign(time_s=found.drift_s)[["client", "round", "time_s"]]

    def table(self, name: str) -> pd.DataFrame:
        """Return the rows of the table *name* as they were written."""
        import pandas as pd

        columns, rows = journal.read(self.folder, name)
        return pd.DataFrame(rows, columns=columns)

    def _entries(self, names: list[str]) -> pd.DataFrame:
        """Return arrays of the table ``tested``, laid end to end, each entry with the task that it is from."""
        import numpy as np
        import pandas as pd

        rows = self.table("tested").to_dict("records")
        with door(f"{self.folder / journal.FILE}: table tested", "cannot be read:", wrong=RunError):
            found = [journal.arrays(row) for row in rows]
            if any(len({len(arrays[name]) for name in names}) > 1 for arrays in found):
                raise ValueError(f"{', '.join(names)} are not of one length")
        sizes = [len(arrays[names[0]]) for arrays in found]
        head = {"client": "client", "round": "round", "version": "version", "now_s": "time_s"}
        columns = {
            to: np.repeat(np.array([row[name] for row in rows], dtype=np.float64 if to == "time_s" else np.int64), sizes)
            for name, to in head.items()
        }
        for name in names:
            whole = np.concatenate([np.zeros(0, dtype=journal.ARRAYS[name]), *(arrays[name] for arrays in found)])
            columns[SINGULAR.get(name, name)] = whole
        return pd.DataFrame(columns)
