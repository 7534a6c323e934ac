"""What the runs of one process share: steps, graphs and pools, each only with a run that would have made the very same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedsim
from fedsim.core import lending
from fedsim.core.keys import Key
from fedsim.data import lent as pools
from fedsim.data.source import Examples, Pool
from fedsim.learn.engine import lent, step, steps, trace
from fedsim.learn.models import trainable
from fedsim.learn.objectives import Classification
from fedsim.scenario.load import load
from fedsim.session import execute

Tiny = Callable[..., dict[str, Any]]
MLP = {"model": {"kind": "mlp", "hidden": [8], "dropout": 0.2}, "training.batch_size": 7}


@pytest.fixture
def lender(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Return what begins to lend; here nothing else shares steps."""
    monkeypatch.setattr(steps, "compile_step", step.compile_step)
    lending.stop()
    yield lending.lend
    lending.stop()


def test_what_is_shared_moves_no_digest(
    tiny: Tiny, tmp_path: Path, lender: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that share have the digests of runs that do not; those of a seed compile nothing again, those of others trace nothing."""
    compiled, traced = list[int](), list[int]()
    compile_step, trace_ = step.compile_step, trace._trace
    monkeypatch.setattr(steps, "compile_step", lambda *a, **more: (compiled.append(1), compile_step(*a, **more))[1])
    monkeypatch.setattr(trace, "_trace", lambda *a: (traced.append(1), trace_(*a))[1])
    asked = [(0.1, 7, 7), (0.5, 7, 7), (0.1, 8, 7), (0.1, 7, 9), (0.5, 8, 7)]

    def digests(where: str) -> list[tuple[str, str, int, int]]:
        found = list[tuple[str, str, int, int]]()
        for i, (rate, seed, batch) in enumerate(asked):
            table = tiny({**MLP, "training.optimizer.lr": rate, "training.batch_size": batch})
            before = len(compiled), len(traced)
            run = execute(load(table, None, seed), tmp_path / f"{where}-{i}")
            found.append((run.digest, run.metrics_digest, len(compiled) - before[0], len(traced) - before[1]))
        return found

    alone = digests("alone")
    lender()
    shared = digests("shared")

    assert [each[:2] for each in alone] == [each[:2] for each in shared] and len({each[0] for each in alone}) == len(asked)
    assert all(min(each[2:]) > 0 for each in alone)
    (first, again, seed, batch, seed_again) = (each[2:] for each in shared)
    assert first == alone[0][2:] and again == seed_again == (0, 0)
    assert seed == (first[0], 0) and batch[0] == batch[1] > 0


class Scaled(nn.Module):
    """A layer with a constant that does not travel, which a trace holds for ever."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("by", torch.tensor([by]), persistent=False)


Scaled.__module__ = "fedsim.learn.models"


def test_a_key_holds_all_that_a_graph_follows_from() -> None:
    """Other values of parameters and batches give the same graph; another constant, shape, type, mode or setting does not."""
    x, _y = torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)
    constant = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    def key(model: nn.Module, x: torch.Tensor = x, *more: object) -> bytes | None:
        blank = [*trainable(model).values(), x]
        return lent._key(model, Classification(), blank, x, *more)

    same = key(constant)
    with torch.no_grad():
        constant[0].weight.add_(1.0)
    assert same is not None and key(constant) == same == key(constant, x + 1)
    others = [key(constant, torch.ones(5, 3)), key(constant, x.double()), key(constant, x, 3), key(constant.double(), x)]
    assert len({same, *others}) == 5
    assert key(constant.float().eval()) != same
    constant.train()[1].momentum = 0.2
    assert key(constant) != same
    mine = nn.Sequential(nn.Linear(3, 2))
    mine[0].strange = lambda: 1
    assert key(mine) is None
    mine = nn.Sequential(type("Own", (nn.Linear,), {})(3, 2))
    assert key(mine) is None


def test_a_graph_is_handed_out_as_it_was_traced(lender: Callable[[], None]) -> None:
    """Who rewrites a graph changes nothing of what the next one is given."""
    lender()
    model, x, y = nn.Sequential(nn.Linear(3, 2)), torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)
    texts = list[str]()
    for _ in range(3):
        graph = trace.trace(model, Classification(), x, y, (), trace.ROWS)
        texts.append(str(graph.graph))
        for node in reversed(list(graph.graph.nodes)):
            graph.graph.erase_node(node)

    assert 1 == len(set(texts)) and len(texts[0]) > 100


def test_a_pool_is_read_again_when_its_file_changes(tmp_path: Path, lender: Callable[[], None]) -> None:
    """A pool is shared while its file is as it was, and by nobody without lending; nobody can write into it; a stranger's is not kept."""
    file, read = tmp_path / "t.npz", list[str]()
    file.write_bytes(b"one")

    def make(_: str, table: dict[str, Any], **given: Any) -> Pool:
        read.append(table["kind"])
        examples = Examples(np.ones((2, 1), dtype=np.float32), np.zeros(2, dtype=np.int64))
        return Pool(examples, 1, files={str(file): "0"})

    def ask(kind: str = "npz", seed: int = 1) -> Pool:
        return pools.source(make, {"kind": kind, "path": "t.npz"}, tmp_path, key=Key(seed), find=None)

    assert ask() is not ask() and 2 == len(read)
    lender()
    first = ask()
    assert ask() is first and ask(seed=2) is first and 3 == len(read)
    with pytest.raises(ValueError, match="read-only"):
        first.train.x[0] = 2.0
    file.write_bytes(b"three")
    assert ask() is not first and 4 == len(read)
    file.unlink()
    assert ask() is not ask() and 6 == len(read)


def test_a_shared_pool_warns_of_nothing(tmp_path: Path, tiny: Tiny, lender: Callable[[], None]) -> None:
    """A run on a pool that cannot be written to, with a test part that nobody copies, has the notes of any other."""
    x, y = np.random.default_rng(0).standard_normal((60, 4), dtype=np.float32), np.arange(60) % 3
    np.savez(tmp_path / "t.npz", x=x, y=y, x_test=x[:9], y_test=y[:9])
    table = tiny({"data": {"source": {"kind": "npz", "path": str(tmp_path / "t.npz")}, "partition": {"kind": "iid"}}})
    alone = fedsim.run(table, out=tmp_path / "alone")
    lender()
    both = [fedsim.run(table, out=tmp_path / name) for name in ("first", "second")]

    assert [alone.digest] * 2 == [run.digest for run in both]
    assert [alone.manifest["notes"]] * 2 == [run.manifest["notes"] for run in both]
