"""Laws of streams: functions of (key, client) whatever the order, arrivals and drift; each with a wrong one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.core.types import FloatArray, IntArray
from fedsim.data.federation import Federation, generated_federation, pool_federation, split
from fedsim.data.partition import blocks, iid
from fedsim.data.river import sea, stagger
from fedsim.data.source import Examples, Pool
from fedsim.data.stream import Recent, Stream
from fedsim.data.stream import change as kinds
from fedsim.data.stream.arrivals import arrivals, at_start, constant, poisson, stamps
from fedsim.data.stream.change import Alters, Selects, changes
from fedsim.data.stream.classes import classes
from fedsim.data.stream.drift import Schedule, abrupt, gradual, incremental, onsets, recurring, schedules, staggered, subset, synchronous
from fedsim.data.stream.federated import attach, drift_of, stamps_of
from fedsim.data.stream.labelling import at_once, exponential, labellings
from fedsim.data.stream.order import as_is, class_incremental, offset, orders, shuffled
from fedsim.data.synthetic import leaf_synthetic
from fedsim.laws import Broken
from fedsim.laws.stream import (
    nobody_trains_on_what_is_kept_back,
    others_stay_when_one_comes,
    times_are_in_order,
    whenever_asked_the_same,
    wherever_asked_the_same,
)  # fmt: skip

RNG = np.random.default_rng(5)
POOL = Pool(Examples(RNG.random((600, 1, 4, 4), dtype=np.float32), RNG.integers(5, size=600)), outputs=5)
KEY = Key(11)
CLIENTS = 6


def base(kept_back: float = 0.0, pool: Pool = POOL, clients: int = CLIENTS, partition: Any = None) -> Federation:
    train, test, _ = split(pool, 0.1, KEY)
    return pool_federation(pool, partition or iid(train.y, clients, KEY), test, train, KEY, kept_back)


def drift(change: Selects | Alters, schedule: Schedule | None = None, onset: Any = None) -> Any:
    return drift_of(change, schedule or abrupt(at_s=[40.0]), onset or synchronous(KEY), KEY.fold("drift"))


def streamed(changed: Any = None, order: Any = None, kept_back: float = 0.0, on: Federation | None = None, **more: Any) -> Federation:
    labels = more.pop("labels", None) or exponential(KEY, delay_s=5.0, missing=0.2)
    process = more.pop("process", None) or poisson(KEY, per_s=1.0)
    return attach(on or base(kept_back), process, order or as_is(), labels, changed, **more)


GROUPS = [[0, 1], [2, 3], [4]]
WORLDS: dict[str, Callable[[], Federation]] = {
    "as it is": lambda: streamed(),
    "all at once": lambda: streamed(process=at_start()),
    "shuffled": lambda: streamed(order=shuffled(KEY), kept_back=0.2),
    "tasks": lambda: streamed(order=class_incremental(KEY, 5, tasks=[[3, 1], [0, 4]])),
    "offset": lambda: streamed(order=offset(), kept_back=0.2),
    "stored": lambda: streamed(stored=10, items=30),
    "groups": lambda: streamed(drift(classes(KEY, 5, groups=GROUPS), recurring(period_s=20.0))),
    "seasons": lambda: streamed(
        drift(classes(KEY, 5, groups=GROUPS, rotate_by_client=True, replace=True), recurring(period_s=20.0)), items=150
    ),
    "mixes": lambda: streamed(drift(classes(KEY, 5, mixes=[[1, 1, 1, 1, 1], [0, 0, 0, 1, 3]]), gradual(at_s=[40.0], width_s=30.0))),
    "rotated": lambda: streamed(drift(kinds.rotate((1, 4, 4), degrees=90.0), incremental(begin_s=20.0, end_s=60.0)), kept_back=0.2),
    "swapped": lambda: streamed(drift(kinds.swap_labels(5, pairs=[[0, 1]]), onset=subset(KEY, fraction=0.5)), shuffled(KEY)),
    "noisy": lambda: streamed(drift(kinds.noise(KEY, sigma=0.5), gradual(at_s=[20.0, 50.0], width_s=9.0), staggered(KEY, step_s=3.0))),
    "made": lambda: streamed(on=generated_federation(leaf_synthetic(max_examples=80), CLIENTS, KEY, None, 0.2)),
    "made and varied": lambda: streamed(
        drift(kinds.variants(sea(KEY, examples_per_client=90), of=[0, 3])),
        on=generated_federation(sea(KEY, examples_per_client=90), CLIENTS, KEY, 0.1, 0.1),
    ),
}  # fmt: skip


CALLS = itertools.count()


@dataclass(frozen=True)
class Wrong:
    inner: Federation
    way: str

    def of(self, client: int) -> Stream:
        assert self.inner.streams is not None
        stream = self.inner.streams.of(client)
        if self.way == "consumes":
            return replace(stream, arrived_s=stream.arrived_s + next(CALLS), labelled_s=stream.labelled_s + 1e9)
        if self.way == "labels first":
            return replace(stream, labelled_s=stream.arrived_s - 1.0)
        if self.way == "remembers":
            return stream
        if self.way == "reads all":
            return replace(stream, positions=np.sort(np.arange(540))[: len(stream)])
        return replace(stream, arrived_s=stream.arrived_s + self.inner.count)

    def __reduce__(self) -> Any:  # "remembers": what another process does not know.
        return (Wrong, (self.inner, "counts clients"))


def wrong(way: str) -> Callable[..., Federation]:
    def make(clients: int = CLIENTS) -> Federation:
        right = streamed(kept_back=0.2, on=made(clients) if way == "counts clients" else None)
        return replace(right, streams=Wrong(right, way))

    return make


def made(clients: int) -> Federation:
    return generated_federation(leaf_synthetic(max_examples=80), clients, KEY, None, 0.2)


LAWS: list[tuple[Callable[[Any], None], str]] = [
    (whenever_asked_the_same, "consumes"),
    (wherever_asked_the_same, "remembers"),
    (times_are_in_order, "labels first"),
    (nobody_trains_on_what_is_kept_back, "reads all"),
    (others_stay_when_one_comes, "counts clients"),
]


@pytest.mark.parametrize("law", [law for law, _ in LAWS if law is not others_stay_when_one_comes])
@pytest.mark.parametrize("world", WORLDS)
def test_every_world_keeps_every_law(law: Callable[[Any], None], world: str) -> None:
    """Streams of all orders, changes, schedules and onsets keep the law."""
    law(WORLDS[world])


@pytest.mark.parametrize(("law", "way"), LAWS)
def test_the_law_has_teeth(law: Callable[[Any], None], way: str) -> None:
    """The law rejects streams that were made to break it."""
    with pytest.raises(Broken):
        law(wrong(way))


@pytest.mark.parametrize(
    "onset", [synchronous(KEY), staggered(KEY, step_s=5.0, spread_s=30.0), subset(KEY, fraction=0.5, spread_s=9.0)]
)
def test_another_client_leaves_the_others(onset: Any) -> None:
    """Adding a client moves no arrival, drift, label or altered example of those that were there."""
    others_stay_when_one_comes(lambda clients: streamed(on=made(clients)))
    others_stay_when_one_comes(lambda clients: streamed(drift(kinds.noise(KEY, sigma=1.0), onset=onset), on=made(clients)))


def test_nothing_registered_goes_untried() -> None:
    """Each kind of order, labels, schedule, onset and change of this module's is made somewhere in this file."""
    assert {"as_is", "shuffled", "offset", "class_incremental"} == set(orders.names())
    assert {"at_once", "constant", "exponential"} == set(labellings.names())
    assert {"abrupt", "gradual", "incremental", "recurring"} == set(schedules.names())
    assert {"synchronous", "staggered", "subset"} == set(onsets.names())
    assert {"boundary", "classes", "noise", "permute_features", "rotate", "scale", "swap_labels", "variants"} == set(changes.names())


