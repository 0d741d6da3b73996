"""Which nodes keep a partition: copies and leaderships spread evenly, over racks first. Pure arithmetic, no state.

The same input gives the same placement: where several nodes are equally right, the next one in the order of their names
is taken, counted from a partition's preferred leader and turned a little further each time that it leads again, so that
the copies of what one node leads are spread over all the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec


class Load(msgspec.Struct):
    """What one node keeps and leads by preference, and where it stands; a node without a rack is a rack of its own."""

    rack: str | None = None
    keeps: int = 0
    leads: int = 0


def place(
    nodes: Mapping[str, Load], partitions: int, replicas: int, *, kept: Sequence[Sequence[str]] = ()
) -> list[list[str]]:
    """The replicas of each partition, the preferred leader first.

    Args:
        nodes: who may keep replicas, with what each keeps and leads otherwise; the counts are brought up to date.
        partitions: how many partitions to place.
        replicas: copies of each, at most as many as there are nodes.
        kept: replicas that partitions have already, the leader first: as many of them stay as the spread allows.

    >>> place({"a": Load(), "b": Load(), "c": Load()}, 3, 2)
    [['a', 'b'], ['b', 'c'], ['c', 'a']]
    >>> place({"a": Load("x"), "b": Load("x"), "c": Load("y")}, 2, 2)
    [['a', 'c'], ['c', 'a']]
    """
    assert replicas <= len(nodes), (replicas, nodes)
    placed = _staying(nodes, partitions, replicas, kept)
    share = _share(partitions + sum(load.leads for load in nodes.values()), nodes)
    for chosen in placed:
        if chosen and nodes[chosen[0]].leads >= share:
            chosen.sort(key=lambda node: nodes[node].leads)
        if not chosen:
            chosen.append(_leader(nodes))
            nodes[chosen[0]].keeps += 1
        nodes[chosen[0]].leads += 1
    turns: Counter[str] = Counter()
    for chosen in placed:
        turns[chosen[0]] += 1
        while len(chosen) < replicas:
            chosen.append(_follower(nodes, chosen, turns[chosen[0]] - 1))
            nodes[chosen[-1]].keeps += 1
    return placed


def _staying(
    nodes: Mapping[str, Load], partitions: int, replicas: int, kept: Sequence[Sequence[str]]
) -> list[list[str]]:
    """What stays where it is: no more on any node than its share."""
    share = _share(partitions * replicas + sum(load.keeps for load in nodes.values()), nodes)
    placed: list[list[str]] = []
    for number in range(partitions):
        before = kept[number] if number < len(kept) else ()
        chosen = [node for node in before if node in nodes and nodes[node].keeps < share]
        del chosen[replicas:]
        for node in chosen:
            nodes[node].keeps += 1
        placed.append(chosen)
    return placed


def _share(total: int, nodes: Mapping[str, Load]) -> int:
    """How many a node has where all have equally many, rounded up."""
    return -(-total // len(nodes))


def _leader(nodes: Mapping[str, Load]) -> str:
    """Who leads least; of those, who stands in the rack that leads least, and keeps least."""
    racks: Counter[str] = Counter()
    for name, load in nodes.items():
        racks[load.rack or name] += load.leads

    def order(name: str) -> tuple[int, int, int, str]:
        load = nodes[name]
        return load.leads, racks[load.rack or name], load.keeps, name

    return min(nodes, key=order)


def _follower(nodes: Mapping[str, Load], chosen: Sequence[str], turn: int) -> str:
    """Who stands in a rack that has no copy yet, and keeps least; of those, the next after the leader."""
    ring = sorted(nodes)
    first = ring.index(chosen[0]) + 1 + turn % max(len(ring) - 1, 1)

    def order(name: str) -> tuple[int, int, int]:
        rack = nodes[name].rack
        beside = sum(rack is not None and nodes[each].rack == rack for each in chosen)
        return beside, nodes[name].keeps, (ring.index(name) - first) % len(ring)

    return min((name for name in ring if name not in chosen), key=order)
