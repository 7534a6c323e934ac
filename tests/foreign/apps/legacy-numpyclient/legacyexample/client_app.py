"""The client side."""

import numpy as np
from flwr.app import Context
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp


class FlowerClient(NumPyClient):
    """Trains a vector towards the mean of its data."""

    def __init__(self, partition_id):
        self.data = np.random.default_rng(partition_id).normal(partition_id, 1.0, size=(30, 4)).astype(np.float32)

    def get_parameters(self, config):
        return [np.zeros(4, np.float32)]

    def fit(self, parameters, config):
        noise = np.random.normal(size=4).astype(np.float32)
        return [parameters[0] + 0.5 * (self.data.mean(0) - parameters[0]) + 0.01 * noise], len(self.data), {"noise": float(noise[0])}

    def evaluate(self, parameters, config):
        return float(np.abs(self.data.mean(0) - parameters[0]).mean()), len(self.data), {"bias": float(parameters[0].mean())}


def client_fn(context: Context):
    """Return the client of this node."""
    return FlowerClient(context.node_config["partition-id"]).to_client()


app = ClientApp(client_fn=client_fn)
