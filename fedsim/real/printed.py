"""What to type, and where, to run a scenario on real machines: words only. Starts nothing, and makes no file."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedsim.flower.compat_app import nodes_apart
from fedsim.real import commands
from fedsim.real.certificates import Certificates

PORT = 8000
"""Flower's own for a SuperLink."""
NODES_PORT = 9092
"""Flower's own for what SuperNodes ask a SuperLink, where it listens for them apart."""
NODE_PORT = 9094
"""Flower's own for what a SuperNode's processes ask it. Ours count up: several may be on one machine."""
APP = "fedsim-app"
"""The folder of the app, on the server."""
SECRETS = "certificates"
"""The folder of certificates and keys."""
HOME = "flower-home"
"""Flower's own folder for what the server's block types, so that no configuration of the reader's is written over."""
SERVER = "SERVER"
"""The shell's variable for the server's name, as clients reach it."""


def blocks(scenario: Path, words: Mapping[str, str | float], nodes: int, port: int | None = None) -> str:
    """Return one block of shell for the server and one for each of *nodes* clients: TLS, and only nodes that the server knows.

    Each is pasted whole, the server's first. *words* is the run's configuration beyond the scenario; *port* the SuperLink's.
    """
    port, nodes_port = port or PORT, NODES_PORT if nodes_apart() else None
    reached = f"{port}, by its clients at {nodes_port}" if nodes_port else str(port)
    every = [
        f"export {SERVER}=server.example.org",
        "export " + " ".join(f"{name}={value}" for name, value in {**commands.QUIET, **commands.ONE_THREAD}.items()),
    ]
    server = [
        "# Everywhere: this fedsim, with its commands on PATH; the server's name in the place of server.example.org.",
        "",
        f"# --- The server. It is reached at ${SERVER}:{reached}, and holds the scenario, the app, and no client's data.",
        *every,
        "# Once: the app, from the scenario; certificates for the server, a key for each client; where Flower's commands find it.",
        commands.line(["fedsim", "init", "--flower", APP, "--scenario", str(scenario)]),
        f'python -m fedsim.real.certificates {SECRETS} {nodes} "${SERVER}" localhost 127.0.0.1',
        f'export FLWR_HOME="$PWD/{HOME}"',
        'mkdir -p "$FLWR_HOME" && cat > "$FLWR_HOME/config.toml" <<END',
        *commands.connection(f"127.0.0.1:{port}", Path("$PWD") / SECRETS / "ca.pem").splitlines(),
        "END",
        "# The SuperLink. The run's folder is left below where it is started; 'kill %1' ends it afterwards.",
        f"{commands.line(commands.superlink('0.0.0.0', port, _secured(SECRETS, nodes), nodes_port))} &",
        "# Once it listens, its clients, by their public keys; nobody else is let in.",
        f"until {commands.line(['python', '-c', _listens(port)])} 2>/dev/null; do sleep 1; done",
        *(commands.line(commands.register(_secured(SECRETS, nodes).public(node))) for node in range(nodes)),
        "# And the run, which waits for its clients.",
        commands.line(["flwr", "run", APP, commands.CONNECTION, "--run-config", commands.words(words), "--stream"]),
    ]
    return "\n".join([*server, *(line for node in range(nodes) for line in ("", *_client(node, nodes, every, nodes_port or port)))])


