"""Unmodified Flower apps on virtual time: each kind runs to its end, twice alike, and leaves a run folder like any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.report.page import write_report
from fedsim.scenario.fleet import load_fleet

Go = Callable[..., fedsim.Run]
Table = Callable[..., dict[str, Any]]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("app", ["quickstart-numpy", "sklearn-custom", "async-numpy", "legacy-numpyclient", "quickstart-pytorch"])
def test_it_runs_alike_with_one_worker_and_with_two(app: str, run: Go, fleet: Table) -> None:
    """An app runs to its end with a model and rows; with another number of processes every digest comes again."""
    one = run(app)
    two = run(app, fleet(engine={"workers": 2}))

    assert "done" == one.status
    assert one.final["rounds"] >= 2
    assert one.params() and all(np.isfinite(array).all() for array in one.params().values())
    assert {"arrived"} <= set(one.tasks.outcome)
    assert one.manifest["virtual_s"] > 2.0
    assert (one.digest, one.metrics_digest) == (two.digest, two.metrics_digest)


def test_another_seed_is_another_run(run: Go) -> None:
    """The fleet's seed names devices, samples and the clients' draws."""
    assert run("quickstart-numpy").digest != run("quickstart-numpy", seed=8).digest


def test_what_a_client_keeps_goes_from_message_to_message(run: Go) -> None:
    """A mod that counts in the client's context sees all its messages, training and evaluation, whichever process had them."""
    done = run("quickstart-numpy", run_config={"num-server-rounds": 3, "fraction-train": 1.0})

    assert 5.0 == done.final["seen"]  # Trained in rounds 1 to 3, evaluated in two between.


def test_a_run_config_is_merged(run: Go) -> None:
    """Words as ``flwr run --run-config`` takes them set what the app reads."""
    done = run("quickstart-numpy", run_config=["num-server-rounds=1 lr=0.01"])

    assert 1 == done.final["rounds"]
    assert {"num-server-rounds": 1, "lr": 0.01, "fraction-train": 0.5} == done.manifest["app"]["run_config"]


def test_time_is_what_the_fleet_declares(run: Go, fleet: Table) -> None:
    """A message takes the device's overhead and its examples' seconds, scaled by the device's speed against the median's."""
    same = {"count": 5, "compute": {"kind": "constant", "gflops": 2.0, "overhead_s": 0.5}}
    costs = {"train": {"seconds_per_example": 0.1}, "evaluate": {"seconds": 3.0}}
    tasks = run("quickstart-numpy", fleet(clients=same, compute=costs, on_gflops=4.0)).tasks
    took = tasks.computed_s - tasks.started_s

    trained = tasks.kind == "train"
    assert np.allclose(took[trained], 0.5 + 2 * 0.1 * tasks.examples[trained])
    assert np.allclose(took[~trained], 0.5 + 2 * 3.0)


