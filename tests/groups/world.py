"""A coordinator, its log, and members that follow the protocol, with everything between them under a test's control.

What is sent goes through channels that keep their order; a member that gave a reply up opens another one, and what it
had sent by the old one may arrive later, at any time. A member reads what it was given until it has released it, and
hands out nothing once its own count says that its session is over.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any

import msgspec

from zbroker.errors import MemberFenced, ZBrokerError
from zbroker.groups.catalog import Catalog, TopicView
from zbroker.groups.coordinator import Coordinator
from zbroker.groups.records import Record, decode, encode
from zbroker.groups.state import State, TopicPartition
from zbroker.protocol.messages import (
    CommitOffsets,
    GroupHeartbeat,
    GroupHeartbeatReply,
    GroupOffset,
    Reply,
    TopicPartitions,
)

GROUP = "g"
SESSION = 10_000
WALL = 1_790_000_000_000


def catalog(**partitions: int) -> Catalog:
    """Topics by name; a topic's id is its name with `id-` in front."""
    return Catalog(
        [TopicView(f"id-{name}", name, ("node1",) * count) for name, count in partitions.items()]
    )


def grouped(partitions: set[TopicPartition]) -> list[TopicPartitions]:
    """Partitions as they stand in messages."""
    by_topic: dict[str, list[int]] = {}
    for topic_id, number in sorted(partitions):
        by_topic.setdefault(topic_id, []).append(number)
    return [
        TopicPartitions(topic_id=each, partitions=numbers) for each, numbers in by_topic.items()
    ]


class Channel:
    """One connection of a member: requests on their way, in order, and replies."""

    def __init__(self) -> None:
        self.requests: deque[GroupHeartbeat | CommitOffsets] = deque()
        self.replies: deque[tuple[int, Reply | ZBrokerError]] = deque()


class Asked:
    """Whom the coordinator answers."""

    def __init__(self, channel: Channel, number: int) -> None:
        self.channel, self.number = channel, number


class ScriptedMember:
    """A member that follows the protocol.

    Attributes:
        held: what it has been given and has not released.
        wanted: what it was last told to own.
        alive_since: when it sent the last heartbeat that was answered; its session counts from there.
    """

    def __init__(self, world: GroupWorld, topics: list[str], instance: str | None = None) -> None:
        self.world = world
        self.topics, self.instance = topics, instance
        self.held: set[TopicPartition] = set()
        self.wanted: set[TopicPartition] = set()
        self.gone = False
        self.channels: list[Channel] = []
        self._begin()

    def _begin(self) -> None:
        """Joins under an id that nobody had."""
        self.member = f"m{next(self.world.names)}"
        self.epoch = 0
        self.held, self.wanted = set(), set()
        self.alive_since = -1
        self.sent: dict[int, tuple[int, bool]] = {}
        self.says_owned = False
        self.reopen()

    def reopen(self) -> None:
        """Gives up what it waits for, and opens another connection: it does not know what came of its requests."""
        self.sent = {}
        self.channels.append(Channel())
        self.says_owned = True
        self.heartbeat()

    @property
    def channel(self) -> Channel:
        return self.channels[-1]

    @property
    def is_reading(self) -> set[TopicPartition]:
        """What it may be reading at this moment."""
        alive = self.alive_since >= 0 and self.world.now < self.alive_since + SESSION
        return self.held if alive and not self.gone else set()

    def heartbeat(self, epoch: int | None = None, wait: int = 2500) -> None:
        """Sends one."""
        joins = self.epoch == 0
        request = GroupHeartbeat(
            id=next(self.world.ids), group=GROUP, member=self.member, instance=self.instance if joins else None,
            member_epoch=self.epoch if epoch is None else epoch, topics=self.topics if joins else [],
            owned=grouped(self.held) if self.says_owned or joins else None, wait=wait,
            session_timeout=SESSION, release_timeout=30_000,
        )  # fmt: skip
        self.says_owned = False
        self.sent[request.id] = (self.world.now, True)
        self.channel.requests.append(request)

    def release(self) -> None:
        """Has done with what it is to give back."""
        if self.held - self.wanted:
            self.held &= self.wanted
            self.says_owned = True
            self.heartbeat()

    def commit(self, offset: int) -> None:
        """Commits the same position in all that it holds."""
        request = CommitOffsets(
            id=next(self.world.ids), group=GROUP, member=self.member, member_epoch=self.epoch,
            offsets=[GroupOffset(topic_id=each, partition=number, offset=offset) for each, number in sorted(self.held)],
        )  # fmt: skip
        self.channel.requests.append(request)

    def receive(self) -> None:
        """Takes the next reply, if there is one."""
        if not self.channel.replies:
            return
        number, reply = self.channel.replies.popleft()
        sent_at, _ = self.sent.pop(number, (-1, False))
        if isinstance(reply, MemberFenced):
            self._begin()
        elif isinstance(reply, GroupHeartbeatReply) and reply.member_epoch >= 0:
            self.alive_since = max(self.alive_since, sent_at)
            self.epoch = reply.member_epoch
            if reply.assignment is not None:
                self.wanted = {
                    (each.topic_id, part) for each in reply.assignment for part in each.partitions
                }
                self.held |= self.wanted
                self.says_owned = True
            if not self.sent:
                self.heartbeat()
        elif isinstance(reply, ZBrokerError) and sent_at >= 0:
            self.reopen()

    def check_session(self) -> None:
        """By its own count its session is over: it begins anew."""
        if self.alive_since >= 0 and self.world.now >= self.alive_since + SESSION:
            self._begin()

    def kill(self) -> None:
        """The process is gone; what it sent may still arrive."""
        self.gone = True
        self.held = set()


