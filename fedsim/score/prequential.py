"""Prequential scores: every example is predicted before anybody trains on it, and the score follows the stream.

Reads frames with a row per tested example, in order of testing:

- ``client``, ``time_s`` (when it was tested), ``y``, ``prediction`` (whole numbers from 0; -1 is no answer), ``loss``;
- ``labelled_s``, when its label became known, where labels are delayed. Without the column a label is known once its
  example has been tested.

Other columns are left alone. The baselines know what a model could have known: at a test, the labels of examples that
this client tested at an earlier moment and that had become known by then. So a mini-batch, which is tested at one
moment, tells nothing about itself. What gave no answer is not scored, as river has it.

References: Gama et al. 2013, "On evaluating stream learning algorithms" (prequential, fading factors); Bifet et al.
2015, "Efficient online evaluation of big data stream classifiers" (kappa-M); Zliobaite et al. 2015 (kappa-temporal).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from math import log
from typing import Any, Protocol, TypeAlias

import numpy as np
import pandas as pd

from fedsim.core.types import BoolArray, FloatArray, Frame, IntArray

Running: TypeAlias = Callable[[FloatArray], FloatArray]
"""Sums along a stream, (n,) -> (n,): a score is such a sum of what was won over the same sum of what was played."""

NO_ANSWER = -1
WINDOW = 1000
FADING = 0.999
SCORES = ("accuracy", "log_loss", "kappa", "kappa_m", "kappa_temporal", "majority", "no_change")
"""The columns of ``curves`` and ``summary``; the last two are the accuracies of the baselines."""


def cumulative(values: FloatArray) -> FloatArray:
    """Return the sums of everything so far. Shapes: (n,) -> (n,)."""
    return np.cumsum(values)


def windowed(window: int = WINDOW) -> Running:
    """Return the function that sums the last *window* tested examples.

    >>> windowed(2)(np.array([1.0, 0.0, 1.0, 1.0])).tolist()
    [1.0, 1.0, 1.0, 2.0]
    """

    def sums(values: FloatArray) -> FloatArray:
        total = np.cumsum(values)
        return np.concatenate([total[:window], total[window:] - total[:-window]])

    return sums


def fading(factor: float = FADING) -> Running:
    """Return the function that sums with weights which fade: S_t = L_t + *factor* S_{t-1} (Gama et al. 2013).

    >>> fading(0.5)(np.array([1.0, 0.0, 1.0])).tolist()
    [1.0, 0.5, 1.25]
    """

    def sums(values: FloatArray) -> FloatArray:
        return pd.Series(values).ewm(alpha=1.0 - factor, adjust=True).sum().to_numpy()

    return sums


def baselines(frame: Frame) -> tuple[IntArray, IntArray]:
    """Return what no-change and majority predict for each row of *frame*; -1 where no label is known yet.

    No-change repeats the label that this client learned last, majority the one it has learned most often (of equals
    the one seen first). Both are exactly river's NoChangeClassifier and PriorClassifier, delays included. Each client
    knows its own labels only. Shapes: (n,), (n,).

    >>> frame = pd.DataFrame({"client": 0, "time_s": [0.0, 1.0, 2.0, 3.0], "y": [4, 4, 7, 7]})
    >>> [predicted.tolist() for predicted in baselines(frame)]
    [[-1, 4, 4, 7], [-1, 4, 4, 4]]
    """
    y, time_s = _column(frame, "y"), _column(frame, "time_s", np.float64)
    labelled_s = _column(frame, "labelled_s", np.float64) if "labelled_s" in frame else time_s
    no_change, majority = np.full(len(y), NO_ANSWER), np.full(len(y), NO_ANSWER)
    for _, rows in _by_client(frame):
        learned, known = _known(time_s[rows], labelled_s[rows])
        labels, some = y[rows][learned], known > 0
        no_change[rows[some]] = labels[known[some] - 1]
        majority[rows[some]] = _leaders(labels)[known[some] - 1]
    return no_change, majority


def curves(frame: Frame, running: Running | None = None) -> Frame:
    """Return the scores after each row of *frame*: ``time_s`` and the columns SCORES, NaN where undefined.

    *running* is ``cumulative``, ``windowed(...)`` (the default) or ``fading(...)``. The rows of all clients count as
    one stream; select a client's rows first to follow that client. Kappa is chance-corrected by the marginals;
    kappa-M and kappa-temporal are (accuracy - b) / (1 - b), b the accuracy of majority and of no-change. A loss that is
    not finite makes the log loss NaN for as long as it counts.
    """
    running = running or windowed()
    y, prediction = _column(frame, "y"), _column(frame, "prediction")
    answered, right = prediction != NO_ANSWER, prediction == y
    no_change, majority = baselines(frame)
    accuracy = _means(right, answered, running)
    no_change_right = _means(no_change == y, no_change != NO_ANSWER, running)
    majority_right = _means(majority == y, majority != NO_ANSWER, running)
    expected = np.zeros(len(y))
    for label in np.unique(np.concatenate([y[answered], prediction[answered]])):
        expected += _means(y == label, answered, running) * _means(prediction == label, answered, running)
    scores = {
        "accuracy": accuracy,
        "log_loss": _means(_column(frame, "loss", np.float64), answered, running),
        "kappa": _beyond(accuracy, expected),
        "kappa_m": _beyond(accuracy, majority_right),
        "kappa_temporal": _beyond(accuracy, no_change_right),
        "majority": majority_right,
        "no_change": no_change_right,
    }
    return pd.DataFrame({"time_s": _column(frame, "time_s", np.float64), **scores})


def summary(frame: Frame) -> Frame:
    """Return the scores over all of *frame*: a row per client, then their mean, their worst tenth, and all pooled.

    Columns: ``scope`` ("client", "mean", "worst tenth", "pooled"), ``client`` (-1 where it is none), ``examples`` tested,
    and SCORES. The worst tenth are the clients of the lowest accuracy, at least one; all their scores are averaged. A
    client whose baseline never answered has no kappa of that kind, and does not enter its mean.
    """
    y, prediction = _column(frame, "y"), _column(frame, "prediction")
    no_change, majority = baselines(frame)
    loss = _column(frame, "loss", np.float64)
    table: list[dict[str, Any]] = []
    everything = (NO_ANSWER, np.arange(len(y)))
    for client, rows in [*_by_client(frame), everything]:
        scores = _totals(y[rows], prediction[rows], loss[rows], majority[rows], no_change[rows])
        table.append({"scope": "client", "client": client, "examples": len(rows), **scores})
    clients, pooled = pd.DataFrame(table[:-1]), {**table[-1], "scope": "pooled"}
    if clients.empty:
        return pd.DataFrame([pooled])
    worst = clients.sort_values(["accuracy", "client"]).head(-(-len(clients) // 10))
    means = [_mean_of(group, scope) for group, scope in ((clients, "mean"), (worst, "worst tenth"))]
    return pd.DataFrame([*table[:-1], *means, pooled])


class Learner(Protocol):
    """What ``prequential`` drives: any of river's classifiers, for one."""

    def predict_one(self, x: Any, /) -> Any:
        """Return the label it expects, or None when it has no answer."""
        ...

    def learn_one(self, x: Any, y: Any, /) -> Any:
        """Learn from one example."""
        ...


