"""Comparisons: who is held against whom, on which runs, what is no comparison, and what a reader is told of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.comparing import compared, table
from fedsim.comparing.found import Comparison, Plan, _row, held
from fedsim.comparing.table import sentence
from fedsim.comparing.variants import Side, names, parsed
from fedsim.core.errors import ScenarioError
from fedsim.many import runs
from fedsim.many.worker import answer
from fedsim.record import manifest
from fedsim.scenario.load import load
from fedsim.score.likeness import cohort, unlike
from fedsim.score.spending import Rule, levels
from fedsim.score.taken import Figure

Tiny = Callable[..., dict[str, Any]]
BASE = {"training.optimizer.lr": 0.5}
SLOW = {"training.optimizer.lr": 1e-06}
"""A rate at which nothing is learned: worse beyond any doubt."""


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let workers answer in this process; yields the names of the runs that they were asked for."""
    asked: list[str] = []

    def ask(_: Any, request: dict[str, Any], **_more: Any) -> dict[str, str]:
        asked.append(Path(request["out"]).name)
        return answer(json.loads(json.dumps(request)))

    monkeypatch.setattr(runs, "_started", lambda everywhere: None)
    monkeypatch.setattr(runs._Worker, "ask", ask)
    yield asked


def test_variants_run_with_the_same_seeds_and_get_a_verdict(tiny: Tiny, tmp_path: Path, beside: list[str]) -> None:
    """Each side has a run a seed, in a folder of its name; the frame has a row a measure; done runs are read again, not run."""
    options: dict[str, Any] = {"variants": [SLOW], "seeds": 3, "target": "accuracy=0.99", "jobs": 1, "out": tmp_path / "c"}
    found = fedsim.compare(tiny(BASE), **options)
    told = found.attrs["compare"]

    assert sorted(beside) == [f"lr={rate}-{seed}" for rate in ("0.5", "1e-06") for seed in (7, 8, 9)]
    assert [("lr=1e-06", "worse", "final accuracy")] == [(v["variant"], v["verdict"], v["by"]) for v in told["verdicts"]]
    assert ["worse"] == [verdict for verdict in found.verdict if verdict]
    by = found.set_index("measure")
    assert {"final accuracy", "best accuracy", "final loss", "rounds_to_target", "bytes", "virtual_s"} <= set(by.index)
    assert (3, 0, 0, 2.0) == tuple(by.loc["rounds_to_target", ["n", "reached", "against_reached", "mean"]])
    one, other = (fedsim.load(tmp_path / "c" / f"lr={rate}-7") for rate in ("1e-06", "0.5"))
    assert one.final["accuracy"] - other.final["accuracy"] == pytest.approx(
        next(r["final accuracy"] for r in told["runs"] if r["run"] == str(one.path)) - other.final["accuracy"]
    )
    assert list(one.tasks.arrived_s) == list(other.tasks.arrived_s)  # The same luck.
    again = fedsim.compare(tiny(BASE), **options)
    assert 6 == len(beside) and found.equals(again)
    page = (tmp_path / "c" / table.PAGE).read_text()
    assert "lr=1e-06: worse." in page and "http" not in page.split("<body>")[1].split("<script")[0]


def test_it_goes_on_until_it_is_decided(tiny: Tiny, tmp_path: Path, beside: list[str]) -> None:
    """What is plain is decided by five pairs, and what is not goes on: with a difference that matters more than any, to ten at least."""
    plain = compared(tiny(BASE), variants=[SLOW], until_decided=True, jobs=1, out=tmp_path / "c")
    each = plain.against[0]

    assert ("worse", 5, 10) == (each.verdict, len(each.seeds), len(beside))
    assert each.row is not None and each.row.interval.level == levels()[0]
    assert "after 5 pairs (10 runs)" in table.sentence(each, plain) and "Unpaired, an interval as narrow" in table.sentence(each, plain)
    assert "5, 10, 20, 40 pairs only, at levels of 0.97, 0.81, 1.3, 1.9 % (5 % in all" in table.rule(plain)


