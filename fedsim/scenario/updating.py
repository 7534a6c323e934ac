"""What a reader's optimiser, clipping and algorithm are tried for before a run: the rule on two rows of zeros, and how a task ends.

Knows no model but by its arrays, and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fedsim.codec import Coding, forms_of
from fedsim.core.errors import RunError, ScenarioError, door
from fedsim.core.keys import Key
from fedsim.core.types import Params
from fedsim.learn.algorithms import Algorithm, Update
from fedsim.learn.algorithms.ending import ended_by, named
from fedsim.learn.clipping import Clipping
from fedsim.learn.job import Job
from fedsim.learn.optim import Optimizer
from fedsim.learn.work import Start, Task


def try_rule(job: Job, params: Params, at: str, whose: Optimizer) -> None:
    """Refuse an optimiser whose terms are none, or do not work on parameters like *params*; *at* is the reader's word for it."""
    _try_terms(job, whose, params, at, ())


def try_clipping(clipping: Clipping, params: Params, at: str) -> None:
    """Refuse a clipping that does not work on gradients by parameters like *params*; *at* is the reader's word for it."""
    given = [torch.from_numpy(np.array(array)).expand(2, *array.shape).clone() for array in params.values()]
    with door(at, "its clipped() does not work on two rows of gradients:"):
        found: Any = clipping.clipped([each.clone() for each in given])
    if not isinstance(found, list) or len(found) != len(given):  # pyright: ignore[reportUnknownArgumentType]
        raise ScenarioError(f"{at}: its clipped() gives a {type(found).__name__}, expected a list of {len(given)} gradients.")  # pyright: ignore[reportUnknownArgumentType]
    for got, gradient in zip(found, given, strict=True):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        if not isinstance(got, torch.Tensor) or got.shape != gradient.shape or got.dtype != gradient.dtype:
            what = f"{got.dtype} of shape {tuple(got.shape)}" if isinstance(got, torch.Tensor) else f"a {type(got).__name__}"  # pyright: ignore[reportUnknownArgumentType]
            raise ScenarioError(f"{at}: its clipped() gives {what}, expected {gradient.dtype} of shape {tuple(gradient.shape)}.")
    with door(at, "its flops() raised"):
        flops = float(clipping.flops(1))
    if not flops >= 0:
        raise ScenarioError(f"{at}: its flops() gives {flops}, expected a number >= 0.")


def try_algorithm(job: Job, params: Params, at: str) -> None:
    """Refuse an algorithm whose halves do not give what they say; *params* are those that are trained."""
    algorithm = job.algorithm
    if algorithm is None:
        return
    for name in ("down", "up", "metrics", "keeps"):
        given = getattr(algorithm, name)
        if not isinstance(given, tuple) or not all(isinstance(each, str) for each in given):  # pyright: ignore[reportUnknownVariableType]
            raise ScenarioError(f"{at}: its {name} is {given!r}, expected a tuple of names.")
    taken = [name for term in job.optimizer.terms(job) for name in term.keeps] if job.optimizer else ["momentum"]
    if same := sorted(set(algorithm.keeps) & set(taken)):
        raise ScenarioError(f"{at}: it keeps {same[0]!r}, which is what the optimiser calls a state of its own. Take another name.")
    _try_terms(job, algorithm, params, at, algorithm.down)
    zeros = {extra: {name: np.zeros_like(array) for name, array in params.items()} for extra in algorithm.down}
    task = Task(0, 0, job, Start({**params, **named(zeros)}), np.zeros(1, dtype=np.int64), Key(0))
    try:
        with door(at, "its finish() raised"):
            ended = ended_by(algorithm, task, params, list(params))
    except RunError as error:
        raise ScenarioError(str(error).replace("training.algorithm:", f"{at}:")) from error
    own = {name: array for name, array in ended.kept.items() if name.partition("/")[0] in algorithm.keeps}
    if ended.kept or algorithm.keeps:
        _same_forms(at, "its finish()", own, {f"{keep}/{name}": array for keep in algorithm.keeps for name, array in params.items()})
    if others := sorted(set(ended.kept) - set(own)):
        raise ScenarioError(f"{at}: its finish() keeps {others[0]!r}, and it says that it keeps {list(algorithm.keeps)}, by parameter.")
    _try_server(algorithm, params, at)


def try_coding(coding: Coding, params: Params, kinds: Mapping[str, str]) -> None:
    """Refuse codecs of a reader's own that do not give what they say; *kinds* names them, by ``down`` and ``up``."""
    for way, kind in kinds.items():
        if ":" not in kind:
            continue
        at, codec, forms = f"codec.{way}.kind = {kind!r}", getattr(coding, way), getattr(coding, f"{way}_forms")
        given = {name: params[name] if name in params else np.zeros(shape, form) for name, (form, shape) in forms.items()}
        with door(at, "its forms() raised"):
            foretold = dict(codec.forms(forms_of(given)))
        with door(at, "its encode() raised"):
            pair: Any = codec.encode(dict(given), {})
        if not isinstance(pair, tuple) or len(pair) != 2:  # pyright: ignore[reportUnknownArgumentType]
            raise ScenarioError(f"{at}: its encode() gives a {type(pair).__name__}, expected what travels and what is kept.")  # pyright: ignore[reportUnknownArgumentType]
        travels: Any = pair[0]
        _same_forms(at, "its encode()", travels, {name: np.zeros(shape, form) for name, (form, shape) in foretold.items()})
        with door(at, "its decode() raised"):
            back: Any = codec.decode(dict(travels), forms)
        _same_forms(at, "its decode()", back, given)


