"""Which nodes keep a new partition: spread evenly, leaders in turn. Pure arithmetic, no state."""

from __future__ import annotations

from collections.abc import Sequence


def place(
    nodes: Sequence[str], partitions: int, replicas: int, *, first: int = 0
) -> list[list[str]]:
    """The replicas of each new partition, the preferred leader first.

    Args:
        nodes: names of the nodes that may keep replicas, in a fixed order.
        partitions: how many partitions to place.
        replicas: copies of each, at most as many as there are nodes.
        first: where in `nodes` to begin, so that topics do not all begin with the same node.

    >>> place(["a", "b", "c"], 3, 2)
    [['a', 'b'], ['b', 'c'], ['c', 'a']]
    """
    assert replicas <= len(nodes), (replicas, nodes)
    count = len(nodes)
    return [
        [nodes[(first + partition + copy) % count] for copy in range(replicas)]
        for partition in range(partitions)
    ]
