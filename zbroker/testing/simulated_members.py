"""Members of consumer groups in a simulated cluster: an application around a real consumer's cores, what they read.

Owns what all members of a group see together (`Readership`): whoever hands a record out looks whether anybody else
could be handing out records of the same partition at that moment, which must never be (invariant 17). Nobody is held
to what it cannot know: that a node whose clock is fast has ended its session before itself has. A member is a process:
it can crash, freeze and be thawed, leave, and be followed by another under the same instance.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from zbroker.client.buffer import ConsumerSettings, Ready
from zbroker.client.committing import Position
from zbroker.client.consuming import ConsumerCore
from zbroker.client.custody import Custody
from zbroker.client.grouping import GroupCore
from zbroker.client.membership import GroupSettings
from zbroker.client.records import TopicPartition
from zbroker.errors import ZBrokerError
from zbroker.protocol import messages
from zbroker.protocol.batch import decode_records
from zbroker.testing.broken import InvariantBroken
from zbroker.testing.clients import REQUEST_TIMEOUT, SimulatedClient
from zbroker.testing.timeline import MS, SECOND

if TYPE_CHECKING:
    from zbroker.testing.cluster import SimulatedCluster

COMMIT_INTERVAL = 0.3
"""Seconds between a member's automatic commits."""


class Span(msgspec.Struct):
    """Offsets of one partition that were handed out, without a gap: `first` to `next`."""

    first: int
    next: int


class Readership:
    """What the members of one group are handed.

    Attributes:
        members: everyone who was ever a member.
        handed: ranges of offsets, by topic id and partition, in order and joined.
        checks: how often it was looked whether two read one partition.
    """

    def __init__(self) -> None:
        self.members: list[SimulatedMember] = []
        self.handed: dict[tuple[str, int], list[Span]] = {}
        self.checks = 0

    def hand(
        self,
        member: SimulatedMember,
        place: TopicPartition,
        topic_id: str,
        first: int,
        following: int,
    ) -> None:
        """A member hands out a range of a partition."""
        self.checks += 1
        for other in [] if member.may_be_out else self.members:
            if other is not member and other.may_hand_out(place, topic_id) and not other.may_be_out:
                raise InvariantBroken(
                    f"17: {member.name} hands out {first} to {following - 1} of {place.topic}/{place.partition}, "
                    f"which is {other.name}'s too"
                )
        self._note(topic_id, place.partition, Span(first, following))

    def _note(self, topic_id: str, partition: int, span: Span) -> None:
        spans = self.handed.setdefault((topic_id, partition), [])
        kept = []
        for each in spans:
            if each.next < span.first or span.next < each.first:
                kept.append(each)
            else:
                span = Span(min(each.first, span.first), max(each.next, span.next))
        self.handed[topic_id, partition] = sorted([*kept, span], key=lambda each: each.first)

    def missed(self, topic_id: str, partition: int, first: int, end: int) -> str:
        """What of a range nobody was handed; nothing where somebody was handed all of it."""
        at = first
        for span in self.handed.get((topic_id, partition), []):
            if span.first > at:
                break
            at = max(at, span.next)
        return (
            ""
            if at >= end
            else f"nobody was handed {at} of {topic_id}/{partition}, which ends at {end}"
        )


