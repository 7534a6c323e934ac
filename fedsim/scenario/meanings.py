"""What the keys of a scenario's sections mean, a line each, where the schema does not say it beside their types."""

from __future__ import annotations

from typing import get_args, get_origin

from pydantic import BaseModel

KEYS: dict[str, dict[str, str]] = {
    "Scenario": {
        "name": "What the scenario, and the folder of its run, is called.",
        "seed": "What all that is drawn at random follows from.",
        "data": "Where the examples come from and how they are shared out.",
        "clients": "How many clients, and their devices, links, availability and memories.",
        "stream": "When clients get their examples; at once, and again and again, unless given.",
        "model": "The model that is trained.",
        "training": "What a client does with one message.",
        "server": "Which strategy aggregates, and for how long.",
        "codec": "What travels in the place of plain arrays; these, unless given.",
        "evaluate": "When the model is scored, and on what.",
        "stop": "When the run ends before its last round: it has learned enough, or time or bytes are spent.",
        "monitor": "What is watched of training; nothing unless given.",
        "transport": "What Flower's own processes add to links and devices; nothing unless given.",
        "engine": "How the numbers are computed.",
    },
    "Data": {
        "source": "Where the examples come from.",
        "partition": "How they are shared out among the clients; leave it out where the source makes each client's itself.",
        "test_fraction": "The share of the examples that the server tests on; the source's test part, or a fifth, unless given.",
    },
    "Drift": {
        "change": "What drift does to examples or labels.",
        "schedule": "When it does so (the learning rate's schedule is training.schedule: 'fedsim list lr_schedule').",
        "onset": "For which clients, and when for each.",
    },
    "Stream": {
        "arrivals": "When examples come.",
        "order": "In which order they come.",
        "labels": "When the label of an example comes, and how many never do.",
        "drift": "What changes in the streams, when, and for whom; nothing unless given.",
        "drifts_s": "When recorded data are known to drift, for scoring alarms: virtual times for all clients, or a table by client.",
        "items": "How many examples arrive at a client; all that it holds unless given.",
        "stored": "How many of them it has at time 0.",
        "trigger": "When a client that has a message trains.",
        "predict": "With which model a client predicts what arrives: the one it received, or its own that it trained last.",
        "weight": "What a client's update counts for: examples trained on, seen so far, or held.",
    },
    "Clients": {
        "count": "How many clients there are.",
        "compute": "How fast each client's device computes.",
        "network": "How fast its link is, down and up.",
        "availability": "When it is there.",
        "replay": "Which examples of its stream it remembers.",
        "detector": "How it notices drift.",
        "reaction": "What it does then.",
    },
    "Fleet": {
        "name": "What the fleet is called, and with an app's name the folder of its run.",
        "seed": "What all that is drawn at random follows from.",
        "clients": "How many clients, and their devices, links and availability.",
        "transport": "What Flower's own processes add to links and devices; nothing unless given.",
        "engine": "How the app's messages are computed.",
    },
    "FleetClients": {
        "count": "How many clients there are.",
        "compute": "How fast each client's device computes.",
        "network": "How fast its link is, down and up.",
        "availability": "When it is there.",
    },
    "Energy": {"kind": "What a device draws while it computes, sends, receives and waits."},
    "Schedule": {"kind": "How the rate goes with time."},
    "Training": {
        "steps": "How many mini-batches a task trains on, in the place of epochs.",
        "batch_size": "How many examples a mini-batch has; 'full' is all that the client has.",
        "drop_last": "Whether what is left of an epoch after its full mini-batches is left out; a smaller one is made of it unless given.",
        "optimizer": "How a gradient becomes an update; its lr is the learning rate.",
        "clipping": "What becomes of a gradient before that; nothing unless given.",
        "objective": "The loss, and the scores beside it; label_smoothing and class_weights are settings of 'classification'.",
        "rehearsal": "How remembered examples train along with new ones, on streams.",
        "algorithm": "The federated method around a strategy that averages; that of the strategy alone unless given.",
        "stopping": "When a task ends before its last epoch; never unless given.",
        "schedule": "How the learning rate goes (drift has a schedule too, stream.drift.schedule: 'fedsim list schedule').",
        "scale_with_batch": "How the learning rate goes with the size of a batch; not at all unless given.",
        "mix": "Mini-batches with shares from several sources; as they come unless given.",
        "curriculum": "Easy examples first; all at once unless given.",
        "bucket": "Mini-batches of sequences of like length; as they come unless given.",
    },
    "Server": {
        "strategy": "The Flower strategy that chooses clients and aggregates.",
        "rounds": "How many rounds there are at most.",
        "round_timeout_s": "After how many virtual seconds a round goes on without those who have not answered.",
        "controller": "What changes clients' learning rate by how a score goes; nothing unless given.",
    },
    "Codec": {"down": "What travels to the clients.", "up": "What travels back."},
    "Evaluate": {
        "every": "How many rounds from one central evaluation to the next.",
        "federated_fraction": "The share of clients that also score the model, on examples that they keep back.",
        "by_classes": "Groups of classes to score apart, like [[0, 1], [2, 3]].",
        "client_test_fraction": "The share of its examples that a client keeps back for that.",
    },
    "Engine": {
        "device": "Where it is computed; 'auto' is a GPU where there is one and a rule of sizes says that it is the faster.",
        "dtype": "What parameters are kept and sent in; float64 doubles the bytes of every message.",
        "workers": "How many processes compute; more pay when a run takes longer than a minute.",
        "executor": "What computes; this process, or processes where there are several workers, unless given.",
        "chunk": "How many clients are trained at once at most; by the size of the model unless given.",
    },
}
"""By class of the schema, then by key."""


def meaning(section: type[BaseModel], key: str) -> str:
    """Return what *key* of *section* means; nothing where nobody says.

    >>> from fedsim.scenario.schema import Clients
    >>> meaning(Clients, "count")
    'How many clients there are.'
    """
    return section.model_fields[key].description or KEYS.get(section.__name__, {}).get(key, "")


def below(section: type[BaseModel], key: str) -> type[BaseModel] | None:
    """Return the section that stands at *key* of *section*; None where a value or a kind does."""
    hint = section.model_fields[key].annotation
    hints = () if get_origin(hint) is dict else (hint, *get_args(hint))
    return next((each for each in hints if isinstance(each, type) and issubclass(each, BaseModel)), None)
