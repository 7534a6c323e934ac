"""The words that start a SuperLink, a SuperNode and a run, and the environment they want. Starts nothing itself."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedsim.core.errors import ScenarioError
from fedsim.real.certificates import Certificates

OLDEST = (1, 38)
"""The first flwr whose SuperLink and SuperNode take these words."""
PROGRAMS = ("flower-superlink", "flower-supernode", "flower-superexec", "flwr", "flwr-serverapp", "flwr-clientapp")
QUOTE = "\\u0022"
"""A quotation mark in a text of TOML, without one."""
CONNECTION = "fedsim"
"""What the SuperLink is called in Flower's own configuration."""

QUIET: Mapping[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""No telemetry, no look for updates, no packages installed at run time: nothing of this reaches for the internet."""
ONE_THREAD: Mapping[str, str] = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
"""One thread per process: nodes share the machine, and bits are those of a simulation."""
POLLS: Mapping[str, str] = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05"}
"""How often a SuperExec asks for a task, in seconds. Flower's own is 1; the SuperNode's 3 s between two looks for a message are fixed."""


def superlink(host: str, port: int, secured: Certificates | None, nodes_port: int | None = None) -> list[str]:
    """Return the command of a SuperLink that listens at *host* and *port*, for SuperNodes at *nodes_port* where these have one."""
    apart = [] if nodes_port is None else ["--fleet-api-address", f"{host}:{nodes_port}"]
    return [
        "flower-superlink", *_tls(secured), "--disable-runtime-dependency-installation", "--host", host, "--port", str(port), *apart,
    ]  # fmt: skip


def supernode(
    server: str, host: str, port: int, config: Mapping[str, str | int], secured: Certificates | None, key: Path | None = None
) -> list[str]:
    """Return the command of a SuperNode of the SuperLink at *server* (host:port); its own processes reach it at *host* and *port*.

    *config* is its node_config; *key* the private key it signs with, where the SuperLink asks for one.
    """
    tls = ["--insecure"] if secured is None else ["--root-certificates", str(secured.authority)]
    signed = [] if key is None else ["--auth-supernode-private-key", str(key)]
    return [
        "flower-supernode", *tls, *signed, "--superlink", server, "--host", host, "--port", str(port), "--node-config", words(config),
    ]  # fmt: skip


def register(public_key: Path) -> list[str]:
    """Return the command that tells the SuperLink of a node's public key."""
    return ["flwr", "supernode", "register", str(public_key), CONNECTION]


def run(app: Path, config: Path | None = None) -> list[str]:
    """Return the command that runs the app in the folder *app*, its config changed as the TOML file *config* says."""
    return ["flwr", "run", str(app), CONNECTION, *([] if config is None else ["--run-config", str(config)]), "--stream"]


def connection(server: str, authority: Path | None) -> str:
    """Return Flower's own configuration file: the SuperLink at *server*."""
    safe = "insecure = true" if authority is None else f"root-certificates = {toml(str(authority))}"
    return f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "{server}"\n{safe}\n'


def words(config: Mapping[str, str | int | float]) -> str:
    """Return *config* as Flower's ``--node-config`` and ``--run-config`` take it: a text ends at its first quotation mark there.

    >>> words({"partition-id": 0, "loader": "mine:load"})
    'partition-id=0 loader="mine:load"'
    >>> print(words({"set": '["server.rounds=3"]'}))
    set="[\\u0022server.rounds=3\\u0022]"
    """
    return " ".join(f"{name}={toml(value, quote=QUOTE)}" for name, value in config.items())


def toml(value: str | float, quote: str = '\\"') -> str:
    """Return a text or a number as TOML has it, a quotation mark in it as *quote*."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', quote) + '"'
    return str(value)


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a process of this deployment whose Flower home is the folder *home*: ours, quiet, of one thread.

    Whatever this process can import, that one can too; its programs are those beside this Python; no proxy stands between processes
    of one machine; and what is imported is compiled once, or each message's process would compile all of torch anew.
    """
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    beside = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    local = [name for name in (os.environ.get("NO_PROXY") or os.environ.get("no_proxy", ""), "127.0.0.1", "localhost") if name]
    return {
        **ours, **QUIET, **ONE_THREAD, **POLLS,
        "FLWR_HOME": str(home), "PATH": os.pathsep.join(beside), "NO_PROXY": ",".join(local), "no_proxy": ",".join(local),
        "PYTHONPATH": os.pathsep.join(str(Path(place or ".").absolute()) for place in sys.path), "PYTHONUNBUFFERED": "1",
    }  # fmt: skip


def check_flower() -> None:
    """Refuse a Flower that is not there, or too old, before anything is started. Raises ScenarioError."""
    needed = f"flwr>={'.'.join(map(str, OLDEST))},<2"
    try:
        found = version("flwr")
    except PackageNotFoundError:
        raise ScenarioError(f"deploy: Flower is not installed here. pip install '{needed}' brings it.") from None
    number = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if number < OLDEST:
        raise ScenarioError(f"deploy: flwr {found} is too old: its SuperLink takes other words. pip install '{needed}' brings another.")
    path = environment(Path())["PATH"]
    if gone := [name for name in PROGRAMS if shutil.which(name, path=path) is None]:
        raise ScenarioError(f"deploy: {gone[0]} of flwr {found} is neither beside {sys.executable} nor on PATH. pip install '{needed}'.")


def line(command: Sequence[str]) -> str:
    """Return *command* as a shell takes it."""
    return shlex.join(command)


def _tls(secured: Certificates | None) -> list[str]:
    if secured is None:
        return ["--insecure"]
    return [
        "--ssl-ca-certfile", str(secured.authority), "--ssl-certfile", str(secured.server), "--ssl-keyfile", str(secured.server_key),
        "--enable-supernode-auth",
    ]  # fmt: skip
