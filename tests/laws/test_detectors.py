"""Laws of every registered drift detector, and what the literature's detectors do on a known change."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedsim.client.detectors import Detector, Never, detectors, kswin
from fedsim.client.reactions import adapt
from fedsim.core.errors import RunError, ScenarioError
from fedsim.core.keys import Key
from fedsim.laws import LAWS, Broken, ask, hold
from fedsim.score.detection import detection_scores

pytest.importorskip("river", reason="needs river, whose detectors these are")

DRIFT = 2000
NOISE = Key(11).numpy().random((10, 2 * DRIFT))
STREAMS = NOISE < np.where(np.arange(2 * DRIFT) < DRIFT, 0.2, 0.5)
"""Ten clients whose error rate goes from 0.2 to 0.5 after 2,000 examples."""
KINDS = sorted(set(detectors.names()) - {"none"})


def made(kind: str, **settings: Any) -> Detector:
    return detectors.get(kind, at="test")(**settings)


def alarms(detector: Detector, errors: Any, cuts: tuple[int, ...] = (), seed: int = 0) -> tuple[bytes, list[int]]:
    """Feed *errors* in the pieces between *cuts*, the detector and its state pickled in between."""
    state, found = detector.start(Key(seed)), []
    for begin, end in zip((0, *cuts), (*cuts, len(errors)), strict=True):
        detector, state = pickle.loads(pickle.dumps((detector, state)))
        state, at = detector.feed(state, errors[begin:end])
        found += [begin + int(i) for i in at]
    return state, found


class Forgetful:
    """A wrong detector: each piece is fed to one that has seen nothing."""

    takes_losses = True

    def start(self, key: Key) -> bytes:
        return made("adwin").start(key)

    def feed(self, state: bytes, errors: Any) -> tuple[bytes, Any]:
        return state, made("adwin").feed(state, errors)[1]


class EveryHundred:
    """A wrong detector: an alarm every hundred examples."""

    takes_losses = True

    def start(self, key: Key) -> bytes:
        return b""

    def feed(self, state: bytes, errors: Any) -> tuple[bytes, Any]:
        return state, np.arange(99, len(errors), 100)


class Global:
    """A wrong detector: it draws from numpy's global generator, and its state grows with what it has seen."""

    takes_losses = True

    def start(self, key: Key) -> bytes:
        return b""

    def feed(self, state: bytes, errors: Any) -> tuple[bytes, Any]:
        return state + bytes(40 * len(errors)), np.flatnonzero(np.random.random(len(errors)) < 0.1)


@pytest.mark.parametrize("law", ["a_stream_may_be_cut_anywhere", "states_are_small_and_stay"])
@pytest.mark.parametrize("kind", detectors.names())
def test_every_detector_keeps_every_law(kind: str, law: str) -> None:
    """Feeding in pieces is feeding at once, and states are small and stay as they are."""
    hold("detector", kind, laws=[law])


@pytest.mark.parametrize(("law", "wrong"), [
    ("a_stream_may_be_cut_anywhere", Forgetful), ("a_stream_may_be_cut_anywhere", EveryHundred), ("states_are_small_and_stay", Global),
])  # fmt: skip
def test_the_law_has_teeth(law: str, wrong: Callable[[], Detector]) -> None:
    """A detector that starts anew with every piece, one that counts by pieces, and one that draws globally are rejected."""
    with pytest.raises(Broken, match=f"breaks the law '{law}'"):
        ask(LAWS["detector"][law], wrong)


def test_kswin_draws_from_its_key_alone() -> None:
    """The windows that KSWIN draws follow from the key: the same key, the same alarms; another key, others."""
    losses = NOISE[0, :500] + np.repeat([0.0, 0.05, 0.0, 0.2, 0.0], 100)
    runs = [alarms(made("kswin", alpha=0.05), losses, seed=seed)[1] for seed in (1, 1, 2)]

    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"kswin"}))
def test_alarms_are_rivers(kind: str) -> None:
    """The wrapped detector raises the alarms of river's own, fed one by one, with its defaults."""
    from river import drift

    rivers: dict[str, Callable[[], Any]] = {
        "adwin": drift.ADWIN, "page_hinkley": drift.PageHinkley, "ddm": drift.binary.DDM, "eddm": drift.binary.EDDM,
        "hddm_a": drift.binary.HDDMA, "hddm_w": drift.binary.HDDMW,
    }  # fmt: skip
    both_ways = {"only_worse": False} if kind in ("adwin", "page_hinkley") else {}
    errors = np.concatenate([STREAMS[2], STREAMS[3, :1500]])  # Up, and down again.
    oracle, expected = rivers[kind](), []
    for i, error in enumerate(errors.tolist()):
        oracle.update(int(error))
        if oracle.drift_detected:
            expected.append(i)

    assert len(expected) > 0
    assert expected == alarms(made(kind, **both_ways), errors)[1]


