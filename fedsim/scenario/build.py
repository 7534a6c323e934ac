"""From a scenario to the things that run it: data, model, engine, fleet, strategy. Puts together, and judges nothing (``judge``)."""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.client.fitting import Fitting
from fedsim.client.program import reply_metrics
from fedsim.client.sizing import Sizing
from fedsim.client.stream import Online
from fedsim.codec import Coding, Plain
from fedsim.core import own
from fedsim.core.errors import door
from fedsim.core.keys import Key
from fedsim.core.types import IntArray, Params
from fedsim.core.warned import Heard, hearing, log_to
from fedsim.cost.ram import Ram
from fedsim.data import lent
from fedsim.data.checked import Checked, check_pool, checked
from fedsim.data.federation import Federation, generated_federation, pool_federation, set_aside, split
from fedsim.data.replay import Replay
from fedsim.data.source import Examples, Pool, as_taken, finder
from fedsim.data.source import Generator as Source
from fedsim.data.stream.arrivals import Stamps
from fedsim.data.stream.federated import attach, drift_of, stamps_of
from fedsim.data.stream.trigger import AtLeast, Trigger
from fedsim.flower import records
from fedsim.flower.rounds import starts_itself
from fedsim.learn import footprint
from fedsim.learn.algorithms import Algorithm, FedAvg
from fedsim.learn.arithmetic import Arithmetic
from fedsim.learn.batch_policies import BatchPolicy
from fedsim.learn.calibration import Calibration
from fedsim.learn.controllers import Controller
from fedsim.learn.engine import stored
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.engine.executors import Executor
from fedsim.learn.engine.templates import many_sizes
from fedsim.learn.job import FULL, Job
from fedsim.learn.models import buffers, check_repeats, check_types, params_of, trainable
from fedsim.learn.models import build as build_model
from fedsim.learn.monitor import Monitor
from fedsim.learn.objectives import Classification, Objective
from fedsim.learn.optim import Optimizer, Sgd
from fedsim.learn.optim_adaptive import check_layers
from fedsim.learn.pace import Pace, Scaling
from fedsim.learn.rehearsal import Rehearsal
from fedsim.learn.schedules import Schedule
from fedsim.learn.store import Store
from fedsim.scenario import around, batches, between, composing, costs, everywhere, judge, placing, waiting
from fedsim.scenario.floor import check_floor, floor_remark
from fedsim.scenario.kinds import chosen, slots
from fedsim.scenario.load import Loaded
from fedsim.scenario.making import made
from fedsim.scenario.places import elsewhere
from fedsim.scenario.probe import measured, probe, takes_whole
from fedsim.scenario.schema import Scenario
from fedsim.scenario.updating import try_algorithm, try_clipping, try_coding, try_rule
from fedsim.sim.fleet import Fleet
from fedsim.strategy.extras import Extras
from fedsim.strategy.statistics import Statistics
from fedsim.strategy.stock import Built
from fedsim.strategy.stock import build as build_strategy


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
    controller: Controller | None = None
    statistics: Statistics | None = None
    calibration: Calibration | None = None
    placed: str = ""
    warned: Heard = field(default_factory=Heard)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what a reader must know of how the scenario was understood."""
        return tuple(
            note
            for note in (
                self.placed, self.fleet.flops.note, *self.strategy.notes, judge.remark(self.job), *self._unfilled,
                between.remark(self.scenario),
                judge.unfitting(self.fleet.fitting, self.job, self.federation), batches.loading_bound(self.fleet),
                floor_remark(self.scenario, own_start=starts_itself(self.strategy.strategy)), *self._waiting,
                *self.warned.lines("while the scenario was built"),
                *(self.statistics.notes if self.statistics else ()), *around.notes(self.job, self.calibration),
            )
            if note
        )  # fmt: skip

    def scored(self, params: Params) -> Params:
        """Return the model of *params* as the server scores and saves it: with statistics of its own, where clients keep theirs."""
        return self.calibration.measured(params) if self.calibration and self.job.own_statistics else params

    @property
    def _waiting(self) -> list[str]:
        """Return what is to be said of how the server waits."""
        own_start = starts_itself(self.strategy.strategy)
        return waiting.pacing_notes(self.scenario, self.fleet.pacing, self.strategy.asked, own_start=own_start)

    @property
    def _unfilled(self) -> tuple[str, ...]:
        """Return a note where no client fills a batch; nobody knows on a stream."""
        if self.federation.streams is not None or not (self.job.drop_last or self.job.accumulate > 1):
            return ()
        return (judge.unfilled(self.job, self.federation.sizes(np.arange(self.federation.count))),)


def build(loaded: Loaded) -> Parts:
    """Return the parts of a scenario. Raises ScenarioError for whatever only shows when things are put together."""
    # What torch and a reader's code warn of is a note of the run, told once, not lines of a library's between ours.
    with own.beside(loaded.folder), hearing() as heard, log_to(None, "torch"):  # What matters of its log is raised too.
        parts = _built(loaded)
    return replace(parts, warned=heard)


@contextmanager
def opened(loaded: Loaded) -> Generator[Executor]:
    """Within, what computes a scenario is there, and may be starting while the caller goes on; it is closed whatever happens."""
    engine = loaded.scenario.engine
    with own.beside(loaded.folder):
        executor: Executor = made("executor", engine.executing, workers=engine.workers)
    try:
        yield executor
    except BaseException:
        with suppress(Exception):  # What went wrong first is what a reader is to hear of.
            executor.close()
        raise
    executor.close()


def _built(loaded: Loaded) -> Parts:
    scenario, key = loaded.scenario, Key(loaded.scenario.seed)
    everywhere.check(scenario)
    chosen((table := slots())["executor"], scenario.engine.executing)  # Opened by whoever runs; checked by whoever only looks.
    strategy = build_strategy(scenario.server.strategy, scenario.clients.count, scenario.evaluate.federated_fraction, hint=elsewhere)
    policy: BatchPolicy | None = None if scenario.training.batch_policy is None else made("batch_policy", scenario.training.batch_policy)
    job = _job(scenario, strategy, policy)
    source: Pool | Source = lent.source(made, scenario.data.source, loaded.folder, find=finder(loaded.folder), key=key.fold("data"))
    objective: Objective = made("objective", scenario.training.objective)
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
        anew = partial(
            build_model, scenario.model.kind, settings, shape, source.outputs, key.fold("model"), few if few.dtype.kind in "iu" else None
        )
        model = anew()
        check_types(model, dtype, scenario.model.kind)
        if ":" in scenario.model.kind:
            check_repeats(model, anew, scenario.model.kind)
    with door(f"model.kind = {scenario.model.kind!r}", "its forward raised"):
        if isinstance(source, Pool):
            composing.check_tokens(scenario, source)
            source = as_taken(source, lambda x: takes_whole(model, x))
        elif isinstance(source, Checked) and (x := source.client(0).x).dtype.kind in "iu":
            source = replace(source, whole=takes_whole(model, x[:2]))
    around.check_statistics(scenario, list(buffers(model)), Calibration(model, torch.zeros(0)).names)
    federation, aside = _federation(loaded, key, source)
    job = composing.put(scenario, job, federation, objective, own_start=starts_itself(strategy.strategy))
    picked = placing.placed(scenario, model, job, federation, strategy.asked)
    # Where processes train, examples lie in memory that they share.
    device = torch.device("cpu" if scenario.engine.elsewhere else picked.device)
    strategy = strategy if job.own_statistics else measured(strategy, model)
    model = model.to(device, dtype)
    store = Store(federation, dtype, device)
    calibration = None if aside is None else Calibration(model, store.tensors(aside)[0])
    first = around.first(params_of(model), list(trainable(model)), job, calibration)
    trained = {name: first[name] for name in trainable(model)}
    check_layers(job.optimizer, scenario.training.optimizer["kind"], trained)
    _try_own(scenario, job, trained)
    if scenario.engine.elsewhere:  # Here already, so that the examples are never kept twice.
        store.share()
        federation = store.federation
    many = many_sizes(job, federation.sizes(np.arange(federation.count)), streams=federation.streams is not None)
    many = many or policy is not None or scenario.training.too_large == "smaller_batch" or job.curriculum is not None  # Each has its own.
    graphs = picked.device == "cuda" and scenario.engine.cuda_graphs
    arithmetic = Arithmetic(scenario.engine.precision, scenario.training.checkpointing, graphs)
    engine = CohortEngine(
        model, objective, store, chunk=scenario.engine.chunk, many_sizes=many, arithmetic=arithmetic, hands=picked.device
    )
    judge.check_ram(scenario.clients, scenario.training)
    at = f"training.objective.kind = {scenario.training.objective['kind']!r}"
    counted, scores = probe(
        model, objective, engine, store, federation, job, at, judge.cuts(scenario.clients, scenario.training),
        changes=judge.changes(scenario.clients, scenario.training),
    )  # fmt: skip
    if job.bucketing is not None:
        x, y = store.sample(2)
        counted = counted.by_length(stored.flops(model, objective, x[:, : max(1, x.shape[1] // 2)], y))
    counted = counted.checkpointed() if arithmetic.checkpointing else counted
    judge.check_stop(scenario, scores)
    check_floor(scenario, strategy.asked, own_start=starts_itself(strategy.strategy))
    judge.check_classes(scenario, federation)
    online = _online(scenario, federation, objective)
    fleet = Fleet(
        federation=federation, job=job, flops=counted, forms=_forms(first, job.algorithm.up if job.algorithm else (), model), scores=scores,
        extra_metrics=strategy.extra_metrics, key=key, online=online, trained=tuple(trainable(model)),
        monitor=None if scenario.monitor is None else Monitor(**scenario.monitor.model_dump()),
        **costs.of(loaded, key, federation),
    )  # fmt: skip
    waiting.check_pacing(scenario, fleet.pacing, strategy.asked)
    if scenario.clients.ram is not None:
        ram: Ram = made("ram", scenario.clients.ram, key=key.fold("ram"))
        fitting = Fitting(ram, footprint.count(model, objective, store.sample, arithmetic), scenario.training.too_large or "cannot_train")
        fleet = replace(fleet, fitting=fitting)
    if policy is not None:
        fleet = replace(fleet, sizing=Sizing.of(policy, fleet.compute, counted, federation.count, fleet.loader))
    fleet = replace(fleet, coding=_coding(scenario, job, fleet, first, model))
    if fleet.edges is not None:
        between.check_goes(scenario, strategy, job)
        weight = str(getattr(strategy.strategy, "weighted_by_key", fleet.edges.weight))
        fleet = replace(fleet, edges=replace(fleet.edges, weight=weight))
    extras, statistics = around.put(scenario, strategy, job, first, list(trainable(model)), calibration)
    told = reply_metrics(job, scores, fleet.client(0).tells)[1:]
    controller = _controller(scenario, strategy, scores, (*told, *strategy.extra_metrics))
    judge.check_rates(scenario, own_start=starts_itself(strategy.strategy))
    return Parts(
        scenario, key, federation, model, objective, engine, store.test, first, job, fleet, strategy, extras, controller, statistics,
        calibration, placing.note(scenario, picked),
    )


def _job(scenario: Scenario, strategy: Built, policy: BatchPolicy | None) -> Job:
    judge.check_stopping(scenario)
    judge.check_sampling(scenario.training)
    if policy is not None:
        batches.check_policy(scenario, policy, own_start=starts_itself(strategy.strategy))
    training = scenario.training
    optimizer: Optimizer = made("optimizer", training.optimizer)
    algorithm: Algorithm = made("algorithm", training.algorithm or {"kind": "fedavg"})
    plain = optimizer if isinstance(optimizer, Sgd) else Sgd(optimizer.lr, 0.0, 0.0, False)  # What of it travels.
    epochs = training.epochs or 0
    return Job(
        epochs=int(epochs) if epochs == int(epochs) else epochs, steps=training.steps or 0,
        batch_size=FULL if training.batch_size == "full" else training.batch_size,
        lr=optimizer.lr, momentum=plain.momentum, weight_decay=plain.weight_decay,
        nesterov=plain.nesterov, proximal_mu=0.0, initial_loss=strategy.initial_loss,
        drop_last=training.drop_last, optimizer=None if type(optimizer) is Sgd and optimizer.state == "reset" else optimizer,
        algorithm=None if type(algorithm) is FedAvg else algorithm,
        stopping=None if training.stopping is None else made("stopping", training.stopping), pace=_pace(scenario),
        sampling=training.sampling or "reshuffle", accumulate=training.accumulate,
        clipping=None if training.clipping is None else made("clipping", training.clipping),
        own_statistics=scenario.server.statistics == "keep_local",
        clocks=() if policy is None else policy.clocks,
    )  # fmt: skip


def _pace(scenario: Scenario) -> Pace | None:
    """Return what the learning rate goes by; None where it is one number."""
    asked, scaled = scenario.training.schedule, scenario.training.scale_with_batch
    if asked is None and scaled is None:
        return None
    scaling = None if scaled is None else Scaling(scaled.rule, scaled.base)
    if asked is None:
        return Pace(scaling=scaling)
    schedule: Schedule = made("lr_schedule", asked.table)
    judge.check_schedule(scenario, asked)
    return Pace(schedule, asked.clock, asked.warmup, asked.warmup_from, asked.restart, scaling)


def _controller(scenario: Scenario, strategy: Built, scores: Collection[str], told: Collection[str]) -> Controller | None:
    """Return what the server's orders are changed by; None where they stay."""
    if scenario.server.controller is None:
        return None
    controller: Controller = made("controller", scenario.server.controller)
    judge.check_controller(scenario, controller, {*scores, *told}, own_start=starts_itself(strategy.strategy))
    return controller


