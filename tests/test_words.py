"""What people read: every kind and setting has words, lists fit a screen, messages and scenarios say what is true."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest

import fedsim
from fedsim.core.registry import Registry
from fedsim.listing import LINES, details, keys, overview, sections
from fedsim.listing import told as told_of
from fedsim.scenario import kinds
from fedsim.scenario.build import build
from fedsim.scenario.glossary import GLOSSARY, KINDS
from fedsim.scenario.jsonschema import json_schema
from fedsim.scenario.load import load, parse_overrides
from fedsim.scenario.words import about, of_setting
from fedsim.strategy import stock

ROOT = Path(__file__).resolve().parents[1]
NOUNS = [*kinds.slots(), "strategy"]


def told(noun: str) -> dict[str, tuple[str, list[kinds.Setting]]]:
    """Return, by kind of *noun*, what is said of it and of its settings."""
    if noun == "strategy":
        found = {name: (stock.class_of(name), stock.arguments(name)) for name in stock.names()}
        return {name: (about(make, name), kinds.settings_of(make, takes, noun, name)) for name, (make, takes) in found.items()}
    registry = kinds.slots()[noun].registry
    return {name: kinds.describe(registry, name) for name in registry.names()}


def wordless(said: dict[str, tuple[str, list[kinds.Setting]]]) -> list[str]:
    """Return the kinds and settings that nothing true is said of: nothing at all, or what the kind itself is said to be."""
    found = [name for name, (what, _) in said.items() if len(what.split()) < 2]
    return found + [
        f"{name}.{s.name}" for name, (what, all_) in said.items() for s in all_ if len(s.meaning.split()) < 2 or s.meaning == what
    ]


# Point 18: words for every kind.


@pytest.mark.parametrize("noun", NOUNS)
def test_every_kind_and_setting_has_words(noun: str) -> None:
    """Each registered kind, and each of its settings, has a line that says what it is."""
    assert [] == wordless(told(noun))


def test_a_kind_without_words_is_found() -> None:
    """The law sees a kind without a docstring, one whose setting nobody speaks of, and one that only repeats itself."""
    registry: Registry[Any] = Registry("thing")

    @registry.register("mute")
    def mute() -> None: ...

    @registry.register("half")
    def half(capacity: int = 3) -> None:
        """Return half a thing."""

    @registry.register("echo")
    def echo(capacity: int = 3) -> None:
        """Return a thing of *capacity*."""

    said = {name: kinds.describe(registry, name) for name in registry.names()}

    assert {"mute", "half.capacity", "echo.capacity"} == set(wordless(said))


def test_the_glossary_speaks_of_what_there_is() -> None:
    """Each word of the glossary is of a setting that some kind of the noun has, and each noun is one."""
    assert set(GLOSSARY) == set(NOUNS)
    for noun, words in GLOSSARY.items():
        said = told(noun)
        names = {s.name for _, settings in said.values() for s in settings} | {"clients_per_round"}
        full = {f"{kind}.{s.name}" for kind, (_, settings) in said.items() for s in settings}
        assert [] == [word for word in words if word not in names | full], noun
    assert set(KINDS) <= set(stock.names())


@pytest.mark.parametrize(
    ("doc", "words"),
    [
        ("Return a net.\n\n*width*: units of a layer\n*depth*: layers\n", "units of a layer"),
        (
            "A net.\n\nParameters\n----------\nwidth : int (default: 3)\n    Units of a layer. Even\n    ones.\ndepth : int\n    Layers.\n",
            "Units of a layer",
        ),
        ("A net.\n\nArgs:\n    width (int): Units of\n        a layer.\n    depth: Layers.\n", "Units of a layer"),
        ("A net.\n\n:param int width: Units of a layer.\n:param depth: Layers.\n", "Units of a layer"),
        ("A net. Each layer has *width* units. It is deep.", "Each layer has width units"),
        ("A net.", ""),
    ],
    ids=["ours", "numpy", "google", "sphinx", "sentence", "none"],
)
def test_docstrings_of_every_manner_are_read(doc: str, words: str) -> None:
    """A reader's own kind is described by its docstring, in whichever of the usual manners it is written."""

    def net(width: int = 3, depth: int = 2) -> None: ...

    net.__doc__ = doc

    assert ("A net" if doc[0] == "A" else "a net") in about(net)
    assert words == of_setting(net, "width", int)
    assert "on the annotation" == of_setting(net, "width", Annotated[int, "on the annotation"])


def test_a_class_is_described_by_its_init_and_its_bases() -> None:
    """Settings of a class are told by the docstrings of its ``__init__`` and of what it descends from; a dataclass's own is none."""
    from dataclasses import dataclass

    class Base:
        """A base.

        Args:
            lr: How fast.
        """

    class Mine(Base):
        def __init__(self, lr: float, width: int) -> None:
            """Make one.

            Args:
                width: How wide.
            """

    @dataclass
    class Plain:
        width: int = 3

    assert ("How fast", "How wide") == (of_setting(Mine, "lr"), of_setting(Mine, "width"))
    assert "" == about(Plain)


