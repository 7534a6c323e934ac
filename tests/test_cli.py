"""The command line: what each command prints, how it ends, and what is on disk when it is cut short."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.record.journal import read

FEDSIM = [sys.executable, "-c", "from fedsim.cli import main; main()"]
REPORT = "fedsim.report.page"


@pytest.fixture
def done(go: Callable[..., fedsim.Run]) -> fedsim.Run:
    """Return a run that is done."""
    return go()


# run


def test_run_json_is_one_line(cli: Callable[..., Any], scenario_file: Callable[..., Path], tmp_path: Path) -> None:
    """``run --json`` prints one line of JSON with the run's folder, digests, scores, virtual and wall time, and bytes."""
    pytest.importorskip(REPORT)
    answer = cli("run", scenario_file(), "--out", tmp_path / "run", "--json")

    assert (0, 1, "") == (answer.code, len(answer.out.splitlines()), answer.err), answer
    line = json.loads(answer.out)
    keys = {"run", "digest", "metrics_digest", "final", "virtual_s", "wall_s", "bytes_down", "bytes_up"}
    assert set() == keys - set(line)
    assert {"accuracy", "loss", "rounds"} == set(line["final"])
    run = fedsim.load(tmp_path / "run")
    assert (str(run.path), run.digest, run.final) == (line["run"], line["digest"], line["final"])
    assert (64, 64) == (len(line["digest"]), len(line["metrics_digest"]))


def test_run_takes_seed_and_set(cli: Callable[..., Any], scenario_file: Callable[..., Path], tmp_path: Path) -> None:
    """``--set`` and ``--seed`` change what the file says, and the manifest holds what was run."""
    pytest.importorskip(REPORT)
    words = ("--set", "server.rounds=1", "--set", "model.kind=mlp", "--set", "model.hidden=[4]", "--seed", "11")
    answer = cli("run", scenario_file(), "--out", tmp_path / "run", "--quiet", *words)

    assert 0 == answer.code, answer
    scenario = fedsim.load(tmp_path / "run").manifest["scenario"]
    assert (1, {"kind": "mlp", "hidden": [4]}, 11) == (scenario["server"]["rounds"], scenario["model"], scenario["seed"])