def _try_server(algorithm: Algorithm, params: Params, at: str) -> None:
    """Refuse a server's half that does not give what it is asked for, of two replies that have moved nothing."""
    with door(at, "its server() raised"):
        server: Any = algorithm.server(2)
    if server is None:
        return
    if not all(hasattr(server, name) for name in ("weights", "begin", "before", "after")):
        raise ScenarioError(f"{at}: its server() gives a {type(server).__name__}, expected weights, begin, before and after, or None.")
    if server.weights not in ("examples", "uniform"):
        raise ScenarioError(f"{at}: its server's weights are {server.weights!r}, expected 'examples' or 'uniform'.")
    zeros = {name: np.zeros_like(array) for name, array in params.items()}
    update = Update(dict(params), dict.fromkeys(algorithm.up, zeros), 1.0, dict.fromkeys((*algorithm.metrics, "num-examples"), 1.0))
    with door(at, "its server's begin() raised"):
        state: Any = server.begin(dict(params))
    sent = {f"{extra}/{name}": array for extra in algorithm.down for name, array in zeros.items()}
    _same_forms(at, "its server's begin()", state, sent, more=True)
    with door(at, "its server's before() raised"):
        shown: Any = server.before(dict(params), [update, update])
    if not isinstance(shown, list) or len(shown) != 2:  # pyright: ignore[reportUnknownArgumentType]
        raise ScenarioError(f"{at}: its server's before() gives {shown!r:.60}, expected a list of as many parameters as there are updates.")
    for each in shown:  # pyright: ignore[reportUnknownVariableType]
        _same_forms(at, "its server's before()", each, params)
    with door(at, "its server's after() raised"):
        ended: Any = server.after(dict(params), dict(params), [update, update], state)
    if not isinstance(ended, tuple) or len(ended) != 2:  # pyright: ignore[reportUnknownArgumentType]
        raise ScenarioError(f"{at}: its server's after() gives a {type(ended).__name__}, expected the model and the state.")  # pyright: ignore[reportUnknownArgumentType]
    _same_forms(at, "its server's after()", ended[0], params)
    _same_forms(at, "its server's after()", ended[1], state)


def _same_forms(at: str, what: str, given: Any, wanted: Params, *, more: bool = False) -> None:
    """Refuse arrays that are not called and formed like those *wanted*; *more* may be there."""
    if not isinstance(given, Mapping):
        raise ScenarioError(f"{at}: {what} gives a {type(given).__name__}, expected arrays by name.")
    if set(wanted) - set(given) or (set(given) - set(wanted) and not more):  # pyright: ignore[reportUnknownArgumentType]
        raise ScenarioError(f"{at}: {what} gives {sorted(given)[:4]}, expected {sorted(wanted)[:4]} ({len(wanted)} names).")  # pyright: ignore[reportUnknownArgumentType]
    for name, array in wanted.items():
        got: Any = given[name]
        if not isinstance(got, np.ndarray) or (got.dtype, got.shape) != (array.dtype, array.shape):  # pyright: ignore[reportUnknownMemberType]
            found = f"{got.dtype} of shape {got.shape}" if isinstance(got, np.ndarray) else f"a {type(got).__name__}"  # pyright: ignore[reportUnknownMemberType]
            raise ScenarioError(f"{at}: {what} gives {found} for {name}, expected {array.dtype} of shape {array.shape}.")


def _try_terms(job: Job, whose: Any, params: Params, at: str, down: Sequence[str]) -> None:
    with door(at, "its terms() raised"):
        terms: Any = whose.terms(job)
    if not isinstance(terms, list | tuple):
        raise ScenarioError(f"{at}: its terms() gives a {type(terms).__name__}, expected a sequence of terms.")
    for term in terms:  # pyright: ignore[reportUnknownVariableType]
        if not all(hasattr(term, name) for name in ("keeps", "apply", "flops")):  # pyright: ignore[reportUnknownArgumentType]
            raise ScenarioError(f"{at}: its terms() gives {term!r}, expected a term: keeps, apply and flops.")
        with door(at, f"its term {type(term).__name__} does not work on two rows of parameters:"):  # pyright: ignore[reportUnknownArgumentType]
            starts = [torch.from_numpy(np.array(array)).expand(2, *array.shape) for array in params.values()]
            seen: list[Any] = [
                term.apply(
                    torch.zeros_like(start), start.clone(), start, {name: torch.zeros_like(start) for name in term.keeps},
                    {extra: torch.zeros_like(start) for extra in down}, np.zeros(2, dtype=np.int64),
                )
                for start in starts
            ]  # fmt: skip
            flops = float(term.flops(1))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        for got, start in zip(seen, starts, strict=True):
            if not isinstance(got, torch.Tensor) or got.shape != start.shape or got.dtype != start.dtype:
                what = f"{got.dtype} of shape {tuple(got.shape)}" if isinstance(got, torch.Tensor) else f"a {type(got).__name__}"
                raise ScenarioError(
                    f"{at}: its term {type(term).__name__} gives {what}, expected {start.dtype} of shape {tuple(start.shape)}."  # pyright: ignore[reportUnknownArgumentType]
                )
        if not flops >= 0:
            raise ScenarioError(f"{at}: its term {type(term).__name__} gives flops() = {flops}, expected a number >= 0.")  # pyright: ignore[reportUnknownArgumentType]
