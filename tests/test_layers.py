"""The house stands: imports point right, and the heavy libraries are only where they belong."""

import ast
from collections.abc import Iterator
from pathlib import Path

import fedsim

HOUSE = Path(fedsim.__file__).parent
RANK = {
    "cli": -4, "cli_real": -3, "cli_compare": -3, "cli_size": -3, "cli_sweep": -3, "cli_live": -3, "cli_export": -3, "cli_words": -2,
    "show": -1, "show_real": -1, "show_runs": -1, "live": -1, "listing": -1, "laws": -1, "plot": -1, "advising": -1, "running": -1,
    "studies": -1, "real": -1, "comparing": -1, "sizing": -1, "sweeping": -1,
    "show_rows": 0, "many": 0, "trial": 0, "preview": 1, "rehearsal": 1,
    "walking": 1, "timekeeping": 1, "session": 1, "apart": 1, "foreign": 1, "exporting": 1, "scenario": 2, "report": 2,
    "score": 3, "record": 3, "sim": 4, "flower": 5, "strategy": 5,
    "client": 6,
    "data": 7, "learn": 7, "cost": 7, "codec": 7, "core": 8,
}  # fmt: skip
"""Smaller is further left; a file may import from its own room, and from rooms of a larger rank."""
BESIDE = {
    ("show_real", "real"), ("running", "live"), ("advising", "live"), ("preview", "rehearsal"), ("rehearsal", "walking"),
    ("rehearsal", "timekeeping"), ("session", "apart"), ("score", "record"), ("strategy", "flower"), ("learn", "data"), ("cost", "data"),
}  # fmt: skip
"""Rooms of one rank of which the first may import the second."""
ONLY_IN = {
    "torch": {"learn", "laws", "scenario/build.py", "scenario/probe.py", "scenario/updating.py"},
    "simpy": {"sim"},
    "flwr": {"flower", "strategy", "sim", "real", "session.py", "rehearsal.py", "foreign"},
}
BARE = {"core": {"numpy"}}
"""Third-party imports of a room that keeps to few."""


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield (module, whether it is for type checkers only) for each import in a file, function bodies included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and getattr(branch.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "fedsim" else [f"fedsim.{a.name}" for a in node.names]
        yield from ((name, id(node) in typed) for name in names)


def breaches(house: Path) -> list[str]:
    """Return every import that points the wrong way, or brings a library where it does not belong."""
    found: list[str] = []
    for path in sorted(house.rglob("*.py")):
        inside = path.relative_to(house)
        room = inside.parts[0].removesuffix(".py")
        if room in ("__init__", "__main__"):
            continue  # The front doors name what is public, and import it when asked.
        for name, typed in imports(path):
            top, *rest = name.split(".")
            if top == "fedsim" and rest and rest[0] in RANK and rest[0] != room:
                if RANK[rest[0]] <= RANK[room] and (room, rest[0]) not in BESIDE:
                    found.append(f"{inside}: {name} lies to the left or beside")
            places = ONLY_IN.get(top)
            if places and not typed and room not in places and str(inside) not in places and inside.name not in places:
                found.append(f"{inside}: {top} does not belong here")
            if room in BARE and top not in {"fedsim", "__future__", *BARE[room]} and not _standard(top):
                found.append(f"{inside}: {top} is more than this room takes")
    return found


def _standard(top: str) -> bool:
    import sys

    return top in sys.stdlib_module_names


def test_imports_point_right() -> None:
    """No file imports from a room on its left, and torch, simpy and flwr are only where they belong."""
    assert [] == breaches(HOUSE)


def test_a_wrong_import_is_seen(tmp_path: Path) -> None:
    """A cost model that imports torch, a core that imports the run, a recorder that knows a score: each is named."""
    wrong = (
        ("cost", "import torch"), ("core", "from fedsim.session import run"), ("core", "import pandas"),
        ("record", "from fedsim.score.run import Run"),
    )  # fmt: skip
    for room, line in wrong:
        (tmp_path / room).mkdir(exist_ok=True)
        with (tmp_path / room / "bad.py").open("a") as file:
            file.write(f"{line}\n")

    assert len(wrong) == len(breaches(tmp_path))


def test_what_a_notebook_offers_of_plot_is_figures() -> None:
    """``dir(fedsim.plot)`` has every function of the module that is public, and nothing that these are made with."""
    made = [name for name, each in vars(fedsim.plot).items() if getattr(each, "__module__", "") == "fedsim.plot" and name[0] != "_"]

    assert sorted(made) == dir(fedsim.plot) == sorted(fedsim.plot.__all__)


def test_the_public_surface_is_sorted_and_real() -> None:
    """``fedsim.__all__`` is sorted, fits on a screen, and every name in it is there."""
    assert sorted(fedsim.__all__) == fedsim.__all__
    assert len(fedsim.__all__) < 30
    assert all(getattr(fedsim, name) is not None for name in fedsim.__all__)
