"""What was run, in a sentence or two; and the question that its file asks, with what it expects. Reads the manifest only."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from fedsim.report.drawing import Drawing
from fedsim.report.figures import Seen

ASKED = ("question", "expected", "reference")


def sentence(about: Mapping[str, Any]) -> str:
    """Return what the run of the manifest *about* was.

    >>> about = {"clients": {"count": 50}, "data": {"source": {"kind": "digits"}, "partition": {"kind": "dirichlet", "alpha": 0.3}},
    ...     "model": {"kind": "mlp"}, "training": {"epochs": 3, "batch_size": 10, "optimizer": {"kind": "sgd", "lr": 0.3}},
    ...     "server": {"strategy": {"kind": "FedAvg", "fraction_train": 0.2}, "rounds": 30}}
    >>> for part in sentence({"scenario": about, "model": {"parameters": 4810}}).split("; "): print(part)
    50 clients hold digits (dirichlet, alpha 0.3). FedAvg (fraction_train 0.2) asks them for 30 rounds
    each trains an mlp of 4,810 parameters for 3 epochs in batches of 10, by sgd (lr 0.3).
    """
    scenario = about["scenario"]
    clients, training, server = scenario["clients"], scenario["training"], scenario["server"]
    partition = scenario["data"].get("partition")
    held = f" ({_kind(partition)})" if partition else ""
    comes = "get" if "stream" in scenario else "hold"
    over_time = ", over time" if "stream" in scenario else ""
    work = f"{training['epochs']:g} epoch{'s' * (training['epochs'] != 1)}" if training.get("epochs") else f"{training.get('steps')} steps"
    batch = "all examples at once" if training["batch_size"] == "full" else f"batches of {training['batch_size']}"
    kind = str(about_kind(scenario["model"]))
    many, rounds = clients["count"] != 1, server["rounds"]
    extra = ""
    if (algorithm := training.get("algorithm")) and algorithm["kind"] != "fedavg":
        extra = f", with {_named(algorithm)}"
    source, article = _short(scenario["data"]["source"]["kind"]), "an" if kind[:1] in "aeiou" or kind == "mlp" else "a"
    return (
        f"{clients['count']:,} client{'s' * many} {comes if many else comes + 's'} {source}{held}{over_time}."
        f" {_named(server['strategy'])} asks them for {rounds:,} round{'s' * (rounds != 1)}; each trains {article} {kind} of"
        f" {about['model']['parameters']:,} parameters for {work} in {batch}, by {_named(training['optimizer'])}{extra}."
    )


def introduced(seen: Seen, _: Drawing) -> str:
    """Return the sentence, and what the file asks and expects, where it says so."""
    asked: Mapping[str, str] = seen.about.get("asked") or {}
    rows = "".join(f"<dt>{name.capitalize()}</dt><dd>{escape(str(asked[name]))}</dd>" for name in ASKED if name in asked)
    return f"<p class=lead>{escape(sentence(seen.about))}</p>{f'<dl class=asked>{rows}</dl>' if rows else ''}"


def tells(seen: Seen) -> bool:
    """Return whether the manifest is that of a scenario; of an app its own sections tell."""
    return {"clients", "data", "model", "training", "server"} <= set(seen.about.get("scenario", {}))


def about_kind(table: Mapping[str, Any]) -> str:
    """Return the last part of the kind that *table* names."""
    return _short(str(table["kind"]))


def _short(kind: str) -> str:
    return kind.rpartition(":")[2]


def _named(table: Mapping[str, Any]) -> str:
    settings = [f"{name} {_value(value)}" for name, value in table.items() if name != "kind"]
    return _short(str(table["kind"])) + (f" ({', '.join(settings[:3])})" if settings else "")


def _kind(table: Mapping[str, Any]) -> str:
    return ", ".join([_short(str(table["kind"])), *(f"{name} {_value(value)}" for name, value in table.items() if name != "kind")][:4])


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return _short(str(value.get("kind", "...")))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    return f"{value:g}" if isinstance(value, float) else str(value)
