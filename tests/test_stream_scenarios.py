"""The section [stream] of a scenario: what it takes, what it refuses, and what ``check`` says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim.core.keys import Key
from fedsim.scenario.build import build
from fedsim.scenario.load import load

POISSON = {"kind": "poisson", "per_s": 0.01}
SWAP = {"kind": "swap_labels", "pairs": [[0, 1]]}
ABRUPT = {"kind": "abrupt", "at_s": [600.0]}
PLUGINS = """
class Odd:
    concepts = 2
def odd(): return Odd()
def breaks(): raise KeyError("gone")
"""


def with_stream(**sections: Any) -> dict[str, Any]:
    return {"stream": {"arrivals": POISSON, **sections}}


def drift(**sections: Any) -> dict[str, Any]:
    return with_stream(drift={"change": SWAP, "schedule": ABRUPT, **sections})


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugins_of_streams.py").write_text(PLUGINS)
    (tmp_path / "late.csv").write_text("client,time_s\n17,3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


# name: (overrides, how the line begins, what else it says)
CASES: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "stream is text": ({"stream": "poisson"}, "stream = 'poisson': must be a table", []),
    "unknown key": (with_stream(arival=POISSON), "stream.arival: no such key.", ["Did you mean 'arrivals'?"]),
    "unknown key of drift": (drift(when=ABRUPT), "stream.drift.when: no such key.", ["schedule"]),
    "drift without a change": (with_stream(drift={"schedule": ABRUPT}), "stream.drift.change: missing.", ["kind"]),
    "unknown arrivals": (with_stream(arrivals={"kind": "poison"}), "stream.arrivals.kind = 'poison': no such arrivals.", ["'poisson'"]),
    "unknown change": (drift(change={"kind": "swap"}), "stream.drift.change.kind = 'swap': no such change.", ["swap_labels"]),
    "no rate": (with_stream(arrivals={"kind": "poisson"}), "stream.arrivals.per_s: missing. 'poisson' needs it", ["number > 0"]),
    "rate 0": (with_stream(arrivals={"kind": "poisson", "per_s": 0}), "stream.arrivals.per_s = 0: must be > 0", []),
    "rate nan": (with_stream(arrivals={"kind": "poisson", "per_s": float("nan")}), "stream.arrivals.per_s = nan: must be", ["finite"]),
    "change before time 0": (drift(schedule={"kind": "abrupt", "at_s": [-1.0]}), "stream.drift.schedule.at_s.0 = -1.0: must be > 0", []),
    "change at no time": (drift(schedule={"kind": "abrupt", "at_s": []}), "stream.drift.schedule.at_s = []: must be a list of at least 1", []),
    "labels never": (with_stream(labels={"kind": "at_once", "missing": 1.0}), "stream.labels.missing = 1.0: must be < 1", ["nothing is learned"]),
    "labels early": (with_stream(labels={"kind": "constant", "delay_s": -1.0}), "stream.labels.delay_s = -1.0: must be >= 0", []),
    "no items": (with_stream(items=0), "stream.items = 0: must be >= 1", []),
    "no trace": (with_stream(arrivals={"kind": "trace", "path": "none.csv"}), "stream.arrivals.path = 'none.csv': not found.", ["FEDSIM_DATA"]),
    "a trace of strangers": (with_stream(arrivals={"kind": "trace", "path": "late.csv"}), "stream: none of the first 6 clients ever gets", ["trace"]),
    "stamps of digits": (with_stream(arrivals={"kind": "stamps"}), "stream.arrivals.kind = 'stamps': this source has no time stamps", ["csv_stream"]),
    "class 10 of digits": (drift(change={"kind": "classes", "groups": [[0], [10]]}), "stream.drift.change.groups.1 = [10]: there is no class 10", ["0 to 9"]),
    "groups of words": (drift(change={"kind": "classes", "groups": [["a"]]}), "stream.drift.change.groups", ["whole number"]),
    "a cycle of no concepts": (drift(schedule={"kind": "recurring", "period_s": 9.0, "concepts": -3}), "stream.drift.schedule.concepts = -3: must be >= 2", []),
    "negative mix": (drift(change={"kind": "classes", "mixes": [[-1.0] * 10]}), "stream.drift.change.mixes.0.0 = -1.0: must be >= 0", []),
    "a plug-in that is no change": (drift(change={"kind": "plugins_of_streams:odd"}), "stream.drift.change.kind = 'plugins_of_streams:odd': returned a Odd", ["pick", "alter"]),
    "a plug-in that breaks": (drift(onset={"kind": "plugins_of_streams:breaks"}), "stream.drift.onset.kind = 'plugins_of_streams:breaks': raised KeyError", []),
    "a plug-in that is no process": (with_stream(arrivals={"kind": "plugins_of_streams:odd"}), "stream.arrivals.kind = 'plugins_of_streams:odd': returned a Odd", ["Arrivals"]),
    "hindsight without a stream": ({"data.test_fraction": 0}, "data.test_fraction = 0: must be > 0", ["[stream]"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_line_says_what_is_wrong(case: str, cli: Callable[..., Any], scenario_file: Callable[..., Path]) -> None:
    """A stream that cannot be ends with 2 and one line: the dotted key, the value, what would have worked."""
    overrides, begins, says = CASES[case]
    answer = cli("check", scenario_file(overrides))
    line = answer.err.removeprefix("fedsim: ").rstrip("\n")

    assert (2, "", 1) == (answer.code, answer.out, len(answer.err.splitlines())), answer
    assert line.startswith(begins), line
    assert [] == [words for words in says if words not in line], line
    assert line.endswith((".", ")")), line


def test_check_says_what_arrives(cli: Callable[..., Any], scenario_file: Callable[..., Path]) -> None:
    """``check`` says how many examples arrive, until when, what is never labelled and who sees drift."""
    file = scenario_file(drift() | {"stream.labels": {"kind": "at_once", "missing": 0.5}})
    said, told = cli("check", file), cli("check", file, "--json")
    figures = json.loads(told.out.splitlines()[-1])["stream"]

    assert (0, True, True) == (said.code, "180 examples arrive" in said.out, "6 clients see drift" in " ".join(said.out.split()))
    assert (6, 180, 0, 6) == tuple(figures[name] for name in ("clients", "items", "without", "drifting"))
    assert 60 < figures["unlabelled"] < 120 and 1000.0 < figures["last_s"] < 10_000.0


def test_a_stream_goes_on_the_seed_alone(tiny: Callable[..., Any]) -> None:
    """Equal scenarios have equal streams, another seed has others, and other parts of the scenario move nothing."""

    def stream(overrides: dict[str, Any], **settings: Any) -> list[list[float]]:
        streams = build(load(tiny(drift() | overrides), **settings)).federation.streams
        assert streams is not None
        return [[*streams.of(client).arrived_s, *streams.of(client).labelled_s] for client in range(6)]

    assert stream({}) == stream({"training.optimizer.lr": 0.3, "clients.compute.gflops": 1.0})
    assert stream({}) != stream({}, seed=8)
    assert stream({}) == stream({"stream.drift.change": {"kind": "rotate", "degrees": 30.0}})  # Drift moves no arrival.


def test_a_drifting_federation_trains_and_is_evaluated(go: Callable[..., Any]) -> None:
    """With altered examples made client by client a run goes through, twice with one digest; without a stream it is another."""
    federated = {"evaluate.federated_fraction": 1.0, "evaluate.client_test_fraction": 0.2}
    one, two, plain = go(drift() | federated), go(drift() | federated), go(federated)

    assert one.digest == two.digest != plain.digest
    assert 2 == one.manifest["final"]["rounds"]


def test_no_stream_is_no_key(tiny: Callable[..., Any]) -> None:
    """A scenario without [stream] has the digest that it had before there were streams, and its federation none."""
    loaded = load(tiny())

    assert "stream" not in loaded.scenario.plain()
    assert build(loaded).federation.streams is None


def test_a_trace_is_among_the_files(tiny: Callable[..., Any], tmp_path: Path) -> None:
    """The fingerprint of a trace stands beside those of the data, so that a changed one is seen."""
    (tmp_path / "all.csv").write_text("time_s\n1\n2\n")
    built = build(load(tiny(with_stream(arrivals={"kind": "trace", "path": "all.csv"}))))

    assert [str(tmp_path / "all.csv")] == list(built.federation.files)
    assert [1.0, 2.0] == built.federation.streams.of(5).arrived_s.tolist()  # type: ignore[union-attr]
    assert Key(7) == built.key
