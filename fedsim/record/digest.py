"""The digests of a run: hash chains over rows as they become certain, sealed with the final parameters."""

from __future__ import annotations

import hashlib
from typing import Any

_FORMAT = b"fedsim-digest-1"
"""Changes when what a row holds changes, so that digests of different formats are never compared in earnest."""


class Chain:
    """SHA-256 over rows, each link over the one before: the value after row n stands for rows 1 to n."""

    def __init__(self) -> None:
        self._link = hashlib.sha256(_FORMAT).digest()

    def add(self, *values: Any) -> None:
        """Append a row. Floats count to the last bit (``repr`` gives the shortest text that reads back the same)."""
        self._link = hashlib.sha256(self._link + repr(values).encode()).digest()

    @property
    def value(self) -> str:
        """Return the digest so far, in hex."""
        return self._link.hex()
