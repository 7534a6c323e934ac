"""Stock strategies from a scenario's table, Flower's and a few of ours, by their own class names and keyword arguments."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedsim.core.errors import ScenarioError, choices, door
from fedsim.core.registry import load_object
from fedsim.core.types import Range
from fedsim.flower.compat import NORM_BIT, READS_ONLY, log_to
from fedsim.strategy.bulyan import BulyanIterated
from fedsim.strategy.clipping import AdaptiveClipping, FixedClipping
from fedsim.strategy.remarks import floored, remarks

AT = "server.strategy"

AVERAGING = (
    "FedAvg", "FedAvgM", "FedProx", "FedAdam", "FedYogi", "FedAdagrad", "FedMedian", "FedTrimmedAvg", "Krum",
    "MultiKrum", "Bulyan", "QFedAvg",
)  # fmt: skip
PRIVATE = (
    "DifferentialPrivacyServerSideFixedClipping", "DifferentialPrivacyServerSideAdaptiveClipping",
    "DifferentialPrivacyClientSideFixedClipping", "DifferentialPrivacyClientSideAdaptiveClipping",
)  # fmt: skip
"""Flower's wrappers: their ``strategy`` argument is a strategy table of its own, as that of our two is."""
OUR_PRIVATE = ("AdaptiveClipping", "FixedClipping")
MEANS = ("FedAvg", "FedAvgM", "FedProx", "FedAdam", "FedYogi", "FedAdagrad")
"""What our wrappers may wrap, a reader's own apart: they are handed one reply, the private mean."""

STEPPING = ("FedAvgM", "FedAdam", "FedYogi", "FedAdagrad")
"""What moves the model by a step of its own making, and not to a mean of replies or one of them: no rule for a mean or a variance."""

MEASURING = ("Krum", "MultiKrum", "Bulyan", "BulyanIterated", "QFedAvg", *PRIVATE, *OUR_PRIVATE)
"""What takes the norm of an update, or distances between them, over everything that travels: a model's buffers too."""

OURS: dict[str, type[Strategy]] = {
    "AdaptiveClipping": AdaptiveClipping, "BulyanIterated": BulyanIterated, "FixedClipping": FixedClipping,
}  # fmt: skip
"""What stands beside Flower's where Flower's is not what its paper says."""

ELSEWHERE = {
    "fraction_evaluate": "evaluate.federated_fraction",
    "min_evaluate_nodes": "evaluate.federated_fraction",
    "arrayrecord_key": "nowhere: the client reads whatever record there is",
    "configrecord_key": "nowhere: the client reads whatever record there is",
}
"""Flower arguments that have another place in a scenario, or none."""

RANGES = {
    "fraction_train": Range(gt=0, le=1, why="0 asks no client"), "min_train_nodes": Range(ge=0), "min_available_nodes": Range(ge=0),
    "num_malicious_nodes": Range(ge=0), "num_nodes_to_select": Range(ge=1), "beta": Range(ge=0, lt=0.5),
    "proximal_mu": Range(ge=0), "eta": Range(gt=0), "eta_l": Range(gt=0), "tau": Range(gt=0),
    "beta_1": Range(ge=0, lt=1), "beta_2": Range(ge=0, lt=1), "q": Range(ge=0), "client_learning_rate": Range(gt=0),
    "server_learning_rate": Range(gt=0), "server_momentum": Range(ge=0, lt=1), "noise_multiplier": Range(ge=0),
    "num_sampled_clients": Range(ge=1), "clipping_norm": Range(gt=0), "initial_clipping_norm": Range(gt=0),
    "target_clipped_quantile": Range(ge=0, le=1), "clip_norm_lr": Range(gt=0), "clipped_count_stddev": Range(ge=0),
}  # fmt: skip
"""What Flower checks itself, without naming key or value, and what it does not check."""

REPORTED = {"weighted_by_key": ("num-examples", "train_loss"), "train_loss_key": ("initial_loss", "train_loss")}
"""The metrics that our client reports, for the arguments that name one."""

