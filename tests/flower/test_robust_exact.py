"""Robust rules choose by distances that hold at small learning rates, and Bulyan's selection is the paper's where it says so."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Bulyan, Krum, MultiKrum, multikrum

from fedsim.core.errors import ScenarioError
from fedsim.flower import compat
from fedsim.flower.distances import squared_distances
from fedsim.strategy import stock
from fedsim.strategy.bulyan import BulyanIterated, picks

HERE = __name__
Rows = np.ndarray[Any, np.dtype[np.float32]]


def planted(seed: int, clients: int = 9, size: int = 40, step: float = 3e-4) -> Rows:
    """Return replies around a model of norm about 6 that differ by steps such as lr = .001 makes."""
    draw = np.random.default_rng(seed)
    return (draw.normal(size=size) + step * draw.normal(size=(clients, size)) * draw.uniform(0.8, 1.2, (clients, 1))).astype(np.float32)


def records(rows: Rows) -> list[ArrayRecord]:
    """Return each row as a record of two arrays."""
    return [ArrayRecord({"w": Array(row[:-3].reshape(1, -1)), "b": Array(row[-3:])}) for row in rows]


def messages(rows: Rows) -> list[Message]:
    """Return each row as a reply that says how many examples it had: its number in the list, from 1."""
    compat.set_identity()
    metrics = [MetricRecord({"num-examples": i + 1, "me": float(i)}) for i in range(len(rows))]
    return [Message(RecordDict({"arrays": r, "metrics": m}), 5, "train") for r, m in zip(records(rows), metrics, strict=True)]


def exact(rows: Rows) -> list[list[Fraction]]:
    """Return squared distances without any rounding: whole numbers of 2**-100 are subtracted and multiplied."""
    numbers = [[int(float(value) * 2.0**100) for value in row] for row in rows]
    assert all(float(n) == float(v) * 2.0**100 for n, v in zip(numbers[0], rows[0], strict=True))
    return [[Fraction(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)), 2**200) for y in numbers] for x in numbers]


def ranked(distances: list[list[Fraction]], malicious: int) -> list[int]:
    """Return clients by Krum's score (Blanchard et al. 2017, section 4), the best first."""
    closest = len(distances) - malicious - 2
    scores = [sum(sorted(row[:i] + row[i + 1 :])[:closest]) for i, row in enumerate(distances)]
    return sorted(range(len(scores)), key=lambda i: scores[i])


def right_share(distances: Callable[[list[ArrayRecord]], Any], rounds: int = 15) -> float:
    """Return in how many of so many rounds Krum picks by *distances* whom exact arithmetic picks."""
    right = 0
    for seed in range(rounds):
        rows = planted(seed)
        found = np.sort(distances(records(rows)), axis=1)[:, 1:7].sum(axis=1)
        right += int(np.argmin(found)) == ranked(exact(rows), 1)[0]
    return right / rounds


def test_distances_agree_with_exact_arithmetic() -> None:
    """At steps of lr = .001 every squared distance is that of fractions to twelve digits, and an own distance is 0."""
    rows = planted(0)
    found, wanted = squared_distances(records(rows)), np.array([[float(d) for d in row] for row in exact(rows)])

    assert np.allclose(wanted, found, rtol=1e-12, atol=0)
    assert (np.diag(found) == 0).all() and (found == found.T).all()


def test_krum_picks_whom_exact_arithmetic_picks() -> None:
    """Krum's choice by our distances is the exact one in every round; by Flower's float32 formula it mostly is not."""
    assert 1.0 == right_share(squared_distances)
    assert right_share(multikrum.compute_distances) < 0.5


def test_large_liars_do_not_blur_the_rest() -> None:
    """Replies of size 1e12 leave the distances between honest ones exact."""
    rows = planted(1)
    rows[0] = rows[4] = 1e12
    keep = [i for i in range(len(rows)) if i not in (0, 4)]
    found = squared_distances(records(rows))[np.ix_(keep, keep)]

    assert np.allclose(squared_distances(records(rows[keep])), found, rtol=1e-12, atol=0)


