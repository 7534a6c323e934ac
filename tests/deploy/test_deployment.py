"""A SuperLink and SuperNodes of this machine: only known nodes are let in, and what breaks is said in one line."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lingering import left_of

from fedsim.core.errors import RunError, ScenarioError
from fedsim.real import commands
from fedsim.real.certificates import make_certificates
from fedsim.real.deployment import HOST, Deployment, deployment, free_ports

ECHO = Path(__file__).parent / "echo"


@pytest.fixture
def marker(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return a mark in the environment of whatever this test starts; none of it is there afterwards."""
    mark = f"FEDSIM_TEST_MARK={time.monotonic_ns()}-{os.getpid()}"
    monkeypatch.setenv(*mark.split("="))
    yield mark
    if Path("/proc/self/environ").exists():
        assert [os.getpid()] == left_of(mark) or [] == left_of(mark)


def echoed(here: Deployment, place: Path, nodes: int) -> list[int]:
    """Run the app that asks who is there; return which partitions answered."""
    app, out, config = place / "app", place / "answer.json", place / "run.toml"
    shutil.copytree(ECHO, app, ignore=shutil.ignore_patterns("__pycache__"))
    config.write_text(f'nodes = {nodes}\nout = "{out}"\n', encoding="utf-8")
    run = here.run(app, config)
    until = time.monotonic() + 120
    while not out.exists() and run not in here.processes.ended and time.monotonic() < until:
        here.look(0.1)
    assert out.exists(), here.processes.said(run)
    return list(json.loads(out.read_text(encoding="utf-8")))


def test_only_known_nodes_are_let_in(marker: str, tmp_path: Path) -> None:
    """With TLS a node with a key that nobody registered is refused, and so is one with none; the known one answers."""
    with deployment(tmp_path / "place", [{"partition-id": 7}], tls=True) as here:
        strange = make_certificates(tmp_path / "strange", 1).node_keys[0]
        for name, key in (("stranger", strange), ("unsigned", None)):
            here.start(name, commands.supernode(here.nodes_server, HOST, free_ports(1)[0], {"partition-id": 8}, here.secured, key))
        refused = {name: here.processes.wait(name, time.monotonic() + 60) for name in ("stranger", "unsigned")}
        found = echoed(here, tmp_path, 1)

    assert all(ended is not None and ended.code for ended in refused.values()), refused
    assert [7] == found


def test_a_superlink_that_never_comes_up(marker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log's last words are the error, in one line."""
    monkeypatch.setattr(commands, "superlink", lambda host, port, secured: ["flower-superlink", "--insecure", "--port", "no-number"])
    with pytest.raises(RunError, match=r"the SuperLink never came up: it ended with code 2; it said: .*--port.*no-number"):
        with deployment(tmp_path, [{"partition-id": 0}]):
            pass


def test_a_superlink_that_dies(marker: str, tmp_path: Path) -> None:
    """Whoever looks is told, and a node that was never let in is told of too."""
    with deployment(tmp_path, []) as here:
        here.processes.kill("superlink")
        with pytest.raises(RunError, match="the SuperLink was ended by signal 9 in the middle of the run"):
            for _ in range(100):
                here.look(0.2)


def test_a_node_that_never_joins(marker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SuperNode that ends before it was let in breaks the deployment, in its own words."""
    monkeypatch.setattr(commands, "supernode", lambda *_words: ["flower-supernode", "--insecure", "--port", "no-number"])
    with deployment(tmp_path, [{"partition-id": 0}]) as here:
        with pytest.raises(RunError, match=r"SuperNode 0 never joined: it ended with code 2; it said: .*no-number"):
            for _ in range(100):
                here.look(0.2)


def test_a_port_in_use() -> None:
    """It is said before anything starts."""
    with socket.socket() as held:
        held.bind((HOST, 0))
        held.listen()
        with pytest.raises(ScenarioError, match=rf"--port {held.getsockname()[1]}: is in use. Name another one, or none"):
            with deployment(Path("/nowhere"), [], port=held.getsockname()[1]):
                pass


