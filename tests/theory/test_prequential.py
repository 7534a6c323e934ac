"""Prequential scores against river's own loop, metrics and baselines, and against definitions written out the slow way."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedsim.score import prequential as scores
from fedsim.score.prequential import baselines, cumulative, curves, fading, prequential, summary, windowed

river = pytest.importorskip("river", reason="needs river, the oracle of these tests")
from river import datasets, dummy, evaluate, linear_model, metrics, optim, preprocessing  # noqa: E402

SEEDS = range(4)


def sequence(seed: int, n: int = 400, classes: int = 4, clients: int = 3, late_s: float = 0.0) -> Any:
    """Labels that stick, predictions that are often right, some mini-batches tested at one moment, labels *late_s* late."""
    r = np.random.default_rng(seed)
    y = r.integers(0, classes, n)
    stay = np.flatnonzero(r.random(n) < 0.5)
    y[stay] = y[np.maximum(0, stay - clients)]
    prediction = np.where(r.random(n) < 0.6, y, r.integers(0, classes, n))
    time_s = np.cumsum(r.random(n) < 0.7).astype(float)
    labelled_s = time_s + r.exponential(late_s, n) if late_s else time_s
    return pd.DataFrame(
        {"client": r.integers(0, clients, n), "time_s": time_s, "labelled_s": labelled_s, "y": y, "prediction": prediction,
         "loss": r.exponential(1.0, n)}
    )  # fmt: skip


def river_answers(frame: Any, make: Callable[[], Any]) -> np.ndarray:
    """What river's *make()* predicts for each row, told each client's labels as they become known: one at a time, slowly."""
    found = np.full(len(frame), -1)
    for client in frame.client.unique():
        model = make()
        own = frame[frame.client == client]
        waiting: list[tuple[float, int]] = []
        for now in own.time_s.unique():
            due = [item for item in sorted(waiting) if item[0] <= now]
            waiting = [item for item in waiting if item not in due]
            for _, row in due:
                model.learn_one({}, int(frame.y[row]))
            for row in own.index[own.time_s == now]:
                answer = model.predict_one({})
                found[row] = -1 if answer is None else answer
                waiting.append((max(now, frame.labelled_s[row]), row))
    return found


def peeking(frame: Any) -> tuple[np.ndarray, np.ndarray]:
    """A wrong pair of baselines: they know the label just before, whether or not anybody could have known it."""
    before = frame.groupby("client").y.shift(fill_value=-1).to_numpy()
    return before, before


@pytest.mark.parametrize("late_s", [0.0, 8.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_baselines_are_rivers(seed: int, late_s: float) -> None:
    """No-change and majority predict what river's dummies predict, told each label when it is known; peeking does not."""
    frame = sequence(seed, late_s=late_s)
    expected = [river_answers(frame, make) for make in (dummy.NoChangeClassifier, dummy.PriorClassifier)]

    assert all(np.array_equal(oracle, ours) for oracle, ours in zip(expected, baselines(frame), strict=True))
    assert not np.array_equal(expected[0], peeking(frame)[0])


def test_no_change_on_elec2(data_folder: Path) -> None:
    """On Elec2 no-change is right 0.853303 of the time, as river publishes."""
    path = data_folder / "streams" / "elec.csv.gz"
    if not path.is_file():
        pytest.skip("needs streams/elec.csv.gz below $FEDSIM_DATA")
    with gzip.open(path, "rt") as file:
        y = np.loadtxt(file, delimiter=",", skiprows=1, usecols=6).astype(int)
    frame = pd.DataFrame({"client": 0, "time_s": np.arange(len(y)) * 1800.0, "y": y, "prediction": y, "loss": 0.0})

    assert 0.853303 == round(float(summary(frame).no_change.iloc[-1]), 6)


def phishing_model() -> Any:
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(5e-3))


def test_phishing_is_rivers_number() -> None:
    """Our loop around river's scaled logistic regression gives river's 0.8872 on Phishing, to the last digit."""
    frame = prequential(phishing_model(), datasets.Phishing())

    assert 0.8872 == summary(frame).accuracy.iloc[-1]


@pytest.mark.parametrize("delay", [0, 1, 25, 2000])
def test_the_loop_is_rivers_with_delays(delay: int) -> None:
    """Accuracy, kappa and log loss of our loop are those of river's progressive validation, labels delayed or not."""
    by_labels = metrics.Accuracy() + metrics.CohenKappa()
    evaluate.progressive_val_score(datasets.Phishing(), phishing_model(), by_labels, delay=delay)
    by_chances = evaluate.progressive_val_score(datasets.Phishing(), phishing_model(), metrics.LogLoss(), delay=delay)
    oracle = [*(metric.get() for metric in by_labels), by_chances.get()]
    ours = summary(prequential(phishing_model(), datasets.Phishing(), delay=delay)).iloc[-1]

    assert oracle == pytest.approx([ours.accuracy, ours.kappa, ours.log_loss], abs=1e-12)


def test_a_mini_batch_is_predicted_whole_before_it_is_learned() -> None:
    """With batches of 5, a no-change model answers all five with the label before the batch."""
    y = np.random.default_rng(0).integers(0, 3, 40)
    frame = prequential(dummy.NoChangeClassifier(), (({}, int(label)) for label in y), batch=5)

    assert np.repeat([-1, *y[4:-1:5]], 5).tolist() == frame.prediction.tolist()
    assert frame.prediction.tolist() == baselines(frame)[0].tolist()


