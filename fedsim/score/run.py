"""A finished (or broken, or running) run, read back from its folder: frames, the trained model, the manifest."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.core.errors import RunError, door
from fedsim.core.machine import ALONE
from fedsim.core.types import Params
from fedsim.record import journal, manifest
from fedsim.score.continual import RECOVERY_EPS, RECOVERY_WINDOW
from fedsim.sim.rows import STREAM_ENDED

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from fedsim.score.matrix import AccuracyMatrix
    from fedsim.score.prequential import Running

MODEL_FILE = "model.safetensors"
EVENTS = ("received_s", "started_s", "computed_s", "arrived_s")
"""Columns of the table ``tasks`` that hold -1.0 for what never happened; frames hold NaN there."""
SINGULAR = {"items": "item", "concepts": "concept", "alarms": "item", "drifts_s": "drift_s"}
"""What arrays of the table ``tested`` are called where each entry is a row."""


def streams_ended(about: Mapping[str, Any]) -> bool:
    """Return whether the run that *about* tells of was done before all its rounds because every stream had ended."""
    scenario, final, stop = about["scenario"], about["final"], about["scenario"].get("stop")
    reached = final.get(stop["metric"], math.nan) if stop else math.nan
    met = stop is not None and (reached >= stop.get("at_least", math.inf) or reached <= stop.get("at_most", -math.inf))
    return about["status"] == "done" and "stream" in scenario and final.get("rounds", 0) < scenario["server"]["rounds"] and not met


def uncounted(tasks: pd.DataFrame) -> dict[str, int]:
    """Return how many client tasks did not count, by why: words of a summary; a stream's end is no failure."""
    outcomes = tasks.outcome.value_counts()
    ended = int((tasks.failure == STREAM_ENDED).sum())
    counts = {name: int(outcomes.get(name, 0)) for name in ("late", "failed", "in flight")}
    found = {**counts, "failed": counts["failed"] - ended, "came after a stream's end": ended}
    return {name: count for name, count in found.items() if count}


