"""Worker processes: what is due is dealt out in units, and results come back through shared memory.

Which worker computes what, beside what and when, changes no bit (see ``engine/cohort.py``), so units go to whoever is idle.
Nothing outlives the parent: blocks have no names, and a worker ends when its standard input does.
"""

from __future__ import annotations

import os
import pickle
import selectors
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import IO

import numpy as np
import torch

from fedsim.core import own
from fedsim.core.children import command, ended, environment
from fedsim.core.errors import FedsimError, RunError, ScenarioError, reason
from fedsim.core.types import Params
from fedsim.core.warned import tell
from fedsim.data.source import Examples
from fedsim.learn.engine import shared
from fedsim.learn.engine.chunks import ranked
from fedsim.learn.engine.devices import mine
from fedsim.learn.engine.executors import Site, executors
from fedsim.learn.engine.executors.wire import SENT, Answer, Broken, Channel, Fresh, Learn, Score, Settle, Train, Unit
from fedsim.learn.models import hooks
from fedsim.learn.store import CACHED_BYTES
from fedsim.learn.work import Result, Start, Task

GRACE_S = 5.0
"""How long a worker that was told to end may take before it is killed."""
NAMED = 5
"""Tasks that an error line names at most."""
KEPT = 4
"""Starts that workers remember beyond those at hand: the next round's are often this one's."""


@dataclass(eq=False)
class _Worker:
    """The parent's view of one worker: its process, the line to it, what it knows and what it is at."""

    number: int
    process: subprocess.Popen[bytes]
    channel: Channel
    known: set[str] = field(default_factory=set[str])
    unit: tuple[int, Unit] | None = None
    results: int = -1

    def __str__(self) -> str:
        return f"worker {self.number} (process {self.process.pid})"


@dataclass(frozen=True, slots=True)
class _Done:
    """An answer, and the block (by worker) that its arrays lie in."""

    answer: Answer
    worker: int