def test_words_are_numbered_as_they_appear() -> None:
    """Labels may be words: they get numbers in the order in which they are seen."""
    frame = prequential(dummy.NoChangeClassifier(), (({}, word) for word in ("up", "down", "down")))

    assert ([0, 1, 1], [-1, 0, 1]) == (frame.y.tolist(), frame.prediction.tolist())


@pytest.mark.parametrize("seed", SEEDS)
def test_cumulative_and_windowed_curves_are_rivers(seed: int) -> None:
    """Accuracy and kappa after every example equal river's metrics, over all so far and over a rolling window."""
    frame = sequence(seed)
    for running, wrap in ((cumulative, lambda metric: metric), (windowed(50), lambda metric: river.utils.Rolling(metric, 50))):
        ours = curves(frame, running)
        for name, metric in (("accuracy", wrap(metrics.Accuracy())), ("kappa", wrap(metrics.CohenKappa()))):
            oracle = []
            for y, prediction in zip(frame.y.tolist(), frame.prediction.tolist(), strict=True):
                metric.update(y, prediction)
                oracle.append(metric.get())
            defined = ours[name].notna().to_numpy()
            assert np.array(oracle)[defined] == pytest.approx(ours[name].to_numpy()[defined], abs=1e-9)
            assert defined[20:].all()


def test_fading_curves_follow_their_recursion() -> None:
    """The fading accuracy and loss are S_t / B_t with S_t = L_t + a S_{t-1} and B_t = 1 + a B_{t-1}."""
    frame, factor = sequence(1), 0.97
    won = np.stack([frame.prediction == frame.y, frame.loss])
    s, b, expected = np.zeros(2), 0.0, []
    for gained in won.T:
        s, b = gained + factor * s, 1 + factor * b
        expected.append(s / b)

    assert np.array(expected) == pytest.approx(curves(frame, fading(factor))[["accuracy", "log_loss"]].to_numpy(), abs=1e-12)


@pytest.mark.parametrize("late_s", [0.0, 8.0])
def test_the_last_cumulative_score_is_the_summary(late_s: float) -> None:
    """Two ways to one number: the end of the cumulative curves, and the pooled row of the summary."""
    frame = sequence(2, late_s=late_s)
    frame.loc[::7, "prediction"] = -1

    ours = summary(frame).iloc[-1][list(scores.SCORES)].astype(float)
    assert curves(frame, cumulative).iloc[-1][list(scores.SCORES)].to_numpy() == pytest.approx(ours.to_numpy(), abs=1e-12)


def test_kappas_are_nought_for_their_own_baseline_and_one_for_the_truth() -> None:
    """Predicting what no-change (majority) predicts has kappa-temporal (kappa-M) 0; never being wrong has 1."""
    frame = sequence(3, clients=1)
    no_change, majority = baselines(frame)

    assert 0.0 == summary(frame.assign(prediction=no_change)).kappa_temporal.iloc[-1]
    assert 0.0 == summary(frame.assign(prediction=majority)).kappa_m.iloc[-1]
    assert [1.0] * 3 == summary(frame.assign(prediction=frame.y)).iloc[-1][["kappa", "kappa_m", "kappa_temporal"]].tolist()


def test_summary_by_hand() -> None:
    """Twenty clients of ten examples each; client c is right c / 2 times of ten: mean 0.475 and worst tenth 0.025."""
    right = np.arange(10) < (np.arange(20) // 2 + np.arange(20) % 2)[:, None]
    y = np.tile(np.arange(10) % 2, (20, 1))
    frame = pd.DataFrame(
        {"client": np.repeat(np.arange(20), 10), "time_s": np.tile(np.arange(10.0), 20), "y": y.ravel(),
         "prediction": np.where(right, y, 1 - y).ravel(), "loss": np.repeat(np.arange(20.0), 10)}
    ).sample(frac=1, random_state=0).sort_values("time_s", kind="stable")  # fmt: skip
    table = summary(frame).set_index("scope")

    assert ["client"] * 20 + ["mean", "worst tenth", "pooled"] == table.index.tolist()
    assert [0.5, 0.05, 0.5] == pytest.approx(table.accuracy.iloc[-3:].tolist())
    assert [9.5, 0.5, 9.5] == pytest.approx(table.log_loss.iloc[-3:].tolist())
    assert [0.0] * 3 == table.no_change.iloc[-3:].tolist()  # Labels alternate: the last one is always wrong.


def test_a_diverged_model_does_not_look_better_for_it() -> None:
    """A loss that is not a number makes the log loss NaN, of its client, the mean and the whole, and leaves accuracy."""
    frame = sequence(0)
    frame.loc[frame.client[frame.client == 1].index[5], "loss"] = np.inf
    table = summary(frame)

    assert [False, True, False, True] == table.log_loss.isna().tolist()[:4]
    assert table.accuracy.notna().all()
    assert curves(frame, windowed(20)).log_loss.isna().sum() == 20


def test_time_that_goes_back_is_refused() -> None:
    """Rows out of order would silently give baselines knowledge of the future; they are refused."""
    with pytest.raises(ValueError, match="time_s goes back"):
        summary(sequence(0).iloc[::-1].reset_index(drop=True))


def test_a_hundred_thousand_examples_take_well_under_a_second() -> None:
    """100,000 examples of 300 clients are summed up in a fraction of a second of processor time."""
    frame = sequence(0, n=100_000, classes=10, clients=300, late_s=30.0)
    begun = time.process_time()
    summary(frame)
    curves(frame, fading())

    assert time.process_time() - begun < 1.0
