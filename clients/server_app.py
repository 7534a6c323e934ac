"""Flower's entry to the server side: the scenario's strategy, on the grid that Flower hands over."""

from flwr.app import Context

from clients.client_app import parts_of
from fedsim.core.types import Params
from fedsim.flower.apps import Plan, server_app
from fedsim.flower.compat import keep_types


def plan(context: Context) -> Plan:
    """Return what the server of the scenario in ``run_config`` does."""
    parts = parts_of(str(context.run_config["scenario"]))
    server, every = parts.scenario.server, parts.scenario.evaluate.every

    def evaluate(server_round: int, params: Params) -> dict[str, float] | None:
        if server_round % every and server_round != server.rounds:
            return None
        return parts.engine.evaluate(parts.scored(params), *parts.test)

    strategy = keep_types(parts.strategy.strategy, parts.first)
    return Plan(strategy, parts.first, parts.job, server.rounds, server.round_timeout_s, evaluate, parts.fleet.coding, parts.controller)


app = server_app(plan)
