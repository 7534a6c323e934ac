"""A reader's own kinds of everything else: whatever their methods raise or answer, the line names the kind and the method.

That right answers are used is in ``test_every_noun.py``.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedsim.core.errors import FedsimError
from fedsim.cost.availability import availabilities
from fedsim.data.stream.labelling import labellings
from fedsim.preview import preview
from fedsim.scenario.load import load

OWN = """
import numpy as np
from fedsim.cost.availability import availabilities
from fedsim.cost.compute import computes
from fedsim.cost.network import networks
from fedsim.data.partition import Partition, partitions
from fedsim.data.stream.arrivals import arrivals as all_arrivals
from fedsim.data.stream.change import changes
from fedsim.data.stream.drift import onsets, schedules
from fedsim.data.stream.labelling import labellings
from fedsim.data.stream.order import orders
from fedsim.data.stream.trigger import triggers
from fedsim.client.detectors import detectors
from fedsim.client.reactions import reactions
from fedsim.data.replay import replays
from fedsim.learn.rehearsal import rehearsals

def last(value, new):
    value = np.array(value, dtype=np.float64)
    value[-1:] = new
    return value

ANSWERS = {
    "none": lambda v: None, "text": lambda v: "x", "nan": lambda v: last(v, np.nan) if np.ndim(v) else np.nan,
    "negative": lambda v: last(v, -1.0) if np.ndim(v) else -1.0, "short": lambda v: v[:-1], "long": lambda v: np.append(v, v[-1]),
    "endless": lambda v: np.inf, "numbers": lambda v: np.ones(len(v)), "past": lambda v: -1.0, "one of two": lambda v: v[0],
    "far": lambda v: (np.append(v[0][:-1], 10**6), v[1]), "backwards": lambda v: np.array(v)[::-1], "half": lambda v: (v[0][:-1], v[1]),
    "a list": lambda v: list(v), "early": lambda v: v - 2.0, "float32": lambda v: np.float32(v), "whole": lambda v: int(v),
    "fewer": lambda v: (v[0], v[1][:-1]), "flat": lambda v: (v[0], [g.flatten() for g in v[1]]), "two losses": lambda v: (v[1][0], v[1]),
    "no items": lambda v: {}, "others": lambda v: v | {"items": v["items"] + 10**6}, "objects": lambda v: v | {"items": np.array([None])},
    "strange": lambda v: type(v)(v.slots, v.items + 10**6, v.weights), "weightless": lambda v: type(v)(v.slots, v.items, v.weights[:-1]),
    "two needs": lambda v: {"losses", "features"},
}

class Wrong:
    def __init__(self, right, method, answer):
        self.right, self.method, self.answer = right, method, answer
    def __getattr__(self, name):
        value = getattr(vars(self)["right"], name)
        if name != self.method:
            return value
        if not callable(value):
            return self.other(value)
        return lambda *given: self.written(given) if self.answer == "writes" else self.other(value(*given))
    def written(self, given):
        for each in given:
            if hasattr(each, "x"):
                each.x[:] = 0
            elif isinstance(each, dict):
                each["items"][:] = 0
            elif isinstance(each, np.ndarray):
                each[:] = 0
    def other(self, value):
        if self.answer == "raises":
            raise KeyError("boo")
        return ANSWERS[self.answer](value)

def arrivals(method, answer, key, find, stamps):
    return Wrong(all_arrivals.call(all_arrivals.get("constant", at=""), {"per_s": 1.0}, key=key, find=find, stamps=stamps), method, answer)
def order(method, answer, key, outputs):
    return Wrong(orders.call(orders.get("shuffled", at=""), {}, key=key, outputs=outputs), method, answer)
def labels(method, answer, key):
    return Wrong(labellings.call(labellings.get("constant", at=""), {"delay_s": 1.0}, key=key), method, answer)
def change(method, answer, key, outputs, shape, source):
    right = changes.call(changes.get("swap_labels", at=""), {"pairs": [[0, 1]]}, key=key, outputs=outputs, shape=shape, source=source)
    return Wrong(right, method, answer)
def schedule(method, answer):
    return Wrong(schedules.call(schedules.get("abrupt", at=""), {"at_s": [5.0]}), method, answer)
def onset(method, answer, key):
    return Wrong(onsets.call(onsets.get("synchronous", at=""), {}, key=key), method, answer)
def compute(method, answer, key):
    return Wrong(computes.call(computes.get("constant", at=""), {"gflops": 5.0}, key=key), method, answer)