@pytest.mark.parametrize("make", [lambda: Krum(num_malicious_nodes=1), lambda: MultiKrum(num_malicious_nodes=1, num_nodes_to_select=4)])
def test_within_a_run_krum_is_exact(make: Callable[[], Any]) -> None:
    """Where our distances stand in, Krum and MultiKrum average exactly those whom fractions choose; without, they do not."""

    def chosen(rows: Rows, within: Any) -> float:
        with within:
            _, metrics = make().aggregate_train(1, messages(rows))
        assert metrics is not None
        return float(metrics["me"])  # type: ignore[arg-type]

    def wanted(rows: Rows) -> float:
        best = ranked(exact(rows), 1)[: make().num_nodes_to_select]
        return float(np.average(best, weights=np.array(best) + 1))

    many = [planted(seed) for seed in range(10)]

    assert [True] * 10 == [np.isclose(wanted(rows), chosen(rows, compat.exact_distances())) for rows in many]
    assert not all(np.isclose(wanted(rows), chosen(rows, nullcontext())) for rows in many)


class Witness(Krum):
    """Notes whom it chose in each round, and whom fractions choose."""

    seen: ClassVar[list[tuple[float, float]]] = []

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        rows = [np.concatenate([a.numpy().ravel() for a in r.content["arrays"].values()]) for r in replies]  # type: ignore[union-attr]
        losses = [float(r.content["metrics"]["train_loss"]) for r in replies]  # type: ignore[index, arg-type]
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert metrics is not None
        self.seen.append((losses[ranked(exact(np.array(rows)), self.num_malicious_nodes)[0]], float(metrics["train_loss"])))  # type: ignore[arg-type]
        return arrays, metrics


def test_a_run_with_krum_is_exact(go: Any) -> None:
    """In a run with small steps, a subclass of Krum picks in every round whom exact arithmetic picks."""
    Witness.seen.clear()
    go({"server.strategy": {"kind": f"{HERE}:Witness", "num_malicious_nodes": 1}, "server.rounds": 4, "training.optimizer.lr": 1e-5})

    assert 4 == len(Witness.seen)
    assert [wanted for wanted, _ in Witness.seen] == [chosen for _, chosen in Witness.seen]


def paper(distances: list[list[Fraction]], malicious: int) -> set[int]:
    """Return what Bulyan selects (El Mhamdi et al. 2018): Krum among what is left, n - 2 f times."""
    left, found = list(range(len(distances))), set[int]()
    for _ in range(len(distances) - 2 * malicious):
        scores = {}
        for i in left:
            others = sorted(distances[i][j] for j in left if j != i)
            scores[i] = sum(others[: max(1, len(left) - malicious - 2)])
        best = min(left, key=lambda i: scores[i])
        left.remove(best)
        found.add(best)
    return found


def test_bulyan_iterated_selects_as_its_paper() -> None:
    """BulyanIterated selects what the paper's loop selects, in exact arithmetic; Flower's one pass often does not."""
    rounds = [planted(seed, clients=11) for seed in range(12)]
    for rows in rounds[6:]:
        rows[:2] = rows[2:4].mean(axis=0) + np.float32(1e-4) * rows[:2]  # Two liars that lie together.
    wanted = [paper(exact(rows), 2) for rows in rounds]
    ours = [set(picks(squared_distances(records(rows)), 2, 7)) for rows in rounds]
    once = [set(ranked(exact(rows), 2)[:7]) for rows in rounds]

    assert wanted == ours
    assert wanted != once


def test_bulyan_iterated_averages_what_it_selected() -> None:
    """Its aggregate is Flower's second step over the paper's first: the mean of the n - 4 f nearest to the median."""
    rows = planted(3, clients=11, size=8)
    chosen = rows[sorted(paper(exact(rows), 2))].astype(np.float64)
    nearest = np.argsort(np.abs(chosen - np.median(chosen, axis=0)), axis=0)[:3]
    wanted = np.take_along_axis(chosen, nearest, axis=0).mean(axis=0)
    arrays, _ = BulyanIterated(num_malicious_nodes=2).aggregate_train(1, messages(rows))
    assert arrays is not None

    assert np.allclose(wanted, np.concatenate([array.numpy().ravel() for array in arrays.values()]), atol=1e-6)
    assert issubclass(BulyanIterated, Bulyan)


def test_bulyan_iterated_is_refused_below_its_replies() -> None:
    """Ours needs 4 f + 3 replies as Flower's does."""
    with pytest.raises(ScenarioError, match="BulyanIterated needs at least 7 replies"):
        stock.build({"kind": "BulyanIterated", "num_malicious_nodes": 1}, 6, 0.0)
