"""``engine.reproducible = "everywhere"``: one digest for all machines, from a process of its own, or a line that says why not."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

import fedsim
from conftest import tiny_table
from fedsim import apart, session
from fedsim.core import pinned
from fedsim.core.errors import RunError, ScenarioError
from fedsim.core.progress import Progress
from fedsim.learn import elementary, kernels
from fedsim.learn.models import models
from fedsim.many import runs
from fedsim.real.folder import init_app
from fedsim.record.leaving import Interrupted, Pruned
from fedsim.scenario.load import load

sys.path.insert(0, str(Path(__file__).with_name("golden")))
from play import SCENARIOS

EVERYWHERE = {"engine.reproducible": "everywhere"}
ELSEWHERE = {
    "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "SSE41", "NPY_DISABLE_CPU_FEATURES": "AVX2",
    "OPENBLAS_CORETYPE": "Nehalem", "OMP_NUM_THREADS": "2", "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2_Usable",
}  # fmt: skip
"""What a caller's environment may say that would choose other kernels."""
LOUD = """
from flwr.serverapp.strategy import FedAvg

class Loud(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        print(f"round {server_round} begins")
        return super().configure_train(server_round, arrays, config, grid)
"""


@dataclass
class Seen:
    """What a caller saw of a run in another process."""

    run: fedsim.Run
    printed: str
    heard: list[Progress] = field(default_factory=list[Progress])
    models: list[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """A golden scenario, its strategy in a file beside it, run by a caller whose environment asks for other kernels."""
    folder = tmp_path_factory.mktemp("everywhere")
    (folder / "loud.py").write_text(LOUD)
    (folder / "s.toml").write_bytes(tomli_w.dumps(tiny_table(SCENARIOS["late-cnn"], **EVERYWHERE)).encode())
    heard, shown, printed = list[Progress](), list[Mapping[str, Any]](), io.StringIO()

    def watch(where: Progress) -> None:
        heard.append(where)
        if where.round == 2:
            shown.append(dict(where.model))

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        for name, value in ELSEWHERE.items():
            patch.setenv(name, value)
        run = fedsim.run(folder / "s.toml", overrides={"server.strategy": {"kind": "loud:Loud"}}, out=folder / "run", watch=watch)
    return Seen(run, printed.getvalue(), heard, shown)


def test_the_digest_is_the_one_of_all_machines_whatever_the_environment_says(seen: Seen) -> None:
    """Convolutions, momentum and late replies come to the golden digest, though every library was asked for other kernels."""
    golden = json.loads(Path(__file__).with_name("golden").joinpath("golden.json").read_text())

    assert golden["digests"]["late-cnn"] == [seen.run.digest, seen.run.metrics_digest]


def test_the_whole_run_is_in_another_process_and_the_manifest_says_on_what_its_promise_rests(seen: Seen) -> None:
    """The process is not the caller's; variables, kernels and what they answer are there; nothing of the caller's environment is."""
    about = seen.run.manifest
    rests = about["rests_on"]

    assert os.getpid() != about["process"]["pid"]
    assert "every x86-64 machine" in about["promise"]
    assert pinned.pins() == rests["variables"]
    assert ("AVX2", "COMPATIBLE", "") == (rests["kernels"]["torch"], rests["kernels"]["mkl"], rests["kernels"]["numpy"])
    assert [] == about["notes"], "what libraries answer is as it was measured"


def test_the_caller_hears_where_the_run_is_and_what_it_prints(seen: Seen) -> None:
    """Each round is heard, with scores; the model is shown while it is asked for, not later; what own code prints comes out here."""
    assert [0, 1, 2] == [where.round for where in seen.heard]
    assert seen.run.final["accuracy"] == seen.heard[-1].scores["accuracy"]
    assert ["round 1 begins", "round 2 begins"] == seen.printed.splitlines()
    for name, array in seen.run.params().items():
        np.testing.assert_array_equal(array, seen.models[0][name])
    with pytest.raises(RunError, match="has gone on"):
        len(seen.heard[1].model)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., fedsim.Run]:
    """Return ``stand_in(name, watch)``: a run in another process that only tells of rounds (stand_in.py)."""
    monkeypatch.setattr(apart, "CHILD", "stand_in")
    return lambda name, watch: fedsim.run(tiny_table(EVERYWHERE, name=name), out=tmp_path / "run", watch=watch)


def test_ctrl_c_is_passed_on_and_what_the_run_says_comes_back(stand_in: Callable[..., Any]) -> None:
    """Ctrl-C while the caller waits, and one more: the other process ends in order, and its words are ours."""
    heard = list[int]()

    def watch(where: Progress) -> None:
        heard.append(where.round)
        if where.round == 2:
            threading.Timer(0.03, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)]).start()

    with pytest.raises(Interrupted, match="interrupted after round .* is safe"):
        stand_in("endless", watch)
    assert [*range(len(heard))] == heard


