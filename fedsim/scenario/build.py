"""From a scenario to the things that run it: data, model, engine, fleet, strategy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.client.stream import Online
from fedsim.codec import Coding, Plain
from fedsim.core import own
from fedsim.core.errors import ScenarioError, choices, door
from fedsim.core.keys import Key
from fedsim.core.machine import memory
from fedsim.core.types import IntArray, Params
from fedsim.core.warned import Heard, hearing, log_to
from fedsim.data.checked import Checked, check_pool, checked
from fedsim.data.federation import Federation, generated_federation, pool_federation, split
from fedsim.data.replay import Replay
from fedsim.data.source import Generator as Source
from fedsim.data.source import Pool, as_taken, finder
from fedsim.data.stream.arrivals import Stamps
from fedsim.data.stream.federated import attach, drift_of, stamps_of
from fedsim.data.stream.trigger import AtLeast, Trigger
from fedsim.flower import records
from fedsim.learn.algorithms import Algorithm, FedAvg
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.engine.templates import many_sizes
from fedsim.learn.models import build as build_model
from fedsim.learn.models import check_repeats, check_types, params_of, trainable
from fedsim.learn.objectives import Classification, Objective
from fedsim.learn.optim import Optimizer, Sgd
from fedsim.learn.rehearsal import Rehearsal
from fedsim.learn.store import Store
from fedsim.learn.work import FULL, Job
from fedsim.scenario.guards import guarded, unwritable
from fedsim.scenario.kinds import chosen, slots
from fedsim.scenario.load import Loaded
from fedsim.scenario.places import elsewhere
from fedsim.scenario.probe import measured, probe, takes_whole
from fedsim.scenario.schema import Clients, Scenario, Table
from fedsim.scenario.updating import try_algorithm, try_rule
from fedsim.sim.fleet import Fleet
from fedsim.strategy.extras import Extras, check_goes
from fedsim.strategy.stock import Built
from fedsim.strategy.stock import build as build_strategy

ITEM_BYTES = 40
"""What is held of each item of a client's stream: when it comes and is labelled, which it is, its place and its concept."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a scenario is made of, ready to run. *job* is the training order; *first* the initial parameters."""

    scenario: Scenario
    key: Key
    federation: Federation
    model: nn.Module
    objective: Objective
    engine: CohortEngine
    test: tuple[Tensor, Tensor]
    first: Params
    job: Job
    fleet: Fleet
    strategy: Built
    extras: Extras | None = None
    warned: Heard = field(default_factory=Heard)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what a reader must know of how the scenario was understood."""
        return tuple(
            note for note in (self.fleet.flops.note, *self.strategy.notes, *self.warned.lines("while the scenario was built")) if note
        )


def build(loaded: Loaded) -> Parts:
    """Return the parts of a scenario. Raises ScenarioError for whatever only shows when things are put together."""
    # What torch and a reader's code warn of is a note of the run, told once, not lines of a library's between ours.
    with own.beside(loaded.folder), hearing() as heard, log_to(None, "torch"):  # What matters of its log is raised too.
        parts = _built(loaded)
    return replace(parts, warned=heard)


def _built(loaded: Loaded) -> Parts:
    scenario, key = loaded.scenario, Key(loaded.scenario.seed)
    table = slots()
    strategy = build_strategy(scenario.server.strategy, scenario.clients.count, scenario.evaluate.federated_fraction, hint=elsewhere)
    job = _job(scenario, strategy)
    source: Pool | Source = _made("source", scenario.data.source, find=finder(loaded.folder), key=key.fold("data"))
    objective: Objective = _made("objective", scenario.training.objective)
    if ":" in scenario.data.source["kind"]:
        kind, classes = f"data.source.kind = {scenario.data.source['kind']!r}", isinstance(objective, Classification)
        with door(kind):
            if isinstance(source, Pool):
                source = check_pool(source, kind, classes)
            else:
                source = checked(source, kind, classes)
    dtype = getattr(torch, scenario.engine.dtype)
    chosen(table["model"], scenario.model.table)  # Checks the settings, and says so in the reader's words.
    settings = {name: value for name, value in scenario.model.table.items() if name != "kind"}
    shape = source.train.x.shape[1:] if isinstance(source, Pool) else source.shape
    with door(f"model.kind = {scenario.model.kind!r}"):
        few = source.train.x[:2] if isinstance(source, Pool) else np.zeros(0)
        made = partial(
            build_model, scenario.model.kind, settings, shape, source.outputs, key.fold("model"), few if few.dtype.kind in "iu" else None
        )
        model = made()
        check_types(model, dtype, scenario.model.kind)
        if ":" in scenario.model.kind:
            check_repeats(model, made, scenario.model.kind)
    with door(f"model.kind = {scenario.model.kind!r}", "its forward raised"):
        if isinstance(source, Pool):
            source = as_taken(source, lambda x: takes_whole(model, x))
        elif isinstance(source, Checked) and (x := source.client(0).x).dtype.kind in "iu":
            source = replace(source, whole=takes_whole(model, x[:2]))
    federation = _federation(loaded, key, source)
    device = _device(scenario.engine.device, scenario.engine.workers)
    strategy = measured(strategy, model)
    model = model.to(device, dtype)
    first = params_of(model)
    _try_own(scenario, job, {name: first[name] for name in trainable(model)})
    store = Store(federation, dtype, device)
    if scenario.engine.workers > 1:  # Here already, so that the examples are never kept twice.
        store.share()
        federation = store.federation
    many = many_sizes(job, federation.sizes(np.arange(federation.count)), streams=federation.streams is not None)
    engine = CohortEngine(model, objective, store, chunk=scenario.engine.chunk, many_sizes=many)
    counted, scores = probe(
        model, objective, engine, store, federation, job, f"training.objective.kind = {scenario.training.objective['kind']!r}"
    )
    if scenario.stop and scenario.stop.metric not in scores:
        raise ScenarioError(
            f"stop.metric = {scenario.stop.metric!r}: is not reported here. {choices(scenario.stop.metric, scores)}"
        )
    _check_classes(scenario, federation)
    online = _online(scenario, federation, objective)
    fleet = Fleet(
        federation=federation, job=job, flops=counted, forms=_forms(first, job.algorithm.up if job.algorithm else (), model), scores=scores,
        extra_metrics=strategy.extra_metrics, key=key, online=online,
        compute=_made("compute", scenario.clients.compute, key=key.fold("device")),
        network=_made("network", scenario.clients.network, key=key.fold("link")),
        availability=_made("availability", scenario.clients.availability, key=key.fold("availability")),
    )  # fmt: skip
    fleet = replace(fleet, coding=_coding(scenario, job, fleet, first, model))
    extras = _extras(scenario, strategy, job, first, list(trainable(model)))
    return Parts(
        scenario, key, federation, model, objective, engine, store.test, first, job, fleet, strategy, extras
    )


def _device(asked: str, workers: int) -> torch.device:
    if asked == "cuda" and workers > 1:
        raise ScenarioError(
            f"engine.workers = {workers}: several processes train on the CPU only, and engine.device = 'cuda'. Leave workers at"
            f" 1 for a GPU, or take device = 'cpu'."
        )
    if workers > 1:
        return torch.device("cpu")
    if asked == "cuda" and not torch.cuda.is_available():
        raise ScenarioError(
            "engine.device = 'cuda': torch finds no CUDA device on this machine. 'cpu' always works, and 'auto' takes a"
            " GPU where there is one."
        )
    return torch.device("cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu")


def _job(scenario: Scenario, strategy: Built) -> Job:
    training = scenario.training
    optimizer: Optimizer = _made("optimizer", training.optimizer)
    algorithm: Algorithm = _made("algorithm", training.algorithm or {"kind": "fedavg"})
    plain = optimizer if isinstance(optimizer, Sgd) else Sgd(optimizer.lr, 0.0, 0.0, False)  # What of it travels.
    return Job(
        epochs=training.epochs or 0, steps=training.steps or 0,
        batch_size=FULL if training.batch_size == "full" else training.batch_size,
        lr=optimizer.lr, momentum=plain.momentum, weight_decay=plain.weight_decay,
        nesterov=plain.nesterov, proximal_mu=0.0, initial_loss=strategy.initial_loss,
        drop_last=training.drop_last, optimizer=None if type(optimizer) is Sgd and optimizer.state == "reset" else optimizer,
        algorithm=None if type(algorithm) is FedAvg else algorithm,
    )  # fmt: skip


def _try_own(scenario: Scenario, job: Job, params: Params) -> None:
    """Try what a reader's optimiser and algorithm do before anything runs."""
    optimizer, algorithm = scenario.training.optimizer["kind"], (scenario.training.algorithm or {"kind": "fedavg"})["kind"]
    if ":" in optimizer and job.optimizer is not None:
        try_rule(job, params, f"training.optimizer.kind = {optimizer!r}", job.optimizer)
    if ":" in algorithm:
        try_algorithm(job, params, f"training.algorithm.kind = {algorithm!r}")


