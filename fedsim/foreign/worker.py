"""A process of a foreign ClientApp: ``python -m fedsim.foreign.worker N``, N the descriptor of its socket.

It ends when the other end of that is gone, whatever it is doing. Knows an app and its messages; knows no clock and no client but
the one whose message it has.
"""

from __future__ import annotations

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

from fedsim.foreign.wire import Ask, Load, Ready, Recent, Told, plain, receive, records, send

COMPONENT = "tool.flwr.app.components.clientapp"


def main() -> None:
    """Serve the run until it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's business.
    end = socket.socket(fileno=int(sys.argv[1]))
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

    while True:
        ask: Ask = waiting.get()
        known = recent.seen(ask.content, ask.form)
        form = ask.form if known is None else known
        told = Told(ask.number)
        for _ in range(ask.times):
            told = answered(ask, form or b"")
        send(end, told)


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