def _try_own(scenario: Scenario, job: Job, params: Params) -> None:
    """Try what a reader's optimiser, algorithm and clipping do before anything runs."""
    optimizer, algorithm = scenario.training.optimizer["kind"], (scenario.training.algorithm or {"kind": "fedavg"})["kind"]
    if ":" in optimizer and job.optimizer is not None:
        try_rule(job, params, f"training.optimizer.kind = {optimizer!r}", job.optimizer)
    if ":" in algorithm:
        try_algorithm(job, params, f"training.algorithm.kind = {algorithm!r}")
    clipping = (scenario.training.clipping or {"kind": ""})["kind"]
    if ":" in clipping and job.clipping is not None:
        try_clipping(job.clipping, params, f"training.clipping.kind = {clipping!r}")


def _coding(scenario: Scenario, job: Job, fleet: Fleet, first: Params, model: nn.Module) -> Coding | None:
    """Return how arrays travel; None where they do as they are."""
    asked = scenario.codec
    if asked is None:
        return None
    down, up = (
        made("codec", table or {"kind": "plain"}, place=f"codec.{name}") for name, table in (("down", asked.down), ("up", asked.up))
    )
    if type(down) is Plain and type(up) is Plain:
        return None
    coding = Coding(down, up, _forms(first, job.algorithm.down if job.algorithm else (), model), fleet.forms)
    try_coding(coding, first, {way: str((table or {"kind": "plain"})["kind"]) for way, table in (("down", asked.down), ("up", asked.up))})
    return coding


