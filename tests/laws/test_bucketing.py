"""Sequences in buckets by length: who meets whom, what is cut off, and that padding moves nothing (METHODS A16)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.client.kept import Kept
from fedsim.client.program import Order
from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.core.types import IntArray
from fedsim.learn.bucketing import Bucketing, bucketed
from fedsim.learn.job import Job
from fedsim.learn.objectives import Classification
from fedsim.learn.sequences import gru, lstm
from fedsim.learn.work import Start, Task
from fedsim.scenario.build import build
from fedsim.scenario.load import load
from tests.flower.test_apps import test_a_real_client_answers_as_the_simulated_one as same

STEPS, WORDS, CLASSES = 6, 20, 3


def sequences(count: int, steps: int = STEPS) -> tuple[IntArray, IntArray]:
    """Return padded sequences whose lengths lie apart, and the class that their last word tells."""
    draw = np.random.default_rng(0)
    lengths = 1 + (draw.beta(0.7, 1.6, count) * steps).astype(np.int64)
    x = np.where(np.arange(steps) < lengths[:, None], draw.integers(1, WORDS, (count, steps)), 0)
    return x, x[np.arange(count), lengths - 1] % CLASSES


def laid(job: Job, bucketing: Bucketing, x: IntArray, client: int = 0) -> Task:
    task = Task(client, 0, job, Start({}), np.arange(50, 50 + len(x)), Key(3).fold("client", client))
    return bucketed(task, bucketing, x)


def test_batches_of_like_length() -> None:
    """An epoch reads each example once in batches of the usual sizes, no wider than their longest, with less padding than unsorted."""
    x, _ = sequences(107, 12)
    job, lengths = Job(epochs=2, batch_size=10), Bucketing(4).lengths(x)
    shares: dict[int, float] = {}
    for together in (0, 4, 1):
        batches = laid(job, Bucketing(4, together=together), x).batches
        assert batches is not None and batches.order is not None and batches.widths is not None
        assert batches.sizes.tolist() == job.sizes(107).tolist()
        assert all([*range(50, 157)] == sorted(epoch) for epoch in np.split(batches.order, 2))
        parts = np.split(batches.order - 50, np.cumsum(batches.sizes)[:-1])
        assert [min(12, -(-int(lengths[part].max()) // 4) * 4) for part in parts] == batches.widths.tolist()
        read = sum(len(part) * width for part, width in zip(parts, batches.widths.tolist(), strict=True))
        assert batches.padding == pytest.approx(1 - sum(lengths[part].sum() for part in parts) / read)
        shares[together] = batches.padding
        assert sorted(batches.widths) != batches.widths.tolist()  # Buckets come in no order.
    plain = 1 - lengths.mean() / 12

    assert shares[0] < shares[4] < shares[1] <= plain
    assert shares[0] < 0.6 * plain
    assert laid(job, Bucketing(4), x, 1).batches.order.tolist() != laid(job, Bucketing(4), x).batches.order.tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize("make", [gru, lstm])
@pytest.mark.parametrize("reads", ["last", "mean"])
def test_padding_moves_no_bit(make: Any, reads: Any) -> None:
    """What stands for padding, and how much of it beside longer sequences there is, moves no output and no gradient; a real word does."""
    x, y = (torch.from_numpy(each) for each in sequences(9))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make((STEPS,), CLASSES, vocabulary=WORDS, embedding=5, hidden=7, reads=reads)

    def answers(x: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        outputs = model(x)
        Classification().loss(outputs, y).backward()
        return [outputs.detach(), *(p.grad.clone() for p in model.parameters())]

    plain = answers(x)
    with torch.no_grad():
        model.embedding.weight[0] = 1e3
    loud = answers(x)
    assert all(torch.equal(a, b) for a, b in zip(plain, loud, strict=True))
    longer = torch.nn.functional.pad(x, (0, 5))
    assert torch.allclose(answers(longer)[0], plain[0], rtol=0, atol=1e-6)
    assert not torch.equal(answers(torch.where(x == x[0, 0], (x + 1) % WORDS, x))[0], plain[0])


@pytest.fixture
def words(tmp_path: Path) -> dict[str, Any]:
    """Return settings of a scenario of sequences, ragged, in float64."""
    x, y = sequences(240)
    np.savez(tmp_path / "words.npz", x=x, y=y)
    return {
        "data.source": {"kind": "npz", "path": str(tmp_path / "words.npz")}, "data.test_fraction": 0.25, "training.batch_size": 6,
        "data.partition": {"kind": "iid"}, "model": {"kind": "gru", "vocabulary": WORDS, "embedding": 5, "hidden": 7},
        "clients.count": 6, "training.optimizer.lr": 0.5,
    }  # fmt: skip


def test_what_is_cut_off_counts_for_nothing(words: dict[str, Any], tiny: Any) -> None:
    """Batches that are only cut come to the same as whole ones, to 1e-12; cut a step too short they do not."""
    wide = {**words, "engine.dtype": "float64"}
    parts = build(load(tiny({**wide, "training.bucket": {"width": 2, "together": 1}})))
    tasks = [parts.fleet.client(c).plan(Order(parts.job, Start(parts.first)), Kept())[0] for c in range(3)]
    plain = [replace(task, job=replace(task.job, bucketing=None), batches=None) for task in tasks]
    short = [replace(t, batches=replace(t.batches, widths=np.full(len(t.sizes), 2))) for t in tasks]  # type: ignore[type-var]

    def gap(left: Any, right: Any) -> float:
        pairs = zip(parts.engine.run(left), parts.engine.run(right), strict=True)
        return max(float(np.abs(a.params[name] - b.params[name]).max()) for a, b in pairs for name in a.params)

    assert {4, 6} == {int(width) for task in tasks for width in task.batches.widths}  # type: ignore[union-attr]
    assert gap(tasks, plain) < 1e-12 < 1e-4 < gap(short, plain)
    flops = parts.fleet.flops
    assert all(0.2 * flops.of(p) < flops.of(t) < 0.95 * flops.of(p) for t, p in zip(tasks, plain, strict=True))


def test_one_digest(words: dict[str, Any], go: Any, hands: None) -> None:
    """Buckets give the digest that they give client by client in two processes; less padding is told, and takes less time."""
    asked = {**words, "training.bucket": {"width": 3}, "server.rounds": 2}
    run, cut, plain = go(asked), go({**asked, "training.bucket.together": 1}), go({**words, "server.rounds": 2})

    assert run.digest == go({**asked, "engine.chunk": 1, "engine.workers": 2}).digest
    padding = [each.metrics[each.metrics.name == "padding"].value.mean() for each in (run, cut)]
    assert 0 < padding[0] < padding[1] < 1
    assert run.tasks.flops.sum() < cut.tasks.flops.sum() < plain.tasks.flops.sum()
    assert "padding" not in set(plain.metrics.name)


def test_a_real_client_cuts_alike(words: dict[str, Any], scenario_file: Any, go: Any) -> None:
    """Called with Flower messages, our ClientApp returns the simulator's replies, padding told."""
    same({**words, "training.bucket": {"width": 3, "together": 2}}, scenario_file, go)


