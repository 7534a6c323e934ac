"""The documentation holds: what it shows is run as it stands there, its links lead somewhere, and the site is built where mkdocs is.

Blocks of a page run in order, in a folder that looks like the clone: ``console`` as commands in this process, ``python`` in one
namespace, ``toml`` with a name in its first line as that file. A comment before a block says what is another here:

    <!-- test: --set server.rounds=2 -->   words that are added to each of its commands
    <!-- test: exit 2 -->                  how it ends; "exit 0 or 1": what it foretells of a busy machine may be wrong
    <!-- test: slow -->                    takes long, or starts real nodes: by 'make reproduce'; words may follow
    <!-- test: elsewhere, WHY -->          cannot be run here

Lines that a ``text`` block shows of a command must begin as the command's own do.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

import fedsim
from fedsim.cli import app
from fedsim.exporting.columns import OWN
from fedsim.listing import sections
from fedsim.many import runs
from fedsim.many.worker import answer
from fedsim.scenario.kinds import slots
from fedsim.strategy import stock

HOUSE = Path(__file__).parents[1]
DOCS = HOUSE / "docs"
BLOCK = re.compile(r"(?:^<!-- test: (?P<how>.*?) -->\n)?^```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.M | re.S)
ELSEWHERE = 1
"""Blocks that cannot be run here."""
NAMES = ("scenario", "kinds", "commands", "python", "columns")
"""The pages that are generated."""
Cli = Callable[..., Any]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: of which *kind*, *how* it is tested, and what it holds."""

    kind: str
    how: str
    body: str

    @property
    def slow(self) -> bool:
        """Return whether it is left to 'make reproduce'."""
        return self.how.startswith("slow")

    @property
    def commands(self) -> list[str]:
        """Return its commands, lines that go on put together."""
        return [line[2:] for line in re.sub(r"\\\n\s*", "", self.body).splitlines() if line.startswith("$ ")]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of *page* that show something, in order."""
    found = [Block(each["kind"], each["how"] or "", each["body"]) for each in BLOCK.finditer(page.read_text("utf-8"))]
    return [each for each in found if each.kind in ("console", "python", "toml", "text")]


PAGES = [HOUSE / "README.md", *sorted(DOCS.rglob("*.md"))]
RUN = [page for page in PAGES if any(block.kind in ("console", "python") for block in blocks(page))]
SLOW = [page for page in RUN if any(block.slow for block in blocks(page))]


LINES = DOCS / "guides" / "scripting.md"
"""The page that says what ``--json`` prints."""
TOLD = {
    "study": "test_studies", "advise": "test_advising", **dict.fromkeys(("deploy", "calibrate", "validate"), "test_json_lines"),
}  # fmt: skip
"""Commands whose tables are held elsewhere to what they print, where that is there anyway: they take long, or start real nodes."""


def documented() -> dict[str, set[str]]:
    """Return the keys of the line of each command, as the page has them."""
    tables = dict(re.findall(r"^### fedsim (\w+)\n(.*?)(?=^##)", LINES.read_text("utf-8"), re.M | re.S))
    return {name: {key for row in re.findall(r"^\| (`.*?) \|", table, re.M) for key in re.findall(r"`([\w]+)`", row)}
            for name, table in tables.items()}  # fmt: skip


def name_of(page: Path) -> str:
    """Return what *page* is called in a test's name."""
    return str(page.relative_to(HOUSE).with_suffix(""))


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers of studies, comparisons and the like answer in this process."""

    def ask(_: Any, request: dict[str, Any], **_more: Any) -> dict[str, str]:
        return answer(json.loads(json.dumps(request)))

    monkeypatch.setattr(runs, "_started", lambda everywhere: None)
    monkeypatch.setattr(runs._Worker, "ask", ask)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with what a reader has in a clone, its sweep a smaller one, where commands run."""
    shutil.copytree(HOUSE / "scenarios", tmp_path / "scenarios")
    sweep = tmp_path / "scenarios" / "sweeps" / "learning-rates.toml"
    sweep.write_text(sweep.read_text().replace("seeds = 3 ", "seeds = 1 ").replace("points = 5", "points = 2"))
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "foreign").symlink_to(HOUSE / "tests" / "foreign")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def play(page: Path, cli: Cli, *, slow: bool = False) -> list[tuple[str, str]]:
    """Run the blocks of *page*, those that take long too where *slow*; return each command with what it printed."""
    names: dict[str, Any] = {"tmp": Path.cwd()}
    said, printed = "", list[tuple[str, str]]()
    for block in blocks(page):
        if block.how.startswith("elsewhere") or (block.slow and not slow):
            said = ""
            continue
        if block.kind == "toml" and (named := re.match(r"# (\S+\.toml)\n", block.body)):
            if not Path(named[1]).exists():  # One of the clone's, shown.
                Path(named[1]).write_text(block.body, encoding="utf-8")
        elif block.kind == "python":
            if named := re.match(r"# (\S+\.py)\n", block.body):
                Path(named[1]).write_text(block.body, encoding="utf-8")
            else:
                exec(compile(block.body, f"{page.name}", "exec"), names)
        elif block.kind == "console":
            told = [(command, _told(command, block.how, cli)) for command in block.commands]
            said, printed = "".join(out for _, out in told), printed + told
        elif block.kind == "text" and said:
            _held(block.body, said, page)
    return printed