def prequential(model: Learner, stream: Iterable[tuple[Any, Any]], *, delay: int = 0, batch: int = 1) -> Frame:
    """Return what *model* predicted along *stream*, testing first and training after: a frame as above, client 0.

    The moment of example i is i. Each mini-batch of *batch* is predicted whole, at the moment of its first example,
    after every label known by then was learned, in the order in which they became known; the label of example i is
    known at i + *delay*. With ``batch=1`` this is ``river.evaluate.progressive_val_score``. Labels that are no whole
    numbers are numbered as they appear. The loss is -log of the probability given to the label, NaN where the model
    gives none.
    """
    rows: list[tuple[int, int, int, int, float]] = []
    waiting: deque[tuple[int, Any, Any]] = deque()
    codes: dict[Any, int] = {}
    for i, (x, y) in enumerate(stream):
        if i % batch == 0:
            while waiting and waiting[0][0] <= i:
                _, old, label = waiting.popleft()
                model.learn_one(old, label)
        answer = model.predict_one(x)
        rows.append((i - i % batch, i + delay, _code(y, codes), _code(answer, codes), _loss(model, x, y)))
        waiting.append((i + delay, x, y))
    for _, old, label in waiting:
        model.learn_one(old, label)
    frame = pd.DataFrame(rows, columns=["time_s", "labelled_s", "y", "prediction", "loss"])
    return frame.astype({"time_s": float, "labelled_s": float}).assign(client=0)


def _code(label: Any, codes: dict[Any, int]) -> int:
    if label is None:
        return NO_ANSWER
    return int(label) if isinstance(label, bool | int | np.integer | np.bool_) else codes.setdefault(label, len(codes))


