"""A SuperLink and SuperNodes on this machine, for any Flower app: brought up, looked after, taken down. Knows no scenario."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsim.core.errors import RunError, ScenarioError
from fedsim.flower.compat_app import nodes_apart
from fedsim.real import commands
from fedsim.real.certificates import Certificates, make_certificates
from fedsim.real.processes import Ended, Processes

HOST = "127.0.0.1"
START_S = 120.0
"""How long a SuperLink may take until it listens: seconds of imports, on a machine that may be busy."""
COMMAND_S = 120.0
"""How long one of Flower's commands may take."""
TRIES = 3
"""How often a port that we found free, and somebody took meanwhile, is replaced by another."""
TAKEN = "ddress already in use"
KNOWN = "SuperNode ID"
"""What a SuperNode says once the SuperLink has let it in."""


@dataclass(eq=False)
class Deployment:
    """What is up, in the private folder *place*: the *processes*, where the SuperLink listens, and the nodes' configs."""

    place: Path
    processes: Processes
    configs: Sequence[Mapping[str, str | int]]
    cwd: Path
    secured: Certificates | None = None
    asked_port: int | None = None
    port: int = 0
    nodes_port: int | None = None
    """Where SuperNodes find the SuperLink, if not there."""
    gone: dict[int, Ended] = field(default_factory=dict[int, Ended])
    _runs: int = 0

    @property
    def server(self) -> str:
        """Return where the SuperLink listens, as host:port."""
        return f"{HOST}:{self.port}"

    @property
    def nodes_server(self) -> str:
        """Return where the SuperLink listens for SuperNodes, as host:port."""
        return f"{HOST}:{self.nodes_port or self.port}"

    def home(self, name: str) -> Path:
        """Return the Flower home of *name*, which is made where it is not there."""
        folder = self.place / name
        folder.mkdir(exist_ok=True)
        return folder

    def start(self, name: str, argv: Sequence[str], home: str = "") -> None:
        """Start one of Flower's programs under *name*, with the Flower home of *home* (its own unless given)."""
        self.processes.start(name, argv, commands.environment(self.home(home or name)), self.cwd)

    def bring_up(self) -> None:
        """Start the SuperLink, wait until it listens, make the nodes known where that is asked for, and start them.

        Raises RunError, with the last words of what failed.
        """
        for left in reversed(range(TRIES)):
            port, nodes_port = free_ports(2)
            self.port, self.nodes_port = self.asked_port or port, nodes_port if nodes_apart() else None
            name = "superlink"
            self.start(name, commands.superlink(HOST, self.port, self.secured, *([self.nodes_port] if self.nodes_port else [])))
            ended = self._listening(name)
            if ended is None:
                break
            if self.asked_port or not left or TAKEN not in self.processes.said(name):
                raise RunError(f"the SuperLink never came up: it {ended.how}{self.words(name)}")
            self.processes.log(name).unlink()
        (self.home("user") / "config.toml").write_text(
            commands.connection(self.server, self.secured.authority if self.secured else None), encoding="utf-8"
        )
        if self.secured is not None:
            self._register(self.secured)
        for node, port in enumerate(free_ports(len(self.configs))):
            self.start_node(node, port)

    def start_node(self, node: int, port: int | None = None) -> None:
        """Start the SuperNode number *node*; its own processes reach it at *port*, a free one unless given."""
        secured, config = self.secured, self.configs[node]
        key = None if secured is None else secured.node_keys[node]
        port = free_ports(1)[0] if port is None else port
        self.start(node_name(node), commands.supernode(self.nodes_server, HOST, port, config, secured, key))

    def command(self, name: str, argv: Sequence[str]) -> str:
        """Return what one of Flower's commands says, run to its end. Raises RunError where it fails, or never ends."""
        self.start(name, argv, home="user")
        ended = self.processes.wait(name, time.monotonic() + COMMAND_S)
        if ended is None:
            raise RunError(f"'{commands.line(argv)}' did not end within {COMMAND_S:g} s{self.words(name)}")
        if ended.code:
            raise RunError(f"'{commands.line(argv)}' {ended.how}{self.words(name)}")
        return self.processes.said(name)

    def run(self, app: Path, config: Path | None = None) -> str:
        """Start a run of the app in the folder *app*, and return the name of the process that ends when the run does."""
        self._runs += 1
        name = f"run-{self._runs}" if self._runs > 1 else "run"
        self.start(name, commands.run(app, config), home="user")
        return name

    def look(self, wait_s: float) -> None:
        """Take note of what has ended, waiting up to *wait_s* for it.

        Raises RunError where the SuperLink has, or where a node has that was never let in. Nodes that went later are *gone*.
        """
        for ended in self.processes.hear(wait_s):
            if self.processes.ended.get(ended.name) is not ended:  # News of a first try: another has taken its place.
                continue
            if ended.name == "superlink":
                raise RunError(f"the SuperLink {ended.how} in the middle of the run{self.words(ended.name)}")
            if (node := node_number(ended.name)) is None:
                continue
            if KNOWN not in self.processes.said(ended.name):
                if TAKEN in self.processes.said(ended.name):
                    self.processes.log(ended.name).unlink()
                    self.start_node(node)
                    continue
                raise RunError(f"SuperNode {node} never joined: it {ended.how}{self.words(ended.name)}")
            self.gone[node] = ended

    def counters(self, run: str) -> dict[str, Any]:
        """Return what the SuperLink counted of a run that has ended: bytes sent and received, client seconds; nothing where it is gone."""
        found = re.search(r"started run (\d+)", self.processes.said(run))
        if found is None:
            return {}
        with suppress(RunError, ValueError, LookupError):
            said = self.command(f"list-{run}", ["flwr", "list", commands.CONNECTION, "--run-id", found[1], "--format", "json"])
            return dict(json.loads(said[said.index("{") :])["runs"][0])
        return {}

    def words(self, name: str) -> str:
        """Return the end of a sentence: what *name* said last, unless it was cut short."""
        ended = self.processes.ended.get(name)
        if ended is not None and (ended.code < 0 or ended.error):
            return "."
        said = last_words(self.processes.said(name)).rstrip(".")
        return f"; it said: {said}." if said else "; it said nothing."

    def _register(self, secured: Certificates) -> None:
        names = [f"register-{node}" for node in range(len(self.configs))]
        for node, name in enumerate(names):
            self.start(name, commands.register(secured.public(node)), home="user")
        until = time.monotonic() + COMMAND_S
        for node, name in enumerate(names):
            ended = self.processes.wait(name, until)
            if ended is None or ended.code:
                how = ended.how if ended else f"did not end within {COMMAND_S:g} s"
                raise RunError(f"SuperNode {node} could not be registered: flwr {how}{self.words(name)}")

    def _listening(self, name: str) -> Ended | None:
        """Wait until the SuperLink listens; return how it ended, where it did instead."""
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            self.processes.hear(0.1)
            if name in self.processes.ended:
                return self.processes.ended[name]
            # Not by connecting alone: on a port that somebody else took meanwhile it is they who answer.
            if "Uvicorn running" in self.processes.said(name):
                with suppress(OSError), socket.create_connection((HOST, self.port), 1.0):
                    return None
        raise RunError(f"the SuperLink did not listen within {START_S:g} s{self.words(name)}")


