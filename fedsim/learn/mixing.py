"""Mixed mini-batches: how much of each comes from which of a client's sources. Knows what a source is called, not what it means.

Sources are numbers: a class, a group, a level of difficulty. Counts per batch follow from shares and sizes alone; only which
examples, and under "multinomial" how many of each, is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from fedsim.core.types import FloatArray, IntArray

if TYPE_CHECKING:
    from fedsim.learn.job import Job
    from fedsim.learn.work import Task

By: TypeAlias = Literal["label", "group", "difficulty"]
Draw: TypeAlias = Literal["exact", "multinomial"]
DECIMALS = 9
"""To which what is owed to a source is rounded: 0.1 times 30 owes 3, and no last bit decides a tie."""


@dataclass(frozen=True, slots=True)
class Mixing:
    """Each mini-batch is mixed from sources *by* label, group or level of difficulty.

    *shares* say how much of a batch comes from each source, by its number, relative to their sum. None: n^(1 / *temperature*), for
    the n examples that the client has of it: 1 is their own shares, large is all alike (Devlin et al. 2019 for languages). A source
    that a client has nothing of leaves its share to the others, in proportion; where none of them is left, those there go by their n.
    *levels* of difficulty are equally many examples each.
    """

    by: By
    shares: tuple[float, ...] | None = None
    temperature: float = 1.0
    draw: Draw = "exact"
    levels: int = 3

    def of(self, sources: IntArray, held: IntArray) -> FloatArray:
        """Return the share of each of *sources* on a client that holds so many examples of it. Shapes: (s,), (s,) -> (s,).

        >>> Mixing("label", temperature=2.0).of(np.array([0, 4]), np.array([90, 10])).tolist()
        [0.75, 0.25]
        >>> Mixing("label", (0.5, 0.3, 0.2)).of(np.array([0, 2]), np.array([90, 10])).round(3).tolist()
        [0.714, 0.286]
        """
        power = 1.0 if self.shares is not None else 1.0 / self.temperature
        own = (held / held.max()) ** power
        if self.shares is not None:
            wanted = np.array([self.shares[s] if s < len(self.shares) else 0.0 for s in sources.tolist()])
            own = wanted if wanted.any() else own
        return own / own.sum()


def mixed(job: Job, mixing: Mixing, tasks: list[Task]) -> IntArray:
    """Return the positions of each task in reading order, each batch mixed as *mixing* says. Shapes: n tasks -> (n, longest).

    All draws are named below "batches", "mix" of the task: which example of a source comes next is of that source's own key. With
    the sampling "reshuffle" a source is read to its end in an order of its own before it begins anew, in another; "replacement"
    draws each example anew; "sequential" reads a source as it lies, over and over. An epoch is as many examples as ever: some
    may come twice in it, and others not.
    """
    views = [_View.of(mixing, task) for task in tasks]
    seen = [job.seen(len(task.positions)) for task in tasks]
    drawn = _exact(job, views, tasks) if mixing.draw == "exact" else [_multinomial(v, n) for v, n in zip(views, seen, strict=True)]
    found = np.zeros((len(tasks), max(seen)), dtype=np.int64)
    for row, view, order in zip(found, views, drawn, strict=True):
        row[: len(order)] = view.task.positions[view.examples(order, job.sampling)]
    return found


@dataclass(frozen=True, slots=True)
class _View:
    """A task by its sources: which it has, their shares, and where the examples of each lie among its own."""

    task: Task
    sources: IntArray  # (s,)
    shares: FloatArray  # (s,)
    members: list[IntArray]  # s times (held,)

    @classmethod
    def of(cls, mixing: Mixing, task: Task) -> _View:
        labels = np.zeros(len(task.positions), dtype=np.int64) if task.sources is None else task.sources
        sources, held = np.unique(labels, return_counts=True)
        members = np.split(np.argsort(labels, kind="stable"), np.cumsum(held)[:-1])
        return cls(task, sources, mixing.of(sources, held), members)

    def examples(self, order: IntArray, sampling: str) -> IntArray:
        """Return which examples are read where *order* names the sources, by their place here. Shapes: (n,) -> (n,)."""
        found = np.zeros(len(order), dtype=np.int64)
        for place, (source, members) in enumerate(zip(self.sources.tolist(), self.members, strict=True)):
            at = np.flatnonzero(order == place)
            held, key = len(members), self.task.key.fold("batches", "mix", source)
            if sampling == "sequential":
                picked = np.arange(len(at)) % held
            elif sampling == "replacement":
                picked = (key.uniform(np.arange(len(at))) * held).astype(np.int64)
            else:  # Sorting a pass's draws shuffles it; more passes only append.
                passes = -(-len(at) // held)
                picked = key.uniform(np.arange(passes * held)).reshape(passes, held).argsort(axis=1, kind="stable").ravel()[: len(at)]
            found[at] = members[picked]
        return found


def _multinomial(view: _View, seen: int) -> IntArray:
    """Return the place of the source that each example comes from, drawn by the shares. Shapes: -> (seen,)."""
    bounds = np.cumsum(view.shares)
    bounds[np.flatnonzero(view.shares)[-1] :] = 1.0  # Sums may end a last bit below.
    return np.searchsorted(bounds, view.task.key.fold("batches", "mix", "sources").uniform(np.arange(seen)), side="right")


def _exact(job: Job, views: list[_View], tasks: list[Task]) -> list[IntArray]:
    """Return the places of the sources of each task's examples, batch by batch; shuffled within each, as in any other batch."""
    wide = max(len(view.sources) for view in views)
    shares, ties = np.zeros((len(views), wide)), np.zeros((len(views), wide))
    each = [job.sizes(len(task.positions)) for task in tasks]
    sizes = np.zeros((len(views), max(map(len, each))), dtype=np.int64)
    for i, view in enumerate(views):
        shares[i, : len(view.sources)] = view.shares
        ties[i, : len(view.sources)] = view.task.key.fold("batches", "mix", "ties").uniform(view.sources)
        sizes[i, : len(each[i])] = each[i]
    counted = counts(shares, sizes, ties)
    found: list[IntArray] = []
    for i, view in enumerate(views):
        order = np.repeat(np.tile(np.arange(wide), sizes.shape[1]), counted[i].ravel())
        luck = view.task.key.fold("batches", "mix", "order").uniform(np.arange(len(order)))
        found.append(order[np.lexsort((luck, np.repeat(np.arange(len(each[i])), each[i])))])
    return found


