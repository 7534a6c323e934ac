"""A process that owns what a deployment starts, and ends it: when told to, or when whoever started it is gone, killed with -9 included.

Started as a script of its own: the standard library only, so that it is there at once. It reads lines of JSON from its standard input
(start this, signal that) and writes one for each child that has begun or ended. The end of its input is the end of everything below it.
It may be left a folder: where its input ends without a farewell, whoever started it was killed, and the folder, keys and all, goes last.

On Linux it is the reaper of its orphans, so that a grandchild whose parent has died is below it still and found by its parent's number
in ``/proc``; and its children are killed by the system should the keeper itself be killed. Elsewhere (macOS) only children and what is
below them by ``ps`` are found; an orphan there must notice by itself that its parent is gone, as Flower's processes do within a second.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

GRACE_S = 3.0
"""How long what is told to end may take, before it is killed."""
POLL_S = 0.05
DEATH_SIGNAL, SUBREAPER = 1, 36
"""Numbers of Linux's prctl: the signal when a parent dies; who takes in orphans."""


def main() -> None:
    """Serve until standard input ends."""
    keeper = Keeper()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):  # A handler, not SIG_IGN: children would inherit that.
        signal.signal(number, keeper.told)
    try:
        keeper.serve()
    finally:
        keeper.end()
        keeper.tidy()


class Keeper:
    """The children by their process number, and what is said of them."""

    def __init__(self) -> None:
        self.children: dict[int, subprocess.Popen[bytes]] = {}
        self.names: dict[int, str] = {}
        self.over = False
        self.left: str | None = None
        self.alone = False
        self.set = _prctl()
        self.set(SUBREAPER, 1)

    def told(self, number: int, _frame: Any) -> None:
        """Take a signal: Ctrl-C is the business of whoever started us, anything else is the end."""
        self.over = self.over or number != signal.SIGINT

    def serve(self) -> None:
        """Do what the lines of standard input say, and say who has ended."""
        waiting = b""
        with selectors.DefaultSelector() as ready:
            ready.register(0, selectors.EVENT_READ)
            while not self.over:
                if ready.select(POLL_S):
                    data = os.read(0, 1 << 16)
                    if not data:
                        self.alone = True
                        return
                    *lines, waiting = (waiting + data).split(b"\n")
                    for line in lines:
                        self.do(json.loads(line))
                self.reap()

    def do(self, asked: dict[str, Any]) -> None:
        """Start a child, or signal one, or one of its own; take which folder is *left* to it, or that none is."""
        if "left" in asked:
            self.left = asked["left"]
            return
        if "signal" in asked:
            if asked["pid"] in below(os.getpid()):
                with suppress(OSError):
                    os.kill(asked["pid"], asked["signal"])
            return
        name = asked["name"]
        try:
            with Path(asked["log"]).open("ab") as log:
                child = subprocess.Popen(
                    asked["argv"], env=asked["env"], cwd=asked["cwd"], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True, preexec_fn=self.dies_with_us(os.getpid()),
                )  # fmt: skip
        except OSError as error:
            say({"name": name, "code": 127, "error": f"{error.filename or asked['argv'][0]}: {error.strerror}"})
            return
        self.children[child.pid], self.names[child.pid] = child, name
        say({"name": name, "pid": child.pid})

    def dies_with_us(self, keeper: int) -> Callable[[], None]:
        """Return what a child does before it becomes another program."""

        def ask() -> None:
            self.set(DEATH_SIGNAL, signal.SIGKILL)
            if os.getppid() != keeper:  # It went before we asked.
                os._exit(1)

        return ask

    def reap(self) -> None:
        """Say which children have ended, and let orphans that have ended go."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid in self.names:
                say({"name": self.names.pop(pid), "code": os.waitstatus_to_exitcode(status)})

    def end(self) -> None:
        """End everything below: politely, then not."""
        for number, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, 30.0)):
            until = time.monotonic() + patience_s
            for pid in list(self.names) if number == signal.SIGTERM else []:
                with suppress(OSError):
                    os.kill(pid, number)
            while (left := below(os.getpid())) and time.monotonic() < until:
                for pid in left if number == signal.SIGKILL else ():
                    with suppress(OSError):
                        os.kill(pid, number)
                time.sleep(POLL_S / 2)
                with suppress(OSError):  # Whoever listened may be gone.
                    self.reap()


    def tidy(self) -> None:
        """Take away the folder that is left to us, where nobody else is there to do it."""
        if self.alone and self.left is not None:
            shutil.rmtree(self.left, ignore_errors=True)


def below(keeper: int) -> set[int]:
    """Return the numbers of all processes below *keeper*, the dead that nobody has asked for included."""
    parents = _parents()
    found, wave = set[int](), {keeper}
    while wave:
        wave = {pid for pid, parent in parents.items() if parent in wave} - found
        found |= wave
    return found


def _parents() -> dict[int, int]:
    """Return every process with its parent."""
    if not Path("/proc/self/stat").is_file():
        listed = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
        rows = [line.split() for line in listed.splitlines()]
        return {int(row[0]): int(row[1]) for row in rows if len(row) == 2}
    found: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                after_name = Path(f"/proc/{name}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                found[int(name)] = int(after_name[1])
    return found


def _prctl() -> Callable[[int, int], None]:
    """Return Linux's prctl; one that does nothing elsewhere."""
    if not sys.platform.startswith("linux"):
        return lambda _what, _value: None
    try:
        library = ctypes.CDLL(None, use_errno=True)
        call = library.prctl
    except (OSError, AttributeError):  # A libc without it: musl has it, who knows.
        return lambda _what, _value: None
    return lambda what, value: call(ctypes.c_int(what), ctypes.c_ulong(value), 0, 0, 0)


def say(line: dict[str, Any]) -> None:
    """Write *line* where whoever started us reads."""
    with suppress(BrokenPipeError):
        os.write(1, json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    main()