@contextmanager
def deployment(
    place: Path, configs: Sequence[Mapping[str, str | int]], *, port: int | None = None, tls: bool = False, cwd: Path | None = None,
    private: bool = False,
) -> Generator[Deployment]:
    """Bring up a SuperLink and a SuperNode for each node_config in *configs*, with all they need in the folder *place*.

    *port* is the SuperLink's, a free one unless given; with *tls* everything is encrypted and only these nodes are let in. Whatever
    was started has ended when this is left, however it is left; a *private* place goes too, where whoever asked is killed. Raises
    ScenarioError for a port in use, RunError for the rest.
    """
    if port is not None:
        check_port(port)
    logs = place / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        processes = stack.enter_context(Processes(logs, place if private else None))
        secured = make_certificates(place / "certificates", len(configs)) if tls else None  # Now that somebody would take them away.
        here = Deployment(place, processes, configs, cwd or Path.cwd(), secured, port)
        here.bring_up()
        yield here


def node_name(node: int) -> str:
    """Return what the SuperNode number *node* is called among the processes."""
    return f"supernode-{node}"


def node_number(name: str) -> int | None:
    """Return which SuperNode is called *name*, None where none is.

    >>> node_number(node_name(3)), node_number("superlink")
    (3, None)
    """
    found = re.fullmatch(r"supernode-(\d+)", name)
    return None if found is None else int(found[1])


def free_ports(count: int) -> list[int]:
    """Return *count* ports of this machine that nobody listens at."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in held]


def check_port(port: int) -> None:
    """Refuse a port that cannot be listened at. Raises ScenarioError."""
    if not 1 <= port <= 65535:
        raise ScenarioError(f"--port {port}: must be between 1 and 65535. Without it a free one is found.")
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
        except OSError as error:
            why = "is in use" if error.errno in (48, 98) else f"cannot be listened at ({error.strerror})"
            raise ScenarioError(f"--port {port}: {why}. Name another one, or none: a free one is found.") from None


def last_words(log: str) -> str:
    """Return what *log* says of its end: Flower's own words beside an exit code, else the last line that speaks of an error, else the last.

    >>> last_words("INFO: up\\nERROR:    [Errno 98] address already in use\\nINFO: down\\n")
    'ERROR: [Errno 98] address already in use'
    >>> last_words("ERROR :  Exit Code: 305\\nNobody let us in.\\nBye.\\n\\nFor more information, visit: <...>\\nINFO: down\\n")
    'Nobody let us in. Bye.'
    """
    plain = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", "", log)
    exits = re.findall(r"Exit Code: \d+\n(.*?)\n\s*(?:\n|$)", plain, re.DOTALL)
    lines = [" ".join(line.split()) for line in plain.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"(?<!uvicorn\.)[Ee]rror|ERROR|Exception", line)]
    return " ".join(exits[-1].split()) if exits else (telling or lines or [""])[-1]
