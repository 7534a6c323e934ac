"""A run while it goes, as a person sees it: the panel at any width, lines in a log, what is foretold of the end, and that nothing moves."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

import fedsim
from fedsim.learn.engine.cohort import CohortEngine
from fedsim.live import terminal
from fedsim.live.pace import Pace
from fedsim.live.panel import Standing, clock, lines
from fedsim.live.teller import Teller
from fedsim.scenario.load import load
from fedsim.scenario.stop import Stop
from fedsim.session import Progress

Go = Callable[..., fedsim.Run]
Tiny = Callable[..., dict[str, Any]]
WIDE = Standing(
    name="a-study-of-many-devices-that-has-a-very-long-name", round=123_456, rounds=1_000_000, now_s=987_654.0, down_bytes=12_345_678_901,
    up_bytes=9_876_543_210, score="accuracy", values=[0.1 * i for i in range(500)], others={"loss": 1234.5, "perplexity": 1e-9},
    tasks=1_234_567, tasks_per_s=1234.5, done=7, due=10_000, wall_s=86_399.0, share=0.12, left_s=600_000.0, at_most=True,
)  # fmt: skip


@pytest.mark.parametrize("width", [20, 40, 60, 80, 132])
@pytest.mark.parametrize("at", [WIDE, replace(WIDE, name="q", round=3, rounds=30), Standing("q", doing="building the world")])
def test_no_line_is_wider_than_the_terminal(at: Standing, width: int) -> None:
    """Whatever stands in it, the panel keeps to the terminal's width; from 60 columns on nothing of it is cut, and 80 take few lines."""
    found = [line.plain for line in lines(at, width)]
    assert max(map(len, found)) <= width
    assert all(line.plain.isascii() for line in lines(at, width, ascii_only=True))
    if width >= 60 and not at.doing:
        said = "  ".join(found)
        for word in ("accuracy 49.900", "loss", "12.3 GB down, 9.88 GB up", "1,234,567 tasks, 1,234 a second", "at most 166:40:00 left"):
            assert word in said
    assert width < 80 or len(found) <= 5


@pytest.fixture
def hour(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """A clock that stands still until it is set."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    yield lambda at: now.__setitem__(0, at)


def test_the_end_is_foretold_by_the_later_half(hour: Callable[[float], None]) -> None:
    """Where the first rounds took ten times as long as later ones, what is left is told by these; bytes that end the run sooner count."""
    slow, bound = Teller("x", 100, None), Teller("x", 100, Stop(megabytes=40.0))
    for number in range(41):
        hour(10.0 * min(number, 10) + max(0, number - 10))
        for teller in (slow, bound):
            teller.take(Progress(number, 100, 1.0 * number, 500_000 * number, 500_000 * number - number, {}, tasks=6 * number))

    assert 60.0 == slow.standing.left_s and 6.0 == slow.standing.tasks_per_s
    assert 0.0 == pytest.approx(bound.standing.left_s, abs=0.1) and 1.0 == pytest.approx(bound.standing.share, abs=0.01)


def test_marks_that_go_leave_the_pace() -> None:
    """Of a run of a million moments few are kept, and what is foretold is what it would be by all."""
    pace = Pace()
    for second in range(20_000):
        pace.take(float(second), second / 40_000, second)

    assert len(pace._marks) <= 512 and 20_000 == pytest.approx(pace.left_s(20_000.0, 0.5), rel=0.01)
    assert 1.0 == pace.tasks_per_s()


def test_a_log_has_few_lines(hour: Callable[[float], None], capsys: pytest.CaptureFixture[str]) -> None:
    """Of a thousand rounds a log has a line after each tenth, of a second none; of an hour one a minute at first, of a day hardly more."""
    for each_s, expected in ((0.05, 10), (0.001, 0), (1.2, 20), (86.4, 100)):
        hour(0.0)
        told = terminal.Lines(Teller("a-run", 1000, None))
        for number in range(1001):
            hour(each_s * number)
            told.tell(Progress(number, 1000, 0.0, 0, 0, {"accuracy": 0.5}, scored=number))

        found = capsys.readouterr().err.splitlines()
        assert 0.9 * expected <= len(found) <= expected
        assert all(line.startswith("a-run: round ") and "accuracy 0.5" in line for line in found)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 80 columns is sent."""
    sent = io.StringIO()
    monkeypatch.setattr(terminal, "Console", lambda **_: Console(file=sent, force_terminal=True, width=80, _environ={"TERM": "xterm"}))
    return sent


def test_looking_on_moves_nothing_and_costs_little(go: Go, tiny: Tiny, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run under a panel has the digests of one without; a drawing takes less than a hundredth of the time between two."""
    monkeypatch.setattr(terminal, "A_SECOND", 50)
    plain = go({"server.rounds": 4})
    with terminal.progress(load(tiny({"server.rounds": 4})).scenario, silent=False) as watch:
        shown = go({"server.rounds": 4}, watch=watch)
        time.sleep(0.05)
    assert (plain.digest, plain.metrics_digest) == (shown.digest, shown.metrics_digest)
    assert "round 4 of 4" in screen.getvalue() and "accuracy" in screen.getvalue()

    teller, console = Teller("x", 30, None), Console(file=io.StringIO(), force_terminal=True, width=80)
    for number in range(30):
        teller.take(Progress(number, 30, 1.0, 1, 1, {"accuracy": 0.1 * number}, scored=number))
    began = time.process_time()
    for _ in range(50):
        console.print(teller)
    assert (time.process_time() - began) / 50 < 0.01 / 4


def test_ctrl_c_leaves_the_terminal_in_order(go: Go, tiny: Tiny, screen: io.StringIO) -> None:
    """Interrupted, the panel goes, and the cursor is there again."""

    def press(where: Progress) -> None:
        if where.round == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="safe in"), terminal.progress(load(tiny()).scenario, silent=False) as watch:
        go(watch=lambda where: (watch and watch(where), press(where)))
    assert -1 < screen.getvalue().rfind("\x1b[?25l") < screen.getvalue().rfind("\x1b[?25h")


@pytest.mark.parametrize("chunk", [1, 4])
def test_within_a_round_tasks_are_counted(go: Go, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """While clients train, whoever looks on is told how many are done, of how many; between rounds, none of none."""
    seen: list[tuple[int, int]] = []
    latest: list[Progress] = []
    train = CohortEngine._train

    def looked(self: CohortEngine, *what: Any) -> Any:
        seen.append(latest[-1].under_way())
        return train(self, *what)

    monkeypatch.setattr(CohortEngine, "_train", looked)
    go({"engine.chunk": chunk, "server.rounds": 1}, watch=latest.append)

    assert [(done, 6) for done in range(0, 6, chunk)] == seen
    assert (0, 0) == latest[-1].under_way() and 6 == latest[-1].tasks


def test_a_clock_of_hours() -> None:
    """A day and a half is told in hours."""
    assert ("36:00:00", "0:00") == (clock(129_600), clock(0.4))
