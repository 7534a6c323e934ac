"""What the papers say that each replay policy remembers and replays, each check with a wrong policy that it rejects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import chi2

from fedsim.core.keys import Key
from fedsim.core.state import State
from fedsim.core.types import Array, FloatArray, IntArray
from fedsim.data.replay import Arrivals, Drawn, Replay
from fedsim.data.replay.losses import Prioritised, loss_aware, most_interfered, prioritised
from fedsim.data.replay.memory import REFUSED, Memory, Positions, Rule, subset
from fedsim.data.replay.policies import (
    any_leaves,
    below_share_enters,
    cbrs,
    fifo,
    gdumb,
    largest_class_gives,
    oldest_leaves,
    reservoir,
    ring,
)
from fedsim.data.replay.vectors import gss, herd, herding

SURE = 1e-4
"""Below this p-value a check says no; seeds are fixed, so that a right policy is never unlucky."""


def arrivals(labels: Array) -> Arrivals:
    n = len(labels)
    return Arrivals(np.arange(n), np.asarray(labels, dtype=np.int64), np.arange(n, dtype=np.float64))


def end(policy: Replay, new: Arrivals, key: Key) -> State:
    return policy.add(policy.empty(), new, key)


def ruled(rule: Rule, capacity: int) -> Positions:
    return Positions(capacity, rule)


def fits(statistic: float, freedom: int) -> bool:
    """Return whether a chi-square is neither too large nor too small to be luck."""
    return bool(SURE < chi2.sf(statistic, freedom) < 1 - SURE)


# Reservoir: every item with the same chance.


def every_item_is_as_likely(rule: Rule) -> None:
    """P(held) = M / t at t = 16, 40. Without replacement the plain statistic is too small: times (N - 1) / (N - M)."""
    capacity, runs = 10, 3000
    for t in (16, 40):
        new = arrivals(np.zeros(t))
        held = np.concatenate([end(ruled(rule, capacity), new, Key(s))["items"] for s in range(runs)])
        expected = runs * capacity / t
        statistic = float(np.square(np.bincount(held, minlength=t) - expected).sum() / expected)
        assert fits(statistic * (t - 1) / (t - capacity), t - 1)


def one_short(memory: Memory, label: int, u: float) -> int:
    """j drawn from 1 .. t - 1."""
    slot = int(u * memory.total)
    return memory.held if not memory.full else slot if slot < memory.capacity else REFUSED


def one_more(memory: Memory, label: int, u: float) -> int:
    """j drawn from 0 .. t."""
    slot = int(u * (memory.total + 2))
    return memory.held if not memory.full else slot if slot < memory.capacity else REFUSED


def fixed_chance(memory: Memory, label: int, u: float) -> int:
    slot = int(u * 2 * memory.capacity)
    return memory.held if not memory.full else slot if slot < memory.capacity else REFUSED


def always_enters(memory: Memory, label: int, u: float) -> int:
    return memory.held if not memory.full else int(u * memory.capacity)


def test_a_reservoir_holds_every_item_with_the_same_chance() -> None:
    """After t items each is held with chance M / t (Vitter 1985)."""
    every_item_is_as_likely(any_leaves)


@pytest.mark.parametrize("rule", [one_short, one_more, fixed_chance, always_enters, oldest_leaves])
def test_the_inclusion_check_has_teeth(rule: Rule) -> None:
    """Off by one either way, a fixed chance, always, and a window are no reservoirs."""
    with pytest.raises(AssertionError):
        every_item_is_as_likely(rule)


# Draws: every subset with the same chance.


def every_pair_is_as_likely(draw: Callable[[int, Key], IntArray]) -> None:
    runs, pairs = 6000, list(combinations(range(6), 2))
    seen = Counter(tuple(sorted(draw(2, Key(s)).tolist())) for s in range(runs))
    expected = runs / len(pairs)
    assert set(seen) <= set(pairs)
    assert fits(sum((seen[pair] - expected) ** 2 for pair in pairs) / expected, len(pairs) - 1)


SIX = end(reservoir(1, capacity=6), arrivals(np.zeros(6)), Key(0))


def test_a_draw_is_uniform_without_replacement() -> None:
    """Of six items each pair is drawn with chance 1 / 15."""
    every_pair_is_as_likely(lambda r, key: reservoir(1, capacity=6).draw(SIX, r, key, 0.0).slots)


@pytest.mark.parametrize(
    "draw",
    [
        lambda r, key: (int(key.uniform_at(0) * 6) + np.arange(r)) % 6,  # A run: each item is as likely, pairs are not.
        lambda r, key: (key.uniform(np.arange(r)) * 6).astype(int),
        lambda r, key: np.array(subset(key.uniform(np.arange(r)).tolist(), 5)),
        lambda r, key: np.array(sorted(range(6), key=lambda i: key.uniform_at(i) / (1 + i / 20))[:r]),
    ],
)
def test_the_pair_check_has_teeth(draw: Callable[[int, Key], IntArray]) -> None:
    """Runs, replacement, a slot left out, and slots 5 % likelier each are seen."""
    with pytest.raises(AssertionError):
        every_pair_is_as_likely(draw)


# Windows: exact contents.


def the_last_are_held(policy: Positions) -> None:
    for t in (1, 7, 8, 50):
        assert set(range(max(t - 7, 0), t)) == set(end(policy, arrivals(np.zeros(t)), Key(t))["items"].tolist())


def the_last_of_each_class_are_held(policy: Positions) -> None:
    """Seven slots, three classes: 3, 2 and 2, each a window of its own."""
    labels = np.random.default_rng(0).choice(3, 90, p=[0.8, 0.15, 0.05])
    for t in (1, 5, 20, 90):
        mine = [np.flatnonzero(labels[:t] == c)[-quota:] for c, quota in enumerate((3, 2, 2))]
        assert set(np.concatenate(mine).tolist()) == set(end(policy, arrivals(labels[:t]), Key(0))["items"].tolist())


def test_windows_hold_the_last_items() -> None:
    """FIFO holds stream[t - M : t] exactly, and a ring the last quota of each class."""
    the_last_are_held(fifo(1, capacity=7))
    the_last_of_each_class_are_held(ring(1, 3, capacity=7))


@pytest.mark.parametrize(
    ("check", "policy"),
    [
        (the_last_are_held, fifo(1, capacity=6)),
        (the_last_are_held, reservoir(1, capacity=7)),
        (the_last_are_held, ruled(always_enters, 7)),
        (the_last_of_each_class_are_held, fifo(1, capacity=7)),
        (the_last_of_each_class_are_held, gdumb(1, capacity=7)),
        (the_last_of_each_class_are_held, ring(1, 4, capacity=7)),
    ],
)
def test_the_window_checks_have_teeth(check: Callable[[Positions], None], policy: Positions) -> None:
    """Windows of another length, random victims, and windows that do not know classes are seen."""
    with pytest.raises(AssertionError):
        check(policy)


# Balance.

SKEWED = np.repeat(np.arange(5), [300, 120, 40, 8, 3])


def classes_are_as_even_as_can_be(rule: Rule) -> None:
    """A class either has all its items held, and no more than others, or is within one of the largest (CBRS)."""
    for seed in range(20):
        labels = np.random.default_rng(seed).permutation(SKEWED)
        labels = np.sort(labels) if seed % 4 == 0 else labels[::-1] if seed % 4 == 1 else labels
        for t in (60, 200, len(labels)):
            held = np.bincount(end(ruled(rule, 50), arrivals(labels[:t]), Key(seed))["labels"], minlength=5)
            came = np.bincount(labels[:t], minlength=5)
            assert 50 == held.sum()
            assert np.all((held == came) | (held >= held.max() - 1))


def items_of_a_class_are_as_likely(rule: Rule) -> None:
    """Given how many of a class are held, each of its items is among them with the same chance."""
    labels, runs = np.random.default_rng(3).permutation(np.repeat(np.arange(3), [40, 20, 2])), 3000
    held = [end(ruled(rule, 9), arrivals(labels), Key(s)) for s in range(runs)]
    for label, n in ((0, 40), (1, 20)):
        items = np.concatenate([state["items"][state["labels"] == label] for state in held])
        hits, expected = np.bincount(items, minlength=62)[labels == label], len(items) / n
        share = len(items) / runs / n  # Times (n - 1) / n over the variance of a draw without replacement.
        assert fits(float(np.square(hits - expected).sum() / expected) * (n - 1) / n / (1 - share), n - 1)


def no_class_exceeds_its_share(rule: Rule) -> None:
    """Once each of C classes sent M / C items, none holds more than that, rounded up (GDumb)."""
    for capacity in (7, 9, 10, 11):
        for seed in range(20):
            labels = np.random.default_rng(seed).choice(3, 200, p=[0.85, 0.1, 0.05])
            held = np.bincount(end(ruled(rule, capacity), arrivals(labels), Key(seed))["labels"], minlength=3)
            assert capacity == held.sum()
            assert held.max() <= -(-capacity // 3)


def full_classes_stay(memory: Memory, label: int, u: float) -> int:
    """CBRS, but an item of a class that has its share never enters: the early ones of a class stay."""
    own = memory.kept.get(label, 0)
    balances = not memory.full or (own < max(memory.kept.values()) and own == memory.seen.get(label, 0))
    return largest_class_gives(memory, label, u) if balances else REFUSED


def forgets_the_oldest_of_a_class(memory: Memory, label: int, u: float) -> int:
    slot = largest_class_gives(memory, label, u)
    return slot if slot in (REFUSED, memory.held) else memory.oldest_of(int(memory.labels[slot]))


def seen_over_all(memory: Memory, label: int, u: float) -> int:
    """CBRS with the reservoir's chance within a class taken over all items seen."""
    balances = not memory.full or memory.kept.get(label, 0) == memory.seen.get(label, 0)
    return largest_class_gives(memory, label, u) if balances else any_leaves(memory, label, u)


