"""What the tables of a run are, column by column, with units: words for whoever reads an export without this program."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedsim.core.types import Frame
from fedsim.record.clients import COLUMNS as CLIENTS
from fedsim.score.run import Run

Meaning = tuple[str, str]
"""A unit, empty where there is none, and what a column says."""
SECONDS, BYTES, EXAMPLES = "s (virtual, since the run began)", "B", "examples"
TABLES: dict[str, Callable[[Run], Frame]] = {
    "tasks": lambda run: run.tasks, "rounds": lambda run: run.rounds, "versions": lambda run: run.versions,
    "metrics": lambda run: run.metrics, "clients": lambda run: run.clients, "devices": lambda run: run.devices,
    "tested": lambda run: run.tested, "alarms": lambda run: run.alarms, "drifts": lambda run: run.drifts, "steps": lambda run: run.steps,
    "noise": lambda run: run.noises[0], "examined": lambda run: run.noises[1], "worked": lambda run: run.worked,
    "energy": lambda run: run.charged, "edges": lambda run: run.edges,
}  # fmt: skip
SHARED: dict[str, Meaning] = {
    "message": ("", "the message, numbered in the order of sending"),
    "client": ("", "the client, from 0"),
    "number": ("", "counts the client's own tasks of its kind, from 0; -1 where it never began"),
    "kind": ("", "Flower's message type"),
    "round": ("", "the server's round, from 1"),
    "version": ("", "version of the model that was sent"),
    "now_s": (SECONDS, "when"),
    "time_s": (SECONDS, "when"),
    "started_s": (SECONDS, "when it began"),
    "arrived_s": (SECONDS, "when the reply was at the server"),
    "ended_s": (SECONDS, "when it ended"),
    "examples": (EXAMPLES, "how many it is of"),
    "loss": ("loss", "mean loss per example"),
    "batch": (EXAMPLES, "size of the mini-batch"),
    "item": ("", "number of the example in the client's stream"),
    "signal": ("loss^2 per parameter unit^2", "estimate of |G|^2, the squared length of the mean gradient or update"),
    "trace": ("as signal", "estimate of tr(Sigma), the noise about that mean"),
    "down_bytes": (BYTES, "sent to clients"),
    "up_bytes": (BYTES, "sent by clients"),
}
OWN: dict[str, dict[str, Meaning]] = {
    "clients": CLIENTS,
    "tasks": {
        "outcome": ("", "arrived, late (or never answered), failed, in flight (the run ended first)"),
        "sent_s": (SECONDS, "when the message was sent"),
        "received_s": (SECONDS, "when it was at the client"),
        "started_s": (SECONDS, "when the client began to work on it"),
        "computed_s": (SECONDS, "when the answer was ready"),
        "steps": ("local steps", "how many it trained"),
        "flops": ("floating-point operations", "what it took"),
        "down_bytes": (BYTES, "the message, framing apart"),
        "down_framing_bytes": (BYTES, "what is wrapped around it, by Flower and by the protocols of links, and answers to the reply"),
        "up_bytes": (BYTES, "the reply, framing apart"),
        "up_framing_bytes": (BYTES, "what is wrapped around that"),
        "result": ("", "SHA-256 of what the strategy was given"),
        "failure": ("", "why it was given an error"),
        "waited_s": ("s (virtual)", "how long its steps waited for mini-batches"),
        "batch_size": (EXAMPLES, "what the client's batch policy chose; NaN without one: then training.batch_size holds"),
        "down_resent_bytes": (BYTES, "how much of the framing down was sent again, lost on the way before"),
        "cause": ("", "why its client failed: a kind of clients.failures, or that it left; empty for others"),
        "stopped_s": (SECONDS, "when its client stopped working on it; steps and flops are what was done by then"),
        "discarded": ("", "why a late reply does not count that missed no deadline: its server had enough, or abandoned the round"),
        "up_resent_bytes": (BYTES, "how much of the framing up was sent again, lost on the way before"),
        "edge_round": ("", "which of its edge's own rounds it was, from 0; moments and bytes are then those on its client's link"),
        "down_away_s": ("s (virtual)", "for how much of the way down its client was away: that paused, or had not begun"),
        "waiting_away_s": ("s (virtual)", "the same of waiting there"),
        "work_away_s": ("s (virtual)", "the same of the work"),
        "up_away_s": ("s (virtual)", "the same of the way up"),
    },
    "edges": {
        "edge": ("", "the edge, from 0"),
        "outcome": ("", "arrived, late, failed (nobody behind it answered), in flight (the run ended first)"),
        "sent_s": (SECONDS, "when the server sent the model"),
        "received_s": (SECONDS, "when the edge had it"),
        "answered_s": (SECONDS, "when the edge sent its own model up"),
        "arrived_s": (SECONDS, "when that was at the server"),
        "played": ("rounds", "how many the edge played among its clients"),
        "asked": ("clients", "how many of its clients it asked in each"),
        "down_bytes": (BYTES, "from the server to the edge, framing apart"),
        "down_framing_bytes": (BYTES, "what is wrapped around it, and answers to what came up"),
        "up_bytes": (BYTES, "from the edge to the server, framing apart"),
        "up_framing_bytes": (BYTES, "what is wrapped around that"),
        "messages": ("", "numbers of the messages that it sent to its clients"),
    },
    "rounds": {
        "asked": ("messages", "how many were sent"),
        "arrived": ("messages", "how many were answered in time"),
        "failed": ("messages", "how many were answered by an error"),
        "missed": ("messages", "how many were not answered in time, or discarded"),
        "abandoned": ("", "why nothing of it counts; empty where it does"),
        "wasted_bytes": (BYTES, "both ways, for those that did not count"),
        "down_bytes": (BYTES, "sent to clients, framing included"),
        "up_bytes": (BYTES, "sent by clients, framing included"),
    },
    "versions": {
        "version": ("", "the version of the model, from 0"),
        "merged": ("", "numbers of the messages whose results it took in"),
    },
    "metrics": {
        "scope": ("", "central (the server's test part), federated (clients' own), training, controller, or by classes"),
        "name": ("", "which score"),
        "value": ("as its name says", "the score: accuracy is a share of 1"),
        "down_bytes": (BYTES, "sent to all clients by then, framing included"),
        "up_bytes": (BYTES, "sent by all clients by then, framing included"),
    },
    "devices": {"examples": (EXAMPLES, "how many it trains on"), "gflops": ("GFLOP/s", "effective speed of its device")},
    "tested": {
        "arrived_s": (SECONDS, "when the example came to the client"),
        "labelled_s": (SECONDS, "when its label came; infinite for never"),
        "y": ("", "its label"),
        "prediction": ("", "what was predicted before training; -1 is no answer"),
        "concept": ("", "its true concept, which no client knows"),
        "loss": ("loss", "of the prediction"),
    },
    "steps": {
        "step": ("", "which of the task's steps, from 0"),
        "gradient": ("L2 length", "of the gradient that the update rule is given"),
        "update": ("L2 length", "of the step"),
        "lr": ("", "learning rate"),
    },
    "noise": {
        "clients": ("clients", "how many updates it is made of"),
        "counted": ("clients", "how many of equal weight that is as good as"),
    },
    "energy": {
        "compute_j": ("J", "what the device drew at work on the task"),
        "down_j": ("J", "while it received the message"),
        "up_j": ("J", "while it sent the reply"),
        "idle_j": ("J", "while the message waited, or the task for its mini-batches"),
        "grams": ("g of CO2", "what those joules cost; NaN where no intensity is given"),
    },
    "worked": {
        "cpu_s": ("s (of a processor)", "what the message took in all"),
        "work_s": ("s (of a processor)", "what its task took"),
    },
}  # fmt: skip


def meanings(table: str, frame: Frame) -> Mapping[str, Meaning]:
    """Return unit and meaning of each column of a *table*; what is known of no other is a metric that clients' replies had."""
    metric = ("as its name says", "a metric of this name in clients' replies")
    return {str(name): OWN.get(table, {}).get(str(name)) or SHARED.get(str(name)) or metric for name in frame.columns}
