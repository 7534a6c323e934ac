"""Laws that every registered partition keeps, each with a deliberately wrong one that it rejects; and skew theory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest

from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.core.types import FloatArray, IntArray
from fedsim.data.partition import Partition, dirichlet, iid, natural, partitions, quantity, shards
from fedsim.laws import LAWS, Broken, Kind, ask, hold

Make = Callable[[IntArray, IntArray, int, Key], Partition]

REQUIRED: dict[str, dict[str, Any]] = {"dirichlet": {"alpha": 0.3}}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    *((name, REQUIRED.get(name, {})) for name in partitions),
    ("dirichlet", {"alpha": 1e-12}),
    ("dirichlet", {"alpha": 1e-3}),
    ("dirichlet", {"alpha": 1e6}),
    ("dirichlet", {"alpha": 1e300}),
    ("shards", {"per_client": 1}),
    ("quantity", {"sizes": "power", "exponent": 2.0}),
    ("quantity", {"sigma": 1e6}),
]
MNIST_LABELS = np.arange(60_000) % 10


def made(name: str, settings: dict[str, Any]) -> Make:
    return lambda labels, groups, clients, key: Kind("partition", name, settings)(labels=labels, groups=groups, clients=clients, key=key)


def forgets_the_last(labels: IntArray, groups: IntArray, clients: int, key: Key) -> Partition:
    good = iid(labels, clients, key)
    order = good.order.copy()
    order[-1] = order[0]
    return Partition(order, good.offsets)


def leaves_some_empty(labels: IntArray, groups: IntArray, clients: int, key: Key) -> Partition:
    return Partition.of(key.numpy().integers(clients, size=len(labels)), clients)


CALLS = count()


def consumes(labels: IntArray, groups: IntArray, clients: int, key: Key) -> Partition:
    return iid(labels, clients, key.fold(next(CALLS)))


def sorts_in_place(labels: IntArray, groups: IntArray, clients: int, key: Key) -> Partition:
    labels.sort()
    return iid(labels, clients, key)


def draws_globally(labels: IntArray, groups: IntArray, clients: int, key: Key) -> Partition:
    np.random.random()
    return iid(labels, clients, key)


def ignores_key(labels: IntArray, groups: IntArray, clients: int, key: Key) -> Partition:
    return iid(labels, clients, Key(0))


def unsorted(labels: IntArray, groups: IntArray, clients: int, key: Key) -> Partition:
    good = iid(labels, clients, key)
    return Partition(key.numpy().permutation(len(labels)), good.offsets)


WRONG: dict[str, list[Make]] = {
    "every_example_has_one_client": [forgets_the_last], "no_client_goes_without": [leaves_some_empty],
    "same_key_same_answer": [consumes, sorts_in_place, draws_globally], "other_key_other_answer": [ignores_key],
    "positions_ascend_in_a_view": [unsorted],
}  # fmt: skip


@pytest.mark.parametrize("law", LAWS["partition"])
@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_every_registered_partition_keeps_every_law(law: str, name: str, settings: dict[str, Any]) -> None:
    """Every partition in the registry keeps the law."""
    hold("partition", name, settings, laws=[law])


@pytest.mark.parametrize(("law", "wrong"), [(law, wrong) for law in LAWS["partition"] for wrong in WRONG[law]])
def test_the_law_has_teeth(law: str, wrong: Make) -> None:
    """The law rejects a partition that was made to break it."""
    with pytest.raises(Broken, match=f"breaks the law '{law}'"):
        ask(LAWS["partition"][law], wrong)


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_more_clients_than_examples_is_refused(name: str, settings: dict[str, Any]) -> None:
    """Five clients cannot share four examples, and the line says which setting is wrong."""
    labels = np.array([0, 0, 1, 1])

    with pytest.raises(ScenarioError, match=r"^clients\.count = 5: [^\n]+$"):
        made(name, settings)(labels, np.arange(4), 5, Key(0))


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_ten_thousand_clients_are_quick(name: str, settings: dict[str, Any]) -> None:
    """60,000 examples reach 10,000 clients, each of which gets some (0.3 s when this was written)."""
    if settings.get("per_client", 2) * 10_000 > len(MNIST_LABELS):
        pytest.skip("more shards than examples")
    partition = made(name, settings)(MNIST_LABELS, np.arange(60_000) % 10_000, 10_000, Key(0))

    assert (10_000, 60_000) == (len(partition.sizes), int(partition.sizes.sum()))


# Skew: what each kind is for, in numbers.


def table(partition: Partition, labels: IntArray) -> IntArray:
    """How many examples of each class each client holds. Shapes: (clients, classes)."""
    owner = np.repeat(np.arange(len(partition.sizes)), partition.sizes)
    classes = int(labels.max()) + 1
    cells = np.bincount(owner * classes + labels[partition.order], minlength=len(partition.sizes) * classes)
    return cells.reshape(-1, classes)


def entropy(counts: IntArray) -> FloatArray:
    shares = counts / counts.sum(axis=1, keepdims=True)
    return -np.sum(shares * np.log(np.where(shares > 0, shares, 1.0)), axis=1)


Dirichlet = Callable[[IntArray, int, float, Key], Partition]


def entropy_grows_with_alpha(make: Dirichlet) -> None:
    for seed in range(5):
        means = [
            float(entropy(table(make(MNIST_LABELS, 100, alpha, Key(seed)), MNIST_LABELS)).mean())
            for alpha in (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
        ]
        assert sorted(means) == means


def same_class_chance_is_the_book_s(make: Dirichlet) -> None:
    # Two examples of one client share their class with chance sum q^2, of mean (a + 1) / (ac + 1) under Dir(a) over c
    # classes. The pool is used up to the last example, which adds some skew: hence 15 %.
    for alpha in (0.01, 0.1, 0.3, 1.0, 10.0):
        counts = np.concatenate([table(make(MNIST_LABELS, 100, alpha, Key(s)), MNIST_LABELS) for s in range(5)])
        sizes = counts.sum(axis=1)
        measured = np.mean(np.sum(counts * (counts - 1), axis=1) / (sizes * (sizes - 1)))
        assert abs(measured * (10 * alpha + 1) / (alpha + 1) - 1) < 0.15


def wrong_way_round(labels: IntArray, clients: int, alpha: float, key: Key) -> Partition:
    return dirichlet(labels, clients, 1 / alpha, key)


def deaf_to_alpha(labels: IntArray, clients: int, alpha: float, key: Key) -> Partition:
    return dirichlet(labels, clients, 0.5, key.fold(str(alpha)))


def split_over_classes(labels: IntArray, clients: int, alpha: float, key: Key) -> Partition:
    """The prior's version, Dir(alpha / classes): what a reader of 'alpha per class' does not expect."""
    return dirichlet(labels, clients, alpha / 10, key)


