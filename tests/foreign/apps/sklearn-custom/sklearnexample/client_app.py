"""The client side."""

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.metrics import log_loss

from sklearnexample.task import create_model, load_data

app = ClientApp()


@app.train()
def train(message: Message, context: Context):
    """Take one pass over local data."""
    x, y = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    model = create_model(context.run_config["penalty"])
    model.coef_ = message.content["arrays"]["coef"].numpy()
    model.intercept_ = message.content["arrays"]["intercept"].numpy()
    model.partial_fit(x, y, classes=range(10))
    arrays = ArrayRecord({"coef": Array(model.coef_), "intercept": Array(model.intercept_)})
    metrics = MetricRecord({"accuracy": float(model.score(x, y)), "num-examples": len(x)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context):
    """Score the model on local data."""
    x, y = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    model = create_model(context.run_config["penalty"])
    model.coef_ = message.content["arrays"]["coef"].numpy()
    model.intercept_ = message.content["arrays"]["intercept"].numpy()
    loss = float(log_loss(y, model.predict_proba(x), labels=range(10)))
    return Message(RecordDict({"metrics": MetricRecord({"loss": loss, "num-examples": len(x)})}), reply_to=message)
