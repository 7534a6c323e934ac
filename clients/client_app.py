"""Flower's entry to the client side: which scenario, which client, and everything else is fedsim's.

``run_config["scenario"]`` is the scenario file; ``node_config["partition-id"]`` is the client's number.
"""

import time
from functools import lru_cache
from typing import Any

from flwr.app import ConfigRecord, Context

from fedsim.flower.apps import Site, client_app
from fedsim.scenario.build import Parts, build
from fedsim.scenario.load import load


@lru_cache(maxsize=1)
def parts_of(path: str) -> Parts:
    """Return the parts of the scenario at *path*, built once per process."""
    return build(load(path))


def site(context: Context) -> Site:
    """Return what the node behind *context* has."""
    parts = parts_of(str(context.run_config["scenario"]))
    client = parts.fleet.client(int(context.node_config["partition-id"]))
    return Site(client, parts.job, parts.engine, parts.strategy.mods, now=since_start, coding=parts.fleet.coding)


def since_start(context: Context) -> float:
    """Return the seconds since this node's first message: its stream begins there, whatever the process."""
    began: Any = context.state.config_records.setdefault("clock", ConfigRecord({"began": time.time()}))
    return time.time() - float(began["began"])


app = client_app(site)
