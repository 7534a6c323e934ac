"""A node's side: what it answers its server's queries and its messages, and the diary it keeps of its tasks. Knows no strategy.

Each message is a process of its own: what it does not need, it does not import. The scenario is built when the run begins, and lies
ready from then on (``kit``).
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict

from fedsim.core.errors import FedsimError, ScenarioError
from fedsim.core.types import Seconds
from fedsim.flower import compat_draws, records
from fedsim.real import diary
from fedsim.real.diary import BEGIN, END, RECORD, Begin, Entry, Present
from fedsim.real.keeping import FileKeeping

if TYPE_CHECKING:
    from fedsim.flower.apps import Worked
    from fedsim.real.kit import Kit

_PROCESS = "flwr-clientapp"
"""What Flower calls the process that it starts for a message."""
_NO_MORE: Mapping[str, ConfigRecord] = {}
_fresh = True


def replied(message: Message, context: Context, app: Path) -> Message:
    """Return what the node behind *context*, of the app in the folder *app*, replies to *message*.

    What is wrong with its words, its data or the message is an error reply, in a line.
    """
    received = _received()
    compat_draws.keep_apart()
    try:
        if message.metadata.message_type == diary.QUERY:
            return _queried(message, context, app)
        return _worked(message, context, app, received)
    except FedsimError as error:
        return Message(Error(records.CLIENT_RAISED, str(error)), reply_to=message)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a node's files lie: below the folder that its words name, or below Flower's own."""

    folder: Path
    run: int
    named: bool

    @classmethod
    def of(cls, context: Context) -> _Place:
        """Return the place of the node behind *context*."""
        named = context.node_config.get("state-dir")
        if named:
            return cls(Path(str(named)).expanduser(), context.run_id, True)
        home = os.environ.get("FLWR_HOME")
        return cls((Path(home) if home else Path.home() / ".flwr") / "fedsim", context.run_id, False)

    def kit(self, context: Context) -> Path:
        """Return where the kit of the node lies."""
        return self.folder / f"{self.run}-{context.node_config.get('partition-id')}.kit"

    def news(self, client: int) -> Path:
        """Return where it is written what *client* predicted."""
        return self.folder / f"{self.run}-{client}.news"

    def watched(self, client: int) -> Path:
        """Return where it is written what was watched of the training of *client*."""
        return self.folder / f"{self.run}-{client}.watched"

    def keeping(self, client: int) -> FileKeeping:
        """Return where *client* keeps what it carries on."""
        return FileKeeping(self.folder, self.run, client, self.named)


def _mark(context: Context, app: Path, digest: str) -> str:
    """Return what a kit must have been made for, to be the one of this message: run, node, scenario, and the code that made it."""
    said = (context.run_id, sorted(context.node_config.items()), sorted(context.run_config.items()), str(app), digest, _code())
    return hashlib.sha256(repr(said).encode()).hexdigest()


@cache
def _code() -> str:
    """Return the mark of this fedsim and of this Python: a kit of another is not read."""
    house = Path(__file__).parents[1]
    seen = sorted((str(path), stat.st_mtime_ns, stat.st_size) for path in house.rglob("*.py") for stat in (path.stat(),))
    return f"{sys.version} {seen}"


def _queried(message: Message, context: Context, app: Path) -> Message:
    said = message.content.config_records.get(RECORD)
    asked = None if said is None else said.get("ask")
    if said is None or asked not in (BEGIN, END):
        raise ScenarioError(f"a 'query' message came that asks {asked!r}; our client answers what its own server asks: {BEGIN}, {END}.")
    place = _Place.of(context)
    if asked == BEGIN:
        return _told(message, diary.record_of(_begun(diary.begin_of(said), context, app, place)))
    from fedsim.real import kit, news

    client = int(context.node_config["partition-id"])
    kit.drop(place.kit(context))
    place.keeping(client).forget()
    more = {news.NEWS: news.read(place.news(client)), news.WATCHED: news.read(place.watched(client))}
    for path in (place.news(client), place.watched(client)):
        path.unlink(missing_ok=True)
    if noted := diary.notes_of(context.state):
        more[diary.NOTES] = ConfigRecord({"notes": noted})
    return _told(message, diary.diary_of(context.state), {name: record for name, record in more.items() if record})


