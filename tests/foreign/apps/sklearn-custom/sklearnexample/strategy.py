"""A strategy that takes the median, and tells how far replies are apart."""

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg


class Median(FedAvg):
    """FedAvg, with the median in the place of the mean."""

    def aggregate_train(self, server_round, replies):
        valid = [reply for reply in replies if not reply.has_error()]
        if not valid:
            return None, None
        first = valid[0].content["arrays"]
        stacked = {name: np.stack([reply.content["arrays"][name].numpy() for reply in valid]) for name in first}
        spread = max(float(values.std(0).max()) for values in stacked.values())
        arrays = ArrayRecord({name: Array(np.median(values, axis=0)) for name, values in stacked.items()})
        return arrays, MetricRecord({"spread": spread})