def test_balancing_policies_balance() -> None:
    """CBRS keeps classes even and each a uniform sample; GDumb keeps all at or below their share."""
    classes_are_as_even_as_can_be(largest_class_gives)
    items_of_a_class_are_as_likely(largest_class_gives)
    no_class_exceeds_its_share(below_share_enters)
    no_class_exceeds_its_share(cbrs(1, capacity=1).rule)


@pytest.mark.parametrize(
    ("check", "rule"),
    [
        (classes_are_as_even_as_can_be, any_leaves),
        (classes_are_as_even_as_can_be, oldest_leaves),
        (classes_are_as_even_as_can_be, seen_over_all),
        (items_of_a_class_are_as_likely, full_classes_stay),
        (items_of_a_class_are_as_likely, forgets_the_oldest_of_a_class),
        (no_class_exceeds_its_share, any_leaves),
    ],
)
def test_the_balance_checks_have_teeth(check: Callable[[Rule], None], rule: Rule) -> None:
    """A plain reservoir, a window, and CBRS with one line wrong are seen."""
    with pytest.raises(AssertionError):
        check(rule)


# Priorities.

LOSSES = np.array([0.05, 0.3, 1.0, 2.0, 4.0])
Draw = Callable[[Prioritised, State, Key], Drawn]