@dataclass(frozen=True)
class Run:
    """A run folder. Frames are read when asked for, so a run that is still going can be looked at too."""

    path: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Return the manifest: scenario, seed, digests, versions, status."""
        return manifest.read(self.path)

    @property
    def name(self) -> str:
        """Return the scenario's name."""
        return str(self.manifest["scenario"]["name"])

    @property
    def status(self) -> str:
        """Return running, done, failed or interrupted; killed, where it says running and its process is gone."""
        status = str(self.manifest["status"])
        return "killed" if status == "running" and manifest.gone(self.manifest) else status

    @property
    def digest(self) -> str:
        """Return the digest over every training task and the final parameters."""
        return str(self.manifest["digest"])

    @property
    def metrics_digest(self) -> str:
        """Return the digest over evaluations."""
        return str(self.manifest["metrics_digest"])

    @property
    def hindsight(self) -> bool:
        """Return whether the central scores are over examples that clients trained on."""
        # Folders of before 2026-11-26 do not say; there, only a source without a test part of its own gave this.
        return bool(self.manifest.get("hindsight", self.manifest["scenario"]["data"].get("test_fraction") == 0))

    @property
    def final(self) -> dict[str, Any]:
        """Return the last scores and the number of rounds."""
        return dict(self.manifest["final"])

    @property
    def tasks(self) -> pd.DataFrame:
        """Return one row per message to a client, in the order in which its fate was sealed.

        Times are virtual seconds, NaN for what never happened, so that differences of them are durations or NaN.
        """
        tasks = self._frame("tasks")
        times: Any = tasks[list(EVENTS)]
        return tasks.assign(**times.where(times >= 0))

    @property
    def rounds(self) -> pd.DataFrame:
        """Return one row per batch of messages that the strategy waited for, with the bytes of what it sent then."""
        rounds, tasks = self._frame("rounds"), self._frame("tasks")
        down = tasks.down_bytes + tasks.down_framing_bytes
        up = tasks.up_bytes + tasks.up_framing_bytes
        wasted = (down + up).where(tasks.outcome != "arrived", 0)
        sums = tasks.assign(down_bytes=down, up_bytes=up, wasted_bytes=wasted).groupby(["round", "kind", "sent_s"], sort=False)
        totals: Any = sums[["down_bytes", "up_bytes", "wasted_bytes"]].sum()
        return rounds.join(totals, on=["round", "kind", "started_s"])

    @property
    def metrics(self) -> pd.DataFrame:
        """Return every score with its round, virtual time and the bytes sent so far."""
        return self._frame("metrics")

    @property
    def tested(self) -> pd.DataFrame:
        """Return one row per example that a client on a stream predicted before it trained, a client's own in order.

        Columns: client, round, version (of the model received), time_s (of the test), item (its number in the client's
        stream), arrived_s, labelled_s, y, prediction, loss, concept (the true one). Labels that never come are here too,
        and what was tested in tasks that came late.
        """
        return self._tested(["items", "arrived_s", "labelled_s", "y", "prediction", "loss", "concepts"])

    @property
    def alarms(self) -> pd.DataFrame:
        """Return one row per signal of a client's drift detector: client, round, time_s, item."""
        found: Any = self._tested(["alarms"])
        return found[["client", "round", "time_s", "item"]]

    @property
    def drifts(self) -> pd.DataFrame:
        """Return one row per true drift that a client lived to see: client, round (in which it next trained), time_s."""
        found: Any = self._tested(["drifts_s"])
        return found.assign(time_s=found.drift_s)[["client", "round", "time_s"]]

    def prequential(self) -> pd.DataFrame:
        """Return the scores of what clients predicted before they trained: per client, mean, worst tenth, pooled.

        Beside no-change and majority; see ``score.prequential.summary``. Examples whose label never comes do not count.
        """
        from fedsim.score import online, prequential

        return prequential.summary(online.scored(self.tested))

    def prequential_curve(
        self, running: Running | None = None, *, clients: Collection[int] | None = None
    ) -> pd.DataFrame:
        """Return the same scores along virtual time, after each example: ``time_s`` and a column per score.

        *running* is ``cumulative``, ``windowed(n)`` (the default, n = 1000) or ``fading(factor)`` of
        ``score.prequential``; *clients* are those to follow, all unless given.
        """
        from fedsim.score import online, prequential

        tested = self.tested if clients is None else self.tested[self.tested.client.isin(clients)]
        return prequential.curves(online.scored(tested), running)

    def accuracy_matrix(self) -> AccuracyMatrix:
        """Return the accuracy on each group of ``evaluate.by_classes`` after each concept, with the scores that follow.

        These are average accuracy, forgetting, backward and forward transfer, and any-time accuracy.
        """
        from fedsim.score import matrix

        metrics = self.metrics
        if not metrics.scope.str.startswith(matrix.GROUP).any():
            raise RunError(f"{self.path}: has no accuracy by classes. Set evaluate.by_classes, like [[0, 1], [2, 3]], and run again.")
        return matrix.accuracy_matrix(metrics, self.tested, self.drifts, self._frame("tasks"), self.rounds)

    def detection(self, horizon_s: float = float("inf")) -> pd.DataFrame:
        """Return how each client's alarms met its true drifts (no later than *horizon_s*); the last row is over all.

        NaN of clients whose true drifts nobody told: recorded data, without ``stream.drifts_s``.
        """
        from fedsim.score import online

        drifts = self.drifts
        known = online.told(self.manifest["scenario"], drifts)
        return online.detections(self.tested, self.alarms, drifts, horizon_s, known)

    def recovery(self, window: int = RECOVERY_WINDOW, eps: float = RECOVERY_EPS) -> pd.DataFrame:
        """Return how long after each true drift the accuracy before training was back within *eps*: a row per moment.

        Accuracies are means over *window* examples; see ``score.online.recoveries``.
        """
        from fedsim.score import online

        return online.recoveries(self.tested, self.drifts, window=window, eps=eps)

    def freshness(self) -> pd.DataFrame:
        """Return how old the newest example in each client's model is, and how soon an example reaches the global model.

        The last row is over all clients; see ``score.influence.freshness``.
        """
        from fedsim.score import influence

        stream = self.manifest["scenario"].get("stream") or {}
        tasks, rounds = self._frame("tasks"), self._frame("rounds")
        end_s = max([float(self.manifest["virtual_s"]), *rounds.ended_s])
        return influence.freshness(self.tested, tasks, rounds, end_s, local=stream.get("predict") == "local")

    def weights(self) -> pd.DataFrame:
        """Return what each client weighed in the aggregation: client, tasks that arrived, examples, share."""
        from fedsim.score import online

        return online.weights(self.tasks)

    def weight_gini(self) -> float:
        """Return how unequal these shares are, over all clients: 0 for equal ones, near 1 where one client is all."""
        from fedsim.score import online

        return online.gini(self.weights().share.to_numpy(), int(self.manifest["scenario"]["clients"]["count"]))

    def params(self) -> Params:
        """Return the final parameters as numpy arrays. Raises RunError where there are none, or others than the run wrote."""
        from fedsim.learn.work import digest_of

        params = self.stored()
        content = self.manifest["model"].get("content")  # Earlier versions did not say, and a run under way does not.
        if content and digest_of(params) != content:
            raise RunError(f"{self.path / MODEL_FILE}: is not the model that this run wrote: its content is not what {manifest.FILE} says.")
        return params

    def stored(self) -> Params:
        """Return the parameters that the folder holds, whoever wrote them. Raises RunError where there are none to be read."""
        from safetensors.numpy import load_file

        path = self.path / MODEL_FILE
        if not path.is_file():
            raise RunError(f"{self.path}: holds no model (the run is {self.status}).")
        with door(f"{path}", "cannot be read:", wrong=RunError):
            stored = load_file(path)
        if lacking := [name for name in self.manifest["model"]["arrays"] if name not in stored]:
            raise RunError(f"{path}: is not the model of this run; it lacks {', '.join(lacking[:3])}.")
        return {name: stored[name] for name in self.manifest["model"]["arrays"]}

    def model(self, *, trust: bool = False) -> nn.Module:
        """Return the trained model as a torch module, in evaluation mode.

        Raises RunError where the model is code of its own that was recorded elsewhere, and *trust* is not given; or that
        has changed since.
        """
        from fedsim.core import own
        from fedsim.core.keys import Key
        from fedsim.learn.models import build, load_params

        table = dict(self.manifest["scenario"]["model"])
        about = self.manifest["model"]
        key = Key(self.manifest["seed"]).fold("model")
        kind = table.pop("kind")
        if ":" not in kind:
            folder = self.path
        else:
            folder = manifest.check_trust(self.manifest, self.path, trust=trust)
        with door(f"{self.path}: its model", "cannot be built:", wrong=RunError):
            with own.beside(folder):
                with ALONE:  # It borrows torch's global generator.
                    module = build(kind, table, tuple(about["shape"]), about["outputs"], key)
            if self.manifest["scenario"].get("engine", {}).get("dtype") == "float64":
                module = module.double()
            return load_params(module, self.params()).eval()

    def series(self, name: str, scope: str = "central") -> pd.DataFrame:
        """Return one score over the run: columns round, now_s, value, and bytes sent so far."""
        metrics: Any = self.metrics
        return metrics[(metrics.name == name) & (metrics.scope == scope)].drop(columns=["name", "scope"])

    def _tested(self, names: list[str]) -> pd.DataFrame:
        """Return arrays of the table ``tested``, laid end to end, each entry with the task that it is from."""
        import numpy as np
        import pandas as pd

        rows = self._frame("tested").to_dict("records")
        with door(f"{self.path / journal.FILE}: table tested", "cannot be read:", wrong=RunError):
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

    def _frame(self, table: str) -> pd.DataFrame:
        import pandas as pd

        columns, rows = journal.read(self.path, table)
        return pd.DataFrame(rows, columns=columns)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.status})"


def save_model(folder: Path, params: Params) -> None:
    """Write *params* as the model in *folder*, atomically. Raises whatever the system or safetensors raise."""
    import numpy as np
    from safetensors.numpy import save

    # safetensors writes the buffer as it lies: an array in Fortran order would read back scrambled.
    manifest.whole(folder / MODEL_FILE, save({name: np.asarray(a, order="C") for name, a in params.items()}))


def load(path: str | Path) -> Run:
    """Return the run in folder *path*. Raises RunError when it is not a run folder."""
    run = Run(Path(path))
    _ = run.manifest
    return run
