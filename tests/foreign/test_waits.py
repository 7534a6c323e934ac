"""Clocks and waits of a server on virtual time: what waits in its own thread takes none of the host's."""

from __future__ import annotations

import asyncio
import queue
import sched
import select
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import pytest

import fedsim
from fedsim.core.errors import RunError
from fedsim.foreign import clock
from fedsim.foreign.server import keeps_the_hosts_clock

Go = Callable[..., fedsim.Run]
Make = Callable[..., Path]
PLAIN = time.monotonic
LONG_S = 50_000.0
QUICK_S = 20.0
"""What a wait on virtual time takes of the host's at most, on a machine that has other things to do."""


def test_clocks_are_virtual_for_the_app_alone() -> None:
    """Within, time.sleep and the clocks are ours in this thread, the host's elsewhere, for whom *real* names, and afterwards."""
    slept: list[float] = []
    plain = time.sleep, time.time
    elsewhere: list[float] = []
    with clock.virtual_clock(lambda: 7.0, slept.append, lambda module: module == "other") as virtual:
        time.sleep(30)
        assert (clock.EPOCH_S + 7.0, 7.0, 7_000_000_000) == (time.time(), time.monotonic(), time.monotonic_ns())
        thread = threading.Thread(target=lambda: elsewhere.append(time.time()))
        thread.start()
        thread.join()
        assert plain[1]() - 5 < eval("time.time()", {"__name__": "other", "time": time}) < plain[1]() + 5
        with virtual.host():
            assert plain[1]() - 5 < time.time() < plain[1]() + 5
        kept = time.sleep
    kept(0.0)  # What was imported by name within is the host's now.

    assert ([30.0], plain) == (slept, (time.sleep, time.time))
    assert plain[1]() - 60 < elsewhere[0] <= plain[1]()


@contextmanager
def virtual(real: Callable[[str], bool] = lambda module: False) -> Iterator[tuple[clock.Clock, Callable[[], float]]]:
    """Give a clock that sleep moves, and what tells its time."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    with clock.virtual_clock(lambda: now[0], sleep, real) as virtual:
        yield virtual, lambda: now[0]


def _event() -> None:
    assert not threading.Event().wait(LONG_S)


def _condition() -> None:
    with (condition := threading.Condition()):
        assert not condition.wait_for(lambda: False, LONG_S)


def _queue() -> None:
    with pytest.raises(queue.Empty):
        queue.Queue[int]().get(timeout=LONG_S)


def _full_queue() -> None:
    (full := queue.Queue[int](1)).put(1)
    with pytest.raises(queue.Full):
        full.put(2, timeout=LONG_S)


def _simple_queue() -> None:
    with pytest.raises(queue.Empty):
        queue.SimpleQueue[int]().get(timeout=LONG_S)


def _semaphore() -> None:
    assert not threading.Semaphore(0).acquire(timeout=LONG_S)


def _future() -> None:
    with pytest.raises(TimeoutError):
        Future[int]().result(LONG_S)


def _futures() -> None:
    assert not wait([Future[int]()], LONG_S).done


def _select() -> None:
    assert ([], [], []) == select.select([], [], [], LONG_S)


def _scheduler() -> None:
    (plan := sched.scheduler()).enter(LONG_S, 1, lambda: None)
    plan.run()


def _asyncio() -> None:
    async def main() -> None:
        await asyncio.gather(*(asyncio.sleep(LONG_S / n) for n in (1, 2, 3)))

    asyncio.run(main())


def _asyncio_timeout() -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), LONG_S)

    asyncio.run(main())


def _asyncio_after_a_pool() -> None:
    async def main() -> None:
        assert 7 == await asyncio.to_thread(lambda: 7)
        await asyncio.sleep(LONG_S)

    asyncio.run(main())


def _event_beside_an_idle_pool() -> None:
    with ThreadPoolExecutor(2) as pool:
        assert [1, 4] == list(pool.map(lambda n: n * n, (1, 2)))
        assert not threading.Event().wait(LONG_S)


WAITS = [
    _event, _condition, _queue, _full_queue, _simple_queue, _semaphore, _future, _futures, _select, _scheduler, _asyncio, _asyncio_timeout,
    _asyncio_after_a_pool, _event_beside_an_idle_pool,
]  # fmt: skip


@pytest.mark.parametrize("waits", WAITS, ids=lambda waits: waits.__name__[1:])
def test_a_wait_that_nobody_ends_is_virtual(waits: Callable[[], None]) -> None:
    """It takes exactly its timeout of virtual time, and next to nothing of the host's; there is nothing to note."""
    began = PLAIN()
    with virtual() as (here, now):
        waits()

    assert LONG_S == pytest.approx(now(), abs=1e-3)
    assert PLAIN() - began < QUICK_S and not here.notes()