def test_what_whoever_watches_raises_ends_the_run(stand_in: Callable[..., Any]) -> None:
    """Ctrl-C in a watch interrupts the run; pruning prunes it; an error is the run's error, by its name and words."""

    def raising(error: BaseException) -> Callable[[Progress], None]:
        def watch(where: Progress) -> None:
            if where.round == 1:
                raise error

        return watch

    with pytest.raises(Interrupted, match="interrupted after round 1"):
        stand_in("endless", raising(KeyboardInterrupt()))
    with pytest.raises(Interrupted, match="interrupted after round 1"):  # A run of its own says pruned here: tests/test_sweeping.py.
        stand_in("endless", raising(Pruned("enough was seen")))
    with pytest.raises(RunError, match="worse than before"):
        stand_in("endless", raising(RunError("worse than before")))
    with pytest.raises(RuntimeError, match="ValueError: no such score") as error:
        stand_in("endless", raising(ValueError("no such score")))
    assert "stand_in.py" in str(error.value.__cause__), "the story is told where it happened"


def test_a_process_that_dies_or_breaks_is_told_in_a_line(stand_in: Callable[..., Any]) -> None:
    """Killed, as by a system without memory; or broken in a way that nobody foresaw, whose story comes along."""
    with pytest.raises(RunError, match="the process of the run was killed by SIGKILL"):
        stand_in("killed", lambda where: None)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: nobody saw this coming"):
        stand_in("unforeseen", lambda where: None)


def test_a_run_ends_with_its_caller(tmp_path: Path) -> None:
    """Kill the caller, however hard: the other process reads the end of its input, and ends too."""
    code = (
        "import sys, fedsim, os, conftest\nfrom fedsim import apart\napart.CHILD = 'stand_in'\n"
        "child = apart._Child(None)\nprint(child.process.pid, flush=True)\n"
        "child.answer({'scenario': conftest.tiny_table(name='endless')})"
    )
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=given)
    assert caller.stdout is not None
    there = Path(f"/proc/{caller.stdout.readline().strip()}/stat")
    before = there.exists()
    caller.kill()
    caller.wait()
    until_s = time.monotonic() + 10.0
    while there.exists() and there.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < until_s:
        time.sleep(0.02)

    assert before
    assert not there.exists() or there.read_text().rpartition(")")[2].split()[0] == "Z"


def test_no_manifest_says_everywhere_where_libraries_were_loaded_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose libraries chose for themselves refuses, though it is told that it is the right one, or sets the variables late."""
    monkeypatch.setattr(apart, "needed", lambda scenario: False)
    with pytest.raises(RunError, match="did not load its libraries so"):
        session.execute(load(tiny_table(EVERYWHERE)), tmp_path / "run")
    for name, value in pinned.pins().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match="FEDSIM_REPRODUCIBLE = None, and not 'everywhere'"):
        session.execute(load(tiny_table(EVERYWHERE)), tmp_path / "run")

    assert not (tmp_path / "run").exists()
    assert not elementary.hold.cache_info().currsize, "and this process goes on by its own kernels"


def test_a_library_is_asked_and_not_only_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the variables are right and MKL, torch or numpy answers otherwise, that one is named."""
    monkeypatch.setattr(pinned, "unpinned", lambda began=None: "")
    right = {"torch": "AVX2", "mkl": "COMPATIBLE", "numpy": ""}
    for name, wrong in (("mkl", "AUTO"), ("torch", "AVX512"), ("numpy", "X86_V4")):
        found = {**right, name: wrong}
        monkeypatch.setattr(kernels, "kernels", lambda found=found: found)
        with pytest.raises(RunError, match=f"{name} chose '{wrong}'"):
            kernels.check()


