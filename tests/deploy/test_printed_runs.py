"""What is printed for real machines, typed on this one: in shells as a reader would, and the services of a compose file as processes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from lingering import left_of, until

import fedsim
from fedsim.real.deployment import free_ports

ROOT = Path(__file__).parents[2]
NODES = 2
WORDS = ("--set", "training.optimizer.lr=0.2", "--set", "server.rounds=1", "--seed", 3)
SETTINGS = {"clients.count": NODES, "training.optimizer.lr": 0.2, "server.rounds": 1}
WAIT_S = 600.0
"""Ten times what it takes on a machine that does nothing else."""


class Machine:
    """A machine of a reader's: a folder where he stands, a home of his own, and what was started there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.started = folder, folder / "log.txt", list[subprocess.Popen[bytes]]()
        (folder / "home").mkdir(parents=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "OMP_", "MKL_", "OPENBLAS_"))}
        local = {"no_proxy": "localhost,127.0.0.1", "NO_PROXY": "localhost,127.0.0.1", "PYTHONUNBUFFERED": "1"}
        beside = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        self.environment = {**kept, **local, **beside, "HOME": str(folder / "home")}

    def types(self, words: str | Sequence[str], **more: str) -> subprocess.Popen[bytes]:
        """Type a block of shell, or start a command, and come back at once."""
        command = ["bash", "-c", words] if isinstance(words, str) else list(words)
        with self.log.open("ab") as log:
            begun = subprocess.Popen(
                command, cwd=self.folder, env={**self.environment, **more}, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        self.started.append(begun)
        return begun

    def said(self) -> str:
        """Return what was written on the terminal."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def end(self) -> None:
        """End what was started here, with all that it started in its session."""
        for begun in self.started:
            with suppress(ProcessLookupError):
                os.killpg(begun.pid, signal.SIGTERM)
        for begun in self.started:
            with suppress(subprocess.TimeoutExpired):
                begun.wait(20.0)
            with suppress(ProcessLookupError):
                os.killpg(begun.pid, signal.SIGKILL)
            begun.wait(20.0)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Machine]]:
    """Return what makes a machine by its name; nothing that was started there is left afterwards."""
    mark = f"FEDSIM_TEST_MARK={time.monotonic_ns()}-{os.getpid()}"
    monkeypatch.setenv(*mark.split("="))
    made: list[Machine] = []

    def make(name: str) -> Machine:
        made.append(Machine(tmp_path / name))
        return made[-1]

    yield make
    for each in reversed(made):  # Clients first.
        each.end()
    until(lambda: not set(left_of(mark)) - {os.getpid()}, 30.0)
    left = set(left_of(mark)) - {os.getpid()}
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def run_in(server: Machine, begun: subprocess.Popen[bytes]) -> fedsim.Run:
    """Return the run in *server*'s folder once it is there and what was *begun* for it has ended, or say what was on the terminal."""
    until(lambda: bool(list(server.folder.glob("runs/*/report.html"))) or begun.poll() not in (None, 0), WAIT_S)
    found = list(server.folder.glob("runs/*/manifest.json"))
    assert found, server.said()
    until(lambda: begun.poll() is not None, 60.0)
    return fedsim.load(found[0].parent)


def is_its_simulation(run: fedsim.Run, scenario: Path, out: Path) -> None:
    """Hold a deployed *run* to the simulation of the same words."""
    simulated = fedsim.run(scenario, overrides=SETTINGS, seed=3, out=out)

    assert ("done", NODES, {"arrived"}) == (run.status, len(run.tasks), set(run.tasks.outcome))
    assert (run.path / "model.safetensors").is_file() and run.params()
    assert simulated.manifest["model"]["content"] == run.manifest["model"]["content"]
    assert simulated.final == run.final


@pytest.mark.slow
@pytest.mark.parametrize("tls", [[], ["--tls"]], ids=["as it is", "tls asked for"])
def test_the_blocks(
    tls: list[str], cli: Callable[..., Any], scenario_file: Callable[..., Path], machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    """Pasted into a shell each, the server's block and the clients' make the run, whose parameters are the simulation's."""
    port, *ports = free_ports(1 + NODES)
    scenario = scenario_file()
    answer = cli("deploy", scenario, "--nodes", NODES, *WORDS, "--print", *tls, "--port", port)
    first, *clients = answer.out.replace("server.example.org", "localhost").split("\n# --- Client ")
    assert (0, NODES) == (answer.code, len(clients))
    server = machine("server")
    begun = server.types(first)
    until(lambda: "uccessfully started run" in server.said() or begun.poll() is not None, WAIT_S)
    assert begun.poll() is None, server.said()
    for node, block in enumerate(clients):
        there = machine(f"client{node}")
        (there.folder / "certificates").mkdir()
        for name in re.findall(r"certificates/[\w.-]+", block.splitlines()[0]):  # What its first line says it has from the server.
            shutil.copy(server.folder / name.rstrip("."), there.folder / name.rstrip("."))
        assert 2 == len(list((there.folder / "certificates").iterdir()))
        there.types(f"# --- Client {block}".replace(f"--port {9094 + node}", f"--port {ports[node]}"))

    run = run_in(server, begun)
    is_its_simulation(run, scenario, tmp_path / "simulated")
    assert (server.folder / "flower-home" / "config.toml").is_file() and not (server.folder / "home" / ".flwr" / "config.toml").exists()
    assert left_of(f"HOME={server.folder / 'home'}", "flower-superlink"), "the SuperLink goes on until it is ended"


def services_of(text: str) -> Mapping[str, Any]:
    """Return the services of a compose file; that each key is one that compose knows, where there is no docker to say so."""
    table = yaml.safe_load(text)
    known = {"image", "build", "environment", "command", "volumes", "depends_on", "healthcheck", "profiles"}
    for service in table["services"].values():
        assert set(service) <= known
        assert {volume.split(":")[0] for volume in service["volumes"] if not volume.startswith("./")} <= set(table["volumes"])
        assert {"context", "dockerfile_inline"} == set(service["build"])
    return table["services"]


@pytest.mark.slow
def test_the_compose_file(
    cli: Callable[..., Any], scenario_file: Callable[..., Path], machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    """What its first lines type, and its services' commands as processes in their order, make the run.

    Each service is a machine that has what its volumes bring and no more; names and paths in containers become those here.
    """
    (port,) = free_ports(1)
    scenario = scenario_file()
    answer = cli("deploy", scenario, "--nodes", NODES, *WORDS, "--print", "--compose", "--port", port)
    services, host = services_of(answer.out), machine("host")
    once = [line.removeprefix("#   ") for line in answer.out.splitlines() if line.startswith("#   ")]
    assert 0 == host.types("\n".join(["set -e", *once])).wait(120.0), host.said()
    if shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        (host.folder / "compose.yaml").write_text(answer.out)
        assert 0 == host.types(["docker", "compose", "config", "--quiet"]).wait(60.0), host.said()

    def up(name: str) -> tuple[Machine, subprocess.Popen[bytes]]:
        there, service = machine(name), services[name]
        for volume in service["volumes"]:
            source, inside = volume.split(":")[:2]
            place = there.folder / "root" / inside.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            if source.startswith("./") and source != "./runs":
                place.symlink_to(host.folder / source)
            else:
                place.mkdir()

        def here(text: str) -> str:
            moved = re.sub(r"(?<![\w/.])/(certificates|fedsim-app|state)\b", rf"{there.folder / 'root'}/\1", text)
            moved = moved.replace("--port 9094", f"--port {free_ports(1)[0]}").replace("$$", "$")
            return re.sub(r"\bsuperlink:", "localhost:", moved)

        words = [here(word) for word in service["command"]]
        if "9094" in words:
            words[words.index("9094")] = str(free_ports(1)[0])
        environment = {key: here(value) for key, value in service["environment"].items()}
        return there, there.types(words, **environment)

    link, _ = up("superlink")
    ready = services["superlink"]["healthcheck"]["test"][1:]
    until(lambda: not host.types(ready).wait(30.0), WAIT_S)
    registered, ended = up("registered")
    assert 0 == ended.wait(120.0), registered.said()
    for node in range(NODES):
        up(f"supernode-{node}")
    _, begun = up("run")

    is_its_simulation(run_in(link, begun), scenario, tmp_path / "simulated")
