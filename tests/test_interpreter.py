"""However Python was started, the bits are the same, and a check is a check; what is not compiled says so."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fedsim
from conftest import tiny_table
from fedsim.core import children
from fedsim.core.children import interpreter_flags
from fedsim.core.errors import RunError, must
from fedsim.learn.engine import step as steps
from fedsim.learn.engine import trace
from fedsim.learn.engine.executors import processes
from fedsim.learn.objectives import Classification

HOUSE = Path(fedsim.__file__).parent
RUN = """
import json, sys
sys.path[:0] = [{tests!r}]
import fedsim
from conftest import tiny_table
run = fedsim.run(tiny_table({{"model": {{"kind": "mlp", "hidden": [8]}}, "server.rounds": 1}}), out={out!r})
print(json.dumps([run.digest, run.manifest["notes"], run.manifest["interpreter"]]))
"""


def run(out: Path, *flags: str, **environment: str) -> tuple[str, list[str], dict[str, object]]:
    """Return digest, notes and interpreter of a small run by a Python that is started so."""
    command = RUN.format(tests=str(Path(__file__).parent), out=str(out))
    said = subprocess.run(
        [sys.executable, *flags, "-c", command], env={**os.environ, "PYTHONPATH": str(HOUSE.parent), **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    digest, notes, about = json.loads(said.stdout)
    return digest, notes, about


def test_optimised_python_gives_the_same_bits(tmp_path: Path) -> None:
    """Under ``python -O``, and with PYTORCH_JIT=0, the digest is that of plain Python, without a note."""
    plain = fedsim.run(tiny_table({"model": {"kind": "mlp", "hidden": [8]}, "server.rounds": 1}), out=tmp_path / "plain")
    others = [run(tmp_path / "one", "-O"), run(tmp_path / "jit", PYTORCH_JIT="0")]

    assert [] == plain.manifest["notes"] and "-O" not in plain.manifest["interpreter"]["flags"]
    assert {(plain.digest, 0)} == {(digest, len(notes)) for digest, notes, _ in others}
    assert ["-O"] == others[0][2]["flags"]


def test_flags_are_what_python_was_started_with() -> None:
    """-O and -X as they were given; what changes no number is left out."""
    said = subprocess.run(
        [
            sys.executable, "-OO", "-X", "utf8", "-X", "importtime=0",
            "-c", "from fedsim.core.children import interpreter_flags; print(interpreter_flags())",
        ],
        env={**os.environ, "PYTHONPATH": str(HOUSE.parent), "PYTHONDONTWRITEBYTECODE": ""}, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert "['-OO', '-X', 'utf8', '-X', 'importtime=0']" == said.stdout.strip()
    assert isinstance(interpreter_flags(), list)


def test_workers_are_started_with_the_flags_of_their_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's command line has them: under -O two workers would disagree with one."""
    monkeypatch.setattr(children, "interpreter_flags", lambda: ["-O", "-X", "utf8"])
    started: list[list[str]] = []
    popen = subprocess.Popen

    def spy(command: list[str], **more: Any) -> subprocess.Popen[bytes]:
        started.append(command)
        return popen(command, **more)

    monkeypatch.setattr(processes.subprocess, "Popen", spy)  # Not /proc: a moment after exec, the kernel has no command line yet.
    processes.Workers(1).close()

    assert [["-O", "-X", "utf8", "-P"]] == [command[1:5] for command in started]


def checks(path: Path) -> Iterator[str]:
    """Yield the asserts of a file that say more than a type: ``is not None`` and ``isinstance`` are for the type checker."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assert):
            parts = node.test.values if isinstance(node.test, ast.BoolOp) else [node.test]
            typed = all(
                (isinstance(p, ast.Compare) and isinstance(p.ops[0], ast.IsNot))
                or (isinstance(p, ast.Call) and getattr(p.func, "id", "") == "isinstance")
                for p in parts
            )
            if not typed or node.msg is not None:
                yield f"{path.name}:{node.lineno}"


def test_no_check_is_an_assert(tmp_path: Path) -> None:
    """What the world may do is checked by ``raise``: ``python -O`` removes an assert."""
    assert [] == [found for path in sorted(HOUSE.rglob("*.py")) for found in checks(path)]

    (tmp_path / "bad.py").write_text("assert size == foretold\nassert thing is not None\n")
    assert ["bad.py:1"] == list(checks(tmp_path / "bad.py"))


def test_a_broken_promise_stops_the_run() -> None:
    """``must`` raises in words that blame fedsim, and says nothing where all is well."""
    must(True, "nothing")
    with pytest.raises(RunError, match="defect of fedsim"):
        must(False, "2 bytes were foretold, 3 encoded")


def step_of(model: nn.Module) -> steps.Step:
    """Return the compiled step of *model* on drawn features."""
    return steps.compile_step(model, Classification(), torch.randn(4, 3), torch.arange(4) % 2, plain=True, whole_targets=True)


class Untraced(nn.Module):
    """Decides by value, so that no trace holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.l(x) if float(x.sum()) > 0 else self.l(-x)


def test_every_way_down_from_the_compiled_step_leaves_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not traced, not stacked, not in agreement, raising once compiled: each is said; a step that is compiled says nothing."""
    linear, true_trace = nn.Linear(3, 2), trace.trace

    def single_only(*given: object, rows: int | None, **more: object) -> object:
        if rows is not None:
            raise trace.Untraceable("no rule")
        return true_trace(*given, rows=rows, **more)  # type: ignore[arg-type]  # As it was called.

    assert "" == step_of(linear).note
    assert "cannot be traced" in step_of(Untraced()).note
    with monkeypatch.context() as patched:
        patched.setattr(steps, "trace", single_only)
        assert "cannot be stacked (no rule)" in step_of(linear).note
    with monkeypatch.context() as patched:
        patched.setattr(steps, "compared", lambda *_: False)
        assert "gives other numbers" in step_of(linear).note
    with monkeypatch.context() as patched:
        patched.setattr(steps, "compared", lambda *_: None)
        assert "no finite loss" in step_of(linear).note
    with monkeypatch.context() as patched:
        patched.setattr(steps, "_placed", lambda *_: 1 / 0)
        assert "cannot be compiled (ZeroDivisionError" in step_of(linear).note
