"""Controllers at the server: asked with each score, before the next round's messages are made; clients are ordered what they want."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from nodes_here import NodesHere

import fedsim
from clients.client_app import app as client_app
from clients.server_app import app as server_app
from fedsim.core.errors import RunError, ScenarioError
from fedsim.core.state import State
from fedsim.preview import preview
from fedsim.scenario.build import build
from fedsim.scenario.load import load

Go = Callable[..., fedsim.Run]
CONTROLLER = "server.controller"
PLATEAU = {"kind": "plateau", "patience": 0, "least": 0.2, "factor": 0.5}
LONG = {"server.rounds": 6, "training.optimizer.lr": 0.3}


class Grows:
    """Doubles the batch after each version, and says what it was told."""

    changes, metrics = ("batch_size", "epochs"), ("accuracy", "train_loss")
    told: list[tuple[int, dict[str, float]]] = []  # noqa: RUF012  # For the test to read.

    def first(self) -> State:
        return {"size": np.array(5)}

    def next(self, state: State, version: int, metrics: Mapping[str, float]) -> tuple[State, dict[str, float]]:
        self.told.append((version, dict(metrics)))
        size = int(state["size"])
        return {"size": np.array(2 * size)}, {"batch_size": size, "epochs": 2}


def test_a_plateau_lowers_what_is_ordered(go: Go) -> None:
    """The factors on record follow from the scores, and the run has the bits of one whose schedule has these factors."""
    run = go({**LONG, CONTROLLER: PLATEAU})
    scores, wanted = run.series("loss").value.tolist(), run.series("lr_factor", "controller").value.tolist()
    best, factor, expected = np.inf, 1.0, list[float]()
    for score in scores[:-1]:
        best, factor = (score, factor) if score < 0.8 * best else (best, factor / 2)
        expected.append(factor)

    assert expected == wanted and len(set(wanted)) > 2
    milestones = [i for i in range(1, 6) if wanted[i] < wanted[i - 1]]
    assert go({**LONG, "training.schedule": {"kind": "multistep", "milestones": milestones, "gamma": 0.5}}).digest == run.digest
    assert go(LONG).digest != run.digest


def test_it_is_asked_where_there_is_a_score(go: Go) -> None:
    """With evaluate.every = 2 it is asked after rounds 0, 2 and 4, with the training metrics of the latest round, and before the next."""
    Grows.told.clear()
    run = go({"server.rounds": 5, "evaluate.every": 2, CONTROLLER: {"kind": f"{__name__}:Grows"}})
    sizes = run.series("batch_size", "controller")

    assert [0, 2, 4] == [version for version, _ in Grows.told] == sizes["round"].tolist()
    assert "train_loss" not in Grows.told[0][1] and {"loss", "accuracy", "train_loss"} <= set(Grows.told[1][1])
    trained = run.series("train_loss", "training").set_index("round").value
    assert Grows.told[1][1]["train_loss"] == trained[2] and Grows.told[2][1]["train_loss"] == trained[4]
    steps = run.tasks.groupby("round").steps.max()
    assert [12, 12, 6, 6, 4] == [int(steps[r]) for r in range(1, 6)]  # 29 or 30 examples, two epochs of batches of 5, 10 and 20.


def test_time_follows_and_a_check_says_so(go: Go, tiny: Any) -> None:
    """Batches that a controller makes larger take other time, which a check cannot foretell, and says."""
    settings = {CONTROLLER: {"kind": f"{__name__}:Grows"}}
    foretold = preview(load(tiny(settings)))

    assert any("server.controller" in note for note in foretold.notes) and not foretold.foretold.exact
    assert not any("server.controller" in note for note in preview(load(tiny({CONTROLLER: PLATEAU}))).notes)


def test_the_server_app_has_it_too(scenario_file: Any, go: Go, tmp_path: Any) -> None:
    """Our ServerApp orders of real nodes what the simulator's server orders, and records it alike."""
    settings = {**LONG, CONTROLLER: PLATEAU, "training.schedule": {"kind": "exponential", "rate": 0.9, "clock": "version"}}
    path = scenario_file(settings)
    words = {"scenario": str(path), "out": str(tmp_path / "real")}
    grid = NodesHere(client_app, words, [{"partition-id": client} for client in range(6)])
    server_app(grid, Context(5, 1, {}, RecordDict(), words))
    told = [(m.content["config"]["lr"], m.content["config"]["server-version"]) for m in grid.sent if m.metadata.message_type == "train"]
    wanted = go(settings).series("lr_factor", "controller").value

    assert [(0.3 * factor, version) for version, factor in enumerate(wanted)] == list(dict.fromkeys(told))
    assert wanted.tolist() == fedsim.load(tmp_path / "real").series("lr_factor", "controller").value.tolist()


def test_what_cannot_be_is_said(tiny: Any) -> None:
    """A strategy with its own start, a metric that there is not, a goal that nobody knows, epochs where steps are counted."""
    for settings, said in (
        ({CONTROLLER: PLATEAU, "server.strategy": {"kind": "test_rounds:Twice"}}, "has a start() of its own, which plays them alone"),
        ({CONTROLLER: {**PLATEAU, "metric": "val_loss"}}, "metric = 'val_loss': is not reported here. Did you mean 'train_loss'?"),
        ({CONTROLLER: {**PLATEAU, "metric": "speed"}}, "metric = 'speed': say whether less of it is better: goal = 'min'"),
        ({CONTROLLER: {**PLATEAU, "factor": 1.0}}, "server.controller.factor = 1.0: must be < 1"),
        ({CONTROLLER: {"kind": f"{__name__}:Grows"}, "training.epochs": None, "training.steps": 3}, "changes epochs, and"),
        ({CONTROLLER: PLATEAU, "server.strategy": {"kind": "QFedAvg", "client_learning_rate": 0.1}}, "divides by client_learning_rate"),
    ):
        with pytest.raises(ScenarioError) as caught:
            build(load(tiny(settings)))
        assert said in str(caught.value), str(caught.value)


class Wild(Grows):
    """Orders no batch at all, by a name that it does not say."""

    def next(self, state: State, version: int, metrics: Mapping[str, float]) -> Any:
        return state, {"lr_factor": 0.5} if version else {"batch_size": -1}


def test_wrong_answers_are_one_line(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a reader's controller gives that no message can carry names the controller."""
    wild = {CONTROLLER: {"kind": f"{__name__}:Wild"}}
    with pytest.raises(RunError, match=r"its next\(\) gives batch_size = -1, expected a whole number from 0"):
        go(wild)
    monkeypatch.setattr(Wild, "next", lambda self, state, version, metrics: (state, {"lr_factor": 0.5}))
    with pytest.raises(RunError, match="it changes lr_factor, and says that it changes batch_size, epochs"):
        go(wild)