def _begun(begin: Begin, context: Context, app: Path, place: _Place) -> Present:
    """Take that a run begins: lay out what its messages will need, and return who this is. Raises ScenarioError."""
    from fedsim.real import kit
    from fedsim.real.outfit import outfitted
    from fedsim.real.words import RunWords
    from fedsim.record.manifest import versions

    mark = _mark(context, app, begin.scenario_digest)
    made, loaded = outfitted(RunWords.of(context.run_config, app), context.node_config, app, mark)
    if begin.scenario_digest != loaded.scenario.digest:
        raise ScenarioError(
            f"the server's scenario is another than the node's ({begin.scenario_digest[:12]}... there, {loaded.scenario.digest[:12]}..."
            f" here): {context.run_config.get('scenario')} must be the same on both."
        )
    diary.enter_run(context.state, begin)
    if why := kit.put(made, place.kit(context)):
        print(f"fedsim: {place.kit(context)}: cannot be written ({why}), so each message builds the scenario anew.", file=sys.stderr)
    held = len(made.parts[2].federation.positions(made.client))
    return Present(
        made.client, time.time(), held, platform.node(), os.getpid(), ", ".join(f"{k} {v}" for k, v in versions().items()),
        bool(context.node_config.get("loader")),
    )  # fmt: skip


def _kit(context: Context, app: Path, place: _Place) -> tuple[Kit, Begin]:
    """Return the node's kit and the run it is for: laid out when that began, or else made now."""
    from fedsim.real import kit

    begin = diary.run_of(context.state)
    mark = _mark(context, app, begin.scenario_digest if begin else "")
    if begin is not None and (found := kit.get(place.kit(context), mark)) is not None:
        return found, begin
    from fedsim.real.outfit import outfitted
    from fedsim.real.words import RunWords

    words = RunWords.of(context.run_config, app)
    made, loaded = outfitted(words, context.node_config, app, mark)
    if begin is None:  # A server that is not ours: the client's stream begins with its first message.
        begin = Begin(time.time(), words.time_scale, loaded.scenario.clients.count, loaded.scenario.digest)
        diary.enter_run(context.state, begin)
    return made, begin


def _worked(message: Message, context: Context, app: Path, received: tuple[float, float, float]) -> Message:
    from fedsim.flower.apps import Site, answer
    from fedsim.real import kit, news

    place = _Place.of(context)
    mine, begin = _kit(context, app, place)
    engine, keeping, done = mine.engine(), place.keeping(mine.client), list[Any]()
    here = Site(
        mine.program, mine.job, engine, mine.mods, lambda context: _now(begin, keeping, context),
        lambda seconds: time.sleep(seconds / begin.time_scale), mine.coding, keeping, done.append, mine.monitor,
    )  # fmt: skip
    reply = answer(message, context, here)
    ended = time.monotonic(), time.process_time()
    for work in done:
        diary.wrote(context.state, _entry(message.metadata.message_id, mine, work, received, ended))
        if work.finished.news is not None:
            news.wrote(place.news(mine.client), message.metadata.message_id, news.state_of(work.finished.news))
        if work.result.watched:
            news.wrote(place.watched(mine.client), message.metadata.message_id, work.result.watched)
    diary.note(context.state, engine.notes)
    kit.learn(place.kit(context), mine, engine)
    return reply


def _now(begin: Begin, keeping: FileKeeping, context: Context) -> Seconds:
    """Return how long the run has been going, by this node's clock; where that was set back, no less than when the client last acted."""
    return max(0.0, (time.time() - begin.began_wall_s) * begin.time_scale, keeping.kept(context).until_s)


def _entry(message: str, kit: Kit, work: Worked, received: tuple[float, float, float], ended: tuple[float, float]) -> Entry:
    """Return what is told of *work*, done for the *message* that was *received*, and had *ended* by a monotonic and a processor's clock."""
    task, (received_s, received_wall_s, before_s), (computed_s, cpu_s) = work.task, received, ended
    training = task.job.kind == "train"
    steps = int(work.result.metrics.get("steps", task.steps)) if training else 0
    return Entry(
        message, task.number, received_wall_s, received_wall_s + work.started_s - received_s, received_wall_s + computed_s - received_s,
        task.examples, steps, kit.flops.of(task, steps if training else None), task.job.batch_size if training and kit.sized else 0,
        work.now if work.finished.news is not None else -1.0,
        cpu_s - before_s, cpu_s - work.cpu_s,
    )  # fmt: skip


def _told(message: Message, record: ConfigRecord, more: Mapping[str, ConfigRecord] = _NO_MORE) -> Message:
    return Message(RecordDict({RECORD: record, **more}), reply_to=message)


def _received() -> tuple[float, float, float]:
    """Return when the message at hand came: the first of a process came before it, which was started for it.

    By a clock that never jumps, since 1970, and by what the process had taken of its processor.
    """
    global _fresh
    started = _fresh and Path(sys.argv[0]).name == _PROCESS
    age_s, cpu_s = (_age_s(), 0.0) if started else (0.0, time.process_time())
    _fresh = False
    return time.monotonic() - age_s, time.time() - age_s, cpu_s


def _age_s() -> float:
    """Return how long this process has been running; 0 where the system does not say."""
    try:
        ticks = int(Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
