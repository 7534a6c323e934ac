"""Freshness by hand, and against what a periodic server is known to give."""

from __future__ import annotations

import numpy as np
import pytest

from fedsim.core.keys import Key
from fedsim.score.freshness import age_of_newest, mean_age_s, newest_in_versions, time_to_influence

NAN = np.nan


def test_versions_hold_what_was_merged_into_them_and_all_before() -> None:
    """Late and lost results count for nothing, an older example hides no newer one, and nothing is ever lost again."""
    merged, newest_s = np.array([2, 1, -1, 4, 2]), np.array([8.0, 9.0, 99.0, 7.0, NAN])

    assert np.array_equal([NAN, 9.0, 9.0, 9.0, 9.0], newest_in_versions(merged, newest_s, 5), equal_nan=True)


def test_the_age_grows_until_the_model_is_replaced() -> None:
    """A model received at 10 s that holds an example of 4 s is 6 s old then, 16 s old at 20 s, until the next replaces it."""
    served_s, newest_s = np.array([0.0, 10.0, 20.0]), np.array([NAN, 4.0, 19.0])
    at_s = np.array([-1.0, 5.0, 10.0, 19.5, 20.0, 30.0])

    assert np.array_equal([NAN, NAN, 6.0, 15.5, 1.0, 11.0], age_of_newest(at_s, served_s, newest_s), equal_nan=True)
    assert (6.0 + 5.0) * 0.5 + (1.0 + 5.0) * 0.5 == pytest.approx(mean_age_s(served_s, newest_s, 0.0, 30.0))
    assert np.isnan(mean_age_s(served_s, newest_s, 0.0, 9.0))


@pytest.mark.parametrize(("period_s", "delay_s"), [(10.0, 0.0), (10.0, 3.0), (4.0, 50.0)])
def test_the_mean_age_with_a_periodic_server(period_s: float, delay_s: float) -> None:
    """A model every T seconds that holds all up to D seconds ago is D + T / 2 old on average."""
    served_s = np.arange(0.0, 1000.0, period_s)

    assert delay_s + period_s / 2 == pytest.approx(mean_age_s(served_s, served_s - delay_s, 0.0, 1000.0))


def test_the_mean_age_is_the_integral() -> None:
    """The mean age agrees with ten thousand samples of the age, for irregular models and any bounds."""
    r = Key(5).numpy()
    served_s = np.cumsum(r.exponential(3.0, 40))
    newest_s = served_s - r.exponential(5.0, 40)
    at_s = np.linspace(served_s[3] + 0.1, served_s[30] + 0.2, 100_001)
    middles = (at_s[1:] + at_s[:-1]) / 2

    assert age_of_newest(middles, served_s, newest_s).mean() == pytest.approx(
        mean_age_s(served_s, newest_s, at_s[0], at_s[-1]), rel=1e-3
    )


def test_time_to_influence_by_hand() -> None:
    """An example counts from the first version that learned from it, whichever task that was; a lost task brings nothing."""
    merged_s = np.array([NAN, 30.0, 20.0])
    item = np.array([5, 5, 5, 2, 3, 3])
    arrived_s = np.array([4.0, 4.0, 4.0, 1.0, 6.0, 6.0])
    task = np.array([0, 1, 2, 0, 0, 1])
    items, seconds = time_to_influence(item, arrived_s, task, merged_s)

    assert [2, 3, 5] == items.tolist()
    assert np.array_equal([NAN, 24.0, 16.0], seconds, equal_nan=True)
