"""Ctrl-C, twice or at the worst moment; a closed terminal; a kill: what the folder says afterwards is true."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fedsim
from conftest import tiny_table
from fedsim import session
from fedsim.core.errors import ScenarioError
from fedsim.learn.work import digest_of
from fedsim.record import going, leaving, manifest
from fedsim.record.leaving import Interrupted, Patience
from fedsim.record.model import MODEL_FILE
from fedsim.record.place import take_place
from fedsim.session import Progress, verify

SMALL = {"clients.count": 2, "data.test_fraction": 0.95, "server.rounds": 3}


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Have Ctrl-C raise, as in a terminal; a test may run where it is ignored."""
    before = {number: signal.getsignal(number) for number in leaving.SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def stop(told: Progress) -> None:
    """Press Ctrl-C in the second round."""
    if told.round == 2:
        signal.raise_signal(signal.SIGINT)


LEAVING = ("save_model", "flush", "write", "close")


def pressed_again(monkeypatch: pytest.MonkeyPatch, step: str, times: int = 1) -> list[str]:
    """Have Ctrl-C pressed again *times* while *step* of leaving goes on; return when it was."""
    owner: Any = {"save_model": going, "flush": going.Journal, "write": going.manifest, "close": going.Journal}[step]
    real, said = getattr(owner, step), list[str]()

    def press(*words: Any) -> Any:
        if step in ("save_model", "close") or any("interrupted" in str(word) for word in words) or (step == "flush" and pressed):
            for _ in range(times):
                said.append(step)
                signal.raise_signal(signal.SIGINT)
        return real(*words)

    pressed = list[int]()
    heard = Patience._heard  # pyright: ignore[reportPrivateUsage]

    def hear(self: Patience, number: int, frame: Any) -> None:
        pressed.append(number)
        heard(self, number, frame)

    monkeypatch.setattr(Patience, "_heard", hear)
    monkeypatch.setattr(owner, step, press)
    return said


@pytest.mark.parametrize("step", LEAVING)
def test_a_second_ctrl_c_waits(step: str, go: Callable[..., fedsim.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pressed again in any step of leaving, the folder says interrupted, and has its model and rows."""
    said = pressed_again(monkeypatch, step)
    with pytest.raises(Interrupted, match="interrupted after round 2"):
        go(SMALL, out=tmp_path / "run", watch=stop)
    run = fedsim.load(tmp_path / "run")

    assert said and set(said) == {step}
    assert ("interrupted", 2) == (run.status, run.final["rounds"])
    assert run.params() and len(run.rounds) == 2 and not (run.path / "journal.sqlite-wal").exists()


def test_without_patience_the_folder_says_running(go: Callable[..., fedsim.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The law above has teeth: where the second Ctrl-C is let through, the run is left as if it went on."""
    monkeypatch.setattr(leaving, "PRESSES", 0)
    pressed_again(monkeypatch, "save_model")
    with pytest.raises(KeyboardInterrupt):
        go(SMALL, out=tmp_path / "run", watch=stop)

    assert "running" == fedsim.load(tmp_path / "run").status


def test_who_insists_is_let_through(go: Callable[..., fedsim.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may hang: six presses while leaving end it."""
    said = pressed_again(monkeypatch, "save_model", times=6)
    with pytest.raises(KeyboardInterrupt):
        go(SMALL, out=tmp_path / "run", watch=stop)

    assert 6 == len(said)


def test_ctrl_c_while_a_finished_run_is_left_costs_nothing(
    go: Callable[..., fedsim.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is done; the words say so, and Ctrl-C still ends the command."""
    pressed_again(monkeypatch, "save_model")
    with pytest.raises(Interrupted, match="the run is done, and safe in"):
        go(SMALL, out=tmp_path / "run")
    monkeypatch.undo()
    run = fedsim.load(tmp_path / "run")

    assert ("done", go(SMALL).digest) == (run.status, run.digest)


def test_handlers_are_given_back(go: Callable[..., fedsim.Run], tmp_path: Path) -> None:
    """After a run, as after an interrupted one, signals go where they went before."""
    before = [signal.getsignal(number) for number in leaving.SIGNALS]
    with pytest.raises(Interrupted):
        go(SMALL, out=tmp_path / "run", watch=stop)

    assert before == [signal.getsignal(number) for number in leaving.SIGNALS]


def test_ctrl_c_in_verify_names_no_folder_that_is_gone(go: Callable[..., fedsim.Run], tmp_path: Path) -> None:
    """What was interrupted is the second run, in a folder of its own that is deleted; the first is as it was."""
    run = go(SMALL)
    with pytest.raises(Interrupted) as raised:
        verify(run.path, tmp_path / "scratch" / "run", watch=stop)

    assert f"interrupted; {run.path} is as it was." == str(raised.value)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a child of this process")
def test_a_kill_at_any_moment_leaves_no_name_that_cannot_be_read(go: Callable[..., fedsim.Run], tmp_path: Path) -> None:
    """Killed between any two calls of taking its place, a run has a folder with a manifest, or none."""
    about = go(SMALL).manifest
    seen = [place_killed(tmp_path / f"at-{moment}", moment, about) for moment in range(1, 8)]

    assert {"none", "manifest"} == set(seen) and seen == sorted(seen, reverse=True)


def place_killed(root: Path, moment: int, about: dict[str, Any]) -> str:
    """Have a child take its place and die before its *moment*-th call; return what is there."""
    root.mkdir()
    folder = root / "runs" / "tiny-7"
    child = os.fork()
    if not child:
        calls = 0

        def count(event: str, words: tuple[Any, ...]) -> None:
            nonlocal calls
            if event in ("open", "os.mkdir", "os.rename"):
                calls += 1
                if calls == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        take_place("tiny", 7, folder, lambda where: manifest.write(where, {**about, "status": "running"}))
        os._exit(0)
    os.waitpid(child, 0)
    if not folder.exists():
        take_place("tiny", 7, folder, lambda where: manifest.write(where, about))  # Its name is free.
        return "none"
    assert "tiny" == fedsim.load(folder).name
    return "manifest"


def test_a_kill_costs_what_came_since_the_last_model(
    go: Callable[..., fedsim.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is saved while the run goes; killed after round 2, the folder holds the model of round 2."""
    monkeypatch.setattr(session, "CHECKPOINT_WALL_S", -1.0)
    monkeypatch.setattr(session, "CHECKPOINT_SHARE", -1.0)
    kept = dict[int, str]()

    def look(told: Progress) -> None:
        shutil.copytree(tmp_path / "run", tmp_path / f"killed-{told.round}")
        if told.round:
            kept[told.round] = digest_of(fedsim.load(tmp_path / f"killed-{told.round}").params())

    run = go({**SMALL, "server.rounds": 3}, out=tmp_path / "run", watch=look)
    shorter = go({**SMALL, "server.rounds": 2})

    assert {1, 2, 3} == set(kept) and len(set(kept.values())) == 3
    assert (digest_of(shorter.params()), digest_of(run.params())) == (kept[2], kept[3])


def test_a_taken_place_is_not_written_into(tmp_path: Path) -> None:
    """A folder with something in it is refused, also where it came between the look and the taking."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").write_text("mine")
    with pytest.raises(ScenarioError, match="not empty"):
        take_place("tiny", 7, tmp_path / "run", lambda folder: None)

    assert ["file"] == [path.name for path in (tmp_path / "run").iterdir()] and ["run"] == os.listdir(tmp_path)


def test_nohup_is_respected(tmp_path: Path) -> None:
    """Who had a hangup ignored wants the run to go on."""
    code = (
        "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); sys.argv = ['fedsim', '--help']\n"
        "from fedsim.cli import main; main(); print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert said.stdout.endswith("True\n"), said.stderr


def test_warnings_may_be_errors(tmp_path: Path) -> None:
    """Under ``-W error`` fedsim starts, runs and reports: what dependencies warn of is told, and of ours there is nothing."""
    import json

    code = "import json, sys, fedsim; from fedsim.report.page import write_report; "
    code += "write_report(fedsim.run(json.loads(sys.argv[1]), out=sys.argv[2]))"
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, json.dumps(tiny_table(SMALL)), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    started = subprocess.run([sys.executable, "-W", "error", "-m", "fedsim", "--help"], capture_output=True, text=True, timeout=60)

    assert 0 == said.returncode == started.returncode, said.stderr + started.stderr
    assert "fedsim/" not in said.stderr.replace(str(tmp_path), "") and (tmp_path / "run" / MODEL_FILE).exists()
