"""Alarms on data of which nobody said when they drift are neither right nor false; declared times are scored against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.report.page import write_report
from fedsim.scenario.load import load

Go = Callable[..., fedsim.Run]
TURN = 30
"""The item of each client's stream from which on labels are another's."""


@pytest.fixture
def recorded(tmp_path: Path) -> dict[str, Any]:
    """A file of two people whose labels turn at item 30 of 60, as a stream of one example a second, with a detector."""
    draw = np.random.default_rng(0)
    rows = ["a,b,who,y"]
    for who in ("ada", "bob"):
        for i, (a, b) in enumerate(draw.normal(size=(60, 2)).round(4).tolist()):
            rows.append(f"{a},{b},{who},{int((a > 0) != (i >= TURN))}")
    (tmp_path / "two.csv").write_text("\n".join(rows) + "\n")
    return {
        "data.source": {"kind": "csv", "path": str(tmp_path / "two.csv"), "label": "y", "client": "who"},
        "data.partition": {"kind": "natural"}, "data.test_fraction": 0.0, "clients.count": 2,
        "stream.arrivals": {"kind": "constant", "per_s": 1.0}, "stream.trigger": {"kind": "count", "examples": 5},
        "clients.detector": {"kind": "ddm", "warm_start": 10, "drift_threshold": 1.5},
        "clients.compute": {"kind": "constant", "gflops": 1e9, "overhead_s": 0.0},
        "clients.network": {"kind": "ideal"}, "training.epochs": 3, "server.rounds": 40, "training.optimizer.lr": 0.5,
    }  # fmt: skip


def test_undeclared_drifts_are_unknown(go: Go, cli: Callable[..., Any], recorded: dict[str, Any]) -> None:
    """Without declared times no alarm is called false: not by ``detection``, the terminal, or the report."""
    run = go(recorded)
    found, shown, page = run.detection(), cli("show", run.path).out, write_report(run).read_text("utf-8")
    many = f"{len(run.alarms)} alarms, true drifts unknown"

    assert len(run.alarms) > 1
    assert (len(run.alarms), True) == (
        found.alarms.iloc[-1],
        bool(found[["drifts", "noticed", "missed", "false_alarms"]].isna().all(axis=None)),
    )
    assert many in shown and "false" not in shown
    assert many in page and "false alarms" not in page and "stream.drifts_s" in page


def test_declared_drifts_are_scored_against(go: Go, cli: Callable[..., Any], recorded: dict[str, Any]) -> None:
    """A list is everybody's: both clients' drift is noticed, by the first alarm after it, and the others are false."""
    run = go(recorded | {"stream.drifts_s": [30.0]})
    found, alarms = run.detection().set_index("client"), run.alarms
    first = [alarms.time_s[(alarms.client == who) & (alarms.time_s >= 30.0)].min() - 30.0 for who in (0, 1)]

    assert [30.0, 30.0] == run.drifts.time_s.tolist()
    assert ([1, 1, 2], [1, 1, 2]) == (found.drifts.tolist(), found.noticed.tolist())
    assert [*first, np.mean(first)] == found.mean_delay_s.tolist()
    assert len(alarms) - 2 == found.false_alarms[-1]
    assert f"2 of 2 drifts noticed, {len(alarms) - 2} false alarm" in cli("show", run.path).out
    assert 1 == len(run.recovery())


def test_declared_by_client(go: Go, cli: Callable[..., Any], recorded: dict[str, Any]) -> None:
    """A table declares of those it names: the other client's alarms stay neither right nor false; an empty list is no drift."""
    one = go(recorded | {"stream.drifts_s": {"1": [30]}})
    found, mine = one.detection().set_index("client"), one.alarms.groupby("client").size()
    none = go(recorded | {"stream.drifts_s": []}).detection().iloc[-1]

    assert ([1], [1.0, 1.0]) == (one.drifts.client.tolist(), found.drifts[[1, -1]].tolist())
    assert (True, mine[0]) == (bool(np.isnan(found.drifts[0])), found.alarms[0])
    assert mine[1] - 1 == found.false_alarms[-1]
    assert f"{mine[0]} alarm" in cli("show", one.path).out and "of 1 client whose true drifts are unknown" in " ".join(
        cli("show", one.path).out.split()
    )
    assert "unknown" in write_report(one).read_text("utf-8")
    assert (0, none.alarms) == (none.drifts, none.false_alarms)


def test_what_is_declared_moves_no_number(go: Go, recorded: dict[str, Any]) -> None:
    """Clients look at no declared time: predictions, alarms and parameters are those of a run that declares none."""
    plain, declared = go(recorded), go(recorded | {"stream.drifts_s": [30.0]})

    assert plain.tested.equals(declared.tested) and plain.alarms.equals(declared.alarms)
    assert all((plain.params()[name] == array).all() for name, array in declared.params().items())
    assert plain.digest == declared.digest
    assert "drifts_s" not in load(plain.manifest["scenario"]).scenario.plain()["stream"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stream.drifts_s": [40.0, 30.0]}, r"stream\.drifts_s: 30 comes after 40"),
        ({"stream.drifts_s": [30.0, 30.0]}, r"stream\.drifts_s: 30 comes after 30"),
        ({"stream.drifts_s": {"2": [30.0]}}, r"stream\.drifts_s\.2: there is no such client\. Their numbers are 0 to 1"),
        ({"stream.drifts_s": {"ada": [30.0]}}, r"stream\.drifts_s\.ada: there is no such client"),
        ({"stream.drifts_s": {"01": [30.0]}}, r"stream\.drifts_s\.01: there is no such client"),
        ({"stream.drifts_s": [-1.0]}, r"stream\.drifts_s\.0 = -1.0: must be >= 0"),
        ({"stream.drifts_s": "30"}, r"stream\.drifts_s: '30' is neither a list of times, like \[3600\.0\], nor a table by client"),
        ({"stream.drifts_s": [1.7e9]}, r"stream\.drifts_s: none of the times lies within a client's stream; they are from 1 s to 60 s"),
        (
            {
                "stream.drifts_s": [30.0],
                "stream.drift": {"change": {"kind": "swap_labels", "pairs": [[0, 1]]}, "schedule": {"kind": "abrupt", "at_s": [9.0]}},
            },
            r"stream\.drifts_s: stream\.drift says already",
        ),
        (
            {"stream.drifts_s": [30.0], "stream.order": {"kind": "class_incremental", "tasks": [[0], [1]]}},
            r"stream\.drifts_s: stream\.order\.kind says already",
        ),
    ],
)  # fmt: skip
def test_times_that_cannot_be_are_refused(go: Go, recorded: dict[str, Any], settings: Mapping[str, Any], words: str) -> None:
    """One line names the key, what is wrong with it, and what would work."""
    with pytest.raises(fedsim.ScenarioError, match=words):
        go(recorded | dict(settings))


def test_a_detector_called_none_notices_nothing_to_tell_of(go: Go, cli: Callable[..., Any], recorded: dict[str, Any]) -> None:
    """Where the detector is 'none' the terminal says nothing of drifts noticed."""
    run = go(recorded | {"clients.detector": {"kind": "none"}, "stream.drifts_s": [30.0]})

    assert "noticed" not in cli("show", run.path).out
