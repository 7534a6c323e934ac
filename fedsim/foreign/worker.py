"""A process of a foreign ClientApp: ``python -m fedsim.foreign.worker N M``, the descriptors of its socket and of a shared number.

It ends when the other end of that is gone, whatever it is doing. Knows an app and its messages; knows no clock and no client but
the one whose message it has.
"""

from __future__ import annotations

import mmap
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from fedsim.foreign.wire import NUMBER, Ask, Load, Ready, Recent, Told, plain, receive, records, send

COMPONENT = "tool.flwr.app.components.clientapp"
TOGETHER_S = 0.005
"""How long answers may wait for others to go with."""


def main() -> None:
    """Serve the run until it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's business.
    end, at = socket.socket(fileno=int(sys.argv[1])), mmap.mmap(int(sys.argv[2]), NUMBER.size)
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # A thread of its own reads: so the run can always send, and the end of the line ends us in the middle of anything.
    threading.Thread(target=_read, args=(end, waiting), daemon=True).start()
    load: Load = waiting.get()
    sys.path[:] = load.path
    from flwr.app import Context, Message, RecordDict
    from flwr.clientapp import ClientApp

    from fedsim.core.errors import ScenarioError
    from fedsim.flower import compat, compat_app
    from fedsim.foreign.loading import loaded, seed_globals

    seed_globals(load.seed)
    try:
        app = loaded(COMPONENT, load.reference, Path(load.folder), ClientApp)
    except ScenarioError as error:
        send(end, Ready(str(error)))
        return
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
    send(end, Ready())
    recent = Recent()

    def answered(ask: Ask, form: bytes) -> Told:
        compat.set_identity(ask.node)
        state = wire_state(ask.state) if ask.state else RecordDict()
        context = Context(
            run_id=1, node_id=ask.node, node_config=dict(ask.node_config), state=state, run_config=dict(load.run_config)
        )
        message = compat.with_metadata(records(pickle.loads(form)), ask.metadata)
        seed_globals(ask.seed)
        began = time.perf_counter()
        try:
            reply = app(message, context)
            wall_s = time.perf_counter() - began
            if not isinstance(reply, Message):
                raise TypeError(f"the ClientApp returned a {type(reply).__name__}, not a Message")
            after = pickle.dumps(plain(context.state)) if len(context.state) else b""
            if reply.has_error():
                return Told(ask.number, state=after, code=reply.error.code, reason=reply.error.reason or "", wall_s=wall_s)
            return Told(ask.number, plain(reply.content), after, wall_s=wall_s)
        except Exception as error:  # As Flower has it; the state is then as it was.
            return Told(ask.number, code=compat_app.RAISED, reason=f"{type(error)}:<'{error}'>")

    found: list[Told] = []
    sent_s = time.perf_counter()
    while True:
        asks: list[Ask] = waiting.get()
        for ask in asks:
            known = recent.seen(ask.content, ask.form)
            form = ask.form if known is None else known
            NUMBER.pack_into(at, 0, ask.number)
            told = Told(ask.number)
            for _ in range(ask.times):
                told = answered(ask, form or b"")
            found.append(told)
            if time.perf_counter() - sent_s > TOGETHER_S:
                send(end, found)
                found, sent_s = [], time.perf_counter()
        if found and waiting.empty():
            send(end, found)
            found, sent_s = [], time.perf_counter()


def wire_state(state: bytes) -> Any:
    """Return a client's state from its pickled form."""
    return records(pickle.loads(state))


def _read(end: socket.socket, waiting: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            waiting.put(receive(end))
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    main()