def with_losses(policy: Prioritised) -> State:
    state = end(policy, arrivals(np.zeros(5)), Key(0))
    return policy.update(state, np.arange(5), LOSSES)


def drawn(policy: Prioritised, state: State, key: Key) -> Drawn:
    return policy.draw(state, 5, key, 0.0)


def priorities_are_frequencies(draw: Draw) -> None:
    """P(i) = (|loss| + eps)^alpha / sum (Schaul 2016, equation 1)."""
    policy, runs = prioritised(1, capacity=5), 2000
    state = with_losses(policy)
    hits = np.bincount(np.concatenate([draw(policy, state, Key(s)).slots for s in range(runs)]), minlength=5)
    p = LOSSES**0.6 / (LOSSES**0.6).sum()
    assert fits(float((np.square(hits - 5 * runs * p) / (5 * runs * p)).sum()), 4)


def weighted_means_are_unbiased(draw: Draw) -> None:
    """At beta = 1 the mean of weight x value is the plain mean, times the stated divisor; |z| < 4."""
    policy, values = prioritised(1, capacity=5, beta=1.0), np.array([3.0, -1.0, 4.0, 1.0, -5.0])
    state = with_losses(policy)
    p = LOSSES**0.6 / (LOSSES**0.6).sum()
    found = [draw(policy, state, Key(s)) for s in range(2000)]
    means = np.array([(one.weights * values[one.slots]).mean() for one in found]) / (5 * p.min())
    assert abs(means.mean() - values.mean()) < 4 * means.std() / np.sqrt(len(means))