def test_run_says_what_came_of_it(
    cli: Callable[..., Any], scenario_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --json a summary is printed, and a second run of a scenario gets a folder of its own with a report."""
    pytest.importorskip(REPORT)
    monkeypatch.chdir(tmp_path)
    cli("run", scenario_file(), "--quiet")
    answer = cli("run", scenario_file(), "--quiet")

    assert 0 == answer.code, answer
    assert ["tiny-7", "tiny-7.2"] == sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert (tmp_path / "runs" / "tiny-7.2" / "report.html").is_file()
    assert [] == [word for word in ("accuracy", "rounds", "virtual time", "digest", "tiny-7.2") if word not in answer.out]


# check, list, schema, help


def test_check_foretells_what_a_run_costs(
    cli: Callable[..., Any], scenario_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``check`` foretells the bytes and the virtual time of the run that follows, and leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    file = scenario_file()
    answer = cli("check", file, "--json")
    run = fedsim.run(file, out=tmp_path / "run")
    foretold, about = json.loads(answer.out), run.manifest

    assert (0, "", 1) == (answer.code, answer.err, len(answer.out.splitlines()))
    assert about["bytes_down"] / 2 == foretold["bytes_down_per_round"]
    assert about["bytes_up"] / 2 == foretold["bytes_up_per_round"]
    assert abs(about["virtual_s"] / 2 - foretold["round_s"]) < 1e-9
    assert (6, 650) == (foretold["clients"], foretold["parameters"])
    assert ["run", "tiny.toml"] == sorted(path.name for path in tmp_path.iterdir())


def test_check_reads_well(cli: Callable[..., Any], scenario_file: Callable[..., Path]) -> None:
    """``check`` prints clients, examples, model size, bytes and time of a round."""
    answer = cli("check", scenario_file())

    assert 0 == answer.code, answer
    assert [] == [word for word in ("clients", "examples", "650 parameters", "a round takes", "kB") if word not in answer.out]


BATCHED: list[tuple[dict[str, Any], str]] = [
    ({}, "3 local steps in batches of 10 examples"),
    ({"training.accumulate": 2}, "2 local steps in batches of 20 (mean 15 examples), no more than 10 at once"),
    ({"training.epochs": 0.5}, "2 local steps in batches of 10 examples"),
    ({"training.batch_size": "full"}, "1 local step in batches of 30 examples"),
    ({"training.batch_policy": {"kind": "even"}}, " local steps (mean "),
    ({"training.curriculum": {"begin": 0.2, "over": 1}}, "1 to 3 local steps (mean 2) in batches of 6 to 10 (mean 9 examples)"),
    (
        {"clients.ram": {"kind": "constant", "mib": 0.0075}, "training.too_large": "smaller_batch"},
        " local steps in batches of ",
    ),
    ({"stream": {"arrivals": {"kind": "constant", "per_s": 1.0}, "stored": 5}}, " to "),
]


@pytest.mark.parametrize(("changes", "words"), BATCHED)
def test_check_says_what_a_task_comes_to(
    changes: dict[str, Any], words: str, cli: Callable[..., Any], scenario_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Steps of a task, batches and examples of a step are those of the run that follows, whatever decides them."""
    file = scenario_file(changes)
    said, told = " ".join(cli("check", file).out.split()), json.loads(cli("check", file, "--json").out)
    run = fedsim.run(file, overrides={"monitor": {"every": 1, "noise": 0.0}}, out=tmp_path / "run")
    tasks, steps = run.tasks[run.tasks.steps > 0], run.steps

    assert "a task takes" in said and words in said.partition("a task takes")[2].partition("strategy")[0]
    assert told["steps_per_task"] == pytest.approx({"min": tasks.steps.min(), "mean": tasks.steps.mean(), "max": tasks.steps.max()})
    largest = steps.groupby(["client", "number"]).batch.max()
    assert told["batch_size"] == {"min": largest.min(), "max": largest.max()}
    assert told["examples_per_step"] == pytest.approx(steps.batch.mean())
    assert (told["step_bytes"] is None) == ("clients.ram" not in changes) == ("of memory" not in said)
    assert told["examples_at_once"] == (10 if "training.accumulate" in changes else largest.max())
    if told["step_bytes"] is not None:
        assert told["step_bytes"] <= 0.0075 * 2**20


def test_list_names_every_kind(cli: Callable[..., Any]) -> None:
    """``list all`` names every kind of every slot; ``list KIND`` those of one; an unknown word ends with 2."""
    everything, some, nothing = cli("list", "all"), cli("list", "partition"), cli("list", "partitons")

    words = ["digits", "idx", "dirichlet", "shards", "cnn", "sgd", "lognormal", "onoff", "FedAvg", "Krum", "QFedAvg"]
    assert [] == [word for word in words if word not in everything.out]
    assert (0, True, False) == (some.code, "dirichlet" in some.out, "FedAvg" in some.out)
    assert (2, "") == (nothing.code, nothing.out)
    assert "fedsim: 'partitons': no such kind, and no such section. Did you mean 'partition'?" in nothing.err


def test_list_strategy_shows_settings(cli: Callable[..., Any]) -> None:
    """``list strategy`` shows what a strategy takes, in words and with defaults, and no name of a Python type."""
    answer = cli("list", "strategy")

    assert 0 == answer.code
    assert [] == [word for word in ("FedProx", "proximal_mu", "fraction_train", "whole number") if word not in answer.out]
    assert "<class" not in answer.out


def test_schema_is_json(cli: Callable[..., Any]) -> None:
    """``schema`` prints a JSON Schema that has every section of a scenario."""
    pytest.importorskip("fedsim.scenario.jsonschema")
    answer = cli("schema")
    found = json.loads(answer.out)

    assert 0 == answer.code
    assert {"name", "data", "clients", "model", "training", "server"} <= set(found["properties"])
    fleets = json.loads(cli("schema", "--fleet").out)
    assert {"name", "seed", "clients", "on_gflops", "compute", "server", "transport", "engine"} == set(fleets["properties"])


def test_help_comes_at_once() -> None:
    """``fedsim --help`` takes under 1.5 s of a processor, shows every command, and imports neither torch nor Flower."""
    code = (
        "import sys, atexit; sys.argv = ['fedsim', '--help']\n"
        "atexit.register(lambda: print(*sorted({'torch', 'flwr', 'optuna', 'sklearn', 'simpy'} & set(sys.modules)), file=sys.stderr))\n"
        "from fedsim.cli import main; main()\n"
    )
    before = os.times()
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = os.times()  # Not the wall's: other work on the machine may slow one down.

    assert after.children_user - before.children_user < 1.5
    assert "" == said.stderr.strip()
    assert [] == [word for word in ("run", "check", "list", "show", "verify", "report", "schema") if word not in said.stdout]


def test_import_is_cheap() -> None:
    """``import fedsim`` imports none of torch, Flower, SimPy, pandas and scikit-learn, and still offers its names."""
    code = "import sys, fedsim; print(*{'torch', 'flwr', 'optuna', 'simpy', 'pandas', 'sklearn'} & set(sys.modules), dir(fedsim))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert str(sorted(fedsim.__all__)) == said.strip()


# show, verify, report


def test_show_reads_a_run(cli: Callable[..., Any], done: fedsim.Run) -> None:
    """``show`` prints the summary of an old run, and with --json its figures on one line."""
    words, line = cli("show", done.path), json.loads(cli("show", done.path, "--json").out)

    assert 0 == words.code
    assert done.digest[:20] in words.out
    assert ("done", done.digest) == (line["status"], line["digest"])


def test_verify_agrees(cli: Callable[..., Any], done: fedsim.Run) -> None:
    """``verify`` of an untouched run ends with 0 and says the digest that came again."""
    answer = cli("verify", done.path, "--quiet")

    assert (0, "") == (answer.code, answer.err)
    assert done.digest[:16] in answer.out


def _tamper(run: fedsim.Run, statement: str, **manifest: Any) -> None:
    journal = sqlite3.connect(run.path / "journal.sqlite")
    journal.execute(statement)
    journal.commit()
    journal.close()
    path = run.path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **manifest}))


