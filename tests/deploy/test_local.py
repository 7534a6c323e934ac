"""A scenario on real clients of this machine: the numbers of a simulation, an ordinary run folder, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lingering import left_of, until

import fedsim
from fedsim.real.retracing import same_predictions
from fedsim.session import Progress, verify

REAL = {"clients.count": 3, "server.rounds": 2}


@pytest.fixture
def marker(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return a mark in the environment of whatever this test starts; none of it is there afterwards."""
    mark = f"FEDSIM_TEST_MARK={time.monotonic_ns()}-{os.getpid()}"
    monkeypatch.setenv(*mark.split("="))
    yield mark
    if Path("/proc/self/environ").exists():
        until(lambda: not set(left_of(mark)) - {os.getpid()}, 2.0)
        assert set() == set(left_of(mark)) - {os.getpid()}


def launched(scenario: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    """Start ``fedsim deploy`` as from a terminal of its own: Ctrl-C is heard, also where this test runs without."""
    command = [sys.executable, "-m", "fedsim", "deploy", str(scenario), "--out", str(out), "--quiet", *words]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def rounds_of(out: Path) -> int:
    """Return how many rounds the run in *out* has behind it; -1 before it began."""
    file = out / "manifest.json"
    return int(json.loads(file.read_text(encoding="utf-8"))["final"].get("rounds", 0)) if file.exists() else -1


def test_a_deployment_is_its_simulation(tiny: Callable[..., Any], cli: Callable[..., Any], tmp_path: Path, marker: str) -> None:
    """Three SuperNodes and a SuperLink give the simulation's parameters and bytes bit for bit, in a folder that reads as one."""
    seen: list[Progress] = []
    simulated = fedsim.run(tiny(REAL), out=tmp_path / "simulated")
    run = fedsim.deploy(tiny({"server.rounds": 2}), 3, out=tmp_path / "deployed", watch=seen.append)
    about, before = run.manifest, simulated.manifest

    assert before["model"]["content"] == about["model"]["content"]
    assert (before["bytes_down"], before["bytes_up"], before["folder"]) == (about["bytes_down"], about["bytes_up"], about["folder"])
    assert simulated.final == run.final
    assert ("done", 6, {"arrived"}) == (run.status, len(run.tasks), set(run.tasks.outcome))
    assert (run.tasks.arrived_s > run.tasks.sent_s).all() and about["virtual_s"] >= run.tasks.arrived_s.max()
    assert (3, {}) == (about["deployment"]["nodes"], about["deployment"]["gone"])
    counted = about["deployment"]["superlink_bytes_in"] + about["deployment"]["superlink_bytes_out"]
    assert about["bytes_down"] + about["bytes_up"] < counted
    assert {"superlink.log", "run.log", "supernode-2.log"} <= {path.name for path in (run.path / "deploy").iterdir()}
    assert 2 == seen[-1].round and seen[-1].now_s > 0
    assert "accuracy" in cli("show", run.path).out
    with pytest.raises(fedsim.RunError, match="ran on real clients"):
        verify(run.path, tmp_path / "again")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [
    {"server.strategy": {"kind": "FedAdam", "eta": 0.05}, "data.partition": {"kind": "dirichlet", "alpha": 0.5}},
    {"training.algorithm": {"kind": "scaffold"}, "data.partition": {"kind": "dirichlet", "alpha": 0.5}},
], ids=["FedAdam", "SCAFFOLD"])  # fmt: skip
def test_methods_with_state(settings: dict[str, Any], tiny: Callable[..., Any], tmp_path: Path, marker: str) -> None:
    """What a server and its clients keep from round to round, four of them, is the simulation's on a real SuperLink, to the bit."""
    simulated = fedsim.run(tiny({**REAL, **settings, "server.rounds": 4}), out=tmp_path / "simulated")
    run = fedsim.deploy(tiny({**settings, "server.rounds": 4}), 3, out=tmp_path / "deployed")

    assert simulated.manifest["model"]["content"] == run.manifest["model"]["content"]
    assert [4, 4, 4] == run.tasks.client.value_counts().tolist() and {"arrived"} == set(run.tasks.outcome)


@pytest.mark.slow
def test_a_stream_with_replay(tiny: Callable[..., Any], tmp_path: Path, marker: str) -> None:
    """A stream on wall time with memories gives other numbers than the simulation foretells, and its own, to the bit, once retraced."""
    settings = {
        **REAL, "server.rounds": 4, "training.batch_size": 4, "training.rehearsal": {"kind": "er", "ratio": 0.5, "mix": "concat"},
        "stream": {"arrivals": {"kind": "poisson", "per_s": 0.8}, "trigger": {"kind": "arrival"}},
        "clients.replay": {"kind": "reservoir", "capacity": 12},
    }  # fmt: skip
    plain = fedsim.run(tiny(settings), out=tmp_path / "plain")
    run = fedsim.deploy(tiny(settings), out=tmp_path / "deployed")
    again = fedsim.retrace(run.path, tmp_path / "again")

    assert plain.manifest["model"]["content"] != run.manifest["model"]["content"] == again.manifest["model"]["content"]
    assert same_predictions(run, again) and len(run.tested) and run.final == again.final


