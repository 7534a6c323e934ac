"""What doctests find in their namespace: ``tmp``, an empty folder of their own."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _tmp_for_doctests(doctest_namespace: dict[str, Any], tmp_path: Path) -> None:
    doctest_namespace["tmp"] = tmp_path