def test_variants_that_are_decided_run_no_further(tiny: Tiny, tmp_path: Path, beside: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two variants the plain one has five pairs, and the other all; both share the 5 %."""
    monkeypatch.setattr("fedsim.score.spending.LOOKS", (5, 6))
    found = compared(tiny(BASE), variants=[SLOW, {"training.optimizer.lr": 0.499}], until_decided=True, jobs=1, out=tmp_path / "c")

    assert [5, 6] == [len(each.seeds) for each in found.against]
    assert 5 + 6 + 6 == len(beside) and sum(found.rule.levels) == pytest.approx(0.025)
    assert "shared by 2 variants" in table.rule(found)


def test_a_budget_that_ends_decides_nothing(tiny: Tiny, tmp_path: Path, beside: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that is up leaves what is done, says so, and the same command goes on from there."""
    def until_four(waiting: Any, left_s: float | None) -> Iterator[Any]:
        for each in as_completed(waiting):
            if left_s is not None and len(beside) > 4:
                raise TimeoutError
            yield each

    monkeypatch.setattr(runs, "as_completed", until_four)
    options: dict[str, Any] = {"variants": [SLOW], "until_decided": True, "jobs": 1, "out": tmp_path / "c"}
    late = compared(tiny(BASE), budget="10m", **options)
    each = late.against[0]
    done = [path.name for path in (tmp_path / "c").iterdir() if path.is_dir() and fedsim.load(path).status == "done"]
    pairs = sum(name.replace("lr=0.5", "lr=1e-06") in done for name in done if name.startswith("lr=0.5"))

    assert "not decided" == each.verdict and each.why.endswith("pairs, and looks are at 5, 10, 20, 40 only")
    assert each.why.startswith(f"the budget of 10m ended after {pairs} pairs") and 2 <= pairs < 5 and 5 <= len(beside) <= 7
    assert ["worse"] == [each.verdict for each in compared(tiny(BASE), **options).against]
    assert 10 == len(set(beside)) == len(beside)


def test_time_that_is_up_clears_nothing(tiny: Tiny, tmp_path: Path, beside: list[str]) -> None:
    """A run that was cut off stays as it is, where there is no time to run it again; then it is."""
    asked = runs.Asked("a", load(tiny()))
    fedsim.run(tiny(), out=tmp_path / "a")
    manifest.write(tmp_path / "a", manifest.read(tmp_path / "a") | {"status": "interrupted", "digest": None})
    with runs.Crew(tmp_path, 1, until=0.0) as crew:
        assert ["unfinished"] == [outcome.status for outcome in crew.runs([asked])]
    assert "interrupted" == fedsim.load(tmp_path / "a").status
    with runs.Crew(tmp_path, 1) as crew:
        assert ["done"] == [outcome.status for outcome in crew.runs([asked])]


def test_what_has_no_effect_is_said(tiny: Tiny, tmp_path: Path, beside: list[str]) -> None:
    """A variant whose runs have the digests of the first is called that, and is no verdict either way."""
    found = compared(tiny(), variants=[{"engine.chunk": 2}], seeds=2, jobs=1, out=tmp_path / "c")

    assert (True, "alike") == (found.against[0].same, found.against[0].verdict)
    assert "every run has the same digest as its pair" in table.sentence(found.against[0], found)


def test_runs_that_break_are_counted(tiny: Tiny, tmp_path: Path, beside: list[str]) -> None:
    """A side that diverges gets no verdict, which would rest on the others; what broke is listed. What is refused ends all at once."""
    wild = {"training.optimizer.lr": 1e38, "training.batch_size": 1, "server.rounds": 3}
    found = compared(tiny(), variants=[wild], seeds=2, jobs=1, out=tmp_path / "c")

    assert "not decided" == found.against[0].verdict and "2 of 2 runs of" in found.against[0].why and len(found.faults) == 2
    assert all("diverged" in fault for fault in found.faults)
    table.show(found)
    began = len(beside)
    with pytest.raises(ScenarioError, match="nobody"):
        compared(tiny(), variants=[{"model": {"kind": "nobody:Net"}}], seeds=5, jobs=1, out=tmp_path / "d")
    assert len(beside) == began + 2


def test_cohorts_and_lengths_that_differ_are_said(tiny: Tiny, tmp_path: Path, beside: list[str]) -> None:
    """A new kind starts its table anew: that its rounds ask others is told, and that one side trains for longer."""
    base = tiny({"server.strategy": {"kind": "FedAvg", "fraction_train": 0.5}})
    variant = 'server.strategy={kind="FedProx",proximal_mu=0.1}, server.rounds=3'
    notes = compared(base, variants=[variant], seeds=1, jobs=1, out=tmp_path / "c").notes

    assert any("3 of 6 clients in FedAvg" in note and "6 of 6 clients in FedProx" in note for note in notes)
    assert any("2 rounds in FedAvg" in note for note in notes)
    assert "7 of 9 clients" == cohort({"clients": {"count": 9}, "server": {"strategy": {"kind": "x", "clients_per_round": 7}}})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.partition": {"kind": "dirichlet", "alpha": 0.3}}, "another split (data.partition.kind = 'iid', and 'dirichlet')"),
        ({"clients.network.up_mbps": 3.0}, "another fleet (clients.network.up_mbps = 2.0, and 3.0)"),
        (
            {"clients.count": 5, "clients.ram": {"kind": "constant", "mib": 64.0}},
            "another fleet (clients.count = 6, and 5; clients.ram = {'kind': 'constant', 'mib': 64.0} in the second only)",
        ),
        ({"data.test_fraction": 0.5}, "another test part"), ({"evaluate.federated_fraction": 1.0}, "keep back 0, and 0.2"),
        ({"training.objective": {"kind": "mine:Loss"}}, "another objective"), ({"engine.dtype": "float64"}, "another arithmetic"),
        ({"stream": {"arrivals": {"kind": "constant", "per_s": 1.0}}}, "other streams"),
        ({"training.objective": {"kind": "classification", "label_smoothing": 0.1}}, ""), ({"training.epochs": 3}, ""),
        ({"server.strategy.kind": "FedAdam"}, ""), ({"model.zeros": True}, ""), ({"evaluate.every": 2}, ""),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_said(changes: dict[str, Any], said: str, tiny: Tiny) -> None:
    """Another split, fleet, test part, objective or stream is named with both values; a method is no such thing."""
    def plain(changes: dict[str, Any]) -> Any:
        table = tiny(changes)
        return table | {"training": {"objective": {"kind": "classification"}} | table["training"]}

    found = unlike(plain({}), plain(changes))

    assert [] == found if not said else any(said in each for each in found)


def test_runs_are_compared(tiny: Tiny, tmp_path: Path, cli: Any) -> None:
    """Runs that are there make sides by scenario and pairs by seed; what stands alone is left out and said, what is unlike is refused."""
    for seed in (1, 2):
        fedsim.run(tiny(), seed=seed, out=tmp_path / f"a{seed}")
        fedsim.run(tiny(), seed=seed, overrides=SLOW, out=tmp_path / f"b{seed}")
    fedsim.run(tiny(), seed=3, out=tmp_path / "a3")
    fedsim.run(tiny(), seed=1, overrides={"clients.count": 5}, out=tmp_path / "other")
    folders = [tmp_path / name for name in ("a1", "b1", "a2", "b2", "a3")]
    found = compared(*folders)

    assert [("lr=1e-06", (1, 2))] == [(each.side.name, each.seeds) for each in found.against]
    assert any("seeds 3 ran on one side only" in note for note in found.notes)
    refused = cli("compare", tmp_path / "a1", tmp_path / "other")
    assert 2 == refused.code and "another fleet (clients.count = 6, and 5)" in refused.err and "--unpaired" in refused.err
    marked = cli("compare", tmp_path / "a1", tmp_path / "a2", tmp_path / "other", "--unpaired")
    assert 0 == marked.code and "UNPAIRED" in marked.out and "not on the same luck" in " ".join(marked.out.split())
    one = json.loads(cli("compare", tmp_path / "a1", tmp_path / "b1", "--json").out)
    assert "not decided" == one["verdicts"][0]["verdict"] and "one run of each says nothing" in one["verdicts"][0]["why"]


def test_bad_runs_are_refused(tiny: Tiny, tmp_path: Path, cli: Any) -> None:
    """A run that goes or broke, one without its tables, and a folder that is no run: a line each, and no traceback."""
    for name, seed in (("a", 1), ("b", 1), ("cut", 1)):
        fedsim.run(tiny(SLOW if name == "b" else {}), seed=seed, out=tmp_path / name)
    (tmp_path / "cut" / "journal.sqlite").unlink()
    about = manifest.read(tmp_path / "b")
    for status, said in (("interrupted", "is interrupted; only runs that are done"), ("failed", "is failed; only")):
        (tmp_path / "broken").mkdir(exist_ok=True)
        manifest.write(tmp_path / "broken", about | {"status": status, "digest": None})
        answered = cli("compare", tmp_path / "a", tmp_path / "broken")
        assert 2 == answered.code and said in answered.err
    (tmp_path / "empty").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text('{"status": "done", "scenario": {"name": "old"}}')
    for words, code, said in (
        (["a", "empty"], 2, "not a run folder"), (["a", "nowhere"], 2, "no such file or folder"),
        (["a", "old"], 1, "no manifest that this"),
        (["a", "a"], 2, "are of one scenario"), (["cut", "b"], 1, "journal.sqlite"),
    ):  # fmt: skip
        answered = cli("compare", *(tmp_path / word for word in words))
        assert code == answered.code and said in answered.err and 1 == len(answered.err.splitlines()), answered.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "with what?"), (["--with", "training.optimizer.lr"], "must look like training.optimizer.lr=0.05"),
        (["--with", "training.optimiser.lr=1"], "optimizer"), (["--with", "seed=3"], "every variant runs with the same seeds"),
        (["--with", "model.zeros=true", "--seeds", "0"], "between 1 and 100"),
        (["--with", "model.zeros=true", "--budget", "10m"], "goes with"),
        (["--with", "model.zeros=true", "--matters", "-1"], "must be a number >= 0"),
        (["--with", "model.zeros=true", "--until-decided", "--budget", "soon"], "must look like 10m"),
        (["--with", "model.zeros=true", "--until-decided", "--seeds", "3"], "Leave --seeds out"),
        (["--with", "model.zeros=true", "--target", "accuracy"], "must look like accuracy=0.9"),
        (["--with", "model.zeros=true", "--target", "accuracy=90"], "--target 'accuracy=90': can never hold"),
        (["--with", "clients.count=5"], "count=6 and count=5: another fleet (clients.count = 6, and 5)"),
        (["--with", "model.zeros=true", "--target", "acuracy=0.9"], "Did you mean 'accuracy'"),
        (["--with", "model.zeros=true", "--by", "final acuracy"], "Did you mean 'final accuracy'"),
    ],
)  # fmt: skip
def test_bad_words_are_refused(words: list[str], said: str, scenario_file: Any, tmp_path: Path, cli: Any, beside: list[str]) -> None:
    """Each wrong word gives one line that names it, and exit code 2; at most one run of each side was made to find out."""
    answered = cli("compare", scenario_file(), *words, "--jobs", 1, "--out", tmp_path / "c")

    assert 2 == answered.code and said in answered.err and 1 == len(answered.err.splitlines()), answered.err
    assert len(beside) <= 2


