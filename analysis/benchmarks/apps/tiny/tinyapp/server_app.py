"""The server side."""

import random

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg over everybody, seeded as Flower's documentation says."""
    random.seed(context.run_config.get("seed", 0))
    np.random.seed(context.run_config.get("seed", 0))
    arrays = ArrayRecord({"w": Array(np.zeros(context.run_config.get("parameters", 10)))})
    FedAvg(fraction_train=0.5, fraction_evaluate=0.5).start(
        grid=grid, initial_arrays=arrays, num_rounds=context.run_config.get("num-server-rounds", 10)
    )
