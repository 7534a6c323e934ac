"""Laws of codecs: sizes follow from shapes, and what comes out has the form of what went in. Knows no encoding."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.codec import forms_of
from fedsim.core.state import pack, unpack
from fedsim.core.types import Params
from fedsim.laws.broken import Law, Make, alike, alike_states, keepable, luck, want


def params() -> dict[str, Params]:
    """Return arrays of one form with all sorts of values, by what is said of them."""
    rng = np.random.default_rng(0)

    def of(draw: Any) -> Params:
        return {
            "weight": draw((3, 5)).astype(np.float32), "bias": draw((0,)), "control/weight": draw(()).astype(np.float32).reshape(()),
            "count": np.arange(3), "wide": draw((4,)),
        }  # fmt: skip

    edges = np.array([np.nan, np.inf, -np.inf, 1e-40, -0.0, 3.3e38])
    return {
        "drawn": of(lambda shape: np.asarray(rng.normal(size=shape))), "zeros": of(np.zeros),
        "edges": of(lambda shape: np.resize(edges, shape)),
    }  # fmt: skip


def what_travels_was_foretold(make: Make) -> None:
    """The forms of what travels follow from forms, whatever the values; decoded, they are the old ones."""
    for name, given in params().items():
        codec = make()
        encoded, kept = codec.encode(given, {})
        alike(codec.forms(forms_of(given)), forms_of(encoded), f"of {name}: what travels")
        alike(forms_of(given), forms_of(codec.decode(encoded, forms_of(given))), f"of {name}, decoded: forms")
        keepable(kept, f"of {name}: what is kept")


def decoding_loses_nothing_more(make: Make) -> None:
    """What came out, encoded again, is what travelled, to the bit."""
    for name, given in params().items():
        codec = make()
        encoded, _ = codec.encode(given, {})
        again, _ = codec.encode(codec.decode(encoded, forms_of(given)), {})
        alike(dict(encoded), dict(again), f"of {name}, decoded and encoded again: what travels")


def a_codec_hides_nothing(make: Make) -> None:
    """What it answers follows from arrays and what is kept, whatever it did before; and another decodes what it encoded."""
    used = make()
    for name, given in params().items():
        state, twin = {}, {}
        for time in range(3):
            forms, drawn = forms_of(given), luck()
            encoded, state = used.encode(given, state)
            fresh, twin = make().encode(given, unpack(pack(twin)))
            alike(dict(fresh), dict(encoded), f"of {name}, by one that was used before, time {time}: what travels")
            alike_states(twin, state, f"of {name}, by one that was used before, time {time}: what is kept")
            alike(dict(used.decode(encoded, forms)), dict(make().decode(encoded, forms)), f"of {name}, decoded by another")
            want(drawn == luck(), "it draws from numpy's global generator")


def what_goes_in_stays_as_it_is(make: Make) -> None:
    """Neither arrays nor what is kept is written to."""
    for name, given in params().items():
        codec = make()
        _, kept = codec.encode({each: array.copy() for each, array in given.items()}, {})
        before, was = {each: array.copy() for each, array in given.items()}, unpack(pack(kept))
        encoded, _ = codec.encode(given, kept)
        travels = {each: array.copy() for each, array in encoded.items()}
        codec.decode(encoded, forms_of(given))
        alike(before, dict(given), f"of {name}, encoded: what went in")
        alike(travels, dict(encoded), f"of {name}, decoded: what went in")
        alike_states(was, kept, f"of {name}, encoded: what was kept")


LAWS: dict[str, tuple[Law, ...]] = {
    "codec": (what_travels_was_foretold, decoding_loses_nothing_more, a_codec_hides_nothing, what_goes_in_stays_as_it_is)
}