def _forms(first: Params, extras: Sequence[str], model: nn.Module) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the type and shape of all that travels one way, by name: the parameters, and an algorithm's *extras*."""
    forms = records.forms(first)
    return forms | {f"{extra}/{name}": forms[name] for extra in extras for name in trainable(model)}


def _online(scenario: Scenario, federation: Federation, objective: Objective) -> Online | None:
    """Return how clients act on their streams; None where there are none, and what needs one is refused."""
    clients, stream = scenario.clients, scenario.stream
    judge.check_streams(scenario, federation, objective)
    if stream is None:
        return None
    example_bytes = 4 * math.prod(federation.shape) + 8
    replay: Replay = made("replay", clients.replay or {"kind": "none"}, outputs=federation.outputs, example_bytes=example_bytes)
    rehearsal: Rehearsal = made("rehearsal", scenario.training.rehearsal or {"kind": "er"})
    reaction = None if clients.reaction is None else made("reaction", clients.reaction, at="clients.reaction")
    trigger: Trigger = made("trigger", stream.trigger)
    if scenario.training.drop_last and scenario.training.batch_size != 1:
        trigger = AtLeast(trigger, 2)  # No batch is of one example then, which some layers cannot train on.
    online = Online(
        trigger, replay, rehearsal, made("detector", clients.detector or {"kind": "none"}),
        reaction, stream.predict, stream.weight,
    )  # fmt: skip
    judge.check_online(online, clients, scenario.training)
    return online