def test_a_function_says_what_a_message_takes(run: Go, fleet: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of the reader's, beside the fleet or in the current folder, is asked for seconds by the names it takes."""
    (tmp_path / "costs.py").write_text("def training(client, examples):\n    return client + examples / 100\n")
    monkeypatch.chdir(tmp_path)
    tasks = run("quickstart-numpy", fleet(compute={"train": {"function": "costs:training"}, "evaluate": {"seconds": 0.0}})).tasks
    trained = tasks[tasks.kind == "train"]

    assert np.allclose(trained.computed_s - trained.started_s, trained.client + trained.examples / 100)


def test_what_is_measured_is_marked_and_runs_again(run: Go, fleet: Table, cli: Callable[..., Any]) -> None:
    """``--measure`` needs no declaration; the manifest marks each figure, a note tells it, and ``verify`` takes it as it is."""
    done = run("quickstart-numpy", fleet(compute={}), measure=True)
    costs = done.manifest["fleet"]["compute"]

    assert {"train", "evaluate"} == set(costs)
    assert all(cost["measured"] and cost["seconds_per_example"] > 0 for cost in costs.values())
    assert 2 == sum("measured on this machine" in note for note in done.manifest["notes"])
    answer = cli("verify", done.path, "--quiet")
    assert 0 == answer.code, answer


def test_sleep_is_virtual_in_a_server_that_polls(run: Go) -> None:
    """A server that sleeps half a second between polls finds replies at such moments only, and its clock is the run's."""
    done = run("async-numpy")
    versions = done.versions
    said = (done.path / "app.log").read_text().split()

    assert (versions.now_s[1:] % 0.5 == 0).all()
    assert int(said[1]) >= 12
    assert float(said[3]) == done.manifest["virtual_s"] == versions.now_s.max() or float(said[3]) >= versions.now_s.max()
    assert done.manifest["wall_s"] < 60


def test_clients_that_come_and_go_are_waited_for(run: Go, fleet: Table) -> None:
    """Where fewer clients are there than a strategy wants, virtual time passes until they are: for a new one and a legacy one."""
    clients = {**fleet()["clients"], "availability": {"kind": "onoff", "mean_on_s": 40.0, "mean_off_s": 40.0}}
    for app in ("quickstart-numpy", "legacy-numpyclient"):
        done = run(app, fleet(clients=clients))
        assert ("done", True) == (done.status, done.manifest["wall_s"] < 60)


def test_the_folder_is_like_any_other(run: Go, cli: Callable[..., Any]) -> None:
    """``show``, ``show --json``, ``report`` and ``verify`` read the run of an app; its scores stand there."""
    done = run("quickstart-numpy")
    shown, line, verified = cli("show", done.path), cli("show", done.path, "--json"), cli("verify", done.path, "--quiet")

    assert 0 == shown.code and {"distance", "quickstart-numpy", "phones,", "FedAvg,"} <= set(shown.out.split()), shown
    assert done.digest == json.loads(line.out)["digest"]
    assert 0 == verified.code, verified
    assert "quickstart-numpy-phones" in write_report(done).read_text()
    assert {"central", "training", "federated"} == set(done.metrics.scope)
    assert "starting 3 rounds" in (done.path / "app.log").read_text()
    assert "[ROUND 3/3]" in (done.path / "flower.log").read_text()


def test_verify_sees_an_app_that_changed(run: Go, app_of: Callable[..., Path], cli: Callable[..., Any]) -> None:
    """The run of an app whose code is another now is not verified, and the file is named."""
    folder = app_of()
    done = run(folder)
    with (folder / "numpyexample" / "task.py").open("a") as file:
        file.write("# more\n")
    answer = cli("verify", done.path, "--quiet")

    assert (1, True) == (answer.code, "numpyexample/task.py" in answer.err), answer


def test_the_command_line_runs_it(cli: Callable[..., Any], tmp_path: Path) -> None:
    """``fedsim run APP --fleet FILE --set --seed --run-config --json`` prints one line, and nothing of what the app prints."""
    app, file = ROOT / "tests" / "foreign" / "apps" / "quickstart-numpy", ROOT / "scenarios" / "fleets" / "phones.toml"
    words = ("--set", "clients.count=4", "--seed", "3", "--run-config", "num-server-rounds=1", "--out", tmp_path / "run", "--json")
    answer = cli("run", app, "--fleet", file, *words)

    assert (0, 1) == (answer.code, len(answer.out.splitlines())), answer
    about = fedsim.load(tmp_path / "run").manifest
    assert (4, 3, 1) == (about["fleet"]["clients"]["count"], about["seed"], json.loads(answer.out)["final"]["rounds"])


@pytest.mark.parametrize("path", sorted((ROOT / "scenarios" / "fleets").glob("*.toml")), ids=lambda path: path.stem)
def test_fleets_that_we_ship_are_right(path: Path, run: Go) -> None:
    """Each opens with its question, is named as its file, and an app runs on a few of its clients."""
    lines = path.read_text().splitlines()

    assert ["# Question:", "# Expected:", "# Reference:"] == [" ".join(line.split()[:2]) for line in lines[:3]]
    assert path.stem == load_fleet(path).fleet.name
    done = run("quickstart-numpy", load_fleet(path, {"clients.count": 4}).fleet.plain(), run_config={"num-server-rounds": 1})
    assert "done" == done.status


def test_a_second_app_with_the_same_names_is_its_own(run: Go, app_of: Callable[..., Path]) -> None:
    """Of two apps whose packages have one name, run in one process in turn, each runs its own code."""
    other = app_of("other", task=(app_of("first") / "numpyexample" / "task.py").read_text().replace("3.0]", "-3.0]"))
    one, two = run("quickstart-numpy"), run(other)

    assert one.params()["w"][3] > 0 > two.params()["w"][3]
