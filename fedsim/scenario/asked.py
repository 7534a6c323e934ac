"""What a scenario file says of itself in the comments at its top: its question, what it expects, where that is from. Reads text."""

from __future__ import annotations

import re
from pathlib import Path

WORDS = ("question", "expected", "reference")
LONGEST = 2000


def asked(source: object) -> dict[str, str]:
    """Return what the file *source* says at its top as ``# Question: ...``, by WORDS; empty for what is no file, or says nothing."""
    if not isinstance(source, str | Path):
        return {}
    found: dict[str, str] = {}
    word = ""
    try:
        lines = Path(source).read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return {}
    for line in lines:
        if not line.startswith("#"):
            break
        said = line.lstrip("#").rstrip()
        if match := re.match(rf"\s*({'|'.join(WORDS)})s?:\s*(.*)", said, re.IGNORECASE):
            word = match[1].lower()
            found[word] = match[2]
        elif word and said.strip() and re.match(r"\s{4}", said):  # The next line of what was begun.
            found[word] += f" {said.strip()}"
        else:
            word = ""
    return {name: text[:LONGEST] for name, text in found.items() if text}
