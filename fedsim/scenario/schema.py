"""The keys of a scenario file, their types and ranges. Frozen; unknown keys are refused; units are in the names."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from fedsim.cost.availability import Leaving
from fedsim.learn.pace import Clock
from fedsim.scenario.section import Aggregation, FleetClients, Section, ServerLink, Table, Transport
from fedsim.scenario.stop import Stop
from fedsim.scenario.tiers import Cells, Edges

Moment = Annotated[float, Field(ge=0)]
"""Virtual seconds since the start of the run."""


_LOADING = "How fast each client's device loads mini-batches, and how many ahead of its steps; at once unless given."
_BATCH_POLICY = "How a client's batch size goes from task to task, from batch_size on; as it is unless given."
_FAILURES = "Which tasks break off, or are never answered, or wrongly; none unless given."
_LEAVING = (
    "What becomes of a message whose client goes away: it is seen to the end ('finish'), nothing is heard of it ('abort'), or it goes on"
    " when the client is back ('pause')."
)
_ENERGY = "What each client's device draws, in joules; nothing is counted unless given."
_INTENSITY = (
    "grams of CO2 for a kilowatt hour: a number, 'world' (475, the mean of the world's grids), or a file with the columns hour and"
    " g_per_kwh; no grams unless given"
)
_RAM = "How much memory each client's device has for training; any amount unless given."
_CHECKPOINTING = "Whether activations are computed again in the backward pass, in the place of being kept: less memory, more operations."
_TOO_LARGE = (
    "What a client does whose device cannot hold a mini-batch: 'cannot_train' (an error in the place of a reply, unless given),"
    " 'smaller_batch', or 'accumulate' (the same update from several passes)."
)
_PRECISION = "What products are computed in while training; parameters, losses, evaluation and aggregation stay as dtype says."
_CUDA_GRAPHS = (
    "Whether steps on a GPU are captured in CUDA graphs, which begin in a tenth of the time; what cannot be is told, and runs without."
)
_REPRODUCIBLE = (
    "Where a run has the same digest: on one type of 'machine', by the kernels that are the fastest there; or 'everywhere', on any x86-64"
    " machine with AVX2, by kernels that all of these have, in a process of its own."
)
LATER = "came after fedsim-digest-1"
"""The mark of a key that older scenarios lack: left out where it stands at its default, so that what they hash to stays."""


class Data(Section):
    """Where the examples come from and how they are shared out."""

    source: Table
    partition: Table | None = None
    test_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None


class Drift(Section):
    """What changes in the streams, when, and for whom."""

    change: Table
    schedule: Table
    onset: Table = Field(default_factory=lambda: {"kind": "synchronous"})


class Stream(Section):
    """When clients get the examples that they train on, in which order, how these drift, and when labels come."""

    arrivals: Table = Field(default_factory=lambda: {"kind": "at_start"})
    order: Table = Field(default_factory=lambda: {"kind": "as_is"})
    labels: Table = Field(default_factory=lambda: {"kind": "at_once"})
    drift: Drift | None = None
    drifts_s: list[Moment] | dict[str, list[Moment]] | None = None
    items: Annotated[int, Field(ge=1)] | None = None
    stored: Annotated[int, Field(ge=0)] = 0
    trigger: Table = Field(default_factory=lambda: {"kind": "arrival"})
    predict: Literal["received", "local"] = "received"
    weight: Literal["trained", "seen", "held"] = "trained"

    @field_validator("drifts_s", mode="before")
    @classmethod
    def _times(cls, given: Any) -> Any:
        if given is not None and not isinstance(given, list | dict):
            raise ValueError(f"{given!r:.60} is neither a list of times, like [3600.0], nor a table by client, like {{ 0 = [3600.0] }}")
        return given


class Energy(BaseModel):
    """What devices draw, and what that costs in CO2; every other key is a setting of its kind."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)
    kind: str
    intensity: Annotated[Annotated[float, Field(ge=0)] | str | None, Field(description=_INTENSITY)] = None

    @property
    def table(self) -> Table:
        """Return kind and settings of the kind together."""
        return {"kind": self.kind, **(self.model_extra or {})}


