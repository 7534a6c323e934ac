"""What is no Flower app, or does not run: each ends with one line; a client that crashes is an error reply, as in Flower."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsim

Go = Callable[..., fedsim.Run]
Table = Callable[..., dict[str, Any]]
Make = Callable[..., Path]

PYPROJECT = """
    [project]
    name = "mine"
    version = "1"
    [tool.flwr.app]
    publisher = "me"
    [tool.flwr.app.components]
    serverapp = "{server}"
    clientapp = "{client}"
    """
CLIENT = """
    import os
    import numpy as np
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context):
        client = context.node_config["partition-id"]
        w = message.content["arrays"]["w"].numpy()
        {body}
        return Message(RecordDict({{"a": ArrayRecord({{name: Array(w)}}), "m": MetricRecord({{"num-examples": 3}})}}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context):
        return Message(RecordDict({{"m": MetricRecord({{"num-examples": 3, "x": 1.0}})}}), reply_to=message)
    """


def client(body: str) -> str:
    return CLIENT.format(body=f"name = 'w'; {body}")


def test_what_is_no_app_is_told(cli: Callable[..., Any], tmp_path: Path, fleet: Table, app_of: Make) -> None:
    """A folder without a pyproject.toml, one without Flower's tables, a file, nothing, an app without a fleet: exit 2, one line."""
    empty, plain = tmp_path / "empty", app_of("plain", pyproject="[project]\nname = 'x'\n")
    file, config = tmp_path / "f.py", tmp_path / "f.toml"
    empty.mkdir()
    file.touch()
    config.write_text("name = 'f'\n[clients]\ncount = 2\n")
    wrong = app_of("wrong", pyproject=PYPROJECT.format(server="numpyexample.server_app", client="numpyexample.client_app:app"))
    cases = (
        ((empty, "--fleet", config), "no pyproject.toml"), ((plain, "--fleet", config), "not a Flower app"),
        ((file, "--fleet", config), "it is a file"), ((tmp_path / "no", "--fleet", config), "there is no such folder"),
        ((app_of("fine"),), "--fleet"), ((wrong, "--fleet", config), "must look like 'package.module:name'"),
        ((app_of("one"), "--fleet", tmp_path / "g.toml"), "no such file"),
        ((app_of("two"), "--fleet", config, "--run-config", "epochs=3"), "epochs"),
        ((app_of("three"), "--fleet", config, "--set", "clients.count=0"), "clients.count = 0"),
        ((app_of("four"), "--fleet", config, "--set", "compute.trian.seconds=1.0"), "'trian' is no kind of message"),
        ((app_of("five"), "--fleet", config, "--set", "clients.network.kind=ideel"), "Did you mean 'ideal'?"),
    )  # fmt: skip
    for words, said in cases:
        answer = cli("run", *words, "--quiet")
        assert (2, 1, True) == (answer.code, len(answer.err.splitlines()), said in answer.err), (words, answer)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"server_app": "import math\nx = 1 / 0\n"}, "serverapp = 'numpyexample.server_app:app': cannot be imported: ZeroDivisionError: "
         "division by zero (server_app.py, line 2)"),
        ({"client_app": "from numpyexample.task import nothing\n"}, "(client_app.py, line 1)"),
        ({"client_app": "import numpyexample.task\n", "task": "import os\n\nos.no_such\n"}, "(task.py, line 3)"),
        ({"client_app": "import not_there_at_all\n"}, "needs the package 'not_there_at_all', which is not installed here (client_app.py"),
        ({"server_app": "import not_there_at_all\n"}, "needs the package 'not_there_at_all'"),
        ({"client_app": "app = 3\n"}, "is a int, not a ClientApp"),
        ({"client_app": "apq = 3\n"}, "Unable to load attribute app from module numpyexample.client_app"),
        ({"server_app": "def app(:\n"}, "SyntaxError"),
        ({"client_app": "import os\nprint('farewell', flush=True)\nos._exit(3)\n"},
         "ended with exit code 3 while it was loaded. It said: farewell"),
    ],
)  # fmt: skip
def test_components_that_do_not_load_are_told(files: dict[str, str], said: str, run: Go, app_of: Make) -> None:
    """Whatever an app's module does while it is imported is one line, with its own last file and line, and not ours."""
    with pytest.raises(fedsim.FedsimError) as error:
        run(app_of(**files))

    assert said in str(error.value) and "\n" not in str(error.value)
    assert isinstance(error.value, fedsim.ScenarioError)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("1 / (client - 1)", "<class 'ZeroDivisionError'>:<'division by zero'>"),
        ("os._exit(7) if client == 1 else 0", "the ClientApp's process ended with exit code 7"),
        ("os.kill(os.getpid(), 11) if client == 1 else 0", "the ClientApp's process was killed by SIGSEGV"),
        ("exit(0) if client == 1 else 0", "the ClientApp's process ended with exit code 0"),
    ],
)
def test_a_client_that_breaks_is_an_error_reply(body: str, reason: str, run: Go, fleet: Table, app_of: Make) -> None:
    """An exception, an exit and a crash of one client are failures of its messages; the round goes on with the others."""
    app = app_of(client_app=client(body))
    one, two = run(app), run(app, fleet(engine={"workers": 2}))
    failed = one.tasks[one.tasks.outcome == "failed"]

    assert ("done", {1}, {reason}) == (one.status, set(failed.client), set(failed.failure))
    assert one.digest == two.digest


