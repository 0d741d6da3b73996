"""Which nodes keep a partition: copies and leaderships spread evenly, over racks first. Pure arithmetic, no state.

The same input gives the same placement: where several nodes are equally right, the next one in the order of their names
is taken, counted from a partition's preferred leader and turned a little further each time that it leads again, so that
the copies of what one node leads are spread over all the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

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
    [['a', 'c'], ['c', 'b']]
    """
    assert replicas <= len(nodes), (replicas, nodes)
    placed = [
        [node for node in kept[number] if node in nodes][:replicas] if number < len(kept) else []
        for number in range(partitions)
    ]
    for chosen in placed:
        for position, node in enumerate(chosen):
            nodes[node].keeps += 1
            nodes[node].leads += position == 0
    for chosen in placed:
        if not chosen:
            chosen.append(_leader(nodes))
            nodes[chosen[0]].keeps += 1
            nodes[chosen[0]].leads += 1
    turns: Counter[str] = Counter()
    for chosen in placed:
        while len(chosen) < replicas:
            chosen.append(_follower(nodes, chosen, turns[chosen[0]]))
            nodes[chosen[-1]].keeps += 1
        turns[chosen[0]] += 1
    while _even_copies(nodes, placed) or _even_leaderships(nodes, placed):
        pass
    return placed


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


def _even_copies(nodes: Mapping[str, Load], placed: Sequence[list[str]]) -> bool:
    """Gives one copy of a node that keeps more to one that keeps less, a leader's last; False where all are even."""
    order = sorted(nodes, key=lambda name: (nodes[name].keeps, name))
    for heavy, light in _pairs(order):
        if nodes[heavy].keeps - nodes[light].keeps < 2:
            continue
        movable = (
            chosen
            for chosen in placed
            if heavy in chosen and light not in chosen and _keeps_apart(nodes, chosen, heavy, light)
        )
        leads: list[str] = []
        for chosen in movable:
            at = chosen.index(heavy)
            if at == 0:
                leads = leads or chosen
                continue
            chosen[at] = light
            nodes[heavy].keeps -= 1
            nodes[light].keeps += 1
            return True
        if leads:
            leads[0] = light
            nodes[heavy].keeps -= 1
            nodes[light].keeps += 1
            nodes[heavy].leads -= 1
            nodes[light].leads += 1
            return True
    return False


def _even_leaderships(nodes: Mapping[str, Load], placed: Sequence[list[str]]) -> bool:
    """Lets a node that leads less lead instead of one that leads more; False where all are even."""
    order = sorted(nodes, key=lambda name: (nodes[name].leads, name))
    for heavy, light in _pairs(order):
        if nodes[heavy].leads - nodes[light].leads < 2:
            continue
        for chosen in placed:
            if chosen[0] == heavy and light in chosen:
                at = chosen.index(light)
                chosen[0], chosen[at] = light, heavy
                nodes[heavy].leads -= 1
                nodes[light].leads += 1
                return True
    return False


def _pairs(order: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each two, of which the first is further behind in the order."""
    return ((heavy, light) for heavy in reversed(order) for light in order if heavy != light)


def _keeps_apart(nodes: Mapping[str, Load], chosen: Sequence[str], old: str, new: str) -> bool:
    """Whether a copy stands beside no more others in its rack on the new node than on the old one."""
    others = [nodes[each].rack for each in chosen if each != old and nodes[each].rack is not None]
    return others.count(nodes[new].rack) <= others.count(nodes[old].rack)
