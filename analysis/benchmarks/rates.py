"""What learning rates of their own cost: the engine's time for 100 clients with 100 rates, as a multiple of that at one rate.

    OMP_NUM_THREADS=1 python -m analysis.benchmarks.rates [logreg 2nn] [--turns 5]

60 examples a client, 30 steps of 10, both in turn in one process and one intra-op thread; medians of processor time. The digests are of
the results at own rates, and the same before rows of several rates shared a chunk.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import time
from dataclasses import replace

import numpy as np
import torch

from fedsim.core.keys import Key
from fedsim.data.federation import Federation
from fedsim.data.partition import Partition
from fedsim.data.source import Examples
from fedsim.learn import models
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.learn.job import Job
from fedsim.learn.objectives import Classification
from fedsim.learn.store import Store
from fedsim.learn.work import Result, Start, Task

CLIENTS, EACH, SHAPE = 100, 60, (1, 28, 28)
MODELS = {"logreg": lambda: models.logreg(SHAPE, 10), "2nn": lambda: models.mlp(SHAPE, 10, hidden=[200, 200])}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    draw = np.random.default_rng(0)
    count = CLIENTS * EACH
    data = Examples(draw.normal(size=(count, *SHAPE)).astype(np.float32), draw.integers(0, 10, count))
    partition = Partition(np.arange(count), np.arange(0, count + 1, EACH))
    fed = Federation(CLIENTS, 10, SHAPE, data, {}, Key(0), pooled=data, partition=partition)
    for name in given.models:
        for rule, momentum in (("sgd", 0.0), ("momentum", 0.9)):
            torch.manual_seed(0)
            model = MODELS[name]()
            engine = CohortEngine(model, Classification(), Store(fed, torch.float32, torch.device("cpu")))
            job, start = Job(epochs=5, batch_size=10, lr=0.05, momentum=momentum), Start(models.params_of(model))
            same = [Task(c, 0, job, start, fed.train(c), Key(5).fold("client", c)) for c in range(CLIENTS)]
            own = [replace(task, rates=np.full(task.steps, 0.02 * (1 + 0.01 * c))) for c, task in enumerate(same)]
            results = (_timed(engine, same), _timed(engine, own))[1][1]  # Compiles.
            turns = [(_timed(engine, same)[0], _timed(engine, own)[0]) for _ in range(given.turns)]
            alike, apart = (statistics.median(column) for column in zip(*turns, strict=True))
            mark = hashlib.sha256("".join(result.digest for result in results).encode()).hexdigest()[:12]
            print(f"{name:7} {rule:9} {alike * 1e3:6.0f} ms {apart * 1e3:6.0f} ms {apart / alike:6.2f} {mark}", flush=True)


def _timed(engine: CohortEngine, tasks: list[Task]) -> tuple[float, list[Result]]:
    begun = time.process_time()
    results = engine.run(tasks)
    return time.process_time() - begun, results


if __name__ == "__main__":
    main()
