"""Whether two scenarios can be compared on the same luck: what of data, fleet, test part and objective is another. Runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FLEET = (
    "clients.count", "clients.compute", "clients.network", "clients.availability", "clients.ram", "clients.loading",
    "clients.failures", "clients.leaving", "transport",
)  # fmt: skip
DATA = ("data.source", "data.partition", "server.calibration_examples")
STREAMS = ("stream.arrivals", "stream.order", "stream.labels", "stream.drift", "stream.items", "stream.stored")


def unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return why the scenarios *one* and *other* (plain tables, as manifests hold them) are no pair: a reason each, with all its keys.

    >>> base = {"clients": {"count": 5}, "data": {"source": {"kind": "digits"}, "test_fraction": 0.2}}
    >>> unlike(base, {**base, "clients": {"count": 6}})
    ['another fleet (clients.count = 5, and 6)']
    >>> unlike(base, {**base, "clients": {"count": 6, "ram": {"kind": "constant"}}})
    ["another fleet (clients.count = 5, and 6; clients.ram = {'kind': 'constant'} in the second only)"]
    """
    found: list[str] = []
    for what, keys in (("other data or another split", DATA), ("another test part", ("data.test_fraction",)),
                       ("another fleet", FLEET), ("other streams", STREAMS), ("another objective", ("training.objective.kind",)),
                       ("another arithmetic", ("engine.dtype",))):  # fmt: skip
        if apart := [_said(key, _at(one, key), _at(other, key)) for key in keys if _at(one, key) != _at(other, key)]:
            found.append(f"{what} ({'; '.join(apart)})")
    kept, too = _kept_back(one), _kept_back(other)
    if kept != too:
        found.append(f"other training data (clients keep back {kept:g}, and {too:g}, of their examples to test on)")
    return found


def unlike_runs(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return why two runs, of which these are the manifests, are no pair; what no scenario says too: their data files, and where they ran.

    A run of a Flower app has no data of ours: of two apps nobody knows.
    """
    found = unlike(one["scenario"], other["scenario"])
    if one["files"] != other["files"]:
        names = sorted({name for name in {*one["files"], *other["files"]} if one["files"].get(name) != other["files"].get(name)})
        found.append(f"other data files ({', '.join(names)})")
    if one.get("hindsight", False) != other.get("hindsight", False) and not any("test part" in each for each in found):
        found.append("another test part (one of them tests on what clients trained on)")
    if one.get("ground", "") != other.get("ground", ""):
        found.append("one of them ran on real clients, whose times are a wall clock's")
    if one.get("app") != other.get("app") and ("app" in one) != ("app" in other):
        found.append("one of them is a Flower app's, whose data fedsim does not know")
    return found


def cohort(scenario: Mapping[str, Any]) -> str:
    """Return how many clients a round asks, in words, as far as the strategy's table says so; strategies around others are looked into.

    >>> cohort({"clients": {"count": 50}, "server": {"strategy": {"kind": "FedAvg", "fraction_train": 0.2}}})
    '10 of 50 clients'
    """
    count, table = int(scenario["clients"]["count"]), scenario["server"]["strategy"]
    while isinstance(inner := table.get("strategy"), Mapping):
        table = inner
    asked = table.get("clients_per_round")
    if asked is None:
        asked = max(int(count * float(table.get("fraction_train", 1.0))), int(table.get("min_train_nodes", 2)))
    return f"{min(int(asked), count):,} of {count:,} clients"


def _at(scenario: Mapping[str, Any], key: str) -> Any:
    at: Any = scenario
    for part in key.split("."):
        at = at.get(part) if isinstance(at, Mapping) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    return at  # pyright: ignore[reportUnknownVariableType]


def _said(key: str, ours: Any, theirs: Any) -> str:
    """Return the first of what is another at *key* and below, the kind before its settings, with both values."""
    names = {*ours, *theirs} if isinstance(ours, Mapping) and isinstance(theirs, Mapping) else set[str]()  # pyright: ignore[reportUnknownVariableType]
    for name in sorted(names, key=lambda name: (name != "kind", name)):  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
        if ours.get(name) != theirs.get(name):  # pyright: ignore[reportUnknownMemberType]
            return _said(f"{key}.{name}", ours.get(name), theirs.get(name))  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
    if ours is None or theirs is None:
        return f"{key} = {theirs if ours is None else ours!r:.40} in the {'second' if ours is None else 'first'} only"
    return f"{key} = {ours!r:.40}, and {theirs!r:.40}"


def _kept_back(scenario: Mapping[str, Any]) -> float:
    evaluate = scenario.get("evaluate") or {}
    keeps = evaluate.get("federated_fraction", 0.0) or _at(scenario, "training.stopping")
    return float(evaluate.get("client_test_fraction", 0.2)) if keeps else 0.0
