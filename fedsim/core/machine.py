"""What this machine has. Knows nothing of what it is asked for."""

from __future__ import annotations

import os
import platform
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path

ALONE = threading.RLock()
"""Held by whoever builds, runs or rehearses: torch's tracer and the global generators are one for all threads of a process."""


def memory() -> int:
    """Return the bytes of memory that this process may use, as far as the system tells."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else [2**63]
    with suppress(OSError, ValueError):  # A container's share; "max" where there is none.
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return min(found)


@cache
def processor() -> str:
    """Return the processor's name and generation: one name ("AMD EPYC") can stand for several, whose kernels have other last bits."""
    try:
        lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines())
        found = {name.strip(): value.strip() for name, _, value in reversed([*lines])}  # Of the first core.
        name = found["model name"]
    except (OSError, KeyError):
        return platform.processor() or "unknown"
    return f"{name} (family {found['cpu family']}, model {found['model']})" if {"cpu family", "model"} <= {*found} else name
