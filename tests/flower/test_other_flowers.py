"""Other flwr than the pinned one: the oldest that is supported and the newest below 2, each in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLDEST, NEWEST = "1.38.*", "<2"
TOUCHING = (
    "tests/flower/test_compat.py", "tests/flower/test_compat_app.py", "tests/flower/test_grid.py", "tests/flower/test_strategies.py",
    "tests/foreign/test_foreign_apps.py", "tests/foreign/test_app_clients.py", "tests/foreign/test_installed_apps.py",
    "tests/foreign/test_waits.py", "tests/deploy/test_local.py::test_a_deployment_is_its_simulation",
)  # fmt: skip
"""The tests of all that touches Flower's names, of Flower's laws, of apps, and of one deployment."""


def said(python: Path, *words: str, limit_s: float = 600.0) -> str:
    """Return what *python* prints, run in the repository's root with our sources before any others."""
    pythonpath = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    beside = {**os.environ, "PYTHONPATH": pythonpath, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([python, *words], cwd=ROOT, env=beside, capture_output=True, text=True, timeout=limit_s)
    assert 0 == done.returncode, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout.strip()


def environment(folder: Path, asked: str) -> Path:
    """Return the Python of a new environment in *folder* with the flwr that is *asked* for, and what that needs; all else is ours here."""
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    place = Path(said(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    ours = [path for path in sys.path if path and Path(path).name in ("site-packages", "dist-packages")]
    (place / "shared.pth").write_text("".join(f"{path}\n" for path in ours))  # After the environment's own: its flwr wins.
    said(python, "-m", "pip", "install", "--quiet", "--no-compile", "--upgrade", "--disable-pip-version-check", asked)
    return python


@pytest.mark.slow
@pytest.mark.parametrize("asked", [f"flwr=={OLDEST}", f"flwr{NEWEST}"], ids=["oldest", "newest"])
def test_what_touches_flower_passes_there(asked: str, tmp_path: Path) -> None:
    """With that flwr, and what it asks for, the tests that touch it pass; it is another one than that which runs this test."""
    python = environment(tmp_path / "env", asked)
    version = said(python, "-c", "import flwr; from importlib.metadata import version; print(version('flwr'), flwr.__file__)")
    number, place = version.split()
    needs = said(python, "-c", f"""
from importlib.metadata import requires, version
from packaging.requirements import Requirement
wanted = [Requirement(text) for text in requires("flwr")]
wanted = [each for each in wanted if each.marker is None or each.marker.evaluate({{"extra": ""}})]
print([f"{{each}} ({{version(each.name)}})" for each in wanted if not each.specifier.contains(version(each.name), prereleases=True)])
print({number!r} == version("flwr"), len(wanted))
""")  # fmt: skip
    told = said(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TOUCHING, limit_s=3600.0)
    print(f"flwr {number}: {told.splitlines()[-1]}")

    assert Path(place).is_relative_to(tmp_path)
    assert number.startswith("1.38.") if asked.endswith(OLDEST) else int(number.split(".")[1]) >= 38
    assert "[]" == needs.splitlines()[0] and needs.splitlines()[1].startswith("True ")