class SimulatedMember(SimulatedClient):
    """An application that reads its share of its topics, with a real consumer's cores, and commits what is done.

    Attributes:
        errors: what it was told.
        frozen: it stands still; what comes waits.
        leaving: it is about to be gone.
    """

    def __init__(
        self,
        name: str,
        cluster: SimulatedCluster,
        readership: Readership,
        topics: tuple[str, ...],
        *,
        group: str = "readers",
        instance: str | None = None,
        assignor: Any = "sticky",
        session: float = 3.0,
        pace: tuple[int, int] = (20 * MS, 150 * MS),
    ) -> None:
        """
        Args:
            session: seconds of silence after which the member is out.
            pace: least and most microseconds between two calls of the application.
        """
        super().__init__(name, cluster)
        self.readership = readership
        self.errors: list[ZBrokerError] = []
        self.frozen = self.leaving = False
        self.instance = instance
        self._pace = pace
        self._backlog: deque[tuple[str, str, Any]] = deque()
        self._done: dict[TopicPartition, Position] = {}
        self._joined = False
        settings = ConsumerSettings(
            topics=topics, partitions=None, start="earliest", starts={}, on_out_of_range="earliest",
            fetch_bytes=4000, buffer_bytes=20_000, request_timeout=REQUEST_TIMEOUT, until_end=False,
            grouped=True,
        )  # fmt: skip
        self.core = ConsumerCore(settings, self.exchange, self.metadata, self.rng.random)
        self.custody = Custody()
        member = GroupSettings(
            group=group, topics=topics, instance=instance, assignor=assignor, session_timeout=session,
            max_poll_interval=20.0, commit_interval=COMMIT_INTERVAL, client=name,
        )  # fmt: skip
        self.group = GroupCore(
            member, self.core, self.custody, self.metadata, self.rng.random,
            lambda: f"{self.rng.getrandbits(128):032x}",
        )  # fmt: skip
        self.core.begin(self.now)
        readership.members.append(self)
        cluster.timeline.after(self.rng.randint(*pace), self._application)

    # What others look at ---

    def may_hand_out(self, place: TopicPartition, topic_id: str) -> bool:
        """Whether it could hand out records of a partition at this moment."""
        membership = self.group.membership
        return (
            not self.stopped
            and membership.state == "member"  # one that leaves has given up all, and only says so
            and membership.held.get(place) == topic_id
            and self.now < membership.fence_at
        )

    @property
    def may_be_out(self) -> bool:
        """Whether its session is over by the clock of a node that was fast: only its commits are refused then."""
        membership = self.group.membership
        session = membership.settings.session_timeout
        if self.now >= membership.fence_at:
            return False  # it is over by its own, too, and nothing is to be excused
        since = round((membership.fence_at - session) * SECOND)
        machines = self.cluster.machines.values()
        return any(machine.counted(since) >= session * SECOND for machine in machines)

    @property
    def held(self) -> dict[TopicPartition, str]:
        """Topic ids of what it holds."""
        return {} if self.stopped else self.group.membership.held

    # What happens to it ---

    def crash(self) -> None:
        """The process is gone, without a word."""
        self.cluster.trace.note(self.name, "crashes")
        self.stop()

    def freeze(self) -> None:
        """The process stands still, and nobody can tell from outside."""
        if not self.stopped:
            self.cluster.trace.note(self.name, "frozen")
            self.frozen = True

    def thaw(self) -> None:
        """It goes on, with everything that waited."""
        if not self.frozen or self.stopped:
            return
        self.cluster.trace.note(self.name, "thawed")
        self.frozen = False
        self._poll()  # the application may be the first to wake up, and asks for records
        backlog, self._backlog = self._backlog, deque()
        for node, lane, content in backlog:
            super().receive(node, lane, content)
        self._application()
        self.soon()

    def leave(self, seconds: float = 2.0) -> None:
        """Closes in order: commits, leaves, and is gone; a static member keeps its place for its session."""
        if self.stopped:
            return
        self.cluster.trace.note(self.name, "leaves")
        self.leaving = True
        keep = self.instance is not None
        self.group.close(self.stop, keep=keep, deadline=self.now + seconds)
        self.soon()

    # The client's thread ---

    def turn(self) -> None:
        """See `SimulatedClient`."""
        if not self.frozen:
            super().turn()

    def receive(self, node: str, lane: str, content: Any) -> None:
        """See `cluster.Client`."""
        if self.frozen:
            self._backlog.append((node, lane, content))
        else:
            super().receive(node, lane, content)

    def connection_lost(self, node: str) -> None:
        """See `cluster.Client`."""
        if self.frozen:
            self.connections[node] += (
                1  # its sockets see that for it; the core hears of it by a timeout
            )
        else:
            super().connection_lost(node)

    def decide(self) -> float | None:
        """See `SimulatedClient`."""
        wanted = [self.group.step(self.now), self.core.step(self.now)]
        return min((due for due in wanted if due is not None), default=None)

    def on_push(self, push: messages.Push, body: bytes | None) -> None:
        """See `SimulatedClient`."""
        self.core.on_push(push, body, self.now)

    # The application's thread ---

    def _application(self) -> None:
        if self.stopped or self.frozen:
            return
        self._poll()
        self.cluster.timeline.after(self.rng.randint(*self._pace), self._application)
        self.soon()

    def _poll(self) -> None:
        """One call, as `Consumer.poll` makes it: what was handed out before is done."""
        custody, group = self.custody, self.group
        custody.call(self._done, None)
        self._done = {}
        if not self._joined:
            self._joined = True
            group.join(self.now)
        while (event := custody.next_event()) is not None:
            if event.kind == "revoked":
                custody.finish(event.places)
                group.on_finished(event.places)
        if custody.error is not None:
            self.errors.append(custody.error)
            self.cluster.trace.note(self.name, f"is told: {custody.error}")
            if not custody.final:
                custody.error = None
                self._joined = False
        else:
            self._take()
        custody.idle_since = self.now

    def _take(self) -> None:
        core = self.core
        failed = False
        while core.ready and not self.custody.suspended(self.now):
            item = core.ready.popleft()
            if item.piece is not None:
                core.buffer.bytes_out += item.piece.header.size
            elif item.error is not None and item.place.partition < 0:
                failed = True  # of a topic
                continue
            if not self.custody.take(
                item.place, item.generation, self.now, hand=item.piece is not None
            ):
                continue
            if item.error is not None:
                failed = True
                self.errors.append(item.error)
            else:
                self._hand_over(item)
        core.buffer.stalled = False
        if failed:
            core.go_on(self.now)

    def _hand_over(self, item: Ready) -> None:
        reader, epoch = self.core.readers.get(item.place), -1
        topic_id = self.group.membership.held.get(
            item.place, "" if reader is None else reader.topic_id
        )
        if item.piece is not None:
            header = item.piece.header
            epoch = header.leader_epoch
            decode_records(item.piece.data, item.piece.at, header)
            self.readership.hand(self, item.place, topic_id, item.piece.first, item.position)
        self._done[item.place] = Position(item.position, epoch)
