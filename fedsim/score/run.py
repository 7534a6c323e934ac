"""A finished (or broken, or running) run, read back from its folder, with its scores. Reads by record/, computes by the rooms beside."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.core.errors import RunError
from fedsim.core.types import Frame, Params
from fedsim.record import manifest, model
from fedsim.record.frames import Frames
from fedsim.score.continual import RECOVERY_EPS, RECOVERY_WINDOW

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from fedsim.score.fared import Fairness
    from fedsim.score.matrix import AccuracyMatrix
    from fedsim.score.noise import NoiseScale
    from fedsim.score.prequential import Running


@dataclass(frozen=True)
class Run:
    """A run folder. A run that is still going can be looked at too.

    The manifest and each table are read when they are first asked for, and stay as they were then: ``fedsim.load`` looks again.
    What is handed out is a copy, so that changing it changes nothing here.
    """

    path: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Return the manifest: scenario, seed, digests, versions, status."""
        return manifest.read(self.path)

    @cached_property
    def _frames(self) -> Frames:
        return Frames(self.path)

    @property
    def name(self) -> str:
        """Return the scenario's name."""
        return str(self.manifest["scenario"]["name"])

    @property
    def status(self) -> str:
        """Return running, done, failed, interrupted or pruned; killed, where it says running and its process is gone."""
        return manifest.status(self.manifest)

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

        Columns: message (its number), client, number (of the client's own tasks of this kind, from 0), kind (train, evaluate, ...), round,
        version (of the model it was sent), outcome (arrived, late, failed, in flight); sent_s, received_s, started_s, computed_s and
        arrived_s, moments in virtual seconds since the run began, NaN for what never happened, so that differences are durations or NaN;
        examples, steps (local ones), flops (operations); down_bytes and up_bytes (payload), down_framing_bytes and up_framing_bytes (what
        is wrapped around it, by Flower and by the protocols of links), down_resent_bytes and up_resent_bytes (how much of that was sent
        again); loss (mean per example, over its mini-batches), result (SHA-256 of what the strategy was given), failure
        (why that was an error), waited_s (seconds that its steps waited for mini-batches), batch_size (examples, as chosen by
        ``training.batch_policy``; NaN where none did: batches are then of ``training.batch_size``), cause (why its client failed, by
        ``clients.failures`` or ``clients.leaving``; such a task is late where it was never answered), stopped_s (when the client stopped
        working on it; steps and flops are what was done by then), discarded (why a late reply that missed no deadline does not count: by
        ``server.pacing`` there were ``enough``, or the round was ``abandoned``), edge_round (which of its edge's own rounds it was, from
        0; behind an edge moments and bytes are those between edge and client), down_away_s, waiting_away_s, work_away_s and up_away_s (for
        how much of the way down, of waiting, of the work and of the way up its client was away).

        On real clients NaN is also what their nodes did not tell; of a run that was killed there is what its server knew: number is -1
        there, steps and flops are 0.
        """
        return self._frames.tasks

    @property
    def clients(self) -> pd.DataFrame:
        """Return one row per client and round in which it was asked: what it took part in, what it told of itself, and what it weighed.

        Columns: round, client, version (of the model it was sent), outcome (of being asked to train: arrived, late, failed, in flight),
        examples, weight (their share of the round's), train_loss; evaluation (what came of being asked to evaluate), eval_examples, loss
        and accuracy on what the client keeps back; then every other metric of replies, those of training as ``train_...``. NaN is what was
        not told; ``record.clients.COLUMNS`` has units. Folders of before 2026-11-30 know no accuracy: ``attrs["note"]`` says so.
        """
        return self._frames.clients

    @property
    def devices(self) -> pd.DataFrame:
        """Return one row per client: client, examples (that it trains on), gflops (speed of its device, 10^9 operations a second).

        See ``record.clients.devices``.
        """
        return self._frames.devices

    @property
    def rounds(self) -> pd.DataFrame:
        """Return one row per batch of messages that the strategy waited for, with the bytes of what it sent then.

        Columns: round (from 1), kind (train, evaluate, ...), started_s and ended_s (virtual seconds since the run began), asked, arrived,
        failed and missed (messages: sent, answered in time, answered by an error, not answered in time), down_bytes and up_bytes (of these
        messages, framing included), wasted_bytes (both ways, of those that did not count), abandoned (why by ``server.pacing`` none of
        its replies counts; empty where they do).
        """
        return self._frames.rounds

    @property
    def edges(self) -> pd.DataFrame:
        """Return one row per edge and batch of messages: what passed between the server and the edge. Empty without [edges].

        Columns: round, kind (train, evaluate), edge (from 0), version (of the model that it was sent), outcome (arrived, late, failed
        where nobody behind it answered, in flight); sent_s, received_s, answered_s (when it sent its model up) and arrived_s, in virtual
        seconds, NaN for never; played (rounds among its clients), asked (clients); down_bytes and up_bytes (payload),
        down_framing_bytes and up_framing_bytes, between server and edge alone; messages (an array: the numbers of those that it sent to
        its clients).
        """
        return self._frames.edges

    def tiers(self) -> Frame:
        """Return the bytes of a run with [edges] by tier: between server and edges, and between edges and clients, by kind of message.

        Columns: tier, kind, messages (those down), and bytes: down and up (payload), down_framing, up_framing, total; wasted (of what did
        not come to anything). Without edges there is one tier, between server and clients.
        """
        from fedsim.score import spent

        return spent.tiers(self.tasks, self.edges)

    @property
    def versions(self) -> pd.DataFrame:
        """Return one row per version of the model.

        Columns: version (from 0), now_s (when it was made, in virtual seconds), merged (an array: the numbers of the messages whose
        results it took in). Of runs of before 2026-11-29, which did not record them, those that follow from their rounds.
        """
        from fedsim.score import influence

        found = self._frames.versions
        return found if len(found) else influence.told_by_rounds(self.tasks, self.rounds)

    @property
    def metrics(self) -> pd.DataFrame:
        """Return every score, a row each, in the order in which they were measured.

        Columns: round, now_s (virtual seconds since the run began), scope (who measured: central, the server's test part; federated,
        clients on what they keep back; training; controller; ``classes 0,1``), name (accuracy, loss, ...), value (accuracy is a share of
        1), down_bytes and up_bytes (sent by then, framing included).
        """
        return self._frames.metrics

    @property
    def tested(self) -> pd.DataFrame:
        """Return one row per example that a client on a stream predicted before it trained, a client's own in order.

        Columns: client, round, version (of the model received), time_s (of the test), item (its number in the client's
        stream), arrived_s, labelled_s (when its label came; inf for never), y, prediction, loss, concept (the true one). Moments are
        virtual seconds since the run began. Labels that never come are here too,
        and what was tested in tasks that came late.
        """
        return self._frames.tested

    @property
    def alarms(self) -> pd.DataFrame:
        """Return one row per signal of a client's drift detector: client, round, time_s (virtual seconds), item (in its stream)."""
        return self._frames.alarms

    @property
    def drifts(self) -> pd.DataFrame:
        """Return one row per true drift that a client lived to see: client, round (when it next trained), time_s (virtual seconds)."""
        return self._frames.drifts

    @property
    def steps(self) -> pd.DataFrame:
        """Return one row per local step that ``[monitor]`` watched, a task's own in order; empty where nothing was.

        Columns: message (its number), client, number (of the client's task), round, version, step (in the task, from 0), loss (of the
        mini-batch, before its update), gradient and update (L2 lengths over all parameters; the gradient is that which the update rule
        is given), lr, batch.
        """
        return self._frames.steps

    def noise(self) -> pd.DataFrame:
        """Return signal and noise by round: between clients, from the updates they sent; ``within_`` them, from single examples.

        Columns, and the same with ``within_``: signal (|G|^2) and trace (tr(Sigma)), both without bias, and snr. Then ``cohort`` and
        ``batch``: the noise scales so far, trace over signal, in clients and in examples: how many are worth averaging. See
        ``score.noise``.
        """
        from fedsim.score import noise

        return noise.frame(self._frames.noise, self._frames.examined)

    def noise_scale(self, since: int = 1) -> NoiseScale:
        """Return the noise scales within and between clients over the rounds from *since* on, each with an interval of 95 %.

        ``run.noise_scale().within.suggested`` is the batch size that they suggest, ``between.suggested`` the number of clients.
        """
        from fedsim.score import noise

        return noise.summary(self._frames.noise, self._frames.examined, since)

    @property
    def noises(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the estimates that ``noise`` and ``noise_scale`` are made of: between clients, one a round, and within, one a task."""
        return self._frames.noise, self._frames.examined

    @property
    def worked(self) -> pd.DataFrame:
        """Return what real nodes' processors took: message, client, cpu_s in all and work_s of the task (seconds of a processor).

        Empty where all is simulated.
        """
        return self._frames.worked

    def times(self) -> Frame:
        """Return how long each message took, phase by phase: a row each, in the order of ``tasks``.

        Columns: client, round, kind, outcome; download_s, waiting_s (for the device, or for a client's trigger), training_s (all that the
        device did), upload_s, away_s (of any of these, while its client was away: they have none of it) and total_s, in virtual seconds,
        NaN for what never happened.
        """
        from fedsim.score import spent

        return spent.phases(self.tasks)

    def stragglers(self) -> Frame:
        """Return whom each training round waited for, and what that client was at: a row a round; see ``score.stragglers``.

        Columns: round, client (<NA> where nobody was in time), waited_for (download, waiting, training, upload: the longest phase of who
        answered last; or deadline), download_s, waiting_s, training_s, upload_s, round_s, and spared_s, by how much it was later than the
        reply before it. Virtual seconds. Behind edges these are the moments between edges and their clients.
        """
        from fedsim.score.stragglers import stragglers

        return stragglers(self.tasks, self.rounds)

    def ledger(self) -> Frame:
        """Return where the bytes went: a row for each kind of message and each fate that there was.

        Columns: kind (train, evaluate, ...), fate (counted, late, failed, stream ended, cut off), messages, and bytes: down and up
        (payload), down_framing and up_framing, resent (of the framing, both ways), total; share (of all bytes, of 1); compute_s (seconds
        that clients' devices computed, of what was cut off until the end), compute_share. What was not counted is wasted.
        """
        from fedsim.score import spent

        return spent.ledger(self.tasks, float(self.manifest["virtual_s"]))

    @property
    def charged(self) -> pd.DataFrame:
        """Return what each message cost its client's device: a row each, in the order in which fates were known.

        Columns: message (its number), compute_j, down_j, up_j, idle_j (joules), grams (of CO2; NaN without an intensity). Empty unless the
        scenario has clients.energy.
        """
        return self._frames.energy

    def energy(self) -> Frame:
        """Return where the joules went: a row for each kind of message and each fate that there was; none without clients.energy.

        Columns: kind, fate (as in ``ledger``), messages; joules: compute_j (at work), down_j and up_j (receiving, sending), idle_j (while a
        message waited), total_j; share (of all joules, of 1), grams (of CO2; NaN without an intensity), wasted (whether it did not count).
        """
        from fedsim.score import spent

        return spent.energy(self.tasks, self.charged)

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
        return matrix.accuracy_matrix(metrics, self.tested, self.drifts, self.tasks, self.versions)

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
        end_s = max([float(self.manifest["virtual_s"]), *self.rounds.ended_s])
        return influence.freshness(self.tested, self.tasks, self.versions, end_s, local=stream.get("predict") == "local")

    def fairness(self) -> Fairness:
        """Return how even the run was to its clients: their scores (mean, variance, worst and best tenth, Jain, Gini), and participation.

        Scores are those of each client's last federated evaluation (accuracy, else loss), on streams of what it predicted before it
        trained; ``fairness().measure`` says which. Participation: Jain's index and Gini of how often clients were heard, the share never
        heard, and Spearman's correlations with the speed of their devices and the volume of their data. See ``score.fairness``.
        """
        from fedsim.score import fared

        return fared.fairness(self.clients, self.devices, self.tested, self.manifest)

    def weights(self) -> pd.DataFrame:
        """Return what each client weighed in the aggregation: client, tasks (that arrived), examples, share (of 1)."""
        from fedsim.score import online

        return online.weights(self.tasks)

    def weight_gini(self) -> float:
        """Return how unequal these shares are, over all clients: 0 for equal ones, near 1 where one client is all."""
        from fedsim.score import online

        return online.gini(self.weights().share.to_numpy(), int(self.manifest["scenario"]["clients"]["count"]))

    def params(self) -> Params:
        """Return the final parameters as numpy arrays. Raises RunError where there are none, or others than the run wrote."""
        return model.checked(self.path, self.manifest)

    def stored(self) -> Params:
        """Return the parameters that the folder holds, whoever wrote them. Raises RunError where there are none to be read."""
        return model.stored(self.path, self.manifest)

    def model(self, *, trust: bool = False) -> nn.Module:
        """Return the trained model as a torch module, in evaluation mode.

        Raises RunError where the model is code of its own that was recorded elsewhere, and *trust* is not given; or that
        has changed since.
        """
        return model.module(self.path, self.manifest, trust=trust)

    def series(self, name: str, scope: str = "central") -> pd.DataFrame:
        """Return one score over the run: round, now_s (virtual seconds), value, down_bytes and up_bytes (sent by then)."""
        metrics: Any = self.metrics
        return metrics[(metrics.name == name) & (metrics.scope == scope)].drop(columns=["name", "scope"])

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.status})"

    def _repr_html_(self) -> str:
        """Return the run as a notebook shows it: a small table, in the colours of the page."""
        from fedsim.score.card import card, unread

        try:
            return card(self.manifest, self.status, self.path)
        except RunError as error:
            return unread(self.path, error)


def load(path: str | Path) -> Run:
    """Return the run in folder *path*. Raises RunError when it is not a run folder."""
    run = Run(Path(path))
    _ = run.manifest
    return run