def test_answers_that_are_none_of_those_measured_are_noted() -> None:
    """Another libm gives another sentence in the manifest, which names it; the same answers give none."""
    assert "" == kernels.remark({"answers": kernels.ANSWERS})
    assert "everywhere': libm come" in kernels.remark({"answers": {**kernels.ANSWERS, "libm": "0"}})


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"engine.device": "cuda"}, "engine.device = 'cuda' is a GPU.*Take device = 'cpu'"),
    ({"engine.device": "auto"}, "engine.device = 'auto' takes a GPU where there is one.*Take device = 'cpu'"),
    ({"engine.precision": "bfloat16"}, "engine.precision = 'bfloat16'.*Leave precision out"),
    ({"engine.executor": {"kind": "mine:Cluster"}}, "engine.executor.kind = 'mine:Cluster' computes. Take 'local' or 'processes'"),
    ({"model": {"kind": "__main__:Net"}}, "model.kind = '__main__:Net': is in this process alone.*a file beside the scenario"),
    ({"model": {"kind": "of-a-cell"}}, "model.kind = 'of-a-cell': was registered in this process.*a file beside the scenario"),
    ({"engine.reproducible": "anywhere"}, "engine.reproducible = 'anywhere'.*machine.*everywhere"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_what_cannot_be_held_to_one_arithmetic_is_refused(settings: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs, bfloat16, strangers' executors and kinds of this process alone are refused in a line, and no process is started."""
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setitem(models._entries, "of-a-cell", lambda shape, outputs: None)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(ScenarioError, match=said) as error:
        fedsim.run(tiny_table(EVERYWHERE), overrides=settings)

    assert "\n" not in str(error.value)


def test_a_machine_that_cannot_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No x86-64, no AVX2, a numpy built for more, a torch without MKL: one line each, with what would have worked."""
    for name, value, said in (
        ("platform.machine", lambda: "aarch64", "is aarch64, and no x86-64"),
        ("fedsim.core.pinned._flags", lambda: frozenset({"avx"}), "no avx2"),
        ("fedsim.core.pinned._umath.__cpu_baseline__", ["SSE", "X86_V4"], "built for X86_V4"),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(name, value)
            pinned.lacking.cache_clear()
            with pytest.raises(ScenarioError, match=f"engine.reproducible = 'everywhere': .*{said}.*'machine' works"):
                fedsim.run(tiny_table(EVERYWHERE))
    pinned.lacking.cache_clear()
    monkeypatch.setattr("torch.backends.mkl.is_available", lambda: False)
    with pytest.raises(ScenarioError, match="engine.reproducible = 'everywhere': this torch has no MKL.*'machine' works"):
        kernels.check()


def test_where_it_means_nothing_it_is_refused(tmp_path: Path, cli: Callable[..., Any], scenario_file: Callable[..., Path]) -> None:
    """Real clients, the Flower app of a scenario, and a Flower app on a fleet: the key, its value, and what works instead."""
    file = scenario_file(EVERYWHERE)
    with pytest.raises(ScenarioError, match="engine.reproducible = 'everywhere': real clients.*'fedsim run'"):
        init_app(tmp_path / "app", file)
    for words in (["deploy", file], ["validate", file, "--set", "server.rounds=3"]):
        answer = cli(*words)
        assert (2, True) == (answer.code, "engine.reproducible = 'everywhere': real clients" in answer.err), answer.err
    app, fleet = "tests/foreign/apps/quickstart-numpy", "scenarios/fleets/phones.toml"
    answer = cli("run", app, "--fleet", fleet, "--set", "engine.reproducible=everywhere")

    assert (2, True) == (answer.code, "engine.reproducible = 'everywhere': a Flower app" in answer.err), answer.err


def test_verify_says_same_bits_of_a_run_from_another_machine(
    seen: Seen, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """A run of another processor that comes to the same is called so; what differs is named by its row."""
    about = seen.run.manifest
    (tmp_path / "manifest.json").write_text(json.dumps({**about, "machine": {**about["machine"], "processor": "Intel Xeon"}}))
    monkeypatch.setattr(session, "verify", lambda *_, **__: None)
    same = cli("verify", tmp_path, "--quiet")
    monkeypatch.setattr(session, "verify", lambda *_, **__: "tasks row 3 (round 1, client 2): loss was 1.0, is now 1.5")
    other = cli("verify", tmp_path, "--quiet")

    assert (0, f"{tmp_path}: same bits as on Intel Xeon, digest {about['digest'][:16]}... again.\n") == (same.code, same.out)
    assert (1, True) == (other.code, "differs. First: tasks row 3" in other.err)


def test_a_worker_of_many_runs_is_started_as_each_run_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose bits are promised everywhere gets a process that began pinned, the next one of one machine another that did not."""
    says = (
        "import os, sys, json\nfor line in sys.stdin:\n"
        "    print(json.dumps({'status': os.environ.get('MKL_CBWR', 'none'), 'error': ''}), flush=True)"
    )
    monkeypatch.delenv("MKL_CBWR", raising=False)
    monkeypatch.setattr(runs, "command", lambda module: [sys.executable, "-S", "-c", says])
    worker = runs._Worker()  # pyright: ignore[reportPrivateUsage]
    found = [worker.ask({}, everywhere=wanted)["status"] for wanted in (False, True, True, False)]
    worker.end()
    worker.gone()

    assert ["none", "COMPATIBLE", "COMPATIBLE", "none"] == found