def _extras(scenario: Scenario, strategy: Built, job: Job, first: Params, names: list[str]) -> Extras | None:
    """Put the server's half of the algorithm around *strategy*, where it has one, and return it."""
    server = job.algorithm.server(scenario.clients.count) if job.algorithm else None
    if job.algorithm is None or server is None:
        return None
    check_goes(strategy.strategy, scenario.server.strategy["kind"], (scenario.training.algorithm or {})["kind"])
    extras = Extras(server, names, job.algorithm.down, job.algorithm.up, first)
    extras.around(strategy.strategy)
    return extras


def _coding(scenario: Scenario, job: Job, fleet: Fleet, first: Params, model: nn.Module) -> Coding | None:
    """Return how arrays travel; None where they do as they are."""
    asked = scenario.codec
    if asked is None:
        return None
    down, up = (
        _made("codec", table or {"kind": "plain"}, place=f"codec.{name}") for name, table in (("down", asked.down), ("up", asked.up))
    )
    if type(down) is Plain and type(up) is Plain:
        return None
    return Coding(down, up, _forms(first, job.algorithm.down if job.algorithm else (), model), fleet.forms)


def _forms(first: Params, extras: Sequence[str], model: nn.Module) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the type and shape of all that travels one way, by name: the parameters, and an algorithm's *extras*."""
    forms = records.forms(first)
    return forms | {f"{extra}/{name}": forms[name] for extra in extras for name in trainable(model)}


