"""What only shows when the parts of a scenario meet: refused here in the reader's words. Puts nothing together, and changes nothing."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from fedsim.client.fitting import Fitting, fits
from fedsim.client.stream import Online
from fedsim.core.errors import ScenarioError, choices
from fedsim.core.machine import memory
from fedsim.core.types import IntArray
from fedsim.cost.ram import MIB
from fedsim.data.federation import Federation
from fedsim.learn.controllers import Controller, rises
from fedsim.learn.engine.devices import Picked
from fedsim.learn.job import FULL, Job
from fedsim.learn.objectives import Objective
from fedsim.learn.pace import Clock
from fedsim.scenario.schema import Clients, Data, Engine, Scenario, Schedule, Stream, Table, Training
from fedsim.score.target import beyond

ITEM_BYTES = 40
"""What is held of each item of a client's stream: when it comes and is labelled, which it is, its place and its concept."""


def check_device(engine: Engine, *, gpu: bool) -> None:
    """Refuse ``engine.device = "cuda"`` where a stranger's executor computes, or torch finds no *gpu*; several workers in one process."""
    asked, workers, kind = engine.device, engine.workers, engine.executing["kind"]
    if workers > 1 and not engine.elsewhere:
        raise ScenarioError(
            f"engine.workers = {workers}: engine.executor.kind = 'local' is this process alone. Leave workers at 1, or leave"
            f" engine.executor out."
        )
    if asked == "cuda" and kind not in ("local", "processes"):
        raise ScenarioError(
            f"engine.executor.kind = {kind!r}: trains on the CPU only, and engine.device = 'cuda'. Leave it out for a GPU, or take"
            f" device = 'cpu'."
        )
    if asked == "cuda" and not gpu:
        raise ScenarioError(
            "engine.device = 'cuda': torch finds no CUDA device on this machine. 'cpu' always works, and 'auto' takes a"
            " GPU where there is one and it is the faster."
        )


def check_precision(engine: Engine, picked: Picked, *, lowers: bool) -> None:
    """Refuse other products than float32's where the device *picked* has none, or which it does not *lower*; and from float64."""
    if engine.precision is None:
        return
    asked = f"engine.precision = {engine.precision!r}"
    if engine.dtype == "float64":
        raise ScenarioError(f"{asked}: lowers products of float32, and engine.dtype = 'float64'. Leave one of them out.")
    if engine.precision == "tf32" and picked.device == "cpu":
        why = f"'auto' picked the CPU: {picked.why}" if picked.why else "engine.device = 'cpu'"
        raise ScenarioError(f"{asked}: a GPU has such products, a CPU has none, and {why}. Leave it out, or take device = 'cuda'.")
    if not lowers:
        raise ScenarioError(f"{asked}: this machine's GPU has none. Leave it out, or take device = 'cpu'.")


def check_test(scenario: Scenario) -> None:
    """Refuse to test on nothing."""
    if scenario.data.test_fraction == 0 and scenario.stream is None:
        raise ScenarioError("data.test_fraction = 0: must be > 0. Only with a [stream] may it be 0: the test is then hindsight.")


def check_generated(data: Data) -> None:
    """Refuse a partition of what is no pool."""
    if data.partition is not None:
        raise ScenarioError(
            f"data.partition: {data.source['kind']!r} makes each client's examples itself; leave it out."
        )


def partition_of(data: Data) -> Table:
    """Return the partition of a pool; refuse where there is none."""
    if data.partition is None:
        raise ScenarioError("data.partition: missing. Try { kind = 'iid' } or { kind = 'dirichlet', alpha = 0.3 }.")
    return data.partition


def check_stopping(scenario: Scenario) -> None:
    """Refuse early stopping where there is no epoch to stop after, or nothing kept back to stop by."""
    if scenario.training.stopping is None:
        return
    if scenario.training.epochs is None:
        raise ScenarioError(
            "training.stopping: stops after an epoch, and training.steps counts none. Set training.epochs, to the most there may be."
        )
    if scenario.training.epochs != int(scenario.training.epochs):
        raise ScenarioError(
            f"training.stopping: stops after an epoch, and training.epochs = {scenario.training.epochs} ends within one. Take a whole"
            f" number."
        )
    if scenario.stream is not None:
        raise ScenarioError("training.stopping: stops by examples that a client keeps back, and on a [stream] it keeps none. Leave it out.")