def network(method, answer, key):
    return Wrong(networks.call(networks.get("constant", at=""), {"up_mbps": 5.0, "down_mbps": 5.0}, key=key), method, answer)
def availability(method, answer, key):
    return Wrong(availabilities.call(availabilities.get("onoff", at=""), {"mean_on_s": 5.0, "mean_off_s": 5.0}, key=key), method, answer)
def trigger(method, answer):
    return Wrong(triggers.call(triggers.get("count", at=""), {"examples": 3}), method, answer)
def detector(method, answer):
    return Wrong(detectors.call(detectors.get("ddm", at=""), {}), method, answer)
def replay(method, answer, outputs, example_bytes):
    right = replays.call(replays.get("prioritised", at=""), {"capacity": 9}, outputs=outputs, example_bytes=example_bytes)
    return Wrong(right, method, answer)
class ByGradients:
    def __init__(self, right):
        self.right = right
    def __getattr__(self, name):
        if name in ("losses", "right"):
            raise AttributeError(name)
        return getattr(vars(self)["right"], name)
    def gradients(self, step, work):
        loss = step.loss()
        return loss, step.gradients(loss)
def rehearsal(method, answer):
    right = rehearsals.call(rehearsals.get("der", at=""), {})
    return Wrong(ByGradients(right) if method == "gradients" else right, method, answer)
def reaction(method, answer):
    return Wrong(reactions.call(reactions.get("adapt", at=""), {"buffer": "shrink", "lr_factor": 2.0}), method, answer)

def partition(labels, clients, answer):
    right = Partition.of(np.arange(len(labels)) % clients, clients)
    order, offsets = right.order.copy(), right.offsets.copy()
    if answer == "twice": order[:] = order[0]
    if answer == "fewer": offsets = offsets[:-1]
    if answer == "beyond": offsets[-1] += 9
    if answer == "below": order[0] = -1
    if answer == "lists": order = list(map(str, order))
    if answer == "empty": offsets[1] = 0
    if answer == "writes": labels[:] = 0
    return Partition(order, offsets)
"""

STREAM = {"stream.arrivals": {"kind": "constant", "per_s": 1.0}}
DRIFT = {"stream.drift": {"change": {"kind": "swap_labels", "pairs": [[0, 1]]}, "schedule": {"kind": "abrupt", "at_s": [5.0]}}}
MEMORY = {"clients.replay": {"kind": "reservoir", "capacity": 9}}
ALARMS = {"clients.detector": {"kind": "page_hinkley", "min_instances": 2, "threshold": 0.2, "only_worse": False}}
PLACES: dict[str, tuple[str, dict[str, Any]]] = {
    "arrivals": ("stream.arrivals", {}), "order": ("stream.order", STREAM), "labels": ("stream.labels", STREAM),
    "change": ("stream.drift.change", STREAM | DRIFT), "schedule": ("stream.drift.schedule", STREAM | DRIFT),
    "onset": ("stream.drift.onset", STREAM | DRIFT), "compute": ("clients.compute", {}), "network": ("clients.network", {}),
    "availability": ("clients.availability", {}), "trigger": ("stream.trigger", STREAM), "detector": ("clients.detector", STREAM),
    "replay": ("clients.replay", STREAM | {"stream.trigger": {"kind": "count", "examples": 9}}),
    "rehearsal": ("training.rehearsal", STREAM | MEMORY | {"stream.trigger": {"kind": "count", "examples": 9}}),
    "reaction": ("clients.reaction", STREAM | MEMORY | ALARMS | {"stream.trigger": {"kind": "count", "examples": 9}}),
}  # fmt: skip
"""Where each noun stands in a scenario, and what it needs there."""

WRONG = {
    ("arrivals", "times"): ["raises", "none", "text", "nan", "negative", "long", "backwards"],
    ("order", "items"): ["raises", "none", "one of two", "far", "half"], ("order", "tasks"): ["none", "text"],
    ("labels", "times"): ["raises", "none", "nan", "short", "early", "writes"],
    ("change", "alter"): ["raises", "none", "writes"], ("change", "concepts"): ["none", "negative"],
    ("schedule", "amounts"): ["raises", "none", "nan", "negative", "short"], ("schedule", "changes_s"): ["raises", "none", "text"],
    ("onset", "begins_s"): ["raises", "none", "text", "nan"],
    ("compute", "seconds"): ["raises", "none", "text", "nan", "negative", "endless"],
    ("network", "down_s"): ["raises", "none", "nan", "negative"], ("network", "up_s"): ["raises", "text", "endless"],
    ("availability", "available"): ["raises", "none", "numbers", "short"],
    ("availability", "next_change"): ["raises", "none", "nan", "past"],
    ("trigger", "ready_s"): ["raises", "none", "text", "nan", "past"],
    ("detector", "feed"): ["raises", "none", "one of two"], ("detector", "start"): ["none"],
    ("replay", "add"): ["raises", "none", "no items", "others", "objects", "writes"], ("replay", "draw"): ["none", "strange", "weightless"],
    ("replay", "update"): ["none", "writes"], ("replay", "held"): ["text", "nan"], ("replay", "capacity"): ["none", "negative"],
    ("replay", "needs"): ["text", "two needs"], ("replay", "candidates"): ["none"], ("replay", "empty"): ["none"],
    ("rehearsal", "way"): ["none"], ("rehearsal", "replayed"): ["raises", "none", "negative"], ("rehearsal", "beside"): ["one of two"],
    ("rehearsal", "begin"): ["raises"], ("rehearsal", "gradients"): ["raises", "none", "one of two", "fewer", "flat", "two losses"],
    ("rehearsal", "end"): ["none", "text"], ("reaction", "keep_share"): ["none", "negative"],
    ("reaction", "lr_scale"): ["raises", "none", "short", "negative"], ("reaction", "replay_share"): ["text", "negative"],
    ("reaction", "tell"): ["none"],
}  # fmt: skip
CASES = [(noun, method, answer) for (noun, method), answers in WRONG.items() for answer in answers]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Return a function of (noun, method, answer) that gives a scenario with that fault, beside OWN."""
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)

    def table(noun: str, method: str, answer: str) -> dict[str, Any]:
        place, around = PLACES[noun]
        some = {"server.strategy": {"kind": "FedAvg", "clients_per_round": 2, "min_available_nodes": 4}} if noun == "availability" else {}
        return tiny({"server.rounds": 3, **around, **some, place: {"kind": f"mine:{noun}", "method": method, "answer": answer}})

    return table