def _check_classes(scenario: Scenario, federation: Federation) -> None:
    groups = scenario.evaluate.by_classes
    if groups is not None and not groups:
        raise ScenarioError("evaluate.by_classes = []: names no group. It takes lists of classes, like [[0, 1], [2, 3]].")
    seen: list[set[int]] = []
    for group in groups or ():
        if len(set(group)) < len(group) or set(group) in seen:  # Two groups of one name would be one row in the journal.
            raise ScenarioError(f"evaluate.by_classes = {groups}: names {group} twice. Each group, and each class in it, goes in once.")
        seen.append(set(group))
        for label in group:
            if label >= federation.outputs:
                raise ScenarioError(
                    f"evaluate.by_classes = {groups}: there is no class {label}. The data have 0 to {federation.outputs - 1}."
                )
        if not np.isin(federation.test.y, group).any():
            raise ScenarioError(f"evaluate.by_classes = {groups}: no test example has a class of {group}.")


def _online(scenario: Scenario, federation: Federation, objective: Objective) -> Online | None:
    """Return how clients act on their streams; None where there are none, and what needs one is refused."""
    clients, stream = scenario.clients, scenario.stream
    asked = {
        "clients.replay": clients.replay, "clients.detector": clients.detector, "clients.reaction": clients.reaction,
        "training.rehearsal": scenario.training.rehearsal,
    }  # fmt: skip
    if stream is None:
        for name, table in asked.items():
            if table is not None:
                raise ScenarioError(f"{name}: works on streams only. Add a [stream], if only [stream] with nothing in it.")
        return None
    if not hasattr(objective, "each") or not np.issubdtype(federation.test.y.dtype, np.integer):
        raise ScenarioError(
            f"training.objective.kind = {scenario.training.objective['kind']!r}: has no loss per example (each), which a"
            f" [stream] is scored by. 'classification' has."
        )
    example_bytes = 4 * math.prod(federation.shape) + 8
    replay: Replay = _made("replay", clients.replay or {"kind": "none"}, outputs=federation.outputs, example_bytes=example_bytes)
    rehearsal: Rehearsal = _made("rehearsal", scenario.training.rehearsal or {"kind": "er"})
    reaction = None if clients.reaction is None else _made("reaction", clients.reaction, at="clients.reaction")
    trigger: Trigger = _made("trigger", stream.trigger)
    if scenario.training.drop_last and scenario.training.batch_size != 1:
        trigger = AtLeast(trigger, 2)  # No batch is of one example then, which some layers cannot train on.
    online = Online(
        trigger, replay, rehearsal, _made("detector", clients.detector or {"kind": "none"}),
        reaction, stream.predict, stream.weight,
    )  # fmt: skip
    _check_online(online, clients)
    return online


