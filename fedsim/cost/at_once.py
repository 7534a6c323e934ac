"""Cost models asked for many clients at once, where they can be: by a method beside the one that is asked for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedsim.core.types import FloatArray


def at_once(model: object, many: str, one: str) -> Callable[..., FloatArray] | None:
    """Return the method *many* of *model*, which says of many what *one* says of each; None where it has none that goes with its *one*.

    A class that writes *one* anew has not thereby written *many*: what it inherits of that speaks of the other.

    >>> class Far:
    ...     def down_s(self, client, size_bytes):
    ...         return 3.0
    ...     def downs_s(self, clients, sizes_bytes):
    ...         return [3.0 for _ in clients]
    >>> class Farther(Far):
    ...     def down_s(self, client, size_bytes):
    ...         return 4.0
    >>> at_once(Far(), "downs_s", "down_s") is None, at_once(Farther(), "downs_s", "down_s") is None
    (False, True)
    """
    for kind in type(model).__mro__:
        if many in vars(kind):
            found: Any = getattr(model, many)
            return found
        if one in vars(kind):
            return None
    return None