@pytest.mark.parametrize(("noun", "method", "answer"), CASES, ids=lambda word: str(word))
def test_a_wrong_answer_is_named(noun: str, method: str, answer: str, mine: Callable[..., dict[str, Any]], go: Any) -> None:
    """Exception or answer of another form: one line with the place in the file, the kind, and the method that gave it."""
    with pytest.raises(FedsimError) as raised:
        go(mine(noun, method, answer))
    line = str(raised.value)

    assert f"{PLACES[noun][0]}.kind = 'mine:{noun}': its {method}" in line and "defect of fedsim" not in line, line
    assert answer != "raises" or "KeyError: 'boo'" in line


@pytest.mark.parametrize("answer", ["twice", "fewer", "beyond", "below", "lists", "writes"])
def test_a_partition_is_looked_at(answer: str, mine: Callable[..., dict[str, Any]], tiny: Callable[..., dict[str, Any]]) -> None:
    """Each example goes to one client at most, and there are as many clients as were asked for."""
    mine("compute", "", "")
    with pytest.raises(
        FedsimError, match=r"data.partition.kind = 'mine:partition': (gives |raised ValueError: assignment destination is read-only)"
    ):
        preview(load(tiny({"data.partition": {"kind": "mine:partition", "answer": answer}})))


def test_numpys_numbers_are_numbers(mine: Callable[..., dict[str, Any]], go: Any) -> None:
    """A float32 of a device is a float in the journal, which reads back."""
    run = go(mine("compute", "seconds", "float32"))

    assert run.status == "done" and len(run.tasks)


def test_nothing_is_seen_without_the_table(monkeypatch: pytest.MonkeyPatch, mine: Callable[..., dict[str, Any]], go: Any) -> None:
    """Without its checks the door lets a wrong answer through, and somebody else is blamed: the law above rejects that."""
    monkeypatch.setattr(labellings, "gives", replace(labellings.gives, answers={}))
    with pytest.raises(FedsimError) as raised:
        go(mine("labels", "times", "early"))

    assert "stream.labels" not in str(raised.value)


def test_what_an_installed_package_registers_is_looked_at_too(monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., dict[str, Any]]) -> None:
    """A kind by a plain name that returns something else is refused by what was wanted, as one of the reader's own is."""
    monkeypatch.setitem(availabilities._entries, "strange", lambda key: object())  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(FedsimError, match=r"clients.availability.kind = 'strange': returned a object, not an Availability"):
        preview(load(tiny({"clients.availability": {"kind": "strange"}})))