# Drift: when.


def follows(schedule: Schedule, chance: Callable[[FloatArray], FloatArray], teeth: Schedule) -> None:
    """The share of items of concept 1 in each tenth of the time is the chance, |z| < 4; under *teeth* it is not."""
    times = np.sort(Key(1).uniform(np.arange(40_000))) * 100.0
    draws = Key(2).uniform(np.arange(40_000))

    def holds(schedule: Schedule) -> bool:
        amounts = schedule.amounts(times, draws, 2).reshape(10, -1)
        expected = chance(times).reshape(10, -1)
        spread = np.sqrt(np.sum(expected * (1.0 - expected), axis=1)) + 1e-6
        return bool(np.all(np.abs(amounts.sum(axis=1) - expected.sum(axis=1)) < 4.0 * spread))

    assert holds(schedule)
    assert not holds(teeth)


def test_gradual_drift_is_logistic() -> None:
    """Under a gradual change the new concept's share is river's logistic curve; a sudden one or a wider one is not it."""

    def curve(t: FloatArray) -> FloatArray:
        return 1.0 / (1.0 + np.exp(-4.0 * (t - 50.0) / 30.0))

    follows(gradual(at_s=[50.0], width_s=30.0), curve, abrupt(at_s=[50.0]))
    follows(gradual(at_s=[50.0], width_s=30.0), curve, gradual(at_s=[50.0], width_s=40.0))


