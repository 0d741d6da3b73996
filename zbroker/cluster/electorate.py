"""Who votes, and which of the linked nodes are those voters: a voter is a node and its disk.

Owns that comparison. A node under a voter's name on another disk is a learner: it is sent the log, and nothing that it
says counts, for it does not know what the voter has promised.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class PeerStart(msgspec.Struct, frozen=True):
    """A node's start that is up: which one, and on which disk, as the link to it was checked."""

    incarnation: int
    disk_id: str


class Electorate:
    """The voters as one node sees them.

    Attributes:
        voters: disk ids by node name, as the newest record in this node's log has them.
        starts: the other nodes that are linked.

    >>> seen = Electorate("a", "d1")
    >>> seen.voters = {"a": "d1", "b": "d2", "c": "d3"}
    >>> seen.starts = {"b": PeerStart(1, "d2"), "c": PeerStart(1, "new")}
    >>> seen.is_voter("a"), seen.is_voter("b"), seen.is_voter("c")
    (True, True, False)
    >>> seen.counted()
    ['a', 'b', 'c on d3']
    """

    def __init__(self, node: str, disk_id: str) -> None:
        self.node = node
        self.disk_id = disk_id
        self.voters: dict[str, str] = {}
        self.starts: Mapping[str, PeerStart] = {}

    def disk(self, node: str) -> str | None:
        """The disk that a node is on, None where it is not linked."""
        if node == self.node:
            return self.disk_id
        start = self.starts.get(node)
        return None if start is None else start.disk_id

    def is_voter(self, node: str) -> bool:
        """Whether a node that is linked is the voter of its name."""
        disk = self.disk(node)
        return disk is not None and self.voters.get(node) == disk

    def counted(self) -> list[str]:
        """The voters under the names by which a leader counts them: nobody answers to that of a disk that is away."""
        return [
            node if self.disk(node) in (disk, None) else f"{node} on {disk}"
            for node, disk in sorted(self.voters.items())
        ]

    @property
    def stands(self) -> bool:
        """Whether this node may lead."""
        return self.voters.get(self.node) == self.disk_id

    @property
    def votes(self) -> bool:
        """Whether this node may give its vote.

        It may be a voter by a log that is longer than its own. It may not where it knows that another disk votes under
        its name, or does not know anybody who votes.
        """
        return bool(self.voters) and self.voters.get(self.node, self.disk_id) == self.disk_id
