"""A worker: a process of its own that computes units of tasks for its parent, ``python -m fedsim.learn.engine.executors.worker N``.

N is the descriptor of its socket. It ends when its standard input does, whatever it is doing: so it never outlives
its parent, however that one went. Ctrl-C is the parent's business.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedsim.core import own, pinned
from fedsim.core.errors import RunError, ScenarioError, reason
from fedsim.core.warned import hearing
from fedsim.learn.engine import shared
from fedsim.learn.engine.executors.wire import SENT, Answer, Broken, Channel, Fresh, Learn, Score, Settle, Train
from fedsim.learn.work import Start

if TYPE_CHECKING:
    from fedsim.learn.engine.cohort import CohortEngine


def main() -> None:
    """Serve the parent until it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The heavy imports only now that nothing can leave us behind; dynamo is what tracing would import at first use.
    import torch
    import torch._dynamo  # pyright: ignore[reportUnusedImport]

    from fedsim.learn import elementary

    torch.set_num_threads(1)
    if not pinned.unpinned():  # As in the process that started us.
        elementary.hold()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    worker = _Worker(channel)
    try:
        while True:
            message, beside = channel.receive()
            answer = worker.heard(message, beside)
            if answer is not None:
                channel.send(answer)
    except (EOFError, OSError):  # The parent is gone or has no more use for us.
        return


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(0)


class _Worker:
    """What a worker knows: the engine it settled with, the starts it has learned, where results go."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._engine: CohortEngine | None = None
        self._refusal: BaseException | None = None
        self._results, self._written = -1, 0

    def heard(self, message: object, beside: list[int]) -> Answer | Broken | None:
        """Return the answer to a unit; take note of anything else."""
        try:
            match message:
                case Settle():
                    self._settle(message, beside[0])
                case Learn():
                    self._learn(message, beside[0])
                case Fresh():
                    if self._results >= 0:
                        os.close(self._results)
                    self._results, self._written = os.dup(beside[0]), 0
                case Train() | Score():
                    return self._computed(message)
                case _:
                    raise AssertionError(f"no such message: {message!r}")
        finally:
            for descriptor in beside:
                os.close(descriptor)
        return None

    def _settle(self, settle: Settle, block: int) -> None:
        self._refusal = None
        try:
            self._engine = engine_at(settle, block)
        except BaseException as error:  # Said when there is work: until then nobody listens.
            self._refusal = error

    def _learn(self, message: Learn, block: int) -> None:
        starts = self._channel.starts
        for content in [content for content in starts if content not in message.keep]:
            del starts[content]
        starts[message.content] = Start.known(message.content, shared.views(shared.mapped(block), message.layout))

    def _computed(self, unit: Train | Score) -> Answer | Broken:
        try:
            if self._refusal is not None:
                raise self._refusal
            if self._engine is None:
                raise RunError("a unit came before the site")
            with hearing() as heard:
                if isinstance(unit, Score):
                    return Answer([self._engine.batch_sums(unit.start, unit.batch)], [], [], heard.told)
                results = self._engine.run(unit.tasks)
            layouts: list[shared.Layout] = []
            for result in results:
                layout, self._written = shared.write(self._results, result.arrays(), self._written)
                layouts.append(layout)
            return Answer([dict(r.metrics) for r in results], layouts, [r.digest for r in results], heard.told, self._engine.told)
        except BaseException as error:  # Whatever it is, even SystemExit, it is the parent's to raise.
            place = own.where(error)
            return Broken(
                _pickled(error), f"{reason(error)}{f' ({place})' if place else ''}", traceback.format_exc(), error.__cause__ is not None
            )


def engine_at(settle: Settle, block: int) -> CohortEngine:
    """Return the engine that *settle* speaks of, its examples the memory of *block*."""
    import torch

    from fedsim.data.source import Examples
    from fedsim.learn.engine.cohort import CohortEngine
    from fedsim.learn.store import Store

    memory = shared.views(shared.mapped(block), settle.examples)
    sys.path[:], worlds = pickle.loads(memory["path"].tobytes())
    own.settle(worlds)
    parts: dict[str, Any] = {}
    for name, key in SENT.items():
        try:
            parts[name] = pickle.loads(memory[name].tobytes())
        except ScenarioError:
            raise
        except BaseException as error:  # Whatever a stranger's module raises while it loads.
            raise ScenarioError(
                f"engine.workers: what {key} names cannot be loaded in a worker ({reason(error)})."
                f" Put it at the top level of a module of its own, or leave engine.workers at 1."
            ) from None  # The line says it all; a run ends by it as by a wrong setting.
    federation = replace(
        parts["federation"],
        test=Examples(memory["test_x"], memory["test_y"]),
        pooled=Examples(memory["x"], memory["y"]) if settle.pooled else None,
    )
    device = torch.device(settle.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = Store(federation, getattr(torch, settle.dtype), device, kept_bytes=settle.kept_bytes)
    return CohortEngine(
        parts["model"].to(device), parts["objective"], store, chunk=settle.chunk, many_sizes=settle.many_sizes, arithmetic=settle.arithmetic
    )


def _pickled(error: BaseException) -> bytes:
    try:
        return pickle.dumps(error)
    except Exception:  # A stranger's error may hold anything; its line is sent in any case.
        return b""


if __name__ == "__main__":
    main()
