"""Advice: what to try next follows from noise scales, with how sure it is; nothing is advised where nothing was seen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_docs import LINES, documented

import fedsim
from fedsim.score import advice
from fedsim.score.noise import Scale

WATCHED: dict[str, Any] = {"monitor": {"every": 1, "noise": 1.0}, "server.rounds": 4}


def hint(now: float, value: float, low: float, high: float, most: float = 1e6) -> advice.Hint:
    return advice._hint("training.batch_size", now, Scale(value, low, high, 40), most, "noise", "steps", "examples")


@pytest.mark.parametrize(("given", "follows"), [
    ((10, 160, 120, 210), (128, "clear")),  # Far above: to the scale, as a power of two.
    ((10, 160, 12, 900), (128, "weak")),  # The interval reaches down to what it is.
    ((512, 16, 12, 20), (16, "clear")),
    ((32, 40, 30, 50), (32, "clear")),  # Near enough.
    ((32, 40, 2, 900), (32, "weak")),
    ((10, 160, 120, 210, 60), (60, "clear")),  # No more than a client holds.
    ((10, math.inf, 50, math.inf), (20, "weak")),
    ((10, math.nan, math.nan, math.nan), (10, "unknown")),
])  # fmt: skip
def test_sizes_go_to_the_noise_scale(given: tuple[float, ...], follows: tuple[float, str]) -> None:
    """A size far from the noise scale goes there; how sure that is follows from the interval."""
    found = hint(*given)
    assert (found.next, found.sure) == follows


def test_what_is_promised_is_the_hyperbola() -> None:
    """From 10 to 160 at a noise scale of 160 steps go to 2 / 17, and examples to 2 / (1 + 10 / 160), as McCandlish et al. have it."""
    words = hint(10, 128, 120, 140).why
    assert f"steps to a target would be {2 / (1 + 12.8):.2g} times as many, examples {2 / (1 + 10 / 128):.2g} times" in words


def steps(fell: int, count: int) -> pd.DataFrame:
    """Return two steps of each of *count* tasks, in *fell* of which the loss falls."""
    rows = [(i, step, 1.0 if (step == 0) == (i < fell) else 0.5) for i in range(count) for step in (0, 1)]
    return pd.DataFrame([{"message": i, "step": step, "loss": loss, "lr": 0.1} for i, step, loss in rows])


def test_rates_go_by_the_loss_within_tasks() -> None:
    """Halved where it rises, doubled where it nearly always falls, left where neither is sure; with another batch it goes along."""
    stays, grows = hint(32, 40, 30, 50), hint(10, 160, 120, 210)
    found = [advice._rate(steps(fell, 100), stays) for fell in (30, 50, 70, 97)]
    assert [(each.next, each.sure) for each in found] == [(0.05, "clear"), (0.1, "weak"), (0.1, "weak"), (0.2, "weak")]
    assert advice._rate(steps(97, 100), grows).next == pytest.approx(0.1 * (1 + 16) / (1 + 160 / 128))
    assert advice._rate(steps(2, 2)[:1], stays).sure == "unknown"


def test_a_scenario_is_run_and_a_run_is_read(
    go: Callable[..., fedsim.Run], scenario_file: Callable[..., Path], cli: Callable[..., Any], tmp_path: Path
) -> None:
    """Both ways the same is said, in Python and in a terminal; watching moves no number."""
    path = scenario_file({"server.rounds": 4})
    answer = cli("advise", path, "--out", tmp_path / "watched", "--json")
    said = json.loads(answer.out)
    assert documented()["advise"] == said.keys() and all(f"`{each}`" in LINES.read_text("utf-8") for each in said["advice"][0])
    frame = fedsim.advise(tmp_path / "watched")

    assert [each["setting"] for each in said["advice"]] == ["training.batch_size", "clients in a round", "learning rate"]
    assert [each["why"] for each in said["advice"]] == frame.why.tolist()
    assert fedsim.load(tmp_path / "watched").digest == go({"server.rounds": 4}).digest
    shown = cli("advise", tmp_path / "watched")
    assert shown.code == 0 and "training.batch_size" in shown.out and max(map(len, shown.out.splitlines()[:-1])) <= 100


def test_nothing_lies_between_the_clients_of_rounds_of_one(go: Callable[..., fedsim.Run]) -> None:
    """Where no two clients train one model, the number of clients is left as it is, for that reason."""
    found = fedsim.advise(go({**WATCHED, "server.strategy.clients_per_round": 1, "server.strategy.min_train_nodes": 1}))
    cohort = found[found.setting == "clients in a round"].iloc[0]

    assert (1.0, 1.0, "unknown") == (cohort.now, cohort.next, cohort.sure)
    assert cohort.why.startswith("in rounds from 3 on no two clients' updates of one model were handed over together")


def test_nothing_is_advised_where_nothing_was_seen(go: Callable[..., fedsim.Run], cli: Callable[..., Any], tmp_path: Path) -> None:
    """A run without a monitor says what it wants."""
    run = go({})
    with pytest.raises(fedsim.RunError, match=r"was not watched.*Give it a \[monitor\]"):
        fedsim.advise(run)
    assert cli("advise", run.path).code == 1
    assert cli("advise", tmp_path / "nothing").code == 2