def compose(scenario: Path, words: Mapping[str, str | float], nodes: int, port: int | None = None) -> str:
    """Return a compose file with the same in containers of one host: a SuperLink, *nodes* SuperNodes, and the run."""
    port, nodes_port = port or PORT, NODES_PORT if nodes_apart() else None
    secured, server = _secured(f"/{SECRETS}", nodes), f"superlink:{port}"
    link = commands.superlink("0.0.0.0", port, secured, nodes_port)
    known = " && ".join(commands.line(commands.register(secured.public(node))) for node in range(nodes))
    run = commands.line(["flwr", "run", f"/{APP}", commands.CONNECTION, "--run-config", commands.words(words), "--stream"])
    config = commands.connection(server, secured.authority)
    home = 'mkdir -p ~/.flwr && printf "%s" "$$FLOWER_CONFIG" > ~/.flwr/config.toml'
    lines = [
        "# Docker, and in $FEDSIM the folder of a clone of fedsim. Beside this file, once:",
        f"#   {commands.line(['fedsim', 'init', '--flower', APP, '--scenario', str(scenario)])}",
        f"#   python -m fedsim.real.certificates {SECRETS} {nodes} superlink localhost 127.0.0.1",
        "# Then docker compose up -d, and docker compose run --rm run. The run's folder is left in ./runs.",
        "x-fedsim: &fedsim",
        "  image: fedsim",
        "  build:",
        '    context: "${FEDSIM:-.}"',
        "    dockerfile_inline: |",
        *textwrap.indent(_IMAGE, "      ").splitlines(),
        "  environment:",
        *(f'    {name}: "{value}"' for name, value in {**commands.QUIET, **commands.ONE_THREAD}.items()),
        f"    FLOWER_CONFIG: {json.dumps(config)}",
        "services:",
        *_service("superlink", link, [f"./{SECRETS}:/{SECRETS}:ro", "./runs:/work/runs"]),
        f"    healthcheck: {{test: {json.dumps(['CMD', 'python', '-c', _listens(port)])}, interval: 2s, retries: 60}}",
        *_service(
            "registered", ["sh", "-c", f"{home} && {known}"], [f"./{SECRETS}:/{SECRETS}:ro"], "superlink: {condition: service_healthy}"
        ),
    ]
    for node in range(nodes):
        own = {"partition-id": node, "num-partitions": nodes, "state-dir": "/state"}
        command = commands.supernode(f"superlink:{nodes_port or port}", "127.0.0.1", NODE_PORT, own, secured, secured.node_keys[node])
        mine = [f"./{SECRETS}/{name}:/{SECRETS}/{name}:ro" for name in ("ca.pem", secured.node_keys[node].name)]
        after = "registered: {condition: service_completed_successfully}"
        lines += _service(f"supernode-{node}", command, [*mine, f"state-{node}:/state"], after)
    lines += [
        *_service("run", ["sh", "-c", f"{home} && {run}"], [f"./{SECRETS}/ca.pem:/{SECRETS}/ca.pem:ro", f"./{APP}:/{APP}:ro"]),
        "    profiles: [run]",
        "volumes:",
        *(f"  state-{node}: {{}}" for node in range(nodes)),
    ]
    return "\n".join(lines)


_IMAGE = """\
FROM python:3.12-slim
COPY . /fedsim
RUN pip install --no-cache-dir --constraint /fedsim/constraints.txt /fedsim
WORKDIR /work
"""


def _listens(port: int) -> str:
    """Return Python that raises as long as nobody listens at *port* of this machine."""
    return f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"


def _client(node: int, nodes: int, every: Sequence[str], port: int) -> list[str]:
    """Return the block of the client *node*."""
    config = {"partition-id": node, "num-partitions": nodes, "state-dir": f"fedsim-state-{node}"}
    secured = _secured(SECRETS, nodes)
    command = commands.supernode(f"{SERVER}:{port}", "127.0.0.1", NODE_PORT + node, config, secured, secured.node_keys[node])
    return [
        f"# --- Client {node}. From the server it has {secured.authority} and {secured.node_keys[node]}, and nobody else's key.",
        *every,
        '# Its own data in the place of the scenario\'s partition: add loader="package.module:function" to --node-config.',
        commands.line(command).replace(f" {SERVER}:", f' "${SERVER}":'),
    ]


def _service(name: str, command: Sequence[str], volumes: Sequence[str], after: str = "") -> list[str]:
    """Return one service of a compose file; texts as JSON has them, which YAML takes."""
    return [
        f"  {name}:",
        "    <<: *fedsim",
        f"    command: {json.dumps(list(command))}",
        f"    volumes: {json.dumps(list(volumes))}",
        *([f"    depends_on: {{{after}}}"] if after else []),
    ]


def _secured(folder: str, nodes: int) -> Certificates:
    here = Path(folder)
    return Certificates(here / "ca.pem", here / "server.pem", here / "server.key", [here / f"node-{i}.key" for i in range(nodes)])
