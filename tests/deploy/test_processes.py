"""What a deployment starts ends with it: told to, by Ctrl-C, by a kill of the launcher, and also what its children have started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lingering import left_of, until

from fedsim.real.processes import Processes

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) > 1:  # A grandchild in a session of its own, as Flower's SuperExec is.
    subprocess.Popen([sys.executable, __file__], start_new_session=True)
print("up", flush=True)
time.sleep(600)
"""
LAUNCHER = """
import sys, time
from pathlib import Path
from fedsim.real.processes import Processes
with Processes(Path(sys.argv[1]), Path(sys.argv[3])) as processes:
    import os
    processes.start("it", [sys.executable, sys.argv[2], "with a child"], os.environ, Path.cwd())
    print("started", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def marker(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a mark in the environment of whatever this test starts."""
    mark = f"FEDSIM_TEST_MARK={time.monotonic_ns()}-{os.getpid()}"
    monkeypatch.setenv(*mark.split("="))
    return mark


@pytest.fixture
def stubborn(tmp_path: Path) -> Path:
    """Return a program that ignores SIGTERM, and with a word starts another like it in a session of its own."""
    script = tmp_path / "stubborn.py"
    script.write_text(STUBBORN, encoding="utf-8")
    return script


def test_nothing_is_left(marker: str, stubborn: Path, tmp_path: Path) -> None:
    """A child that ignores SIGTERM, and its child in another session, have ended when the block is left."""
    private = tmp_path / "private"
    private.mkdir()
    with Processes(tmp_path, private) as processes:
        processes.start("it", [sys.executable, str(stubborn), "with a child"], os.environ, tmp_path)
        until(lambda: len(left_of(marker, "stubborn")) == 2)

    assert [] == left_of(marker, "stubborn")
    assert private.exists()  # A launcher that is there keeps logs first.


def test_an_orphan_is_found(marker: str, stubborn: Path, tmp_path: Path) -> None:
    """A grandchild whose parent was killed is ended too."""
    with Processes(tmp_path) as processes:
        processes.start("it", [sys.executable, str(stubborn), "with a child"], os.environ, tmp_path)
        until(lambda: len(left_of(marker, "stubborn")) == 2)
        processes.kill("it")
        ended = processes.wait("it", time.monotonic() + 20)
        orphans = left_of(marker, "stubborn")

    assert ended is not None and "was ended by signal 9" == ended.how
    assert 1 == len(orphans)
    assert [] == left_of(marker, "stubborn")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_launcher_is_killed(number: signal.Signals, marker: str, stubborn: Path, tmp_path: Path) -> None:
    """Killed with -9 itself, or by a signal that nobody caught, a launcher leaves nothing: no process, and not its private folder."""
    private = tmp_path / "private"
    (private / "certificates").mkdir(parents=True)
    (private / "certificates" / "node-0.key").write_text("secret", encoding="utf-8")
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path), str(stubborn), str(private)], stdout=subprocess.PIPE)
    assert launcher.stdout is not None and b"started\n" == launcher.stdout.readline()
    until(lambda: len(left_of(marker, "stubborn")) == 3)  # The launcher names it, too.
    launcher.send_signal(number)
    there_to_the_end = private.exists()
    launcher.communicate()
    until(lambda: not left_of(marker, "stubborn"))
    until(lambda: not private.exists())

    assert [] == left_of(marker, "stubborn")
    assert (True, False, True) == (there_to_the_end, private.exists(), stubborn.exists())


def test_the_keeper_is_killed(marker: str, stubborn: Path, tmp_path: Path) -> None:
    """Even should the keeper itself be killed, its children are; the launcher is told in words."""
    with Processes(tmp_path) as processes:
        processes.start("it", [sys.executable, str(stubborn)], os.environ, tmp_path)
        until(lambda: len(left_of(marker, "stubborn")) == 1)
        for pid in left_of(marker, "keeper.py"):
            os.kill(pid, signal.SIGKILL)
        until(lambda: not left_of(marker, "stubborn"))
        with pytest.raises(Exception, match="the process that kept SuperLink and SuperNodes was killed"):
            processes.wait("it", time.monotonic() + 20)

    assert [] == left_of(marker, "stubborn")


def test_how_they_end(tmp_path: Path) -> None:
    """Codes are told, and so is a program that is not there; what was said is in the logs."""
    words: dict[str, Callable[[], list[str]]] = {
        "three": lambda: [sys.executable, "-c", "print('bye'); raise SystemExit(3)"], "absent": lambda: ["/no/such/program"],
    }  # fmt: skip
    with Processes(tmp_path) as processes:
        for name, argv in words.items():
            processes.start(name, argv(), os.environ, tmp_path)
        how = {name: ended.how for name in words if (ended := processes.wait(name, time.monotonic() + 20))}

    assert {"three": "ended with code 3", "absent": "could not be started (/no/such/program: No such file or directory)"} == how
    assert "bye\n" == processes.said("three")
