"""The server side."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from numpyexample.task import WEIGHTS

app = ServerApp()


def score(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Return how far the model is from the truth."""
    return MetricRecord({"distance": float(np.abs(arrays["w"].numpy() - WEIGHTS).max())})


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg."""
    print("starting", context.run_config["num-server-rounds"], "rounds")
    strategy = FedAvg(fraction_train=context.run_config["fraction-train"], min_available_nodes=2)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord({"w": Array(np.random.normal(size=4))}),
        train_config=ConfigRecord({"lr": context.run_config["lr"]}),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=score,
    )
    print("done", sorted(result.arrays))