def test_priorities_are_what_schaul_says() -> None:
    """Frequencies follow priorities, and importance weights undo them."""
    priorities_are_frequencies(drawn)
    weighted_means_are_unbiased(drawn)
    policy = prioritised(1, capacity=5)
    weights = drawn(policy, with_losses(policy), Key(1)).weights
    slots = drawn(policy, with_losses(policy), Key(1)).slots
    p = (LOSSES + 1e-6) ** 0.6 / ((LOSSES + 1e-6) ** 0.6).sum()

    assert np.allclose((5 * p[slots]) ** -0.4 / ((5 * p) ** -0.4).max(), weights)


@pytest.mark.parametrize(
    ("check", "draw"),
    [
        (priorities_are_frequencies, lambda policy, state, key: policy.memory.draw(state, 5, key, 0.0)),
        (priorities_are_frequencies, lambda policy, state, key: drawn(policy, {**state, "priorities": LOSSES}, key)),
        (weighted_means_are_unbiased, lambda policy, state, key: drawn(replace(policy, beta=0.0), state, key)),
        (weighted_means_are_unbiased, lambda policy, state, key: drawn(replace(policy, beta=0.4), state, key)),
    ],
)
def test_the_priority_checks_have_teeth(check: Callable[[Draw], None], draw: Draw) -> None:
    """Uniform draws, priorities without alpha, and missing or weak weights are seen."""
    with pytest.raises(AssertionError):
        check(draw)


def test_a_new_item_has_the_largest_priority() -> None:
    """An item is as likely as the likeliest until it was replayed once (Schaul 2016, algorithm 1, line 6)."""
    policy = prioritised(1, capacity=9)
    state = policy.add(with_losses(policy), replace(arrivals(np.zeros(1)), items=np.array([5])), Key(0))

    assert state["priorities"].max() == state["priorities"][5] == (4.0 + 1e-6) ** 0.6


def test_loss_aware_without_strength_is_the_reservoir() -> None:
    """At strength 0, or with equal losses, a loss-aware reservoir holds what the reservoir does, slot by slot."""
    new, losses = arrivals(np.zeros(300)), np.random.default_rng(0).exponential(1.0, 300)
    for seed in range(10):
        plain = end(reservoir(1, capacity=20), new, Key(seed))["items"].tolist()
        for strength, told in ((0.0, losses), (1.0, np.full(300, 0.7))):
            policy = loss_aware(1, capacity=20, strength=strength)
            assert plain == policy.add(policy.empty(), new, Key(seed), {"losses": told})["items"].tolist()
        policy = loss_aware(1, capacity=20)
        assert plain != policy.add(policy.empty(), new, Key(seed), {"losses": losses})["items"].tolist()