def test_a_reply_with_other_arrays_is_named(run: Go, app_of: Make) -> None:
    """A client whose reply has another shape, or another name, ends the run by a line that says which, and how it differs."""
    for body, said in (("w = w[:3] if client == 2 else w", "(3,)"), ("name = 'v' if client == 2 else 'w'", "missing")):
        app = app_of(f"odd{len(body)}", client_app=client(body))
        with pytest.raises(fedsim.RunError, match="round 1: client 2 replied with other arrays than client") as error:
            run(app, run_config={"fraction-train": 1.0})
        assert said in str(error.value)


def test_what_nobody_declares_is_not_guessed(run: Go, fleet: Table) -> None:
    """A kind of message that the fleet says nothing of ends the run, and the line says what would work."""
    with pytest.raises(fedsim.RunError, match=r"compute.evaluate: missing.*--measure"):
        run("quickstart-numpy", fleet(compute={"train": {"seconds": 1.0}}))


def test_a_server_that_raises_leaves_a_folder(run: Go, app_of: Make, tmp_path: Path) -> None:
    """The line names the app's file and line; the folder says that the run failed, and holds what was recorded."""
    text = (Path(__file__).parent / "apps" / "quickstart-numpy" / "numpyexample" / "server_app.py").read_text()
    app = app_of(server_app=text.replace('print("done"', 'raise KeyError("oh")\n    print("done"'))
    with pytest.raises(fedsim.RunError, match=r"the ServerApp raised KeyError: 'oh' \(server_app.py, line \d+\)"):
        run(app)

    left = fedsim.load(tmp_path / "run0")
    assert ("failed", True) == (left.status, len(left.tasks) > 0)


def test_a_server_that_waits_for_nothing_is_told(run: Go, app_of: Make) -> None:
    """A loop that reads the clock and never sleeps, and one that asks for replies that never come, end by a line."""
    loop = """
        import time
        from flwr.serverapp import ServerApp
        app = ServerApp()
        @app.main()
        def main(grid, context):
            {body}
        """
    with pytest.raises(fedsim.RunError, match="a clock that stands still"):
        run(app_of("clock", server_app=loop.format(body="while time.time() < time.time() + 5: pass")))
    with pytest.raises(fedsim.RunError, match="all were pulled before, or never sent"):
        run(app_of("polls", server_app=loop.format(body="while not grid.pull_messages(['m1']): time.sleep(1)")))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_cut_short_leaves_no_process(number: int, app_of: Make, tmp_path: Path) -> None:
    """Ctrl-C and a polite kill leave a folder that says so, and exit 130; whatever kills a run, its processes end with it."""
    out, fleet = tmp_path / "run", Path(__file__).parents[2] / "scenarios" / "fleets" / "phones.toml"
    words = ["run", str(app_of()), "--fleet", str(fleet), "--run-config", "num-server-rounds=100000", "--out", str(out), "--quiet"]
    go = subprocess.Popen([sys.executable, "-c", "from fedsim.cli import main; main()", *words], stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until and not (out / "flower.log").is_file():
            time.sleep(0.1)
        workers = _children(go.pid)
        go.send_signal(number)
        _, said = go.communicate(timeout=30)
    finally:
        go.kill()
    until = time.monotonic() + 10
    while time.monotonic() < until and any(Path(f"/proc/{pid}").exists() for pid in workers):
        time.sleep(0.1)

    assert workers and not any(Path(f"/proc/{pid}").exists() for pid in workers)
    if number != signal.SIGKILL:
        assert (130, "interrupted", 1) == (go.returncode, fedsim.load(out).status, len(said.splitlines())), said


def _children(pid: int) -> set[str]:
    """Return the processes of apps that *pid* has."""
    found: set[str] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        found |= set((task / "children").read_text().split())
    return {child for child in found if b"fedsim.foreign.worker" in Path(f"/proc/{child}/cmdline").read_bytes()}


def test_nothing_is_left_behind(run: Go, app_of: Make) -> None:
    """No process of an app outlives its run, be it done or broken."""
    run("quickstart-numpy", run_config={"num-server-rounds": 1})
    with pytest.raises(fedsim.FedsimError):
        run(app_of(server_app="1 / 0"))

    assert set() == _children(os.getpid())
