"""From figures to words: the grades, by stated rules, and what the textbook's table says of the same cell. Measures nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedsim.studies.measures import Estimate
from fedsim.studies.plan import Row

Verdict = Literal["agrees", "disagrees", "undecided", "no claim"]

MEMORY = ("very low", "low", "moderate", "high", "very high")
SPEED = ("slow", "rather slow", "moderate", "rather fast", "fast")
STABILITY = ("low", "moderate", "high", "very high")
GENERALISATION = ("poor", "good")
UTILISATION = ("poor", "fair", "moderate", "good", "excellent")

TEXTBOOK: Mapping[str, Mapping[str, str]] = {
    "1 to 8": {"memory": "very low", "speed": "slow", "stability": "low", "generalisation": "good", "utilisation": "poor"},
    "9 to 64": {"memory": "low", "speed": "moderate", "stability": "moderate", "generalisation": "good", "utilisation": "fair"},
    "65 to 512": {"memory": "moderate", "speed": "rather fast", "stability": "high", "generalisation": "good", "utilisation": "good"},
    "above 512": {"memory": "high", "speed": "fast", "stability": "very high", "generalisation": "poor", "utilisation": "excellent"},
    "full": {"memory": "very high", "speed": "fast", "stability": "very high", "generalisation": "poor", "utilisation": "excellent"},
    "dynamic": {"time to target": "optimised"},
}
"""The table that textbooks print, by the size that a row is asked for; what they say of single cells in other words is put in these."""

RULES: Mapping[str, str] = {
    "memory": (
        "Bytes of a training step over those of a batch of 1, counted; five equal parts of the logarithm between the least and the most of"
        " these rows, and very low below twice the least."
    ),
    "speed": (
        "Examples per second of a training step on this computer, one thread; five equal parts of the logarithm between the slowest and"
        " the fastest of these rows."
    ),
    "stability": (
        "|G|^2 / (tr(Sigma) / B) of single examples' gradients, at 10 % of training: below 0.1 low, below 1 moderate, below 10 high, else"
        " very high. A batch that is all a client has leaves out nothing: very high."
    ),
    "generalisation": (
        "Test score at the end at the tuned rate: poor where it is worse than the best row's by more than 2 standard errors of the paired"
        " difference and by more than 0.3 points (0.3 % of a loss); good otherwise."
    ),
    "utilisation": (
        "Operations per second of a training step over those of a large matrix product on this computer, one thread: poor below a fifth,"
        " fair below two, moderate below three, good below four, else excellent."
    ),
    "time to target": "Optimised where virtual time to the target, without tuning, is within 5 % of the best size's; ordinary otherwise.",
}
"""How a number becomes a grade, by column."""

WITHIN = 1.05
"""How near to the best size a policy must come, in time to target."""
POINTS = 0.003
"""The difference of a test score that is worth the word poor: 0.3 points of a share, 0.3 % of a loss."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of the table: its *estimate*, its *grade*, the *textbook*'s, and whether they agree. No grade: not measured."""

    estimate: Estimate
    grade: str
    textbook: str
    verdict: Verdict


def group(row: Row) -> str:
    """Return which of the textbook's rows *row* is, by what it was asked for.

    >>> [group(Row(label, 1, 1.0)) for label in ("8", "9", "1024", "full")]
    ['1 to 8', '9 to 64', 'above 512', 'full']
    """
    if row.label in TEXTBOOK:
        return row.label
    size = int(row.label)
    return "1 to 8" if size <= 8 else "9 to 64" if size <= 64 else "65 to 512" if size <= 512 else "above 512"


def judged(estimate: Estimate, grade: Callable[[float], str], scale: Sequence[str], textbook: str) -> Cell:
    """Return the cell of a figure that is graded on a *scale*.

    The textbook agrees where the whole interval has its grade, disagrees where no part of it has, and is undecided between; with one
    seed nobody knows the interval, and nothing is decided.
    """
    if math.isnan(estimate.mean):
        return Cell(estimate, "", textbook, "undecided" if textbook else "no claim")
    found = grade(estimate.mean)
    if not textbook:
        return Cell(estimate, found, "", "no claim")
    if math.isinf(estimate.mean):
        return Cell(estimate, found, textbook, "agrees" if found == textbook else "disagrees")
    if math.isnan(estimate.half):
        return Cell(estimate, found, textbook, "undecided")
    low, high = sorted(scale.index(grade(end)) for end in estimate.ends)
    place = scale.index(textbook)
    verdict: Verdict = "disagrees" if not low <= place <= high else "agrees" if low == high else "undecided"
    return Cell(estimate, found, textbook, verdict)