def test_it_accumulates(words: dict[str, Any], go: Any) -> None:
    """An update from several passes over a bucket is that of one."""
    asked = {**words, "training.bucket": {"width": 3}, "engine.dtype": "float64"}
    several, one = go({**asked, "training.batch_size": 3, "training.accumulate": 2}).params(), go(asked).params()

    assert max(float(np.abs(several[name] - one[name]).max()) for name in one) < 1e-12


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "pictures": ({"data.source": {"kind": "digits"}, "model": {"kind": "logreg"}}, "training.bucket: sorts sequences of whole numbers"),
    "mixed": ({"training.mix": {"by": "label"}}, "training.bucket: says which examples meet in a mini-batch, and training.mix does"),
    "graded": ({"training.curriculum": {"begin": 0.5, "over": 2}}, "training.bucket: says which examples meet in a mini-batch, and"),
    "streamed": ({"stream": {"arrivals": {"kind": "poisson", "per_s": 1.0}}}, "training.bucket: on a [stream] new examples come"),
    "padded else": ({"training.bucket.pad": 3}, "training.bucket.pad = 3: must be model.pad = 0"),
    "words": ({"model.vocabulary": 10}, "model.vocabulary = 10: the data have numbers from 0 to 19"),
    "width": ({"training.bucket.width": 0}, "training.bucket.width = 0: must be >= 1"),
    "pad": ({"model.pad": 20}, "model.pad = 20: must be < model.vocabulary = 20"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, words: dict[str, Any], tiny: Any) -> None:
    """Buckets that cannot be had, and words that a model does not know, are refused by their key, in one line."""
    settings, begins = REFUSED[case]
    with pytest.raises(ScenarioError) as said:
        build(load(tiny({**words, "training.bucket": {"width": 4}, **settings})))

    assert str(said.value).startswith(begins), said.value
