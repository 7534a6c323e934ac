"""The cohort engine: tasks that are due are trained together, a chunk of clients per stacked step. Knows no other process.

How tasks are grouped changes speed and no bit: a row of a stacked step has the same bits whatever the number of
rows (one intra-op thread), and "serial" is the stacked step with one row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.state import State
from fedsim.core.types import FloatArray, IntArray, Params
from fedsim.learn.algorithms.ending import ended_by, named
from fedsim.learn.arithmetic import PLAIN, Arithmetic
from fedsim.learn.curriculum import composed
from fedsim.learn.engine.chunks import Chunk, chunk_rule, planned, ranked
from fedsim.learn.engine.diagnosis import Guarded, broken
from fedsim.learn.engine.early import Early
from fedsim.learn.engine.executors import Site
from fedsim.learn.engine.graphs import Capture, Cuda, Graphs
from fedsim.learn.engine.live import Learner
from fedsim.learn.engine.looks import Looks
from fedsim.learn.engine.noise import Luck
from fedsim.learn.engine.room import Room, minding
from fedsim.learn.engine.rows import Rows
from fedsim.learn.engine.scoring import EVALUATION_ROWS, Scorer
from fedsim.learn.engine.stack import Stack
from fedsim.learn.engine.starts import Starts
from fedsim.learn.engine.step import Step
from fedsim.learn.engine.steps import REHEARSING, Kind, Steps
from fedsim.learn.engine.together import Together, goes_together
from fedsim.learn.engine.updates import Trained, Updates, Which
from fedsim.learn.engine.watching import Watcher
from fedsim.learn.job import Job
from fedsim.learn.kept import Kept
from fedsim.learn.models import trainable, travelling
from fedsim.learn.objectives import Objective, mass_of
from fedsim.learn.optim import is_plain
from fedsim.learn.stopping import Stopping
from fedsim.learn.store import Store
from fedsim.learn.work import NOISE, Result, Row, Start, Task

PREPARED_EXAMPLES = 512
"""The largest batch that is compiled before a run begins."""


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
        self._steps = Steps(model, objective, store, self._kept, arithmetic, many_sizes=many_sizes)
        self._starts = Starts(carried, self._trained, self._dtype, self._device)
        self._looks = Looks(model, objective, store, self._starts, self._scorer, self._kept)
        self._scored: tuple[Start, list[Tensor]] | None = None
        self.computed = 0
        """How many tasks of the latest ``run`` are computed so far, for whoever looks on."""
        self.arithmetic, self.many_sizes = arithmetic, many_sizes
        here = capture is not None or self._device.type == "cuda"
        self.graphs = Graphs(capture or Cuda()) if arithmetic.graphs and here else None
        if self.graphs is not None:
            self.room.freed = self.graphs.forget

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
        return dict(self._steps.known)

    def knows(self, steps: Mapping[Kind, Step]) -> None:
        """Take *steps* that were compiled for the very same model, objective and examples, elsewhere or before."""
        self._steps.known.update(steps)

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
            self._steps.of((size if job.batch_size == 1 else max(size, 2), 0), is_plain(job) and not job.cut)

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
        return [*sorted(self._steps.notes), *self.told, *self.heard]

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
            return 1 if self._steps.of((job.micro(largest)[0], width), is_plain(job) and not job.cut).rows == "one" else self.chunk
        at = int(batches.sizes.argmax())
        step = self._steps.of((int(batches.sizes[at]), int(batches.fresh[at])), is_plain(job), batches.mix)
        return 1 if step.rows == "one" else self.chunk

    def _rehearse(self, job: Job, tasks: list[Task]) -> list[Result]:
        """Train *tasks* whose batches depend on numbers: together those that can be stacked, the others one after the other."""
        if not all(map(goes_together, tasks)):
            return [each for task in tasks for each in (self._together if goes_together(task) else self._alone)(job, [task])]
        found: list[Result] = []
        while left := tasks[len(found) :]:  # The first by itself: what is compiled for it says whether others may go beside it.
            known = {step.rows for kind, step in self._steps.known.items() if kind[3].startswith(REHEARSING)}
            found += self._together(job, left if known - {"one"} else left[:1])
        return found

    def _together(self, job: Job, tasks: list[Task]) -> list[Result]:
        """Train *tasks* whose steps are stacked though their batches depend on numbers."""
        x, y, offsets = self._store.pool(tasks)
        seen, plain = self._looks.noise(tasks, x, y, offsets), is_plain(job)
        self.as_built()
        rows, luck = self._starts.rows(job, tasks), Luck(tasks)
        watcher = Watcher.of(tasks, rows, self._trained)
        together = Together(self._model, self.objective, self._store, tasks, self._starts, rows, self._trained, offsets)
        updates = Updates(
            (x, y), rows, luck, partial(self._steps.aimed, together, f"{REHEARSING} {together.word}", plain), self._trained, plain,
            alone=len(tasks) == 1, told=watcher.gradients if watcher else None,
        )  # fmt: skip
        with torch.no_grad(), self.arithmetic.at_work(self._device.type):
            parts, losses = together.train(updates, watcher)
        if watcher:
            steps = watcher.told(losses, together.sizes, tasks[0].step_rates)
            seen = [each | mine for each, mine in zip(seen, steps, strict=True)]
        stack, means = self._stack(job, rows), [float(np.mean(row[: task.steps])) for row, task in zip(losses, tasks, strict=True)]
        return [self._result(task, stack, means[i], rows, i, parts[i], task.steps, seen[i]) for i, task in enumerate(tasks)]

    def _alone(self, job: Job, tasks: list[Task]) -> list[Result]:
        """Train *tasks* whose steps cannot be stacked, one after the other."""
        found: list[Result] = []
        for task in tasks:
            seen = self._looks.noise([task], *self._store.pool([task]))[0]
            self.as_built()
            rows = self._starts.rows(job, [task])
            watcher = Watcher.of([task], rows, self._trained)
            with one_thread(), self.arithmetic.training(self._device.type):
                learner = Learner(self._model, self.objective, self._store, task, self._starts.of(task), rows, self._trained, watcher)
                parts, losses = learner.run()
            watched = seen | (watcher.told(losses[None], task.sizes[None], task.step_rates)[0] if watcher else {})
            found.append(self._result(task, self._stack(job, rows), float(np.mean(losses)), rows, 0, parts, task.steps, watched))
        return found

    def _score(self, job: Job, tasks: list[Task]) -> list[Result]:
        return [Result(self._looks.scores(task), mark=task.mark) for task in tasks]

    def _train_early(self, job: Job, tasks: list[Task]) -> list[Result]:
        """Train *tasks* that may end early, one after the other."""
        results: list[Result] = []
        for task in tasks:
            held_back = self._store.pool([task])[:2], torch.tensor(task.held_back)
            early = Early(cast(Stopping, job.stopping), partial(self._looks.loss, *held_back), task.steps // int(job.epochs))
            results += self._train(job, [task], early)
        return results

    def _train(self, job: Job, tasks: list[Task], early: Early | None = None) -> list[Result]:
        x, y, offsets = self._store.pool(tasks)
        chunk = self._planned(job, tasks, offsets)
        rows, luck = self._starts.rows(job, tasks), Luck(tasks)
        if self.graphs is not None:
            self.graphs.place(rows)
        plain, rates = is_plain(job) and not job.cut, chunk.step_rates
        watcher, watched = Watcher.of(tasks, rows, self._trained), self._looks.noise(tasks, x, y, offsets)
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
            watched = [seen | steps for seen, steps in zip(watched, watcher.told(losses, chunk.sizes, chunk.rates), strict=True)]
        return self._results(chunk, rows, losses, early, watched)

    def _updates(
        self, tasks: Sequence[Task], pool: tuple[Tensor, Tensor], rows: Trained, luck: Luck, *, plain: bool,
        told: Callable[[Which, Sequence[Tensor]], None] | None = None,
    ) -> Updates:  # fmt: skip
        """Return what makes updates of *rows* from the examples of the *pool*, for *tasks* whose batches are laid out alike."""
        batches = tasks[0].batches
        mix = batches.mix if batches else "concat"
        return Updates(
            pool, rows, luck, lambda kind: self._steps.of(kind[:2], plain, mix), self._trained, plain, alone=len(tasks) == 1,
            spread=lambda kind: self._steps.of(kind[:2], plain, mix, spread=True),
            mass=mass_of(self.objective, self._store.whole_targets), told=told, cuts=batches is not None and batches.widths is not None,
            graphs=self.graphs,
        )  # fmt: skip

    def _planned(self, job: Job, tasks: list[Task], offsets: IntArray) -> Chunk:
        """Return *tasks* as a chunk: which examples each reads where that goes by their losses, too."""
        if not tasks[0].graded:
            return planned(job, tasks, offsets)
        return dataclasses.replace(planned(job, [composed(task, self._looks.losses(task)) for task in tasks], offsets), tasks=tasks)

    def _results(self, chunk: Chunk, rows: Rows, losses: FloatArray, early: Early | None, watched: Sequence[State]) -> list[Result]:
        # The mean over a row's own steps, summed in float64 and in order: padding with zeros moves no bit of it.
        steps = (chunk.sizes > 0).sum(axis=1)
        means = losses.cumsum(axis=1)[:, -1] / steps
        stack, results = self._stack(chunk.tasks[0].job, rows), list[Result]()
        for i, (task, mean, taken) in enumerate(zip(chunk.tasks, means.tolist(), steps.tolist(), strict=True)):
            if early is not None:  # An algorithm goes by the steps behind what is sent.
                task = dataclasses.replace(task, rates=task.step_rates[: early.sent])
            results.append(self._result(task, stack, mean, rows, i, {}, taken, watched[i]))
        return results

    def _stack(self, job: Job, rows: Rows) -> Stack:
        """Return what is sent of *rows*: without the buffers, where these are the client's own."""
        count = self._trained if job.own_statistics else len(self._names)
        params = rows.params[:count]
        return Stack(self._names[:count], self.graphs.taken(params) if self.graphs is not None else params)

    def _result(
        self, task: Task, stack: Stack, loss: float, rows: Rows, row: int, parts: dict[str, State], steps: int, watched: State
    ) -> Result:
        """Return the result of a trained *task*: what its algorithm makes of it, and what its client keeps."""
        job, metrics, params = task.job, {"train_loss": loss}, Row(stack, row)
        if job.initial_loss:
            metrics["initial_loss"] = self._looks.scores(task)["loss"]
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
            parts = {**parts, NOISE: self._looks.gauged(task)}
        if task.measured:
            metrics["steps"] = float(steps)
        if job.bucketing is not None and task.batches is not None:
            metrics["padding"] = task.batches.padding
        return Result(metrics, params, self._looks.predicted(task), parts, mark=task.mark, watched=watched)
