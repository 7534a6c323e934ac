"""The client side."""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import arrays_size_mod

from numpyexample.task import load_data, train


def counting_mod(message, context, call_next):
    """Count this client's messages in its context."""
    seen = context.state.config_records.setdefault("seen", ConfigRecord({"messages": 0}))
    seen["messages"] += 1
    return call_next(message, context)


app = ClientApp(mods=[counting_mod])


@app.train(mods=[arrays_size_mod])
def fit(message: Message, context: Context):
    """Train on the local partition."""
    x, y = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    w = message.content["arrays"]["w"].numpy()
    w, loss = train(w, x, y, message.content["config"]["lr"])
    seen = context.state["seen"]["messages"]
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(x), "seen": seen})
    content = RecordDict({"arrays": ArrayRecord([w]), "metrics": metrics})
    content["arrays"] = ArrayRecord({"w": content["arrays"]["0"]})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context):
    """Evaluate on the local partition."""
    x, y = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    w = message.content["arrays"]["w"].numpy()
    metrics = MetricRecord({"eval_loss": float(np.mean((x @ w - y) ** 2)), "num-examples": len(x)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)