def test_abrupt_and_recurring_drift_are_to_the_item() -> None:
    """Concepts change with the item that arrives at the moment itself, and recurring ones come back."""
    t = np.array([0.0, 9.99, 10.0, 19.99, 20.0, 35.0])

    assert [0, 0, 1, 1, 2, 2] == abrupt(at_s=[10.0, 20.0]).amounts(t, t, 3).tolist()
    assert [0, 0, 1, 1, 0, 1] == recurring(period_s=10.0).amounts(t, t, 2).tolist()
    assert [0, 0, 1, 1, 2, 0] == recurring(period_s=10.0).amounts(t, t, 3).tolist()
    assert [0, 0, 0, 0, 0, 0] == recurring(period_s=10.0).amounts(t - 50.0, t, 3).tolist()


def test_incremental_drift_of_whole_things_mixes() -> None:
    """A change that knows no halves is whole for a share of the items that grows with the ramp."""
    stream = streamed(
        drift(kinds.swap_labels(5, pairs=[[0, 1]]), incremental(begin_s=100.0, end_s=300.0)),
        on=base(pool=replace(POOL, train=Examples(np.tile(POOL.train.x, (50, 1, 1, 1)), np.tile(POOL.train.y, 50))), clients=1),
        process=constant(KEY, per_s=60.0),
    ).streams.of(0)  # type: ignore[union-attr]
    share = [stream.concepts[(stream.arrived_s >= a) & (stream.arrived_s < a + 50)].mean() for a in (0, 100, 150, 200, 250, 300)]

    assert np.allclose([0.0, 0.125, 0.375, 0.625, 0.875, 1.0], share, atol=4 * math.sqrt(0.25 / 3000))
    assert [100.0] == stream.changes_s.tolist()


def first_new(federation: Federation, client: int) -> float:
    assert federation.streams is not None
    stream = federation.streams.of(client)
    later = stream.arrived_s[stream.concepts > 0]
    return float(later[0]) if len(later) else math.inf


def test_onsets() -> None:
    """Synchronous drift comes to all at once, staggered drift client by client, a subset's to some alone."""
    swap, process = kinds.swap_labels(5, pairs=[[0, 1]]), constant(KEY, per_s=1.0)
    same = streamed(drift(swap), process=process)
    steps = streamed(drift(swap, onset=staggered(KEY, step_s=5.0)), process=process)
    some = streamed(drift(swap, onset=subset(KEY, fraction=0.5)), process=process)

    assert [40.0] * CLIENTS == [first_new(same, client) for client in range(CLIENTS)]
    assert [40.0 + 5.0 * c for c in range(CLIENTS)] == [first_new(steps, c) for c in range(CLIENTS)]
    assert {40.0, math.inf} == {first_new(some, client) for client in range(CLIENTS)}
    for federation in (same, steps, some):
        for client in range(CLIENTS):
            seen = federation.streams.of(client).changes_s.tolist()  # type: ignore[union-attr]
            assert [first for first in [first_new(federation, client)] if first < math.inf] == seen


