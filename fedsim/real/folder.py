"""The folder of a Flower app that is a scenario: what ``fedsim init --flower`` leaves, and ``flwr run`` takes. Runs nothing."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedsim.core.errors import ScenarioError
from fedsim.record.leaving import spoken
from fedsim.record.manifest import own_kinds
from fedsim.report.page import toml
from fedsim.scenario.between import refuse_real
from fedsim.scenario.everywhere import REAL, refuse
from fedsim.scenario.load import Loaded, load

QUICKSTART = Path(__file__).with_name("quickstart.toml")
"""The scenario of an app that names none."""
QUICKSTART_NODES = 3
"""How many nodes it waits for then: its clients are more than fit on one machine."""
LONGEST = 32
"""Characters in the name of a Flower app."""
LARGEST_BYTES = 10 * 2**20
"""What a Flower app may weigh."""
OURS = ("pyproject.toml", "client_app.py", "server_app.py", "loader.py", "scenario.toml", "README.md")


def init_app(folder: Path, scenario: Path | None = None, nodes: int = 0) -> list[str]:
    """Make the app of *scenario*, the quickstart unless given, in *folder*, new or empty, and return the names of its files.

    It waits for *nodes* nodes, as many as the scenario has clients where that is 0. Raises ScenarioError.
    """
    source = scenario or QUICKSTART
    return write_app(folder, load(source), source=source, nodes=nodes or (0 if scenario else QUICKSTART_NODES))


def write_app(folder: Path, loaded: Loaded, *, source: Path | None = None, nodes: int = 0) -> list[str]:
    """Write into *folder*, new or empty, the Flower app of a scenario, and return the names of its files.

    The scenario stands there as its file *source* has it, or as it was *loaded*; what code of its own it names stands beside it, and
    files of data that lie beside the original are named where they are. Raises ScenarioError where the folder holds something.
    """
    refuse(loaded.scenario, REAL)
    refuse_real(loaded.scenario)
    name = _name(loaded.scenario.name)
    text = source.read_text(encoding="utf-8-sig") if source else toml(loaded.scenario.plain()) + "\n"
    code = own_files(loaded)
    if taken := sorted({*code} & {*OURS}):
        raise ScenarioError(f"{loaded.folder / taken[0]}: the app has a {taken[0]} of its own. Give yours another name.")
    settings = [f"{key}={json.dumps(path)}" for key, path in data_paths(loaded)]
    files = {
        "pyproject.toml": _PYPROJECT.format(name=name, settings=_quoted(json.dumps(settings)) if settings else '""', nodes=nodes,
                                            clients=loaded.scenario.clients.count),
        "client_app.py": _CLIENT, "server_app.py": _SERVER, "loader.py": _LOADER, "scenario.toml": text,
        "README.md": _README.format(name=name, nodes=nodes or loaded.scenario.clients.count),
    }  # fmt: skip
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ScenarioError(f"{folder}: is there already and not empty. Name a new folder.")
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (folder / file).write_text(content, encoding="utf-8")
        for file, path in code.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / file)
    except OSError as error:
        raise ScenarioError(f"{error.filename or folder}: cannot be written ({spoken(error)}). Name another folder.") from None
    return [*files, *code]


def own_files(loaded: Loaded) -> dict[str, Path]:
    """Return the files beside a scenario that its own kinds come from, by their names from its folder: what they import there, too."""
    found: dict[str, Path] = {}
    waiting = [kind.partition(":")[0] for kind in own_kinds(loaded.scenario.plain())]
    while waiting:
        module = waiting.pop()
        for path in _places(loaded.folder, module):
            file = path.relative_to(loaded.folder).as_posix()
            if file not in found:
                found[file] = path
                waiting += _imported(path, module)
    return found


def data_paths(loaded: Loaded) -> list[tuple[str, str]]:
    """Return the keys by which a scenario names data that lie beside it, each with the path that finds them from anywhere here."""
    found: list[tuple[str, str]] = []
    for key, path in _paths(loaded.scenario.plain()):
        place = loaded.folder / path
        if not os.path.isabs(path) and place.exists():
            found.append((key, str(place.resolve())))
    return found


def _paths(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in table.items():
        key = f"{above}{name}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{key}.")
        elif name == "path" and isinstance(value, str):
            yield key, value


def _places(folder: Path, module: str) -> Iterator[Path]:
    """Yield the files that *module* is there, in *folder*: those of its packages, and its own."""
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        stem = folder.joinpath(*parts[:depth])
        yield from (path for path in (stem / "__init__.py", stem.with_name(f"{stem.name}.py")) if path.is_file())


def _imported(path: Path, module: str) -> Iterator[str]:
    """Yield the modules that the file *path* of *module* imports, as they are called from the scenario's folder."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # Whoever runs it is told then.
        return
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            whole = ".".join([*base, *([node.module] if node.module else [])])
            yield from (name for name in (whole, *(f"{whole}.{alias.name}".lstrip(".") for alias in node.names)) if name)


