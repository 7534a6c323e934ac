"""Runs: what a run records when all goes well, when clients are late or away, and when it breaks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg

import fedsim
from fedsim.core.keys import Key
from fedsim.cost.availability import availabilities
from fedsim.record.journal import read

Go = Callable[..., fedsim.Run]

SPREAD = {
    "clients.compute": {"kind": "lognormal", "gflops": 0.0001, "sigma": 1.0, "overhead_s": 1.0},
    "clients.network": {"kind": "ideal"},
    "server.rounds": 4,
}
"""Devices so different that a deadline of 1.5 s divides the six clients."""
ONOFF = {"clients.availability": {"kind": "onoff", "mean_on_s": 30.0, "mean_off_s": 30.0}, "server.rounds": 8}


def wire(tasks: pd.DataFrame) -> pd.Series:
    return tasks[["down_bytes", "down_framing_bytes", "up_bytes", "up_framing_bytes"]].sum(axis=1)


# When it breaks.


def test_a_diverged_run_names_round_and_client(go: Go, tmp_path: Path) -> None:
    """A run whose loss becomes NaN ends with a RunError naming round, client and learning rate; what was recorded stays."""
    broken = {"training.optimizer.lr": 1e30, "server.rounds": 9, "training.epochs": 4, "evaluate.every": 100}
    with pytest.raises(fedsim.RunError) as caught:
        go({**broken, "model": {"kind": "mlp", "hidden": [8]}}, out=tmp_path / "run")
    line, run = str(caught.value), fedsim.load(tmp_path / "run")

    assert line.startswith("round ") and "of client " in line and "training.optimizer.lr (now 1e+30)" in line
    assert re.search(r"examples; the (loss|parameter \S+|gradient of \S+) was the first to break, in local step \d+ of 12\)", line), line
    assert "\n" not in line
    assert ("failed", line, None) == (run.status, run.manifest["error"], run.manifest["digest"])
    assert 0 < len(run.metrics)
    assert [] == [name for name, array in run.params().items() if not array.size]


def test_a_diverged_global_model_is_caught_at_evaluation(go: Go, tmp_path: Path) -> None:
    """A run at a learning rate of a million stops in round 1 or 2, whichever check sees it first, and says failed."""
    with pytest.raises(fedsim.RunError, match=r"round [12]: .* became (nan|inf|-inf).* smaller training.optimizer.lr"):
        go({"training.optimizer.lr": 1e38}, out=tmp_path / "run")
    run = fedsim.load(tmp_path / "run")

    assert "failed" == run.status
    assert len(read(run.path, "metrics")[1]) > 0


def test_a_strategy_that_breaks_leaves_its_story(go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A strategy of the reader's own that raises ends the run with its error in one line, the traceback in the folder."""
    (tmp_path / "broken_strategy.py").write_text(
        "from flwr.serverapp.strategy import FedAvg\n"
        "class Broken(FedAvg):\n"
        "    def aggregate_train(self, server_round, replies):\n"
        "        if server_round == 2: raise ArithmeticError('out of luck')\n"
        "        return super().aggregate_train(server_round, replies)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(fedsim.RunError, match="round 2: ArithmeticError: out of luck"):
        go({"server.strategy": {"kind": "broken_strategy:Broken"}}, out=tmp_path / "run")
    run = fedsim.load(tmp_path / "run")

    assert "failed" == run.status
    assert "broken_strategy.py" in (run.path / "traceback.txt").read_text()
    assert [1] == run.metrics.query("scope == 'central' and round > 0")["round"].unique().tolist()


def test_a_strategy_that_waits_for_nobody_ends(go: Go, tmp_path: Path) -> None:
    """A strategy that waits for more clients than will ever be there ends with a RunError that says so."""
    alone = {"kind": "diurnal", "mean": 0.0, "amplitude": 0.0}
    with pytest.raises(fedsim.RunError, match=r"waits for more clients than the 0 that are available at 0 s"):
        go({"clients.availability": alone}, out=tmp_path / "run")

    assert "failed" == fedsim.load(tmp_path / "run").status


def test_load_of_what_is_no_run(tmp_path: Path) -> None:
    """Loading a folder without a manifest, or one that cannot be read, raises RunError naming it."""
    with pytest.raises(fedsim.RunError, match="not a run folder"):
        fedsim.load(tmp_path)
    with pytest.raises(fedsim.RunError, match="nowhere: is not there"):
        fedsim.load(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text('{"status": ')
    with pytest.raises(fedsim.RunError, match="manifest.json: cannot be read"):
        fedsim.load(tmp_path)


def test_fedsim_run_is_the_function_whatever_was_imported() -> None:
    """``fedsim.run`` can be called after ``from fedsim.session import Progress``, as someone who watches would write."""
    code = "from fedsim.session import Progress; import fedsim; print(callable(fedsim.run))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert "True" == said.strip()


# Late, and away.


def test_a_late_update_keeps_its_version(go: Go) -> None:
    """An update that misses its round is recorded as late with the version it started from, never applied, and wasted."""
    run = go({**SPREAD, "server.round_timeout_s": 1.5})
    late, arrived = run.tasks.query("outcome == 'late'"), run.tasks.query("outcome == 'arrived'")

    assert 0 < len(late) and 0 < len(arrived)
    assert (late.version == late["round"] - 1).all() and (arrived.version == arrived["round"] - 1).all()
    assert (late.arrived_s > late.sent_s + 1.5).all()
    assert (arrived.arrived_s <= arrived.sent_s + 1.5).all()
    assert late.loss.isna().all() and {""} == set(late.result)
    lost = run.tasks.query("outcome != 'arrived'")
    assert wire(lost).sum() == run.manifest["bytes_wasted"]


def test_a_late_client_is_as_if_it_were_not_asked(go: Go) -> None:
    """The model after a round with a deadline is the mean of those who were in time, weighted by examples."""
    run = go({**SPREAD, "server.rounds": 1, "server.round_timeout_s": 1.5, "evaluate.every": 1})
    whole = go({**SPREAD, "server.rounds": 1})
    late = set(run.tasks.query("outcome != 'arrived'").client)

    assert 0 < len(late) < 6
    same = run.tasks.query("outcome == 'arrived'").set_index("client").result
    assert same.equals(whole.tasks[~whole.tasks.client.isin(late)].set_index("client").result)
    assert not np.array_equal(run.params()["1.weight"], whole.params()["1.weight"])


def test_a_round_in_which_everybody_is_late_changes_nothing(go: Go) -> None:
    """When nobody is in time, the model, its version and its scores stay as they were, and every byte is wasted."""
    run = go({**SPREAD, "server.round_timeout_s": 0.5})
    losses = run.series("loss").value

    assert set() == set(run.tasks.outcome) - {"late", "in flight"}
    assert {0} == set(run.tasks.version)
    assert 1 == losses.nunique()
    assert run.manifest["bytes_wasted"] == run.manifest["bytes_down"] + run.manifest["bytes_up"]
    assert [0, 0, 0, 0] == run.rounds.arrived.tolist()
    assert 2.0 == run.manifest["virtual_s"]


def test_one_message_at_a_time(go: Go) -> None:
    """A client that is still at work on a missed round begins with the next message only when it is done."""
    run = go({**SPREAD, "server.round_timeout_s": 0.5})
    begun = run.tasks.query("started_s >= 0").sort_values(["client", "message"])
    before = begun.groupby("client").arrived_s.shift()
    known = before.notna() & (before >= 0)

    assert known.any()
    assert (begun.started_s[known] >= before[known]).all()
    assert (begun.started_s[known] > begun.received_s[known]).any()


def test_nobody_who_is_away_is_asked(go: Go) -> None:
    """With clients that come and go, everyone who is asked is there when the message is sent."""
    run = go(ONOFF)
    model = availabilities.get("onoff", at="")(Key(7).fold("availability"), mean_on_s=30.0, mean_off_s=30.0)
    tasks = run.tasks
    there = [bool(model.available(np.array([c]), now)[0]) for c, now in zip(tasks.client, tasks.sent_s, strict=True)]

    assert all(there)
    assert len(tasks) < 6 * 8
    assert len(set(tasks.groupby("round").client.apply(tuple))) > 1


# What is counted.


@pytest.mark.parametrize(
    "overrides",
    [{}, {**SPREAD, "server.round_timeout_s": 1.5}, ONOFF, {"evaluate.federated_fraction": 0.5}],
    ids=["all in time", "some late", "some away", "federated evaluation"],
)
def test_bytes_add_up(overrides: dict[str, Any], go: Go) -> None:
    """The bytes of all tasks are the manifest's, and those of the last score are what was sent by then."""
    run = go(overrides)
    tasks, about = run.tasks, run.manifest

    assert (tasks.down_bytes + tasks.down_framing_bytes).sum() == about["bytes_down"]
    assert (tasks.up_bytes + tasks.up_framing_bytes).sum() == about["bytes_up"]
    assert wire(tasks[tasks.outcome != "arrived"]).sum() == about["bytes_wasted"]
    assert run.rounds[["down_bytes", "up_bytes"]].sum().sum() == about["bytes_down"] + about["bytes_up"]
    scores = run.metrics
    assert scores.down_bytes.is_monotonic_increasing and scores.up_bytes.is_monotonic_increasing
    assert scores.down_bytes.iloc[-1] <= about["bytes_down"]


def test_bytes_of_2nn(go: Go, tmp_path: Path) -> None:
    """A reply of McMahan's 2NN is 796,840 bytes of float32, six .npy headers of 128, its names and its metrics."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "blank.npz", x=rng.random((40, 1, 28, 28), dtype=np.float32), y=np.arange(40) % 10)
    run = go({
        "data": {"source": {"kind": "npz", "path": str(tmp_path / "blank.npz")}, "partition": {"kind": "iid"}},
        "model": {"kind": "mlp", "hidden": [200, 200]}, "clients.count": 2, "server.rounds": 1,
    })  # fmt: skip
    parameters = 796_840 + 6 * 128 + sum(map(len, run.params()))
    metrics = sum(8 + len(name) for name in ("num-examples", "train_loss"))

    assert 199_210 == run.manifest["model"]["parameters"]
    assert {parameters + metrics} == set(run.tasks.up_bytes)
    assert parameters < run.tasks.down_bytes.iloc[0] < parameters + 300  # And the order form.


def test_federated_evaluation_is_traffic(go: Go) -> None:
    """Federated evaluation sends real messages to its share of the clients, takes time, and yields metrics of its own."""
    run = go({"evaluate.federated_fraction": 0.5, "server.rounds": 3})
    asked = run.tasks.query("kind == 'evaluate'")

    assert [3, 3, 3] == asked.groupby("round").size().tolist()
    assert (asked.down_bytes > 2600).all() and (asked.up_bytes < 100).all() and (asked.up_bytes > 0).all()
    assert {1, 2, 3} == set(run.series("accuracy", "federated")["round"])
    assert {"accuracy", "loss"} == set(run.metrics.query("scope == 'federated'").name)
    assert asked.steps.eq(0).all() and asked.flops.gt(0).all()
    assert (asked.version == asked["round"]).all()


def test_stop_ends_early(go: Go) -> None:
    """A run with [stop] ends after the first round whose score is good enough, not before and not later."""
    whole = go({"server.rounds": 8})
    accuracy = whole.series("accuracy").set_index("round").value
    line = float(accuracy[3])
    expected = int(accuracy[accuracy >= line].index[0])
    stopped = go({"server.rounds": 8, "stop": {"metric": "accuracy", "at_least": line}})

    assert expected == stopped.final["rounds"] < 8
    assert "done" == stopped.status
    assert expected == stopped.rounds["round"].max()
    assert accuracy[expected] == stopped.final["accuracy"]


def test_stop_at_once(go: Go) -> None:
    """A line that the first model crosses already ends the run before a single message is sent."""
    run = go({"stop": {"metric": "loss", "at_most": 100.0}})

    assert (0, 0, 0.0) == (run.final["rounds"], len(run.tasks), run.manifest["virtual_s"])
    assert ("done", 0) == (run.status, run.manifest["bytes_down"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_model_predicts_as_recorded(dtype: str, go: Go) -> None:
    """``run.model()`` gives on the test part exactly the accuracy that the manifest says."""
    import torch

    from fedsim.scenario.build import build
    from fedsim.scenario.load import Loaded
    from fedsim.scenario.schema import Scenario

    run = go({"engine.dtype": dtype, "model": {"kind": "mlp", "hidden": [16]}, "data.test_fraction": 0.7, "server.rounds": 5})
    x, y = build(Loaded(Scenario.model_validate(run.manifest["scenario"]), Path.cwd())).test
    with torch.no_grad():
        right = int((run.model()(x).argmax(-1) == y).sum())

    assert getattr(torch, dtype) == x.dtype
    assert run.final["accuracy"] == right / len(y)


def test_a_run_comes_back_from_its_folder(go: Go) -> None:
    """``fedsim.load`` of a run's folder gives the same frames, model and figures as the run itself."""
    run = go()
    again = fedsim.load(run.path)

    for frame in ("tasks", "rounds", "metrics"):
        pd.testing.assert_frame_equal(getattr(run, frame), getattr(again, frame))
    assert (run.digest, run.final, run.name) == (again.digest, again.final, "tiny")
    assert {"manifest.json", "journal.sqlite", "model.safetensors", "flower.log", "data.json"} == {f.name for f in run.path.iterdir()}
    assert 12 == len(run.tasks)
    json.dumps(run.manifest)


def test_a_run_does_not_write_over_another(go: Go, tmp_path: Path) -> None:
    """A folder that holds something is refused, and what it holds stays."""
    go(out=tmp_path / "run")
    before = (tmp_path / "run" / "manifest.json").read_text()
    with pytest.raises(fedsim.ScenarioError, match="not empty"):
        go(out=tmp_path / "run")

    assert before == (tmp_path / "run" / "manifest.json").read_text()


# Found by looking for wrong numbers.


class Sideways(FedAvg):
    """Hands out its aggregate in Fortran order, as some array libraries do."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        return ArrayRecord({n: Array(np.asfortranarray(a.numpy())) for n, a in arrays.items()}), metrics


def test_the_saved_model_is_the_final_model(go: Go) -> None:
    """Whatever the memory order of the last aggregate, the saved parameters score what the run recorded."""
    plain, sideways = go({}), go({"server.strategy": {"kind": f"{__name__}:Sideways"}})

    assert all(np.array_equal(plain.params()[n], sideways.params()[n]) for n in plain.params())
    assert plain.digest == sideways.digest


def test_verify_reads_the_model_and_the_rounds(go: Go, tmp_path: Path) -> None:
    """An edited model and an edited rounds table are both noticed."""
    import sqlite3

    from safetensors.numpy import save_file

    from fedsim.session import verify

    run = go({})
    assert verify(run.path, tmp_path / "again") is None
    with sqlite3.connect(run.path / "journal.sqlite") as file:
        file.execute("UPDATE rounds SET ended_s = 0 WHERE rowid = 2")
    assert "rounds row 2" in str(verify(run.path, tmp_path / "third"))
    other = go({})
    save_file({n: np.ascontiguousarray(a + 1) for n, a in other.params().items()}, other.path / "model.safetensors")
    assert "model.safetensors" in str(verify(other.path, tmp_path / "fourth"))


def test_small_shares_evaluate_few(go: Go) -> None:
    """A federated fraction that comes to one client asks one client, and a single client can evaluate itself."""
    few = go({"evaluate.federated_fraction": 0.2})
    alone = {"clients.count": 1, "evaluate.federated_fraction": 1.0}
    one = go({**alone, "server.strategy": {"kind": "FedAvg", "clients_per_round": 1}})

    assert {1} == set(few.rounds[few.rounds.kind == "evaluate"].asked)
    assert {1} == set(one.rounds[one.rounds.kind == "evaluate"].arrived)


def test_a_run_in_which_nobody_answered_says_so(go: Callable[..., Any]) -> None:
    """With a deadline that no client can keep, the run ends and its manifest says that nothing was learned, and why."""
    run = go({"server.round_timeout_s": 0.001})
    fine = go()

    assert ["Not one reply arrived in time"] == [note[:29] for note in run.manifest["notes"]]
    assert "server.round_timeout_s = 0.001" in run.manifest["notes"][0]
    assert [] == fine.manifest["notes"]