@pytest.mark.parametrize("waits", [_event, _asyncio], ids=["event", "asyncio"])
def test_libraries_wait_on_the_hosts_clock(waits: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is called from a module that *real* names waits as ever, and no virtual time passes."""
    monkeypatch.setitem(globals(), "LONG_S", 0.05)
    began = PLAIN()
    with virtual(lambda module: module == __name__) as (here, now):
        waits()

    assert 0.0 == now() and PLAIN() - began >= 0.04 and not here.notes()


def test_what_another_thread_ends_is_waited_for_and_noted() -> None:
    """An event that a thread of the app's own sets comes when it does, no virtual time passes, and the notes say what waited."""
    with virtual() as (here, now):
        done, going = threading.Event(), threading.Event()

        def work() -> None:
            going.wait(5.0)
            done.set()

        (thread := threading.Thread(target=work)).start()
        going.set()
        assert done.wait(60.0)
        thread.join(60.0)
        assert 0.0 == now()
        with ThreadPoolExecutor(1) as pool:
            assert 9 == pool.submit(lambda: 9).result(60.0)
        assert 0.0 == now()

    assert any("threading.Event.wait" in line for line in here.notes())


def test_what_another_thread_might_have_ended_takes_both_clocks() -> None:
    """Beside a thread at work a timeout is the host's, and the same time passes on the virtual one; a thread's sleep is noted too."""
    with virtual() as (here, now):
        thread = threading.Thread(target=lambda: time.sleep(0.3))
        thread.start()
        assert not threading.Event().wait(0.05)
        assert 0.05 == now()
        thread.join(0.01)
        assert 0.06 == pytest.approx(now())
        thread.join()

    said = " ".join(here.notes())
    assert "time.sleep in another thread" in said and "threading.Event.wait:" in said and "threading.Thread.join:" in said


def test_a_wait_without_end_is_told() -> None:
    """Where there is no timeout, and no thread that could end it, the server is told rather than left to hang."""
    with virtual():
        with pytest.raises(RunError, match=r"waits without a timeout \(threading.Event.wait\)"):
            threading.Event().wait()
        with pytest.raises(RunError, match=r"waits without a timeout \(asyncio\)"):
            asyncio.run(asyncio.Event().wait())


def test_waiting_is_as_before_afterwards() -> None:
    """What was replaced is put back, and a queue that was made within goes on as the host's."""
    before = threading.Condition.wait, threading.Thread.join, queue.SimpleQueue, select.select, queue.time, threading._time  # type: ignore[attr-defined]
    with virtual():
        kept = queue.SimpleQueue[int]()
    began = PLAIN()
    with pytest.raises(queue.Empty):
        kept.get(timeout=0.05)

    assert before == (threading.Condition.wait, threading.Thread.join, queue.SimpleQueue, select.select, queue.time, threading._time)  # type: ignore[attr-defined]
    assert PLAIN() - began >= 0.04


SERVER = """\
import asyncio
import queue
import threading
import time

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    content = RecordDict({"arrays": ArrayRecord([np.zeros(3, np.float32)])})

    async def ask(node):
        ids = list(grid.push_messages([Message(content, node, "train")]))
        while not (replies := list(grid.pull_messages(ids))):
            await asyncio.sleep(30)
        return time.time(), replies[0].has_error()

    async def all_of_them():
        return await asyncio.gather(*(ask(node) for node in list(grid.get_node_ids())))

    print("asked", len(asyncio.run(all_of_them())))
    print("set", threading.Event().wait(1000.0))
    try:
        queue.Queue().get(timeout=1000.0)
    except queue.Empty:
        print("empty")
    %s
"""


def test_a_server_with_a_loop_of_asyncio_runs_alike(run: Go, app_of: Make) -> None:
    """Its coroutines' sleeps, and waits of others of Python's kinds, are virtual: two runs have one digest, and there is no note."""
    app = app_of(server_app=SERVER % "")
    one, two = run(app), run(app)

    assert (one.digest, one.manifest["virtual_s"]) == (two.digest, two.manifest["virtual_s"])
    assert one.manifest["virtual_s"] > 2000.0 and 0.0 == one.manifest["virtual_s"] % 10  # Polled at such moments only, by each for his own.
    assert ["asked 5", "set False", "empty"] == (one.path / "app.log").read_text().splitlines()[:3]
    assert not any("host's clock" in note for note in one.manifest["notes"])


def test_a_server_that_waits_on_the_hosts_clock_is_noted(run: Go, app_of: Make) -> None:
    """Where another thread could have ended a wait, the manifest says what waited."""
    waits = "threading.Timer(0.2, int).start(); threading.Event().wait(0.1)"
    done = run(app_of(server_app=SERVER % waits))

    assert any(note.startswith("threading.Event.wait: waited on the host's clock") for note in done.manifest["notes"])


def test_whose_clock_is_the_hosts() -> None:
    """Python's own modules and libraries of numbers keep the host's; an app and Flower's strategies do not."""
    assert all(map(keeps_the_hosts_clock, ("logging", "subprocess", "fedsim.sim.grid", "numpy.random", "torch", "joblib.parallel")))
    assert not any(map(keeps_the_hosts_clock, ("myapp.server", "flwr.serverapp.strategy", "__main__")))
