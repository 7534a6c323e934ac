"""The server side."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from sklearnexample.strategy import Median

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the app's own strategy."""
    arrays = ArrayRecord({"coef": Array(np.zeros((10, 64))), "intercept": Array(np.zeros(10))})
    Median(fraction_train=1.0).start(grid=grid, initial_arrays=arrays, num_rounds=context.run_config["num-server-rounds"])