@pytest.mark.parametrize("width", [80, 90, 100, 120])
def test_the_overview_fits_a_screen(width: int) -> None:
    """``fedsim list`` takes no more than 24 lines of a terminal; it names every noun, and from 100 columns on every kind."""
    lines, text = overview(width), " ".join(overview(width)).replace(",", " ").split()
    every = [name for noun in kinds.slots().values() for name in noun.registry.names()] + list(stock.AVERAGING)
    names = every if width >= 100 else []

    assert len(lines) <= LINES < 24
    assert max(map(len, lines)) <= width
    assert [] == [name for name in [*names, *NOUNS] if name not in text]


def test_a_long_list_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hundred more sources installed the overview still fits, and says how many it leaves out."""
    registry = kinds.slots()["source"].registry
    more = sorted([*registry.names(), *(f"made_up_source_{i}" for i in range(100))])
    monkeypatch.setattr(registry, "names", lambda: more)
    lines = overview(80)

    assert len(lines) <= LINES
    assert "more" in " ".join(lines) and "page_hinkley" in " ".join(lines)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("noun", ["availability", "strategy", "replay"])
def test_details_fit_their_terminal(noun: str, width: int) -> None:
    """No line of ``fedsim list NOUN`` is longer than the terminal is wide, and each setting says what it means."""
    from rich.text import Text

    lines = [Text.from_markup(line).plain for line in details(noun, width)]
    text = " ".join(" ".join(lines).split())

    assert max(map(len, lines)) <= width
    assert [] == [s.meaning for _, settings in told(noun).values() for s in settings if s.meaning not in text]


def test_the_command_shows_words(cli: Callable[..., Any]) -> None:
    """``list`` is the overview, ``list NOUN`` tells in words, by its key too, and ``list all`` has every noun."""
    short, some, by_key, everything = (cli("list", *more).out for more in ([], ["availability"], ["clients.availability"], ["all"]))

    assert len(short.splitlines()) <= 24
    assert "share of the clients that are there" in some == by_key
    assert [] == [noun for noun in NOUNS if f"\n{noun}  " not in f"\n{everything}"]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("place", list(sections()))
def test_every_key_of_a_section_has_words(place: str, width: int) -> None:
    """``fedsim list SECTION`` tells of each key what it means, what it takes and its default, in lines that fit the terminal."""
    from rich.text import Text

    lines = [Text.from_markup(line).plain for line in keys(place, width)]
    text, section = " ".join(" ".join(lines).split()), sections()[place]
    found = kinds.key_settings(section, section.model_fields)

    assert max(map(len, lines)) <= width
    assert [] == [s.name for s in found if len(s.meaning.split()) < 3 or s.meaning.rstrip(".") not in text or not s.takes]
    assert "{" not in text and "Annotated" not in text and "typing" not in text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("training", "too_large"), ("training", "(whole number >= 1 or full; 10 unless given)"), ("training", "'fedsim list optimizer'"),
        ("training.epochs", "(number > 0)"), ("mix", "training.mix"), ("stop", "noise_floor"), ("engine", "workers"),
        ("scenario", "'fedsim list training' shows the keys"), ("loading", "prefetch"), ("codec", "down"), ("codec", "bfloat16"),
        ("schedule", "Another schedule is training.schedule: 'fedsim list lr_schedule'"),
        ("lr_schedule", "Another schedule is stream.drift.schedule: 'fedsim list schedule'"),
        ("training.schedule", "milestones"), ("optimizer", "goes on into the next (number >= 0 and < 1; 0.0 unless given)"),
        ("strategy", "(number > 0 and <= 1; 1.0 unless given)"),
    ],
)
def test_what_is_listed(name: str, said: str) -> None:
    """A section, one below it, a key, a noun, a key of a noun: each is shown; ranges are those that are held to."""
    assert said in " ".join(" ".join(told_of(name, 100)).split())


def test_what_is_neither_is_refused(cli: Callable[..., Any]) -> None:
    """A name that is no noun, section or key is one line, which says what there is."""
    answer = cli("list", "trainning")
    assert (2, "'training'") == (answer.code, next(word for word in answer.err.split("?")[0].split() if "'training'" in word))


def test_editors_are_told_of_every_key() -> None:
    """The JSON Schema describes each key of each section."""
    schema = json_schema()
    parts = {name: schema["$defs"][name] for name in (section.__name__ for section in sections().values()) if name in schema["$defs"]}
    bare = [f"{name}.{key}" for name, part in {**parts, "Scenario": schema}.items() for key, given in part["properties"].items()
            if not given.get("description")]  # fmt: skip
    assert [] == bare and len(parts) >= 15


def test_editors_are_told_too() -> None:
    """The JSON Schema describes every kind and every setting of it."""
    parts = json_schema()["$defs"]
    described = [(noun, kind) for noun in NOUNS for kind in parts[noun]["anyOf"]]
    settings = [(noun, name, about_) for noun, kind in described for name, about_ in kind["properties"].items() if name != "kind"]

    assert [] == [noun for noun, kind in described if not kind.get("description")]
    assert [] == [f"{noun}.{name}" for noun, name, about_ in settings if "description" not in about_ and "$ref" not in about_]


# Point 15: what is said about keys.


def spoken(table: dict[str, Any], overrides: dict[str, Any] | None = None) -> str:
    """Return the error line that *table* gets."""
    with pytest.raises(fedsim.ScenarioError) as refused:
        build(load(table, overrides))
    return str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        ["model.hidden=[8]", "model.kind=mlp"],
        ["server.strategy.eta=0.1", "server.strategy.tau=0.01", "server.strategy.kind=FedAdam"],
        ["data.partition.alpha=0.5", "data.partition={kind='dirichlet'}"],
        ["clients.compute.gflops=3.0", "clients.compute={kind='constant'}", "clients.compute.overhead_s=0.5"],
        [
            "server.strategy.strategy.eta=0.1", "server.strategy.strategy.kind=FedAdam", "server.strategy.clipping_norm=1.0",
            "server.strategy.kind=DifferentialPrivacyServerSideFixedClipping",
        ],
        ["training.steps=3", "training.batch_size=5"],
    ],
)
def test_settings_are_in_no_order(tiny: Callable[..., dict[str, Any]], words: list[str]) -> None:
    """Overrides give one scenario in whatever order they are said: a kind does not wipe out what is said of it."""
    found = {json.dumps(load(tiny(), parse_overrides(turned)).scenario.plain(), sort_keys=True) for turned in itertools.permutations(words)}
    [said] = found

    assert [] == [key for key, value in parse_overrides(words).items() if not isinstance(value, dict) and json.dumps(value) not in said]


@pytest.mark.parametrize("words", [["training.epochs=2", "training.steps=3"], ["training.steps=3", "training.epochs=2"]])
def test_alternatives_that_are_both_asked_for_are_refused(tiny: Callable[..., dict[str, Any]], words: list[str]) -> None:
    """Of two keys of which one is given, the last said does not win: the line says that both are given."""
    assert "give either epochs or steps (both given)" in spoken(tiny(), parse_overrides(words))


@pytest.mark.parametrize(
    ("key", "there"),
    [
        ("training.lr", "There is training.optimizer.lr."),
        ("training.learning_rate", "There is training.optimizer.lr."),
        ("model.lr", "There is training.optimizer.lr."),
        ("lr", "There is training.optimizer.lr."),
        ("batch_size", "There is training.batch_size."),
        ("training.optimizer.epochs", "There is training.epochs"),
        ("training.optimizer.batch-size", "There is training.batch_size."),
        ("server.fraction_train", "There is server.strategy.fraction_train."),
        ("server.strategy.rounds", "There is server.rounds."),
        ("server.strategy.lr", "There is training.optimizer.lr."),
        ("clients.gflops", "There is clients.compute.gflops."),
        ("clients.latency_s", "There is clients.network.latency_s (of 'constant', 'lognormal', 'trace')."),
        ("data.alpha", "There is data.partition.alpha (of 'dirichlet'), or data.source.alpha (of 'leaf_synthetic')."),
        ("data.partition.per_client", "There is data.partition.per_client (of 'shards')."),
        ("training.capacity", "There is clients.replay.capacity"),
        ("evaluate.workers", "There is engine.workers."),
        ("data.clients", "There is clients."),
        ("server.num_rounds", "There is server.rounds."),
    ],
)
def test_a_key_in_the_wrong_place_is_shown_its_own(tiny: Callable[..., dict[str, Any]], key: str, there: str) -> None:
    """A key that stands where there is none of its name is told where one is, whichever section or kind has it."""
    said = spoken(tiny(), {key: 1})

    assert said.startswith(f"{key}: ") and there in said, said
    assert len(said) < 400


def test_a_key_that_is_nowhere_gets_no_hint(tiny: Callable[..., dict[str, Any]]) -> None:
    """Where no key of that name is, nothing is made up."""
    assert "There is" not in spoken(tiny(), {"training.colour": 1}) + spoken(tiny(), {"server.strategy.colour": 1})


def test_what_own_optimizers_may_do_is_said(tiny: Callable[..., dict[str, Any]]) -> None:
    """An optimiser that there is not is answered with those that there are, and with how one's own goes in."""
    said = spoken(tiny(), {"training.optimizer": {"kind": "adamm", "lr": 0.1}})

    assert "'adam'" in said and "sgd" in said and "Your own goes in as 'package.module:name'" in said