@pytest.mark.parametrize(
    ("statement", "manifest", "says"),
    [
        ("UPDATE tasks SET loss = 0.5 WHERE rowid = 8", {"digest": "0" * 64},
         "First: tasks row 8 (round 2, client 1): loss was 0.5, is now "),
        ("UPDATE metrics SET value = 0.99 WHERE rowid = 4", {"metrics_digest": "0" * 64},
         "First: metrics row 4 (round 1, accuracy): value was 0.99, is now "),
        ("DELETE FROM tasks WHERE rowid = 12", {"digest": "0" * 64}, "First: tasks: 11 rows before, 12 now"),
        ("SELECT 1", {"digest": "0" * 64}, "First: digest in manifest.json was"),
    ],
)  # fmt: skip
def test_verify_names_the_first_difference(
    statement: str, manifest: dict[str, Any], says: str, cli: Callable[..., Any], done: fedsim.Run
) -> None:
    """``verify`` of a run whose digest does not come again ends with 1 and names the first row that differs."""
    _tamper(done, statement, **manifest)
    answer = cli("verify", done.path, "--quiet")

    assert (1, "", 1) == (answer.code, answer.out, len(answer.err.splitlines())), answer
    assert says in answer.err, answer.err


def test_verify_notices_an_edited_journal(cli: Callable[..., Any], done: fedsim.Run) -> None:
    """``verify`` of a run whose journal was edited, the manifest left alone, ends with 1."""
    _tamper(done, "UPDATE tasks SET loss = 0.5 WHERE rowid = 8")

    assert 1 == cli("verify", done.path, "--quiet").code


def test_verify_refuses_when_data_changed(
    cli: Callable[..., Any], scenario_file: Callable[..., Path], tmp_path: Path
) -> None:
    """``verify`` runs again on the same csv file, and refuses when one byte of it has changed or it is gone."""
    table = tmp_path / "table.csv"
    rows = [f"{i % 7},{i * i % 11},{'ab'[i % 2]}" for i in range(60)]
    table.write_text("\n".join(["x,z,label", *rows]))
    file = scenario_file({"data.source": {"kind": "csv", "path": "table.csv", "label": "label"}, "data.test_fraction": 0.2})
    run = fedsim.run(file, out=tmp_path / "run")
    before = cli("verify", run.path, "--quiet")
    table.write_text(table.read_text().replace("1,", "2,", 1))
    changed = cli("verify", run.path, "--quiet")
    table.unlink()
    gone = cli("verify", run.path, "--quiet")

    assert (0, 1, 1) == (before.code, changed.code, gone.code), (before, changed, gone)
    assert f"cannot be verified, because {table} changed since the run (or is gone)" in changed.err
    assert changed.err == gone.err


def test_report_prints_its_path(cli: Callable[..., Any], done: fedsim.Run) -> None:
    """``report`` writes an HTML page that needs no network, and prints where."""
    pytest.importorskip(REPORT)
    answer = cli("report", done.path)
    path = Path(answer.out.strip())

    assert (0, done.path) == (answer.code, path.parent)
    assert "<html" in path.read_text(encoding="utf-8")[:500].lower()


