"""The fleet: everything about the clients that has to do with cost. Knows no clock and no message."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.client.equipped import Equipped
from fedsim.client.fitting import Fitting
from fedsim.client.offline import Offline
from fedsim.client.program import Program
from fedsim.client.sizing import Sizing
from fedsim.client.stream import Online, OnStream
from fedsim.codec import Coding
from fedsim.core.errors import RunError
from fedsim.core.keys import Key
from fedsim.core.types import Seconds
from fedsim.cost.availability import Availability, Leaving
from fedsim.cost.cells import Cells
from fedsim.cost.compute import Compute, step_s
from fedsim.cost.edges import Edges
from fedsim.cost.failures import Failures
from fedsim.cost.loading import Loader, waited
from fedsim.cost.meter import Meter
from fedsim.cost.network import Network, Overhead, ServerLink
from fedsim.cost.serving import Aggregation
from fedsim.cost.transport import Transport
from fedsim.data.federation import Federation
from fedsim.data.stream import Stream
from fedsim.learn.flops import Flops
from fedsim.learn.job import Job
from fedsim.learn.monitor import Monitor
from fedsim.learn.work import Task
from fedsim.strategy.pacing import Pacing


@dataclass(frozen=True, slots=True)
class Fleet:
    """Everything about the clients that has to do with cost; functions of (key, client), so nothing is stored.

    *online* says how they act on streams, where there are any. *job* is the scenario's training job, which a message may change;
    *forms* are the type and shape of each array that a trained client sends back, by name, before *coding* makes something else of it.
    *transport* says when whose processes look for messages, where they do; *server* what the server's link carries at most,
    and *overhead* what the protocols of all links add. *energy* charges messages for what devices draw, where anything is counted;
    *edges* stand between the server and them, and
    *cells* say whose clients share a link, where there are any.
    *failures* says what goes wrong, where anything does, and *leaving* what becomes of messages whose client goes away.
    *monitor* says what is watched of training, where anything is; *trained* names the arrays that are parameters, and no buffers.
    *pacing* says how long the server waits for a round's replies, where it is not for all, and *aggregation* what it takes over them.
    """

    federation: Federation
    job: Job
    compute: Compute
    network: Network
    availability: Availability
    flops: Flops
    forms: dict[str, tuple[str, tuple[int, ...]]]
    scores: tuple[str, ...]
    extra_metrics: tuple[str, ...]
    key: Key
    online: Online | None = None
    coding: Coding | None = None
    fitting: Fitting | None = None
    sizing: Sizing | None = None
    loader: Loader | None = None
    monitor: Monitor | None = None
    pacing: Pacing | None = None
    aggregation: Aggregation | None = None
    trained: tuple[str, ...] = ()
    transport: Transport | None = None
    server: ServerLink | None = None
    overhead: Overhead | None = None
    failures: Failures | None = None
    leaving: Leaving = "finish"
    energy: Meter | None = None
    edges: Edges | None = None
    cells: Cells | None = None

    def took(self, client: int, task: Task, number: int, flops: float, steps: int) -> tuple[Seconds, Seconds]:
        """Return how long *client*'s own *number*-th task takes that needs *flops*, and how much of it its *steps* wait for data.

        Only mini-batches go through the loader: what else passes through the model, and evaluations, is at hand.
        """
        compute_s = self.compute.seconds(client, number, flops, steps)
        if self.loader is None or task.job.kind != "train" or not flops:
            return compute_s, 0.0
        # What it takes besides operations is known from a task of none; all operations of a task go at one speed.
        bare_s = self.compute.seconds(client, number, 0.0, steps)
        each_s = self.flops.of_steps(task, steps) * ((compute_s - bare_s) / flops) + step_s(self.compute, client)
        per_s = float(self.loader.examples_per_s(np.array([client]))[0])
        wait_s = waited(task.sizes[:steps], per_s, each_s, self.loader.depth)
        return compute_s + wait_s, wait_s

    def client(self, number: int) -> Program:
        """Return the program of client *number*."""
        program: Program
        if self.online is None:
            program = Offline(number, self.federation, self.key, self.job.keeping)
        else:
            program = OnStream(number, self.federation, self.key, self.online, self.job.keeping)
        if self.sizing is None and self.fitting is None:
            return program
        return Equipped(number, program, self.sizing, self.fitting)

    def stream(self, number: int) -> Stream:
        """Return what reaches client *number*. Raises RunError where nothing streams in."""
        streams = self.federation.streams
        if streams is None:
            raise RunError(f"client {number} was asked for a stream, and there are none. This is a defect of fedsim.")
        return streams.of(number)
