"""Workers that are forked from a process which has imported and compiled once, in place of started: a second in place of seven.

A forked worker runs ``worker.main()`` with the socket, the standard streams and the process group that a started one has; it was never
told of anything but fedsim and torch. That workers start from a command line is held by the tests of scripts and of flags.
Run as a script it is the process that forks. Knows nothing of tasks.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

WORKER = "fedsim.learn.engine.executors.worker"
"""What a worker's process runs."""


class Warm:
    """The process that forks, started when it is first asked, and ended with ``close()`` or with its parent."""

    def __init__(self) -> None:
        self._line: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def asked(self, message: object, descriptors: list[int]) -> int:
        """Return the answer to a question."""
        with self._lock:
            if self._line is None:
                self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with theirs:
                    path = os.pathsep.join([str(Path(place or ".").absolute()) for place in sys.path])
                    self._process = subprocess.Popen(
                        [sys.executable, "-P", __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                        env={**os.environ, "PYTHONPATH": path}, process_group=0,
                    )  # fmt: skip
            socket.send_fds(self._line, [pickle.dumps(message)], descriptors)
            return int(self._line.recv(64))

    def close(self) -> None:
        """End it."""
        if self._line and self._process:
            self._line.close()
            self._process.wait()


class Forked:
    """What the parent of a forked worker uses of a ``Popen``."""

    def __init__(self, warm: Warm, words: list[str], said: int, environment: dict[str, str]) -> None:
        read, write = os.pipe()
        line = int(words[-1])
        self._warm, self._code = warm, None
        self.pid = warm.asked(("fork", environment, os.getcwd()), [line, read, said])
        self._end = os.pidfd_open(self.pid)
        os.close(read)
        self.stdin = os.fdopen(write, "wb")

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code, or minus the signal that ended it."""
        if self._code is None:
            if not select.select([self._end], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(WORKER, timeout or 0.0)
            os.close(self._end)
            self._code = os.waitstatus_to_exitcode(self._warm.asked(("reap", self.pid), []))
        return self._code

    def kill(self) -> None:
        """Kill it."""
        if self._code is None:
            signal.pidfd_send_signal(self._end, signal.SIGKILL)


class Processes:
    """Stands for the module ``subprocess`` where workers are started."""

    def __init__(self, warm: Warm) -> None:
        self._warm = warm
        self.PIPE, self.TimeoutExpired = subprocess.PIPE, subprocess.TimeoutExpired

    def Popen(self, words: list[str], **more: Any) -> Any:  # As it is called.
        """Return a forked worker; a started one where its Python is to have flags of its own."""
        if words[1:-1] == ["-P", "-m", WORKER]:
            return Forked(self._warm, words, more["stdout"].fileno(), more["env"])
        return subprocess.Popen(words, **more)


def _forking(line: socket.socket) -> None:
    """Fork when asked, until the parent is gone."""
    import shared_steps
    import torch
    import torch._dynamo

    import fedsim.session  # noqa: F401  # All that a worker may need.
    from fedsim.learn import models
    from fedsim.learn.engine.executors import worker
    from fedsim.learn.engine.step import compile_step
    from fedsim.learn.objectives import Classification

    torch.set_num_threads(1)
    compile_step(models.logreg((2, 2), 2), Classification(), torch.rand(3, 2, 2), torch.arange(3) % 2, plain=True, whole_targets=True)
    shared_steps.share()
    while True:
        data, descriptors, *_ = socket.recv_fds(line, 2**20, 3)
        if not data:
            return
        what, *more = pickle.loads(data)
        if what == "reap":
            line.send(str(os.waitpid(more[0], 0)[1]).encode())
        elif child := os.fork():
            for descriptor in descriptors:
                os.close(descriptor)
            line.send(str(child).encode())
        else:
            environment, folder = more
            os.setpgid(0, 0)
            line.close()
            os.environ.clear()
            os.environ.update(environment)
            sys.path[:] = ["", *environment["PYTHONPATH"].split(os.pathsep), *sys.path]
            os.chdir(folder)
            os.dup2(descriptors[1], 0)
            os.dup2(descriptors[2], 1)
            os.dup2(descriptors[2], 2)
            sys.argv[:] = [WORKER, str(descriptors[0])]
            try:
                worker.main()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)


if __name__ == "__main__":
    _forking(socket.socket(fileno=int(sys.argv[1])))