# Cut short


@pytest.fixture(scope="module")
def cut_short(
    tmp_path_factory: pytest.TempPathFactory, tiny_toml: Callable[..., str]
) -> Iterator[dict[str, tuple[Path, int, str]]]:
    """Return, for two ways to end a long run from outside: its folder, its exit code, what it said."""
    folder = tmp_path_factory.mktemp("cut short")
    (folder / "long.toml").write_text(tiny_toml({"server.rounds": 1_000_000}))
    signals = ("SIGINT", "SIGKILL")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    going = {
        name: subprocess.Popen(
            [*FEDSIM, "run", str(folder / "long.toml"), "--out", str(folder / name), "--quiet"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for name in signals
    }  # fmt: skip
    try:
        ended: dict[str, tuple[Path, int, str]] = {}
        for name, process in going.items():
            _until_it_runs(folder / name, process)
            process.send_signal(getattr(signal, name))
            said = process.communicate(timeout=60)[1]
            ended[name] = (folder / name, process.returncode, said)
        yield ended
    finally:
        for process in going.values():
            process.kill()
            process.communicate()


def _until_it_runs(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(fedsim.RunError):  # The folder is there before its first rows.
            if len(read(folder, "rounds")[1]) >= 2:
                return
        time.sleep(0.1)
    raise AssertionError(f"the run did not get going: {process.poll()}")


def test_an_interrupted_run_is_readable(cut_short: dict[str, tuple[Path, int, str]]) -> None:
    """Ctrl-C ends with 130 and one line, and leaves a folder marked interrupted with all that it had."""
    folder, code, said = cut_short["SIGINT"]
    run = fedsim.load(folder)
    rounds, tasks = run.rounds, run.tasks

    assert (130, "interrupted", 1) == (code, run.status, len(said.splitlines())), said
    assert "fedsim: interrupted" in said
    assert run.manifest["error"] == f"interrupted after round {run.final['rounds']}"
    assert list(range(1, len(rounds) + 1)) == rounds["round"].tolist()
    assert run.final["rounds"] in (len(rounds), len(rounds) - 1)
    assert 6 * len(rounds) <= len(tasks)
    assert (10, 64) == tuple(run.params()["1.weight"].shape)
    assert not (folder / "journal.sqlite-wal").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_polite_kill_is_like_ctrl_c(
    number: int, cli: Callable[..., Any], scenario_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM, and a terminal that is closed, end a run as Ctrl-C does: with 130 and one line."""
    monkeypatch.setattr(sys.modules["fedsim.session"], "execute", lambda *_, **__: signal.raise_signal(number))
    answer = cli("run", scenario_file(), "--quiet")

    assert (130, 1) == (answer.code, len(answer.err.splitlines())), answer


def test_a_killed_run_is_readable(cut_short: dict[str, tuple[Path, int, str]]) -> None:
    """After SIGKILL the journal can be read up to its last write, and the run is told to be killed."""
    folder, code, _ = cut_short["SIGKILL"]
    run = fedsim.load(folder)

    assert (-signal.SIGKILL, "killed", None) == (code, run.status, run.manifest["digest"])
    assert len(run.rounds) >= 2
    assert 6 * len(run.rounds) <= len(run.tasks)
    journal = sqlite3.connect(folder / "journal.sqlite")
    assert [("ok",)] == journal.execute("PRAGMA integrity_check").fetchall()
    journal.close()


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_an_unfinished_run_cannot_be_verified(
    name: str, cut_short: dict[str, tuple[Path, int, str]], cli: Callable[..., Any]
) -> None:
    """``verify`` of a run that never finished ends with 1 and says so; ``show`` still shows it."""
    folder = cut_short[name][0]
    answer = cli("verify", folder, "--quiet")

    assert (1, True) == (answer.code, "only a run that is done can be verified" in answer.err), answer
    assert 0 == cli("show", folder).code


def test_setting_one_of_two_takes_the_other_away(cli: Callable[..., Any], scenario_file: Callable[..., Path]) -> None:
    """``--set training.steps`` works on a file that says epochs, and clients_per_round on one with a fraction."""
    file = scenario_file({"server.strategy": {"kind": "FedAvg", "fraction_train": 0.5}})
    answer = cli("check", file, "--set", "training.steps=3", "--set", "server.strategy.clients_per_round=2", "--json")

    assert 0 == answer.code, answer
    assert 2.0 == json.loads(answer.out)["clients_per_round"]