def test_a_subset_is_the_share_that_was_asked_for() -> None:
    """Of 4000 clients a fraction of 0.3 drifts, within four standard errors."""
    chosen = np.mean([subset(KEY, fraction=0.3).begins_s(client) == 0.0 for client in range(4000)])

    assert abs(chosen - 0.3) < 4.0 * math.sqrt(0.3 * 0.7 / 4000)


def test_recurring_drift_is_seen_where_concepts_differ() -> None:
    """A season in which nothing arrives is no drift, nor the season after that has the concept from before."""
    schedule = recurring(period_s=10.0)

    assert [10.0, 20.0] == schedule.changes_s(np.array([1.0, 11.0, 21.0]), 2).tolist()
    assert [] == schedule.changes_s(np.array([1.0, 21.0]), 2).tolist()
    assert [20.0] == schedule.changes_s(np.array([1.0, 21.0]), 3).tolist()


# Drift: what.


def items(federation: Federation, client: int) -> tuple[Stream, IntArray]:
    """The stream of a client and the labels that its items have."""
    assert federation.streams is not None and federation.pooled is not None
    stream = federation.streams.of(client)
    return stream, federation.pooled.y[stream.positions]


def groups_are_kept(federation: Federation, again: bool) -> None:
    for client in range(CLIENTS):
        stream, labels = items(federation, client)
        assert all(label in GROUPS[concept] for label, concept in zip(labels.tolist(), stream.concepts.tolist(), strict=True))
        assert np.isin(stream.positions, federation.train(client)).all()
        assert again or len(set(stream.positions.tolist())) == len(stream)


def test_groups_of_classes_come_in_their_season() -> None:
    """Items belong to their season's group, each comes once, or anew with replace; without drift they do not."""
    groups_are_kept(WORLDS["groups"](), again=False)
    groups_are_kept(WORLDS["seasons"](), again=True)
    with pytest.raises(AssertionError):
        groups_are_kept(WORLDS["shuffled"](), again=False)