_CELLS = "Households, offices or radio cells whose clients share a link, and cross it and whatever lies beyond at once; none unless given."


class Clients(FleetClients):
    """How many clients, their devices, links and availability, and what they do with what streams in."""

    ram: Annotated[Table | None, Field(description=_RAM)] = None
    energy: Annotated[Energy | None, Field(description=_ENERGY)] = None
    cells: Annotated[Cells | None, Field(description=_CELLS)] = None
    loading: Annotated[Table | None, Field(description=_LOADING)] = None
    failures: Annotated[Table | None, Field(description=_FAILURES)] = None
    leaving: Annotated[Leaving, LATER, Field(description=_LEAVING)] = "finish"
    replay: Table | None = None
    detector: Table | None = None
    reaction: Table | None = None


class Model(BaseModel):
    """The model; every other key is a setting of its kind."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    kind: str

    @property
    def table(self) -> Table:
        """Return kind and settings together."""
        return {"kind": self.kind, **(self.model_extra or {})}


class Schedule(BaseModel):
    """How the learning rate goes: on which clock, and after which warm-up; every other key is a setting of its kind."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)
    kind: str
    clock: Annotated[
        Clock,
        Field(description="what its time is: the client's local steps so far, the server's rounds, its versions, or seconds; all from 0"),
    ] = "round"
    warmup: Annotated[float, Field(ge=0, description="how long the rate rises in a straight line before the schedule begins")] = 0.0
    warmup_from: Annotated[
        float, Field(gt=0, le=1, description="the share of the schedule's first rate at which that line begins")
    ] = 1 / 3
    restart: Annotated[bool, Field(description="whether local steps count from 0 in each task, and not over all of a client's")] = False

    @property
    def table(self) -> Table:
        """Return kind and settings of the kind together."""
        return {"kind": self.kind, **(self.model_extra or {})}


class Scaled(Section):
    """How the learning rate goes with the size of a batch."""

    rule: Annotated[Literal["linear", "sqrt"], Field(description="in proportion to the size, or to its root")] = "linear"
    base: Annotated[int, Field(ge=1, description="the batch size at which the rate is the optimizer's")]


Share = Annotated[float, Field(ge=0)]
_BY = (
    "what a source is: a 'label'; a natural 'group' of the data; or a level of 'difficulty', by the loss of each of the client's examples"
    " when a task begins, which is charged as a forward pass over them"
)
_SHARES = "how much of a batch comes from each source, by its name or its number, or all in order; relative to their sum; none is 0"
_TEMPERATURE = "T, where no shares are given: sources come in shares of n^(1/T), n being how many examples of each the client has"
_TOGETHER = "of how many batches the examples are sorted at once; an epoch's unless given, and 1 sorts none, and only cuts"
_LEVELS = "how many levels of difficulty, equally many examples each; 3 unless given"
_HARD = "what makes an example hard: its loss by the model that the task starts from"
_COURSE_CLOCK = "what time that is: the server's rounds or versions, the client's local steps so far, or seconds; all from 0"
_DRAW = "whether each batch has its shares to the rounding ('exact'), or each of its examples draws its source by them ('multinomial')"


class Mix(Section):
    """Mini-batches from several sources among a client's examples; one that it has nothing of leaves its share to the others."""

    by: Annotated[Literal["label", "group", "difficulty"], Field(description=_BY)]
    shares: Annotated[list[Share] | dict[str, Share] | None, Field(description=_SHARES)] = None
    temperature: Annotated[float | None, Field(gt=0, description=_TEMPERATURE)] = None
    draw: Annotated[Literal["exact", "multinomial"], Field(description=_DRAW)] = "exact"
    levels: Annotated[int | None, Field(ge=2, le=1000, description=_LEVELS)] = None


class Bucket(Section):
    """Mini-batches of sequences of like length, each cut where its longest one ends."""

    by: Annotated[Literal["length"], Field(description="what is alike; a sequence ends where nothing but pad follows")] = "length"
    width: Annotated[int, Field(ge=1, description="how many steps lie in a bucket: batches are cut to a multiple of it")]
    pad: Annotated[int, Field(ge=0, description="the number that fills sequences up")] = 0
    together: Annotated[int | None, Field(ge=1, description=_TOGETHER)] = None