def within(detector: Detector, low: float, high: float) -> bool:
    """Whether each of the ten drifts is noticed after *low* to *high* examples on average, without a false alarm before."""
    scores = [detection_scores(np.array(alarms(detector, errors)[1], float), np.array([float(DRIFT)])) for errors in STREAMS]
    delays = [score.delays_s[0] for score in scores]
    return low <= float(np.mean(delays)) <= high and sum(score.false_alarms for score in scores) == 0


@pytest.mark.parametrize(("kind", "low", "high"), [("adwin", 47, 143), ("page_hinkley", 70, 226)])
def test_a_rise_of_the_error_from_two_to_five_in_ten_is_noticed(kind: str, low: float, high: float) -> None:
    """ADWIN needs 47 to 143 examples on average, Page-Hinkley 70 to 226, and neither raises a false alarm."""
    assert within(made(kind), low, high)


@pytest.mark.parametrize("wrong", [Never(), EveryHundred()])
def test_silence_and_noise_are_no_detectors(wrong: Detector) -> None:
    """The same check rejects a detector that never speaks, and one that always does."""
    assert not within(wrong, 0, 1000)


@pytest.mark.parametrize("kind", ["adwin", "page_hinkley"])
def test_a_model_that_gets_better_is_no_drift(kind: str) -> None:
    """A fresh model's error falls from 0.9 to 0.1; that raises alarms only if change both ways is asked for."""
    falling = NOISE[0] < 0.1 + 0.8 * np.exp(-np.arange(2 * DRIFT) / 300)

    assert [] == alarms(made(kind), falling)[1]
    assert [] != alarms(made(kind, only_worse=False), falling)[1]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_detector_cannot_read_is_refused(kind: str) -> None:
    """NaN is refused by all, losses by those that count errors, in one line that says so."""
    detector = made(kind)
    with pytest.raises(RunError, match="diverged"):
        detector.feed(detector.start(Key(0)), np.array([0.0, np.nan]))
    if not detector.takes_losses:
        with pytest.raises(RunError, match="not losses"):
            detector.feed(detector.start(Key(0)), np.array([0.0, 0.7]))
    assert 0 == len(detector.feed(detector.start(Key(0)), np.array([]))[1])


def test_kswin_needs_room_to_draw_from() -> None:
    """KSWIN compares windows of one size, so the smaller is at most half the larger."""
    with pytest.raises(ScenarioError, match="stat_size = 60: must be at most half of window_size = 100"):
        kswin(stat_size=60)


@pytest.mark.parametrize(
    ("alarms_s", "drifts_s", "horizon_s", "delays_s", "false_alarms"),
    [
        ([], [10], np.inf, [np.nan], 0),
        ([10], [10], np.inf, [0.0], 0),
        ([3, 9], [], np.inf, [], 2),
        ([3, 12, 13, 25], [10, 20], np.inf, [2.0, 5.0], 2),
        ([25], [10, 20], np.inf, [np.nan, 5.0], 0),  # Noticed after the next drift: it is the next that was noticed.
        ([20], [10, 20], np.inf, [np.nan, 0.0], 0),
        ([18, 26], [10, 20], 7.0, [np.nan, 6.0], 1),  # Eight late: by then it is an alarm about nothing.
        ([26, 3], [20, 10], np.inf, [np.nan, 6.0], 1),
    ],
)
def test_detection_scores_by_hand(
    alarms_s: list[float], drifts_s: list[float], horizon_s: float, delays_s: list[float], false_alarms: int
) -> None:
    """Each alarm is the first after a drift, or false; each drift has a delay, or was missed."""
    scores = detection_scores(np.array(alarms_s, float), np.array(drifts_s, float), horizon_s)

    assert np.array_equal(delays_s, scores.delays_s, equal_nan=True)
    assert false_alarms == scores.false_alarms == len(alarms_s) - int(np.isfinite(delays_s).sum())


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({}, (1.0, 1.0, 0, None, True)),
        ({"buffer": "reset"}, (0.0, 1.0, 0, None, True)),
        ({"buffer": "shrink"}, (0.5, 1.0, 0, None, True)),
        ({"buffer": "shrink", "keep": 0.2, "lr_factor": 2.0}, (0.2, 2.0, 50, None, True)),
        ({"lr_factor": 2.0, "lr_steps": 8, "replay_share": 0.8, "tell": False}, (1.0, 2.0, 8, 0.8, False)),
    ],
)
def test_reactions_are_read_from_their_table(table: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """A table of settings becomes the reaction that it describes, defaults filled in."""
    r = adapt(**table)

    assert expected == (r.keep_share, r.lr_factor, r.lr_steps, r.replay_share, r.tell)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"keep": 0.5}, "keep = 0.5: has no effect with buffer = 'keep'"),
        ({"buffer": "reset", "keep": 0.5}, "goes with 'shrink'"),
        ({"lr_steps": 10}, "lr_steps = 10: has no effect without lr_factor"),
        ({"lr_factor": 2.0, "lr_steps": 0}, "leaves lr_factor = 2.0 no step"),
    ],
)
def test_settings_without_effect_are_refused(table: dict[str, Any], said: str) -> None:
    """What a reader wrote and would wait for in vain is an error that names the setting."""
    with pytest.raises(ScenarioError, match=said):
        adapt(**table)