@pytest.mark.slow
def test_the_command_with_tls(cli: Callable[..., Any], scenario_file: Callable[..., Path], tmp_path: Path, marker: str) -> None:
    """``fedsim deploy --tls --json`` ends with one line, and the parameters are those of the simulation of the same words."""
    words = ["--nodes", 3, "--set", "training.optimizer.lr=0.2", "--set", "server.rounds=1", "--seed", 3]
    settings = {"clients.count": 3, "training.optimizer.lr": 0.2, "server.rounds": 1}
    simulated = fedsim.run(scenario_file(), overrides=settings, seed=3, out=tmp_path / "simulated")
    answer = cli("deploy", scenario_file(), *words, "--tls", "--json", "--out", tmp_path / "deployed")
    run = fedsim.load(tmp_path / "deployed")

    assert 0 == answer.code, answer.err
    assert json.loads(answer.out)["digest"] == run.digest and run.manifest["deployment"]["tls"]
    assert simulated.manifest["model"]["content"] == run.manifest["model"]["content"]
    assert simulated.manifest["folder"] == run.manifest["folder"] and (run.path / "report.html").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_before_the_run(number: signal.Signals, scenario_file: Callable[..., Path], tmp_path: Path, marker: str) -> None:
    """While SuperLink and SuperNodes come up, Ctrl-C and a polite kill end them all, and say so."""
    launcher = launched(scenario_file(REAL), tmp_path / "run")
    until(lambda: bool(left_of(marker, "flower-superlink")))
    launcher.send_signal(number)
    _, said = launcher.communicate()

    assert 130 == launcher.returncode, said
    assert "interrupted before the run began; nothing was left running." in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ctrl_c_in_a_round(scenario_file: Callable[..., Path], tmp_path: Path, marker: str) -> None:
    """After Ctrl-C in a later round the folder says interrupted, has its model, and can be read."""
    launcher = launched(scenario_file({**REAL, "server.rounds": 50}), tmp_path / "run")
    until(lambda: rounds_of(tmp_path / "run") >= 1, 240.0)
    launcher.send_signal(signal.SIGINT)
    _, said = launcher.communicate()
    run = fedsim.load(tmp_path / "run")

    assert 130 == launcher.returncode and "is safe in" in said, said
    assert "interrupted" == run.status and run.final["rounds"] >= 1
    assert run.params() and len(run.tasks) >= 3


@pytest.mark.slow
def test_a_killed_launcher(scenario_file: Callable[..., Path], tmp_path: Path, marker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed with -9, the launcher takes everything with it, keys too, and the folder says that the run was killed, and has its rows."""
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setenv("TMPDIR", str(private))
    launcher = launched(scenario_file({**REAL, "server.rounds": 50}), tmp_path / "run", "--tls")
    until(lambda: rounds_of(tmp_path / "run") >= 1, 240.0)
    keys = [*private.glob("fedsim-deploy-*/certificates/*")]
    launcher.kill()
    launcher.communicate()
    until(lambda: not set(left_of(marker)) - {os.getpid()})
    until(lambda: not [*private.glob("fedsim-deploy-*")])
    run = fedsim.load(tmp_path / "run")

    assert run.status in ("killed", "interrupted", "failed")
    assert keys and [] == [*private.glob("fedsim-deploy-*")]
    assert {0, 1, 2} == set(run.tasks.client) and "arrived" in set(run.tasks.outcome) and run.tasks.started_s.isna().all()


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "status"), [("flower-supernode", "done"), ("flower-superlink", "failed"), ("flwr-serverapp", "failed")])
def test_something_dies_in_the_middle(
    victim: str, status: str, scenario_file: Callable[..., Path], tmp_path: Path, marker: str
) -> None:
    """The run goes on without a SuperNode that is killed, and ends without its SuperLink or its server; the folder says which and why."""
    launcher = launched(scenario_file({**REAL, "server.rounds": 3}), tmp_path / "run")
    until(lambda: rounds_of(tmp_path / "run") >= 1, 240.0)
    os.kill(left_of(marker, victim)[0], signal.SIGKILL)
    _, said = launcher.communicate()
    run = fedsim.load(tmp_path / "run")

    assert status == run.status, said
    if status == "done":
        assert any("SuperNode" in note and "was ended by signal 9" in note for note in run.manifest["notes"])
        assert {"arrived", "lost"} <= set(run.tasks.outcome) | {"lost"} and run.tasks.outcome.ne("arrived").any()
    else:
        assert 1 == launcher.returncode and "What was recorded until then is in" in said