def _loss(model: Learner, x: Any, y: Any) -> float:
    try:
        given = getattr(model, "predict_proba_one", lambda _: {})(x)
    except NotImplementedError:  # What river's classifiers without probabilities raise.
        given = {}
    return -log(min(max(given.get(y, 0.0), 1e-15), 1 - 1e-15)) if given else float("nan")  # Clipped as river does.


def _known(time_s: FloatArray, labelled_s: FloatArray) -> tuple[IntArray, IntArray]:
    """Return the order in which one client learns its labels, and how many it has learned at each test."""
    if (np.diff(time_s) < 0).any():
        raise ValueError("a client's rows must be in order of testing: time_s goes back")
    moments, moment = np.unique(time_s, return_inverse=True)
    learned = np.argsort(np.maximum(labelled_s, time_s), kind="stable")
    usable = np.maximum(np.searchsorted(moments, labelled_s), moment + 1)[learned]  # The first moment that may use it.
    return learned, np.searchsorted(usable, moment, side="right")


def _leaders(labels: IntArray) -> IntArray:
    """Return the commonest label of each prefix; of equals the one seen first. Shapes: (n,) -> (n,)."""
    found, first, code = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))  # 0 for the label seen first.
    by_label = np.argsort(code, kind="stable")
    starts = np.cumsum(np.bincount(code, minlength=len(found))) - np.bincount(code, minlength=len(found))
    count = np.empty(len(labels), dtype=np.int64)
    count[by_label] = np.arange(len(labels)) - starts[code[by_label]] + 1
    # A label's count only grows, so the best of all so far is a running maximum of (count, seen earlier).
    best = np.maximum.accumulate(count * len(found) + len(found) - 1 - rank[code])
    return found[np.argsort(first)][len(found) - 1 - best % max(1, len(found))]


def _means(values: FloatArray | BoolArray, scored: BoolArray, running: Running) -> FloatArray:
    finite = np.isfinite(values)
    won, played = running(np.where(scored & finite, values, 0.0)), running(scored.astype(np.float64))
    mean = np.divide(won, played, out=np.full(len(won), np.nan), where=played > 0)
    if not finite[scored].all():  # A model that diverged must not look better for it.
        mean[running((scored & ~finite).astype(np.float64)) > 0] = np.nan
    return mean


def _beyond(reached: FloatArray, by: FloatArray) -> FloatArray:
    """Return the share of what *by* leaves to win that *reached* wins; NaN where it leaves nothing."""
    return np.divide(reached - by, 1.0 - by, out=np.full(len(reached), np.nan), where=by < 1.0)


MANY = 1_000_000
"""Classes beyond which only those that occur are counted."""


def _totals(y: IntArray, prediction: IntArray, loss: FloatArray, majority: IntArray, no_change: IntArray) -> dict[str, float]:
    answered = prediction != NO_ANSWER
    accuracy = _share(prediction, y)
    true, said = y, prediction
    if max(y.max(initial=0), prediction.max(initial=0)) >= MANY:  # A damaged folder may hold any number.
        true, said = np.unique(np.stack([y, prediction]), return_inverse=True)[1].reshape(2, -1)
    size = int(max(true.max(initial=0), said.max(initial=0))) + 1
    counts = [np.bincount(labels[answered], minlength=size) / max(1, answered.sum()) for labels in (true, said)]
    by = [float(counts[0] @ counts[1]), _share(majority, y), _share(no_change, y)]
    kappas = _beyond(np.full(3, accuracy), np.array(by)).tolist()
    mean_loss = float(loss[answered].mean()) if np.isfinite(loss[answered]).all() and answered.any() else float("nan")
    return dict(zip(SCORES, [accuracy, mean_loss, *kappas, by[1], by[2]], strict=True))


def _share(prediction: IntArray, y: IntArray) -> float:
    answered = prediction != NO_ANSWER
    return float((prediction == y)[answered].mean()) if answered.any() else float("nan")


def _mean_of(clients: Frame, scope: str) -> dict[str, Any]:
    means = {name: float(clients[name].mean(skipna=name != "log_loss")) for name in SCORES}
    return {"scope": scope, "client": NO_ANSWER, "examples": int(clients.examples.sum()), **means}


def _by_client(frame: Frame) -> Iterator[tuple[int, IntArray]]:
    """Yield each client and its rows, in order."""
    client = _column(frame, "client")
    order = np.argsort(client, kind="stable")
    found, starts = np.unique(client[order], return_index=True)
    yield from zip(found.tolist(), np.split(order, starts[1:]), strict=False)


def _column(frame: Frame, name: str, dtype: Any = np.int64) -> Any:
    return frame[name].to_numpy(dtype=dtype)
