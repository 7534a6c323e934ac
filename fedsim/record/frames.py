"""The rows of a run folder as pandas frames: what the journal's tables hold, laid out for a reader, each read once. Knows no score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.core.errors import RunError, door
from fedsim.core.types import Array, Frame
from fedsim.record import clients, journal

if TYPE_CHECKING:
    import pandas as pd

EVENTS = ("received_s", "started_s", "computed_s", "arrived_s", "stopped_s")
"""Columns of the table ``tasks`` that hold -1.0 for what never happened; ``Frames.tasks`` holds NaN there."""
EDGES = ("received_s", "answered_s", "arrived_s")
"""Those of the table ``edges``."""
SINGULAR = {
    "items": "item", "concepts": "concept", "alarms": "item", "drifts_s": "drift_s", "messages": "message", "clients": "client",
    "numbers": "number", "rounds": "round", "versions": "version", "steps": "step",
}  # fmt: skip
"""What arrays of the tables ``tested`` and ``steps`` are called where each entry is a row."""


@dataclass(frozen=True)
class Frames:
    """The frames of a run folder; ``Run`` says what is in each. Raises RunError where the journal cannot be read.

    A table is read when it is first asked for, and stays as it was then. What is handed out is the caller's own: changing
    it changes nothing here.
    """

    folder: Path

    @property
    def tasks(self) -> pd.DataFrame:
        """Return the tasks, with NaN for what never happened, and for the size of batches where no policy chose one."""
        times: Any = self._tasks[list(EVENTS)]
        sizes: Any = self._tasks.batch_size
        return self._tasks.assign(**times.where(times >= 0), batch_size=sizes.where(sizes > 0))

    @property
    def rounds(self) -> pd.DataFrame:
        """Return the batches of messages, with the bytes of what was sent then."""
        tasks = self._tasks
        down = tasks.down_bytes + tasks.down_framing_bytes
        up = tasks.up_bytes + tasks.up_framing_bytes
        wasted = (down + up).where(tasks.outcome != "arrived", 0)
        began: Any = self._edges.explode("messages").dropna(subset=["messages"]).set_index("messages").sent_s
        if len(began):  # What an edge sends belongs to the batch that the server sent the edge's own with.
            numbers: Any = tasks.message.str[1:].astype("int64")
            tasks = tasks.assign(sent_s=numbers.map(began).fillna(tasks.sent_s))
        sums = tasks.assign(down_bytes=down, up_bytes=up, wasted_bytes=wasted).groupby(["round", "kind", "sent_s"], sort=False)
        totals: Any = sums[["down_bytes", "up_bytes", "wasted_bytes"]].sum()
        return self._rounds.join(totals, on=["round", "kind", "started_s"])

    @property
    def versions(self) -> pd.DataFrame:
        """Return the versions of the model, with an array of message numbers each; none in folders of before they were told."""
        return self._versions.copy()

    @property
    def metrics(self) -> pd.DataFrame:
        """Return the scores."""
        return self._metrics.copy()

    @property
    def tested(self) -> pd.DataFrame:
        """Return what was predicted, a row per example."""
        return self._entries["tested"].copy()

    @property
    def alarms(self) -> pd.DataFrame:
        """Return the detectors' signals."""
        return self._entries["alarms"].copy()

    @property
    def drifts(self) -> pd.DataFrame:
        """Return the true drifts."""
        return self._entries["drifts"].copy()

    @property
    def steps(self) -> pd.DataFrame:
        """Return what was watched of training, a row per step."""
        return self._steps.copy()

    @property
    def examined(self) -> pd.DataFrame:
        """Return the training tasks of which gradients were taken one by one, as they were recorded."""
        return self._examined.copy()

    @property
    def noise(self) -> pd.DataFrame:
        """Return signal and noise between clients, as they were recorded."""
        return self._noise.copy()

    @property
    def worked(self) -> pd.DataFrame:
        """Return what real nodes' processors took, by message."""
        return self._worked.copy()

    @property
    def energy(self) -> pd.DataFrame:
        """Return what messages cost the devices of their clients, a row per message; none where nothing was counted."""
        return self._energy.copy()

    @property
    def edges(self) -> pd.DataFrame:
        """Return what passed between the server and its edges, a row per edge and batch, with NaN for what never happened."""
        times: Any = self._edges[list(EDGES)]
        return self._edges.assign(**times.where(times >= 0))

    @property
    def clients(self) -> pd.DataFrame:
        """Return what each client took part in and told, by round."""
        return self._clients.copy()

    @property
    def devices(self) -> pd.DataFrame:
        """Return how much each client holds, and how fast it is."""
        return self._devices.copy()

    @cached_property
    def _clients(self) -> pd.DataFrame:
        return clients.frame(self.folder)

    @cached_property
    def _devices(self) -> pd.DataFrame:
        return clients.devices(self.folder)

    @cached_property
    def _worked(self) -> pd.DataFrame:
        return self._table("worked")

    @cached_property
    def _examined(self) -> pd.DataFrame:
        return self._table("examined")

    @cached_property
    def _noise(self) -> pd.DataFrame:
        return self._table("noise")

    @cached_property
    def _steps(self) -> pd.DataFrame:
        columns, rows = journal.read(self.folder, "steps")
        with door(f"{self.folder / journal.FILE}: table steps", "cannot be read:", wrong=RunError):
            blocks = [journal.arrays(dict(zip(columns, row, strict=True))) for row in rows]
            return _laid([{}] * len(blocks), blocks, columns, {})

    @cached_property
    def _energy(self) -> pd.DataFrame:
        columns, rows = journal.read(self.folder, "energy")
        with door(f"{self.folder / journal.FILE}: table energy", "cannot be read:", wrong=RunError):
            blocks = [journal.arrays(dict(zip(columns, row, strict=True))) for row in rows]
            return _laid([{}] * len(blocks), blocks, columns, {})

    @cached_property
    def _tasks(self) -> pd.DataFrame:
        import pandas as pd

        known: Any = self._table("settled")  # First: a run that ends meanwhile tells the rest, and then clears these.
        told = self._table("tasks")
        known = known[~known.message.isin(told.message)] if len(told) else known
        return told if not len(known) else known if not len(told) else pd.concat([told, known], ignore_index=True)

    @cached_property
    def _rounds(self) -> pd.DataFrame:
        return self._table("rounds")

    @cached_property
    def _versions(self) -> pd.DataFrame:
        rows = self._table("versions")
        with door(f"{self.folder / journal.FILE}: table versions", "cannot be read:", wrong=RunError):
            return rows.assign(merged=[journal.arrays({"merged": merged})["merged"] for merged in rows.merged])

    @cached_property
    def _edges(self) -> pd.DataFrame:
        rows = self._table("edges")
        with door(f"{self.folder / journal.FILE}: table edges", "cannot be read:", wrong=RunError):
            return rows.assign(messages=[journal.arrays({"messages": sent})["messages"] for sent in rows.messages])

    @cached_property
    def _metrics(self) -> pd.DataFrame:
        return self._table("metrics")

    @cached_property
    def _entries(self) -> dict[str, pd.DataFrame]:
        """Return the three frames that the table ``tested`` holds, a row per example, alarm and drift."""
        rows = self._table("tested").to_dict("records")
        with door(f"{self.folder / journal.FILE}: table tested", "cannot be read:", wrong=RunError):
            found = [journal.arrays(row) for row in rows]
            alarms, drifts = _laid(rows, found, ["alarms"]), _laid(rows, found, ["drifts_s"])
            return {
                "tested": _laid(rows, found, ["items", "arrived_s", "labelled_s", "y", "prediction", "loss", "concepts"]),
                "alarms": alarms[["client", "round", "time_s", "item"]],
                "drifts": drifts.assign(time_s=drifts.drift_s)[["client", "round", "time_s"]],
            }

    def _table(self, name: str) -> pd.DataFrame:
        import pandas as pd

        columns, rows = journal.read(self.folder, name)
        return pd.DataFrame(rows, columns=columns)


HEAD = {"client": "client", "round": "round", "version": "version", "now_s": "time_s"}


def _laid(rows: list[dict[Any, Any]], found: list[dict[str, Array]], names: list[str], head: Mapping[str, str] = HEAD) -> Frame:
    """Return the arrays *names* of *rows*, *found* in them, laid end to end, each entry with what *head* names of the row it is from."""
    import numpy as np
    import pandas as pd

    if any(len({len(arrays[name]) for name in names}) > 1 for arrays in found):
        raise ValueError(f"{', '.join(names)} are not of one length")
    sizes = [len(arrays[names[0]]) for arrays in found]
    columns = {
        to: np.repeat(np.array([row[name] for row in rows], dtype=np.float64 if to == "time_s" else np.int64), sizes)
        for name, to in head.items()
    }
    for name in names:
        whole = np.concatenate([np.zeros(0, dtype=journal.ARRAYS[name]), *(arrays[name] for arrays in found)])
        columns[SINGULAR.get(name, name)] = whole
    return pd.DataFrame(columns)