def counts(shares: FloatArray, sizes: IntArray, ties: FloatArray) -> IntArray:
    """Return how many examples of each source every batch has: its share by largest remainders, what rounding left out added to the next.

    So a share that is a whole number is met in every batch, and any other in the long run. *ties* say who goes first where
    remainders are equal. Shapes: (n, s), (n, steps), (n, s) -> (n, steps, s).

    >>> counts(np.array([[0.5, 0.25, 0.25]]), np.array([[4, 2, 2, 2]]), np.array([[0.1, 0.2, 0.3]]))[0].tolist()
    [[2, 1, 1], [1, 1, 0], [1, 0, 1], [1, 1, 0]]
    """
    found = np.zeros((*sizes.shape, shares.shape[1]), dtype=np.int64)
    owed, takes = np.zeros_like(shares), shares > 0
    for step in range(sizes.shape[1]):
        size = sizes[:, step]
        want = np.where(takes & (size > 0)[:, None], np.round(shares * size[:, None] + owed, DECIMALS), 0.0)
        given = np.maximum(np.floor(want), 0.0)
        short = size - given.sum(axis=1)
        given += takes & (_rank(np.where(takes, given - want, np.inf), ties) < short[:, None])
        while (over := given.sum(axis=1) - size).max() > 0:  # Who had more than its share before may be owed less than nothing.
            given -= (given > 0) & (_rank(np.where(given > 0, want - given, np.inf), ties) < over[:, None])
        owed = np.where((size > 0)[:, None], want - given, owed)
        found[:, step] = given
    return found


def _rank(by: FloatArray, ties: FloatArray) -> IntArray:
    """Return each one's place in its row, in ascending order. Shapes: (n, s), (n, s) -> (n, s)."""
    return np.lexsort((ties, by), axis=-1).argsort(axis=-1)
