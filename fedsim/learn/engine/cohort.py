"""The cohort engine: tasks that are due are trained together, a chunk of clients per stacked step. Knows no other process.

How tasks are grouped changes speed and no bit: a row of a stacked step has the same bits whatever the number of
rows (one intra-op thread), and "serial" is the stacked step with one row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.state import State
from fedsim.core.types import FloatArray, IntArray, Params
from fedsim.learn.algorithms.ending import ended_by, named
from fedsim.learn.arithmetic import PLAIN, Arithmetic
from fedsim.learn.batching import opening
from fedsim.learn.curriculum import composed
from fedsim.learn.engine import stored
from fedsim.learn.engine.chunks import Chunk, chunk_rule, planned, ranked
from fedsim.learn.engine.diagnosis import Guarded, broken
from fedsim.learn.engine.eager import remembers
from fedsim.learn.engine.early import Early
from fedsim.learn.engine.executors import Site
from fedsim.learn.engine.graphs import Capture, Cuda, Graphs
from fedsim.learn.engine.live import Learner
from fedsim.learn.engine.noise import Luck
from fedsim.learn.engine.persample import noise, noises
from fedsim.learn.engine.room import Room, minding
from fedsim.learn.engine.rows import Rows
from fedsim.learn.engine.scoring import EVALUATION_ROWS, Scorer
from fedsim.learn.engine.stack import Stack
from fedsim.learn.engine.starts import Starts
from fedsim.learn.engine.step import Step, compile_step
from fedsim.learn.engine.templates import Templates
from fedsim.learn.engine.updates import Trained, Updates, Which
from fedsim.learn.engine.watching import Watcher
from fedsim.learn.job import Job
from fedsim.learn.kept import Kept
from fedsim.learn.models import trainable, travelling
from fedsim.learn.objectives import Mixed, Objective, mass_of
from fedsim.learn.optim import is_plain
from fedsim.learn.stopping import Stopping
from fedsim.learn.store import Store
from fedsim.learn.work import NOISE, Mix, Result, Row, Start, Task, Watching

PROBED_BATCHES = 2
"""Batches of real examples, drawn at random, that a compiled step is tried on besides the first."""
PREPARED_EXAMPLES = 512
"""The largest batch that is compiled before a run begins."""


Kind = tuple[int, int, bool, Mix]
"""What a step is compiled for: the size of batches, how many of it are new (or what sequences are cut to), whether the update is plain
SGD, and how new examples and remembered ones count."""


@contextmanager
def one_thread() -> Generator[None]:
    """Run with one intra-op thread, then give the caller's setting back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class CohortEngine:
    """Runs tasks in this process, *chunk* clients at a time. *many_sizes* says that batches have so many that graphs are better shared.

    Neither changes a bit.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, store: Store, *, chunk: int | None = None, many_sizes: bool = False,
        arithmetic: Arithmetic = PLAIN, hands: str = "", capture: Capture | None = None,
    ) -> None:  # fmt: skip
        carried = travelling(model)
        self._model, self.objective, self._store = model, objective, store
        self._names, self._trained = list(carried), len(trainable(model))
        self._kept = Kept(model, objective)
        self._scorer = Scorer(model, objective, self._names, self._kept.as_built)  # No method of ours, which would close a circle.
        self.result_bytes = sum(p.numel() * p.element_size() for p in carried.values())
        first = next(iter(carried.values()))
        self._device, self._dtype = first.device, first.dtype
        self.device = hands or str(self._device)
        """Where numbers are computed: here, unless it is said that other *hands* do so there."""
        self.chunk = chunk or chunk_rule(self.result_bytes, torch.device(self.device).type)
        self.room, self.heard = Room(str(self._device)), dict[str, None]()
        """How many clients memory holds; and what engines elsewhere say that a reader should know."""
        self._steps: dict[Kind, Step] = {}
        self._starts = Starts(carried, self._trained, self._dtype, self._device)
        self._scored: tuple[Start, list[Tensor]] | None = None
        self.computed = 0
        """How many tasks of the latest ``run`` are computed so far, for whoever looks on."""
        self.arithmetic, self.many_sizes = arithmetic, many_sizes
        here = capture is not None or self._device.type == "cuda"
        self.graphs = Graphs(capture or Cuda()) if arithmetic.graphs and here else None
        if self.graphs is not None:
            self.room.freed = self.graphs.forget
        self._templates = Templates(model, objective, arithmetic) if many_sizes else None

    @property
    def site(self) -> Site:
        """Return what another engine needs to compute the same bits."""
        return Site.of(self, *self.parts, self.device)

    @property
    def parts(self) -> tuple[nn.Module, Objective, Store, int, bool, Arithmetic]:
        """Return the same by themselves."""
        return self._model, self.objective, self._store, self.chunk, self.many_sizes, self.arithmetic

    @property
    def compiled(self) -> Mapping[Kind, Step]:
        """Return the steps that were compiled so far, each by the kind of batches it is for."""
        return dict(self._steps)

    def knows(self, steps: Mapping[Kind, Step]) -> None:
        """Take *steps* that were compiled for the very same model, objective and examples, elsewhere or before."""
        self._steps.update(steps)

    def as_built(self) -> None:
        """Put back whatever the model keeps between calls, where that may make a difference."""
        self._kept.as_built()

    def evaluate(self, params: Params, x: Tensor, y: Tensor) -> dict[str, float]:
        """Return the scores of *params* over the examples (x, y), from sums over batches of fixed size."""
        with one_thread(), minding(self._device), PLAIN.at_work(self._device.type):
            return self._scorer.scores(self._starts.tensors(params), x, y)

    def test_classes(self, params: Params, classes: Sequence[int]) -> dict[str, float]:
        """Return the scores of *params* over those examples of the test part whose targets are in *classes*."""
        x, y = self._store.test
        chosen = torch.isin(y, torch.tensor(classes, device=y.device))
        return self.evaluate(params, x[chosen], y[chosen])

    @property
    def test_batches(self) -> int:
        """Return how many batches the test part is scored in."""
        return -(-len(self._store.test[1]) // EVALUATION_ROWS)

    def batch_sums(self, start: Start, batch: int) -> dict[str, float]:
        """Return what one batch of the test part adds to the sums that its scores follow from."""
        rows = slice(batch * EVALUATION_ROWS, (batch + 1) * EVALUATION_ROWS)
        x, y = self._store.test
        if self._scored is None or self._scored[0] is not start:
            self._scored = start, self._starts.tensors(start.params)  # Kept for the batches that follow.
        with one_thread(), minding(self._device), PLAIN.at_work(self._device.type):
            return next(self._scorer.sums(self._scored[1], x[rows], y[rows]))

    def run(self, tasks: list[Task]) -> list[Result]:
        """Return the results of *tasks*, in their order, computed here and now."""
        self._scored = None
        with one_thread(), PLAIN.at_work(self._device.type):
            return self._run(tasks)

    def prepare(self, job: Job) -> None:
        """Compile a step for *job*, so that a model that cannot be trained is refused at the door.

        It is the one that the first client starts with, and so will be used; unless that is very large, or a single
        example where there may be more.
        """
        size = min(job.micro(job.size(len(self._store.federation.train(0))))[0], PREPARED_EXAMPLES)
        with one_thread():
            self._step((size if job.batch_size == 1 else max(size, 2), 0), is_plain(job) and not job.cut)

    def diagnose(self, task: Task) -> str:
        """Return which local step of *task*, whose result is no number, broke first, and what of it; empty where nobody can tell."""
        if task.job.kind != "train" or task.rehearsing is not None:
            return ""
        with torch.no_grad(), one_thread():
            x, y, offsets = self._store.pool([task])
            guarded, luck = Guarded(self._starts.rows(task.job, [task]), self._names[: self._trained]), Luck([task])
            self.as_built()
            return broken(
                task.job, self._planned(task.job, [task], offsets), guarded, task.step_rates.tolist(),
                lambda: self._updates([task], (x, y), guarded, luck, plain=False),
            )  # fmt: skip

    @property
    def notes(self) -> list[str]:
        """Return what a reader should know of how the model is trained: why it is not compiled, if it is not."""
        return [*sorted({step.note for step in self._steps.values() if step.note}), *self.told, *self.heard]

    @property
    def told(self) -> list[str]:
        """Return the same of what came up while it trained."""
        return [*self.room.notes, *(self.graphs.notes if self.graphs is not None else ())]

    def _run(self, tasks: list[Task]) -> list[Result]:
        results: dict[int, Result] = {}
        self.computed = 0
        for job, rows in ranked(tasks):
            run = self._score if job.kind != "train" else self._train if job.stopping is None else self._train_early
            if tasks[rows[0]].rehearsing is not None:
                run = self._rehearse
            width = self._width(job, [tasks[i] for i in rows])
            for places, found in self.room.chunks(tasks, rows, width, partial(run, job)):
                results.update(zip(places, found, strict=True))
                self.computed = len(results)
        self._starts.forget()
        return [results[i] for i in range(len(tasks))]

    def _width(self, job: Job, tasks: list[Task]) -> int:
        """Return how many clients go into a chunk: one, where the largest batch cannot be stacked anyway."""
        if job.kind != "train" or self.chunk == 1 or tasks[0].rehearsing is not None:
            return self.chunk
        batches = tasks[0].batches
        if batches is None or batches.mix == "concat":
            largest = max(map(job.size, {t.trained_on for t in tasks})) if batches is None else int(batches.sizes.max())
            width = batches.width(int(batches.sizes.argmax())) if batches else 0
            return 1 if self._step((job.micro(largest)[0], width), is_plain(job) and not job.cut).rows == "one" else self.chunk
        at = int(batches.sizes.argmax())
        step = self._step((int(batches.sizes[at]), int(batches.fresh[at])), is_plain(job), batches.mix)
        return 1 if step.rows == "one" else self.chunk

    def _rehearse(self, job: Job, tasks: list[Task]) -> list[Result]:
        """Train *tasks* whose batches depend on numbers, one after the other."""
        found: list[Result] = []
        for task in tasks:
            seen = self._noise([task], *self._store.pool([task]))[0]
            self.as_built()
            rows = self._starts.rows(job, [task])
            watcher = Watcher.of([task], rows, self._trained)
            with one_thread(), self.arithmetic.training(self._device.type):
                learner = Learner(self._model, self.objective, self._store, task, self._starts.of(task), rows, self._trained, watcher)
                parts, losses = learner.run()
            watched = seen | (watcher.told(losses[None], task.sizes[None], task.step_rates)[0] if watcher else {})
            found.append(self._result(task, self._stack(job, rows), float(np.mean(losses)), rows, 0, parts, task.steps, watched))
        return found

    def _predicted(self, task: Task) -> Params:
        """Return target, prediction and loss of each example that *task* tests, before it trains. Shapes: (tested,)."""
        if task.test is None or not len(task.test):  # Labels may come when no example does.
            return {}
        local = task.parts.get("local")
        x, y, _ = self._store.pool([task])
        return self._scorer.each(self._starts.local(task, local) if local else self._starts.of(task), x, y, task.test)

    def _gauged(self, task: Task) -> State:
        """Return the noise in the gradients of the first examples that *task* reads, at what it started from."""
        x, y, _ = self._store.pool([task])
        places = torch.from_numpy(opening(task)).to(x.device)
        self.as_built()
        trace, square = noise(self._model, self.objective, self._starts.of(task), x[places], y[places])
        return {"trace": np.array([trace]), "square": np.array([square])}

    def _score(self, job: Job, tasks: list[Task]) -> list[Result]:
        return [Result(self._scores(task), mark=task.mark) for task in tasks]

    def _scores(self, task: Task) -> dict[str, float]:
        x, y, _ = self._store.pool([task])
        places = torch.tensor(task.positions)
        return self._scorer.scores(self._starts.of(task), x[places], y[places])

    def _train_early(self, job: Job, tasks: list[Task]) -> list[Result]:
        """Train *tasks* that may end early, one after the other."""
        results: list[Result] = []
        for task in tasks:
            held_back = self._store.pool([task])[:2], torch.tensor(task.held_back)
            early = Early(cast(Stopping, job.stopping), partial(self._loss, *held_back), task.steps // int(job.epochs))
            results += self._train(job, [task], early)
        return results

    def _loss(self, pool: tuple[Tensor, Tensor], places: Tensor, params: list[Tensor]) -> float:
        """Return the loss of *params* on some examples of the *pool*, in the middle of a task; infinity for none."""
        if not len(places):
            return math.inf
        before = Kept(self._model, self.objective) if self._kept.moves else self._kept
        x, y = pool
        loss = self._scorer.scores(params, x[places], y[places])["loss"]
        before.back()
        return loss

    def _train(self, job: Job, tasks: list[Task], early: Early | None = None) -> list[Result]:
        x, y, offsets = self._store.pool(tasks)
        chunk = self._planned(job, tasks, offsets)
        rows, luck = self._starts.rows(job, tasks), Luck(tasks)
        if self.graphs is not None:
            self.graphs.place(rows)
        plain, rates = is_plain(job) and not job.cut, chunk.tasks[0].step_rates.tolist()  # The longest one's: all have the same.
        watcher, watched = Watcher.of(tasks, rows, self._trained), self._noise(tasks, x, y, offsets)
        updates = self._updates(tasks, (x, y), rows, luck, plain=plain, told=watcher.gradients if watcher else None)
        with torch.no_grad(), self.arithmetic.at_work(self._device.type):
            self.as_built()
            for step, kind, which, places in chunk.batches():
                if watcher:
                    watcher.begin(step, which)
                if job.cut:
                    updates.several(job.micro(kind[0]), which, places, step, rates[step], kind[1])
                else:
                    updates.once(kind, which, places, step, rates[step])
                if watcher:
                    watcher.end(rates[step])
                if early is not None and early.ends(step, rows):
                    chunk = dataclasses.replace(chunk, sizes=chunk.sizes[:, : step + 1])
                    break
            if early is not None:
                early.settle(rows)
            losses = updates.losses(chunk.sizes.shape)
        if watcher:
            watched = [seen | steps for seen, steps in zip(watched, watcher.told(losses, chunk.sizes, np.array(rates)), strict=True)]
        return self._results(chunk, rows, losses, early, watched)

    def _updates(
        self, tasks: Sequence[Task], pool: tuple[Tensor, Tensor], rows: Trained, luck: Luck, *, plain: bool,
        told: Callable[[Which, Sequence[Tensor]], None] | None = None,
    ) -> Updates:  # fmt: skip
        """Return what makes updates of *rows* from the examples of the *pool*, for *tasks* whose batches are laid out alike."""
        batches = tasks[0].batches
        mix = batches.mix if batches else "concat"
        return Updates(
            pool, rows, luck, lambda kind: self._step(kind, plain, mix), self._trained, plain, alone=len(tasks) == 1,
            mass=mass_of(self.objective, self._store.whole_targets), told=told, cuts=batches is not None and batches.widths is not None,
            graphs=self.graphs,
        )  # fmt: skip

    def _planned(self, job: Job, tasks: list[Task], offsets: IntArray) -> Chunk:
        """Return *tasks* as a chunk: which examples each reads where that goes by their losses, too."""
        if not tasks[0].graded:
            return planned(job, tasks, offsets)
        return dataclasses.replace(planned(job, [composed(task, self._losses(task)) for task in tasks], offsets), tasks=tasks)

    def _losses(self, task: Task) -> FloatArray:
        """Return the loss of each of the examples of *task* by the parameters that came. Shapes: -> (positions,)."""
        x, y, _ = self._store.pool([task])
        return self._scorer.each(self._starts.of(task), x, y, task.positions)["loss"]

    def _results(self, chunk: Chunk, rows: Rows, losses: FloatArray, early: Early | None, watched: Sequence[State]) -> list[Result]:
        # The mean over a row's own steps, summed in float64 and in order: padding with zeros moves no bit of it.
        means = losses.cumsum(axis=1)[:, -1] / (chunk.sizes > 0).sum(axis=1)
        stack, results = self._stack(chunk.tasks[0].job, rows), list[Result]()
        for i, task in enumerate(chunk.tasks):
            steps = int((chunk.sizes[i] > 0).sum())
            if early is not None:  # An algorithm goes by the steps behind what is sent.
                task = dataclasses.replace(task, rates=task.step_rates[: early.sent])
            results.append(self._result(task, stack, float(means[i]), rows, i, {}, steps, watched[i]))
        return results

    def _stack(self, job: Job, rows: Rows) -> Stack:
        """Return what is sent of *rows*: without the buffers, where these are the client's own."""
        count = self._trained if job.own_statistics else len(self._names)
        params = rows.params[:count]
        return Stack(self._names[:count], self.graphs.taken(params) if self.graphs is not None else params)

    def _noise(self, tasks: Sequence[Task], x: Tensor, y: Tensor, offsets: IntArray) -> list[State]:
        """Return signal and noise of the gradients of single examples at the start of *tasks*, of those that are watched so closely.

        *offsets* turn a task's positions into rows of (x, y).
        """
        watched: list[State] = [{} for _ in tasks]
        closely = [i for i, task in enumerate(tasks) if task.watching is not None and len(task.watching.each) > 1]
        # Clients with statistics of their own do not start alike.
        for _, group in groupby(closely, key=lambda i: (tasks[i].start.content, i if tasks[i].job.own_statistics else 0)):
            rows = list(group)
            each = [cast(Watching, tasks[i].watching).each + offsets[i] for i in rows]
            places, sizes = torch.from_numpy(np.concatenate(each)).to(x.device), [len(mine) for mine in each]
            self.as_built()
            found = noises(self._model, self.objective, self._starts.of(tasks[rows[0]]), x[places], y[places], sizes)
            for i, (trace, signal), size in zip(rows, found, sizes, strict=True):
                watched[i]["noise"] = np.array([signal, trace, size])
        return watched

    def _result(
        self, task: Task, stack: Stack, loss: float, rows: Rows, row: int, parts: dict[str, State], steps: int, watched: State
    ) -> Result:
        """Return the result of a trained *task*: what its algorithm makes of it, and what its client keeps."""
        job, metrics, params = task.job, {"train_loss": loss}, Row(stack, row)
        if job.initial_loss:
            metrics["initial_loss"] = self._scores(task)["loss"]
        if job.algorithm is not None:
            trained = stack.row(row)
            ended = ended_by(job.algorithm, task, trained, self._names[: self._trained])
            params, metrics = trained | named(ended.extra), metrics | dict(ended.metrics)
            parts = {**parts, "algorithm": ended.kept} if ended.kept else parts
        if job.optimizer is not None and job.optimizer.state == "keep":
            kept = [name for term in job.optimizer.terms(job) for name in term.keeps]
            parts = {**parts, "optimizer": rows.kept(row, kept, steps)}
        if job.own_statistics:
            parts = {**parts, "statistics": rows.own(row, self._names)}
        if task.gauged:
            parts = {**parts, NOISE: self._gauged(task)}
        if task.measured:
            metrics["steps"] = float(steps)
        if job.bucketing is not None and task.batches is not None:
            metrics["padding"] = task.batches.padding
        return Result(metrics, params, self._predicted(task), parts, mark=task.mark, watched=watched)

    def _step(self, kind: tuple[int, int], plain: bool, mix: Mix = "concat") -> Step:
        """Return the step for batches of (size, new ones); the second is 0 where it makes no difference.

        Where all have one loss it is what sequences are cut to.
        """
        if (*kind, plain, mix) not in self._steps:
            x, y = self._store.sample(kind[0])
            more = [self._store.sample(kind[0], seed)[0] for seed in range(PROBED_BATCHES)]
            cut = kind[1] if mix == "concat" else 0
            if cut:
                x, more = x[:, :cut].contiguous(), [each[:, :cut].contiguous() for each in more]
            objective = self.objective if mix == "concat" else Mixed(self.objective, kind[1], mix)
            if self._kept.moves is None:
                self._kept.moves = remembers(self._model, self.objective, x, y, self._kept)
            before = Kept(self._model, self.objective) if self._kept.moves else self._kept  # A task may be under way.
            self._steps[*kind, plain, mix] = stored.step(
                compile_step, self._model, objective, x, y, plain=plain, whole_targets=self._store.whole_targets,
                more=more, templates=self._templates if mix == "concat" and not cut else None,  # These are of whole sequences.
                remembers=self._kept.moves, arithmetic=self.arithmetic,
            )
            before.back()  # Tracing and probing have called it.
        return self._steps[*kind, plain, mix]