def _told(command: str, how: str, cli: Cli) -> str:
    """Return what *command* prints, once it has ended as it should."""
    words = shlex.split(command, comments=True)
    into = Path(words[words.index(">") + 1]) if ">" in words else None
    words = words[: words.index(">")] if into else words
    expected = [int(code) for code in re.findall(r"\d", how)] if "exit" in how else [0]
    assert "fedsim" == words[0], f"{command}: is no command of ours; mark it as elsewhere"
    more = how.removeprefix("slow").strip()
    found = cli(*words[1:], *(shlex.split(more) if more.startswith("--") else ()))
    assert found.code in expected, f"{command}: {found.err or found.out}"
    if into:
        into.write_text(found.out, encoding="utf-8")
    return found.out + found.err


def _held(shown: str, said: str, page: Path) -> None:
    """Hold what a page shows of a command to what it says now: numbers apart, each line begins as one of the command's."""
    begins = [re.sub(r"\s+", " ", re.sub(r"[\d.,]+", "#", re.split(r"\s{2,}", line.strip())[0])) for line in shown.splitlines()]
    now = re.sub(r"\s+", " ", re.sub(r"[\d.,]+", "#", said))
    lost = [line for line in begins if line and line != "#" and line not in now]
    assert [] == lost, f"{page.name} shows {lost}, and the command says:\n{said}"


@pytest.mark.parametrize("page", [page for page in RUN if page.name not in ("README.md", LINES.name)], ids=name_of)
def test_what_a_page_shows_runs(page: Path, clone: Path, beside: None, cli: Cli) -> None:
    """Each command of a page ends as the page says, and each piece of Python runs."""
    play(page, cli)


def test_the_lines_for_programs_have_the_keys_that_are_documented(clone: Path, beside: None, cli: Cli) -> None:
    """Each command with --json prints one line, with those keys and no others, and every such command on the page has its table."""
    tables = documented()
    known = dict(tables)
    known |= dict.fromkeys(("show", "watch"), known["run"])
    printed = {command.split()[1]: out for command, out in play(LINES, cli) if "--json" in command}

    assert set(tables) == set(printed) - {"show", "watch"} | set(TOLD)
    assert {name: known[name] for name in printed} == {name: set(json.loads(line)) for name, line in printed.items()}


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW, ids=name_of)
def test_what_takes_long_runs_too(page: Path, clone: Path, cli: Cli, data_folder: Path) -> None:
    """Real nodes, published results: the whole page."""
    play(page, cli, slow=True)


def test_a_page_that_shows_what_is_not_so_is_noticed(clone: Path, cli: Cli) -> None:
    """A command that is refused, Python that raises, a line that no command prints: each is found."""
    for wrong in (
        "```console\n$ fedsim run scenarios/nowhere.toml\n```\n", "```python\nassert False\n```\n", "```console\n$ ls\n```\n",
        "```console\n$ fedsim list trigger\n```\n\n```text\nno such line   3\n```\n",
    ):  # fmt: skip
        page = clone / "wrong.md"
        page.write_text(wrong)
        with pytest.raises(AssertionError):
            play(page, cli)


