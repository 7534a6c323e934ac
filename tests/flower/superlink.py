"""What a SuperLink counts as the traffic of a message and of its reply, by Flower's own protobufs: as its Fleet API does."""

from typing import Any

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest, PushMessagesResponse, Reconnect
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from fedsim.flower import compat


def _told(message: Message) -> tuple[Any, Any, int, list[str]]:
    """Return a message without its content, the tree of its objects, their bytes, and their ids."""
    compat.set_message_id(message, message.object_id)
    objects = get_all_nested_objects(message)
    moved = sum(len(each.deflate()) for each in objects.values())
    return message_to_proto(remove_content_from_message(message)), get_object_tree(message), moved, list(objects)


def down(message: Message) -> int:
    """Return what goes down to a client that asks for its message and finds *message*."""
    told, tree, moved, _ = _told(message)
    return PullMessagesResponse(messages_list=[told], message_object_trees=[tree]).ByteSize() + moved


def up(reply: Message) -> tuple[int, int]:
    """Return what goes up with *reply*, and what the server answers."""
    told, tree, moved, ids = _told(reply)
    node = Node(node_id=2**63 + 12345)
    asked = PushMessagesRequest(node=node, messages_list=[told], message_object_trees=[tree], clientapp_runtime_list=[1.25])
    results = {reply.metadata.message_id: 0}
    answer = PushMessagesResponse(reconnect=Reconnect(reconnect=5), results=results, objects_to_push=ids, session_id="s" * 64)
    return asked.ByteSize() + moved, answer.ByteSize()