def _check_online(online: Online, clients: Clients) -> None:
    replay, method = online.replay, online.rehearsal.method
    kind = (clients.replay or {"kind": "none"})["kind"]
    if replay.needs and method in ("union", "lwf", "ewc"):
        raise ScenarioError(
            f"training.rehearsal.kind = {method!r}: tells no policy the {', '.join(replay.needs)} that clients.replay.kind ="
            f" {kind!r} needs. Try 'er', or the policy 'reservoir'."
        )
    if not replay.capacity and method in ("er_ace", "der", "der++", "a_gem"):
        raise ScenarioError(
            f"training.rehearsal.kind = {method!r}: rehearses what clients remember, and they remember nothing. Set"
            f" clients.replay, like {{ kind = 'reservoir', capacity = 200 }}."
        )
    if replay.needs and clients.replay and clients.replay.get("max_age_s") is not None:
        raise ScenarioError(
            f"clients.replay.max_age_s: how many examples are left would depend on {', '.join(replay.needs)}, and time"
            f" may not. Use a policy that goes by positions, like 'reservoir'."
        )
    if online.reaction is None:
        return
    if not online.watching:
        raise ScenarioError("clients.reaction: reacts to a detector, and there is none. Set clients.detector, like { kind = 'adwin' }.")
    share = online.reaction.replay_share
    if share == 1.0:
        raise ScenarioError(
            "clients.reaction.replay_share = 1.0: must be < 1 (the replayed share of a mini-batch, beside new examples)."
        )
    if share is not None and (not replay.capacity or method in ("union", "lwf", "ewc")):
        what = f"training.rehearsal.kind = {method!r}" if replay.capacity else "without clients.replay"
        raise ScenarioError(
            f"clients.reaction.replay_share = {share}: has no effect {'with ' if replay.capacity else ''}{what}, which replays nothing"
            f" in shares. Leave it out."
        )
    if online.reaction.keep_share < 1 and not replay.capacity:
        raise ScenarioError("clients.reaction.buffer: clients remember nothing that could shrink. Set clients.replay, or leave it out.")
    if replay.needs and 0 < online.reaction.keep_share < 1:
        raise ScenarioError(
            f"clients.reaction.buffer = 'shrink': clients.replay.kind = {kind!r} cannot be shrunk. 'keep' and 'reset' work."
        )


