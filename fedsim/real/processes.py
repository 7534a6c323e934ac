"""The processes of a deployment as its launcher sees them: started and ended through a keeper. Knows no Flower."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fedsim.core.errors import RunError
from fedsim.real import keeper

KEEPER_GONE = "the process that kept SuperLink and SuperNodes was killed, and they ended with it."
END_S = 60.0
"""How long the keeper may take to end everything; it kills after seconds."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended by itself: its *name*, its exit *code* (negative: the signal), and the *error* where it never began."""

    name: str
    code: int
    error: str = ""

    @property
    def how(self) -> str:
        """Return how it ended, in words."""
        if self.error:
            return f"could not be started ({self.error})"
        return f"was ended by signal {-self.code}" if self.code < 0 else f"ended with code {self.code}"


@dataclass(eq=False)
class Processes:
    """What one deployment has started, each with a log in *logs*. Use it in a ``with``: nothing outlives it, whatever happens.

    The launcher's own end, by whatever signal, ends them too, and takes the folder *private* with it: see ``keeper``. A launcher that
    leaves in order takes it away itself.
    """

    logs: Path
    private: Path | None = None
    pids: dict[str, int] = field(default_factory=dict[str, int])
    ended: dict[str, Ended] = field(default_factory=dict[str, Ended])
    _news: list[Ended] = field(default_factory=list[Ended])
    _waiting: bytes = b""

    def __enter__(self) -> Self:
        # A session of its own: Ctrl-C in the terminal is for the launcher, which ends the rest in order.
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", keeper.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        if self.private is not None:
            self._ask({"left": str(self.private.resolve())})
        return self

    def __exit__(self, *_: object) -> None:
        if self.private is not None:
            with suppress(RunError):
                self._ask({"left": None})
        if self._keeper.stdin is not None:
            with suppress(OSError):
                self._keeper.stdin.close()
        try:
            self._keeper.wait(END_S)
        except subprocess.TimeoutExpired:
            self._keeper.kill()  # Its children die with it; the system sees to that.
            self._keeper.wait()
        if self._keeper.stdout is not None:
            self._keeper.stdout.close()

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> None:
        """Start *argv* under *name*; what it says goes to its log, after what another of this name said."""
        self.pids.pop(name, None)
        self.ended.pop(name, None)
        self._ask({"name": name, "argv": list(argv), "env": dict(env), "cwd": str(cwd), "log": str(self.log(name))})
        while name not in self.pids and name not in self.ended:
            self._read(1.0)

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to the process *pid*, where it is one of ours or below one."""
        self._ask({"pid": pid, "signal": int(number)})

    def kill(self, name: str) -> None:
        """Kill the process called *name*."""
        self.signal(self.pids[name], signal.SIGKILL)

    def log(self, name: str) -> Path:
        """Return the file in which *name* says what it has to say."""
        return self.logs / f"{name}.log"

    def said(self, name: str) -> str:
        """Return what *name* has said so far."""
        try:
            return self.log(name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def hear(self, wait_s: float = 0.0) -> list[Ended]:
        """Return which processes have ended since this was last asked, waiting up to *wait_s* for the first.

        Raises RunError where the keeper itself is gone, and everything with it.
        """
        self._read(0.0 if self._news else wait_s)
        news, self._news = self._news, []
        return news

    def wait(self, name: str, until: float) -> Ended | None:
        """Return how *name* ended, None where it goes on at the moment *until*, on the clock of ``time.monotonic``."""
        while name not in self.ended and (left := until - time.monotonic()) > 0:
            self._read(min(left, 0.2))
        return self.ended.get(name)

    def _read(self, wait_s: float) -> None:
        """Take what the keeper has said, waiting up to *wait_s* for it."""
        assert self._keeper.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(self._keeper.stdout, selectors.EVENT_READ)
            if not ready.select(wait_s):
                return
        data = os.read(self._keeper.stdout.fileno(), 1 << 20)
        if not data:
            raise RunError(KEEPER_GONE)
        *lines, self._waiting = (self._waiting + data).split(b"\n")
        for line in lines:
            told: dict[str, Any] = json.loads(line)
            if "code" in told:
                self.ended[told["name"]] = Ended(**told)
                self._news.append(self.ended[told["name"]])
            else:
                self.pids[told["name"]] = told["pid"]

    def _ask(self, asked: Mapping[str, Any]) -> None:
        assert self._keeper.stdin is not None
        try:
            self._keeper.stdin.write(json.dumps(asked).encode() + b"\n")
            self._keeper.stdin.flush()
        except (OSError, ValueError):
            raise RunError(KEEPER_GONE) from None