def victims_are_those_of_low_loss(strength: float) -> None:
    """Item 4 enters four slots with chance 4 / 5; who leaves is drawn in proportion to 3, 2, 1, 0."""
    policy, told, runs = loss_aware(1, capacity=4, strength=strength), np.array([0.0, 1.0, 2.0, 3.0, 9.0]), 4000
    left: Counter[int] = Counter()
    for seed in range(runs):
        state = policy.add(policy.empty(), arrivals(np.zeros(5)), Key(seed), {"losses": told})
        left.update(set(range(5)) - set(state["items"].tolist()))
    assert abs(left[4] - runs / 5) < 4 * np.sqrt(runs * 0.16)
    expected = (runs - left[4]) * np.array([3, 2, 1]) / 6
    assert 0 == left[3]
    assert fits(float((np.square(np.array([left[i] for i in range(3)]) - expected) / expected).sum()), 2)


def test_loss_aware_lets_low_losses_go() -> None:
    """Victims follow the losses linearly at strength 1; at 0 and 2 they do not."""
    victims_are_those_of_low_loss(1.0)
    for strength in (0.0, 2.0):
        with pytest.raises(AssertionError):
            victims_are_those_of_low_loss(strength)


# Gradients and features.


def all_clusters_are_covered(hold: Callable[[Arrivals, Array, Key], State]) -> None:
    """Six directions of a simplex, nine tenths of the stream one of them: eight slots hold all six (GSS)."""
    corners = np.eye(6) - 1 / 6
    for seed in range(20):
        rng = np.random.default_rng(seed)
        cluster = rng.choice(6, 600, p=[0.9, 0.02, 0.02, 0.02, 0.02, 0.02])
        gradients = corners[cluster] + 0.02 * rng.standard_normal((600, 6))
        assert set(range(6)) == set(cluster[hold(arrivals(np.zeros(600)), gradients, Key(seed))["items"]].tolist())


def held_by_gss(new: Arrivals, gradients: Array, key: Key) -> State:
    policy = gss(1, capacity=8)
    return policy.add(policy.empty(), new, key, {"gradients": gradients})


def test_gss_covers_planted_clusters() -> None:
    """A memory little larger than the number of distinct gradients holds one of each."""
    all_clusters_are_covered(held_by_gss)


@pytest.mark.parametrize(
    "hold",
    [
        lambda new, gradients, key: end(reservoir(1, capacity=8), new, key),
        lambda new, gradients, key: held_by_gss(new, -np.abs(gradients), key),
        lambda new, gradients, key: held_by_gss(new, gradients[::-1], key),
    ],
)
def test_the_cluster_check_has_teeth(hold: Callable[[Arrivals, Array, Key], State]) -> None:
    """A reservoir, gradients without sign, and gradients of other items cover less."""
    with pytest.raises(AssertionError):
        all_clusters_are_covered(hold)


@pytest.mark.parametrize(("cosine", "chance"), [(0.2, 0.0), (0.9, 0.0), (-0.5, 1 / 1.5), (-0.9, 1 / 1.1)])
def test_gss_lets_only_opposing_gradients_in(cosine: float, chance: float) -> None:
    """Against one slot of score 1 a gradient at cosine c < 0 enters with chance 1 / (1 + c + 1), others never."""
    policy, runs = gss(1, capacity=1), 1500
    gradients = np.array([[2.0, 0.0], [cosine, np.sqrt(1 - cosine**2)]])
    ends = [policy.add(policy.empty(), arrivals(np.zeros(2)), Key(s), {"gradients": gradients}) for s in range(runs)]
    entered = sum(int(state["items"][0]) for state in ends)

    assert abs(entered - runs * chance) <= 4 * np.sqrt(runs * chance * (1 - chance))


Choose = Callable[[FloatArray, FloatArray, int], IntArray]


