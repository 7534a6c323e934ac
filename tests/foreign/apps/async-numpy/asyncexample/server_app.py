"""The server side."""

import random
import time
from time import sleep

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Keep some clients busy, and mix their models in as they come."""
    config = context.run_config
    w, version, sent = np.zeros(3), 0, {}
    began = time.time()
    while len(list(grid.get_node_ids())) < config["concurrency"]:
        time.sleep(1)

    def ask(node):
        content = RecordDict({"arrays": ArrayRecord({"w": Array(w)}), "config": ConfigRecord({"server-round": version + 1})})
        (message_id,) = grid.push_messages([Message(content, node, "train")])
        sent[message_id] = version

    for node in random.sample(list(grid.get_node_ids()), config["concurrency"]):
        ask(node)
    while version < config["total-updates"] and time.time() - began < config["patience-s"]:
        replies = list(grid.pull_messages(list(sent)))
        for reply in replies:
            stale = version - sent.pop(reply.metadata.reply_to_message_id)
            if not reply.has_error():
                rate = config["alpha"] / (1 + stale)
                w = (1 - rate) * w + rate * reply.content["arrays"]["w"].numpy()
                version += 1
        busy = len(sent)
        free = list(grid.get_node_ids())
        for node in random.sample(free, config["concurrency"] - busy):
            ask(node)
        sleep(config["poll-s"])
    print("versions", version, "after", round(time.time() - began, 3), "s")
