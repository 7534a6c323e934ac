"""Flower's entry to the client side: run_config says which scenario, node_config which client; everything else is fedsim's."""

from pathlib import Path

from fedsim.real.apps import client_app

app = client_app(Path(__file__).parents[1])