def memory(ratio: float, most: float) -> str:
    """Return the grade of *ratio* times the memory of the smallest batch, where the largest takes *most* times as much.

    >>> [memory(r, 1000.0) for r in (1.0, 1.9, 5.0, 40.0, 200.0, 1000.0)]
    ['very low', 'very low', 'low', 'moderate', 'high', 'very high']
    """
    return MEMORY[0] if ratio < 2 else MEMORY[_fifth(ratio, 1.0, most)]


def speed(rate: float, slowest: float, fastest: float) -> str:
    """Return the grade of *rate* among rows between *slowest* and *fastest*."""
    return SPEED[_fifth(rate, slowest, fastest)]


def _fifth(value: float, low: float, high: float) -> int:
    if not value > low or not high > low:
        return 0
    return min(4, int(5 * math.log(value / low) / math.log(high / low)))


def stability(snr: float) -> str:
    """Return the grade of a signal-to-noise ratio.

    >>> [stability(snr) for snr in (0.01, 0.5, 3.0, 50.0)]
    ['low', 'moderate', 'high', 'very high']
    """
    return STABILITY[sum(snr >= bound for bound in (0.1, 1.0, 10.0))]


def utilisation(share: float) -> str:
    """Return the grade of a share of the peak.

    >>> utilisation(0.05), utilisation(0.85)
    ('poor', 'excellent')
    """
    return UTILISATION[max(0, min(4, int(5 * share)))]


def generalisation(scores: Mapping[int, float], best: Mapping[int, float], upwards: bool, loss: bool, textbook: str) -> Cell:
    """Return the cell of test *scores* by seed beside those of the *best* row, which this may be.

    Poor beyond 2 standard errors of the paired difference and beyond POINTS; undecided where the difference is that large, but within
    the errors, or where there is one seed.
    """
    seeds = sorted(scores.keys() & best.keys())
    estimate = Estimate.of([scores[seed] for seed in sorted(scores)])
    if not seeds or math.isnan(estimate.mean):
        return Cell(estimate, "", textbook, "undecided" if textbook else "no claim")
    behind = Estimate.of([(best[s] - scores[s]) * (1 if upwards else -1) for s in seeds])
    worth = POINTS * abs(Estimate.of([best[s] for s in seeds]).mean) if loss else POINTS
    if len(seeds) == 1:
        found = "poor" if behind.mean > worth else "good"
        return Cell(estimate, found, textbook, "undecided" if textbook else "no claim")
    error = _standard_error([(best[s] - scores[s]) for s in seeds])
    poor, seems = behind.mean > worth and behind.mean > 2 * error, behind.mean > worth or behind.mean + 2 * error > worth
    found = "poor" if poor else "good"
    if not textbook:
        return Cell(estimate, found, "", "no claim")
    if not poor and seems and behind.mean != 0.0:
        return Cell(estimate, found, textbook, "undecided")
    return Cell(estimate, found, textbook, "agrees" if found == textbook else "disagrees")


def _standard_error(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def dynamic(times: Mapping[int, float], best: Mapping[int, float], textbook: str) -> Cell:
    """Return the cell of a policy's virtual times to the target by seed, untuned, beside those of the *best* size, untuned."""
    estimate = Estimate.of(list(times.values()))
    ratio = Estimate.of([times[seed] / best[seed] for seed in sorted(times.keys() & best.keys()) if best[seed] > 0])
    if math.isnan(estimate.mean) or math.isnan(ratio.mean):
        return Cell(estimate, "", textbook, "undecided")
    cell = judged(ratio, lambda r: "optimised" if r <= WITHIN else "ordinary", ("optimised", "ordinary"), textbook)
    return Cell(estimate, cell.grade, textbook, cell.verdict)
