"""Flower's entry to the server side: the scenario's run, on the nodes of a SuperLink."""

from pathlib import Path

from fedsim.real.apps import server_app

app = server_app(Path(__file__).parents[1])
