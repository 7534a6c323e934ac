"""The two halves of the Flower app that a scenario is on a SuperLink: thin, so that an app's folder holds two lines of each."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp


def client_app(folder: str | Path) -> ClientApp:
    """Return the ClientApp of the app in *folder*: which scenario and which client, its run's and its node's configuration say."""
    app, home = ClientApp(), Path(folder).resolve()

    def answered(message: Message, context: Context) -> Message:
        from fedsim.real.client import replied

        return replied(message, context, home)

    for kind in (app.train(), app.evaluate(), app.query()):
        kind(answered)
    return app


def server_app(folder: str | Path) -> ServerApp:
    """Return the ServerApp of the app in *folder*: the scenario's run, on whatever grid it is given, which leaves a run folder."""
    app, home = ServerApp(), Path(folder).resolve()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        from fedsim.real.server import served

        with _interruptible():
            served(grid, context, home)

    _ = main
    return app


@contextmanager
def _interruptible() -> Generator[None]:
    """Within, the signals by which Flower stops an app end the run as Ctrl-C does; then Flower goes on as it would have."""
    before: dict[int, Any] = {}
    heard: list[int] = []

    def stop(number: int, _frame: Any) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                before[number] = handler
                signal.signal(number, stop)
        yield
    except KeyboardInterrupt:
        for number, handler in before.items():
            signal.signal(number, handler)
        if not heard:
            raise
        before[heard[0]](heard[0], None)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