def check_clock(
    scenario: Scenario, at: str, clock: Clock, *, own_start: bool, instead: str = "'round', 'version' and 'virtual_s' work."
) -> None:
    """Refuse the *clock* of what stands *at* a key where nobody can read it when a task is planned; *instead* of local steps.

    *own_start* says that messages tell no version.
    """
    if clock == "local_step" and scenario.training.stopping is not None:
        raise ScenarioError(
            f"{at}.clock = 'local_step': with training.stopping nobody knows how many steps a client has taken when its next task is"
            f" planned. {instead}"
        )
    if clock == "version" and own_start:
        raise ScenarioError(
            f"{at}.clock = 'version': server.strategy.kind = {scenario.server.strategy['kind']!r} has a start() of its own, and its"
            f" messages do not say which version they carry. 'round', 'local_step' and 'virtual_s' work."
        )


def check_schedule(scenario: Scenario, asked: Schedule) -> None:
    """Refuse settings of a schedule that have no effect, and a clock that nobody can read when a task is planned."""
    at = "training.schedule"
    # By its value, and not by who set it: written out, as a run's folder holds it, a scenario names its defaults too.
    if not asked.warmup and asked.warmup_from != Schedule.model_fields["warmup_from"].default:
        raise ScenarioError(f"{at}.warmup_from = {asked.warmup_from:g}: has no effect without {at}.warmup, the length of the warm-up.")
    if asked.restart and asked.clock != "local_step":
        raise ScenarioError(f"{at}.restart = true: counts local steps, and {at}.clock = {asked.clock!r}. Take clock = 'local_step'.")
    if not asked.restart:
        instead = f"Set {at}.restart = true, which counts them in each task, or take clock = 'round'."
        check_clock(scenario, at, asked.clock, own_start=False, instead=instead)  # Which versions are told is seen later (check_rates).


def check_rates(scenario: Scenario, *, own_start: bool) -> None:
    """Refuse learning rates that move where a strategy takes them for fixed, and versions where it does not tell them."""
    training, kind = scenario.training, scenario.server.strategy["kind"]
    moving = {
        "training.schedule": training.schedule, "training.scale_with_batch": training.scale_with_batch,
        "server.controller": scenario.server.controller,
    }  # fmt: skip
    if kind == "QFedAvg" and (named := [key for key, value in moving.items() if value is not None]):
        raise ScenarioError(
            f"{named[0]}: server.strategy.kind = 'QFedAvg' divides by client_learning_rate, which is one number for all of a run. Leave"
            f" it out, or take another strategy."
        )
    if training.schedule is not None and training.schedule.clock == "version":
        check_clock(scenario, "training.schedule", "version", own_start=own_start)


def check_controller(scenario: Scenario, controller: Controller, told: Collection[str], *, own_start: bool) -> None:
    """Refuse a controller that nobody would ask, that goes by what is not *told*, or orders what a message cannot."""
    kind = (scenario.server.controller or {}).get("kind")
    if own_start:
        raise ScenarioError(
            f"server.controller.kind = {kind!r}: is asked between rounds, and server.strategy.kind ="
            f" {scenario.server.strategy['kind']!r} has a start() of its own, which plays them alone. Leave it out."
        )
    for name in controller.metrics:
        if name not in told:
            raise ScenarioError(f"server.controller.metric = {name!r}: is not reported here. {choices(name, sorted(told))}")
    if "batch_size" in controller.changes and scenario.training.batch_policy is not None:
        raise ScenarioError(f"server.controller.kind = {kind!r}: changes batch_size, and so does training.batch_policy. Leave one out.")
    if "epochs" in controller.changes and scenario.training.epochs is None:
        raise ScenarioError(
            f"server.controller.kind = {kind!r}: changes epochs, and training.steps counts none. Set training.epochs, to what they are at"
            f" first."
        )


def check_sampling(training: Training) -> None:
    """Refuse to draw from, or to cut, what is read as a whole."""
    if training.batch_size != "full":
        return
    if training.optimizer.get("normalised_over") is not None:
        raise ScenarioError(
            f"training.optimizer.normalised_over = {training.optimizer['normalised_over']!r}: goes by the size of a batch, and"
            f" training.batch_size = 'full' is another on each client. Set a number, or leave it out."
        )
    if training.sampling == "replacement":
        raise ScenarioError(
            "training.sampling = 'replacement': draws each example of a mini-batch, and training.batch_size = 'full' is all that a client"
            " holds. Set a number, or leave sampling out."
        )
    if training.accumulate > 1:
        raise ScenarioError(
            f"training.accumulate = {training.accumulate}: makes an update from so many micro-batches of training.batch_size, and that is"
            f" 'full', all that a client holds. Set batch_size to how many examples pass through the model at once."
        )


