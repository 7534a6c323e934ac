"""What check says goes with what, and what clients keep: the bytes that a run's clients really hold at its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.preview import Preview, preview
from fedsim.scenario.load import load
from fedsim.scenario.together import touched
from fedsim.sim.programs import Programs

Tiny = Callable[..., dict[str, Any]]
Go = Callable[..., fedsim.Run]
MLP = {"model": {"kind": "mlp", "hidden": [8]}, "server.strategy": {"kind": "FedAvg", "clients_per_round": 3}}


@pytest.fixture
def held(go: Go, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], dict[int, dict[str, int]]]:
    """Return ``held(overrides)``: by client that trained, the bytes that it holds at the end of the run, by part."""
    made, make = list[Programs](), Programs.__init__

    def seen(self: Programs, *given: Any) -> None:
        make(self, *given)
        made.append(self)

    monkeypatch.setattr(Programs, "__init__", seen)

    def of(overrides: dict[str, Any]) -> dict[int, dict[str, int]]:
        go(overrides)
        return {
            client: {name: sum(array.nbytes for array in part.values()) for name, part in kept.parts.items() if part}
            for client, kept in made[-1]._kept.items() if kept.trained
        }  # fmt: skip

    return of


def foretold(tiny: Tiny, overrides: dict[str, Any]) -> Preview:
    return preview(load(tiny(overrides)))


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ({"training.algorithm": {"kind": "scaffold"}}, {"algorithm"}),
        ({"training.optimizer": {"kind": "adam", "lr": 0.01, "state": "keep"}}, {"optimizer"}),
        ({"training.algorithm": {"kind": "feddyn"}, "training.optimizer": {"kind": "sgd", "lr": 0.1}}, {"algorithm"}),
        ({"model": {"kind": "mlp", "hidden": [8], "norm": "batch"}, "server.statistics": "keep_local"}, {"statistics"}),
    ],
)  # fmt: skip
def test_what_clients_keep_is_foretold_to_the_byte(more: dict[str, Any], parts: set[str], tiny: Tiny, held: Any) -> None:
    """By part, and for all: what is foretold from shapes is what each client that trained in the run holds, and those are as many."""
    overrides = {**MLP, **more}
    figures, found = foretold(tiny, overrides).plain(), held(overrides)

    assert parts == figures["kept_bytes_per_client"].keys()
    for each in found.values():
        assert figures["kept_bytes_per_client"] == each
    assert len(found) == figures["clients_touched"] < 6
    assert sum(sum(each.values()) for each in found.values()) == figures["kept_bytes"]


def test_a_memory_holds_no_more_than_is_foretold(tiny: Tiny, held: Any) -> None:
    """Positions, labels and times of as many examples as a memory holds: a client's is within what is foretold, and above half of it."""
    overrides = {
        "stream": {"arrivals": {"kind": "constant", "per_s": 2.0}, "trigger": {"kind": "count", "examples": 5}},
        "clients.replay": {"kind": "reservoir", "capacity": 20}, "server.rounds": 20,
    }  # fmt: skip
    told, found = foretold(tiny, overrides), held(overrides)

    assert {"replay"} == told.keeps.each.keys() and () == told.keeps.unknown
    assert all(told.keeps.each["replay"] / 2 < each["replay"] <= told.keeps.each["replay"] for each in found.values()) and found
    assert "up to 20 examples, by reservoir" in told.plain()["together"]["replay"]


def test_nothing_is_said_of_what_is_not_there(tiny: Tiny) -> None:
    """A plain scenario keeps nothing, and has nothing to say."""
    figures = foretold(tiny, {}).plain()

    assert ({}, {}, 0, []) == tuple(figures[name] for name in ("together", "kept_bytes_per_client", "kept_bytes", "kept_unknown"))


def test_clients_that_train_are_as_many_as_luck_says() -> None:
    """Of 1,000 clients of whom each of 200 rounds asks 10 at random, as many train as a drawing of 200 such rounds finds."""
    import numpy as np

    luck = np.random.default_rng(7)
    drawn = [len(set(np.concatenate([luck.choice(1000, 10, replace=False) for _ in range(200)]))) for _ in range(20)]

    assert np.mean(drawn) == pytest.approx(touched(1000, 10.0, 200, 0), rel=0.01)
    assert 40 == touched(1000, 10.0, 1, seen=40)


def test_check_prints_it(scenario_file: Callable[..., Path], cli: Callable[..., Any]) -> None:
    """Algorithm and strategy, schedule and clock, codec and what it saves, and what clients keep: short lines."""
    said = cli("check", "--dry", scenario_file({
        **MLP, "training.algorithm": {"kind": "scaffold"}, "codec": {"up": {"kind": "bfloat16"}},
        "training.schedule": {"kind": "cosine", "over": 30.0, "clock": "version"},
    }))  # fmt: skip
    words = " ".join(said.out.split())

    assert "algorithm scaffold: its server's half stands around FedAvg" in words
    assert "cosine from 0.1, on the clock 'version'" in words and "codec of the arrays, up 50 % less" in words
    assert "clients keep up to" in words
