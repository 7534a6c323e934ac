"""What a reader must know of the settings of a strategy: which do nothing here, and where Flower takes them otherwise than one thinks."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

_METRICS_ONLY = "weighs the metrics that are reported, and not the model"
_CLIENTS_LR = "Flower's class keeps it and never uses it; clients train with training.optimizer.lr"
IDLE: dict[tuple[str, str], str] = {
    **{(kind, "eta_l"): _CLIENTS_LR for kind in ("FedAdam", "FedYogi", "FedAdagrad")},
    **{(kind, "weighted_by_key"): _METRICS_ONLY for kind in ("FedMedian", "FedTrimmedAvg", "Bulyan", "BulyanIterated", "QFedAvg")},
    ("Krum", "weighted_by_key"): "one reply is chosen, so nothing is weighed",
}
"""Settings of stock strategies that never move the model, by strategy and name, and why."""


def remarks(kind: str, given: Mapping[str, Any], asked: int, at: str) -> list[str]:
    """Return what to say of the settings *given* to strategy *kind*, whose rounds ask *asked* clients; nothing of a reader's own."""
    found = [
        f"{at}.{name} = {value!r}: has no effect: {why}." if why != _METRICS_ONLY else f"{at}.{name} = {value!r}: {why}."
        for name, value in given.items()
        if (why := IDLE.get((kind, name)))
    ]
    if kind == "QFedAvg" and given.get("q") == 0:
        found += [
            f"{at}.{name} = {given[name]!r}: has no effect with q = 0, where it cancels out."
            for name in ("client_learning_rate", "train_loss_key")
            if name in given
        ]
    if kind == "FedTrimmedAvg" and (beta := given.get("beta", 0.2)) and int(beta * asked) == 0:
        found.append(
            f"{at}.beta = {beta:g}: cuts nothing off, because it is less than one of {asked} replies: what is left is the plain mean."
        )
    if kind == "MultiKrum" and given.get("num_nodes_to_select", 1) == asked:
        found.append(f"{at}.num_nodes_to_select = {asked}: is every client of a round, so nobody is left out and the rule chooses nothing.")
    if kind.startswith("DifferentialPrivacy") and kind.endswith("AdaptiveClipping"):
        found.append(
            f"{at}.kind = {kind!r}: Flower's counts the updates that were cut where Andrew et al. (2021) count those that were not, so"
            f" its norm runs to 0 or to infinity and never to the quantile. AdaptiveClipping takes the same settings, and is as in"
            f" the paper."
        )
    counted_on = given.get("num_sampled_clients")
    if kind.startswith("DifferentialPrivacy") and type(counted_on) is int and counted_on < asked and given.get("noise_multiplier"):
        found.append(
            f"{at}.num_sampled_clients = {counted_on}: a round asks {asked} clients, so there is {asked / counted_on:.3g} times the noise"
            f" that {asked} would need."
        )
    if "Clipping" in kind and given.get("noise_multiplier") == 0:
        found.append(f"{at}.noise_multiplier = 0: updates are clipped and no noise is added; nothing is private.")
    return found


def floored(key: str, fraction: float, clients: int, minimum: int, least: str = "") -> list[str]:
    """Return what to say where Flower asks fewer, or more, clients than *fraction* of *clients* are.

    >>> floored("server.strategy.fraction_train", 0.29, 100, 2)[0][:96]
    'server.strategy.fraction_train = 0.29: asks 28 of 100 clients, because Flower cuts 28.9999999999'
    >>> floored("server.strategy.fraction_train", 0.3, 100, 2)
    []
    """
    product, exact = clients * fraction, Fraction(str(fraction)) * clients
    asked = max(int(product), minimum)
    if asked == exact or not fraction:
        return []
    if asked > product:
        return [f"{key} = {fraction:g}: asks {asked} of {clients} clients, because {least or 'the minimum'} = {minimum}."]
    return [f"{key} = {fraction:g}: asks {asked} of {clients} clients, because Flower cuts {product!r} down to a whole number."]