class Course(Section):
    """On which of its examples a client trains, the easiest by loss at first, and later all."""

    kind: Annotated[Literal["loss"], Field(description=_HARD)] = "loss"
    begin: Annotated[float, Field(gt=0, lt=1, description="the share of a client's examples that it begins with")]
    over: Annotated[float, Field(gt=0, description="how long, on the clock, until a task trains on all of them")]
    clock: Annotated[Clock, Field(description=_COURSE_CLOCK)] = "round"
    first: Annotated[Literal["easy", "hard"], Field(description="which come first: the easiest, or the hardest")] = "easy"


Epochs = Annotated[int | float, Field(gt=0, le=1_000_000), WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "maximum": 1_000_000})]
_EPOCHS = "How often a task reads the client's examples; 0.5 ends after half of an epoch's batches, rounded up, one at least."
_SAMPLING = (
    "How examples come into mini-batches: 'reshuffle' (a fresh order each epoch, unless given), 'replacement' (each drawn anew) or"
    " 'sequential' (as they lie)."
)
_ACCUMULATE = (
    "How many micro-batches of batch_size one update is made from: the gradient is the mean over all their examples. With drop_last, what"
    " does not fill so many is left out."
)


class Training(Section):
    """What a client does with one message."""

    epochs: Annotated[Epochs | None, Field(description=_EPOCHS)] = None
    steps: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=1_000_000_000)] | Literal["full"] = 10
    drop_last: bool = False
    batch_policy: Annotated[Table | None, Field(description=_BATCH_POLICY)] = None
    sampling: Annotated[Literal["reshuffle", "replacement", "sequential"] | None, Field(description=_SAMPLING)] = None
    accumulate: Annotated[int, Field(ge=1, le=1_000_000, description=_ACCUMULATE), LATER] = 1
    optimizer: Table
    clipping: Table | None = None
    objective: Table = Field(default_factory=lambda: {"kind": "classification"})
    rehearsal: Table | None = None
    algorithm: Table | None = None
    stopping: Table | None = None
    checkpointing: Annotated[bool, LATER, Field(description=_CHECKPOINTING)] = False
    too_large: Annotated[Literal["smaller_batch", "accumulate", "cannot_train"] | None, Field(description=_TOO_LARGE)] = None
    schedule: Schedule | None = None
    scale_with_batch: Scaled | None = None
    mix: Mix | None = None
    curriculum: Course | None = None
    bucket: Bucket | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if (self.epochs is None) == (self.steps is None):
            got = "neither" if self.epochs is None else "both"
            raise ValueError(f"give either epochs or steps ({got} given), like epochs = 1")
        return self


_STATISTICS = (
    "What becomes of running statistics (a model's floating buffers): 'aggregate' averages them by examples, beside whatever steps the"
    " strategy takes; 'keep_local' leaves each client its own, which never travel (Andreux et al. 2020, arXiv:2008.07424); 'recalibrate'"
    " measures them after each aggregation, in no virtual time, in one forward pass over calibration_examples."
)
_CALIBRATION = (
    "How many examples of the pool the server keeps for itself, to measure statistics on: drawn at random beside the test part, and no"
    " client's. Their labels are not looked at. With 'keep_local' they serve the server's own score only."
)


_EDGES = "Edges between the clients and the server, which average for their clients; clients send to the server unless given."
_SERVER_LINK = "What the server's own link carries, shared by all transfers in progress; more than is ever asked unless given."

_PACING = (
    "Whom a round waits for and how long, within round_timeout_s, which no round exceeds; for all unless given. Of training only: messages"
    " of evaluation are waited for as without it."
)
_AGGREGATION = "What aggregating takes the server; no virtual time unless given."


class Server(Section):
    """Which Flower strategy aggregates, for how long, and what becomes of running statistics."""

    strategy: Table
    rounds: Annotated[int, Field(ge=1, le=1_000_000_000)]
    round_timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    controller: Table | None = None
    statistics: Annotated[Literal["aggregate", "keep_local", "recalibrate"], LATER, Field(description=_STATISTICS)] = "aggregate"
    calibration_examples: Annotated[Annotated[int, Field(ge=2, le=10_000)] | None, Field(description=_CALIBRATION)] = None
    link: Annotated[ServerLink | None, Field(description=_SERVER_LINK)] = None
    pacing: Annotated[Table | None, Field(description=_PACING)] = None
    aggregation: Annotated[Aggregation | None, Field(description=_AGGREGATION)] = None