def test_the_table_is_right_at_80_columns(scenario_file: Any, tmp_path: Path, cli: Any, beside: list[str], monkeypatch: Any) -> None:
    """No line is wider, whatever variants are called; paths alone may be."""
    monkeypatch.setenv("COLUMNS", "80")
    words = ("--with", 'server.strategy={kind="FedAvg",min_available_nodes=3,min_train_nodes=3}', "--target", "accuracy=0.5")
    told = cli("compare", scenario_file(), *words, "--seeds", 2, "--jobs", 1, "--out", tmp_path / "c")

    assert 0 == told.code and "reached accuracy >= 0.5" in told.out
    assert [] == [line for line in told.out.splitlines() if len(line.rstrip()) > 80 and table.PAGE not in line and "against" not in line]


def test_not_reached_is_counted() -> None:
    """A run that did not reach its target counts with what it spent: the difference is at least that, and two such differ by nothing."""
    reached, never = [Figure(4.0), Figure(6.0)], [Figure(10.0, False), Figure(10.0, False)]
    pairs = _row("rounds_to_target", never, reached, Plan(), 0.05)
    apart = _row("rounds_to_target", never, reached, Plan(pairs=False), 0.05)

    assert (5.0, (0, 2), (2, 2), True) == (pairs.interval.mean, pairs.reached, pairs.n, pairs.cut)
    assert 5.0 == apart.interval.mean
    assert 0.0 == _row("rounds_to_target", never, never, Plan(), 0.05).interval.mean


