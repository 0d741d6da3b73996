"""The desk for consumer groups: finds who coordinates a group, and takes each request to the partition that has it.

Owns the way from a group's name to its coordinator, the making of `__groups` when a group is first asked for, what
coordinators know of topics, and who waits for a coordinator to be found. Never decides anything about a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from zbroker.broker.coordinating import Coordinating, Decide
from zbroker.broker.keeper import Keeper
from zbroker.broker.partition import Partition
from zbroker.broker.petitions import Petitions
from zbroker.broker.ports import BrokerSettings, Conversation, Replier, Report, Transport
from zbroker.broker.waiting import Asked, Found
from zbroker.cluster.metadata import Metadata, TopicState
from zbroker.cluster.quorum import MetadataPartition
from zbroker.errors import NotCoordinator, NotReady, ZBrokerError
from zbroker.groups.catalog import Catalog, TopicView
from zbroker.groups.checks import check_group
from zbroker.groups.records import TOPIC, partition_of
from zbroker.protocol import frames as wire
from zbroker.protocol.messages import (
    CommitOffsets,
    DeleteGroup,
    DescribeGroup,
    FetchOffsets,
    FindCoordinator,
    FindCoordinatorReply,
    GroupHeartbeat,
    GroupListing,
    ListGroups,
    ListGroupsReply,
    Reply,
)
from zbroker.protocol.peers import MakeInternalTopic

FIND_MS = 10_000
"""How long a request waits for a coordinator to be there."""
PARKED_MAX = 100_000
"""Requests held for news that do not count as in flight; beyond that they do."""
LAG_MAX = 10_000
"""Positions for which lag is computed."""


class Lag(NamedTuple):
    """How far a group is behind in one partition that is led here."""

    group: str
    topic: str
    partition: int
    lag: int


class _Finding(msgspec.Struct):
    """Somebody who waits for a coordinator to be there."""

    to: Conversation
    group: str
    deadline: int


class GroupDesk:
    """One node's desk for groups.

    Attributes:
        commits: positions committed by requests here.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        metadata: MetadataPartition,
        petitions: Petitions,
        keeper: Keeper,
        *,
        transport: Transport,
        reply: Replier,
        uncount: Callable[[Conversation], None],
        report: Report,
    ) -> None:
        """
        Args:
            uncount: a request does not count as in flight any more, though it is not answered.
        """
        self.commits = 0
        self._settings = settings
        self._metadata = metadata
        self._petitions = petitions
        self._keeper = keeper
        self._transport = transport
        self._reply = reply
        self._uncount = uncount
        self._report = report
        self._parked = 0
        self._making = False
        self._finding: list[_Finding] = []
        self._views: dict[str, TopicView] = {}
        self._catalog = Catalog()
        self._stale: dict[str, None] = {}
        """Topics whose view is out of date."""
        self._nodes_stale = False

    # Requests ---

    def find(self, to: Conversation, request: FindCoordinator, now: int) -> None:
        """Answers with the coordinator of a group, once there is one."""
        check_group(request.group)
        self._finding.append(_Finding(to, request.group, now + FIND_MS))
        self.look(now)

    def heartbeat(self, to: Conversation, request: GroupHeartbeat, now: int, wall: int) -> None:
        """A member joins, stays, or leaves."""
        request.wait = min(request.wait, self._settings.wait_max)
        asked = Asked(to)
        self._decide(
            asked,
            request.group,
            lambda groups: groups.heartbeat(asked, request, now, wall),
            now,
            wall,
        )

    def commit(self, to: Conversation, request: CommitOffsets, now: int, wall: int) -> None:
        """Positions are committed."""
        asked = Asked(to)
        self._decide(
            asked, request.group, lambda groups: groups.commit(asked, request, wall), now, wall
        )
        self.commits += len(request.offsets)

    def fetch_offsets(self, to: Conversation, request: FetchOffsets, now: int, wall: int) -> None:
        """Positions are asked for."""
        asked = Asked(to)
        self._decide(
            asked, request.group, lambda groups: groups.fetch_offsets(asked, request), now, wall
        )

    def describe(self, to: Conversation, request: DescribeGroup, now: int, wall: int) -> None:
        """A group is asked for."""
        asked = Asked(to)
        self._decide(
            asked, request.group, lambda groups: groups.describe(asked, request, now), now, wall
        )

    def delete(self, to: Conversation, request: DeleteGroup, now: int, wall: int) -> None:
        """A group is to be forgotten."""
        asked = Asked(to)
        self._decide(asked, request.group, lambda groups: groups.delete(asked, request), now, wall)

    def list_groups(self, to: Conversation, _: ListGroups) -> None:
        """The groups coordinated here; not before all of those are known."""
        found: list[GroupListing] = []
        for coordinating in self._kept():
            if coordinating.coordinator is not None:
                found += coordinating.coordinator.listings()
            elif coordinating.partition.leads:
                raise NotReady("this node is still reading the groups that it coordinates")
        found.sort(key=lambda listing: listing.group)
        self._reply(to, ListGroupsReply(id=to.id, groups=found))

    def _decide(self, asked: Asked, group: str, decide: Decide, now: int, wall: int) -> None:
        check_group(group)
        self._refresh()
        self._coordinating(group, now).take(asked, decide, now, wall)

    def _coordinating(self, group: str, now: int) -> Coordinating:
        """The partition that has a group, led here.

        Raises:
            NotCoordinator, NotReady: another node leads it, or none does yet.
        """
        topic = self._metadata.metadata.topic_named(TOPIC)
        if topic is None:
            self._make_topic(now)
            raise NotReady(f"{TOPIC}, where groups are kept, is being made; try again in a moment")
        number = partition_of(group, len(topic.partitions))
        partition = self._keeper.find(topic.topic_id, number)
        leader = topic.partitions[number].leader
        if partition is not None and partition.coordinating is not None and partition.leads:
            return partition.coordinating
        if leader == self._settings.node:
            raise NotReady("this node is about to coordinate the group; try again in a moment")
        who = "no node coordinates" if leader is None else f"node {leader!r} coordinates"
        raise NotCoordinator(f"{who} group {group!r} now", leader=leader)

    # Answers ---

    def attach(self, partition: Partition) -> None:
        """A partition of `__groups` is opened here."""
        partition.coordinating = Coordinating(
            partition, catalog=lambda: self._catalog, give=self._give, park=self._park,
            taken_over=self.look, report=self._report,
            retention=self._settings.offsets_retention,
        )  # fmt: skip

    def _park(self, asked: Asked) -> None:
        """A request is held for as long as its sender likes: it is not in flight meanwhile."""
        if self._parked < PARKED_MAX:
            self._parked += 1
            asked.counted = False
            self._uncount(asked.to)

    def _give(self, asked: Asked, found: Found) -> None:
        message: Reply
        if isinstance(found, ZBrokerError):
            message = wire.error_reply(found, asked.to.id)
        else:
            message = found
            message.id = asked.to.id
        if asked.counted:
            self._reply(asked.to, message)
        else:
            self._parked -= 1
            self._transport.reply(asked.to, message)

    # Finding ---

    def look(self, now: int) -> None:
        """The metadata changed, or time passed: whoever waits for a coordinator may have one."""
        if not self._finding:
            return
        metadata = self._metadata.metadata
        topic = metadata.topic_named(TOPIC)
        if topic is None:
            self._make_topic(now)
        waiting, self._finding = self._finding, []
        for each in waiting:
            found = None if topic is None else self._coordinator(metadata, topic, each)
            if found is not None:
                self._reply(each.to, found)
            elif now >= each.deadline:
                late = NotReady(f"no node coordinates group {each.group!r} for now")
                self._reply(each.to, wire.error_reply(late, each.to.id))
            else:
                self._finding.append(each)

    def _coordinator(
        self, metadata: Metadata, topic: TopicState, asked: _Finding
    ) -> FindCoordinatorReply | None:
        number = partition_of(asked.group, len(topic.partitions))
        state = topic.partitions[number]
        if state.leader is None or state.leader not in metadata.nodes:
            return None
        if state.leader == self._settings.node:
            kept = self._keeper.find(topic.topic_id, number)
            if kept is None or kept.coordinating is None or not kept.coordinating.is_ready:
                return None
        node = metadata.nodes[state.leader]
        return FindCoordinatorReply(
            id=asked.to.id, node=node.node, host=node.host, port=node.port, epoch=state.epoch
        )

    def _make_topic(self, now: int) -> None:
        if self._making:
            return
        self._making = True

        def made(_: Any) -> None:
            self._making = False

        self._petitions.ask(MakeInternalTopic(name=TOPIC), made, now, timeout=FIND_MS)

    # Topics and time ---

    def on_metadata(self, touched: Iterable[str], *, nodes: bool) -> None:
        """Topics or nodes changed."""
        self._stale.update(dict.fromkeys(touched))
        self._nodes_stale = self._nodes_stale or nodes

    def _refresh(self) -> None:
        """Coordinators are told of what changed."""
        if not self._stale and not self._nodes_stale:
            return
        metadata = self._metadata.metadata
        renewed, changed, deleted = self._nodes_stale, False, False
        for topic_id in self._stale:
            topic, before = metadata.topics.get(topic_id), self._views.get(topic_id)
            if topic is None:
                deleted = self._views.pop(topic_id, None) is not None or deleted
                continue
            leaders = tuple(each.leader for each in topic.partitions)
            if before is None or before.leaders != leaders:
                self._views[topic_id] = TopicView(topic_id, topic.name, leaders)
                renewed = True
                changed = changed or before is None or len(before.leaders) != len(leaders)
        self._stale, self._nodes_stale = {}, False
        changed = changed or deleted
        if not (renewed or changed):
            return
        racks = {name: node.rack for name, node in metadata.nodes.items()}
        self._catalog = Catalog(self._views.values(), racks)
        for coordinating in self._kept():
            coordinating.on_catalog(self._catalog, changed=changed, deleted=deleted)

    def on_tick(self, now: int) -> None:
        """About every 100 ms, before the partitions'."""
        self._refresh()
        self.look(now)

    # What others may know ---

    def _kept(self) -> Iterator[Coordinating]:
        topic = self._metadata.metadata.topic_named(TOPIC)
        if topic is not None:
            for partition in self._keeper.kept.get(topic.topic_id, {}).values():
                if partition.coordinating is not None:
                    yield partition.coordinating

    def count(self) -> tuple[int, int, int]:
        """Groups and members coordinated here, and targets made since the start."""
        led = [each.coordinator for each in self._kept() if each.coordinator is not None]
        return (
            sum(len(each.state.groups) for each in led),
            sum(len(each.sessions) for each in led),
            sum(each.rebalances for each in self._kept()),
        )

    def lags(self) -> list[Lag]:
        """How far groups are behind in the partitions led here, as far as this node knows their positions."""
        found: list[Lag] = []
        for coordinating in self._kept():
            for group in coordinating.state.groups.values():
                for topic_id, positions in group.offsets.items():
                    kept = self._keeper.kept.get(topic_id, {})
                    for number, position in positions.items() if kept else ():
                        partition = kept.get(number)
                        if partition is not None and partition.serves:
                            lag = max(0, partition.high_watermark - position.offset)
                            found.append(Lag(group.name, partition.topic, number, lag))
                    if len(found) >= LAG_MAX:
                        return found
        return found
