"""How a cluster's state reads: facts, nodes, and the partitions that are not as they should be.

Pure: a description in, rows and lines out, for a person and for a pipe alike. Never asks a server.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from zbroker.cli import words

if TYPE_CHECKING:
    from zbroker.client.records import ClusterDescription, NodeDescription, UnhealthyPartition

NODE_COLUMNS = (
    "node", "role", "address", "state", "up", "clients", "leads", "keeps", "size", "software",
)  # fmt: skip
NODE_NUMBERS = ("clients", "leads", "keeps", "size")
PARTITION_COLUMNS = ("partition", "leader", "replicas", "not in sync", "state")

SHOWN_MAX = 50
"""Partitions that are named; of the others it is said how many there are."""


def facts(found: ClusterDescription) -> list[tuple[str, str]]:
    """What holds of the cluster as a whole; what is wrong has a line only where there is some."""
    nodes, troubled = found.nodes, found.unhealthy
    down = [node.name for node in nodes if not node.alive]
    full = [node.name for node in nodes if node.disk_full]
    up = f"{len(nodes) - len(down)} of {len(nodes)} up"
    voters = [node.name for node in nodes if node.voter]
    lines = [
        ("cluster", f"{found.name} ({found.id})"),
        ("controller", found.controller or "none"),
        ("nodes", f"{up}; down: {', '.join(down)}" if down else up),
        ("voters", ", ".join(voters)),
        ("under-replicated", _count(part for part in troubled if part.under_replicated)),
        ("without leader", _count(part for part in troubled if part.leader is None)),
        ("moving", _count(part for part in troubled if part.moving)),
        ("unclean election", _count(part for part in troubled if part.unclean)),
        ("disk full", ", ".join(full)),
    ]
    always = ("cluster", "controller", "nodes", "under-replicated")
    return [
        (name, value or words.count(0, "partition"))
        for name, value in lines
        if value or name in always
    ]


def node_rows(found: ClusterDescription) -> list[list[str]]:
    """The nodes, as `NODE_COLUMNS` has them; what only a node knows is `?` where it did not answer."""
    return [_node_row(node, node.name == found.controller) for node in found.nodes]


def partition_rows(found: ClusterDescription) -> list[list[str]]:
    """The partitions that are not as they should be, as `PARTITION_COLUMNS` has them, up to `SHOWN_MAX`."""
    rows = [
        [
            f"{part.topic}/{part.partition}",
            part.leader or "none",
            ",".join(part.replicas),
            ",".join(part.missing) or "-",
            ", ".join(states(part)),
        ]
        for part in found.unhealthy[:SHOWN_MAX]
    ]
    more = len(found.unhealthy) - SHOWN_MAX
    if more > 0:
        rows.append([f"and {more:,} more", "", "", "", ""])
    return rows


def states(part: UnhealthyPartition) -> Iterator[str]:
    """What is to be said of a partition, the worst first."""
    if part.leader is None and part.waiting_for:
        yield f"no leader: waits for {' and '.join(part.waiting_for)}"
    elif part.leader is None:
        yield "no leader"
    if part.unclean and part.lost_from is not None:
        yield f"unclean election: may have lost records from offset {part.lost_from} on"
    elif part.unclean:
        yield "unclean election"
    if part.under_replicated:
        yield "under-replicated"
    if part.moving:
        yield "moving"


def lines(found: ClusterDescription) -> Iterator[str]:
    """The whole of it in aligned lines."""
    from zbroker.cli import tables
    from zbroker.cli.visible import printable

    named = facts(found)
    width = max(len(name) for name, _ in named)
    for name, value in named:
        yield f"{name.ljust(width)}  {printable(value)}"
    yield ""
    yield from tables.aligned(NODE_COLUMNS, _printable(node_rows(found)), NODE_NUMBERS)
    if found.unhealthy:
        yield ""
        yield from tables.aligned(PARTITION_COLUMNS, _printable(partition_rows(found)))


def _printable(rows: list[list[str]]) -> list[Sequence[str]]:
    from zbroker.cli.visible import printable

    return [[printable(cell) for cell in row] for row in rows]


def _count(parts: Iterator[UnhealthyPartition]) -> str:
    number = sum(1 for _ in parts)
    return words.count(number, "partition") if number else ""


def _node_row(node: NodeDescription, controls: bool) -> list[str]:
    from zbroker.units import Address

    def number(value: int | None) -> str:
        return "?" if value is None else f"{value:,}"

    state = ["up" if node.alive else "down"]
    state += ["drained"] if node.drained else []
    state += ["disk full"] if node.disk_full else []
    return [
        node.name,
        "controller" if controls else "voter" if node.voter else "-",
        str(Address(node.host, node.port)),
        ", ".join(state),
        "?" if node.uptime is None else words.approximate_time(node.uptime),
        number(node.clients),
        number(node.leading),
        number(node.partitions),
        "?" if node.size is None else words.approximate_size(node.size),
        node.software or "?",
    ]
