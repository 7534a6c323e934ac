"""Laws of partitions. Knows what a partition must be, and nothing of how any is made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fedsim.core.keys import Key
from fedsim.laws.broken import Law, Make, alike, asks, luck, want


def worlds() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield labels, groups, clients and key of all shapes, in words too: one class or many, one client, hardly an example each."""
    rng = np.random.default_rng(20)
    for seed, (n, classes, clients) in enumerate(
        [(2, 1, 1), (50, 1, 7), (200, 10, 1), (200, 10, 9), (201, 3, 100), (997, 60, 31), (3000, 10, 1000)]
    ):
        labels = rng.integers(classes, size=n) * 3  # Times three: labels need not be dense.
        groups = rng.permutation(np.concatenate([np.arange(clients), rng.integers(clients, size=n - clients)]))
        words = f"{n} examples of {classes} classes to {clients} clients"
        yield words, {"labels": labels, "groups": groups, "clients": clients, "key": Key(seed)}


def every_example_has_one_client(make: Make) -> None:
    """Each example goes to one client, and the clients are as many as were asked for."""
    for words, world in worlds():
        partition, n = make(**world), len(world["labels"])
        alike(list(range(n)), sorted(partition.order.tolist()), f"{words}: examples handed out")
        alike(world["clients"] + 1, len(partition.offsets), f"{words}: ends of clients")
        alike([0, n], partition.offsets[[0, -1]].tolist(), f"{words}: first and last end")


def no_client_goes_without(make: Make) -> None:
    """Each client gets an example at least."""
    for words, world in worlds():
        least = make(**world).sizes.min()
        want(least >= 1, f"{words}: a client has {least}")


def same_key_same_answer(make: Make) -> None:
    """The same key gives the same partition; what goes in stays as it is, and no global generator is drawn from."""
    for words, world in worlds():
        before, drawn = world["labels"].copy(), luck()
        one, two = make(**world), make(**{**world, "labels": before.copy(), "groups": world["groups"].copy()})
        alike(one.order, two.order, f"{words}, asked twice: the order")
        alike(one.offsets, two.offsets, f"{words}, asked twice: the ends")
        alike(before, world["labels"], f"{words}: the labels that went in")
        want(drawn == luck(), f"{words}: it draws from numpy's global generator")


def other_key_other_answer(make: Make) -> None:
    """Another key gives another partition, where there is anything to draw and the kind asks for a key."""
    for words, world in worlds():
        if asks(make, "key") and world["clients"] > 1 and len(set(world["labels"].tolist())) > 1:
            one, two = make(**world), make(**{**world, "key": world["key"].fold("other")})
            differ = one.order.tolist() != two.order.tolist() or one.offsets.tolist() != two.offsets.tolist()
            want(differ, f"{words}: under another key it is the same")


def positions_ascend_in_a_view(make: Make) -> None:
    """A client's positions ascend, and are a view of the one order."""
    for words, world in worlds():
        partition = make(**world)
        for client in range(world["clients"]):
            positions = partition.positions(client)
            want((np.diff(positions) > 0).all(), f"{words}: the positions of client {client} do not ascend")
            want(np.shares_memory(positions, partition.order), f"{words}: the positions of client {client} are a copy")


LAWS: dict[str, tuple[Law, ...]] = {
    "partition": (
        every_example_has_one_client, no_client_goes_without, same_key_same_answer, other_key_other_answer, positions_ascend_in_a_view,
    )
}  # fmt: skip