class GroupWorld:
    """A coordinator and its members.

    Attributes:
        log: all that was appended, encoded; `committed`: how many of those records are safe.
    """

    def __init__(self, **partitions: int) -> None:
        self.now, self.wall = 1000, WALL
        self.ids, self.names = itertools.count(1), itertools.count(1)
        self.log: list[Any] = []
        self.committed = 0
        self.catalog = catalog(**partitions)
        self.members: list[ScriptedMember] = []
        self.waiting: deque[tuple[int, Asked, Reply | ZBrokerError]] = deque()
        self.coordinator = Coordinator(State(), self.catalog, self.now)

    @property
    def state(self) -> State:
        return self.coordinator.state

    def join(self, *topics: str, instance: str | None = None) -> ScriptedMember:
        member = ScriptedMember(self, list(topics), instance)
        self.members.append(member)
        return member

    # What happens ---

    def deliver(self, channel: Channel) -> None:
        """The next request of a channel arrives."""
        if not channel.requests:
            return
        request = channel.requests.popleft()
        asked = Asked(channel, request.id)
        try:
            if isinstance(request, CommitOffsets):
                self.coordinator.commit(asked, request, self.wall)
            else:
                self.coordinator.heartbeat(asked, request, self.now, self.wall)
        except ZBrokerError as error:
            self.coordinator.outcome.answer(asked, error)
        self._take()

    def tick(self, ms: int) -> None:
        """Time passes."""
        self.now += ms
        self.wall += ms
        self.coordinator.on_tick(self.now, self.wall)
        self._take()

    def _take(self) -> None:
        records, answers = self.coordinator.outcome.take()
        self.log += [encode(record)[1:3] for record in records]
        for asked, found in answers:
            self.waiting.append((len(self.log), asked, found))

    def commit_log(self, upto: int | None = None) -> None:
        """Records are safe: answers that rest on them are sent."""
        self.committed = len(self.log) if upto is None else max(self.committed, upto)
        while self.waiting and self.waiting[0][0] <= self.committed:
            _, asked, found = self.waiting.popleft()
            asked.channel.replies.append((asked.number, found))

    def fail_over(self, kept: int) -> None:
        """Another node coordinates, with the log as far as it has it; who waits hears nothing more."""
        assert kept >= self.committed
        del self.log[kept:]
        self.committed = kept
        self.waiting.clear()
        self.coordinator = Coordinator(self.replay(), self.catalog, self.now)

    def replay(self, upto: int | None = None) -> State:
        """The state that the log makes."""
        state = State()
        for key, value in self.log[:upto]:
            state.apply(decode(key, value))
        return state

    def set_topics(self, **partitions: int) -> None:
        """Topics come, go and grow."""
        self.catalog = catalog(**partitions)
        self.coordinator.targets.catalog = self.catalog
        self.coordinator.targets.look_at_topics()

    def settle(self, rounds: int = 400) -> None:
        """Everything arrives, everyone does what it has to, until nobody has anything to do but wait."""
        for _ in range(rounds):
            for member in self.members:
                for channel in member.channels:
                    while channel.requests:
                        self.deliver(channel)
            self.commit_log()
            for member in self.members:
                if not member.gone:
                    while member.channel.replies:
                        member.receive()
                    member.release()
            self.tick(100)
            if (
                all(not channel.requests for each in self.members for channel in each.channels)
                and self.is_stable()
            ):
                return
        raise AssertionError("the group does not settle")

    def is_stable(self) -> bool:
        group = self.state.groups.get(GROUP)
        if group is None:
            return True
        alive = {each.member for each in self.members if not each.gone}
        plan = self.coordinator.targets.plan(GROUP)
        return (
            set(group.members) <= alive
            and not self.waiting
            and not self.coordinator.targets.is_due(GROUP)
            and (not group.members or plan is not None)
            and all(
                not member.releasing
                and member.assigned.keys() == (plan.wanted[name].keys() if plan else set())
                for name, member in group.members.items()
            )
            and all(
                not each.gone and each.held == set(group.members[each.member].assigned)
                for each in self.members
                if each.member in group.members
            )
        )

    # What must be true ---

    def check(self) -> None:
        """Nobody reads what another reads, and the records say the same."""
        readers: dict[TopicPartition, ScriptedMember] = {}
        for member in self.members:
            for partition in member.is_reading:
                assert partition not in readers, (
                    partition,
                    member.member,
                    readers[partition].member,
                )
                readers[partition] = member
        check_state(self.state)


def check_state(state: State) -> None:
    """Each partition has at most one holder, and the index of holders says who."""
    for group in state.groups.values():
        holders: dict[TopicPartition, str] = {}
        for name, member in group.members.items():
            for partition in (*member.assigned, *member.releasing):
                assert partition not in holders, (partition, name, holders[partition])
                holders[partition] = name
        assert holders == group.holders


def as_plain(state: State) -> dict[str, Any]:
    """A state as data that can be compared."""
    return {name: msgspec.to_builtins(_plain(group)) for name, group in state.groups.items()}


def _plain(group: Any) -> dict[str, Any]:
    return {
        "epoch": group.epoch, "known": group.known, "empty": group.empty_since, "assignor": group.assignor,
        "instances": dict(sorted(group.instances.items())),
        "members": {
            name: [msgspec.to_builtins(member.about), sorted(member.assigned.items()), sorted(member.releasing.items())]
            for name, member in sorted(group.members.items())
        },
        "offsets": {key: dict(sorted(value.items())) for key, value in sorted(group.offsets.items())},
    }  # fmt: skip


__all__ = ["GROUP", "SESSION", "GroupWorld", "Record", "ScriptedMember", "as_plain", "check_state"]