class Codec(Section):
    """What travels in the place of plain arrays, to the clients and back."""

    down: Table | None = None
    up: Table | None = None


class Evaluate(Section):
    """When the model is scored: on the server's test part, and by clients on examples they keep back."""

    every: Annotated[int, Field(ge=1, le=1_000_000_000)] = 1
    federated_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    by_classes: list[Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]] | None = None
    client_test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2


class Monitor(Section):
    """What is watched of training, for whoever looks on: it takes no virtual time and moves no number. On real clients nothing is."""

    every: Annotated[
        int, Field(ge=1, le=1_000_000_000, description="Local steps from one that is watched to the next; the first of a task always is.")
    ] = 20
    tasks: Annotated[float, Field(gt=0, le=1, description="The share of training tasks that are watched.")] = 1.0
    noise: Annotated[
        float, Field(ge=0, le=1, description="The share of these of which, at their start, gradients of examples are taken one by one.")
    ] = 0.1
    noise_every: Annotated[
        int, Field(ge=1, le=1_000_000_000, description="Versions of the model from one at which they are taken to the next; 1 is each.")
    ] = 5
    examples: Annotated[int, Field(ge=2, le=1_000_000, description="Of how many examples they are taken, drawn anew each time.")] = 16


class Engine(Section):
    """How the numbers are computed; on one machine type nothing here but dtype, precision, device and reproducible moves a digest.

    *dtype* is what parameters are kept and sent in, *precision* what products are computed in while training.

    float64 doubles the bytes of every message, so tasks take longer, and what happens by the hour, such as who is there
    under ``onoff`` when a round begins, is another draw: compare dtypes by their curves against rounds.
    """

    device: Literal["cpu", "cuda", "auto"] = "cpu"
    dtype: Literal["float32", "float64"] = "float32"
    precision: Annotated[Literal["bfloat16", "tf32"] | None, Field(description=_PRECISION)] = None
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    executor: Table | None = None
    chunk: Annotated[int, Field(ge=1)] | None = None
    cuda_graphs: Annotated[bool, LATER, Field(description=_CUDA_GRAPHS)] = True
    reproducible: Annotated[Literal["machine", "everywhere"], LATER, Field(description=_REPRODUCIBLE)] = "machine"

    @property
    def executing(self) -> Table:
        """Return the table of what computes: this process, or where there are several workers processes, unless it says otherwise."""
        return {"kind": "local" if self.workers == 1 else "processes"} if self.executor is None else self.executor

    @property
    def elsewhere(self) -> bool:
        """Return whether it is not this process that computes."""
        return self.executing.get("kind") != "local"

    @property
    def everywhere(self) -> bool:
        """Return whether bits are to be the same on every machine."""
        return self.reproducible == "everywhere"


class Scenario(Section):
    """A whole federation: data, clients, model, training, server."""

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: Data
    clients: Clients
    stream: Stream | None = None
    model: Model
    training: Training
    server: Server
    edges: Annotated[Edges | None, Field(description=_EDGES)] = None
    codec: Codec | None = None
    evaluate: Evaluate = Evaluate()
    stop: Stop | None = None
    monitor: Monitor | None = None
    transport: Transport | None = None
    engine: Engine = Engine()

    @property
    def digest(self) -> str:
        """Return the SHA-256, in hex, of every key and value, defaults included."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()

    def plain(self) -> dict[str, Any]:
        """Return the scenario as plain tables, without the keys that stand empty, or are LATER and stand at their default."""
        return _without_later(self, self.model_dump(mode="json", exclude_none=True))


def _without_later(section: BaseModel, plain: dict[str, Any]) -> dict[str, Any]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if LATER in field.metadata and value == field.default:
            plain.pop(name, None)
        elif isinstance(value, Section):
            plain[name] = _without_later(value, plain[name])
    return plain