def _federation(loaded: Loaded, key: Key, source: Pool | Source) -> Federation:
    scenario = loaded.scenario
    data, count = scenario.data, scenario.clients.count
    kept_back = scenario.evaluate.client_test_fraction if scenario.evaluate.federated_fraction else 0.0
    if data.test_fraction == 0 and scenario.stream is None:
        raise ScenarioError("data.test_fraction = 0: must be > 0. Only with a [stream] may it be 0: the test is then hindsight.")
    if not isinstance(source, Pool):
        if data.partition is not None:
            raise ScenarioError(
                f"data.partition: {data.source['kind']!r} makes each client's examples itself; leave it out."
            )
        federation = generated_federation(source, count, key.fold("data"), data.test_fraction, kept_back)
        return _streamed(loaded, key.fold("stream"), federation, source, None)
    if data.partition is None:
        raise ScenarioError("data.partition: missing. Try { kind = 'iid' } or { kind = 'dirichlet', alpha = 0.3 }.")
    natural = data.partition.get("kind") == "natural" and source.groups is not None
    train, test, kept = split(source, data.test_fraction, key.fold("data"), source.groups if natural else None)
    if count > len(train):
        raise ScenarioError(
            f"clients.count = {count}: more clients than the {len(train)} examples to train on, and each needs one."
        )
    partition = _made(
        "partition", data.partition, labels=train.y, clients=count, key=key.fold("data", "partition"),
        groups=None if source.groups is None else source.groups[kept],
    )  # fmt: skip
    federation = pool_federation(source, partition, test, train, key.fold("data"), kept_back, source.clients if natural else ())
    return _streamed(loaded, key.fold("stream"), federation, source, kept)


def _streamed(loaded: Loaded, key: Key, base: Federation, source: Pool | Source, kept: IntArray | None) -> Federation:
    """Return *base* with the streams that the scenario asks for; as it is when it asks for none."""
    stream = loaded.scenario.stream
    if stream is None:
        return base
    if stream.items and ITEM_BYTES * stream.items > memory():
        raise ScenarioError(
            f"stream.items = {stream.items}: what comes to one client alone takes {ITEM_BYTES * stream.items / 1e9:,.1f} GB, and"
            f" this machine has {memory() / 1e9:,.1f} GB."
        )
    stamps: Stamps | None = None
    if isinstance(source, Pool) and kept is not None and stream.arrivals.get("kind") == "stamps":
        stamps = stamps_of(source, kept, base)
    find = finder(loaded.folder, "stream.arrivals.path")
    arrivals = _made("arrivals", stream.arrivals, key=key.fold("arrivals"), find=find, stamps=stamps)
    order = _made("order", stream.order, key=key.fold("order"), outputs=base.outputs)
    labelling = _made("labels", stream.labels, key=key.fold("labels"))
    drift = None
    if stream.drift is not None:
        about = key.fold("drift")
        change = _made(
            "change", stream.drift.change, key=about.fold("change"), outputs=base.outputs, shape=base.shape, source=source
        )
        schedule = _made("schedule", stream.drift.schedule)
        drift = drift_of(change, schedule, _made("onset", stream.drift.onset, key=about.fold("onset")), about)
    return attach(base, arrivals, order, labelling, drift, stream.items, stream.stored, stream.drifts_s)


def _made(noun: str, table: Table, *, place: str = "", **given: Any) -> Any:
    """Return what the kind that *table*, which stands at *place*, names makes, *given* what the simulator fills in."""
    slot = slots()[noun]
    slot = replace(slot, key=place) if place else slot
    function, settings = chosen(slot, table)
    with door(f"{slot.key}.kind = {table['kind']!r}"):
        made = slot.registry.call(function, settings, **{name: unwritable(each) for name, each in given.items()})
    gives = slot.registry.gives
    if gives is None:
        return made
    if not isinstance(made, Pool) and not all(hasattr(made, name) for name in gives.names):  # What a package installed, too.
        raise ScenarioError(f"{slot.key}.kind = {table['kind']!r}: returned a {type(made).__name__}, not {gives.what}.")
    return guarded(made, gives, f"{slot.key}.kind = {table['kind']!r}", given) if ":" in table["kind"] else made