def _federation(loaded: Loaded, key: Key, source: Pool | Source) -> tuple[Federation, Examples | None]:
    """Return the federation, and the examples that the server keeps for itself, where it does."""
    scenario = loaded.scenario
    data, count = scenario.data, scenario.clients.count
    kept_back = scenario.evaluate.client_test_fraction if scenario.evaluate.federated_fraction or scenario.training.stopping else 0.0
    judge.check_test(scenario)
    if not isinstance(source, Pool):
        judge.check_generated(data)
        around.check_calibration(scenario)
        federation = generated_federation(source, count, key.fold("data"), data.test_fraction, kept_back)
        return _streamed(loaded, key.fold("stream"), federation, source, None), None
    table = judge.partition_of(data)
    natural = table.get("kind") == "natural" and source.groups is not None
    train, test, kept = split(source, data.test_fraction, key.fold("data"), source.groups if natural else None)
    aside = None
    if scenario.server.calibration_examples is not None:  # After the test part, which is the same with and without.
        groups = source.groups[kept] if natural and source.groups is not None else None
        train, aside, left = set_aside(train, scenario.server.calibration_examples, key.fold("data"), groups)
        kept = kept[left]
    judge.check_count(count, len(train))
    partition = made(
        "partition", table, labels=train.y, clients=count, key=key.fold("data", "partition"),
        groups=None if source.groups is None else source.groups[kept],
    )  # fmt: skip
    groups = None if source.groups is None else source.groups[kept]
    federation = pool_federation(source, partition, test, train, key.fold("data"), kept_back, source.clients if natural else (), groups)
    return _streamed(loaded, key.fold("stream"), federation, source, kept), aside