def test_little_is_left_to_elsewhere() -> None:
    """What cannot be run here says why, and is little."""
    left = [block.how for page in PAGES for block in blocks(page) if block.how.startswith("elsewhere")]

    assert all(re.match(r"elsewhere, \w", how) for how in left) and len(left) == ELSEWHERE


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    """Return the generated pages by name."""
    spec = importlib.util.spec_from_file_location("docs_reference", DOCS / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages()


def test_the_reference_has_everything(reference: dict[str, str]) -> None:
    """Every section and key, every kind with its settings, every command with its options, every public name and method, every column."""
    keys, kinds, commands, python, columns = (reference[f"reference/{name}.md"] for name in NAMES)
    for place, section in sections().items():
        part = keys.split(f"\n## {place}\n")[1].split("\n## ")[0]
        assert [] == [name for name in section.model_fields if f"| `{name}` |" not in part], place
    for noun, slot in slots().items():
        for name in slot.registry.names():
            part = kinds.split(f"\n### {noun}: {name}\n")[1].split("\n## ")[0].split("\n### ")[0]
            settings = slot.registry.settings(slot.registry.get(name, at=slot.key))
            assert [] == [each for each in settings if f"| `{each}` |" not in part], (noun, name)
    assert [] == [name for name in stock.names() if f"\n### strategy: {name}\n" not in kinds]
    for words in (("sweep", "--pareto MEASURE,..."), ("study batch-size", "--quick"), ("watch", "--json"), ("deploy", "--tls")):
        part = commands.split(f"\n## fedsim {words[0]}\n")[1].split("\n## ")[0]
        assert f"| `{words[1]}` |" in part, words
    methods = [f"Run.{name}" for name in vars(fedsim.Run) if not name.startswith("_") and name != "path"]
    assert [] == [name for name in fedsim.__all__ if f"\n## {name}\n" not in python]
    assert 30 < len(methods) and [] == [name for name in methods if f"\n### {name}\n" not in python]
    assert [] == [name for table in OWN.values() for name in table if f"| `{name}` |" not in columns]


def test_what_is_said_not_to_be_there_is_not(cli: Cli) -> None:
    """The list of limits is of this version: what came since must leave it."""
    kinds = {noun: set(slot.registry.names()) for noun, slot in slots().items()}
    known = " ".join(f"{place}.{name}" for place, section in sections().items() for name in section.model_fields)
    limits = (DOCS / "limits.md").read_text("utf-8")

    assert ({"plain", "bfloat16"}, {"classification"}, {"local", "processes"}) == (kinds["codec"], kinds["objective"], kinds["executor"])
    assert {"logreg", "mlp", "cnn", "gru", "lstm", "sized"} == kinds["model"] and all(f"`{name}`" in limits for name in ("gru", "cnn"))
    assert [] == [name for name in stock.names() if re.search("async|buff|xgb", name.lower())]
    assert [] == [word for word in ("joule", "capacity") if word in known]
    assert {2} == {cli(command).code for command in ("resume", "fork")}


def test_commands_take_what_they_are_given() -> None:
    """Each command in README and on every page, those that are not run here too, is there and has the options that it is given."""
    there: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]

    def taken(name: str) -> set[str]:
        every = (there[name], *getattr(there[name], "commands", {}).values())
        return {option for each in every for parameter in each.params for option in parameter.opts}

    given = [shlex.split(command, comments=True) for page in PAGES for block in blocks(page) for command in block.commands]
    ours = [words for words in given if "fedsim" == words[0]]
    lost = [
        " ".join(words) for words in ours
        if words[1] not in there or not {word for word in words if re.match("--[a-z]", word)} <= taken(words[1])
    ]  # fmt: skip

    assert 70 < len(ours) and [] == lost


def test_links_lead_somewhere() -> None:
    """Each link to a file of ours, in README and on every page, leads to one, or to a page that is generated."""
    known = {DOCS / "reference" / f"{name}.md" for name in NAMES}
    lost = [
        f"{name_of(page)}: {to}" for page in PAGES for to in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
        if not to.startswith("http") and not (page.parent / to).exists() and Path(os.path.normpath(page.parent / to)) not in known
    ]  # fmt: skip

    assert [] == lost


def test_the_site_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strictly: without a warning, with an index to be searched, and nothing on any page is fetched from elsewhere."""
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
        pytest.skip("needs mkdocs-material: pip install 'fedsim-online[docs]'")
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(words, cwd=HOUSE, capture_output=True, text=True)
    assert 0 == built.returncode, built.stderr

    fetched = re.compile(r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["']?(https?:)?//[^>]*>""")
    for page in (tmp_path / "site").rglob("*.html"):
        found = [each[0] for each in fetched.finditer(page.read_text("utf-8")) if 'rel="canonical"' not in each[0]]
        assert [] == found, page
    assert (tmp_path / "site" / "search" / "search_index.json").is_file()
