"""The client side."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Move the model a little, by a draw."""
    w = message.content["arrays"]["w"].numpy()
    w = w + np.random.normal(size=w.shape)
    metrics = MetricRecord({"num-examples": 10 + context.node_config["partition-id"] % 7, "train_loss": float(np.abs(w).mean())})
    return Message(RecordDict({"arrays": ArrayRecord({"w": Array(w)}), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the model."""
    w = message.content["arrays"]["w"].numpy()
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 10, "eval_loss": float(np.abs(w).mean())})}), reply_to=message)