def test_seasons_turn_by_client_and_come_back() -> None:
    """Client c is c seasons ahead, and with replacement every arrival happens and every season comes back."""
    federation = WORLDS["seasons"]()
    for client in range(CLIENTS):
        stream, _ = items(federation, client)
        assert 150 == len(stream)
        season = (stream.arrived_s // 20.0).astype(int)
        assert ((season + client) % 3).tolist() == stream.concepts.tolist()
        assert len(set(season.tolist())) > 3


def test_an_arrival_that_finds_nothing_does_not_happen() -> None:
    """When the examples of a season are used up its arrivals stop, and go on with the next season."""
    federation = streamed(
        drift(classes(KEY, 5, groups=[[0], [1, 2, 3, 4]]), abrupt(at_s=[1000.0])), process=constant(KEY, per_s=1.0), items=1100
    )
    stream, labels = items(federation, 0)
    held = np.bincount(federation.labels(0), minlength=5)

    assert list(range(1, held[0] + 1)) == stream.arrived_s[: held[0]].tolist()
    assert 1000.0 == stream.arrived_s[held[0]] and len(stream) == held.sum()
    assert np.bincount(labels, minlength=5).tolist() == held.tolist()


def test_mixes_are_the_shares_of_classes() -> None:
    """With replacement the classes of a concept come in the shares of its mix, |z| < 4 against each."""
    mixes = [[1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0, 3.0]]
    federation = streamed(
        drift(classes(KEY, 5, mixes=mixes, replace=True)), process=constant(KEY, per_s=500.0), items=40_000
    )
    stream, labels = items(federation, 2)
    for concept, mix in enumerate(np.array(mixes)):
        counts = np.bincount(labels[stream.concepts == concept], minlength=5)
        shares = mix / mix.sum()
        assert np.all(np.abs(counts - counts.sum() * shares) <= 4.0 * np.sqrt(counts.sum() * shares * (1 - shares)))


def test_tasks_come_one_after_the_other() -> None:
    """Class-incremental items come task by task, all of them, shuffled within; classes in no task never."""
    federation = WORLDS["tasks"]()
    for client in range(CLIENTS):
        stream, labels = items(federation, client)
        held = federation.labels(client)
        assert sorted(stream.concepts.tolist()) == stream.concepts.tolist()
        assert np.array([1, 0, -1, 0, 1])[labels].tolist() == stream.concepts.tolist()
        assert np.isin(held, [0, 1, 3, 4]).sum() == len(stream)
        assert [stream.arrived_s[np.flatnonzero(stream.concepts)[0]]] == stream.changes_s.tolist()
        first = stream.positions[stream.concepts == 0].tolist()
        assert sorted(first) != first


def test_offset_streams_are_one_stream() -> None:
    """Each client reads the whole training part from its own block on, round the end, but for what it keeps back."""
    train, test, _ = split(POOL, 0.1, KEY)
    federation = streamed(order=offset(), on=pool_federation(POOL, blocks(train.y, 4), test, train, KEY, 0.1))
    for client in range(4):
        positions = federation.streams.of(client).positions  # type: ignore[union-attr]
        assert federation.train(client)[0] == positions[0]
        assert sorted([*positions.tolist(), *federation.validation(client).tolist()]) == list(range(540))
        assert np.sum(np.diff(positions) < 0) <= 1


def altered(change: Alters, kept_back: float = 0.2, schedule: Schedule | None = None) -> tuple[Stream, Examples, Examples, Federation]:
    """Client 1's stream, its examples as they arrive and as they were, and the federation."""
    plain, federation = streamed(kept_back=kept_back), streamed(drift(change, schedule), kept_back=kept_back)
    assert plain.streams and federation.streams and plain.pooled
    order = plain.streams.of(1).positions
    everything = np.concatenate([order, plain.validation(1) if kept_back else order[:0]])
    was, stream = Examples(plain.pooled.x[everything], plain.pooled.y[everything]), federation.streams.of(1)
    assert list(range(len(stream))) == stream.positions.tolist()
    assert stream.positions.tolist() == federation.train(1).tolist()
    if kept_back:
        assert list(range(len(stream), len(everything))) == federation.validation(1).tolist()
    assert federation.pooled is None and np.array_equal(federation.test.x, plain.test.x)
    return stream, federation.examples(1), was, federation


def test_altered_examples_are_what_the_concept_says() -> None:
    """Turned, grown, swapped or noisy from the onset on; before it, and where kept back, every bit is as it was."""
    cases: list[tuple[Alters, Callable[[Examples], tuple[Any, Any]]]] = [
        (kinds.rotate((1, 4, 4), degrees=90.0), lambda e: (np.rot90(e.x, axes=(2, 3)), e.y)),
        (kinds.scale((1, 4, 4), factor=2.0, features=[0]), lambda e: (e.x * np.where(np.arange(16) == 0, 2, 1).reshape(4, 4), e.y)),
        (kinds.swap_labels(5, pairs=[[0, 4]]), lambda e: (e.x, np.array([4, 1, 2, 3, 0])[e.y])),
        (kinds.permute_features(KEY), lambda e: (e.x.reshape(-1, 16)[:, kinds.permute_features(KEY).order(1, 16)].reshape(-1, 1, 4, 4), e.y)),
    ]  # fmt: skip
    for change, expected in cases:
        stream, now, was, _ = altered(change)
        new = np.concatenate([stream.concepts == 1, np.zeros(len(now) - len(stream), dtype=bool)])
        assert 10 < new.sum() < len(stream) - 10
        x, y = expected(Examples(was.x[new], was.y[new]))
        assert np.allclose(x, now.x[new], atol=1e-6) and np.array_equal(y, now.y[new])
        assert np.array_equal(was.x[~new], now.x[~new]) and np.array_equal(was.y[~new], now.y[~new])
        assert now.x.dtype == np.float32 and now.y.dtype == np.int64


def test_a_boundary_labels_everything_and_moves() -> None:
    """Labels are sums above the threshold of the moment, those tested on and kept back by the first."""
    change = kinds.boundary(5, (1, 4, 4), thresholds=[0.4, 0.6], features=[0])
    stream, now, was, federation = altered(change, schedule=incremental(begin_s=20.0, end_s=60.0))
    threshold = 0.4 + 0.2 * np.clip((stream.arrived_s - 20.0) / 40.0, 0.0, 1.0)
    threshold = np.append(threshold, np.full(len(now) - len(stream), 0.4))

    assert (was.x[:, 0, 0, 0] > threshold).astype(int).tolist() == now.y.tolist()
    assert (federation.test.x[:, 0, 0, 0] > 0.4).astype(int).tolist() == federation.test.y.tolist()


def test_noise_grows_with_the_concept() -> None:
    """Noise is sigma in concept 1 and twice sigma in concept 2, and none before."""
    stream, now, was, _ = altered(kinds.noise(KEY, sigma=0.5), 0.0, abrupt(at_s=[20.0, 50.0]))
    deviation = [float(np.std((now.x - was.x)[stream.concepts == k])) for k in range(3)]

    assert 0.0 == deviation[0] and np.allclose([0.5, 1.0], deviation[1:], rtol=0.12)


def test_variants_keep_the_features_and_change_the_labels() -> None:
    """Each item's label is what its concept's variant of STAGGER gives in that place; the features are shared."""
    source = stagger(KEY, examples_per_client=100)
    federation = streamed(drift(kinds.variants(source, of=[0, 2])), shuffled(KEY), on=generated_federation(source, CLIENTS, KEY, 0, 0.0))
    stream = federation.streams.of(4)  # type: ignore[union-attr]
    places = shuffled(KEY).items(4, np.arange(100), lambda: np.arange(100))[0]
    first, second = source.variant_of(4, 0), source.variant_of(4, 2)

    assert np.array_equal(first.x[places], federation.examples(4).x)
    assert np.where(stream.concepts == 1, second.y[places], first.y[places]).tolist() == federation.examples(4).y.tolist()
    assert (first.y != second.y).any() and 0 < stream.concepts.sum() < 100


# Labels.


def test_labels_come_as_late_as_asked_and_some_never() -> None:
    """Exponential delays have their mean, a fifth of the labels never comes, and the share moves no delay."""
    arrived_s = np.arange(20_000.0)
    all_come, some = exponential(KEY, delay_s=30.0), exponential(KEY, delay_s=30.0, missing=0.2)
    delays, fewer = all_come.times(3, arrived_s) - arrived_s, some.times(3, arrived_s) - arrived_s
    come = np.isfinite(fewer)

    assert abs(delays.mean() / 30.0 - 1.0) < 4.0 / math.sqrt(20_000)
    assert abs(come.mean() - 0.8) < 4.0 * math.sqrt(0.16 / 20_000)
    assert np.array_equal(delays[come], fewer[come])


# Hindsight, and what cannot be.


def test_hindsight_tests_on_all_that_comes() -> None:
    """With a test fraction of 0 all rows are trained on, in order, and tested on; altered ones as they arrive."""
    train, test, kept = split(POOL, 0, KEY)
    federation = pool_federation(POOL, blocks(train.y, 1), test, train, KEY, 0.0)
    made = streamed(drift(kinds.scale((1, 4, 4), factor=3.0)), on=federation)

    assert list(range(600)) == kept.tolist() == streamed(on=federation).streams.of(0).positions.tolist()  # type: ignore[union-attr]
    assert test is train is POOL.train
    assert np.array_equal(made.test.x, made.examples(0).x) and made.test.x.max() > 2.0


def test_a_source_s_own_test_part_goes_before_hindsight() -> None:
    """With a test fraction of 0 nothing is held out, and a source's own test part is the test."""
    own = Examples(POOL.train.x[:7], POOL.train.y[:7])

    assert own is split(replace(POOL, test=own), 0, KEY)[1]


TIMED = replace(POOL, times_s=np.arange(600.0) * 1800.0)


def replayed(pool: Pool, order: Any = None, partition: Any = None, **more: Any) -> Federation:
    train, test, kept = split(pool, 0, KEY)
    on = pool_federation(pool, partition or blocks(train.y, 3), test, train, KEY, 0.0)
    return streamed(on=on, process=stamps(stamps_of(pool, kept, on), speed=2.0), order=order, **more)


def test_stamps_are_replayed_by_client() -> None:
    """Replayed items come when they were recorded, at twice the pace; a later block comes later."""
    stream = replayed(TIMED).streams.of(1)  # type: ignore[union-attr]

    assert (np.arange(200, 400) * 900.0).tolist() == stream.arrived_s.tolist()


SWAP = kinds.swap_labels(5, pairs=[[0, 1]])
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "drift with nothing to come": (lambda: streamed(drift(SWAP), process=at_start()), r"stream\.drift: all examples are there"),
    "drift of tasks": (lambda: streamed(drift(SWAP), class_incremental(KEY, 5, tasks=[[0], [1]])), r"stream\.order\.kind: already"),
    "offset of altered": (lambda: streamed(drift(SWAP), offset()), r"stream\.order\.kind = 'offset': .*alters"),
    "offset of made": (lambda: streamed(order=offset(), on=made(3)), r"stream\.order\.kind = 'offset': .*make their own"),
    "more concepts than there are": (lambda: drift(SWAP, abrupt(at_s=[1.0, 2.0])), r"stream\.drift\.schedule: .*3 concepts.*only 2"),
    "cycle of too many": (lambda: drift(SWAP, recurring(period_s=1.0, concepts=3)), r"stream\.drift\.schedule: .*3 concepts"),
    "cycle of one": (lambda: recurring(period_s=1.0, concepts=1), r"stream\.drift\.schedule\.concepts = 1: must be >= 2"),
    "unsorted changes": (lambda: abrupt(at_s=[5.0, 3.0]), r"stream\.drift\.schedule\.at_s = \[5\.0, 3\.0\]: 3 comes after 5"),
    "ramp that ends first": (lambda: incremental(begin_s=5.0, end_s=5.0), r"stream\.drift\.schedule\.end_s = 5: must be > begin_s"),
    "staggered by nothing": (lambda: staggered(KEY), r"stream\.drift\.onset: 'staggered' needs"),
    "a class that is not there": (lambda: classes(KEY, 5, groups=[[0], [5]]), r"stream\.drift\.change\.groups\.1 = \[5\]: there is no class 5"),
    "an empty group": (lambda: classes(KEY, 5, groups=[[0], []]), r"stream\.drift\.change\.groups\.1 = \[\]: must name"),
    "groups and mixes": (lambda: classes(KEY, 2, groups=[[0], [1]], mixes=[[1, 0], [0, 1]]), r"stream\.drift\.change: 'classes' takes either"),
    "neither": (lambda: classes(KEY, 2), r"stream\.drift\.change: .*neither given"),
    "one group": (lambda: classes(KEY, 2, groups=[[0]]), r"stream\.drift\.change\.groups: must list at least two"),
    "a short mix": (lambda: classes(KEY, 3, mixes=[[1, 1], [0, 1]]), r"stream\.drift\.change\.mixes\.0 = \[1, 1\]: must be 3 weights"),
    "a task with a class twice": (lambda: class_incremental(KEY, 3, tasks=[[0], [1, 0]]), r"stream\.order\.tasks\.1 = \[1, 0\]: class 0 is in two"),
    "a task of no class": (lambda: class_incremental(KEY, 3, tasks=[[0], [-1]]), r"stream\.order\.tasks\.1 = \[-1\]: there is no class -1"),
    "three to swap": (lambda: kinds.swap_labels(5, pairs=[[0, 1, 2]]), r"stream\.drift\.change\.pairs\.0 = \[0, 1, 2\]: must be two"),
    "rows turned": (lambda: kinds.rotate((16,), degrees=9.0), r"stream\.drift\.change\.kind = 'rotate': .*\(16,\)"),
    "a feature that is not there": (lambda: kinds.scale((3,), factor=2.0, features=[3]), r"stream\.drift\.change\.features = \[3\]: there is no"),
    "one threshold": (lambda: kinds.boundary(2, (3,), thresholds=[1.0]), r"stream\.drift\.change\.thresholds = \[1\.0\]: must be at least two"),
    "variants of a pool": (lambda: kinds.variants(POOL, of=[0, 1]), r"stream\.drift\.change\.kind = 'variants': this source has no"),
    "a variant that is not there": (lambda: kinds.variants(sea(KEY), of=[0, 4]), r"stream\.drift\.change\.of = \[0, 4\]: there is no variant 4"),
    "variants from another": (lambda: kinds.variants(sea(KEY), of=[1, 2]), r"stream\.drift\.change\.of = \[1, 2\]: must begin with .* 0"),
    "classes that nobody holds": (
        lambda: streamed(drift(classes(KEY, 9, groups=[[7], [8]]))), r"stream: none of the first 6 clients ever gets an example"),
    "stamps out of order": (lambda: replayed(TIMED, shuffled(KEY)), r"stream\.order\.kind: 'stamps'"),
    "stamps with a store": (lambda: replayed(TIMED, stored=3), r"stream\.stored: 'stamps'"),
    "stamps of chosen classes": (lambda: replayed(TIMED, changed=drift(classes(KEY, 5, groups=[[0], [1]]))), r"stream\.drift\.change\.kind: 'stamps'"),
    "no stamps": (lambda: replayed(POOL), r"stream\.arrivals\.kind = 'stamps': this source has no"),
    "stamps that go back": (
        lambda: replayed(replace(POOL, times_s=np.tile(np.arange(100.0), 6))), r"data\.partition: client 0 gets examples that are out of time order"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_one_line(case: str) -> None:
    """Settings that contradict each other, or bring nothing, are refused in one line that names the key."""
    call, begins = REFUSED[case]
    with pytest.raises(ScenarioError, match=f"^{begins}") as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_client_that_never_gets_an_example_has_an_empty_stream() -> None:
    """A client without any of the classes gets nothing, ever, and the others go on."""
    train, test, _ = split(POOL, 0.1, KEY)
    by_class = pool_federation(POOL, blocks(train.y, CLIENTS), test, replace(train, y=np.sort(train.y)), KEY, 0.0)
    federation = streamed(drift(classes(KEY, 5, groups=[[0], [1]])), on=by_class)
    stream = federation.streams.of(CLIENTS - 1)  # type: ignore[union-attr]

    assert (0, 0, []) == (len(stream), stream.arrived(1e9), stream.changes_s.tolist())
    assert len(federation.streams.of(0)) > 0  # type: ignore[union-attr]


def test_the_memo_forgets_and_changes_nothing() -> None:
    """A memo too small for two streams keeps the last, makes the first anew, and hands out what cannot be written to."""
    asked: list[int] = []

    def make(client: int) -> Stream:
        asked.append(client)
        return Stream(np.zeros(9), np.zeros(9), np.full(9, client), np.zeros(9, dtype=np.int64))

    memo = Recent(limit_bytes=400)
    first = memo.get(0, make).positions
    for client in (0, 1, 1, 0):
        assert {client} == set(memo.get(client, make).positions.tolist())

    assert [0, 1, 0] == asked
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 3


def test_arrivals_registry_is_complete() -> None:
    """Each kind of arrivals can be the process of a stream: what they answer is checked in test_arrivals."""
    assert {"at_start", "constant", "poisson", "diurnal", "mmpp", "stamps", "trace"} <= {*arrivals.names(), "trace"}
    assert len(streamed(labels=at_once(KEY)).streams.of(0)) == 90  # type: ignore[union-attr]
