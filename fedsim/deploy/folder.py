"""The folder of a scenario's Flower app: what ``flwr run`` builds from. Starts nothing."""

from __future__ import annotations

from pathlib import Path

from fedsim.report.page import toml
from fedsim.scenario.load import Loaded

PROJECT = """\
[project]
name = "fedsim-app"
version = "0.1.0"
description = "A fedsim scenario as a Flower app"
license = "Apache-2.0"
dependencies = ["fedsim-online"]

[tool.flwr.app]
publisher = "fedsim"

[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"

[tool.flwr.app.config]
scenario = "scenario.toml"
set = ""
seed = -1
out = ""
nodes = 0
time-scale = 1.0
wait-s = 300.0
"""
SIDE = "from pathlib import Path\n\nfrom fedsim.deploy.apps import {side}_app\n\napp = {side}_app(Path(__file__).parent)\n"


def write_app(folder: Path, loaded: Loaded) -> None:
    """Write the app of the scenario *loaded* into the new *folder*."""
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (folder / "scenario.toml").write_text(toml(loaded.scenario.plain()), encoding="utf-8")
    for side in ("client", "server"):
        (folder / f"{side}_app.py").write_text(SIDE.format(side=side), encoding="utf-8")