_WORDS: dict[type, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_NOT_IN_A_FILE = {"train_metrics_aggr_fn", "evaluate_metrics_aggr_fn", "selection_rule", "accountant", "self"}
_TINY = 1e-9


@dataclass(frozen=True, slots=True)
class Built:
    """A strategy and what it asks of the rest: client mods, the metrics they add, initial losses, own copies.

    *notes* are what its reader must know; *asked* is how many clients a round asks when all are available. *measuring* is the
    setting by which it takes norms or distances over all that travels; empty where it takes none.
    """

    strategy: Strategy
    mods: tuple[Callable[..., Any], ...] = ()
    extra_metrics: tuple[str, ...] = ()
    initial_loss: bool = False
    writable: bool = True
    notes: tuple[str, ...] = ()
    asked: int = 0
    measuring: str = ""


def names() -> list[str]:
    """Return the names of all strategies that a scenario can use without code of its own: Flower's, and OURS."""
    return sorted((*AVERAGING, *PRIVATE, *OURS))


def class_of(name: str) -> Callable[..., Any]:
    """Return the class of strategy *name*."""
    return _class(name, AT)


def arguments(name: str) -> dict[str, inspect.Parameter]:
    """Return what a scenario may set of strategy *name*."""
    return _arguments(_class(name, AT))


def build(
    table: Mapping[str, Any], clients: int, federated_fraction: float, at: str = AT, hint: Callable[[str], str] = lambda key: ""
) -> Built:
    """Return the strategy that *table* (``kind`` and its arguments) describes, for a federation of *clients*.

    Raises ScenarioError naming the argument, and what the strategy takes; *hint* tells where else a key has its place.
    """
    kind = table.get("kind")
    if not isinstance(kind, str):
        got = f" = {kind!r}: must be text in quotes." if "kind" in table else ": missing."
        raise ScenarioError(f"{at}.kind{got} {choices('', names())}")
    make = _class(kind, at)
    family = family_of(make) or kind  # A subclass of a reader's own is what its base is, under another name.
    given = {name: value for name, value in table.items() if name != "kind"}
    takes = _arguments(make)
    options = set(takes) | ({"clients_per_round"} if {"fraction_train", "min_train_nodes"} <= set(takes) else set())
    inner: Built | None = None
    for name, value in given.items():
        if name in ELSEWHERE:
            raise ScenarioError(f"{at}.{name} = {value!r}: belongs in {ELSEWHERE[name]}.")
        if name not in options:
            raise ScenarioError(f"{at}.{name}: {kind!r} has no such setting. {choices(name, options)}{hint(f'{at}.{name}')}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ScenarioError(f"{at}.{name} = {value}: must be a finite number.")
        _check_type(f"{at}.{name}", value, takes.get(name))
        if family in names() and name in arguments(family):
            _check_value(f"{at}.{name}", name, value)
    missing = [n for n, p in takes.items() if p.default is inspect.Parameter.empty and n not in given]
    if missing:
        like = ", like { kind = 'FedAvg' }" if missing[0] == "strategy" else ""
        raise ScenarioError(f"{at}.{missing[0]}: missing. {kind!r} needs {', '.join(missing)}{like}.")
    if at != AT and family in (*PRIVATE, *OUR_PRIVATE):  # Flower would add its noise twice, and only the outer one's client mod would run.
        raise ScenarioError(f"{at}.kind = {kind!r}: is a wrapper itself. {choices('', AVERAGING)}")
    if isinstance(given.get("strategy"), Mapping):
        inner = build(given["strategy"], clients, federated_fraction, f"{at}.strategy", hint)
        wrapped = family_of(type(inner.strategy))
        if family in OUR_PRIVATE and wrapped not in (None, *MEANS):
            raise ScenarioError(
                f"{at}.strategy.kind = {given['strategy']['kind']!r}: {kind} hands it one reply, the private mean, so there is nothing to"
                f" choose from. {choices('', MEANS)}"
            )
        given["strategy"] = inner.strategy
    if "fraction_train" in takes:
        given["fraction_evaluate"] = federated_fraction
        if "min_evaluate_nodes" in inspect.signature(make).parameters:
            given["min_evaluate_nodes"] = 1  # Flower's own minimum of 2 would override small shares.
    if family == "QFedAvg" and "train_loss_key" in takes:
        given.setdefault("train_loss_key", "initial_loss")
    notes = [*floored("evaluate.federated_fraction", federated_fraction, clients, 1)] if at == AT else []
    by_count = "clients_per_round" in given
    _fleet(given, takes, clients, at)
    asked = inner.asked if inner else _asked(given, takes, clients)
    if "min_train_nodes" in takes and not by_count:
        least = given.get("min_train_nodes", takes["min_train_nodes"].default)
        notes += floored(f"{at}.fraction_train", given.get("fraction_train", 1.0), clients, least, "min_train_nodes")
    _enough_honest(family, given, takes, asked, at)
    _enough_sampled(given, asked, at)
    notes += [*remarks(kind, given, asked, at), *(inner.notes if inner else ())]
    with door(f"{at}.kind = {kind!r}", "refuses its settings:"), log_to(None):  # Flower warns that evaluation is off, as the scenario says.
        strategy = make(**given)
    if not isinstance(strategy, Strategy):
        raise ScenarioError(f"{at}.kind = {kind!r}: is not a flwr.serverapp.strategy.Strategy.")
    mods, extra = _mods(family)
    return Built(
        strategy=strategy, mods=mods, extra_metrics=extra,
        initial_loss=given.get("train_loss_key") == "initial_loss" or (inner is not None and inner.initial_loss),
        writable=kind not in READS_ONLY, notes=tuple(notes), asked=asked,
        measuring=f"{at}.kind = {kind!r}" if family in MEASURING else inner.measuring if inner else "",
    )  # fmt: skip


def family_of(make: Callable[..., Any]) -> str | None:
    """Return the name of the stock strategy that *make* is or descends from, the nearest one; None where there is none.

    >>> class Mine(flower.QFedAvg): ...
    >>> family_of(Mine), family_of(flower.FedAdam), family_of(dict)
    ('QFedAvg', 'FedAdam', None)
    """
    stock: dict[Any, str] = {_class(name, AT): name for name in names()}
    return next((stock[base] for base in inspect.getmro(make) if base in stock), None) if inspect.isclass(make) else None


def _class(kind: str, at: str) -> Callable[..., Any]:
    if kind in OURS:
        return OURS[kind]
    if kind in names():
        return getattr(flower, kind)
    if ":" in kind:
        return load_object(kind, at=f"{at}.kind")
    why = " FedXgb strategies aggregate trees, which this simulator does not train." if "xgb" in kind.lower() else ""
    raise ScenarioError(
        f"{at}.kind = {kind!r}: no such strategy.{why} {choices(kind, names())} Your own goes in as 'package.module:Class'."
    )


def _arguments(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    found: dict[str, inspect.Parameter] = {}
    hidden = {*_NOT_IN_A_FILE, *ELSEWHERE}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for target in [base.__init__ for base in inspect.getmro(make)] if inspect.isclass(make) else [make]:
        try:
            hints = get_type_hints(target)
        except (NameError, TypeError):  # Annotations of a stranger's class may not resolve; they then go unchecked.
            hints = {}
        parameters = inspect.signature(target).parameters
        for name, parameter in parameters.items():
            if parameter.kind in kinds and name not in hidden:
                found.setdefault(name, parameter.replace(annotation=hints.get(name, Any)))
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
            break  # A subclass that hands **kwargs on takes what its base takes.
    return found


def _check_type(at: str, value: Any, parameter: inspect.Parameter | None) -> None:
    hint = int if parameter is None else parameter.annotation
    allowed = set(get_args(hint)) or {hint}
    if Strategy in allowed:
        if not (isinstance(value, Mapping) and "kind" in value):
            raise ScenarioError(f"{at} = {value!r}: must be a strategy table, like {{ kind = 'FedAvg' }}.")
        return
    plain = {int, float, str, bool} & allowed
    if not plain:
        return
    fits = type(value) in plain or (type(value) is int and float in plain)
    if not fits:
        wanted = " or ".join(_WORDS[kind] for kind in _WORDS if kind in plain)
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
        raise ScenarioError(f"{at} = {shown}: must be {wanted}.")


def _check_value(at: str, name: str, value: Any) -> None:
    if name in RANGES and not RANGES[name].holds(value):
        why = f" ({RANGES[name].why})" if RANGES[name].why else ""
        raise ScenarioError(f"{at} = {value}: must be {RANGES[name]}{why}.")
    if name in REPORTED and value not in REPORTED[name]:
        raise ScenarioError(f"{at} = {value!r}: our client reports no such metric. {choices(value, REPORTED[name])}")


def _fleet(given: dict[str, Any], takes: Mapping[str, Any], clients: int, at: str) -> None:
    """Settle how many clients a round takes."""
    per_round = given.pop("clients_per_round", None)
    if per_round is not None:
        if type(per_round) is not int or per_round < 1:
            raise ScenarioError(f"{at}.clients_per_round = {per_round!r}: must be a whole number >= 1.")
        if "fraction_train" in given:
            raise ScenarioError(f"{at}.clients_per_round = {per_round}: stands against fraction_train; give one of them.")
        # Flower takes max(int(fraction * available), min_train_nodes): a fraction that rounds to nobody, and a minimum.
        given.update(fraction_train=_TINY, min_train_nodes=per_round)
        given.setdefault("min_available_nodes", per_round)
    share = given.get("fraction_train", 1.0)
    if not 0 <= share <= 1:
        raise ScenarioError(f"{at}.fraction_train = {share}: must be >= 0 and <= 1.")
    minimum = max(
        [given.get(n, takes[n].default) for n in ("min_train_nodes", "min_available_nodes") if n in takes], default=1
    )
    if minimum > clients:
        names_ = [n for n in ("min_available_nodes", "min_train_nodes") if n in takes and given.get(n, takes[n].default) == minimum]
        which = "clients_per_round" if per_round else (names_[0] if names_ else "min_available_nodes")
        also = f", and {' and '.join(names_[1:])}" if names_[1:] and not per_round else ""
        raise ScenarioError(
            f"{at}.{which} = {minimum}: needs more clients than there are (clients.count = {clients})."
            f" Lower it{also}, or raise clients.count."
        )


def _asked(given: Mapping[str, Any], takes: Mapping[str, Any], clients: int) -> int:
    """Return how many clients a round asks when all are available."""
    minimum = given.get("min_train_nodes", takes["min_train_nodes"].default) if "min_train_nodes" in takes else 0
    return max(int(clients * given.get("fraction_train", 1.0)), minimum)


def _enough_honest(kind: str, given: Mapping[str, Any], takes: Mapping[str, Any], asked: int, at: str) -> None:
    """Check that a robust rule has the replies it is defined for, which Flower does not."""
    if "min_train_nodes" not in takes:
        return
    if not asked:
        raise ScenarioError(f"{at}.fraction_train = {given.get('fraction_train')}: no client would ever train.")
    bad = given.get("num_malicious_nodes", 0)
    # Krum: n >= 2 f + 3 (Blanchard et al. 2017, section 4); Bulyan: n >= 4 f + 3 (El Mhamdi et al. 2018).
    least = {"Krum": 2 * bad + 3, "MultiKrum": 2 * bad + 3, "Bulyan": 4 * bad + 3, "BulyanIterated": 4 * bad + 3}.get(kind, 0)
    if (bad or kind.startswith("Bulyan")) and asked < least:  # Bulyan aggregates nothing below that, bad ones or not.
        raise ScenarioError(
            f"{at}.num_malicious_nodes = {bad}: {kind} needs at least {least} replies for that, and a round asks"
            f" {asked} clients. Ask more (clients_per_round), or expect fewer."
        )
    if given.get("num_nodes_to_select", 0) > asked:
        raise ScenarioError(
            f"{at}.num_nodes_to_select = {given['num_nodes_to_select']}: is more than the {asked} clients of a round."
        )


def _enough_sampled(given: Mapping[str, Any], asked: int, at: str) -> None:
    """Check that a wrapper does not count on more clients than a round can ask: its noise is divided by them."""
    counted_on = given.get("num_sampled_clients")
    if type(counted_on) is int and counted_on > asked > 0:
        raise ScenarioError(
            f"{at}.num_sampled_clients = {counted_on}: a round asks {asked} clients, so the noise would be"
            f" {counted_on / asked:.3g} times too small. Set it to {asked}, or ask more ({at}.strategy.clients_per_round)."
        )


def _mods(kind: str) -> tuple[tuple[Callable[..., Any], ...], tuple[str, ...]]:
    if kind == "DifferentialPrivacyClientSideFixedClipping":
        return (fixedclipping_mod,), ()
    if kind == "DifferentialPrivacyClientSideAdaptiveClipping":
        return (adaptiveclipping_mod,), (NORM_BIT,)
    return (), ()
