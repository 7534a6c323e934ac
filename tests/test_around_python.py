"""fedsim in somebody's Python: threads, numbers that are not Python's, folders that move."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.core import machine
from fedsim.session import Progress

Tiny = Callable[..., dict[str, Any]]


def together(tiny: Tiny, folder: Path) -> set[str]:
    """Return the digests of three runs of one scenario in three threads."""
    found: list[str] = []

    def one(number: int) -> None:
        found.append(fedsim.run(tiny(), out=folder / str(number)).digest)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return set(found)


def test_threads_run_one_after_the_other(tiny: Tiny, tmp_path: Path) -> None:
    """Torch's tracer and the global generators are one for all threads: runs wait, and give the digest of one alone."""
    assert {fedsim.run(tiny(), out=tmp_path / "alone").digest} == together(tiny, tmp_path)


def test_a_run_waits_for_whoever_is_at_it(tiny: Tiny, tmp_path: Path) -> None:
    """While another thread builds, runs or rehearses, a run does not begin; it does when that is done."""
    done = threading.Event()
    with machine.ALONE:
        thread = threading.Thread(target=lambda: (fedsim.run(tiny(), out=tmp_path / "late"), done.set()))
        thread.start()
        thread.join(2.0)
        assert not (tmp_path / "late").exists() and not done.is_set()
    thread.join()

    assert done.is_set()


def test_numbers_of_numpy_are_numbers(tiny: Tiny, go: Any, tmp_path: Path) -> None:
    """What an analysis has at hand is taken as what it means; what no file can say is refused by key."""
    theirs = go(
        {"seed": np.int64(5), "training.optimizer.lr": np.float64(0.05), "server.rounds": np.int32(2), "training.batch_size": np.array(8)}
    )
    ours = go({"seed": 5, "training.optimizer.lr": 0.05, "server.rounds": 2, "training.batch_size": 8})
    assert ours.digest == theirs.digest

    wrong: dict[Any, Any]
    for wrong, said in (
        ({3: 1}, "3: is no key"),
        ({"training.optimizer.lr": iter([])}, "training.optimizer.lr = <list_iterator"),
        ({"seed": b"1"}, "seed = b'1': is a bytes"),
    ):
        with pytest.raises(fedsim.ScenarioError, match=said):
            fedsim.run(tiny(), overrides=wrong, out=tmp_path / "no")


@pytest.mark.parametrize("out", ["a\0b", 3, b"x", ""])
def test_what_names_no_folder_is_refused(out: Any, tiny: Tiny) -> None:
    """Before anything is computed, in one line."""
    with pytest.raises(fedsim.ScenarioError, match="out=.*: names no folder"):
        fedsim.run(tiny(), out=out)


def test_a_folder_that_is_moved_away_is_no_run_that_is_done(tiny: Tiny, tmp_path: Path) -> None:
    """Where the journal is gone at the end, the run says so, and its manifest too."""
    out = tmp_path / "run"

    def move(progress: Progress) -> None:
        if progress.round == 1 and not (tmp_path / "away").exists():
            out.rename(tmp_path / "away")
            out.mkdir()

    with pytest.raises(fedsim.RunError, match=r"journal.sqlite: is gone: the run folder was moved"):
        fedsim.run(tiny({"server.rounds": 3}), out=out, watch=move)
    assert "failed" == fedsim.load(out).status
