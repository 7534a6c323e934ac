"""What kinds and their settings are, in words: read off docstrings and annotations, ours and a reader's own alike.

A docstring tells of a setting in a line of its own (``*alpha*: smaller is more skew``), in the sections of numpy, Google
or Sphinx, or in a sentence that names it between stars.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Annotated, Any, get_args, get_origin

from fedsim.scenario.glossary import GLOSSARY, KINDS

STARRED = r"\*{name}\*:\s+(?P<words>.+?)(?=\n\s*\n|\n\*|\n[A-Z>]|\Z)"
"""A line of ours about a setting; what is indented below it goes on."""
STYLES = (
    STARRED,
    r"^[ ]*{name}[ ]*:[^\n]*\n(?P<words>(?:[ ]+[^\n]+\n?)+)",  # numpy
    r"^[ ]+{name}[ ]*(?:\([^)]*\))?:[ ]+(?P<words>[^\n]+(?:\n[ ]{{6,}}[^\n]+)*)",  # Google
    r":param[ ](?:\w+[ ])?{name}:[ ]+(?P<words>[^\n]+)",  # Sphinx
)
"""How docstrings tell of a setting in a place of its own."""


def about(function: Any, kind: str = "") -> str:
    """Return what *function*, registered as *kind*, gives: the first sentence of its docstring; nothing where it has none.

    >>> def ring(capacity):
    ...     '''Return a ring per class.'''
    >>> about(ring), about(lambda: 0)
    ('a ring per class', '')
    """
    if ours(function) and kind in KINDS:
        return KINDS[kind]
    text = _doc(function)
    if not text or text.startswith(f"{getattr(function, '__name__', '')}("):  # What dataclasses write for themselves.
        return ""
    first = " ".join(re.split(r"\n\s*\n", text)[0].split())
    return _plain(re.sub(r"^Returns? ", "", first)).rstrip(".")


def of_setting(function: Any, name: str, hint: Any = None, *, noun: str = "", kind: str = "") -> str:
    """Return what setting *name* of *function* means, whose annotation is *hint*; nothing where nobody says.

    Of what is ours, registered as *kind* of *noun*, the glossary says it where the docstring has no line for it.

    >>> def ring(capacity, share):
    ...     '''Return a ring per class.
    ...
    ...     Each keeps *capacity* examples. It is never full.
    ...     *share*: how much of a batch is replayed
    ...     '''
    >>> of_setting(ring, "capacity"), of_setting(ring, "share"), of_setting(ring, "size", Annotated[int, "in bytes"])
    ('Each keeps capacity examples', 'how much of a batch is replayed', 'in bytes')
    """
    texts = [text for text in _docs(function) if text]
    known = GLOSSARY.get(noun, {}) if ours(function) else {}
    return (
        _marked(hint) or _section(texts, name, STYLES[:1]) or known.get(f"{kind}.{name}") or known.get(name)
        or _section(texts, name, STYLES[1:]) or _mention(texts, name)
    )  # fmt: skip


def ours(function: Any) -> bool:
    """Return whether *function* is one that the glossary speaks of."""
    return str(getattr(function, "__module__", "")).partition(".")[0] in ("fedsim", "flwr")


def _section(texts: Iterable[str], name: str, styles: Iterable[str]) -> str:
    for text in texts:
        for style in styles:
            flags = re.MULTILINE | (re.DOTALL if style is STARRED else re.NOFLAG)
            if found := re.search(style.format(name=re.escape(name)), text, flags):
                return _plain(_sentences(found["words"])[0]).rstrip(".")
    return ""


def _mention(texts: Iterable[str], name: str) -> str:
    mention = re.compile(rf"\*{re.escape(name)}\*|``{re.escape(name)}``")
    sentences = (sentence for text in texts for sentence in _sentences(text) if mention.search(sentence))
    return _plain(re.sub(r"^Returns? ", "", next(sentences, ""))).rstrip(".")


def _marked(hint: Any) -> str:
    """Return words that an annotation carries: a text, or a ``Doc`` as of PEP 727, however deep it sits."""
    if get_origin(hint) is Annotated:
        for mark in get_args(hint)[1:]:
            said = mark if isinstance(mark, str) else getattr(mark, "documentation", None)
            if isinstance(said, str):
                return said
    return next((said for said in map(_marked, get_args(hint)) if said), "")


def _docs(function: Any) -> Iterable[str]:
    """Return the docstrings that may tell: of a class also those of its ``__init__`` and of what it descends from."""
    if not inspect.isclass(function):
        return [_doc(function)]
    return [text for base in inspect.getmro(function)[:-1] for text in (_doc(base), _doc(vars(base).get("__init__")))]


def _doc(function: Any) -> str:
    text = getattr(function, "__doc__", None)
    return inspect.cleandoc(text).partition("\n>>>")[0] if isinstance(text, str) else ""


def _sentences(text: str) -> list[str]:
    """Return the sentences of *text*, paragraphs and lines of their own apart."""
    blocks = re.split(r"\n\s*\n|\n(?=\*\w+\*:)", text.strip())
    return [sentence for block in blocks for sentence in re.split(r"(?<=[.;?!])\s+(?=[A-Z*`\[])", " ".join(block.split()))]


def _plain(text: str) -> str:
    return re.sub(r"\*(\w+)\*|``?([^`]+)``?", lambda found: found[1] or found[2], " ".join(text.split()))