@pytest.mark.parametrize("law", [entropy_grows_with_alpha, same_class_chance_is_the_book_s])
def test_dirichlet_skews_labels_as_the_book_says(law: Callable[[Dirichlet], None]) -> None:
    """Dirichlet label shares follow alpha as they should."""
    law(dirichlet)


@pytest.mark.parametrize(
    ("law", "wrong"),
    [
        (entropy_grows_with_alpha, wrong_way_round),
        (entropy_grows_with_alpha, deaf_to_alpha),
        (same_class_chance_is_the_book_s, deaf_to_alpha),
        (same_class_chance_is_the_book_s, split_over_classes),
    ],
)
def test_the_skew_laws_have_teeth(law: Callable[[Dirichlet], None], wrong: Dirichlet) -> None:
    """The law rejects a Dirichlet partition with a wrong alpha."""
    with pytest.raises(AssertionError):
        law(wrong)


def test_dirichlet_at_alpha_100_is_nearly_iid() -> None:
    """At alpha = 100 the mean entropy of a client's labels is within 2 % of that of an iid client."""
    skewed = entropy(table(dirichlet(MNIST_LABELS, 100, 100.0, Key(1)), MNIST_LABELS)).mean()
    even = entropy(table(iid(MNIST_LABELS, 100, Key(1)), MNIST_LABELS)).mean()

    assert 0.98 < skewed / even < 1.0


def test_dirichlet_at_alpha_a_tenth_gives_few_classes() -> None:
    """At alpha = 0.1 half of the clients hold at most three of ten classes above 5 %."""
    counts = table(dirichlet(MNIST_LABELS, 100, 0.1, Key(1)), MNIST_LABELS)

    assert np.median(np.sum(counts > 0.05 * counts.sum(axis=1, keepdims=True), axis=1)) <= 3


def test_dirichlet_at_a_large_alpha_keeps_an_unbalanced_pool_s_mix() -> None:
    """At alpha = 1e6 each client holds a rare class as often as the pool does, not as often as the others."""
    labels = (np.arange(20_000) % 20 == 0).astype(np.int64)  # 5 % ones.
    shares = table(dirichlet(labels, 10, 1e6, Key(0)), labels)[:, 1] / 2000

    assert 0.03 < shares.min() and shares.max() < 0.07


