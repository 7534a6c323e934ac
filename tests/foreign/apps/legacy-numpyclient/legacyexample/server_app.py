"""The server side."""

from flwr.app import Context
from flwr.compat.server import ServerAppComponents
from flwr.server import ServerConfig
from flwr.server.strategy import FedAvg
from flwr.serverapp import ServerApp


def weighted(metrics):
    """Return the mean of what clients report, by examples."""
    total = sum(n for n, _ in metrics)
    return {name: sum(n * m[name] for n, m in metrics) / total for name in metrics[0][1]}


def server_fn(context: Context):
    """Return strategy and config."""
    strategy = FedAvg(
        fraction_fit=context.run_config["fraction-fit"],
        fraction_evaluate=1.0,
        fit_metrics_aggregation_fn=weighted,
        evaluate_metrics_aggregation_fn=weighted,
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=context.run_config["num-server-rounds"]))


app = ServerApp(server_fn=server_fn)