def test_names_tell_apart() -> None:
    """Variants are called by what differs between them, a kind with the settings that its like have otherwise; no two alike."""
    def strategy(**table: Any) -> dict[str, Any]:
        return {"name": "q", "seed": 1, "server": {"strategy": table, "rounds": 2}}

    three = [strategy(kind="FedAvg"), strategy(kind="FedProx", mu=0.1, f=0.2), strategy(kind="FedProx", mu=0.01, f=0.2)]
    assert ["FedAvg", "FedProx mu=0.1", "FedProx mu=0.01"] == names(three)
    assert ["q", "q (2)"] == names([strategy(kind="FedAvg")] * 2)
    assert ["a", "b"] == names([{"name": "a", "x": 1}, {"name": "b", "x": 2}])
    assert {"a.b": [1, 2], "c": "x,y"} == parsed('a.b=[1,2],c="x,y"')


def test_little_is_said_of_a_noise_that_two_pairs_tell() -> None:
    """Of two pairs nothing is said of power; of five it is, and whose noise that is."""
    sides = Side("a", {}), Side("b", {})

    def says(pairs: int) -> str:
        taken = {
            side.name: {seed: {"final accuracy": Figure(0.9 + 0.01 * i * (-1) ** seed)} for seed in range(pairs)}
            for i, side in enumerate(sides)
        }  # fmt: skip
        each = held(sides[1], sides[0], taken, Plan(), "final accuracy", 0.05, rule=Rule.of([pairs]))
        return sentence(each, Comparison(Plan(), Rule.of([pairs]), sides, [each], taken, {}, None))

    assert "power" not in says(2) and "2 pairs do not tell" in says(2), says(2)
    assert "With the noise of these 5 pairs 5 find" in says(5), says(5)