def the_most_harmed_are_chosen(choose: Choose) -> None:
    """One step of least squares on a new example: the candidates whose own loss rises most, by brute force (MIR)."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        inputs, targets, weights = rng.standard_normal((30, 3)), rng.standard_normal(30), rng.standard_normal(3)
        stepped = weights - 0.3 * (inputs[0] @ weights - targets[0]) * inputs[0]
        before, after = ((inputs[1:] @ w - targets[1:]) ** 2 for w in (weights, stepped))
        best = max(combinations(range(29), 3), key=lambda rows: sum(after[i] - before[i] for i in rows))
        assert set(best) == set(choose(before, after, 3).tolist())


def test_mir_chooses_the_most_harmed() -> None:
    """The top k are exact, the worst first, and a loss that is no number comes last."""
    the_most_harmed_are_chosen(most_interfered)

    assert [1, 2, 0] == most_interfered(np.zeros(3), np.array([np.nan, 2.0, 1.0]), 5).tolist()


@pytest.mark.parametrize(
    "choose", [lambda b, a, k: np.argsort(-a)[:k], lambda b, a, k: np.argsort(a - b)[:k], lambda b, a, k: np.arange(k)]
)
def test_the_mir_check_has_teeth(choose: Choose) -> None:
    """The largest losses after the step, the most helped, and the first are others."""
    with pytest.raises(AssertionError):
        the_most_harmed_are_chosen(choose)


Herd = Callable[[Array, Array, int], IntArray]


def the_mean_is_matched_greedily(choose: Herd) -> None:
    """Algorithm 4 of iCaRL, word by word."""
    for seed in range(10):
        features = np.random.default_rng(seed).standard_normal((25, 3))
        mean, chosen = features.mean(axis=0), list[int]()
        for k in range(1, 9):
            rest = [i for i in range(25) if i not in chosen]
            chosen.append(min(rest, key=lambda i: np.linalg.norm(mean - features[[*chosen, i]].sum(axis=0) / k)))
        assert chosen == choose(features, mean, 8).tolist()


def nearest(features: Array, mean: Array, count: int) -> IntArray:
    return np.argsort(np.linalg.norm(features - mean, axis=1))[:count]


def test_herding_is_greedy_mean_matching() -> None:
    """Herding chooses as iCaRL does; the nearest to the mean, taken alone, are others."""
    the_mean_is_matched_greedily(herd)
    with pytest.raises(AssertionError):
        the_mean_is_matched_greedily(nearest)


def test_herding_keeps_classes_even_and_their_means() -> None:
    """Three classes share eleven slots 4, 4, 3; exemplars match class means better than as many chosen at random."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(3), [60, 30, 10]))
    features = rng.standard_normal((3, 5))[labels] + 0.7 * rng.standard_normal((100, 5))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    policy = herding(1, capacity=11)
    state = policy.empty()
    for at in range(0, 100, 25):
        cut = slice(at, at + 25)
        state = policy.add(state, arrivals(labels)[cut], Key(0), {"features": features[cut]})

    def gap(items: IntArray) -> float:
        return sum(
            float(np.linalg.norm(features[labels == c].mean(axis=0) - features[items[labels[items] == c]].mean(axis=0)))
            for c in range(3)
        )

    random = [np.concatenate([rng.choice(np.flatnonzero(labels == c), 3) for c in range(3)]) for _ in range(200)]
    assert [3, 4, 4] == sorted(np.bincount(state["labels"]).tolist())
    assert gap(state["items"]) < np.quantile([gap(items) for items in random], 0.01)


def test_a_shrunk_class_drops_its_last_exemplars() -> None:
    """When a second class comes, the first keeps the better half, in order (iCaRL, algorithm 5)."""
    rng = np.random.default_rng(1)
    policy, new = herding(1, capacity=6), arrivals(np.r_[np.zeros(20), np.ones(1)])
    features = rng.standard_normal((21, 4))
    first = policy.add(policy.empty(), new[:20], Key(0), {"features": features[:20]})
    then = policy.add(first, new[20:], Key(0), {"features": features[20:]})

    assert [*first["items"][:3].tolist(), 20] == then["items"].tolist()
