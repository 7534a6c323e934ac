"""A Flower app that only asks which partitions are there, and writes them down: quick, for tests of what stands around an app."""

import json
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

client = ClientApp()
server = ServerApp()


@client.query()
def answer(message: Message, context: Context) -> Message:
    """Say which partition this node has."""
    return Message(RecordDict({"who": ConfigRecord({"partition": int(context.node_config["partition-id"])})}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Ask every node once, and leave what they said, sorted, in the file ``out``."""
    wanted, until = int(context.run_config["nodes"]), time.monotonic() + 60
    while len(ids := sorted(grid.get_node_ids())) < wanted and time.monotonic() < until:
        time.sleep(0.2)
    waiting = set(grid.push_messages([Message(RecordDict(), node, "query") for node in ids]))
    found: list[int] = []
    while waiting and time.monotonic() < until:
        for reply in grid.pull_messages(list(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
            found.append(int(reply.content["who"]["partition"]))
        time.sleep(0.1)
    Path(str(context.run_config["out"])).write_text(json.dumps(sorted(found)), encoding="utf-8")
