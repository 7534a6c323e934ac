"""Whether another run fits into this computer's memory, beside those that go: by what runs have taken so far. Knows no run.

Where the system does not tell (there is no /proc), everything fits.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

FIRST_BYTES = 2 * 2**30
"""What a run is taken to need, at most, until one has ended."""
SPARE = 0.05
"""The share of what is free that is left to everybody else."""
LOOK_S = 0.5
"""Seconds between looks, while nothing fits and nothing ends."""


def free() -> float:
    """Return the bytes that are free, by the system and by the container that we may be in; without end where nobody says."""
    found = [float("inf")]
    with suppress(OSError, ValueError, KeyError):
        lines = (line.split() for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        found.append({name: int(kib) for name, kib, *_ in lines}["MemAvailable:"] * 1024.0)
    with suppress(OSError, ValueError):  # "max" where there is no limit. What lies in caches is given back when it is wanted.
        group = Path("/sys/fs/cgroup")
        cached = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        used = int((group / "memory.current").read_text(encoding="ascii")) - int(cached.get("inactive_file", 0))
        found.append(float(int((group / "memory.max").read_text(encoding="ascii")) - used))
    return min(found)


def taken(pid: int, most: bool = False) -> int:
    """Return the bytes that process *pid* has now, or has had at the *most*; 0 where nobody tells."""
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:" if most else "VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


@dataclass(eq=False)
class Room:
    """Lets a run begin when it fits: one always does, where nothing else goes."""

    peak: int = 0
    _going: list[int] = field(default_factory=list[int])
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def held(self, pid: int | None) -> Generator[None]:
        """Within, process *pid* has a run, for which there was room when it began; None is a process that is nobody's matter."""
        if pid is None:
            yield
            return
        with self._changed:
            while not self.fits(pid):
                self._changed.wait(LOOK_S)
            self._going.append(pid)
        try:
            yield
        finally:
            with self._changed:
                self.peak = max(self.peak, taken(pid, most=True))
                self._going.remove(pid)
                self._changed.notify_all()

    def fits(self, pid: int) -> bool:
        """Return whether what process *pid* may still take is there, when those that go have taken theirs."""
        need = self.peak or FIRST_BYTES
        growing = sum(max(0, need - taken(each)) for each in (*self._going, pid))
        return not self._going or growing <= free() * (1.0 - SPARE)