def cuts(clients: Clients, training: Training) -> str:
    """Return the reader's word for what makes an update from several passes; empty where nothing does."""
    if training.accumulate > 1:
        return f"training.accumulate = {training.accumulate}"
    return "training.too_large = 'accumulate'" if clients.ram and training.too_large == "accumulate" else ""


def changes(clients: Clients, training: Training) -> str:
    """Return the reader's word for what makes batches of a size that is not training.batch_size; empty where nothing does."""
    if training.batch_policy is not None:
        return "training.batch_policy"
    return "training.too_large = 'smaller_batch'" if clients.ram and training.too_large == "smaller_batch" else ""


def check_ram(clients: Clients, training: Training) -> None:
    """Refuse to say what becomes of a batch that is too large where nothing says what a device can hold."""
    if training.too_large and clients.ram is None:
        raise ScenarioError(
            f"training.too_large = {training.too_large!r}: says what becomes of a batch that a device cannot hold, and devices hold any."
            f" Set clients.ram, like {{ kind = 'lognormal', mib = 512.0 }}, or leave it out."
        )


def unfitting(fitting: Fitting | None, job: Job, federation: Federation) -> str:
    """Return what devices cannot hold, in a sentence; empty where all hold all, and on streams, where nobody knows beforehand."""
    if fitting is None or federation.streams is not None:
        return ""
    held = federation.sizes(np.arange(federation.count))
    cut, unable = fits(fitting, job, held)
    if not len(cut) and not len(unable):
        return ""
    size = int(min(held.max(), job.batch_size)) if job.batch_size else int(held.max())
    what = f"clients.ram: a step on {size} examples takes {fitting.footprint.bytes(job, size) / MIB:,.1f} MiB."
    how = "train in smaller batches" if fitting.too_large == "smaller_batch" else "make an update from several passes"
    told = [f"{len(cut)} of {len(held)} clients {how}"] if len(cut) else []
    told += [f"{len(unable)} of {len(held)} clients cannot train"] if len(unable) else []
    return f"{what} {'; '.join(told)}."


def unfilled(job: Job, sizes: IntArray) -> str:
    """Return what a batch that no client of these *sizes* fills leaves without effect; empty where there is no such thing."""
    most = int(sizes.max())
    if job.batch_size == FULL or job.batch_size * job.accumulate <= most:
        return ""
    if job.accumulate > 1 and job.batch_size >= most:
        return (
            f"training.accumulate = {job.accumulate}: has no effect. No client has more examples than training.batch_size ="
            f" {job.batch_size} (the most is {most}), so that each update is made from one pass."
        )
    if not job.drop_last:
        return ""
    times = f", times accumulate = {job.accumulate}," if job.accumulate > 1 else ""
    return (
        f"training.drop_last = true: drops nothing. No client has the {job.batch_size * job.accumulate} examples of a batch"
        f" (training.batch_size = {job.batch_size}{times} and the most is {most}): each trains on all that it has, as one batch."
    )


def remark(job: Job) -> str:
    """Return what the algorithm of *job* says that does not go with it; empty where all does."""
    said = getattr(job.algorithm, "remark", None)
    return str(said(job)) if callable(said) else ""


def check_count(clients: int, examples: int) -> None:
    """Refuse more clients than there are *examples* to train on."""
    if clients > examples:
        raise ScenarioError(
            f"clients.count = {clients}: more clients than the {examples} examples to train on, and each needs one."
        )


def check_items(stream: Stream) -> None:
    """Refuse streams of which one client's alone would not fit into memory."""
    if stream.items and ITEM_BYTES * stream.items > memory():
        raise ScenarioError(
            f"stream.items = {stream.items}: what comes to one client alone takes {ITEM_BYTES * stream.items / 1e9:,.1f} GB, and"
            f" this machine has {memory() / 1e9:,.1f} GB."
        )