def _streamed(loaded: Loaded, key: Key, base: Federation, source: Pool | Source, kept: IntArray | None) -> Federation:
    """Return *base* with the streams that the scenario asks for; as it is when it asks for none."""
    stream = loaded.scenario.stream
    if stream is None:
        return base
    judge.check_items(stream)
    stamps: Stamps | None = None
    if isinstance(source, Pool) and kept is not None and stream.arrivals.get("kind") == "stamps":
        stamps = stamps_of(source, kept, base)
    find = finder(loaded.folder, "stream.arrivals.path")
    arrivals = made("arrivals", stream.arrivals, key=key.fold("arrivals"), find=find, stamps=stamps)
    order = made("order", stream.order, key=key.fold("order"), outputs=base.outputs)
    labelling = made("labels", stream.labels, key=key.fold("labels"))
    drift = None
    if stream.drift is not None:
        about = key.fold("drift")
        change = made(
            "change", stream.drift.change, key=about.fold("change"), outputs=base.outputs, shape=base.shape, source=source
        )
        schedule = made("schedule", stream.drift.schedule)
        drift = drift_of(change, schedule, made("onset", stream.drift.onset, key=about.fold("onset")), about)
    return attach(base, arrivals, order, labelling, drift, stream.items, stream.stored, stream.drifts_s)
