"""Perfetto's TrackEvent, as far as a run needs it: tracks, slices, instants, counters and flows, written as protobuf. Knows no run.

The messages are described here by their published field numbers (perfetto.dev/docs/reference/trace-packet-proto), so that writing takes
nothing but protobuf, which Flower brings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, BinaryIO, Literal

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from fedsim.core.types import Seconds

Phase = Literal["begin", "end", "instant", "counter"]
_PHASES: dict[str, int] = {"begin": 1, "end": 2, "instant": 3, "counter": 4}
_SEQUENCE = 1
_CLEARED = 1
"""SEQ_INCREMENTAL_STATE_CLEARED, on the first packet."""
_MESSAGES: dict[str, dict[str, tuple[int, str, bool]]] = {
    "Trace": {"packet": (1, "TracePacket", True)},
    "TracePacket": {
        "timestamp": (8, "uint64", False), "trusted_packet_sequence_id": (10, "uint32", False), "track_event": (11, "TrackEvent", False),
        "sequence_flags": (13, "uint32", False), "track_descriptor": (60, "TrackDescriptor", False),
    },
    "TrackDescriptor": {
        "uuid": (1, "uint64", False), "name": (2, "string", False), "parent_uuid": (5, "uint64", False),
        "counter": (8, "CounterDescriptor", False), "child_ordering": (11, "int32", False), "sibling_order_rank": (12, "int32", False),
    },
    "CounterDescriptor": {"unit_name": (6, "string", False)},
    "TrackEvent": {
        "debug_annotations": (4, "DebugAnnotation", True), "type": (9, "int32", False), "track_uuid": (11, "uint64", False),
        "categories": (22, "string", True), "name": (23, "string", False), "double_counter_value": (44, "double", False),
        "flow_ids": (47, "fixed64", True), "terminating_flow_ids": (48, "fixed64", True),
    },
    "DebugAnnotation": {
        "int_value": (4, "int64", False), "double_value": (5, "double", False), "string_value": (6, "string", False),
        "name": (10, "string", False),
    },
}  # fmt: skip
"""Field numbers and types by message; whether a field is repeated. Enums go as int32: the bytes are the same."""
_EXPLICIT = 3
"""TrackDescriptor.ChildTracksOrdering: by sibling_order_rank."""


@dataclass(frozen=True, slots=True)
class Track:
    """A line of the trace, below its *parent* (0: at the top), *rank* among its siblings. With a *unit* it is a counter."""

    uuid: int
    name: str
    parent: int = 0
    rank: int = 0
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """What happens on a track at one moment. *starts* and *ends* are numbers of flows, arrows between events of one number."""

    track: int
    phase: Phase
    at_s: Seconds
    name: str = ""
    category: str = ""
    value: float = 0.0
    args: Mapping[str, int | float | str] = field(default_factory=dict[str, Any])
    flows: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()


def write(file: BinaryIO, tracks: Iterable[Track], events: Iterable[Event]) -> None:
    """Write a whole trace: *tracks* first, then *events*; those of one track in their order, an end before what begins at its moment."""
    made, first = _made(), True
    for track in tracks:
        packet = made["TracePacket"](timestamp=0, trusted_packet_sequence_id=_SEQUENCE)
        if first:
            packet.sequence_flags, first = _CLEARED, False
        told = packet.track_descriptor
        told.uuid, told.name, told.sibling_order_rank, told.child_ordering = track.uuid, track.name, track.rank, _EXPLICIT
        if track.parent:
            told.parent_uuid = track.parent
        if track.unit is not None:
            told.counter.unit_name = track.unit
        file.write(made["Trace"](packet=[packet]).SerializeToString())
    for event in events:
        file.write(made["Trace"](packet=[_packet(made, event)]).SerializeToString())


def _packet(made: Mapping[str, Any], event: Event) -> Any:
    packet = made["TracePacket"](timestamp=nanoseconds(event.at_s), trusted_packet_sequence_id=_SEQUENCE)
    told = packet.track_event
    told.type, told.track_uuid = _PHASES[event.phase], event.track
    if event.name:
        told.name = event.name
    if event.category:
        told.categories.append(event.category)
    if event.phase == "counter":
        told.double_counter_value = event.value
    for name, value in event.args.items():
        kind = "string_value" if isinstance(value, str) else "double_value" if isinstance(value, float) else "int_value"
        told.debug_annotations.add(name=name, **{kind: value})
    told.flow_ids.extend(event.flows)
    told.terminating_flow_ids.extend(event.ends)
    return packet


def nanoseconds(at_s: Seconds) -> int:
    """Return a moment as Perfetto counts it."""
    return round(at_s * 1e9)


@cache
def _made() -> dict[str, Any]:
    """Return the classes of messages, from a pool of our own: another reader's descriptors of the same names may be loaded beside."""
    kinds = descriptor_pb2.FieldDescriptorProto
    described = descriptor_pb2.FileDescriptorProto(name="fedsim/track_event.proto", package="fedsim.perfetto", syntax="proto2")
    for name, fields in _MESSAGES.items():
        message = described.message_type.add(name=name)
        for each, (number, kind, repeated) in fields.items():
            made = message.field.add(name=each, number=number, label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL)
            if kind in _MESSAGES:
                made.type, made.type_name = kinds.TYPE_MESSAGE, f".fedsim.perfetto.{kind}"
            else:
                made.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(described)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"fedsim.perfetto.{name}")) for name in _MESSAGES
    }