class Workers:
    """An Executor of processes on this machine. They take seconds to start, in which the caller may go on."""

    def __init__(self, workers: int) -> None:
        if not hasattr(socket, "send_fds"):
            raise ScenarioError(f"engine.workers = {workers}: this system cannot share memory so; leave it at 1.")
        self._said = tempfile.TemporaryFile()
        self._workers: list[_Worker] = []
        self._starts: dict[str, tuple[int, shared.Layout]] = {}
        self._heard_of: dict[str, None] = {}  # The engine's here, for what those of the workers have to say.
        self._chunk, self.computed = 1, 0
        """How many clients are trained at once at most, and how many tasks of the latest ``run`` are computed so far."""
        try:
            for number in range(1, workers + 1):
                self._workers.append(_start(number, self._said))
        except BaseException:
            self.close()
            raise

    @property
    def processes(self) -> list[int]:
        """Return the process ids."""
        return [worker.process.pid for worker in self._workers]

    def serve(self, site: Site) -> None:
        """Compute at *site* from now on. Raises ScenarioError when what it is made of cannot be sent."""
        store = site.store
        if hooks(site.model):
            raise self._not_sent("model.kind", "hooks on gradients do not travel", "Build the model without, or leave")
        block, layout = store.share()
        federation = replace(store.needed, pooled=None, test=Examples(np.zeros(0), np.zeros(0)))
        sent: Params = {"path": _bytes(pickle.dumps(([place or os.getcwd() for place in sys.path], own.worlds())))}
        for name, part in zip(SENT, (site.model, site.objective, federation), strict=True):
            sent[name] = _bytes(self._pickled(part, SENT[name]))
        more, _ = shared.write(block, sent, os.fstat(block).st_size)
        settle = Settle(
            examples={**layout, **more}, pooled=store.federation.pooled is not None,
            dtype=str(store.dtype).removeprefix("torch."), chunk=site.chunk, many_sizes=site.many_sizes, arithmetic=site.arithmetic,
            kept_bytes=CACHED_BYTES // len(self._workers),
        )  # fmt: skip
        self._chunk, self._heard_of = site.chunk, site.engine.heard
        for worker in self._workers:
            self._tell(worker, replace(settle, device=mine(site.device, worker.number, torch.cuda.device_count())), block)

    def run(self, tasks: Sequence[Task]) -> list[Result]:
        """Return the results of *tasks*, in their order. Raises what a worker raised, RunError where one died."""
        units = deal(tasks, self._chunk, len(self._workers))
        done, memories = self._work([Train([tasks[i] for i in rows]) for rows in units])
        results: dict[int, Result] = {}
        for rows, one in zip(units, done, strict=True):
            memory, answer = memories.get(one.worker), one.answer
            for i, metrics, layout, digest in zip(rows, answer.metrics, answer.layouts, answer.digests, strict=True):
                results[i] = Result.of(metrics, shared.views(memory, layout), digest, tasks[i].mark)
        return [results[i] for i in range(len(tasks))]

    def batch_sums(self, start: Start, batches: int) -> list[dict[str, float]]:
        """Return the sums of the first *batches* batches of the test part, in order."""
        done, _ = self._work([Score(start, batch) for batch in range(batches)])
        return [dict(one.answer.metrics[0]) for one in done]

    def close(self) -> None:
        """End every worker, whatever it is doing, and wait until it is gone."""
        for worker in self._workers:
            if worker.process.stdin:
                worker.process.stdin.close()  # It reads this as the end.
            worker.channel.close()
        for worker in self._workers:
            try:
                worker.process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self._workers.clear()
        for block, _ in self._starts.values():
            os.close(block)
        self._starts.clear()
        self._said.close()

    def _work(self, units: Sequence[Unit]) -> tuple[list[_Done], dict[int, shared.Memory]]:
        """Have *units* computed, handed out in order to whoever is idle; return the answers in order, and the memory
        of each worker that the arrays lie in."""
        starts, self.computed = {start.content: start for unit in units for start in unit.starts}, 0
        blocks = {worker.number: shared.blank() for worker in self._workers}
        try:
            self._share(starts)
            done: dict[int, _Done] = {}
            broken: dict[int, Exception] = {}
            waiting = iter(enumerate(units))
            fresh = set(self._workers)
            with selectors.DefaultSelector() as ready:
                for worker in self._workers:
                    ready.register(worker.channel, selectors.EVENT_READ, worker)
                    self._hand(worker, waiting, fresh, blocks)
                while any(worker.unit for worker in self._workers):
                    for key, _ in ready.select():
                        worker: _Worker = key.data
                        number, answer = self._heard(worker)
                        if isinstance(answer, Exception):
                            broken[number] = answer
                            waiting = iter(())  # What is under way is waited for, so that the crew stays of use.
                        else:
                            done[number] = _Done(answer, worker.number)
                            self.computed += len(answer.digests)
                        self._hand(worker, waiting, fresh, blocks)
            if broken:  # The first in order: which of two is heard first is a matter of luck.
                raise broken[min(broken)]
            memories = {number: shared.mapped(block) for number, block in blocks.items()}
        finally:
            for block in blocks.values():
                os.close(block)
        return [done[number] for number in range(len(units))], memories

    def _hand(
        self, worker: _Worker, waiting: Iterator[tuple[int, Unit]], fresh: set[_Worker], blocks: dict[int, int]
    ) -> None:
        """Give *worker* the next unit, where there is one, and first what it does not know yet."""
        worker.unit = next(waiting, None)
        if worker.unit is None:
            return
        if worker in fresh:
            fresh.discard(worker)
            self._tell(worker, Fresh(), blocks[worker.number])
        keep = frozenset(self._starts)
        for content in dict.fromkeys(start.content for start in worker.unit[1].starts):
            if content not in worker.known:
                block, layout = self._starts[content]
                self._tell(worker, Learn(content, layout, keep), block)
                worker.known = (worker.known & keep) | {content}
        self._tell(worker, worker.unit[1])

    def _share(self, starts: dict[str, Start]) -> None:
        """Put the parameters of *starts* where workers can map them, and let go of the oldest that are not among them."""
        for content, start in starts.items():
            if content in self._starts:
                self._starts[content] = self._starts.pop(content)  # The newest now.
                continue
            block = shared.blank()
            self._starts[content] = block, {}
            self._starts[content] = block, shared.write(block, start.params)[0]
        for content in [content for content in self._starts if content not in starts][:-KEPT]:
            os.close(self._starts.pop(content)[0])

    def _heard(self, worker: _Worker) -> tuple[int, Answer | Exception]:
        try:
            answer, _ = worker.channel.receive()
        except (EOFError, OSError):
            raise self._death(worker) from None  # The line says it all.
        if worker.unit is None:
            raise RunError(f"{worker} answered without a question.")
        (number, unit), worker.unit = worker.unit, None
        if isinstance(answer, Answer):
            tell(answer.warned)
            self._heard_of.update(dict.fromkeys(answer.notes))
        return number, _raised(answer, unit) if isinstance(answer, Broken) else answer

    def _tell(self, worker: _Worker, message: object, *beside: int) -> None:
        try:
            worker.channel.send(message, *beside)
        except OSError:
            raise self._death(worker) from None  # The line says it all.

    def _death(self, worker: _Worker) -> RunError:
        """Return the error that says how *worker* died, and which tasks it had."""
        try:
            code = worker.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            code = None
        how = "closed its line" if code is None else ended(code)
        self._said.seek(0)
        last = (self._said.read().decode(errors="replace").strip().splitlines() or [""])[-1][:160]
        labels = worker.unit[1].labels if worker.unit else []
        had = f"while it had {'; '.join(labels[:NAMED])}" if labels else "while it had nothing to do"
        rest = f"; and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
        hint = " The system kills processes so when memory is short; fewer engine.workers need less." if code == -9 else ""
        return RunError(f"{worker} {how} {had}{rest}.{f' It said: {last}' if last else ''}{hint}")

    def _pickled(self, part: object, key: str) -> bytes:
        try:
            return pickle.dumps(part, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # pickle raises what it likes, and so does a stranger's __reduce__.
            raise self._not_sent(key, reason(error), "Make it of functions and classes at the top level of a module, or leave") from error

    def _not_sent(self, key: str, why: str, hint: str) -> ScenarioError:
        return ScenarioError(
            f"engine.workers = {len(self._workers)}: what {key} names cannot be sent to another process ({why}). {hint}"
            f" engine.workers at 1."
        )


@executors.register("processes")
def processes(workers: int) -> Workers:
    """Processes on this machine, engine.workers of them; examples and results lie in memory that they share. GPUs are dealt out."""
    return Workers(workers)


def deal(tasks: Sequence[Task], chunk: int, hands: int) -> list[list[int]]:
    """Return the places of *tasks* as units of at most *chunk* tasks of one job, in the order to begin them.

    Longest first, and dealt like cards: all *hands* get as much, and as long, in each turn. Small units at the end
    would cost more dispatch than the idle time they save.
    """
    units: list[list[int]] = []
    for _, rows in ranked(tasks):
        turns = -(-len(rows) // (chunk * hands))
        size = -(-len(rows) // turns)
        for first in range(0, len(rows), size):
            turn = rows[first : first + size]
            units += [turn[hand::hands] for hand in range(min(hands, len(turn)))]
    return units


def _start(number: int, said: IO[bytes]) -> _Worker:
    """Return worker *number*, its process started; it finds modules where this one does."""
    mine, theirs = socket.socketpair()
    with theirs:
        try:
            # A group of its own: Ctrl-C is for us.
            process = subprocess.Popen(
                command("fedsim.learn.engine.executors.worker", str(theirs.fileno())),
                pass_fds=[theirs.fileno()], stdin=subprocess.PIPE, stdout=said, stderr=said, env=environment(), process_group=0,
            )  # fmt: skip
        except BaseException:
            mine.close()
            raise
    return _Worker(number, process, Channel(mine))


def _raised(broken: Broken, unit: Unit) -> Exception:
    """Return the error that *broken* tells of, as it was raised in the worker where it can be had."""
    error: object = None
    with suppress(Exception):  # A stranger's error may refuse to be put together again.
        error = pickle.loads(broken.error)
    if isinstance(error, FedsimError) and not broken.caused:
        return error
    if isinstance(error, Exception):  # Ours with a stranger's as its cause has a story too.
        error.__cause__ = _Story(broken.story)
        return error
    return RunError(f"{unit.labels[0]}: {broken.line}")


class _Story(Exception):
    """Carries a worker's traceback into the parent's."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _bytes(text: bytes) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.frombuffer(text, np.uint8)
