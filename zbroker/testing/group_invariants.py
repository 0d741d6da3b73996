"""What must be true of consumer groups inside a simulated cluster at every step: invariant 17 of `docs/testing.md`.

Owns what coordinators have promised: positions that they answered as committed. Compares them with what is answered
later, and looks at every coordinator's state for a partition with two owners. Never changes anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from zbroker.broker.ports import Conversation
from zbroker.groups.state import Group, State
from zbroker.protocol import frames as wire
from zbroker.protocol.messages import (
    CommitOffsets,
    CommitOffsetsReply,
    FetchOffsets,
    FetchOffsetsReply,
    GroupHeartbeatReply,
    GroupOffset,
    Reply,
)
from zbroker.testing.broken import InvariantBroken
from zbroker.testing.cluster import SimulatedCluster, Watch

Place = tuple[str, str, int]
"""A group, a topic's id, and a partition."""


class GroupWatch(Watch):
    """Looks at the groups of a whole cluster.

    Attributes:
        promised: the furthest position that was answered as committed.
        checks: how many comparisons were made.
    """

    def __init__(
        self,
        lost_from: Callable[[str, int], int | None],
        is_gone: Callable[[Any, str], bool],
    ) -> None:
        """
        Args:
            lost_from: from which offset on an unclean election may have lost a partition's records, None where there
                was none: who read them goes back, no further than that.
            is_gone: whether a topic is deleted, as far as a process or anybody else knows: its positions went with it.
        """
        self.promised: dict[Place, int] = {}
        self._lost_from = lost_from
        self._is_gone = is_gone
        self.checks = {"17 positions": 0, "17 owners": 0}
        self._commits: dict[tuple[str, int, bytes, int], CommitOffsets] = {}
        self._fetches: dict[tuple[str, int, bytes, int], tuple[str, dict[Place, int]]] = {}

    def asked(self, process: Any, route: bytes, head: bytes) -> None:
        """See `Watch`."""
        if b"offsets" not in head:
            return
        try:
            request = wire.decode_request(head)
        except Exception:  # what is malformed is the broker's to refuse
            return
        key = (process.name, process.incarnation, route, request.id)
        if isinstance(request, CommitOffsets):
            self._commits[key] = request
        elif isinstance(request, FetchOffsets):
            known = {place: at for place, at in self.promised.items() if place[0] == request.group}
            self._fetches[key] = (request.group, known)

    def replied(self, process: Any, to: Conversation, message: Reply, body: Any) -> None:  # noqa: ARG002
        """See `Watch`."""
        key = (process.name, process.incarnation, to.client, to.id)
        if isinstance(message, CommitOffsetsReply):
            request = self._commits.pop(key, None)
            if request is not None:
                self._promise(request, message.refused)
        elif isinstance(message, FetchOffsetsReply):
            asked = self._fetches.pop(key, None)
            if asked is not None:
                self._check_positions(process, *asked, message.offsets)
        elif isinstance(message, GroupHeartbeatReply):
            self._check_owners(process)

    def _promise(self, request: CommitOffsets, refused: list[GroupOffset]) -> None:
        left_out = {(each.topic_id, each.partition) for each in refused}
        for each in request.offsets:
            if (each.topic_id, each.partition) not in left_out:
                place = (request.group, each.topic_id, each.partition)
                self.promised[place] = max(self.promised.get(place, -1), each.offset)

    def _check_positions(
        self, process: Any, group: str, known: dict[Place, int], offsets: list[GroupOffset]
    ) -> None:
        for each in offsets:
            self.checks["17 positions"] += 1
            promised = known.get((group, each.topic_id, each.partition), -1)
            lost_from = self._lost_from(each.topic_id, each.partition)
            least = promised if lost_from is None else min(promised, lost_from)
            if each.offset < least and not self._is_gone(process, each.topic_id):
                raise InvariantBroken(
                    f"17: {process.name} says that group {group} is at {each.offset} of "
                    f"{each.topic}/{each.partition}, and {least} was answered as committed"
                )

    def _check_owners(self, process: Any) -> None:
        for partition in process.broker.keeper:
            coordinating = partition.coordinating
            if coordinating is None or coordinating.coordinator is None:
                continue
            for group in coordinating.state.groups.values():
                self.checks["17 owners"] += 1
                check_owners(process.name, group)


def check_owners(node: str, group: Group) -> None:
    """That each partition has at most one owner, and that the index says who."""
    owners: dict[tuple[str, int], str] = {}
    for name, member in group.members.items():
        for partition in (*member.assigned, *member.releasing):
            other = owners.setdefault(partition, name)
            if other != name:
                raise InvariantBroken(f"17: at {node} {partition} is {other}'s and {name}'s")
    if owners != group.holders:
        raise InvariantBroken(f"17: at {node} the holders of {group.name} are not its members'")


def differences(cluster: SimulatedCluster) -> list[str]:
    """Whose state of groups is not what the others have, at rest: fail-over would not be a replay."""
    found: list[str] = []
    states: dict[int, tuple[str, Any]] = {}
    for machine in cluster.up:
        for partition in machine.broker.keeper:
            if partition.coordinating is not None:
                state = plain(partition.coordinating.state)
                first = states.setdefault(partition.number, (machine.name, state))
                if first[1] != state:
                    found.append(
                        f"17: the groups of partition {partition.number} differ between {first[0]} and {machine.name}"
                    )
    return found


def plain(state: State) -> Any:
    """A state as data that can be compared: everything that records make."""
    return {
        name: msgspec.to_builtins(
            (
                group.known, group.epoch, group.assignor, group.empty_since, sorted(group.instances.items()),
                [(each, member.about) for each, member in sorted(group.members.items())],
                sorted((topic, sorted(positions.items())) for topic, positions in group.offsets.items()),
            )
        )
        for name, group in sorted(state.groups.items())
    }  # fmt: skip