def _name(scenario: str) -> str:
    """Return *scenario* as Flower takes the name of an app: letters, digits and hyphens, beginning with a letter.

    >>> _name("my_run 2"), _name("7")
    ('my-run-2', 'fedsim-7')
    """
    name = re.sub(r"[^A-Za-z0-9]+", "-", scenario).strip("-")
    return (name if name[:1].isalpha() else f"fedsim-{name}")[:LONGEST].strip("-")


def _quoted(text: str) -> str:
    return f"'{text}'" if "'" not in text else json.dumps(text)


_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "1.0.0"
description = "A fedsim scenario as a Flower app."
license = "Apache-2.0"
dependencies = []  # fedsim is installed where SuperLink and SuperNodes are; so is what your loader needs

[tool.flwr.app]
publisher = "fedsim"

[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"

[tool.flwr.app.config]
scenario = "scenario.toml"
set = {settings}  # like '["server.rounds=3", "training.batch_size=20"]'
seed = -1         # the scenario's own
out = ""          # the server's run folder; runs/NAME-SEED below where the SuperLink was started
nodes = {nodes}         # how many SuperNodes take part; 0: as many as the scenario has clients ({clients})
time-scale = 1.0  # seconds of the scenario in a real one
wait-s = 300.0    # how long the server waits for its nodes
"""
_CLIENT = '''\
"""What a SuperNode runs for each message."""

from pathlib import Path

from fedsim.real.apps import client_app

app = client_app(Path(__file__).parent)
'''
_SERVER = '''\
"""What a SuperLink runs: the scenario, which leaves a run folder."""

from pathlib import Path

from fedsim.real.apps import server_app

app = server_app(Path(__file__).parent)
'''
_LOADER = '''\
"""A node's own data, in the place of its part of the scenario's: for SuperNodes that say so.

    flower-supernode ... --node-config 'partition-id=0 loader="loader:examples" csv="/data/hospital-0.csv"'

The server scores on the scenario's own test part; what is returned here never leaves the node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def examples(node: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return (x, y) of this node: features of the shape that the scenario's data have, and a class or a number for each.

    *node* is the node's configuration. Shapes: x (n, ...), y (n,). The example reads a table whose last column is the class.
    """
    table = np.loadtxt(node["csv"], delimiter=",", dtype=np.float32, ndmin=2)
    return table[:, :-1], table[:, -1].astype(np.int64)
'''
_README = """\
# {name}

A fedsim scenario as a Flower app: `scenario.toml` says what is run, `pyproject.toml` how.
fedsim is installed in the environment of the SuperLink and of each SuperNode.

    flower-superlink --insecure --disable-runtime-dependency-installation
    flower-supernode --insecure --superlink HOST:8000 --node-config "partition-id=0"   # and so on, {nodes} of them
    flwr run . CONNECTION --stream                                                     # CONNECTION: in ~/.flwr/config.toml

Each node is the client that its `partition-id` says, with that client's part of the scenario's data, or with its own:
fill in `loader.py`. What a client keeps beyond 1 MiB lies in `state-dir` of its node's configuration; name one.
"""