def check_stop(scenario: Scenario, scores: Collection[str]) -> None:
    """Refuse a stop by a score that the objective does not report, or of which nobody knows what is better; or by what is not watched."""
    stop = scenario.stop
    if stop is None:
        return
    if stop.noise_floor is not None and scenario.monitor is None:
        raise ScenarioError(
            f"stop.noise_floor = {stop.noise_floor}: goes by the noise between clients, and nobody watches it. Add a [monitor], if only"
            f" [monitor] with nothing in it."
        )
    if stop.metric is not None and stop.metric not in scores:
        raise ScenarioError(f"stop.metric = {stop.metric!r}: is not reported here. {choices(stop.metric, scores)}")
    for name, line in (("at_least", stop.at_least), ("at_most", stop.at_most)):
        kind = scenario.training.objective["kind"]
        if line is not None and (why := beyond(str(stop.metric), line, rises=name == "at_least", objective=kind)):
            raise ScenarioError(f"stop.{name} = {line:g}: {why} Leave it out for a run that takes all its rounds.")
    if stop.plateau is not None and rises(str(stop.metric), stop.goal) is None:
        raise ScenarioError(f"stop.metric = {stop.metric!r}: say whether less of it is better: stop.goal = 'min', or 'max'.")


def check_classes(scenario: Scenario, federation: Federation) -> None:
    """Refuse groups of classes (``evaluate.by_classes``) that are none, are named twice, or that no test example has."""
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


def check_streams(scenario: Scenario, federation: Federation, objective: Objective) -> None:
    """Refuse what works on streams only where there are none, and streams where an objective cannot score them."""
    clients = scenario.clients
    asked = {
        "clients.replay": clients.replay, "clients.detector": clients.detector, "clients.reaction": clients.reaction,
        "training.rehearsal": scenario.training.rehearsal,
    }  # fmt: skip
    if scenario.stream is None:
        for name, table in asked.items():
            if table is not None:
                raise ScenarioError(f"{name}: works on streams only. Add a [stream], if only [stream] with nothing in it.")
        return
    if not hasattr(objective, "each") or not np.issubdtype(federation.test.y.dtype, np.integer):
        raise ScenarioError(
            f"training.objective.kind = {scenario.training.objective['kind']!r}: has no loss per example (each), which a"
            f" [stream] is scored by. 'classification' has."
        )


def check_online(online: Online, clients: Clients, training: Training) -> None:
    """Refuse what the replay, the rehearsal, the detector and the reaction of clients cannot do together."""
    replay, way = online.replay, online.rehearsal.way
    rehearsing = (training.rehearsal or {"kind": "er"})["kind"]
    kind = (clients.replay or {"kind": "none"})["kind"]
    if training.sampling in ("reshuffle", "replacement") and not way.union:
        raise ScenarioError(
            f"training.sampling = {training.sampling!r}: on a [stream] new examples come into mini-batches as they arrived, and from there"
            f" into the memory. Leave it out, or take 'sequential', or training.rehearsal.kind = 'union', whose epochs can be shuffled."
        )
    if cuts(clients, training) and (online.live or way.mix != "concat"):
        rehearsal = f"training.rehearsal.kind = {rehearsing!r}"
        what = f"{rehearsal} has a loss of new examples and one of replayed ones (mix = {way.mix!r})"
        if way.numeric:
            what = f"{rehearsal} makes a step of a mini-batch as a whole"
        elif replay.needs:
            what = f"clients.replay.kind = {kind!r} is told {', '.join(replay.needs)} of a mini-batch as a whole"
        raise ScenarioError(
            f"{cuts(clients, training)}: makes an update from several passes, and {what}. Leave it out, with another"
            f" batch_size; or take 'er' with mix = 'concat', and a replay that goes by positions, like 'reservoir'."
        )
    if way.mix == "ace" and (training.objective.get("label_smoothing") or 0.0) > 0:
        raise ScenarioError(
            f"training.objective.label_smoothing = {training.objective['label_smoothing']}: spreads labels over all classes, and"
            f" training.rehearsal.kind = {rehearsing!r} compares new examples with the classes that came with them alone. Leave one out."
        )
    if replay.needs and not way.draws:
        raise ScenarioError(
            f"training.rehearsal.kind = {rehearsing!r}: tells no policy the {', '.join(replay.needs)} that clients.replay.kind ="
            f" {kind!r} needs. Try 'er', or the policy 'reservoir'."
        )
    if not replay.capacity and way.memory:
        raise ScenarioError(
            f"training.rehearsal.kind = {rehearsing!r}: rehearses what clients remember, and they remember nothing. Set"
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
    if share is not None and (not replay.capacity or not way.draws):
        what = f"training.rehearsal.kind = {rehearsing!r}" if replay.capacity else "without clients.replay"
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
