"""The client side: moves the model towards a point of the client's own, and remembers how often it did."""

import random

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context):
    """Take a noisy step towards this client's point; the longer it has been at it, the smaller."""
    state = context.state.config_records.setdefault("mine", ConfigRecord({"tasks": 0}))
    state["tasks"] += 1
    point = np.full(3, float(context.node_config["partition-id"]))
    w = message.content["arrays"]["w"].numpy()
    w = w + (point - w) / (1 + state["tasks"]) + 0.01 * random.random()
    metrics = MetricRecord({"num-examples": 10 * (1 + context.node_config["partition-id"]), "tasks": state["tasks"]})
    return Message(RecordDict({"arrays": ArrayRecord({"w": Array(w)}), "metrics": metrics}), reply_to=message)
