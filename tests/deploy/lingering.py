"""What tests of deployments look for: processes that bear a mark in their environment, the mark being this test's alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def left_of(mark: str, program: str = "") -> list[int]:
    """Return the numbers of living processes with *mark* (NAME=VALUE) in their environment and *program* in their command.

    One that hides its environment, as Flower's SuperExec does from users other than root, is not seen by its mark.
    """
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, IndexError):
            if not entry.name.isdigit() or entry.joinpath("stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "Z":
                continue
            if mark.encode() in entry.joinpath("environ").read_bytes().split(b"\0"):
                if program.encode() in entry.joinpath("cmdline").read_bytes():
                    found.append(int(entry.name))
    return sorted(found)


def until(holds: Callable[[], bool], wait_s: float = 30.0) -> None:
    """Wait until *holds* does, at most *wait_s*: what comes after says whether it did."""
    end = time.monotonic() + wait_s
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