@pytest.mark.parametrize("make", [iid, lambda y, c, k: dirichlet(y, c, 0.1, k), shards])
def test_sizes_are_equal_to_within_the_remainder(make: Callable[[IntArray, int, Key], Partition]) -> None:
    """Sizes of clients differ by one example at most, with two shards each by two."""
    sizes = make(np.arange(997) % 7, 10, Key(3)).sizes

    assert sizes.max() - sizes.min() <= (2 if make is shards else 1)


@pytest.mark.parametrize("per_client", [1, 2, 5])
def test_shards_give_few_labels(per_client: int) -> None:
    """A client of s shards holds at most 2s labels, since a shard no larger than a class straddles two at most."""
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), np.arange(551, 651, 10)))
    held = np.sum(table(shards(labels, 100, Key(0), per_client), labels) > 0, axis=1)

    assert held.max() <= 2 * per_client


def test_balanced_shards_reproduce_mcmahan() -> None:
    """With 6000 examples per class, 100 clients of two shards hold 600 examples of one or two labels."""
    partition = shards(MNIST_LABELS, 100, Key(0))
    held = np.sum(table(partition, MNIST_LABELS) > 0, axis=1)

    assert {600} == set(partition.sizes.tolist())
    assert {1, 2} == set(held.tolist())


def test_too_many_shards_are_refused() -> None:
    """Ten clients of five shards cannot be cut from 40 examples; four shards would do."""
    with pytest.raises(ScenarioError, match=r"^data\.partition\.per_client = 5: [^\n]+At most 4 works\.$"):
        shards(np.arange(40) % 4, 10, Key(0), per_client=5)


def test_quantity_follows_sigma() -> None:
    """The standard deviation of the log sizes is sigma, to within four standard errors."""
    log_sizes = np.log(quantity(np.zeros(10**6, dtype=np.int64), 1000, Key(5), sigma=0.5).sizes)

    assert abs(np.std(log_sizes) - 0.5) < 4 * 0.5 / np.sqrt(2 * 1000)


def test_quantity_power_is_zipf() -> None:
    """With exponent 1 the largest client holds twice the second and three times the third, whoever they are."""
    sizes = np.sort(quantity(np.zeros(10**6, dtype=np.int64), 50, Key(5), sizes="power").sizes)[::-1]

    assert np.allclose([2.0, 3.0], sizes[0] / sizes[1:3], rtol=0.001)
    assert np.argmax(quantity(np.zeros(999, dtype=np.int64), 50, Key(6), sizes="power").sizes) != 0


def test_quantity_leaves_labels_alone() -> None:
    """Size skew is no label skew: each class's share at the largest client is that of the pool, within 4 sigma."""
    counts = table(quantity(MNIST_LABELS, 10, Key(2), sigma=2.0), MNIST_LABELS)
    largest = counts[counts.sum(axis=1).argmax()]

    assert np.all(np.abs(largest / largest.sum() - 0.1) < 4 * np.sqrt(0.09 / largest.sum()))


def test_an_unknown_size_rule_is_refused() -> None:
    """A size rule that does not exist is one line that names the nearest."""
    with pytest.raises(ScenarioError, match=r"^data\.partition\.sizes = 'lognorm': [^\n]+'lognormal'[^\n]+$"):
        quantity(np.zeros(9, dtype=np.int64), 3, Key(0), sizes="lognorm")  # type: ignore[arg-type]  # The point.


def test_natural_follows_the_groups() -> None:
    """Each natural client holds the examples of its own group."""
    partition = natural(np.array([2, 0, 1, 0, 2]), 3)

    assert [[1, 3], [2], [0, 4]] == [partition.positions(client).tolist() for client in range(3)]


def test_natural_without_groups_is_refused() -> None:
    """A source that names no clients has no natural partition."""
    with pytest.raises(ScenarioError, match=r"^data\.partition\.kind = 'natural': [^\n]+$"):
        natural(None, 3)


def test_natural_says_how_many_clients_there_are() -> None:
    """A wrong number of natural clients is one line that says the right one."""
    with pytest.raises(ScenarioError, match=r"^clients\.count = 2: the source has 3 natural clients\. [^\n]+3\.$"):
        natural(np.array([2, 0, 1]), 2)


def test_a_client_cannot_write_into_a_partition() -> None:
    """Positions are a read-only view."""
    with pytest.raises(ValueError, match="read-only"):
        iid(MNIST_LABELS, 10, Key(0)).positions(0)[0] = 1
